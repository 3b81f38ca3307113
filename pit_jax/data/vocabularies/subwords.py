"""Makes vocabularies of users' own tokenizers: SentencePiece and Hugging Face `tokenizer.json`.

Padding becomes id 0 and EOS id 1, as everywhere in the package, by two swaps of ids at most. A
tokenizer's reserved pieces (control and special pieces, and placeholders such as `<unused0>`) are
no part of any text: a text with their names in it encodes to plain text. Two of them, chosen by
name, are the control tokens. Where none are chosen, or there is no piece for padding alone, ids are
appended after the tokenizer's own.

This works without TensorFlow; the tokenizers' libraries are imported when a vocabulary is made.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
from etils import epath

from pit_jax.data.examples import turns_of, with_turns
from pit_jax.data.ragged import Ragged
from pit_jax.data.vocabularies.base import EOS_ID, PAD_ID, ControlTokens, Vocabulary
from pit_jax.data.vocabularies.chat_templates import ChatTemplate
from pit_jax.errors import UserError

_SHOWN_NAMES = 6
_ROLES = ("eos_token", "pad_token", "control_tokens", "control_tokens")

# Pieces that a tokenizer declares as text although they may be meant as marks: <start_of_turn>,
# <|im_end|>, [INST]. HTML tags and runs of white space, which some have, are text.
_TAGS = "a|b|blockquote|br|caption|code|div|em|h[1-6]|hr|i|li|ol|p|pre|s|span|strong|sub|sup|table"
_TAGS += "|tbody|td|tfoot|th|thead|tr|u|ul"
MARK = re.compile(rf"<(?!/?({_TAGS})>)\S+>|\[\S+\]")


class SubwordVocabulary(Vocabulary):
    """Puts a tokenizer behind a permutation of its ids; subclasses call the tokenizer.

    Attributes:
      num_pieces: number of the tokenizer's own ids.
      tokenizer_ids: [vocab_size] int32, for every id here the tokenizer's own id of that piece,
        or `num_pieces` and above for ids that the tokenizer doesn't have: padding, `<<Candidate>>`
        and `<<Improved>>`, as far as they are appended. A loader of pretrained weights permutes
        rows by it, `embedding = theirs[tokenizer_ids]`, and likewise the output projection. Rows
        of `num_pieces` and above have learned nothing, also where a model has some: the loader
        makes each of them the mean of the others. The identity where padding is 0 and EOS 1
        already and nothing is appended.
    """

    def __init__(
        self,
        pieces: Mapping[str, int],
        reserved: Iterable[int],
        unknown: int | None,
        roles: Sequence[str],
        fingerprint: str,
        bos: int | None = None,
        ends: Sequence[int] = (),
        template: ChatTemplate | None = None,
    ):
        """Sets up the ids.

        Args:
          pieces: the tokenizer's ids by the names of their pieces.
          reserved: the ids that no text may encode to.
          unknown: the id of text that has no other.
          roles: the names of _ROLES: EOS, padding, the two control tokens; empty ones are appended.
          fingerprint: the vocabulary's fingerprint.
          bos: the id that every prompt begins with.
          ends: ids that end a text, beside EOS.
          template: what makes prompts.
        """
        self.num_pieces = size = max(pieces.values()) + 1
        numbers = []
        for name in roles:
            numbers.append(pieces[name] if name else size)
            size += not name
        eos, pad, candidate, improved = numbers
        self.tokenizer_ids = _swapped(size, pad, eos)
        self.tokenizer_ids.setflags(write=False)
        own = np.argsort(self.tokenizer_ids).astype(np.int32)
        closed = np.array([*reserved, *numbers])
        control = ControlTokens(int(own[candidate]), int(own[improved]))
        super().__init__(size, own[closed].tolist(), control, fingerprint)
        self.unk_id = None if unknown is None else int(own[unknown])
        self.bos_id = None if bos is None else int(own[bos])
        self.ends = (EOS_ID, *sorted({int(own[end]) for end in ends} - {EOS_ID, PAD_ID}))
        special = set(closed.tolist())
        self._special = {name: int(own[i]) for name, i in pieces.items() if i in special}
        roles_shown = {i: name for i, name in self.names.items() if i != EOS_ID}
        self.names = {i: name for name, i in self._special.items()} | roles_shown
        own[closed] = -1
        self._ids = own
        self._template = template
        self.has_template = template is not None

    def _settle(self) -> None:
        """Finds out how the tokenizer begins a text, once it can be asked."""
        self._prefixes = self._shown(self._pieces("a  a ")) == "▁a▁▁a▁"
        # Answers go on where a template's prompt ends, unless it puts a space between.
        goes_on = self._template is not None and not self._template.lead.endswith(" ")
        self.prefixes_space = self._prefixes and not goes_on
        said = {
            "bos": self.bos_id,
            "ends": " ".join(map(str, self.ends[1:])),
            "spaces": "joined" if self._prefixes else "",
            "template": self._template.digest if self._template else "",
        }
        self.protocol = ", ".join(
            f"{what} {value}" for what, value in said.items() if value not in ("", None)
        )

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without BOS and EOS; a lone surrogate is read as `?`."""
        return self._encode(text).tolist()

    def encode_joined(self, text: str) -> list[int]:
        """Returns the ids of a text that goes on where another ends, with no space put between."""
        return self._encode(text, joined=True).tolist()

    def encode_prompt(self, x: str) -> list[int]:
        """Returns the ids of x for a layout: of its text, or of all that a chat template makes.

        The ids of a template's prompt begin with BOS if prompts do, once.

        Raises:
          ValueError: if the chat template refuses the turns of x.
        """
        if self._template is None:
            return self.encode(x)
        ids: list[int] = []
        for part, is_special in self._template.split(turns_of(x)):
            if is_special:
                ids.append(self._special[part])
            else:
                pieces = self._pieces_within(_well_formed(part), first=not ids)
                ids += self._of_pieces(pieces).tolist()
        if self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def encode_batch(self, texts: Sequence[str]) -> Ragged:
        """Returns what `encode` does of many texts, as rows of int32."""
        joined = self._prefixes and not self.prefixes_space
        pieces = Ragged.of_rows(self._pieces_of([*map(_well_formed, texts)], joined))
        ids = Ragged(self._ids[pieces.values], pieces.offsets)
        return ids.only(ids.values >= 0)

    def encode_prompts(self, texts: Sequence[str], turns: Sequence[str]) -> Ragged:
        """Returns what `encode_prompt` does of many prompts, as rows of int32."""
        if self._template is None:
            return self.encode_batch(texts)
        prompts = map(with_turns, texts, turns)
        return Ragged.of_rows([self.encode_prompt(x) for x in prompts])

    def encode_tf(self, text):
        """Encodes a scalar string tensor to a 1-D int32 tensor; ill-formed UTF-8 is U+FFFD."""
        return _in_graph(lambda text: self._encode(text), text)

    def encode_prompt_tf(self, text, turns):
        """Encodes x as `encode_prompt` does, from the tensors of its text and its turns."""
        if self._template is None:
            return self.encode_tf(text)

        def encode(text: str, turns: str) -> np.ndarray:
            return np.array(self.encode_prompt(with_turns(text, turns)), np.int32)

        return _in_graph(encode, text, turns)

    def _encode(self, text: str, joined: bool = False) -> np.ndarray:
        joined = self._prefixes and (joined or not self.prefixes_space)
        return self._of_pieces(self._pieces(_well_formed(text), joined))

    def _of_pieces(self, pieces: Sequence[int]) -> np.ndarray:
        ids = self._ids[np.asarray(pieces, np.int64)]
        return ids[ids >= 0]

    def _text(self, ids: list[int]) -> str:
        return self._joined(self.tokenizer_ids[np.asarray(ids, np.int64)].tolist())

    def _pieces(self, text: str, joined: bool = False) -> Sequence[int]:
        """Returns the tokenizer's own ids of a text; if `joined`, no space is put before it."""
        raise NotImplementedError

    def _pieces_of(self, texts: list[str], joined: bool) -> Sequence[Sequence[int]]:
        """Returns what `_pieces` does of many texts."""
        raise NotImplementedError

    def _pieces_within(self, text: str, first: bool) -> Sequence[int]:
        """Returns the tokenizer's own ids of a text between special tokens, or before the first."""
        raise NotImplementedError

    def _joined(self, pieces: list[int]) -> str:
        """Returns the text of the tokenizer's own ids."""
        raise NotImplementedError

    def _shown(self, pieces: Sequence[int]) -> str:
        """Returns the names of the tokenizer's own ids, one after the other."""
        raise NotImplementedError


