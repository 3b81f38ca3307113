"""Tests of a judge's agreement with an exact checker: by hand, and against resampled prompts."""

import numpy as np
import pytest
from scipy import stats

from pit_jax.evaluation import ground_truth
from pit_jax.evaluation.judges import ExactJudge, Verdicts


def test_kappa_by_hand():
    # Judge and checker: 4 wins and 2 losses in common, 1 win for a tie, 1 tie for a loss.
    said = [1, 1, 1, 1, -1, -1, 1, 0]
    true = [1, 1, 1, 1, -1, -1, 0, -1]
    found = ground_truth.accord(said, true)
    # By chance: (5 x 4 + 1 x 1 + 2 x 3) / 64 = 27 / 64 of 48 / 64.
    assert (found.accuracy, found.n) == (0.75, 8)
    assert found.kappa == pytest.approx((48 - 27) / (64 - 27))
    exact = stats.binomtest(6, 8).proportion_ci(method="exact")
    assert (found.ci_low, found.ci_high) == pytest.approx((exact.low, exact.high))
    assert np.isnan([found.kappa_low, found.kappa_high]).all()  # of 8 prompts
    # No better than chance, against it, and where nothing but one verdict is ever said.
    assert ground_truth.accord([1, 1, -1, -1], [1, -1, 1, -1]).kappa == 0
    assert ground_truth.accord([1, -1], [-1, 1]).kappa == -1
    assert np.isnan(ground_truth.accord([1, 1], [1, 1]).kappa)


def test_kappa_of_three_by_hand():
    """Four comparisons: all alike, two of three alike, all alike, all different."""
    said = [[1, 1, -1, 1], [1, 1, -1, -1], [1, -1, -1, 0]]
    found = ground_truth.joint_accord(said)
    # Of every two verdicts 3 of 3, 1, 3 and 0 agree: 7 / 12; of 12 verdicts 6, 5 and 1 are alike,
    # so that by chance (36 + 25 + 1) / 144 would.
    assert (found.accuracy, found.n) == (pytest.approx(7 / 12), 4)
    assert found.kappa == pytest.approx((84 - 62) / (144 - 62))
    assert found.ci_low < 7 / 12 < found.ci_high and np.isnan(found.kappa_low)
    # Who of them says what doesn't matter.
    mixed = [[1, -1, -1, 0], [1, 1, -1, 1], [1, 1, -1, -1]]
    assert ground_truth.joint_accord(mixed).kappa == found.kappa
    assert np.isnan(ground_truth.joint_accord([[1, 1]] * 3).kappa)
    with pytest.raises(ValueError, match=r"expected verdicts of two judges or more, got \(1, 2\)"):
        ground_truth.joint_accord([[1, 0]])


def test_kappa_of_two_is_that_of_their_shared_frequencies():
    """Scott's pi (1955), which Fleiss's kappa is for two, with its interval over prompts."""
    rng = np.random.default_rng(2)
    true = rng.choice([1, 0, -1], size=150)
    said = np.where(rng.random(150) < 0.6, true, rng.choice([1, 0, -1], size=150))
    found = ground_truth.joint_accord([true, said])
    shares = [np.mean(np.concatenate([true, said]) == v) for v in (-1, 0, 1)]
    chance = np.sum(np.square(shares))
    assert found.kappa == pytest.approx((np.mean(true == said) - chance) / (1 - chance))
    cohen = ground_truth.accord(said, true)
    assert (found.accuracy, found.ci_low, found.ci_high) == (
        pytest.approx(cohen.accuracy),
        pytest.approx(cohen.ci_low),
        pytest.approx(cohen.ci_high),
    )
    assert found.kappa_high - found.kappa_low == pytest.approx(
        cohen.kappa_high - cohen.kappa_low, rel=0.05
    )


def _one_kappa(said, true):
    agreed = np.mean(said == true)
    chance = sum(np.mean(said == v) * np.mean(true == v) for v in (-1, 0, 1))
    return (agreed - chance) / (1 - chance)


def test_the_interval_of_kappa_is_that_of_resampled_prompts():
    rng = np.random.default_rng(0)
    true = np.repeat(rng.choice([1, 0, -1], size=80), 3)
    said = np.where(np.repeat(rng.random(80), 3) < 0.7, true, rng.choice([1, 0, -1], size=240))
    groups = np.repeat(np.arange(80), 3)
    found = ground_truth.accord(said, true, groups.tolist())
    assert found.kappa == pytest.approx(_one_kappa(said, true))
    draws = []
    for _ in range(2000):
        rows = (3 * rng.integers(80, size=80)[:, None] + np.arange(3)).reshape(-1)
        draws.append(_one_kappa(said[rows], true[rows]))
    expected = np.percentile(draws, [2.5, 97.5])
    np.testing.assert_allclose([found.kappa_low, found.kappa_high], expected, atol=0.015)
    apart = ground_truth.accord(said, true)
    assert apart.kappa_high - apart.kappa_low < 0.8 * (found.kappa_high - found.kappa_low)


class Check:
    def __init__(self, score):
        self.score = score


def test_a_row_is_of_responses_that_differ():
    prompts = ["x", "y"]
    checker = Verdicts(ExactJudge(lambda prompt, text: Check(float(text))), prompts)
    # Takes a difference of 1 for none.
    judge = Verdicts(ExactJudge(lambda prompt, text: Check(float(text) // 2)), prompts)
    pairs = [(["2", "1"], ["3", "1"]), (["5", "2"], ["1", "4"])]
    row = ground_truth.row("j", judge, checker, pairs, ["x", "y"], 0)
    # 2 to 3 is a tie for the judge; 1 and 1 aren't compared; 5 to 1 and 2 to 4 are as they are.
    assert (row["name"], row["n"], row["accuracy"]) == ("j", 3, pytest.approx(2 / 3))
    assert row["kappa_low"] is None
    assert ground_truth.row("j", judge, checker, [(["1"] * 2, ["1"] * 2)], None, 0) == {
        "name": "j",
        "n": 0,
    }


def test_accord_rejects():
    with pytest.raises(ValueError, match=r"expected a true verdict for each of one or more, got"):
        ground_truth.accord([1, 0], [1])
