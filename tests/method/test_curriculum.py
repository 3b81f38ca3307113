"""Rounds: which are valid, and which are still to do at a step."""

from __future__ import annotations

import pytest

from pit_jax.method.curriculum import Round, locate

ROUNDS = (Round("data", 3), Round("policy", 0), Round("policy", 2), Round("pit", 4))


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, [(0, 0, 3), (2, 3, 5), (3, 5, 9)]),
        (2, [(0, 0, 3), (2, 3, 5), (3, 5, 9)]),
        (3, [(2, 3, 5), (3, 5, 9)]),
        (5, [(3, 5, 9)]),
        (8, [(3, 5, 9)]),
        (9, []),
    ],
)
def test_rounds_still_to_do(step, expected):
    """A round of no steps is left out, and so are its references."""
    found = [(number, first, last) for number, _, first, last in locate(ROUNDS, step)]
    assert found == expected
    assert all(ROUNDS[number] is round_ for number, round_, _, _ in locate(ROUNDS, step))


def test_only_models_are_sampled():
    sampled = {
        "none": False,
        "data": False,
        "policy": True,
        "checkpoint": True,
        "pit": True,
    }
    for source, expected in sampled.items():
        assert Round(source, 1, policy_step=int(source == "checkpoint")).is_sampled == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "web"}, r"got source='web', expected one of \('none', 'data', 'policy'"),
        ({"source": "checkpoint"}, "policy_step goes with source='checkpoint'"),
        ({"source": "policy", "policy_step": 3}, "policy_step goes with source='checkpoint'"),
        ({"source": "data", "steps": -1}, "expected steps >= 0 and improvements >= 1"),
        ({"source": "pit", "improvements": 0}, "expected steps >= 0 and improvements >= 1"),
    ],
)
def test_mistakes_in_a_round_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Round(**{"steps": 1, **fields})
