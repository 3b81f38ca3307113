"""The `sweep` command and the table of transfer, on tiny networks."""

from __future__ import annotations

import json
import re
import shutil
import types

import jax
import pytest

from pit_jax import bindings, sweep
from pit_jax.errors import UserError
from pit_jax.evaluation import transfer
from pit_jax.evaluation.suite import EvaluationConfig
from pit_jax.plan import machines
from pit_jax.run.config import RunConfig
from tests import tiny_runs

pytestmark = pytest.mark.no_cover  # what trains is covered by the tests of its parts

FEW = ("--gin.EvaluationConfig.self_refine=False", "--gin.EvaluationConfig.iterations=1")
# A run of four stages.
SHORT_RUN = """
run_config.RunConfig.stages = (
    @pretrain/stages.SupervisedStage(), @rm_policy/stages.RewardStage(),
    @rm_gap/stages.RewardStage(), @rl_pit/stages.RLStage())
rl_pit/stages.RLStage.initial = 'pretrain'
rl_pit/stages.RLStage.reference = 'pretrain'
rl_pit_1/curriculum.Round.policy = 'pretrain'
suite.EvaluationConfig:
    sft = 'pretrain'
    policy = 'pretrain'
"""
FIRST = "--vary=first: rl_pit_1/curriculum.Round.steps=0; rl_pit_0/curriculum.Round.steps=2"


def shown(output: str) -> dict[str, list[str]]:
    """The rows of the table of costs, by stage."""
    lines = output.partition("stage ")[2].partition("\n\n")[0].splitlines()[1:]
    return {line.split()[0]: line.split()[1:] for line in lines}


def test_variations_share_a_trained_run(trained, tmp_path, capsys):
    """What is trained already is found by its settings, told and left alone."""
    folder = tiny_runs.copy(trained, tmp_path / "run")
    before = (folder / "rl_policy" / "result.json").read_bytes()
    assert tiny_runs.command("sweep", folder, FIRST, *FEW, "--dry_run") == 0
    output = capsys.readouterr().out
    costs = shown(output)
    assert list(costs)[-2:] == ["rl_pit", "rl_pit_first"]
    assert costs["rl_pit"][-3:] == ["0", "base", "(measured)"]
    assert costs["pretrain"][-3:] == ["0", "all", "(measured)"]
    assert costs["rl_pit_first"][0] == "2" and costs["rl_pit_first"][-4:] == [
        *("1", "first", "(as", "rl_pit)")
    ]
    # Six stages of the variation are the run's own.
    assert re.search(r"^to train +1 of 8 stages; 6 more are the same", output, re.M)
    assert re.search(r"^steps +2; ", output, re.M)
    assert not (folder / "rl_pit_first").exists() and "nothing is written" in output

    assert tiny_runs.command("sweep", folder, FIRST, *FEW) == 0
    output = capsys.readouterr().out
    assert "rl_pit: complete, skipped" in output
    assert re.search(r"^first vs Original +\d", output, re.M)
    assert (folder / "rl_policy" / "result.json").read_bytes() == before
    assert len(tiny_runs.records(folder / "rl_pit_first" / "metrics.jsonl")) == 2
    report = json.loads((folder / "report.json").read_text())
    names = {row["name"] for row in report["comparisons"] if row["group"] == "table2"}
    assert names == {"first vs Original", "PIT vs first"}

    # Given again it does nothing, and shows the table.
    stamp = (folder / "report.json").stat().st_mtime_ns
    assert tiny_runs.command("sweep", folder, FIRST, *FEW) == 0
    output = capsys.readouterr().out
    assert re.search(r"^to train +0 of 8", output, re.M) and "first vs Original" in output
    assert (folder / "report.json").stat().st_mtime_ns == stamp

    # The configuration that it leaves is that of all stages.
    config, _ = bindings.read(str(folder / "config.gin"), (RunConfig, EvaluationConfig))
    assert [stage.name for stage in config.stages] == list(costs)
    assert [round_.steps for round_ in config.stages[-1].rounds] == [2, 0]


