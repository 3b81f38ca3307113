"""A run directory in a bucket: every file but orbax's own goes through what buckets can do."""

from __future__ import annotations

import shutil
from functools import partial

import jax
import pytest

from pit_jax import cli
from pit_jax.run import pipeline
from pit_jax.run import run as runs
from pit_jax.run.run import Run
from tests import fake_bucket, tiny_runs

pytestmark = pytest.mark.no_cover


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_run_on_a_disk(trained, tmp_path, monkeypatch, capsys):
    fake_bucket.install(monkeypatch, tmp_path)
    folder = tmp_path / "bucket" / "run"
    # A stage of each kind is trained there; the others are there already.
    here = ("pretrain", "rm_gap", "rl_pit")
    for stage in tiny_runs.config(folder).stages:
        if stage.name not in here:
            shutil.copytree(trained / stage.name, folder / stage.name)
    file = tmp_path / "tiny.gin"
    file.write_text(tiny_runs.GIN)
    arguments = ["run", f"--gin_file={file}", "--gin.MODEL_DIR='gs://bucket/run'"]
    monkeypatch.setattr(runs, "Run", partial(Run, devices=jax.devices()[:1]))
    assert cli.main([*arguments, "--gin.RunConfig.tensorboard=True"]) == 0
    assert "report: gs://bucket/run/report.html" in capsys.readouterr().out
    for path in sorted(trained.rglob("*")):
        name = path.relative_to(trained)
        if "checkpoints" not in name.parts:
            assert (folder / name).exists(), name
    for name in here:
        one, two = (tiny_runs.records(f / name / "metrics.jsonl") for f in (trained, folder))
        assert one == two
        assert list((folder / name / "tensorboard").glob("events.out.tfevents.*"))
    assert not list(folder.rglob("*.tmp"))

    # The same command finds it complete; a stage of another run starts from it.
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.count(": complete, skipped") == 7
    stage = tiny_runs.supervised("sft_policy", initial="gs://bucket/run/pretrain")
    run = tiny_runs.on_one_device(tiny_runs.config("gs://bucket/other", stages=(stage,)))
    assert pipeline.train(run, "sft_policy")["steps"] == 2
    records = tiny_runs.records(tmp_path / "bucket" / "other" / "sft_policy" / "metrics.jsonl")
    assert records == tiny_runs.records(trained / "sft_policy" / "metrics.jsonl")
