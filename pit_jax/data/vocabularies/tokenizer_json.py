"""Makes vocabularies of Hugging Face tokenizers, `tokenizer.json` and what stands beside it."""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

from etils import epath

from pit_jax.data.vocabularies import tokenizer_files
from pit_jax.data.vocabularies.chat_templates import ChatTemplate
from pit_jax.data.vocabularies.subwords import MARK, SubwordVocabulary, choose_roles, fingerprint
from pit_jax.errors import UserError

# Parts of a tokenizer.json that `encode` has no use for.
_NOT_ENCODING = ("truncation", "padding", "post_processor")
# Entries of an ordinary list of pieces that stand for nothing yet, such as BERT's [unused1].
_PLACEHOLDER = re.compile(r"[<\[]\|?\w*(unused|reserved|extra_id)\w*\|?[>\]]")


class TokenizerVocabulary(SubwordVocabulary):
    """Uses a Hugging Face `tokenizer.json` without truncation, padding, dropout, post-processing.

    Reserved are its special tokens, added tokens that look like marks (`<|im_start|>`, `[INST]`)
    or are named here, and placeholders among the pieces (`[unused1]`); other added tokens, such as
    runs of spaces, stay text.

    The files beside it tell the rest. EOS is what the chat template writes after an answer, where
    one is used and writes a special token there, else `eos_token` of `tokenizer_config.json`, else
    the first one of `generation_config.json`; all of these together are `ends`. Prompts begin with
    BOS where `add_bos_token` of `tokenizer_config.json` says so, or says nothing and the
    tokenizer's post-processor puts a special token first.
    """

    def __init__(
        self,
        path: str,
        control_tokens: Sequence[str] = (),
        eos_token: str = "",
        pad_token: str = "",
        chat_template: str = tokenizer_files.NO_TEMPLATE,
    ):
        """Reads the tokenizer.

        Args:
          path: a local file, or a folder with a `tokenizer.json`.
          control_tokens: names of the reserved tokens for `<<Candidate>>` and `<<Improved>>`, by
            default those called so, or appended ids.
          eos_token: name of the EOS token, by default what the files say.
          pad_token: name of the padding token, by default that of `tokenizer_config.json`, else of
            the `padding` of `tokenizer.json`, else, and where that isn't a token of its own, an
            appended id.
          chat_template: `none`; `tokenizer` for the tokenizer's own; or the path of a file.

        Raises:
          UserError: if a file can't be read, or a name doesn't fit.
        """
        file, tokenizer, spec = _read(path)
        config = tokenizer_files.settings(file.with_name(tokenizer_files.CONFIG))
        names = tokenizer_files.special_names(config)
        own_padding = names.get("pad_token") or (tokenizer.padding or {}).get("pad_token", "")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        ids = tokenizer.get_vocab(with_added_tokens=True)
        added = tokenizer.get_added_tokens_decoder().values()
        closed = {t.content for t in added if t.special or MARK.fullmatch(t.content)}
        closed |= {name for name in ids if _PLACEHOLDER.fullmatch(name)}
        control_tokens = control_tokens or _own_control(closed)
        given = {eos_token, pad_token, *control_tokens}
        reserved = closed | {token.content for token in added}

        marks = [(t.content, t.lstrip, t.rstrip) for t in added if t.content in closed | given]
        template = _template(chat_template, file.parent, marks, names)
        name_of = {i: name for name, i in ids.items()}
        stops = [name_of[i] for i in tokenizer_files.end_ids(file.parent) if i in name_of]
        ends = [eos_token, template.end if template else "", names.get("eos_token", ""), *stops]
        eos_token = next(filter(None, ends), "")
        bos = _bos(tokenizer, config, names, ids, closed)
        taken = {*ends, bos, "" if _is_bpe(tokenizer) else spec["model"].get("unk_token")}
        if not pad_token and own_padding in reserved - taken:
            pad_token = own_padding

        unknown = _unknown(file, tokenizer, spec["model"], (eos_token, pad_token))
        roles = choose_roles(
            file,
            ids,
            reserved,
            unknown,
            control_tokens,
            eos_token,
            pad_token,
            advice="add some with add_special_tokens of the package tokenizers and save it",
        )
        closed |= {*roles} - {""}
        gaps = set(range(max(ids.values()))) - set(ids.values())
        what_encodes = {key: spec[key] for key in sorted(spec) if key not in _NOT_ENCODING}
        super().__init__(
            ids,
            {ids[name] for name in closed - {unknown}} | gaps,
            None if unknown is None else ids[unknown],
            roles,
            fingerprint("tokenizer", json.dumps(what_encodes, sort_keys=True).encode(), roles),
            bos=ids[bos] if bos else None,
            ends=[ids[name] for name in ends if name in closed],
            template=template,
        )
        self._prefixes_within = _prefixes_within(tokenizer, eos_token)
        self._tokenizer = self._joining = tokenizer
        if (joining := _without_prefix(spec)) != spec:
            self._joining = type(tokenizer).from_str(json.dumps(joining))
            _unknown(file, self._joining, spec["model"], (eos_token, pad_token))
            _close(self._joining, closed | ({unknown} if unknown else set()))
        _close(tokenizer, closed | ({unknown} if unknown else set()))
        self._settle()

    def _pieces(self, text: str, joined: bool = False) -> Sequence[int]:
        tokenizer = self._joining if joined else self._tokenizer
        return tokenizer.encode(text, add_special_tokens=False).ids

    def _pieces_of(self, texts: list[str], joined: bool) -> Sequence[Sequence[int]]:
        tokenizer = self._joining if joined else self._tokenizer
        return [found.ids for found in tokenizer.encode_batch(texts, add_special_tokens=False)]

    def _pieces_within(self, text: str, first: bool) -> Sequence[int]:
        return self._pieces(text, self._prefixes and not (first or self._prefixes_within))

    def _joined(self, pieces: list[int]) -> str:
        return self._tokenizer.decode(pieces, skip_special_tokens=False)

    def _shown(self, pieces: Sequence[int]) -> str:
        return "".join(str(self._tokenizer.id_to_token(i)) for i in pieces)


