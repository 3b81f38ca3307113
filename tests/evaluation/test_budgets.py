"""Best-of-n and re-sampling at equal tokens: what fits a budget, what is drawn and compared."""

from __future__ import annotations

import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pit_jax.data.examples import Example
from pit_jax.evaluation import budgets
from pit_jax.evaluation.judges import ExactJudge
from pit_jax.evaluation.responses import Responses
from pit_jax.evaluation.tables import Tables
from pit_jax.method.improve import ImproveConfig, Trace
from pit_jax.method.sampler import Response


def of_cost(cost, ended=True):
    """A response for which so many tokens were sampled."""
    return Response([5] * (cost - ended), ended)


def test_a_budget_counts_the_end_of_each_response_and_its_reflection():
    cut = Response([7, 7, 7, 7], False)
    reflected = Response([8], True, reflection=[6, 6])  # and the mark between both
    trace = Trace([Response([5, 5, 5], True), cut, reflected], [])
    assert [budgets.tokens(trace, k) for k in range(3)] == [4, 4 + 4, 4 + 4 + 5]
    assert Response([], True).sampled == 1
    assert Response([], False, reflection=[6, 6, 6]).sampled == 3  # a window without a mark


@pytest.mark.parametrize(
    ("costs", "budget", "number"),
    [
        ([4, 3, 5], 7, 2),  # to the token
        ([4, 3, 5], 6, 1),
        ([4, 3, 5], 11, 2),
        ([4, 3, 5], 12, 3),
        ([4, 9, 1], 6, 1),  # one that doesn't fit ends it: no later one takes its place
        ([4], 99, 1),
    ],
)
def test_as_many_draws_are_taken_as_fit_the_budget(costs, budget, number):
    draws = [of_cost(cost, ended=i % 2 == 0) for i, cost in enumerate(costs)]
    assert budgets.affordable(draws, budget) == number


def test_of_equal_scores_the_earlier_draw_is_the_best():
    assert budgets.best([1.0, 3.0, 3.0, 9.0], 3) == 1
    assert budgets.best([2.0, 2.0], 1) == budgets.best([2.0, 2.0], 2) == 0


COSTS = st.lists(st.integers(1, 9), min_size=1, max_size=7)


@settings(max_examples=200, deadline=None)
@given(COSTS, st.integers(0, 40), st.data())
def test_no_choice_exceeds_its_budget_and_without_one_it_is_the_maximum(costs, more, data):
    budget, draws = costs[0] + more, [of_cost(cost) for cost in costs]
    number = budgets.affordable(draws, budget)
    assert sum(costs[:number]) <= budget
    assert number == len(costs) or sum(costs[: number + 1]) > budget
    one = st.integers(0, 3).map(float)
    scores = data.draw(st.lists(one, min_size=len(costs), max_size=len(costs)))
    assert budgets.best(scores, number) < number
    everything = budgets.affordable(draws, 10**9)
    assert everything == len(costs)
    best = budgets.best(scores, everything)
    assert scores[best] == max(scores) and max(scores) not in scores[:best]


def responses_of(costs):
    """Responses to as many prompts as rows, whose draws cost so much; and what was sampled."""
    calls = []

    def answers(model, prompts, rows, key, sampling):
        assert prompts == [f"x{row}" for row in rows]
        calls.append((key[-1], rows, sampling.temperature))
        return [of_cost(costs[row][key[-1]]) for row in rows]

    role = types.SimpleNamespace(answers=answers)
    run = types.SimpleNamespace(
        load_frozen=lambda stage: stage,
        role=lambda name: role,
        key=lambda *purpose: purpose,
        config=types.SimpleNamespace(improve=ImproveConfig()),
    )
    examples = [Example(f"x{i}", "a", "b", index=i) for i in range(len(costs))]
    return Responses(run, examples, "rl_policy", "rm_gap"), calls


def test_only_prompts_with_tokens_left_are_drawn_for_again():
    """The second draw is that of all prompts, which other tables have; nothing is drawn twice."""
    made, calls = responses_of([[2, 2, 2, 2], [2, 5, 1, 1], [4, 4, 4, 4]])
    again = made.policy("rl_policy", 0.5, 1)
    for _ in range(2):
        draws = made.draws(0.5, [8, 6, 12], 4)
        assert [[draw.sampled for draw in own] for own in draws] == [
            [2, 2, 2, 2],
            [2, 5],  # which doesn't fit
            [4, 4, 4],
        ]
    assert draws[0][1] is again[0]
    assert sorted(calls) == [
        (d, r, 0.5) for d, r in ((0, [0, 1, 2]), (1, [0, 1, 2]), (2, [0, 2]), (3, [0]))
    ]
    assert [len(own) for own in made.draws(0.5, [8, 6, 12], 2)] == [2, 2, 2]
    assert [len(own) for own in made.draws(0.5, [8, 6, 12], 1)] == [1, 1, 1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 9), min_size=5, max_size=5), st.integers(0, 30)),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 5),
)
def test_what_is_drawn_is_what_a_budget_needs(rows, most):
    costs = [own for own, _ in rows]
    limits = [own[0] + more for own, more in rows]
    found = responses_of(costs)[0].draws(1.0, limits, most)
    for own, limit, draws in zip(costs, limits, found, strict=True):
        all_of_them = [of_cost(cost) for cost in own[:most]]
        number = budgets.affordable(draws, limit)
        assert number == budgets.affordable(all_of_them, limit)
        assert draws == all_of_them[: len(draws)] and len(draws) <= number + 1


