"""Says what every vocabulary offers, whatever its ids; it works without TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

# The same in every vocabulary; seqio pads with 0 and knows no other padding.
PAD_ID = 0
EOS_ID = 1
# What stands around x in every layout (Appendix A); a vocabulary of words has to hold both.
HUMAN, ASSISTANT = "Human: ", "Assistant:"


@dataclasses.dataclass(frozen=True)
class ControlTokens:
    """Holds the ids of `<<Candidate>>` and `<<Improved>>`."""

    candidate: int
    improved: int


class Vocabulary:
    """Turns text into token ids and back, with 0 for padding and 1 for EOS.

    The class has the methods of `seqio.Vocabulary` (and is registered as such by tasks.py), so that
    seqio's features and preprocessors take it. Equal vocabularies have equal fingerprints.

    Attributes:
      vocab_size: number of ids, reserved ones included.
      control_tokens: the reserved ids of `<<Candidate>>` and `<<Improved>>`.
      fingerprint: the kind and a hash of all that gives the ids their meaning; the same on every
        machine, wherever the files are.
      unk_id: the id of text that has no other, None if there is none.
      extra_ids: number of reserved ids at the end of the id range.
    """

    pad_id = PAD_ID
    eos_id = EOS_ID
    unk_id: int | None = None
    bos_id = None
    extra_ids = 0

    def __init__(
        self,
        vocab_size: int,
        reserved: Iterable[int],
        control_tokens: ControlTokens,
        fingerprint: str,
    ):
        self.vocab_size = vocab_size
        self.control_tokens = control_tokens
        self.fingerprint = fingerprint
        self._reserved = frozenset((PAD_ID, EOS_ID, *reserved))

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without EOS; they are never reserved."""
        raise NotImplementedError

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text up to the first EOS; padding and all reserved ids are left out."""
        return self._text(self.text_ids(ids))

    def text_ids(self, ids: Iterable[int]) -> list[int]:
        """Returns the ids up to the first EOS that stand for text (the unknown id among them)."""
        kept = []
        for token in map(int, ids):
            if token == EOS_ID:
                break
            if 0 <= token < self.vocab_size and token not in self._reserved:
                kept.append(token)
        return kept

    def sampled_ids(self, size: int) -> np.ndarray:
        """Which of the ids a model may sample: those of text, and EOS; bool [size].

        Args:
          size: rows of the model's embedding, which may be more than the vocabulary has ids.
        """
        allowed = np.arange(size) < self.vocab_size
        allowed[[i for i in self._reserved if i < size]] = False
        allowed[EOS_ID] = True
        return allowed

    def encode_tf(self, text):
        """Encodes a scalar string tensor to a 1-D int32 tensor."""
        raise NotImplementedError

    def decode_tf(self, ids):
        """Decodes a tensor of ids: 1-D to a scalar, 2-D to 1-D."""
        import tensorflow as tf

        def decode(rows: np.ndarray) -> np.ndarray:
            if rows.ndim == 1:
                return np.array(self.decode(rows).encode(), object)
            return np.array([self.decode(row).encode() for row in rows], object)

        return tf.ensure_shape(tf.numpy_function(decode, [ids], tf.string), ids.shape[:-1])

    def _text(self, ids: list[int]) -> str:
        raise NotImplementedError

    def __eq__(self, other) -> bool:
        return isinstance(other, Vocabulary) and other.fingerprint == self.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)
