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


def run_in(folder, complete=("sft_pit", "rl_pit"), stages=STAGES):
    """A run of these stages, which recorded every step."""
    for stage in stages:
        (folder / stage.name).mkdir(exist_ok=True)
        records = [{"step": n, "loss": n / 2, "score": n + 0.25} for n in range(1, 6)]
        if stage.name == "sft_pit":
            records = [{"step": 1, "loss": 3.0}, {"step": 2, "other": 1.0}]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / stage.name / "metrics.jsonl").write_text(lines)
    return types.SimpleNamespace(
        directory=folder,
        config=types.SimpleNamespace(stages=stages),
        is_complete=lambda name: name in complete,
    )


def test_the_reward_by_round(tmp_path):
    """Each round by itself, and the step after which the first one from M_P^RL begins."""
    assert curves.reward_curves(run_in(tmp_path), [("PIT", "rl_pit")]) == [
        {
            "model": "PIT",
            "round": "round 0: references from data",
            "steps": [1, 2],
            "reward": [1.25, 2.25],
            "start": 2,
        },
        {
            "model": "PIT",
            "round": "round 2: references from policy",
            "steps": [3, 4, 5],
            "reward": [3.25, 4.25, 5.25],
            "start": 2,
        },
    ]
    assert curves.reward_curves(run_in(tmp_path, ()), [("PIT", "rl_pit")]) == []


def test_the_rewards_of_other_stages_beside_pits(tmp_path):
    extra = (
        tiny_runs.rl("second", (Round("policy", 4),), task="rl_pit"),
        tiny_runs.rl("first", (Round("data", 5),), task="rl_pit"),
        tiny_runs.rl("turned", (Round("policy", 2), Round("data", 3)), task="rl_pit"),
        tiny_runs.rl("rated", (Round("policy", 4),), task="rl_pit", reward_model="rm_other"),
    )
    names = [stage.name for stage in extra]
    run = run_in(tmp_path, ("rl_pit", *names), (*STAGES, *extra))
    models = [("PIT", "rl_pit"), ("A", "sft_pit"), *((name, name) for name in names)]
    found = curves.reward_curves(run, models)
    assert [(each["model"], each["start"], each["steps"]) for each in found] == [
        ("PIT", 2, [1, 2]),
        ("PIT", 2, [3, 4, 5]),
        ("second", 0, [1, 2, 3, 4]),
        ("first", 5, [1, 2, 3, 4, 5]),  # it ends where a second round would begin
        ("turned", 0, [1, 2]),
        ("turned", 0, [3, 4, 5]),
        # "rated" is on another scale.
    ]


def test_what_each_stage_learned_by(tmp_path):
    found = curves.learning_curves(run_in(tmp_path))
    # The one value of `other`, which doesn't tell most, is no curve.
    assert found == [
        {"stage": "sft_pit", "metric": "loss", "steps": [1], "values": [3.0], "folded": False},
        {
            "stage": "rl_pit",
            "metric": "score",
            "steps": [1, 2, 3, 4, 5],
            "values": [1.25, 2.25, 3.25, 4.25, 5.25],
            "folded": False,
        },
        {
            "stage": "rl_pit",
            "metric": "loss",
            "steps": [1, 2, 3, 4, 5],
            "values": [0.5, 1.0, 1.5, 2.0, 2.5],
            "folded": False,
        },
    ]
    assert len(curves.learning_curves(run_in(tmp_path, ("rl_pit",)))) == 2


def test_three_curves_are_shown_and_the_others_thinned_and_folded(tmp_path):
    run = run_in(tmp_path, stages=STAGES[:1])
    records = [
        {"step": n, "beta": n, "kl": n, "entropy": n, "loss": n, "score": n, "same": 1, "mfu": n}
        for n in range(1, 402)
    ]
    records[0]["texts"] = {"sample": "text"}
    records[0]["beta"] = float("nan")  # which is no point of a curve
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "sft_pit" / "metrics.jsonl").write_text(lines)
    found = {curve["metric"]: curve for curve in curves.learning_curves(run)}
    assert list(found) == ["score", "kl", "entropy", "beta", "loss"]
    assert [curve["folded"] for curve in found.values()] == [False] * 3 + [True] * 2
    assert found["kl"]["steps"] == list(range(1, 402))
    # 400 points of which each second is kept; 401 of which each third is.
    assert found["beta"]["steps"] == list(range(2, 402, 2))
    assert found["loss"]["steps"] == list(range(1, 402, 3))
