"""What an evaluation says while it samples."""

from __future__ import annotations

import types

import numpy as np
import pytest

from pit_jax.errors import NotFiniteError
from pit_jax.evaluation import responses
from pit_jax.evaluation.responses import Responses
from pit_jax.method.improve import ImproveConfig


def test_a_long_evaluation_says_what_it_samples(monkeypatch, capsys):
    """After half a minute of silence, and not again for what has been sampled."""
    now = [100.0]
    monkeypatch.setattr(responses.time, "monotonic", lambda: now[0])
    role = types.SimpleNamespace(answers=lambda *given: ["y"])
    run = types.SimpleNamespace(
        load_frozen=lambda stage: stage,
        role=lambda name: role,
        key=lambda *purpose: purpose,
        config=types.SimpleNamespace(improve=ImproveConfig()),
    )
    made = Responses(run, [], "rl_policy", "rm_gap")
    for seconds, stage, temperature in (
        (110, "sft_policy", 1.0),
        (130, "rl_policy", 0.4),
        (159, "rl_policy", 1.0),
        (200, "rl_policy", 0.4),
        (201, "rl_pit", 0.0),
    ):
        now[0] = seconds
        assert made.policy(stage, temperature) == ["y"]
    assert capsys.readouterr().out.splitlines() == [
        "evaluating: responses of rl_policy at temperature 0.4, 30 s so far",
        "evaluating: responses of rl_pit at temperature 0, 101 s so far",
    ]


def test_a_score_that_is_not_finite_ends_the_evaluation():
    """By R_P and by R_PIT, whose references are cut to their window."""
    asked = []

    def score(model, prompts, width, read, pooling):
        asked.append((model, prompts, width))
        return np.array([1.0, np.nan], np.float32)[: len(prompts)]

    role = types.SimpleNamespace(
        sampler=types.SimpleNamespace(score=score),
        widths=types.SimpleNamespace(reward=7, gap=9),
        layout=types.SimpleNamespace(
            reward_prompt=lambda x: [x], gap_prompt=lambda x, reference: [x, *reference]
        ),
        reference=lambda response: response.text[:2],
        read=lambda text: text,
    )
    run = types.SimpleNamespace(
        load_frozen=lambda stage: stage, role=lambda name: role, pooling=lambda stage: "last"
    )
    made = Responses(run, [], "rl_policy", "rm_gap")
    assert made.rewards("rm", ["x"], ["a"]).tolist() == [1.0]
    assert made.gaps("rm_gap", ["x"] * 2, ["a"] * 2, ["long"] * 2).tolist() == [1.0, 1.0]
    assert asked == [("rm", [["x"]], 7), ("rm_gap", [["x", "l", "o"]], 9)]
    for score_of in (
        lambda: made.rewards("rm", ["x", "x"], ["b", "c"]),
        lambda: made.gaps("rm_gap", ["x", "x"], ["b", "c"], ["a", "a"]),
    ):
        with pytest.raises(NotFiniteError, match="rm.*: gives a response a score that isn't fin"):
            score_of()
