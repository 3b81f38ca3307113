"""Makes vocabularies of users' own tokenizers: SentencePiece and Hugging Face `tokenizer.json`.

Padding becomes id 0 and EOS id 1, as everywhere in the package, by two swaps of ids at most. A
tokenizer's reserved pieces (control and special pieces, and placeholders such as `<unused0>`) are
no part of any text: a text with their names in it encodes to plain text. Two of them, chosen by
name, are the control tokens.

This works without TensorFlow; the tokenizers' libraries are imported when a vocabulary is made.
"""

from __future__ import annotations

import collections
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
from etils import epath

from pit_jax.data.vocabularies.base import EOS_ID, PAD_ID, ControlTokens, Vocabulary
from pit_jax.errors import UserError

_SHOWN_NAMES = 6
_ROLES = ("eos_token", "pad_token", "control_tokens", "control_tokens")
# Parts of a tokenizer.json that `encode` has no use for.
_NOT_ENCODING = ("truncation", "padding", "post_processor")

# Pieces that a tokenizer declares as text although they may be meant as marks: <start_of_turn>,
# <|im_end|>, [INST]. HTML tags and runs of white space, which some have, are text.
_TAGS = "a|b|blockquote|br|caption|code|div|em|h[1-6]|hr|i|li|ol|p|pre|s|span|strong|sub|sup|table"
_TAGS += "|tbody|td|tfoot|th|thead|tr|u|ul"
_MARK = re.compile(rf"<(?!/?({_TAGS})>)\S+>|\[\S+\]")
# Entries of an ordinary list of pieces that stand for nothing yet, such as BERT's [unused1].
_PLACEHOLDER = re.compile(r"[<\[]\|?\w*(unused|reserved|extra_id)\w*\|?[>\]]")


class SubwordVocabulary(Vocabulary):
    """Puts a tokenizer behind a permutation of its ids; subclasses call the tokenizer.

    Attributes:
      tokenizer_ids: [vocab_size] int32, for every id here the tokenizer's own id of that piece. A
        loader of pretrained weights permutes rows by it: `embedding = theirs[tokenizer_ids]`, and
        likewise the output projection. The identity where padding is 0 and EOS 1 already.
    """

    def __init__(
        self,
        size: int,
        reserved: Iterable[int],
        unknown: int | None,
        roles: Sequence[int],
        fingerprint: str,
    ):
        """Sets up the ids.

        Args:
          size: number of the tokenizer's ids.
          reserved: the ids that no text may encode to.
          unknown: the id of text that has no other.
          roles: the ids of _ROLES: EOS, padding, the two control tokens.
          fingerprint: the vocabulary's fingerprint.
        """
        eos, pad, candidate, improved = roles
        self.tokenizer_ids = _swapped(size, pad, eos)
        self.tokenizer_ids.setflags(write=False)
        ids = np.argsort(self.tokenizer_ids).astype(np.int32)
        closed = np.array([*reserved, *roles])
        control = ControlTokens(int(ids[candidate]), int(ids[improved]))
        super().__init__(size, ids[closed].tolist(), control, fingerprint)
        self.unk_id = None if unknown is None else int(ids[unknown])
        ids[closed] = -1
        self._ids = ids

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without BOS and EOS; a lone surrogate is read as `?`."""
        return self._encode(text).tolist()

    def encode_tf(self, text):
        """Encodes a scalar string tensor to a 1-D int32 tensor; ill-formed UTF-8 is U+FFFD."""
        import tensorflow as tf

        def encode(text) -> np.ndarray:
            # Bytes in a graph, a 0-d array when run eagerly.
            data = np.asarray(text, object).item()
            return self._encode(data.decode("utf-8", errors="replace"))

        return tf.ensure_shape(tf.numpy_function(encode, [text], tf.int32), [None])

    def _encode(self, text: str) -> np.ndarray:
        text = text.encode("utf-8", errors="replace").decode()
        ids = self._ids[np.asarray(self._pieces(text), np.int64)]
        return ids[ids >= 0]

    def _text(self, ids: list[int]) -> str:
        return self._joined(self.tokenizer_ids[np.asarray(ids, np.int64)].tolist())

    def _pieces(self, text: str) -> Sequence[int]:
        """Returns the tokenizer's own ids of a text."""
        raise NotImplementedError

    def _joined(self, pieces: list[int]) -> str:
        """Returns the text of the tokenizer's own ids."""
        raise NotImplementedError


