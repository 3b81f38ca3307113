"""What commands hand on; test_cli runs them."""

from __future__ import annotations

import dataclasses
import json
import shlex
import types

import pytest

from pit_jax import command_flags, commands
from pit_jax.data.datasets import DatasetConfig
from pit_jax.errors import UserError
from pit_jax.evaluation.classifier import ClassifierConfig
from pit_jax.evaluation.endpoint import EndpointConfig
from pit_jax.evaluation.judges import RewardJudgeConfig
from pit_jax.evaluation.suite import EvaluationConfig
from pit_jax.plan import machines
from pit_jax.run import improving
from tests import tiny_runs

JUDGE = EndpointConfig("http://localhost:9/v1", "gpt-4", "dialogue", key_variable="NO_SUCH_KEY")


def test_improve_is_given_the_stages_that_the_evaluation_names(monkeypatch):
    given = []
    monkeypatch.setattr(improving, "Job", lambda *job: given.append(job) or (lambda: None))
    options = types.SimpleNamespace(input="in", output="out", on_error="skip")
    evaluation = EvaluationConfig(policy="a", pit="b", gap_model="c")
    run = types.SimpleNamespace(
        check_data=lambda needed: given.append(needed), load_frozen=None, role=lambda name: name
    )
    commands.improve(run, evaluation, options)
    needed, (made, *paths) = given
    assert made.run is run and made.stages == {"policy": "a", "pit": "b", "gap_model": "c"}
    assert not needed and paths == ["in", "out", "skip"]


@pytest.mark.parametrize(
    ("written", "changes", "name"),
    [
        (None, {}, ""),
        (None, {"split": "dev"}, "report-dev"),
        ({}, {}, ""),  # of an older version, which wrote about the test split here
        ({}, {"split": "dev"}, "report-dev"),
        ({"subjects": {"split": "test", "reward_model": "rm_policy", "num_prompts": 0}}, {}, ""),
        (
            {"subjects": {"split": "test", "reward_model": "rm_policy", "num_prompts": 0}},
            {"reward_model": "../rm 2", "num_prompts": 8},
            "report-8-_rm_2",
        ),
        ({"subjects": {"split": "dev"}}, {"split": "dev"}, ""),
        ({"subjects": {"split": "dev"}}, {}, "report-test"),
        ({"subjects": None}, {"iterations": 2}, ""),
        ({}, {"judge": JUDGE}, "report-language_model_gpt-4_dialogue"),
        ({"subjects": {"judge": "language model gpt-4 (dialogue)"}}, {"judge": JUDGE}, ""),
        ({"subjects": {"judge": "language model gpt-4 (dialogue)"}}, {}, "report-own_judge"),
        ({}, {"judge": ClassifierConfig("a/b")}, "report-classifier_a_b"),
        ("garbled", {}, ""),
    ],
)
def test_a_report_never_takes_the_place_of_another(tmp_path, written, changes, name):
    if written is not None:
        text = written if isinstance(written, str) else json.dumps(written)
        (tmp_path / "report.json").write_text(text)
    evaluation = dataclasses.replace(EvaluationConfig(), **changes)
    run = types.SimpleNamespace(directory=tmp_path)
    assert commands.report_folder(run, evaluation) == tmp_path / name


def test_a_command_is_written_as_a_shell_takes_it():
    argv = ["run", "--gin_file=gin/runs/quickstart.gin", "--gin.MODEL_DIR='runs/it s'"]
    line = command_flags.command_line(argv)
    assert line == (
        "python -m pit_jax run --gin_file=gin/runs/quickstart.gin --gin.MODEL_DIR=\"'runs/it s'\""
    )
    argv += ["--gin.A='$HOME'", "--gin.rm_gap/B.c=(1, 2)", "a file", "--compare", "x='\\y"]
    written = command_flags.command_line(argv)
    assert written.startswith("python -m pit_jax run \\\n  --gin_file=gin/runs/quickstart.gin \\\n")
    assert shlex.split(written.replace("\\\n", " ")) == ["python", "-m", "pit_jax", *argv]


def test_a_plan_is_explained_or_json(monkeypatch):
    monkeypatch.setattr(machines, "devices", lambda slice_: [])
    options = types.SimpleNamespace(topology="v4-8", save=None, json=True, explain="rm_gap")
    with pytest.raises(UserError, match="the JSON has it all, expected one of --json and --explai"):
        commands.plan(None, options)


def test_a_judge_that_was_optimised_is_named_before_training_and_in_the_report(monkeypatch):
    """Not where an exact checker judges, nor where another reward model does."""
    monkeypatch.setattr("pit_jax.data.advice.warnings", lambda data, split, n: [f"{split} {n}"])
    config = tiny_runs.config("unused")
    evaluation = EvaluationConfig(num_prompts=7)
    exact = types.SimpleNamespace(config=config, data=None)
    assert commands._warnings(exact, evaluation) == ["test 7"]
    dataset = DatasetConfig("preferences", 0, 0, 0, path="pairs.jsonl")
    own = types.SimpleNamespace(config=dataclasses.replace(config, dataset=dataset), data=None)
    (_, text) = commands._warnings(own, evaluation)
    assert text.startswith("the judge is rm_policy, a reward model that training optimised")
    assert len(commands._warnings(own, dataclasses.replace(evaluation, reward_model="other"))) == 1
    assert len(commands._warnings(own, dataclasses.replace(evaluation, judge=JUDGE))) == 1
    for run in (exact, own):
        judged = dataclasses.replace(evaluation, judge=RewardJudgeConfig("rm_gap"))
        assert "the judge is rm_gap, a reward model that" in commands._warnings(run, judged)[1]
        judged = dataclasses.replace(evaluation, judge=RewardJudgeConfig("another"))
        assert len(commands._warnings(run, judged)) == 1
