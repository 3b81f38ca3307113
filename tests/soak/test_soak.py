"""The short form of the soak: one stage that is killed and damaged. The long one is `run`."""

from __future__ import annotations

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import pytest

from tests.child_environment import ROOT
from tests.soak import compare, damages

pytestmark = pytest.mark.no_cover  # what it runs is in other processes


def test_a_stage_that_is_killed_and_damaged_ends_as_one_that_is_not(trained, tmp_path):
    command = [sys.executable, "-m", "tests.soak.run", f"--short={trained}"]
    command += [f"--work={tmp_path / 'work'}", f"--out={tmp_path / 'soak.json'}"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "soak.json").read_text())
    assert not found["faults"] and found["counts"]["ends compared"] == 1
    assert found["counts"]["kills"] >= 2 and found["counts"]["damages"] >= 3


@pytest.fixture
def pair(trained, tmp_path):
    """The finished run, and a copy of two of its stages."""
    for stage in ("rm_policy", "rl_pit"):
        shutil.copytree(trained / stage, tmp_path / "run" / stage)
    return trained, tmp_path / "run"


def rewritten(path: pathlib.Path, change) -> None:
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("result.json", lambda t: t.replace('"digest": "', '"digest": "0'), "result.json.digest"),
        ("result.json", lambda t: t.replace('"seconds": ', '"seconds": 9'), ""),
        ("metrics.jsonl", lambda t: t.split("\n", 1)[1], "steps [2, 3, 4, 5, 6], expected [1, 2"),
        ("metrics.jsonl", lambda t: t + t.split("\n")[-2] + "\n", "steps [1, 2, 3, 4, 5, 6, 6]"),
        ("metrics.jsonl", lambda t: t.replace('"loss": 0', '"loss": 1', 1), "rm_policy@1.loss"),
    ],
)
def test_the_comparison_sees(file, change, told, pair):
    rewritten(pair[1] / "rm_policy" / file, change)
    lines = compare.differences(*pair, stages=("rm_policy", "rl_pit"))
    assert bool(lines) == bool(told) and all(told in line for line in lines), lines


def test_the_comparison_sees_references_and_what_is_left(pair):
    shard = pair[1] / "rl_pit" / "references" / "round-1" / "shard-00000.jsonl"
    rewritten(shard, lambda text: text + "\n")
    (pair[1] / "rm_policy" / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()
    assert compare.differences(*pair, stages=("rm_policy", "rl_pit")) == [
        "rm_policy: left 9.orbax-checkpoint-tmp",
        "rl_pit/references/round-1/shard-00000.jsonl: other bytes",
    ]


def test_where_a_run_is(pair):
    folder = pair[1]
    for name in compare.STAGES:
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "result.json").touch()
    assert compare.where(folder, "evaluating …\n").doing == "evaluating"
    (folder / "rm_policy" / "result.json").unlink()
    shutil.rmtree(folder / "rm_policy" / "checkpoints" / "6")
    assert compare.where(folder, "") == ("rm_policy", "training", 6, 4, False)
    (folder / "rm_policy" / "checkpoints" / "6.orbax-checkpoint-tmp").mkdir()
    assert compare.where(folder, "") == ("rm_policy", "saving", 6, 4, True)
    later = time.time() + 9
    assert compare.where(folder, "", later).doing == "start-up"
    assert compare.where(folder, "sft_pit: complete, skipped\n", later).doing == "loading"
    told = "rm_policy: sampling references of round 1\n"
    assert compare.where(folder, told).doing == "sampling"


def test_a_remedy_is_followed(pair):
    folder, draw = pair[1], random.Random(0)
    made = damages.Damages(folder, draw)
    shard = folder / "rl_pit" / "references" / "round-1" / "manifest.json"
    before = shard.read_bytes()
    made._write(shard, b"{}")
    line = f"pit_jax run: {shard}: is damaged, x; bring it back from a copy"
    assert made.remedy(line) == "copy" and shard.read_bytes() == before
    assert made.remedy(line) == ""  # there is nothing to bring back any more
    line = f"pit_jax run: {shard}: is damaged, x; delete {shard.parent} to sample the references"
    assert made.remedy(line) == "delete folder" and not shard.parent.exists()
    line = f"pit_jax run: {folder}/rm_policy: holds a stage; or delete the folder to train"
    assert made.remedy(line) == "delete folder" and not (folder / "rm_policy").exists()
    metrics = folder / "rl_pit" / "metrics.jsonl"
    made._write(metrics, b'{"step": 1}\n{"st\n{"step": 3}\n')
    assert not made.curves
    line = f"pit_jax run: {metrics}:2: is damaged, x, or rename it to metrics.jsonl.damaged to y"
    aside = metrics.with_name("metrics.jsonl.damaged")
    assert made.remedy(line) == "set records aside" and made.curves == {"rl_pit"}
    assert not metrics.exists() and aside.read_bytes().startswith(b'{"step": 1}\n{"st')
    aside.unlink()
    line = f"pit_jax run: {metrics}: not found, x, or make an empty file {aside.name} beside it"
    assert made.remedy(line) == "set records aside" and aside.read_bytes() == b""


def test_every_kind_of_damage_changes_a_file(pair):
    made, seen = damages.Damages(pair[1], random.Random(1)), set()
    for _ in range(120):
        if what := made.damage():
            seen.add((what["kind"], what["how"]))
    assert {how for _, how in seen} == set(damages.HOW)
    assert {kind for kind, _ in seen} >= {"checkpoint", "result.json", "references"}
    assert os.fspath(pair[1])