class SentencePieceVocabulary(SubwordVocabulary):
    """Uses a SentencePiece model (`tokenizer.model`, `spiece.model`) with its normalisation.

    Reserved are its control and unused pieces, and user-defined pieces that look like marks
    (`<extra_id_0>`, `[INST]`) or are named here; other user-defined pieces stay text.
    """

    def __init__(
        self,
        path: str,
        control_tokens: Sequence[str] = (),
        eos_token: str = "",
        pad_token: str = "",
    ):
        """Reads the model.

        Args:
          path: a local file.
          control_tokens: names of the reserved pieces for `<<Candidate>>` and `<<Improved>>`.
          eos_token: name of the EOS piece, by default the model's own.
          pad_token: name of the padding piece, by default the model's own.

        Raises:
          UserError: if the file can't be read, or a name doesn't fit.
        """
        try:
            import sentencepiece
            from sentencepiece import sentencepiece_model_pb2
        except ImportError as error:
            raise _not_installed(path, "sentencepiece protobuf", error) from error

        content = _read(epath.Path(path))
        messages: Any = sentencepiece_model_pb2
        piece_type = messages.ModelProto.SentencePiece
        try:
            model = messages.ModelProto.FromString(content)
            if not model.pieces or any(isinstance(piece.piece, bytes) for piece in model.pieces):
                raise ValueError("it has no pieces, or pieces that aren't UTF-8")
        except Exception as error:
            raise _unreadable(path, "a SentencePiece model", error) from error
        ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
        types = {piece.piece: piece.type for piece in model.pieces}
        control = {name for name, type_ in types.items() if type_ == piece_type.CONTROL}
        closed = control | {name for name, type_ in types.items() if type_ == piece_type.UNUSED}
        defined = {name for name, type_ in types.items() if type_ == piece_type.USER_DEFINED}
        unknown = next((name for name in ids if types[name] == piece_type.UNKNOWN), None)
        own_eos, own_pad = model.trainer_spec.eos_piece, model.trainer_spec.pad_piece
        roles = _roles(
            path,
            ids,
            closed | defined,
            unknown,
            control_tokens,
            eos_token or (own_eos if own_eos in control else ""),
            pad_token or (own_pad if own_pad in control else ""),
            advice="train it with control_symbols or user_defined_symbols, or take its "
            "tokenizer.json and add some with add_special_tokens of the package tokenizers",
        )
        closed |= {name for name in defined if _MARK.fullmatch(name)} | set(roles)
        for piece in model.pieces:
            if piece.piece in closed and piece.type == piece_type.USER_DEFINED:
                piece.type = piece_type.CONTROL
        super().__init__(
            len(model.pieces),
            [ids[name] for name in closed],
            None if unknown is None else ids[unknown],
            [ids[name] for name in roles],
            _fingerprint("sentencepiece", content, roles),
        )
        try:
            self._model = sentencepiece.SentencePieceProcessor(
                model_proto=model.SerializeToString()
            )
        except Exception as error:
            raise _unreadable(path, "a SentencePiece model", error) from error

    def _pieces(self, text: str) -> Sequence[int]:
        return self._model.encode(text)

    def _joined(self, pieces: list[int]) -> str:
        return self._model.decode(pieces)


