"""Two processes of two devices each train what one process of four devices trains."""

from __future__ import annotations

import functools
import json
import re
import shutil
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from pit_jax import cli, commands
from pit_jax.run import run as runs
from tests import tiny_runs
from tests.child_environment import child_environment

pytestmark = [pytest.mark.mesh, pytest.mark.no_cover]

# Trained beside two stages that are there: the last learns from references that it samples first,
# and has a checkpoint chosen, of one.
SHORT = """
from pit_jax.method import choice
rl_pit/stages.RLStage.keep_every = 4
rl_pit/stages.RLStage.choice = @choice.Choice()
choice.Choice.num_prompts = 3
run_config.RunConfig.stages = (
    @pretrain/stages.SupervisedStage(), @rm_policy/stages.RewardStage(),
    @rm_gap/stages.RewardStage(), @rl_pit/stages.RLStage())
rl_pit/stages.RLStage.initial = 'pretrain'
rl_pit/stages.RLStage.reference = 'pretrain'
rl_pit_1/curriculum.Round.policy = 'pretrain'
rl_pit/loop.LoopConfig:
    checkpoint_every = 0
    log_every = 2
suite.EvaluationConfig:
    sft = 'pretrain'
    policy = 'pretrain'
"""
THERE = ("pretrain", "rm_policy")
STAGES = ("rm_gap", "rl_pit")
# `python -m pit_jax`, but that REPORT leaves the report out, and that something happens to the
# process whose index is in a variable: SIGNALLED gets SIGTERM in the second step of PPO, KILLED
# gets SIGKILL once METRICS is there, SLOW is 40 s late with its mesh, FAILS has an error there.
DRIVER = """
import os, pathlib, signal, sys, threading, time
from pit_jax import cli, commands
from pit_jax.method import ppo_step
from pit_jax.run import run as runs

make_step = ppo_step.make_step

def interrupted(*arguments):
    step = make_step(*arguments)

    def run(state, batch, number):
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
        return step(state, batch, number)

    return run

def is_me(name):
    return os.environ["PIT_JAX_PROCESS_INDEX"] == os.environ.get(name)

def die():
    while not pathlib.Path(os.environ["METRICS"]).exists():
        time.sleep(0.1)
    pathlib.Path(os.environ["METRICS"]).with_name("died").write_text(str(time.time()))
    os.kill(os.getpid(), signal.SIGKILL)

class Late(runs.Partitioner):
    def __init__(self, *arguments):
        time.sleep(40 * is_me("SLOW"))
        if is_me("FAILS"):
            died = pathlib.Path(os.environ["METRICS"]).with_name("died")
            died.parent.mkdir(parents=True)
            died.write_text(str(time.time()))
            raise RuntimeError("out of luck")
        super().__init__(*arguments)

runs.Partitioner = Late
if is_me("KILLED"):
    threading.Thread(target=die, daemon=True).start()
if is_me("SIGNALLED"):
    ppo_step.make_step = interrupted
if "REPORT" not in os.environ:
    commands._report = lambda *arguments: None
sys.exit(cli.main())
"""


def bring(trained, folder):
    for name in THERE:
        shutil.copytree(trained / name, folder / name)