def _well_formed(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode()


def _in_graph(encode: Any, *texts: Any) -> Any:
    """Applies a function of strings to scalar string tensors; returns a 1-D int32 tensor."""
    import tensorflow as tf

    def run(*texts) -> np.ndarray:
        # Bytes in a graph, 0-d arrays when run eagerly.
        data = [np.asarray(text, object).item() for text in texts]
        return encode(*(text.decode("utf-8", errors="replace") for text in data))

    return tf.ensure_shape(tf.numpy_function(run, list(texts), tf.int32), [None])


def choose_roles(
    place: str | epath.Path,
    ids: Mapping[str, int],
    reserved: Set[str],
    unknown: str | None,
    control_tokens: Sequence[str],
    eos_token: str,
    pad_token: str,
    advice: str,
) -> list[str]:
    """Returns the names for _ROLES; they are empty where ids are to be appended, never for EOS.

    Args:
      place: what an error is about.
      ids: name -> id of all pieces.
      reserved: the names to choose from; names of white space don't count.
      unknown: the name of the unknown piece, which is taken.
      control_tokens, eos_token, pad_token: what is chosen; empty where there is none.
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
        if not name and role != "eos_token":
            continue
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
        if not spare:
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


def fingerprint(kind: str, content: bytes, roles: Sequence[str]) -> str:
    """Returns a vocabulary's fingerprint: the kind, and a hash of what encodes and of the roles."""
    digest = hashlib.sha256(content)
    for name in roles:
        digest.update(b"\0" + name.encode())
    return f"{kind} {digest.hexdigest()[:16]}"
