"""Curves of what stages recorded: which steps and which metric."""

from __future__ import annotations

import json
import types

from pit_jax.evaluation import curves
from pit_jax.method.curriculum import Round
from tests import tiny_runs

STAGES = (
    tiny_runs.supervised("sft_pit"),
    tiny_runs.rl("rl_pit", (Round("data", 2), Round("policy", 0), Round("policy", 3))),
)


def run_in(folder, complete=("sft_pit", "rl_pit")):
    """A run of these stages, which recorded every step."""
    for stage in STAGES:
        (folder / stage.name).mkdir(exist_ok=True)
        records = [{"step": n, "loss": n / 2, "score": n + 0.25} for n in range(1, 6)]
        if stage.name == "sft_pit":
            records = [{"step": 1, "loss": 3.0}, {"step": 2, "other": 1.0}]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / stage.name / "metrics.jsonl").write_text(lines)
    return types.SimpleNamespace(
        directory=folder,
        config=types.SimpleNamespace(stages=STAGES),
        stage={stage.name: stage for stage in STAGES}.get,
        is_complete=lambda name: name in complete,
    )


def test_the_reward_by_round(tmp_path):
    assert curves.reward_curves(run_in(tmp_path), "rl_pit") == [
        {"round": "round 0: references from data", "steps": [1, 2], "reward": [1.25, 2.25]},
        {
            "round": "round 2: references from policy",
            "steps": [3, 4, 5],
            "reward": [3.25, 4.25, 5.25],
        },
    ]
    assert curves.reward_curves(run_in(tmp_path, ()), "rl_pit") == []


def test_what_each_stage_learned_by(tmp_path):
    found = curves.learning_curves(run_in(tmp_path))
    assert found == [
        {"stage": "sft_pit", "metric": "loss", "steps": [1], "values": [3.0]},
        {
            "stage": "rl_pit",
            "metric": "score",
            "steps": [1, 2, 3, 4, 5],
            "values": [1.25, 2.25, 3.25, 4.25, 5.25],
        },
    ]
    assert len(curves.learning_curves(run_in(tmp_path, ("rl_pit",)))) == 1