def together(folder, *arguments, command="run", count=2, **environment):
    """A command as some processes, of 4 devices in all: exit statuses, each's output and errors."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment |= {
        "PIT_JAX_COORDINATOR": f"localhost:{port}",
        "PIT_JAX_PROCESS_COUNT": str(count),
    }
    words = [sys.executable, "-c", DRIVER, command, *["--distributed"] * (count > 1)]
    words += [f"--gin_file={folder.with_name('short.gin')}", f"--gin.MODEL_DIR='{folder}'"]
    started = [
        subprocess.Popen(
            [*words, *arguments],
            env=child_environment(4 // count, **environment, PIT_JAX_PROCESS_INDEX=str(index)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=900) for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], outputs


def alone(folder, gin, report=False):
    """The same as one process, with four devices."""
    file = folder.with_name("short.gin")
    file.write_text(gin)
    with pytest.MonkeyPatch.context() as patch:
        run = functools.partial(runs.Run, devices=jax.devices()[:4])
        patch.setattr(runs, "Run", run)
        if not report:
            patch.setattr(commands, "_report", lambda *arguments: None)
        assert cli.main(["run", f"--gin_file={file}", f"--gin.MODEL_DIR='{folder}'"]) == 0


def is_silent(output):
    """Whether nothing but the library under CPU collectives printed."""
    return not re.search("pretrain|rm_policy|rm_gap|rl_pit|report|step", output)


def assert_equal_metrics(one, two, stages):
    for name in stages:
        first, second = (tiny_runs.records(f / name / "metrics.jsonl") for f in (one, two))
        assert [r["step"] for r in first] == [r["step"] for r in second]
        for a, b in zip(first, second, strict=True):
            assert a.keys() == b.keys()
            for key, value in a.items():
                if isinstance(value, dict):  # sampled texts
                    assert all(b[key][k] == text for k, text in value.items() if k in b[key])
                else:
                    np.testing.assert_allclose(value, b[key], rtol=1e-5, atol=1e-5, err_msg=key)
        result = json.loads((two / name / "result.json").read_text())
        assert result["steps"] == first[-1]["step"]
        for shard in (one / name).glob("references/*/shard-*.jsonl"):
            assert shard.read_text() == (two / shard.relative_to(one)).read_text()


def test_two_processes_are_one_also_when_interrupted(trained, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        bring(trained, folder)
    alone(one, tiny_runs.GIN + SHORT)

    # Only one of them is told to stop; they stop together.
    statuses, printed = together(two, SIGNALLED="1")
    assert statuses == [143, 143], printed
    for _, errors in printed:
        # gRPC may have the last words, several lines of them, where the first process ended first.
        assert "interrupted; the same command continues at step 3" in errors.splitlines()
    assert "sampling references of round 1" in printed[0][0] and is_silent(printed[1][0])
    found = sorted(path.name for path in (two / "rl_pit" / "checkpoints").iterdir())
    assert found == ["1", "3"]
    assert not (two / "rl_pit" / "result.json").exists()

    statuses, printed = together(two)
    assert statuses == [0, 0], printed
    assert re.findall(r"^(\w+): complete, skipped$", printed[0][0], re.M) == [*THERE, "rm_gap"]
    assert "rl_pit: continues at step 3" in printed[0][0] and is_silent(printed[1][0])
    assert_equal_metrics(one, two, STAGES)
    choices = [json.loads((f / "rl_pit" / "choice.json").read_text()) for f in (one, two)]
    (rows,) = zip(*(choice.pop("checkpoints") for choice in choices), strict=True)
    assert rows[0] == pytest.approx(rows[1], rel=1e-4, abs=1e-4)
    texts = [re.findall(r'"text": "[^"]*"', json.dumps(choice)) for choice in choices]
    assert len(texts[0]) == 3 and texts[0] == texts[1]


LAYOUTS = {
    "2 x 2": (2, ()),
    "1 x 4": (1, ()),
    "2 slices": (1, ("--gin.MeshConfig.slices=2",)),
    "2 x 2, model": (2, ("--gin.MeshConfig.model=2",)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"),
    [("2 x 2", "2 slices"), ("1 x 4", "2 x 2"), ("2 slices", "2 x 2, model")],
)
def test_what_was_interrupted_goes_on_in_another_layout(first, then, trained, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        bring(trained, folder)
    alone(one, tiny_runs.GIN + SHORT)
    count, flags = LAYOUTS[first]
    statuses, printed = together(other, *flags, count=count, SIGNALLED="0")
    assert statuses == [143] * count, printed
    count, flags = LAYOUTS[then]
    statuses, printed = together(other, *flags, count=count)
    assert statuses == [0] * count, printed
    assert re.search(r"^rl_pit: continues at step [23]$", printed[0][0], re.M)
    assert_equal_metrics(one, other, STAGES)


@pytest.mark.slow
@pytest.mark.parametrize("model", [1, 4])
def test_every_stage_and_the_report_of_two_processes(model, tmp_path):
    """With 4, the model axis is over both processes: each holds a part, and every row."""
    one, two = tmp_path / "one", tmp_path / "two"
    # The model axis has to divide the heads.
    alone(one, tiny_runs.GIN.replace("num_heads = 2", "num_heads = 4"), report=True)
    statuses, printed = together(two, f"--gin.MeshConfig.model={model}", REPORT="1")
    assert statuses == [0, 0], printed
    assert f"report: {two / 'report.html'}" in printed[0][0] and is_silent(printed[1][0])
    assert_equal_metrics(one, two, [stage.name for stage in tiny_runs.config(one).stages])
    reports = [json.loads((folder / "report.json").read_text()) for folder in (one, two)]
    assert reports[0]["num_prompts"] == reports[1]["num_prompts"]
    gaps = [[gap for row in each["samples"] for gap in row.pop("gaps")] for each in reports]
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-4)  # sums are in another order
    assert reports[0]["samples"] == reports[1]["samples"]


@pytest.mark.slow
def test_two_processes_sweep_together(trained, tmp_path):
    """Two seeds, of which one has its first stage, and a variation; then a report is missing."""
    folder = tmp_path / "two"
    (tmp_path / "short.gin").write_text(tiny_runs.GIN + SHORT)
    bring(trained, folder / "seed0")
    few = [f"--gin.EvaluationConfig.{each}" for each in ("sweep=()", "best_of=0", "iterations=1")]
    few += ["--gin.EvaluationConfig.self_refine=False", "--gin.EvaluationConfig.num_prompts=4"]
    words = ("--seeds=0,1", "--vary=weak: rl_pit/PPOConfig.beta=0.02", *few)
    statuses, printed = together(folder, *words, command="sweep", REPORT="1")
    assert statuses == [0, 0], printed
    assert is_silent(printed[1][0]) and re.search(r"^to train +8 of 10 st", printed[0][0], re.M)
    combined = json.loads((folder / "report.json").read_text())
    assert combined["seeds"] == [0, 1]
    names = [row["name"] for row in combined["comparisons"] if row["group"] == "table2"]
    assert names == ["weak vs Original", "PIT vs weak"]
    for seed in (0, 1):
        result = json.loads((folder / f"seed{seed}" / "rl_pit_weak" / "result.json").read_text())
        assert result["steps"] == 4
        assert not list((folder / f"seed{seed}").glob("owner.lock*"))

    (folder / "seed1" / "report.json").unlink()
    stamp = (folder / "seed0" / "report.json").stat().st_mtime_ns
    statuses, printed = together(folder, *words, command="sweep", REPORT="1")
    assert statuses == [0, 0], printed
    assert re.search(rf"{folder}/seed0:\n(\[Gloo.*\n)*complete, skipped", printed[0][0])
    assert is_silent(printed[1][0])
    assert f"report: {folder / 'seed1' / 'report.html'}" in printed[0][0]
    assert (folder / "seed0" / "report.json").stat().st_mtime_ns == stamp
    again = json.loads((folder / "report.json").read_text())
    assert again["comparisons"] == combined["comparisons"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("happens", "victim", "line"),
    [
        ("KILLED", 0, "has died: its connection was closed"),
        ("KILLED", 1, "has died: its connection was closed"),
        ("FAILS", 1, "has ended with exit status 1"),
    ],
)
def test_the_death_of_one_process_ends_the_other_which_names_it(happens, victim, line, tmp_path):
    """The other one starts late before, which is no death and breaks nothing."""
    folder = tmp_path / "two"
    (tmp_path / "short.gin").write_text(tiny_runs.GIN)
    many = ("--gin.STAGE=pretrain", "--gin.pretrain/stages.SupervisedStage.steps=100000")
    told = {happens: str(victim), "METRICS": str(folder / "pretrain" / "metrics.jsonl")}
    if happens == "KILLED":
        told["SLOW"] = str(1 - victim)
    mesh = "--gin.MeshConfig.model=2"
    statuses, printed = together(folder, *many, mesh, command="train", **told)
    assert time.time() - float((folder / "pretrain" / "died").read_text()) < 30
    assert statuses[1 - victim] == 1 and statuses[victim] == (-9 if happens == "KILLED" else 1)
    assert [e for e in printed[1 - victim][1].splitlines() if "Gloo" not in e] == [
        f"pit_jax: process {victim} on {socket.gethostname()} {line}; what was written stays, the "
        "same command goes on"
    ]


def test_hosts_must_share_the_run_directory(tmp_path):
    """Each process is given a folder of its own; both say what is wrong."""
    (tmp_path / "short.gin").write_text(tiny_runs.GIN + SHORT)
    driver = DRIVER.replace(
        "sys.exit(cli.main())",
        "sys.exit(cli.main([a.replace('INDEX', os.environ['PIT_JAX_PROCESS_INDEX'])"
        " for a in sys.argv[1:]]))",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "DRIVER", driver)
        statuses, printed = together(tmp_path / "INDEX")
    assert statuses == [2, 2]
    for _, errors in printed:
        assert "pretrain: not every process sees the first one's files" in errors
