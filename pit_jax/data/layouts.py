"""Builds the token layouts of Appendix A from pieces, and knows the widths they need.

    policy       Human: {x}Assistant:                                              -> {y} EOS
    PIT          Human: {x}Assistant:<<Candidate>> {y_ref}<<Improved>>             -> {y} EOS
    reward       Human: {x}Assistant: {y} EOS                                      -> score at EOS
    gap reward   Human: {x}Assistant:<<Candidate>> {y_ref}<<Improved>> {y} EOS     -> score at EOS

`<<Candidate>>` and `<<Improved>>` are reserved ids that no text encodes to, so a text that contains
those characters can't forge them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pit_jax.data.vocabularies.base import Vocabulary


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Sets the windows in tokens; an example over any of them is dropped and counted, never cut.

    Attributes:
      prompt: bound on the whole of `Human: {x}Assistant:`.
      reference: bound on y_ref.
      response: bound on y with its EOS (and the reflection, where it is part of the target).
    """

    prompt: int
    reference: int
    response: int

    def __post_init__(self):
        if min(self.prompt, self.reference, self.response) < 1:
            raise ValueError(f"Lengths: expected positive token counts, got {self}")

    @property
    def longest_text(self) -> int:
        """Most tokens of a response without EOS, which must fit as a target and as a reference."""
        return min(self.reference, self.response - 1)


@dataclasses.dataclass(frozen=True)
class Widths:
    """Holds the array widths, in tokens, that every layout needs under some Lengths.

    Attributes:
      policy: width of `Layout.policy_prompt`.
      reward: width of `Layout.reward_prompt`.
      pit: width of `Layout.pit_prompt`.
      gap: width of `Layout.gap_prompt`.
      response: width of `Layout.response`.
      pair_row: width of R_P's training rows: x and both responses.
      gap_row: width of R_PIT's training rows: x, both references and four responses.
    """

    policy: int
    reward: int
    pit: int
    gap: int
    response: int
    pair_row: int
    gap_row: int


def widths(lengths: Lengths, space: int) -> Widths:
    """Returns the array widths of all layouts, if a space between two pieces is `space` tokens."""
    block = lengths.reference + 2 + space
    return Widths(
        policy=lengths.prompt,
        reward=lengths.prompt + space,
        pit=lengths.prompt + block,
        gap=lengths.prompt + block + space,
        response=lengths.response,
        pair_row=lengths.prompt + space + 2 * lengths.response,
        gap_row=lengths.prompt + 2 * (block + space) + 4 * lengths.response,
    )


def join_lists(pieces: Iterable[Sequence[int]]) -> list[int]:
    """Concatenates token sequences into one list of Python integers."""
    return [int(token) for piece in pieces for token in piece]


class Layout:
    """Builds token sequences for one vocabulary.

    A piece (x, y, reference, reflection) is either text, which is encoded, or its token ids without
    EOS. Every method returns ids joined by `join`: a list by default; the seqio preprocessors pass
    a function that concatenates tensors, so that the layouts are written down once.

    Example, with x = "2+2?", y_ref = "5":
      pit_prompt = ids("Human: ") ids("2+2?") ids("Assistant:") CANDIDATE ids(" ") ids("5") IMPROVED
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        join: Callable[[Iterable[Any]], Any] = join_lists,
    ):
        self.vocabulary = vocabulary
        self.control = vocabulary.control_tokens
        self._join = join
        self._human = vocabulary.encode("Human: ")
        self._assistant = vocabulary.encode("Assistant:")
        self._space = vocabulary.encode(" ")

    def policy_prompt(self, x):
        """Builds `Human: {x}Assistant:`, the input of M_P."""
        return self._join([self._human, self._ids(x), self._assistant])

    def pit_prompt(self, x, reference):
        """Builds `Human: {x}Assistant:<<Candidate>> {y_ref}<<Improved>>`, the input of M_PIT."""
        return self._join(
            [
                self.policy_prompt(x),
                [self.control.candidate],
                self._space,
                self._ids(reference),
                [self.control.improved],
            ]
        )

    def reward_prompt(self, x):
        """Builds `Human: {x}Assistant: `, which precedes y in the input of R_P."""
        return self._join([self.policy_prompt(x), self._space])

    def gap_prompt(self, x, reference):
        """Builds `Human: {x}Assistant:<<Candidate>> {y_ref}<<Improved>> `, before y in R_PIT."""
        return self._join([self.pit_prompt(x, reference), self._space])

    def gap_reference(self, reference):
        """Builds `<<Candidate>> {y_ref}<<Improved>> `, the end of `gap_prompt` after x's part."""
        return self._join(
            [
                [self.control.candidate],
                self._space,
                self._ids(reference),
                [self.control.improved],
                self._space,
            ]
        )

    def response(self, y):
        """Builds `{y}` EOS."""
        return self._join([self._ids(y), [self.vocabulary.eos_id]])

    def reflected_response(self, reflection, y):
        """Builds `{c}<<Improved>>{y}` EOS, PIT's target with chain of thought (Appendix K).

        The paper doesn't say how c and y are told apart; no text looks like a control token.
        """
        return self._join([self._ids(reflection), [self.control.improved], self.response(y)])

    def final_response(self, tokens: Sequence[int]) -> list[int]:
        """Returns what follows the last `<<Improved>>` of sampled ids: a reflected response's y."""
        tokens = [int(token) for token in tokens]
        if self.control.improved not in tokens:
            return tokens
        return tokens[len(tokens) - tokens[::-1].index(self.control.improved) :]

    def widths(self, lengths: Lengths) -> Widths:
        """Returns the array widths that every layout needs under `lengths`."""
        return widths(lengths, len(self._space))

    def fits(self, lengths: Lengths, x, chosen, rejected) -> bool:
        """Whether an example is within `lengths`."""
        return len(self.policy_prompt(x)) <= lengths.prompt and all(
            len(self._ids(y)) <= lengths.longest_text for y in (chosen, rejected)
        )

    def _ids(self, piece):
        return self.vocabulary.encode(piece) if isinstance(piece, str) else piece
