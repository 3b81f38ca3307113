"""Tests of the judges."""

import dataclasses

import numpy as np
import pytest

from pit_jax.evaluation import judges


@dataclasses.dataclass
class _Check:
    score: float


def _share_of_prompt(prompt, response):
    words = prompt.split()
    return _Check(sum(word in response.split() for word in words) / len(words))


def test_exact_judge_compares_checker_scores():
    judge = judges.ExactJudge(_share_of_prompt)
    prompts = ["a b", "a b", "a b c"]
    outcomes = judge(prompts, ["a b", "a", "c a"], ["a", "b a", "a b x"])
    np.testing.assert_array_equal(outcomes, [1, -1, 0])
    np.testing.assert_allclose(judge.scores(prompts, ["b", "", "a b c"]), [0.5, 0, 1])
    assert judge.name == "checker"


def test_reward_judge_ties_close_rewards():
    # A difference of 0.2 is a probability of 0.5498, of 0.21 one of 0.5523.
    judge = judges.RewardJudge(lambda prompts, responses: [float(r) for r in responses], "ours")
    np.testing.assert_array_equal(
        judge(["x"] * 4, ["0.2", "0.21", "0", "-3"], ["0", "0", "0.21", "-3"]), [0, 1, -1, 0]
    )
    assert judge.name == "ours"


def test_gap_judge_reads_both_orders_and_ties_where_they_are_close():
    """Gap rewards 1.5 against 1.2 and 0.21 against 0 differ by more than 0.2007, 0.2 doesn't."""
    gaps = {("a", "b"): 1.5, ("b", "a"): 1.2, ("c", "d"): 0.2, ("d", "c"): 0.0}
    gaps |= {("e", "f"): 0.0, ("f", "e"): 0.21, ("g", "g"): 3.0}
    asked = []

    def gap(prompts, texts, references):
        asked.append(len(texts))
        assert [*prompts] == ["p", "q", "r", "s"] * 2
        return [gaps[pair] for pair in zip(texts, references, strict=True)]

    judge = judges.GapJudge(gap, "R_PIT (rm_gap)")
    verdicts = judge(["p", "q", "r", "s"], ["a", "c", "e", "g"], ["b", "d", "f", "g"])
    np.testing.assert_array_equal(verdicts, [1, 0, -1, 0])
    assert asked == [8] and not isinstance(judge, judges.ScoringJudge)
    with pytest.raises(ValueError, match="a response to each of 1 prompts, got 2"):
        judge(["p"], ["a"], ["b", "c"])


def test_judges_reject_uneven_lengths_and_wrong_shapes():
    with pytest.raises(ValueError, match="a response to each of 2 prompts, got 1"):
        judges.ExactJudge(_share_of_prompt)(["a", "b"], ["a"], ["a"])
    judge = judges.RewardJudge(lambda prompts, responses: [[1.0]] * len(responses))
    with pytest.raises(ValueError, match=r"expected 2 rewards, got \(2, 1\)"):
        judge(["a", "b"], ["a", "b"], ["a", "b"])
