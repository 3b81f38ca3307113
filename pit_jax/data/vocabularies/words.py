"""Has the vocabularies of bytes and of whole words.

Their ids are 0 for padding, 1 for EOS, 2 for the unknown, then the text's own ids, then reserved
ids, of which the last two are the control tokens. `encode` never returns a reserved id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from pit_jax.data.ragged import Ragged
from pit_jax.data.vocabularies.base import ControlTokens, Vocabulary

UNK_ID = 2
_FIRST_ID = 3
_UNKNOWN_WORD = "<unk>"


class ByteVocabulary(Vocabulary):
    """Has UTF-8 bytes at ids 3 to 258, as `seqio.ByteVocabulary`; drops ill-formed bytes."""

    unk_id = UNK_ID

    def __init__(self, extra_ids: int = 2):
        extra = _extra_ids(256, extra_ids)
        super().__init__(extra.stop, extra, ControlTokens(*extra[-2:]), f"bytes {extra_ids}")
        self.extra_ids = extra_ids

    def encode(self, text: str) -> list[int]:
        """Returns an id for each byte of the text in UTF-8; a lone surrogate is read as `?`."""
        return [byte + _FIRST_ID for byte in text.encode("utf-8", errors="replace")]

    def encode_batch(self, texts: Sequence[str]) -> Ragged:
        """Returns what `encode` does of many texts, as rows of int32."""
        encoded = [text.encode("utf-8", errors="replace") for text in texts]
        values = np.frombuffer(b"".join(encoded), np.uint8).astype(np.int32) + _FIRST_ID
        return Ragged.of(values, np.fromiter(map(len, encoded), np.int64, len(encoded)))

    def encode_tf(self, text):
        """Encodes a scalar string tensor to a 1-D int32 tensor."""
        import tensorflow as tf

        return tf.cast(tf.io.decode_raw(text, tf.uint8), tf.int32) + _FIRST_ID

    def _text(self, ids: list[int]) -> str:
        return bytes(i - _FIRST_ID for i in ids if i != UNK_ID).decode("utf-8", errors="ignore")


class WordVocabulary(Vocabulary):
    """Has whole words: `encode` splits at ASCII white space, `decode` joins with single spaces.

    A word outside the list becomes the unknown id, which decodes to `<unk>`.
    """

    unk_id = UNK_ID

    def __init__(self, words: Sequence[str], extra_ids: int = 2):
        self.words = tuple(dict.fromkeys(words))
        for word in self.words:
            if _bytes(word).split() != [_bytes(word)] or word == _UNKNOWN_WORD:
                raise ValueError(
                    f"words: got {word!r}, expected no white space and not {_UNKNOWN_WORD!r}"
                )
        self._id_of = {_bytes(word): _FIRST_ID + i for i, word in enumerate(self.words)}
        self._table: Any = None
        extra = _extra_ids(len(self.words), extra_ids)
        content = _bytes(" ".join(self.words))
        fingerprint = f"words {extra_ids} {hashlib.sha256(content).hexdigest()[:16]}"
        super().__init__(extra.stop, extra, ControlTokens(*extra[-2:]), fingerprint)
        self.extra_ids = extra_ids

    def encode(self, text: str) -> list[int]:
        """Returns an id for each word; white space alone encodes to nothing."""
        # Bytes are split at ASCII white space only, as tf.strings.split does it.
        return [self._id_of.get(word, UNK_ID) for word in _bytes(text).split()]

    def encode_tf(self, text):
        """Encodes a scalar string tensor to a 1-D int32 tensor."""
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
    """Returns the reserved ids, which follow those of the text."""
    if extra_ids < 2:
        raise ValueError(f"extra_ids: got {extra_ids}, expected 2 or more for control tokens")
    return range(_FIRST_ID + text_ids, _FIRST_ID + text_ids + extra_ids)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", errors="surrogatepass")
