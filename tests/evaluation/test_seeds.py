"""Intervals over seeds, against scipy, by hand and by simulation; rows of reports put together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pit_jax.evaluation import seeds
from pit_jax.evaluation.seeds import summarise

VALUES = st.lists(st.floats(-90, 90).map(lambda x: round(x, 3)), min_size=2, max_size=6)


def test_three_seeds_by_hand():
    """Mean 6, deviations -2, 0, 2: s = 2, and t of two degrees of freedom is 4.302653."""
    found = summarise([4.0, 6.0, 8.0], [(1.0, 7.0), (2.0, 10.0), (3.0, 13.0)])
    assert (found.n, found.mean) == (3, 6.0)
    reach = 4.302653 * 2 / np.sqrt(3)
    assert found.seeds == pytest.approx((6 - reach, 6 + reach), abs=1e-5)
    # Over prompts they reach 3, 4, 5 down and 3, 4, 5 up, the mean of whose squares is 50 / 3.
    both = np.sqrt(reach**2 + 50 / 3)
    assert found.both == pytest.approx((6 - both, 6 + both), abs=1e-5)


def test_each_side_has_its_own_reach_over_prompts():
    found = summarise([97.0, 99.0], [(90.0, 98.0), (98.0, 100.0)])
    reach = 12.706205 * np.sqrt(2) / np.sqrt(2)
    down, up = np.sqrt(reach**2 + (49 + 1) / 2), np.sqrt(reach**2 + (1 + 1) / 2)
    assert found.both == pytest.approx((98 - down, 98 + up), abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_the_interval_over_seeds_is_scipys(values):
    found = summarise(values)
    if len(set(values)) == 1:
        assert found.seeds is None
        return
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert found.seeds == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.floats(0, 20))
def test_both_holds_the_interval_over_seeds(values, reach):
    found = summarise(values, [(v - reach, v + reach) for v in values], (-100, 100))
    if found.seeds is not None:
        (low, high), (lower, higher) = found.seeds, found.both
        assert -100 <= lower <= low + 1e-9 and high - 1e-9 <= higher <= 100


def test_intervals_end_where_values_do():
    found = summarise([99.0, 55.7, 98.2], [(98.0, 99.5)] * 3, (-100, 100))
    assert found.seeds[1] == found.both[1] == 100 and found.seeds[0] == pytest.approx(22.8, abs=0.1)


@pytest.mark.parametrize("values", [[5.0], [None, 5.0, None], [5.0, 5.0, 5.0]])
def test_one_seed_or_equal_ones_have_no_interval_over_seeds(values):
    found = summarise(values, [(4.0, 6.0)] * len(values))
    assert (found.mean, found.seeds, found.both) == (5.0, None, None)
    assert found.n == sum(v is not None for v in values)


def test_a_seed_without_an_interval_over_prompts_leaves_none_over_both():
    found = summarise([1.0, 2.0, None], [(0.0, 3.0), None, None])
    assert found.n == 2 and found.seeds is not None and found.both is None


def test_no_values_are_refused():
    with pytest.raises(ValueError, match="values: expected one or more that are not None"):
        summarise([None, None])


def test_the_interval_over_seeds_of_three_covers_95_percent():
    rng = np.random.default_rng(0)
    draws = rng.normal(10, 4, (4000, 3))
    covered = [low <= 10 <= high for low, high in (summarise(row).seeds for row in draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize("between", [0.0, 1.0, 6.0])
def test_both_covers_at_least_95_percent_where_seeds_share_their_prompts(between):
    """Δ of a seed is 10, its own luck, that of the prompts, and of itself with these prompts."""
    rng = np.random.default_rng(1)
    shared, own = 2.0, 1.0  # standard deviations of the luck with prompts
    reach = 1.96 * np.hypot(shared, own)
    seeds_alone, both = [], []
    for _ in range(2000):
        values = 10 + rng.normal(0, between, 3) + rng.normal(0, own, 3) + rng.normal(0, shared)
        found = summarise(values, [(v - reach, v + reach) for v in values])
        seeds_alone.append(found.seeds[0] <= 10 <= found.seeds[1])
        both.append(found.both[0] <= 10 <= found.both[1])
    assert np.mean(both) > 0.94
    # What it is for: with little between the seeds, the interval over seeds alone misses too often.
    assert np.mean(seeds_alone) < (0.85 if between < 6 else 0.96)


# --- rows --------------------------------------------------------------------------------------


def comparison(name, delta, temperature=1.0, **more):
    row = {"name": name, "first": "pit", "second": "original", "temperature": temperature}
    row |= {"judge": "checker", "group": "table1", "n": 9}
    return row | {"delta": delta, "ci_low": delta - 1, "ci_high": delta + 1} | more


def gathered(part, *rows_of_seeds):
    return seeds.gather([{"judge": "checker", part: rows} for rows in rows_of_seeds])[part]


def test_rows_are_found_by_name_and_temperature():
    first = [comparison("a", 1.0), comparison("a", 2.0, 0.4), comparison("b", 3.0)]
    second = [comparison("b", 5.0), comparison("a", 9.0), comparison("a", 4.0, 0.4)]
    rows = gathered("comparisons", first, second)
    assert [(r["name"], r["temperature"], r["delta"]["mean"]) for r in rows] == [
        ("a", 1.0, 5.0),
        ("a", 0.4, 3.0),
        ("b", 1.0, 4.0),
    ]
    assert rows[0]["delta"]["values"] == (1.0, 9.0)
    assert rows[0]["delta"]["prompts"] == ((0.0, 2.0), (8.0, 10.0))
    assert (rows[0]["group"], rows[0]["first"]) == ("table1", "pit")


def test_a_row_that_one_seed_lacks_is_there_in_its_place():
    first = [comparison("a", 1.0), comparison("c", 3.0)]
    second = [comparison("a", 1.0), comparison("b", 2.0), comparison("c", 3.0)]
    rows = gathered("comparisons", first, second)
    assert [r["name"] for r in rows] == ["a", "b", "c"]
    assert rows[1]["delta"]["values"] == (None, 2.0) and rows[1]["delta"]["n"] == 1


def test_rows_of_one_name_stay_apart():
    rows = gathered(
        "comparisons", *[[comparison("a", 1.0 + s), comparison("a", 7.0)] for s in (0, 2)]
    )
    assert [r["delta"]["mean"] for r in rows] == [2.0, 7.0]


@pytest.mark.parametrize(("judge", "highest"), [("checker", 1.0), ("R_P (rm_policy)", 1.36)])
def test_scores_of_a_checker_end_at_one(judge, highest):
    score = {"name": "PIT", "temperature": 1.0, "mean_score": 0.7, "ci_low": 0.6, "ci_high": 0.8}
    reports = [{"judge": judge, "scores": [score | {"mean_score": x}]} for x in (0.7, 0.8, 0.99)]
    (row,) = seeds.gather(reports)["scores"]
    low, high = stats.t.interval(0.95, 2, 0.83, stats.sem([0.7, 0.8, 0.99]))
    assert row["mean_score"]["seeds"] == pytest.approx((low, min(high, highest)))
    assert high > 1


def test_iterations_of_both_methods():
    def group(elo):
        rows = [{"iteration": 0, "mean_score": 0.2, "elo": elo}]
        rows.append({"iteration": 1, "mean_score": 0.4, "elo": elo + 100})
        rows[1] |= {"delta_vs_original": 50.0 + elo, "ci_low": 0.0, "ci_high": 99.0, "changed": 1}
        return {"temperature": 0.4, "rows": rows, "self_refine": [rows[1]]}

    rows = gathered("iterations", [group(1.0)], [group(3.0)])
    names = [(r["method"], r["temperature"], r["iteration"]) for r in rows]
    assert names == [("PIT", 0.4, 0), ("PIT", 0.4, 1), ("Self-Refine", 0.4, 1)]
    assert "delta_vs_original" not in rows[0]
    assert rows[1]["delta_vs_original"]["values"] == (51.0, 53.0)
    assert rows[1]["delta_vs_original"]["prompts"] == ((0.0, 99.0),) * 2
    assert rows[2]["elo"]["mean"] == 102.0 and rows[2]["elo"]["both"] is None


MEANS = {"wl": 3.0, "ww": 0.0, "ll": -1.0, "lw": -4.0}


def reward_model(shift=0.0):
    means = {pair: value + shift for pair, value in MEANS.items()}
    row = {"name": "R_PIT", "accuracy": 0.9, "ci_low": 0.8, "ci_high": 0.95, "n": 9}
    return row | {"means": means, "inequalities": {"wl>lw": 0.9 + shift / 100}}


def test_reward_models_with_figure_2_and_equation_1():
    (row,) = gathered("reward_models", [reward_model()], [reward_model(1.0)])
    assert row["mean wl"]["values"] == (3.0, 4.0) and row["mean lw"]["mean"] == -3.5
    assert row["wl>lw"]["values"] == pytest.approx((0.9, 0.91))
    assert row["accuracy"]["seeds"] is None  # equal


@pytest.mark.parametrize("figure", ["figure3", "figure5"])
def test_deltas_by_temperature(figure):
    def sweep(temperatures, *deltas):
        intervals = [[d - 1, d + 2] for d in deltas]
        return {
            "temperatures": temperatures,
            "series": {"a": deltas},
            "intervals": {"a": intervals},
        }

    rows = gathered(figure, sweep([0.2, 0.6], 10.0, 20.0), sweep([0.2, 0.4, 0.6], 12.0, 5.0, 24.0))
    found = [(r["name"], r["temperature"], r["delta"]["mean"], r["delta"]["n"]) for r in rows]
    assert found == [("a", 0.2, 11.0, 2), ("a", 0.4, 5.0, 1), ("a", 0.6, 22.0, 2)]
    assert rows[0]["delta"]["prompts"] == ((9.0, 12.0), (11.0, 14.0))
    assert gathered(figure, {}, {}) == []


def test_curves_are_averaged_at_the_steps_that_all_have():
    first = {"model": "PIT", "round": "round 0", "steps": [1, 2, 3], "reward": [1.0, 2.0, -5.0]}
    second = {"model": "PIT", "round": "round 0", "steps": [2, 3, 4], "reward": [4.0, None, 9.0]}
    third = {"model": "PIT", "round": "round 1", "steps": [5], "reward": [9.0]}
    reports = [
        {"figure4": [first], "reward_models": [reward_model()]},
        {"figure4": [second, third], "reward_models": [reward_model(20.0)]},
    ]
    found = seeds.gather(reports)
    curve, later = found["figure4"]
    assert (curve["steps"], curve["mean"], curve["seeds"]) == ([2], [3.0], [[2.0], [4.0]])
    assert curve["ending"]["values"] == (-5.0, 9.0) and curve["ending"]["mean"] == 2.0
    # Bounds (-4 - 1) / 2 and (3 + 0) / 2, and both 20 higher.
    assert curve["regions"] == ["worse", "worse"]
    assert found["regions"] == [7.5, 11.5]
    assert later["seeds"] == [None, [9.0]] and later["regions"] == [None, "worse"]


def test_the_ending_is_the_last_tenth():
    curve = {"round": "r", "steps": list(range(20)), "reward": [0.0] * 18 + [4.0, 6.0]}
    (found,) = seeds.gather([{"figure4": [curve]}])["figure4"]
    assert found["ending"]["mean"] == 5.0