@pytest.mark.slow
def test_seeds_are_trained_and_combined(tmp_path, capsys):
    folder = tmp_path / "all"
    moved = dataset(tmp_path, SHORT.format(steps=2))
    words = ("--seeds=3,4", FIRST, *FEW, moved)
    assert tiny_runs.command("sweep", folder, *words) == 0
    output = capsys.readouterr().out
    assert re.search(r"^to train +16 of 16 stages; 12 more", output, re.M)
    assert "nothing says it yet: --topology=cpu" in output
    report = json.loads((folder / "report.json").read_text())
    assert report["seeds"] == [3, 4]
    seeds = [json.loads((folder / f"seed{s}" / "report.json").read_text()) for s in (3, 4)]
    assert [each["seed"] for each in seeds] == [3, 4]
    # PIT on other data, by seed and over both.
    places = [row["evaluated_on"] for row in report["transfer"]]
    assert places == ["instructions_drafts", f"instructions_drafts ({tmp_path / 'other.gin'})"]
    for place, row in enumerate(report["transfer"]):
        assert row["delta"]["values"] == [each["transfer"][place]["delta"] for each in seeds]
    assert re.search(r"^delta of PIT on +seed 3 +seed 4 +mean", output, re.M)
    # One seed is lost: the other is complete, and its times tell what is to come.
    shutil.rmtree(folder / "seed4" / "rl_pit")
    stamp = (folder / "seed3" / "report.json").stat().st_mtime_ns
    assert tiny_runs.command("sweep", folder, *words) == 0
    output = capsys.readouterr().out
    assert shown(output)["rl_pit"][-3:] == ["1", "base", "(measured)"]
    assert f"{folder}/seed3:\ncomplete, skipped" in output
    assert (folder / "seed3" / "report.json").stat().st_mtime_ns == stamp
    # Trained again with the same seed, it is the same.
    again = json.loads((folder / "report.json").read_text())
    assert again["comparisons"] == report["comparisons"]
    # The other data has changed since: it is looked at again, and nothing is trained.
    dataset(tmp_path, SHORT.format(steps=3))
    assert tiny_runs.command("sweep", folder, *words) == 0
    output = capsys.readouterr().out
    assert re.search(r"^to train +0 of 16", output, re.M) and "complete, skipped\n\n" not in output
    assert (folder / "seed3" / "report.json").stat().st_mtime_ns > stamp


