"""Builds the token layouts of Appendix A from pieces, and knows the widths they need.

    policy       Human: {x}Assistant:                                              -> {y} EOS
    PIT          Human: {x}Assistant:<<Candidate>> {y_ref}<<Improved>>             -> {y} EOS
    reward       Human: {x}Assistant: {y} EOS                                      -> score at EOS
    gap reward   Human: {x}Assistant:<<Candidate>> {y_ref}<<Improved>> {y} EOS     -> score at EOS

`<<Candidate>>` and `<<Improved>>` are reserved ids that no text encodes to, so a text that contains
those characters can't forge them. Where a model was trained with BOS, all sequences begin with it.

A vocabulary may have the model's chat template, which then makes all of policy's prompt. The other
layouts build on that prompt as they do here, without spaces between their pieces:

    policy       what the template makes of x, up to an assistant's answer         -> {y} EOS
    PIT          …<<Candidate>>{y_ref}<<Improved>>                                 -> {y} EOS
    reward       …{y} EOS                                                          -> score at EOS
    gap reward   …<<Candidate>>{y_ref}<<Improved>>{y} EOS                          -> score at EOS
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pit_jax.checked import at_least, checked
from pit_jax.data.vocabularies.base import ASSISTANT, HUMAN, Vocabulary


@dataclasses.dataclass(frozen=True)
@checked
class Lengths:
    """Sets the windows in tokens; an example over any of them is dropped and counted, never cut.

    Attributes:
      prompt: bound on the whole of `Human: {x}Assistant:`.
      reference: bound on y_ref.
      response: bound on y with its EOS.
      reflection: bound on `{c}<<Improved>>`, which comes before y in `sft_pit_reflection`
        (Appendix K). Of that task alone an example with a longer one is left out; other tasks
        don't look at it. 0 where no stage learns reflections.

    The first three are 0 where the data is to give them; see data/windows.py.
    """

    prompt: int
    reference: int
    response: int
    reflection: int = dataclasses.field(default=0, metadata={"variation": True})

    def __post_init__(self):
        at_least(self, 0, "reflection")
        if not self.from_data and min(self.prompt, self.reference, self.response) < 1:
            raise ValueError(
                "Lengths: expected positive token counts, or 0 for prompt, reference and "
                f"response, got {self}"
            )

    def of_task(self, task: str) -> Lengths:
        """Returns the windows that count for a task's rows."""
        reflects = task == "sft_pit_reflection"
        return self if reflects else dataclasses.replace(self, reflection=0)

    @property
    def from_data(self) -> bool:
        """Whether the data gives the windows."""
        return not (self.prompt or self.reference or self.response)

    @property
    def longest_text(self) -> int:
        """Most tokens of a response without EOS, which must fit as a target and as a reference."""
        return min(self.reference, self.response - 1)

    @property
    def windows(self) -> dict[str, int]:
        """Most tokens of each field of `Layout.sizes`; of several too long, the first counts."""
        return {
            "prompt": self.prompt,
            "chosen": self.longest_text,
            "rejected": self.longest_text,
            "reflection": self.reflection,
            "reference": self.reference,
        }

    def too_long(self, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """Returns whether each field of an example is over its window.

        Args:
          sizes: tokens of each field, as `Layout.sizes` counts them.
        """
        windows = self.windows
        return {field: size > windows[field] for field, size in sizes.items()}

    def left_out(self, sizes: Mapping[str, Any], identical: Any) -> np.ndarray:
        """Returns why examples aren't learned from: numbers of LEFT_OUT from 1, or 0 if they are.

        Args:
          sizes: tokens of each field; a number, or an integer array [n].
          identical: whether an example's responses have the same tokens; as many.

        Returns:
          the first reason of each, int8 [n] or without dimensions.
        """
        marks = np.where(identical, LEFT_OUT.index(IDENTICAL) + 1, 0)
        for field, over in reversed(self.too_long(sizes).items()):
            marks = np.where(over, LEFT_OUT.index(f"{field} too long") + 1, marks)
        return marks.astype(np.int8)


@dataclasses.dataclass(frozen=True)
class Widths:
    """Holds the array widths, in tokens, that every layout needs under some Lengths.

    Attributes:
      policy: width of `Layout.policy_prompt`.
      reward: width of `Layout.reward_prompt`.
      pit: width of `Layout.pit_prompt`.
      gap: width of `Layout.gap_prompt`.
      response: width of `Layout.response`.
      reflected: width of `Layout.reflected_response`.
      reference: width of a reference as R_P reads it, which is `Layout.response` of it.
    """

    policy: int
    reward: int
    pit: int
    gap: int
    response: int
    reflected: int
    reference: int

    def of_blocks(self, tree: Tree) -> tuple[int, ...]:
        """Returns the most tokens of each of a tree's blocks."""
        of_piece = {
            Layout.policy_prompt: self.policy,
            Layout.reward_prompt: self.reward,
            Layout.gap_reference: self.gap - self.policy,
            Layout.response: self.response,
        }
        return tuple(of_piece[block.piece] for block in tree)

    @property
    def pair_row(self) -> int:
        """The width of R_P's training rows: x and both responses."""
        return sum(self.of_blocks(PAIR_TREE))

    @property
    def gap_row(self) -> int:
        """The width of R_PIT's training rows: x, both references and four responses."""
        return sum(self.of_blocks(GAP_TREE))

    @property
    def gap_pair_row(self) -> int:
        """The width of those with the two responses that the loss of two terms reads."""
        return sum(self.of_blocks(GAP_PAIR_TREE))


def widths(lengths: Lengths, space: int) -> Widths:
    """Returns the array widths of all layouts, if a space between two pieces is `space` tokens."""
    candidate = lengths.reference + 2 + space
    return Widths(
        policy=lengths.prompt,
        reward=lengths.prompt + space,
        pit=lengths.prompt + candidate,
        gap=lengths.prompt + candidate + space,
        response=lengths.response,
        reflected=lengths.reflection + lengths.response,
        reference=lengths.reference + 1,
    )


IDENTICAL = "identical tokens"
# Why an example isn't learned from though its texts are right.
LEFT_OUT = (
    "prompt too long",
    "chosen too long",
    "rejected too long",
    "reflection too long",
    "reference too long",
    IDENTICAL,
)


def join_lists(pieces: Iterable[Sequence[int]]) -> list[int]:
    """Concatenates token sequences into one list of Python integers."""
    return [int(token) for piece in pieces for token in piece]


class Layout:
    """Builds token sequences for one vocabulary.

    A piece (x, y, reference, reflection) is either text, which is encoded, or its token ids without
    EOS; those of x are what `Vocabulary.encode_prompt` gives. Where the vocabulary puts a space
    before a text by itself, the layouts put none, so that there is one. Every method returns ids
    joined by `join`: a list by default. The seqio preprocessors pass functions that concatenate
    tensors and count their elements, and task_rows such of Ragged columns, so that the layouts, and
    what is too long for the windows, are written down once. `fill` makes a piece of equal numbers
    that is as long as another piece.

    Example, with x = "2+2?", y_ref = "5":
      pit_prompt = ids("Human: ") ids("2+2?") ids("Assistant:") CANDIDATE ids(" ") ids("5") IMPROVED
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        join: Callable[[Iterable[Any]], Any] = join_lists,
        size: Callable[[Any], Any] = len,
        fill: Callable[[Any, int], Any] = lambda piece, number: [number] * len(piece),
    ):
        self.vocabulary = vocabulary
        self.control = vocabulary.control_tokens
        self.join = join
        self.fill = fill
        self._size = size
        self._before: list[int] = []
        self._after: list[int] = []
        self._space: list[int] = []
        if not vocabulary.has_template:
            spaced = vocabulary.prefixes_space
            bos = [] if vocabulary.bos_id is None else [vocabulary.bos_id]
            self._before = bos + vocabulary.encode(HUMAN.rstrip() if spaced else HUMAN)
            self._after = vocabulary.encode_joined(ASSISTANT)
            self._space = [] if spaced else vocabulary.encode(" ")

    def policy_prompt(self, x):
        """Builds `Human: {x}Assistant:`, the input of M_P, or what a chat template makes of x.

        Raises:
          ValueError: if the template refuses the turns of x.
        """
        ids = self.vocabulary.encode_prompt(x) if isinstance(x, str) else x
        return self.join([self._before, ids, self._after])

    def pit_prompt(self, x, reference):
        """Builds `Human: {x}Assistant:<<Candidate>> {y_ref}<<Improved>>`, the input of M_PIT."""
        return self.join([self.policy_prompt(x), self._candidate(reference)])

    def reward_prompt(self, x):
        """Builds `Human: {x}Assistant: `, which precedes y in the input of R_P."""
        return self.join([self.policy_prompt(x), self._space])

    def gap_prompt(self, x, reference):
        """Builds `Human: {x}Assistant:<<Candidate>> {y_ref}<<Improved>> `, before y in R_PIT."""
        return self.join([self.pit_prompt(x, reference), self._space])

    def gap_reference(self, reference):
        """Builds `<<Candidate>> {y_ref}<<Improved>> `, the end of `gap_prompt` after x's part."""
        return self.join([self._candidate(reference), self._space])

    def response(self, y):
        """Builds `{y}` EOS."""
        return self.join([self._ids(y), [self.vocabulary.eos_id]])

    def reflected_response(self, reflection, y):
        """Builds `{c}<<Improved>>{y}` EOS, PIT's target with chain of thought (Appendix K).

        The paper doesn't say how c and y are told apart; no text looks like a control token.
        """
        return self.join([self.reflection(reflection), self.response(y)])

    def reflection(self, reflection):
        """Builds `{c}<<Improved>>`, which comes before y in a reflected response."""
        return self.join([self._ids(reflection), [self.control.improved]])

    def final_response(self, tokens: Sequence[int]) -> list[int]:
        """Returns what follows the last `<<Improved>>` of sampled ids: a reflected response's y."""
        tokens = [int(token) for token in tokens]
        if self.control.improved not in tokens:
            return tokens
        return tokens[len(tokens) - tokens[::-1].index(self.control.improved) :]

    def widths(self, lengths: Lengths) -> Widths:
        """Returns the array widths that every layout needs under `lengths`."""
        return widths(lengths, len(self._space))

    def sizes(self, x, chosen, rejected, reflection=None, reference=None) -> dict[str, Any]:
        """Counts the tokens of each field that has a window, in the order of `Lengths.windows`.

        Args:
          x: counted with what stands around it, as `policy_prompt`.
          chosen, rejected: counted without EOS.
          reflection: counted with its `<<Improved>>`; None where no target holds it.
          reference: a sampled one; None where there is none.
        """
        sizes = {
            "prompt": self._size(self.policy_prompt(x)),
            "chosen": self._size(self._ids(chosen)),
            "rejected": self._size(self._ids(rejected)),
        }
        if reflection is not None:
            sizes["reflection"] = self._size(self.reflection(reflection))
        if reference is not None:
            sizes["reference"] = self._size(self._ids(reference))
        return sizes

    def too_long(self, lengths: Lengths, *pieces) -> dict[str, Any]:
        """Returns whether each field of an example is over its window; takes what `sizes` takes."""
        return lengths.too_long(self.sizes(*pieces))

    def _candidate(self, reference):
        """`<<Candidate>> {y_ref}<<Improved>>`."""
        candidate, improved = [self.control.candidate], [self.control.improved]
        return self.join([candidate, self._space, self._ids(reference), improved])

    def _ids(self, piece):
        return self.vocabulary.encode(piece) if isinstance(piece, str) else piece


@dataclasses.dataclass(frozen=True)
class Block:
    """Describes a piece of a row in which sequences that share prefixes follow each other.

    Attributes:
      label: what people read beside its tokens.
      piece: the method of Layout that builds it.
      text: the field of the example that it is built from.
      after: number of the block that it follows in its sequence, counted from 1; 0 for none.
      score: name of the reward that is read on it; empty where none is.
    """

    label: str
    piece: Callable[[Layout, Any], Any]
    text: str
    after: int = 0
    score: str = ""


Tree = tuple[Block, ...]

# The rows that reward models learn from; a token's block is its number here, counted from 1.
PAIR_TREE: Tree = (
    Block("x", Layout.reward_prompt, "prompt"),
    Block("y_w", Layout.response, "chosen", 1, "chosen"),
    Block("y_l", Layout.response, "rejected", 1, "rejected"),
)
# The four sequences of Eq. 2; the score `wl` is R_PIT(x, y_w, y_l).
GAP_TREE: Tree = (
    Block("x", Layout.policy_prompt, "prompt"),
    Block("reference y_w", Layout.gap_reference, "chosen", 1),
    Block("reference y_l", Layout.gap_reference, "rejected", 1),
    Block("y_w after y_l", Layout.response, "chosen", 3, "wl"),
    Block("y_w after y_w", Layout.response, "chosen", 2, "ww"),
    Block("y_l after y_l", Layout.response, "rejected", 3, "ll"),
    Block("y_l after y_w", Layout.response, "rejected", 2, "lw"),
)
# Those that the loss of two terms reads, `losses.gap_loss`.
GAP_PAIR_TREE: Tree = tuple(block for block in GAP_TREE if block.score not in ("ww", "ll"))
TREES = {"rm_policy": PAIR_TREE, "rm_gap": GAP_TREE, "rm_gap_pair": GAP_PAIR_TREE}
GAP_PAIRS = tuple(block.score for block in GAP_TREE if block.score)
# The pairs of Eqs. 1 and 2, "greater, smaller"; r_ab is short for R_PIT(x, y_a, y_b).
GAP_INEQUALITIES = (("wl", "ww"), ("wl", "ll"), ("wl", "lw"), ("ww", "lw"), ("ll", "lw"))

# Task -> the (response, reference) that become less likely in it, M_PIT(y | x, y_ref) of 3.2; the
# likely one, M_PIT(y_w | x, y_l), is in every task of M_PIT.
UNLIKELY: dict[str, tuple[tuple[str, str], ...]] = {
    "sft_pit_unlikely_lw": (("rejected", "chosen"),),
    "sft_pit_unlikely_ll": (("rejected", "rejected"),),
    "sft_pit_unlikely_ww": (("chosen", "chosen"),),
}
UNLIKELY["sft_pit_unlikely"] = tuple(pair for (pair,) in UNLIKELY.values())

_RL = {"chosen": "response", "example_index": None}
# Task -> feature -> name of its width in Widths; None for one number.
FEATURES: dict[str, dict[str, str | None]] = {
    "pretrain": {"inputs": "pit", "targets": "response"},
    "sft_policy": {"inputs": "policy", "targets": "response"},
    "sft_pit": {"inputs": "pit", "targets": "response"},
    "sft_pit_reflection": {"inputs": "pit", "targets": "reflected"},
    **{task: {"inputs": "pit", "targets": "response", "unlikely": None} for task in UNLIKELY},
    "rm_policy": {"tokens": "pair_row", "blocks": "pair_row"},
    "rm_gap": {"tokens": "gap_row", "blocks": "gap_row"},
    "rm_gap_pair": {"tokens": "gap_pair_row", "blocks": "gap_pair_row"},
    "rl_policy": {"prompt": "policy", "reward_prompt": "reward", **_RL},
    "rl_pit": {"prompt": "pit", "reward_prompt": "gap", **_RL},
    "rl_pit_difference": {
        "prompt": "pit",
        "reward_prompt": "reward",
        "critic_prompt": "gap",
        "reference": "reference",
        **_RL,
    },
}

# Task -> the fold of the train split that it learns from.
TASK_FOLDS = {
    "pretrain": "sft",
    "sft_policy": "sft",
    "sft_pit": "sft",
    "sft_pit_reflection": "sft",
    **dict.fromkeys(UNLIKELY, "sft"),
    "rm_policy": "rm",
    "rm_gap": "rm",
    "rm_gap_pair": "rm",
    "rl_policy": "rl",
    "rl_pit": "rl",
    "rl_pit_difference": "rl",
}
# Task -> the rows that it makes of an example, where they are several; one if y_ref is sampled.
TASK_ROWS = {
    "pretrain": 4,
    **{task: 1 + len(pairs) for task, pairs in UNLIKELY.items()},
    "rl_pit": 2,
    "rl_pit_difference": 2,
}


def feature_lengths(task: str, widths: Widths) -> dict[str, int]:
    """Returns the most tokens of each feature of a task, a key of FEATURES; 1 for a number."""
    return {
        feature: 1 if width is None else getattr(widths, width)
        for feature, width in FEATURES[task].items()
    }
