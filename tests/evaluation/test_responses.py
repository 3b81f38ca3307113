"""What an evaluation says while it samples."""

from __future__ import annotations

import types

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
