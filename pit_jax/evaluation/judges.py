"""Has the judges, which say which of two responses to a prompt is better.

A judge is called as `judge(prompts, first, second)` with three sequences of N strings. It returns
verdicts [N] for the first response, as `pit_jax.evaluation.scoring` defines them. A new judge is a
class with that call and a `name`. One that scores responses by themselves is a `ScoringJudge`;
mean scores are shown of such a judge alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from pit_jax.checked import checked
from pit_jax.data.datasets import DatasetConfig, MixtureConfig
from pit_jax.data.synthetic import instructions
from pit_jax.evaluation import scoring
from pit_jax.evaluation.intervals import Groups


class Judge(Protocol):
    """Compares two responses to each of N prompts."""

    @property
    def name(self) -> str: ...

    def __call__(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray: ...


@runtime_checkable
class ScoringJudge(Judge, Protocol):
    """Scores each response by itself, so that many can be ranked at once.

    `verdicts` makes verdicts [N] of the scores [N] of two lists of responses. `bounds` are the
    lowest and the highest score that there can be, or None.
    """

    @property
    def bounds(self) -> tuple[float, float] | None: ...

    def scores(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray: ...

    def verdicts(self, first: np.ndarray, second: np.ndarray) -> np.ndarray: ...


class ByScores:
    """Compares by `scores`, which a subclass has, with the paper's tie rule (section 4.4)."""

    def scores(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Returns the scores [N], float64."""
        raise NotImplementedError

    def verdicts(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Returns verdicts [N] of scores [N], ties where they are close."""
        return scoring.reward_judge_outcomes(first, second)

    def __call__(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray:
        return self.verdicts(self.scores(prompts, first), self.scores(prompts, second))


@dataclasses.dataclass(frozen=True)
class ExactJudge(ByScores):
    """Judges by an exact checker, as the synthetic families have, without model or noise.

    Attributes:
      check: called as `check(prompt, response)`; its result has a `score` between 0 and 1.
      name: the judge's name in tables.
      bounds: the lowest and the highest score.
    """

    check: Callable[[str, str], Any]
    name: str = "checker"
    bounds: tuple[float, float] = (0.0, 1.0)

    def scores(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Returns the checker's scores [N], float64."""
        check_lengths(prompts, responses)
        return np.array(
            [self.check(p, r).score for p, r in zip(prompts, responses, strict=True)], np.float64
        )

    def verdicts(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Returns verdicts [N]: every difference counts."""
        return scoring.win_lose_tie(first, second)


@dataclasses.dataclass(frozen=True)
class RewardJudge(ByScores):
    """Judges by a reward model, with the paper's tie rule (section 4.4).

    Attributes:
      score_fn: makes N scalar rewards of N prompts and N responses.
      name: the judge's name in tables.
      bounds: None: a reward can be any number.
    """

    score_fn: Callable[[Sequence[str], Sequence[str]], Any]
    name: str = "reward model"
    bounds: None = None

    def scores(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Returns the rewards [N], float64."""
        check_lengths(prompts, responses)
        rewards_N = np.asarray(self.score_fn(prompts, responses), np.float64)
        if rewards_N.shape != (len(prompts),):
            raise ValueError(f"score_fn: expected {len(prompts)} rewards, got {rewards_N.shape}")
        return rewards_N


@dataclasses.dataclass(frozen=True)
class GapJudge:
    """Judges by a gap reward model, which reads two responses in both orders.

    With r_1 of the first as an improvement of the second and r_2 the other way round, it prefers
    the first where r_1 > r_2, as Table 4 does, and ties where they are close, as R_P does (4.4).

    Attributes:
      gap_fn: makes N scores of N prompts, N responses and their N references.
      name: the judge's name in tables.
    """

    gap_fn: Callable[[Sequence[str], Sequence[str], Sequence[str]], Any]
    name: str = "gap reward model"

    def __call__(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray:
        check_lengths(prompts, first)
        check_lengths(prompts, second)
        both = self.gap_fn([*prompts, *prompts], [*first, *second], [*second, *first])
        return scoring.reward_judge_outcomes(*np.split(np.asarray(both, np.float64), 2))


@dataclasses.dataclass(frozen=True)
@checked
class RewardJudgeConfig:
    """Has a reward model of the run judge.

    Attributes:
      stage: the stage that trained it, an R_P or an R_PIT. Where PPO optimised it, the report
        warns that its verdicts are circular.
    """

    stage: str


def judge_for(
    dataset: DatasetConfig | MixtureConfig, rewards: Callable, reward_model: str
) -> ScoringJudge:
    """Makes the judge of a dataset: its `checker` where it has one, else a reward model.

    Args:
      dataset: the dataset that the prompts are from.
      rewards: makes N scalar rewards of N prompts and N responses.
      reward_model: name of the stage that `rewards` comes from.
    """
    return checker(dataset) or RewardJudge(rewards, f"R_P ({reward_model})")


def told(name: str) -> str:
    """What sentences call a judge of this name."""
    return {ExactJudge.name: "the exact checker", "judge": "the judge"}.get(name, name)


def checker(dataset: DatasetConfig | MixtureConfig) -> ExactJudge | None:
    """Makes the exact checker of a dataset; None where it has none."""
    if not isinstance(dataset, DatasetConfig) or dataset.kind != "instructions":
        return None
    family = dataset.family
    return ExactJudge(lambda prompt, text: instructions.check(family, prompt, text))


class Verdicts:
    """Judges responses to the same prompts; a judge with scores scores each of them once.

    Args:
      judge: the judge.
      prompts: x of each response.
    """

    def __init__(self, judge: Judge, prompts: Sequence[str]):
        self._judge, self._prompts = judge, prompts
        self._scores: dict[tuple[str, str], float] = {}

    def scores(self, responses: Sequence[str]) -> np.ndarray | None:
        """Returns the scores [N] of a response to each prompt; None by a judge without scores."""
        judge = self._judge
        return self._scored(judge, responses) if isinstance(judge, ScoringJudge) else None

    def __call__(self, first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        """Returns verdicts [N] for the first of two responses to each prompt."""
        judge = self._judge
        if not isinstance(judge, ScoringJudge):
            return judge(self._prompts, first, second)
        return judge.verdicts(self._scored(judge, first), self._scored(judge, second))

    def mean(
        self, responses: Sequence[str], groups: Groups, seed: int = 0
    ) -> dict[str, float | None]:
        """Takes the mean score of responses, with its interval; nothing of a judge without scores.

        Args:
          responses: one to each prompt.
          groups: the group of each; see `intervals.group_numbers`.
          seed: of the interval.
        """
        judge = self._judge
        if not isinstance(judge, ScoringJudge):
            return {}
        scores = self._scored(judge, responses)
        mean = scoring.mean_interval(scores, groups, judge.bounds, seed)
        ends = {"ci_low": known(mean.ci_low), "ci_high": known(mean.ci_high)}
        return {"mean_score": mean.mean, **ends}

    def _scored(self, judge: ScoringJudge, responses: Sequence[str]) -> np.ndarray:
        check_lengths(self._prompts, responses)
        rows = list(zip(self._prompts, responses, strict=True))
        if new := list(dict.fromkeys(row for row in rows if row not in self._scores)):
            prompts, texts = zip(*new)
            self._scores.update(zip(new, judge.scores(prompts, texts).tolist(), strict=True))
        return np.array([self._scores[row] for row in rows], np.float64)


def known(value: float) -> float | None:
    """Returns a number as Python's own, or None for one that isn't known (NaN)."""
    return None if np.isnan(value) else value if isinstance(value, int) else float(value)


def check_lengths(prompts: Sequence[str], responses: Sequence[str]) -> None:
    """Raises ValueError if there isn't a response to each prompt."""
    if len(prompts) != len(responses):
        raise ValueError(
            f"expected a response to each of {len(prompts)} prompts, got {len(responses)}"
        )