def _read(path: str) -> tuple[epath.Path, Any, dict[str, Any]]:
    """Returns the file, the tokenizer that it holds, and its JSON.

    Raises:
      UserError: if the package is missing, or the file is none.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise tokenizer_files.not_installed(path, "tokenizers", error) from error
    file = epath.Path(path)
    if file.is_dir():
        file /= "tokenizer.json"
    content = tokenizer_files.read(file)
    try:
        return file, tokenizers.Tokenizer.from_str(content.decode()), json.loads(content)
    except Exception as error:
        raise tokenizer_files.unreadable(file, "a tokenizer.json", error) from error


def _own_control(closed: Set[str]) -> Sequence[str]:
    """Returns the names of the control tokens in a tokenizer that this package has written."""
    return tokenizer_files.CONTROL if {*tokenizer_files.CONTROL} <= closed else ()


def _template(
    choice: str, folder: epath.Path, marks: list[tuple[str, bool, bool]], names: dict[str, str]
) -> ChatTemplate | None:
    if choice == tokenizer_files.NO_TEMPLATE:
        return None
    source, place = tokenizer_files.chat_template(choice, folder)
    return ChatTemplate(source, place, marks, names)


def _bos(
    tokenizer: Any,
    config: Mapping[str, Any],
    names: Mapping[str, str],
    ids: Mapping[str, int],
    closed: Set[str],
) -> str:
    """Returns the name of the special token that every prompt begins with; empty if none does."""
    adds = config.get("add_bos_token")
    if adds is False:
        return ""
    first = ""
    whole, bare = (tokenizer.encode("a", add_special_tokens=special) for special in (True, False))
    if whole.ids[1 : len(bare.ids) + 1] == bare.ids and whole.tokens[0] in closed:
        first = whole.tokens[0]
    named = names.get("bos_token", "")
    return named if adds is True and named in closed and named in ids else first


def _prefixes_within(tokenizer: Any, special: str) -> bool:
    """Whether also a text after a special token begins with a space."""
    after = tokenizer.encode(f"{special}a", add_special_tokens=False).tokens[1:]
    return "".join(after).startswith("▁")


def _is_bpe(tokenizer: Any) -> bool:
    return type(tokenizer.model).__name__ == "BPE"


def _without_prefix(part: Any) -> Any:
    """Returns a part of a tokenizer.json without what puts a space before every text."""
    if isinstance(part, list):
        return [_without_prefix(each) for each in part if not _is_prefix(each)]
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Metaspace":
        space = {"add_prefix_space": False} if "add_prefix_space" in part else {}
        return part | {"prepend_scheme": "never"} | space
    kept = {"model", "added_tokens", "decoder", "post_processor"}
    return {
        name: value if name in kept else None if _is_prefix(value) else _without_prefix(value)
        for name, value in part.items()
    }


def _is_prefix(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "Prepend"


def _unknown(
    file: epath.Path, tokenizer: Any, model: Mapping[str, Any], taken: Sequence[str]
) -> str | None:
    """Returns the unknown token's name; None for a BPE that leaves out what it can't read."""
    if "unk_id" in model:
        name = None if model["unk_id"] is None else tokenizer.id_to_token(model["unk_id"])
    else:
        name = model.get("unk_token")
    if name and name not in taken and tokenizer.model.token_to_id(name) is not None:
        return name
    if not _is_bpe(tokenizer):
        raise UserError(f"{file}: got unknown token {name!r}, expected a piece of its own for it")
    tokenizer.model.unk_token = None
    return None


def _close(tokenizer: Any, names: Set[str]) -> None:
    """Makes the tokenizer read `names` in a text as the characters they are written with."""
    from tokenizers import AddedToken, Regex, pre_tokenizers

    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in sorted(names)])
    tokenizer.encode_special_tokens = True
    pieces = tokenizer.get_vocab(with_added_tokens=False)
    if _is_bpe(tokenizer):
        tokenizer.model.dropout = None
    # What the model itself has among its pieces it never sees whole: it is cut after its first
    # character, once everything else has been done to the text. Likewise the names of bytes.
    names = names | {f"<0x{byte:02X}>" for byte in range(256)}
    rests = collections.defaultdict(list)
    for name in sorted(names & pieces.keys()):
        rests[name[0]].append(re.escape(name[1:]))
    if rests:
        cuts = (f"{re.escape(first)}(?={'|'.join(rest)})" for first, rest in rests.items())
        cut = pre_tokenizers.Split(Regex("|".join(cuts)), "merged_with_previous")
        before = tokenizer.pre_tokenizer
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([before, cut] if before else [cut])
