"""Text <-> token ids: bytes, or the words of a synthetic family. Works without TensorFlow.

Ids of every vocabulary: 0 padding, 1 EOS, 2 unknown, then the text's own ids, then the reserved
ones. The last two reserved ids are the control tokens; `encode` never returns a reserved id.
The classes have the methods of `seqio.Vocabulary` (and are registered as such by tasks.py), so that
seqio's features and preprocessors take them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from pit_jax.data.formats import ControlTokens
from pit_jax.errors import UserError

PAD_ID = 0
EOS_ID = 1
UNK_ID = 2
_FIRST_ID = 3
_UNKNOWN_WORD = "<unk>"


class Vocabulary:
    """What byte and word vocabularies share; subclasses fill in the text's own ids.

    Attributes:
      extra_ids: number of reserved ids at the end of the id range.
      vocab_size: number of ids, reserved ones included.
    """

    pad_id = PAD_ID
    eos_id = EOS_ID
    unk_id = UNK_ID
    bos_id = None

    def __init__(self, text_ids: int, extra_ids: int):
        if extra_ids < 2:
            raise ValueError(f"extra_ids: got {extra_ids}, expected 2 or more for control tokens")
        self.extra_ids = extra_ids
        self._text_end = _FIRST_ID + text_ids
        self.vocab_size = self._text_end + extra_ids

    @property
    def control_tokens(self) -> ControlTokens:
        """The last two ids: `<<Candidate>>`, `<<Improved>>`."""
        return ControlTokens(self.vocab_size - 2, self.vocab_size - 1)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without EOS."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """The text up to the first EOS; padding, control and other reserved ids are left out."""
        return self._text(self.text_ids(ids))

    def text_ids(self, ids: Iterable[int]) -> list[int]:
        """The ids up to the first EOS that stand for text (the unknown id among them)."""
        kept = []
        for token in map(int, ids):
            if token == EOS_ID:
                break
            if token == UNK_ID or _FIRST_ID <= token < self._text_end:
                kept.append(token)
        return kept

    def encode_tf(self, text):
        """`encode` of a scalar string tensor, as a 1-D int32 tensor."""
        raise NotImplementedError

    def decode_tf(self, ids):
        """`decode` of a 1-D (to a scalar) or 2-D (to 1-D) tensor of ids; eager tensors only."""
        import tensorflow as tf

        if ids.shape.rank == 1:
            return tf.constant(self.decode(ids.numpy()))
        return tf.constant([self.decode(row) for row in ids.numpy()])

    def _text(self, ids: list[int]) -> str:
        raise NotImplementedError


class ByteVocabulary(Vocabulary):
    """UTF-8 bytes at ids 3 to 258, as in `seqio.ByteVocabulary`; ill-formed ones are dropped."""

    def __init__(self, extra_ids: int = 2):
        super().__init__(256, extra_ids)

    def encode(self, text: str) -> list[int]:
        """One id a byte of the text's UTF-8 encoding; a lone surrogate becomes `?`."""
        return [byte + _FIRST_ID for byte in text.encode("utf-8", errors="replace")]

    def encode_tf(self, text):
        """`encode` of a scalar string tensor, as a 1-D int32 tensor."""
        import tensorflow as tf

        return tf.cast(tf.io.decode_raw(text, tf.uint8), tf.int32) + _FIRST_ID

    def _text(self, ids: list[int]) -> str:
        return bytes(i - _FIRST_ID for i in ids if i != UNK_ID).decode("utf-8", errors="ignore")

    def __eq__(self, other) -> bool:
        return isinstance(other, ByteVocabulary) and other.extra_ids == self.extra_ids

    def __hash__(self) -> int:
        return hash(("bytes", self.extra_ids))


class WordVocabulary(Vocabulary):
    """Whole words: `encode` splits at ASCII white space, `decode` joins with single spaces.

    A word outside the list becomes the unknown id, which decodes to `<unk>`.
    """

    def __init__(self, words: Sequence[str], extra_ids: int = 2):
        self.words = tuple(dict.fromkeys(words))
        for word in self.words:
            if _split(word) != [word] or word == _UNKNOWN_WORD:
                raise ValueError(
                    f"words: got {word!r}, expected no white space and not {_UNKNOWN_WORD!r}"
                )
        self._id_of = {word: _FIRST_ID + i for i, word in enumerate(self.words)}
        self._table: Any = None
        super().__init__(len(self.words), extra_ids)

    def encode(self, text: str) -> list[int]:
        """One id a word; white space alone encodes to nothing."""
        return [self._id_of.get(word, UNK_ID) for word in _split(text)]

    def encode_tf(self, text):
        """`encode` of a scalar string tensor, as a 1-D int32 tensor."""
        import tensorflow as tf

        if self._table is None:
            # Built outside of any traced function, or the table would die with that graph.
            with tf.init_scope():
                entries = tf.lookup.KeyValueTensorInitializer(
                    tf.constant(self.words), tf.constant(list(self._id_of.values()), tf.int32)
                )
                self._table = tf.lookup.StaticHashTable(entries, UNK_ID)
        return self._table.lookup(tf.strings.split(text))

    def _text(self, ids: list[int]) -> str:
        return " ".join(_UNKNOWN_WORD if i == UNK_ID else self.words[i - _FIRST_ID] for i in ids)

    def __eq__(self, other) -> bool:
        return isinstance(other, WordVocabulary) and (other.words, other.extra_ids) == (
            self.words,
            self.extra_ids,
        )

    def __hash__(self) -> int:
        return hash((self.words, self.extra_ids))


def load(spec: str, extra_words: Sequence[str] = ()) -> Vocabulary:
    """The vocabulary that `spec` names.

    Args:
      spec: `bytes`, or `words:FAMILY` for the words of a synthetic family.
      extra_words: further words of a word vocabulary, such as those of a Self-Refine prompt.

    Raises:
      UserError: if `spec` names nothing known.
    """
    from pit_jax.data.instructions import FAMILIES

    choices = ", ".join(["bytes", *(f"words:{family}" for family in FAMILIES)])
    if spec == "bytes":
        return ByteVocabulary()
    kind, _, family = spec.partition(":")
    if kind == "words" and family in FAMILIES:
        return WordVocabulary(("Human:", "Assistant:", *FAMILIES[family].WORDS, *extra_words))
    raise UserError(f"vocabulary: got {spec!r}, expected one of {choices}")


def control_tokens(vocabulary: Vocabulary) -> ControlTokens:
    """The reserved ids of `<<Candidate>>` and `<<Improved>>`."""
    return vocabulary.control_tokens


def _split(text: str) -> list[str]:
    """Splits at ASCII white space only, as tf.strings.split does."""
    return [word for word in re.split(r"[ \t\n\r\f\v]+", text) if word]
