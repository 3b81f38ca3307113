"""Vocabularies of bytes and of whole words.

Their ids: 0 padding, 1 EOS, 2 unknown, then the text's own ids, then the reserved ones, of which
the last two are the control tokens. `encode` never returns a reserved id.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from pit_jax.data.vocabularies.base import ControlTokens, Vocabulary

UNK_ID = 2
_FIRST_ID = 3
_UNKNOWN_WORD = "<unk>"


class ByteVocabulary(Vocabulary):
    """UTF-8 bytes at ids 3 to 258, as in `seqio.ByteVocabulary`; ill-formed ones are dropped."""

    unk_id = UNK_ID

    def __init__(self, extra_ids: int = 2):
        extra = _extra_ids(256, extra_ids)
        super().__init__(extra.stop, extra, ControlTokens(*extra[-2:]), f"bytes {extra_ids}")
        self.extra_ids = extra_ids

    def encode(self, text: str) -> list[int]:
        """One id a byte of the text's UTF-8 encoding; a lone surrogate becomes `?`."""
        return [byte + _FIRST_ID for byte in text.encode("utf-8", errors="replace")]

    def encode_tf(self, text):
        """`encode` of a scalar string tensor, as a 1-D int32 tensor."""
        import tensorflow as tf

        return tf.cast(tf.io.decode_raw(text, tf.uint8), tf.int32) + _FIRST_ID

    def _text(self, ids: list[int]) -> str:
        return bytes(i - _FIRST_ID for i in ids if i != UNK_ID).decode("utf-8", errors="ignore")


class WordVocabulary(Vocabulary):
    """Whole words: `encode` splits at ASCII white space, `decode` joins with single spaces.

    A word outside the list becomes the unknown id, which decodes to `<unk>`.
    """

    unk_id = UNK_ID

    def __init__(self, words: Sequence[str], extra_ids: int = 2):
        self.words = tuple(dict.fromkeys(words))
        for word in self.words:
            if _split(word) != [word] or word == _UNKNOWN_WORD:
                raise ValueError(
                    f"words: got {word!r}, expected no white space and not {_UNKNOWN_WORD!r}"
                )
        self._id_of = {word: _FIRST_ID + i for i, word in enumerate(self.words)}
        self._table: Any = None
        extra = _extra_ids(len(self.words), extra_ids)
        content = " ".join(self.words).encode("utf-8", errors="surrogatepass")
        fingerprint = f"words {extra_ids} {hashlib.sha256(content).hexdigest()[:16]}"
        super().__init__(extra.stop, extra, ControlTokens(*extra[-2:]), fingerprint)
        self.extra_ids = extra_ids

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


def _extra_ids(text_ids: int, extra_ids: int) -> range:
    """The reserved ids after those of the text."""
    if extra_ids < 2:
        raise ValueError(f"extra_ids: got {extra_ids}, expected 2 or more for control tokens")
    return range(_FIRST_ID + text_ids, _FIRST_ID + text_ids + extra_ids)


def _split(text: str) -> list[str]:
    """Splits at ASCII white space only, as tf.strings.split does."""
    return [word for word in re.split(r"[ \t\n\r\f\v]+", text) if word]