def said(text):
    return Response([5] * len(text.split()), True, text=text)


def rows_of(best_of, rewards, judge=None):
    """Rows of two prompts by hand; a digit is its response's score, and a word a token."""
    judge = judge or ExactJudge(lambda prompt, text: types.SimpleNamespace(score=float(text[0])))
    inputs = types.SimpleNamespace(prompts=["p", "q"], groups=["p", "q"])
    pit = [
        Trace([said("1"), said("5"), said("3")], [1.0, -1.0], bests=[1]),
        Trace([said("2"), said("2"), said("9")], [-1.0, 1.0], bests=[2]),
    ]
    draws = [[said("1"), said("4"), said("2 2")], [said("2"), said("8 8"), said("7")]]
    draws = [own[:best_of] for own in draws]
    return budgets.rows(Tables(inputs, judge, 0), rewards, 0.5, pit, draws, 2, best_of)


def test_rows_by_hand():
    """Budgets are 4 and 6 tokens: q's second draw, of 3, fits the second one alone."""
    asked = []

    def rewards(prompts, texts):
        asked.append((prompts, texts))
        return np.array([{"4": 1.0}.get(text, 0.0) for text in texts])

    one, two = rows_of(3, rewards)
    assert asked == [(("p", "p", "q", "q"), ("1", "4", "2", "8 8"))]
    assert [(row["temperature"], row["iteration"]) for row in (one, two)] == [(0.5, 1), (0.5, 2)]
    costs = ("pit_tokens", "drawn_tokens", "draws", "gap_passes", "reward_passes", "capped")
    assert [one[key] for key in costs] == [4, 3, 1.5, 1, 1, 0]
    assert [two[key] for key in costs] == [6, 4.5, 2, 2, 2, 0]
    names = ["PIT, best vs Best-of-n", "PIT, last vs Best-of-n"]
    names += ["Best-of-n vs Original", "Re-sampled vs Original"]
    for row, deltas in ((one, [50, 50, 50, 50]), (two, [100, 0, 50, 100])):
        assert [each["name"] for each in row["comparisons"]] == names
        assert [each["delta"] for each in row["comparisons"]] == deltas
    # 5 beats 4; q's best by gap is y_0, which ties with itself.
    assert [one["comparisons"][0][key] for key in ("win", "lose", "tie", "n")] == [50, 0, 50, 2]
    # 3 loses to 4, 9 beats 2: of equal rewards of "2" and "8 8" the earlier is taken.
    assert [two["comparisons"][1][key] for key in ("win", "lose", "tie")] == [50, 50, 0]


def test_prompts_whose_draws_end_before_their_budget_are_counted():
    assert [row["capped"] for row in rows_of(2, lambda x, y: np.zeros(len(y)))] == [0, 1]
    # With y_0 alone there is nothing to choose, and R_P isn't asked.
    one, two = rows_of(1, lambda x, y: pytest.fail("asked"))
    assert (one["draws"], one["reward_passes"], one["drawn_tokens"]) == (1, 0, 2)
    assert one["capped"] == two["capped"] == 1
    assert [each["delta"] for each in two["comparisons"]] == [100, 100, 0, 0]


def test_intervals_are_over_groups_of_prompts():
    """Both prompts of a group: each end is 0.975 of the way to its bound."""
    judge = ExactJudge(lambda prompt, text: types.SimpleNamespace(score=float(text[0])))
    (_, two) = rows_of(3, lambda x, y: np.zeros(len(y)), judge)
    apart = two["comparisons"][3]
    inputs = types.SimpleNamespace(prompts=["p", "q"], groups=["same", "same"])
    tables = Tables(inputs, judge, 0)
    traces = [Trace([said("1"), said("2")], [1.0])] * 2
    draws = [[said("1"), said("4")]] * 2
    (row,) = budgets.rows(tables, lambda x, y: np.zeros(len(y)), 1.0, traces, draws, 1, 8)
    together = row["comparisons"][3]
    assert apart["delta"] == together["delta"] == 100
    assert together["ci_low"] == pytest.approx(100 - 0.975 * 200)
    assert together["ci_low"] < apart["ci_low"]
