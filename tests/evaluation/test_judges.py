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


def test_judges_reject_uneven_lengths_and_wrong_shapes():
    with pytest.raises(ValueError, match="a response to each of 2 prompts, got 1"):
        judges.ExactJudge(_share_of_prompt)(["a", "b"], ["a"], ["a"])
    judge = judges.RewardJudge(lambda prompts, responses: [[1.0]] * len(responses))
    with pytest.raises(ValueError, match=r"expected 2 rewards, got \(2, 1\)"):
        judge(["a", "b"], ["a", "b"], ["a", "b"])
