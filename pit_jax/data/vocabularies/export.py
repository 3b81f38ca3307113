"""Writes a tokenizer with the pieces that its vocabulary has added, as transformers loads it."""

from __future__ import annotations

import json
from typing import Any

from etils import epath

from pit_jax.data.vocabularies import tokenizer_files
from pit_jax.data.vocabularies.base import EOS_ID, PAD_ID
from pit_jax.errors import UserError
from pit_jax.files import write_whole

# What added pieces are called.
ADDED = {"pad": "<<Pad>>", **dict(zip(("candidate", "improved"), tokenizer_files.CONTROL))}
# Around a chat template: a last turn of role `candidate` is what PIT is to improve.
_BEFORE = (
    "{% if messages and messages[-1].role == 'candidate' %}"
    "{% set candidate = messages[-1].content %}{% set messages = messages[:-1] %}"
    "{% set add_generation_prompt = true %}{% endif %}"
)
_AFTER = "{% if candidate is defined %}CANDIDATE{{ candidate }}IMPROVED{% endif %}"


def with_candidate(chat_template: str, pieces: dict[str, str]) -> str:
    """Adds a place for the response that PIT is to improve to a chat template.

    Args:
      chat_template: renders turns, and the start of an answer where it is asked for one.
      pieces: names of the control tokens, as `write_tokenizer` returns them.
    """
    after = _AFTER.replace("CANDIDATE", pieces["candidate"]).replace("IMPROVED", pieces["improved"])
    return _BEFORE + chat_template.removesuffix("\n") + after


def piece_ids(vocabulary: Any) -> dict[str, int]:
    """Returns the tokenizer's own id of padding, `<<Candidate>>` and `<<Improved>>`."""
    control = vocabulary.control_tokens
    ours = {"pad": PAD_ID, "candidate": control.candidate, "improved": control.improved}
    return {name: int(vocabulary.tokenizer_ids[id_]) for name, id_ in ours.items()}


def write_tokenizer(
    source: epath.Path,
    folder: epath.Path,
    vocabulary: Any,
    chat_template: str,
    improver: bool,
    added: bool = True,
) -> dict[str, str]:
    """Writes `tokenizer.json`, `tokenizer_config.json` and, if there is one, the chat template.

    Args:
      source: the tokenizer's file or folder, which the vocabulary was made of.
      folder: where they are written.
      vocabulary: made of it.
      chat_template: what made the prompts, as for `load.load`; for `none` no template is written,
        since the paper's layouts join pieces that are tokenized apart.
      improver: whether the template gets a place for the response that is to be improved.
      added: whether the vocabulary's added pieces become special tokens of the tokenizer. If not,
        padding is EOS where it was added.

    Returns:
      the names of the pieces of padding, `<<Candidate>>` and `<<Improved>>`, under pad, candidate
      and improved.

    Raises:
      UserError: if the source isn't a `tokenizer.json`.
    """
    from tokenizers import AddedToken, Tokenizer

    file = source / "tokenizer.json" if source.is_dir() else source
    if file.suffix != ".json":
        raise UserError(f"{file}: expected a tokenizer.json, which transformers loads")
    tokenizer = Tokenizer.from_str(tokenizer_files.read(file).decode())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    ids = piece_ids(vocabulary)
    for name, id_ in sorted(ids.items(), key=lambda item: item[1]):
        if id_ >= vocabulary.num_pieces and added:
            tokenizer.add_special_tokens([AddedToken(ADDED[name], special=True)])
    if not added and ids["pad"] >= vocabulary.num_pieces:
        ids["pad"] = int(vocabulary.tokenizer_ids[EOS_ID])
    pieces = {name: str(tokenizer.id_to_token(id_)) for name, id_ in ids.items()}
    config = tokenizer_files.settings(file.with_name(tokenizer_files.CONFIG))
    config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    # The table of added pieces is that of tokenizer.json, which now has more; the template is a
    # file of its own.
    for name in ("added_tokens_decoder", "chat_template"):
        config.pop(name, None)
    config |= {"pad_token": pieces["pad"], "padding_side": "left"}
    if chat_template != tokenizer_files.NO_TEMPLATE:
        text, _ = tokenizer_files.chat_template(chat_template, file.parent)
        text = with_candidate(text, pieces) if improver else text
        write_whole(folder / "chat_template.jinja", text)
    write_whole(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    text = json.dumps(config, indent=2, ensure_ascii=False)
    write_whole(folder / tokenizer_files.CONFIG, text + "\n")
    return pieces