class TokenizerVocabulary(SubwordVocabulary):
    """Uses a Hugging Face `tokenizer.json` without truncation, padding, dropout, post-processing.

    Reserved are its special tokens, added tokens that look like marks (`<|im_start|>`, `[INST]`)
    or are named here, and placeholders among the pieces (`[unused1]`); other added tokens, such as
    runs of spaces, stay text. EOS and padding are looked up in `tokenizer_config.json` beside it.
    """

    def __init__(
        self,
        path: str,
        control_tokens: Sequence[str] = (),
        eos_token: str = "",
        pad_token: str = "",
    ):
        """Reads the tokenizer.

        Args:
          path: a local file, or a folder with a `tokenizer.json`.
          control_tokens: names of the reserved tokens for `<<Candidate>>` and `<<Improved>>`.
          eos_token: name of the EOS token, by default that of `tokenizer_config.json`.
          pad_token: name of the padding token, by default that of `tokenizer_config.json`, else of
            the `padding` of `tokenizer.json`.

        Raises:
          UserError: if a file can't be read, or a name doesn't fit.
        """
        try:
            import tokenizers
        except ImportError as error:
            raise _not_installed(path, "tokenizers", error) from error

        file = epath.Path(path)
        if file.is_dir():
            file /= "tokenizer.json"
        content = _read(file)
        try:
            tokenizer = tokenizers.Tokenizer.from_str(content.decode())
            spec = json.loads(content)
        except Exception as error:
            raise _unreadable(file, "a tokenizer.json", error) from error
        ids = tokenizer.get_vocab(with_added_tokens=True)
        added = tokenizer.get_added_tokens_decoder().values()
        special = {token.content for token in added if token.special}
        special |= {name for name in ids if _PLACEHOLDER.fullmatch(name)}
        config = _special_names(file.with_name("tokenizer_config.json"))
        eos_token = eos_token or config.get("eos_token", "")
        pad_token = pad_token or config.get("pad_token", "")
        pad_token = pad_token or (tokenizer.padding or {}).get("pad_token", "")
        unknown = _unknown(file, tokenizer, spec["model"], (eos_token, pad_token))
        roles = _roles(
            file,
            ids,
            special | {token.content for token in added},
            unknown,
            control_tokens,
            eos_token,
            pad_token,
            advice="add some with add_special_tokens of the package tokenizers and save it",
        )
        closed = special | {t.content for t in added if _MARK.fullmatch(t.content)} | set(roles)
        size = max(ids.values()) + 1
        reserved = {ids[name] for name in closed - {unknown}} | set(range(size)) - set(ids.values())
        what_encodes = {key: spec[key] for key in sorted(spec) if key not in _NOT_ENCODING}
        super().__init__(
            size,
            reserved,
            None if unknown is None else ids[unknown],
            [ids[name] for name in roles],
            _fingerprint("tokenizer", json.dumps(what_encodes, sort_keys=True).encode(), roles),
        )
        _close(tokenizer, closed | ({unknown} if unknown else set()))
        self._tokenizer = tokenizer

    def _pieces(self, text: str) -> Sequence[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def _joined(self, pieces: list[int]) -> str:
        return self._tokenizer.decode(pieces, skip_special_tokens=False)


def _roles(
    place: str | epath.Path,
    ids: Mapping[str, int],
    reserved: Set[str],
    unknown: str | None,
    control_tokens: Sequence[str],
    eos_token: str,
    pad_token: str,
    advice: str,
) -> list[str]:
    """Chooses the names for _ROLES.

    Args:
      place: what an error is about.
      ids: name -> id of all pieces.
      reserved: the names to choose from; names of white space don't count.
      unknown: the name of the unknown piece, which is taken.
      control_tokens, eos_token, pad_token: the user's choice; empty where there is none.
      advice: how to get more reserved names.

    Raises:
      UserError: if a name doesn't fit.
    """
    names = [eos_token, pad_token, *(control_tokens or ("", ""))]
    if isinstance(control_tokens, str) or len(names) != len(_ROLES):
        raise UserError(f"{place}: control_tokens: got {control_tokens!r}, expected two names")
    reserved = {name for name in reserved if name.strip()}
    taken: dict[str, str] = {unknown: "the unknown token"} if unknown else {}
    for role, name in zip(_ROLES, names):
        if not name:
            problem = "got none"
        elif name not in ids:
            problem = f"got {name!r}, which the tokenizer doesn't have"
        elif name in taken:
            problem = f"got {name!r}, which is {taken[name]} already"
        elif name not in reserved:
            problem = f"got {name!r}, which is a piece of ordinary text"
        else:
            taken[name] = role
            continue
        spare = sorted(reserved - set(taken) - set(names), key=lambda name: ids[name])
        shown = ", ".join(map(repr, spare[:_SHOWN_NAMES])) + (
            ", …" if len(spare) > _SHOWN_NAMES else ""
        )
        expected = f"expected an unused reserved piece; it has {len(spare)}"
        expected += f": {shown}" if spare else ""
        if len(spare) < max(1, names.count("")):
            expected += f"; {advice}, and let the network's vocab_size cover them"
        raise UserError(f"{place}: {role}: {problem}, {expected}")
    return names


def _swapped(size: int, pad: int, eos: int) -> np.ndarray:
    """Returns 0, 1, … size - 1 with `pad` swapped into place 0 and `eos` into place 1."""
    order = np.arange(size, dtype=np.int32)
    for place, piece in ((PAD_ID, pad), (EOS_ID, eos)):
        at = int(np.flatnonzero(order == piece)[0])
        order[[place, at]] = order[[at, place]]
    return order


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
    if type(tokenizer.model).__name__ != "BPE":
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
    if type(tokenizer.model).__name__ == "BPE":
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


def _special_names(path: epath.Path) -> dict[str, str]:
    """Reads `eos_token` and `pad_token` from a `tokenizer_config.json`, if there is any."""
    if not path.exists():
        return {}
    try:
        config = json.loads(_read(path))
        values = {role: config.get(role) for role in ("eos_token", "pad_token")}
    except (ValueError, AttributeError, RecursionError) as error:
        raise _unreadable(path, "a JSON object", error) from error
    names = {role: v.get("content") if isinstance(v, dict) else v for role, v in values.items()}
    return {role: name for role, name in names.items() if isinstance(name, str)}


def _fingerprint(kind: str, content: bytes, roles: Sequence[str]) -> str:
    digest = hashlib.sha256(content)
    for name in roles:
        digest.update(b"\0" + name.encode())
    return f"{kind} {digest.hexdigest()[:16]}"


def _read(path: epath.Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: can't be read ({reason}), expected a tokenizer's file") from error


def _unreadable(path: str | epath.Path, expected: str, error: Exception) -> UserError:
    reason = (str(error).splitlines() or [repr(error)])[0][:200]
    return UserError(f"{path}: expected {expected}, which it isn't: {reason}")


def _not_installed(path: str, packages: str, error: ImportError) -> UserError:
    return UserError(
        f"{path}: needs a package that isn't installed ({error}), expected `pip install {packages}`"
    )
