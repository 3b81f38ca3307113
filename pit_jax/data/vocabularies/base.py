"""Says what every vocabulary offers, whatever its ids; it works without TensorFlow."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from pit_jax.data.ragged import Ragged

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
      bos_id: the id that every prompt begins with, None if prompts begin with text.
      ends: the ids that end a response, EOS first; the others are a model's own further ends of
        text, which may be sampled and which no response is trained to end with.
      prefixes_space: whether `encode` puts a space before a text, and `decode` takes it away.
      has_template: whether a chat template makes prompts, all that stands around x included.
      protocol: what prompts and responses have beyond the layouts' own, such as BOS or a chat
        template; empty where it is nothing. Equal ids may be used by several protocols.
      names: id -> how people call it, of the ids that stand for no text.
      extra_ids: number of reserved ids at the end of the id range.
    """

    pad_id = PAD_ID
    eos_id = EOS_ID
    unk_id: int | None = None
    bos_id: int | None = None
    ends: tuple[int, ...] = (EOS_ID,)
    prefixes_space = False
    has_template = False
    protocol = ""
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
        self.names = {
            EOS_ID: "<EOS>",
            control_tokens.candidate: "<<Candidate>>",
            control_tokens.improved: "<<Improved>>",
        }

    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without EOS; they are never reserved."""
        raise NotImplementedError

    def encode_joined(self, text: str) -> list[int]:
        """Returns the ids of a text that goes on where another ends, with no space put between."""
        return self.encode(text)

    def encode_prompt(self, x: str) -> list[int]:
        """Returns the ids of x for a layout: of its text, or of all that a chat template makes.

        Raises:
          ValueError: if the chat template refuses the turns of x.
        """
        return self.encode(x)

    def encode_batch(self, texts: Sequence[str]) -> Ragged:
        """Returns what `encode` does of many texts, sooner, as rows of int32."""
        return Ragged.of_rows([self.encode(text) for text in texts])

    def encode_prompts(self, texts: Sequence[str], turns: Sequence[str]) -> Ragged:
        """Returns what `encode_prompt` does of many prompts, as rows of int32.

        Args:
          texts: each x as text.
          turns: the turns of each as `examples.turns_json` writes them.
        """
        del turns
        return self.encode_batch(texts)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text up to the first end; padding and all reserved ids are left out."""
        return self._text(self.text_ids(ids))

    def text_ids(self, ids: Iterable[int]) -> list[int]:
        """Returns the ids up to the first end that stand for text (the unknown id among them)."""
        before = itertools.takewhile(lambda token: token not in self.ends, map(int, ids))
        return [token for token in before if self._is_text(token)]

    def readable(self, ids: Iterable[int]) -> str:
        """Returns the text of a prompt or a response: of all its ids that stand for text."""
        return self._text([token for token in map(int, ids) if self._is_text(token)])

    def sampled_ids(self, size: int) -> np.ndarray:
        """Which of the ids a model may sample: those of text, and `ends`; bool [size].

        Args:
          size: rows of the model's embedding, which may be more than the vocabulary has ids.
        """
        allowed = np.arange(size) < self.vocab_size
        allowed[[i for i in self._reserved if i < size]] = False
        allowed[[*self.ends]] = True
        return allowed

    def encode_tf(self, text):
        """Encodes a scalar string tensor to a 1-D int32 tensor."""
        raise NotImplementedError

    def encode_prompt_tf(self, text, turns):
        """Encodes x as `encode_prompt` does, to a 1-D int32 tensor.

        Args:
          text: x, a scalar string tensor.
          turns: its turns as `examples.turns_json` writes them, a scalar string tensor.
        """
        del turns
        return self.encode_tf(text)

    def decode_tf(self, ids):
        """Decodes a tensor of ids: 1-D to a scalar, 2-D to 1-D."""
        import tensorflow as tf

        def decode(rows: np.ndarray) -> np.ndarray:
            if rows.ndim == 1:
                return np.array(self.decode(rows).encode(), object)
            return np.array([self.decode(row).encode() for row in rows], object)

        return tf.ensure_shape(tf.numpy_function(decode, [ids], tf.string), ids.shape[:-1])

    def _is_text(self, token: int) -> bool:
        return 0 <= token < self.vocab_size and token not in self._reserved

    def _text(self, ids: list[int]) -> str:
        raise NotImplementedError

    def __eq__(self, other) -> bool:
        return isinstance(other, Vocabulary) and other._key == self._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> tuple[str, str]:
        return self.fingerprint, self.protocol
