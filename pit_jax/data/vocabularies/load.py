"""Loads the vocabulary that a configuration names: bytes, words, or the user's own tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from pit_jax.data.synthetic.instructions import FAMILIES
from pit_jax.data.vocabularies.base import ASSISTANT, HUMAN, Vocabulary
from pit_jax.data.vocabularies.tokenizer_files import NO_TEMPLATE
from pit_jax.data.vocabularies.words import ByteVocabulary, WordVocabulary
from pit_jax.errors import UserError


def load(
    spec: str,
    extra_words: Sequence[str] = (),
    control_tokens: Sequence[str] = (),
    eos_token: str = "",
    pad_token: str = "",
    chat_template: str = NO_TEMPLATE,
) -> Vocabulary:
    """Loads the vocabulary that `spec` names.

    Args:
      spec: `bytes`; `words:FAMILY` for the words of a synthetic family; `sentencepiece:PATH` for a
        SentencePiece model; `tokenizer:PATH` for a Hugging Face `tokenizer.json` or its folder.
      extra_words: further words of a word vocabulary, such as those of a Self-Refine prompt.
      control_tokens: names of a tokenizer's two reserved pieces that become `<<Candidate>>` and
        `<<Improved>>`; by default ids are appended for them.
      eos_token: name of a tokenizer's EOS piece, if its files don't tell.
      pad_token: name of a tokenizer's padding piece, or of an unused reserved piece; by default
        what its files tell, else an appended id.
      chat_template: `none` for the paper's layouts; for a Hugging Face tokenizer also `tokenizer`,
        its own chat template, or the path of one.

    Raises:
      UserError: if `spec` names nothing known, a file can't be read, or a name doesn't fit.
    """
    kind, _, name = spec.partition(":")
    if kind in ("sentencepiece", "tokenizer") and name:
        named = name, control_tokens, eos_token, pad_token
        if kind == "tokenizer":
            from pit_jax.data.vocabularies.tokenizer_json import TokenizerVocabulary

            return TokenizerVocabulary(*named, chat_template)
        _refuse_template(spec, chat_template)
        from pit_jax.data.vocabularies.sentence_pieces import SentencePieceVocabulary

        return SentencePieceVocabulary(*named)
    if spec != "bytes" and (kind != "words" or name not in FAMILIES):
        families = (f"words:{family}" for family in FAMILIES)
        choices = ", ".join(["bytes", *families, "sentencepiece:PATH", "tokenizer:PATH"])
        raise UserError(f"vocabulary: got {spec!r}, expected one of {choices}")
    if control_tokens or eos_token or pad_token:
        raise UserError(
            f"vocabulary: {spec!r} has its own control, EOS and padding ids: got control_tokens="
            f"{control_tokens!r}, eos_token={eos_token!r}, pad_token={pad_token!r}, expected none"
        )
    _refuse_template(spec, chat_template)
    if spec == "bytes":
        return ByteVocabulary()
    return WordVocabulary((HUMAN.strip(), ASSISTANT, *FAMILIES[name].WORDS, *extra_words))


def _refuse_template(spec: str, chat_template: str) -> None:
    if chat_template != NO_TEMPLATE:
        raise UserError(
            f"vocabulary: {spec!r} has no special tokens for a chat template: got chat_template="
            f"{chat_template!r}, expected {NO_TEMPLATE!r}, or a vocabulary tokenizer:PATH"
        )
