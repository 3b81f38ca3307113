"""Two processes of two devices each train what one process of four devices trains."""

from __future__ import annotations

import functools
import json
import re
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from pit_jax import cli, commands
from pit_jax.run import run as runs
from tests import tiny_runs
from tests.child_environment import child_environment

pytestmark = [pytest.mark.mesh, pytest.mark.no_cover]

# Trained from a pretrain that is there: the last learns from references that it samples first, and
# has a checkpoint chosen, of one.
SHORT = """
from pit_jax.method import choice
rl_pit/stages.RLStage.keep_every = 4
rl_pit/stages.RLStage.choice = @choice.Choice()
choice.Choice.num_prompts = 3
run_config.RunConfig.stages = (
    @pretrain/stages.SupervisedStage(), @rm_gap/stages.RewardStage(), @rl_pit/stages.RLStage())
rl_pit/stages.RLStage.initial = 'pretrain'
rl_pit/stages.RLStage.reference = 'pretrain'
rl_pit_1/curriculum.Round.policy = 'pretrain'
rl_pit/loop.LoopConfig:
    checkpoint_every = 0
    log_every = 2
suite.EvaluationConfig:
    sft = 'pretrain'
    policy = 'pretrain'
    reward_model = 'rm_gap'
"""
STAGES = ("rm_gap", "rl_pit")
# `python -m pit_jax`, but that REPORT leaves the report out, and SIGNALLED gets SIGTERM in the
# second step of PPO.
DRIVER = """
import os, signal, sys, time
from pit_jax import cli, commands
from pit_jax.method import ppo_step

make_step = ppo_step.make_step

def interrupted(*arguments):
    step = make_step(*arguments)

    def run(state, batch, number):
        if number == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
        return step(state, batch, number)

    return run

if os.environ["PIT_JAX_PROCESS_INDEX"] == os.environ.get("SIGNALLED"):
    ppo_step.make_step = interrupted
if "REPORT" not in os.environ:
    commands._report = lambda *arguments: None
sys.exit(cli.main())
"""


def together(folder, *arguments, command="run", **environment):
    """A command as two processes: exit statuses, and what each printed: output, errors."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment |= {
        "PIT_JAX_COORDINATOR": f"localhost:{port}",
        "PIT_JAX_PROCESS_COUNT": "2",
    }
    words = [sys.executable, "-c", DRIVER, command, "--distributed"]
    words += [f"--gin_file={folder.with_name('short.gin')}", f"--gin.MODEL_DIR='{folder}'"]
    started = [
        subprocess.Popen(
            [*words, *arguments],
            env=child_environment(2, **environment, PIT_JAX_PROCESS_INDEX=str(index)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
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
    return not re.search("pretrain|rm_gap|rl_pit|report|step", output)


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
        shutil.copytree(trained / "pretrain", folder / "pretrain")
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
    assert re.findall(r"^(\w+): complete, skipped$", printed[0][0], re.M) == ["pretrain", "rm_gap"]
    assert "rl_pit: continues at step 3" in printed[0][0] and is_silent(printed[1][0])
    assert_equal_metrics(one, two, STAGES)
    choices = [json.loads((f / "rl_pit" / "choice.json").read_text()) for f in (one, two)]
    (rows,) = zip(*(choice.pop("checkpoints") for choice in choices), strict=True)
    assert rows[0] == pytest.approx(rows[1], rel=1e-4, abs=1e-4)
    texts = [re.findall(r'"text": "[^"]*"', json.dumps(choice)) for choice in choices]
    assert len(texts[0]) == 3 and texts[0] == texts[1]


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
    for part in ("samples", "num_prompts"):
        assert reports[0][part] == reports[1][part]


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
