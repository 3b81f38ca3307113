"""Groups of KL, candidates and the proposal, by hand; standard errors where prompts repeat."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pit_jax.errors import UserError
from pit_jax.method.choice import Choice, Measured, decide, mean_and_error

NAN = math.nan


def decided(rows, scores=None, ended=None, **choice):
    """Decides among checkpoints 10, 20, … of (KL, reward); each scores its reward everywhere."""
    ended = ended or [1.0] * len(rows)
    steps = range(10, 10 * len(rows) + 10, 10)
    measured = [
        Measured(step, kl, 0.0, reward, 0.0, share)
        for step, (kl, reward), share in zip(steps, rows, ended, strict=True)
    ]
    scores = [[reward, reward] for _, reward in rows] if scores is None else scores
    found = decide(measured, np.asarray(scores, float), ["a", "b"], Choice(**choice))
    return found.groups, found.candidates, found.step


def test_groups_are_intervals_of_equal_width():
    """From 1 to 5 in four: borders at 2, 3 and 4 belong to the group above, 5 to the last."""
    kls = (1, 1.99, 2, 2.5, 3, 4, 4.5, 5)
    groups, candidates, _ = decided([(kl, 0) for kl in kls], groups=4)
    assert groups == (1, 1, 2, 2, 3, 4, 4, 4)
    assert candidates == (10, 30, 50, 60)  # all are equal: those of lower KL


def test_groups_may_be_empty():
    groups, candidates, step = decided([(0, 1), (0.1, 2), (9, 3)], groups=3)
    assert (groups, candidates, step) == ((1, 1, 3), (20, 30), 30)


def test_kl_below_zero_and_out_of_order():
    """A sample of KL may be negative, and a later checkpoint nearer to the start."""
    assert decided([(3, 5), (-1, 4), (1, 6)], groups=2) == ((2, 1, 2), (20, 30), 30)


@pytest.mark.parametrize(
    ("rows", "per_group", "candidates"),
    [
        ([(1, 2), (1.1, 3), (1.2, 1), (2, 9)], 1, (20, 40)),
        ([(1, 2), (1.1, 3), (1.2, 1), (2, 9)], 2, (10, 20, 40)),
        ([(1.2, 3), (1.1, 3), (1, 1), (2, 9)], 1, (20, 40)),  # of equal rewards that of lower KL
        ([(1, 3), (1, 3), (2, 9)], 1, (10, 30)),  # of equal ones the earlier
    ],
)
def test_candidates_have_the_highest_reward_of_their_group(rows, per_group, candidates):
    assert decided(rows, groups=2, per_group=per_group)[1] == candidates


def test_one_checkpoint_is_chosen():
    assert decided([(0.3, -2)]) == ((1,), (10,), 10)


def test_checkpoints_of_one_kl_are_one_group():
    assert decided([(2, 1), (2, 5), (2, 3)]) == ((1, 1, 1), (20,), 20)


def test_what_is_not_finite_is_left_out():
    """Also of the interval that the groups divide."""
    rows = [(0, 1), (NAN, 9), (1, 2), (2, NAN), (math.inf, 9), (4, 3)]
    groups, candidates, step = decided(rows, groups=2)
    assert (groups, candidates, step) == ((1, None, 1, None, None, 2), (30, 60), 60)
    assert decided([(NAN, 1), (NAN, 2)]) == ((None, None), (), 20)


def test_what_does_not_end_is_left_out():
    """0.9 of the most, 1, is enough; the second scores best and ends too rarely."""
    rows = [(0, 1), (1, 9), (2, 3)]
    groups, candidates, step = decided(rows, ended=[1.0, 0.89, 0.9], groups=2)
    assert (groups, candidates, step) == ((1, None, 2), (10, 30), 30)
    assert decided(rows, ended=[0.0, 0.0, 0.0], groups=3)[2] == 20  # none does


@pytest.mark.parametrize(
    ("scores", "proposed"),
    [
        # Twice 1 below: no doubt about the difference.
        ([[0, 4], [1, 5]], 20),
        # 4 above and 2 below: 1 on average with an error of sqrt(2 · (3² + 3²)) / 2 = 3.
        ([[0, 4], [4, 2]], 10),
        # 3 above and 1 below: 1 with an error of 2. Beside it the scores have one of 10.
        ([[0, 20], [3, 19]], 10),
        # 1 and 0 above: 0.5 with an error of 0.5.
        ([[0, 4], [1, 4]], 10),
        # 2 and 1 above: 1.5 with an error of 0.5.
        ([[0, 4], [2, 5]], 20),
    ],
)
def test_the_least_kl_is_proposed_that_is_not_clearly_worse(scores, proposed):
    rows = [(kl, sum(each) / 2) for kl, each in zip((0, 1), scores, strict=True)]
    assert decided(rows, scores, groups=2)[1:] == ((10, 20), proposed)


def test_not_the_largest_kl_but_the_highest_reward_is_proposed():
    assert decided([(0, 1), (1, 5), (2, 4)], groups=3)[2] == 20


def test_a_mean_and_its_error_by_hand():
    """Of 1, 2, 6: mean 3, deviations −2, −1, 3, and sqrt(14 / 2 / 3)."""
    mean, error = mean_and_error(np.array([1, 2, 6]), ["a", "b", "c"])
    assert (mean, error) == (3.0, pytest.approx(math.sqrt(14 / 6)))


def test_values_of_one_prompt_are_one_draw():
    """Deviations of 1, 2, 6 are −2, −1, 3; of a and c together 1: sqrt(2 · (1 + 1)) / 3."""
    mean, error = mean_and_error(np.array([1, 2, 6]), ["a", "b", "a"])
    assert (mean, error) == (3.0, pytest.approx(2 / 3))
    assert mean_and_error(np.array([1, 2]), ["a", "a"]) == (1.5, 0.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("groups", 0),
        ("per_group", 0),
        ("per_group", 3),
        ("num_prompts", -1),
        ("samples", -1),
        ("step", -1),
    ],
)
def test_a_choice_that_makes_no_sense_is_refused(field, value):
    with pytest.raises(UserError, match=rf"Choice.{field}: got {value}, expected "):
        Choice(**{field: value})