@pytest.mark.slow
def test_what_isnt_measured_is_planned(tmp_path, capsys, monkeypatch):
    """By programs that are compiled: a stage of so many steps takes seconds by any machine."""
    monkeypatch.setattr(machines, "devices", lambda slice_: jax.devices()[:1])
    gin = tiny_runs.GIN + SHORT_RUN
    many = "--gin.pretrain/stages.SupervisedStage.steps=3_000_000"
    weak = "--vary=weak: rl_pit/PPOConfig.beta=0.02"
    words = ("--seeds=3,4", weak, many, "--dry_run", "--topology=cpu")
    assert tiny_runs.command("sweep", tmp_path / "all", *words, gin=gin) == 0
    printed = capsys.readouterr()
    costs = shown(printed.out)
    assert list(costs) == ["pretrain", "rm_policy", "rm_gap", "rl_pit", "rl_pit_weak"]
    assert all(row[-1] == "(plan)" for row in costs.values())
    # Of the row 'steps TFLOP MB time unit left of (plan)'.
    assert costs["rl_pit"][3:-2] == costs["rl_pit_weak"][3:-2]  # the same programs
    assert float(costs["pretrain"][3]) >= 1
    (total,) = re.findall(r"^time +about (.*); compilation and evaluation", printed.out, re.M)
    assert total != "0 s" and "nothing says it" not in printed.out
    assert "planning for cpu …" in printed.err and "compiling rl_pit: PPO: update …" in printed.err
    assert printed.out.endswith("nothing is written\n") and not (tmp_path / "all").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds=1,1"], "--seeds: got '1,1', expected different whole numbers"),
        (["--seeds=1;2"], "--seeds: got '1;2'"),
        (["--seeds=1", "--gin.SEED=2"], "--gin.SEED: --seeds says it"),
        (["--vary=rl_pit"], "--vary: got 'rl_pit', expected NAME:FILE.gin"),
        (["--vary=a b:x.gin"], "--vary: got 'a b:x.gin', expected NAME"),
        (["--vary=base:SEED=1"], "--vary: got the name 'base' again"),
        (["--vary=a:nothing"], "--vary: a: got 'nothing', expected a gin file or NAME=VALUE"),
        (["--vary=a:none.gin"], "--gin_file: none.gin not found"),
        (["--vary=a:SEED=1"], "--vary: a changes RunConfig.seed, expected changes of stages"),
        (["--vary=a:BATCH_SIZE=8"], "--vary: a changes no stage"),
        (["--vary=a:EvaluationConfig.split='dev'"], "--vary: a changes the evaluation"),
        (["--vary=a:PPOConfig.bta=1"], "--gin.PPOConfig.bta: there is no such setting"),
        (["--vary=a:rl_pit/RLStage.reward_model='rm_gp'"], "stage rl_pit_a: reward_model is"),
        (["--transfer=none.gin"], "none.gin not found"),
        (["--distributed", "--topology=cpu"], "--topology: got it with --distributed, expected"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, capsys):
    assert tiny_runs.command("sweep", tmp_path / "run", *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("pit_jax sweep: ") and error.count("\n") == 1, error
    assert message in error and not (tmp_path / "run").exists()


def test_a_variation_is_files_and_bindings():
    found = sweep.variations_of(["a: one.gin; X.y='b=c.gin' ;--gin.Z=(1, 2)", "b:two.gin"])
    assert found == {
        "a": (["one.gin"], [("X.y", "'b=c.gin'"), ("Z", "(1, 2)")]),
        "b": (["two.gin"], []),
    }
    assert sweep.seeds_of("") == [] and sweep.seeds_of("2, 0") == [2, 0]
    with pytest.raises(UserError, match="got the name 'a' again"):
        sweep.variations_of(["a:x.gin", "a:y.gin"])


# --- transfer ------------------------------------------------------------------------------------

SHORT = """
from __gin__ import dynamic_registration
from pit_jax.data import datasets
from pit_jax.data.synthetic import drafts
drafts.DraftsConfig:
    min_steps = {steps}
    max_steps = {steps}
datasets.DatasetConfig:
    kind = 'instructions'
    family = 'drafts'
    level = @drafts.DraftsConfig()
    train_size = 8
    dev_size = 8
    test_size = 12
"""


def dataset(tmp_path, text: str) -> str:
    path = tmp_path / "other.gin"
    path.write_text(text)
    return f"--transfer={path}"


def test_transfer_is_a_table_of_the_report(trained, tmp_path, capsys):
    other, output = dataset(tmp_path, SHORT.format(steps=2)), f"--output={tmp_path / 'out'}"
    assert tiny_runs.command("evaluate", trained, other, output, *FEW) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    own, moved = report["transfer"]
    # The run's own row is what its tables have.
    table1 = next(row for row in report["comparisons"] if row["name"] == "PIT vs Original")
    assert {**own, "group": "table1"} | table1 == {**own, "group": "table1"}
    assert own["gap_model"]["accuracy"] == report["reward_models"][1]["accuracy"]
    assert (own["n"], moved["n"], moved["gap_model"]["n"]) == (20, 12, 12)
    assert own["evaluated_on"] == own["trained_on"] == moved["trained_on"] == "instructions_drafts"
    assert moved["evaluated_on"] == f"instructions_drafts ({tmp_path / 'other.gin'})"
    assert (moved["read"], moved["too_long"], moved["seen"], own["seen"]) == (28, 0, 0, 0)
    assert moved["judge"] == "checker" and moved["ci_low"] <= moved["delta"] <= moved["ci_high"]
    page = (tmp_path / "out" / "report.md").read_text()
    assert "## Transfer" in page and "other.gin" in page.partition("## Transfer")[2]
    assert re.search(r"^PIT on .*R_PIT right %", printed, re.M)
    assert "--transfer=" in report["command"]


def test_prompts_that_were_seen_and_pairs_that_dont_fit_are_counted():
    """Three of four prompts are of the training data; 5 + 2 pairs are too long."""

    def examples(*prompts):
        return [types.SimpleNamespace(prompt=prompt) for prompt in prompts]

    dropped = {"prompt too long": 5, "chosen too long": 2, "identical responses": 9}
    data = types.SimpleNamespace(
        digest="abc",
        examples=lambda split: {"train": examples("a", "b", "c")}[split],
        report=lambda: {"read": 40, "dropped": dropped},
    )
    run = types.SimpleNamespace(
        data=data, config=types.SimpleNamespace(dataset=types.SimpleNamespace(name="own"))
    )
    traces = [types.SimpleNamespace(responses=["y", "better"])] * 4
    given = []
    suite = types.SimpleNamespace(
        responses=types.SimpleNamespace(prompts=["a", "b", "a", "x"]),
        policy=lambda stage, temperature: ["y"] * 4,
        improved=lambda stage, temperature, iterations: traces,
        with_verdicts=lambda make: make(),
        tables=types.SimpleNamespace(compare=lambda *sides: given.append(sides) or {"delta": 1.0}),
        pairs=types.SimpleNamespace(gap_row=lambda *row: row, gap_rewards=lambda stage: stage),
    )
    config = EvaluationConfig(temperatures=(0.4, 1.0))
    (row,), told = transfer.rows(suite, run, config, {})
    assert told == []
    assert row == {
        "trained_on": "own",
        "evaluated_on": "own",
        "data_digest": "abc",
        "delta": 1.0,
        "gap_model": ("R_PIT", "rm_gap"),
        "read": 40,
        "too_long": 7,
        "seen": 3,
    }
    ((temperature, _, pit, original),) = given
    assert (temperature, pit.kind, original.kind) == (0.4, "pit", "original")
    assert pit.responses == ["better"] * 4


def test_what_a_judge_warns_of_on_another_dataset_is_told(monkeypatch):
    other = types.SimpleNamespace(
        config=types.SimpleNamespace(dataset=types.SimpleNamespace(name="there"))
    )
    there = types.SimpleNamespace(judging=lambda: {"warnings": ["3 of 9 are unjudged"]})
    monkeypatch.setattr(transfer, "Suite", lambda run, config: there)
    monkeypatch.setattr(transfer, "_row", lambda suite, run, config, name, seen: {"on": name})
    data = types.SimpleNamespace(examples=lambda split: [])
    run = types.SimpleNamespace(data=data, config=other.config)
    rows, told = transfer.rows(None, run, EvaluationConfig(), {"other.gin": other})
    assert [row["on"] for row in rows] == ["there", "there (other.gin)"]
    assert told == ["on there (other.gin): 3 of 9 are unjudged"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SHORT.format(steps=6), "nothing is left of split 'test', .* read: .*too long"),
        (
            "include 'gin/tasks/requirements.gin'\n",
            r"\d+% of the tokens of its test split are unknown to the run's vocabulary 'words:dra",
        ),
        ("include 'gin/tasks/hh.gin'\n", "HH_PATH isn't set"),
        ("", "DatasetConfig has no value for 'kind'"),
    ],
)
def test_what_cant_be_transferred_is_refused(text, message, trained, tmp_path, capsys):
    other = dataset(tmp_path, text)
    assert tiny_runs.command("evaluate", trained, other, "--dry_run") == 2
    error = capsys.readouterr().err
    assert error.startswith("pit_jax evaluate: ") and error.count("\n") == 1, error
    assert re.search(message, error), error


def test_the_dataset_of_another_run_is_taken_from_its_configuration(trained):
    from pit_jax.data.datasets import DatasetConfig

    roots = (RunConfig, DatasetConfig, EvaluationConfig)
    found = bindings.read_part(str(trained / "config.gin"), "dataset", roots)
    assert found == tiny_runs.DATASET
