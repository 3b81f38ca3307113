"""The command `train`, and the `config.gin` that a run directory keeps of it."""

from __future__ import annotations

import dataclasses
import re
import shutil

from etils import epath

import gin
from pit_jax.evaluation import curves
from pit_jax.evaluation.suite import EvaluationConfig
from pit_jax.report import cautions
from pit_jax.run import directory
from pit_jax.run.config import RunConfig
from tests import tiny_runs


def test_train_trains_one_stage(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained / "pretrain", folder / "pretrain")
    assert tiny_runs.command("train", folder, "--gin.STAGE='sft_policy'") == 0
    assert re.search(r"^sft_policy: 2 steps in \d+ s; .*loss [\d.]+", capsys.readouterr().out, re.M)
    records = tiny_runs.records(folder / "sft_policy" / "metrics.jsonl")
    assert records == tiny_runs.records(trained / "sft_policy" / "metrics.jsonl")
    config = (folder / "config.gin").read_text()
    assert "sft_policy/train_state.OptimizerConfig.learning_rate = 0.003" in config
    assert not (folder / "rm_gap").exists() and not (folder / "report.json").exists()


def test_after_an_explosion_a_stage_goes_on_with_a_lower_rate(trained, tmp_path, capsys):
    """The third step ruins the parameters, by the rate that the stage is made to have had."""
    folder, arguments = tmp_path / "run", ("--gin.STAGE='pretrain'",)
    shutil.copytree(trained / "pretrain", folder / "pretrain")
    (folder / "pretrain" / "result.json").unlink()
    shutil.rmtree(folder / "pretrain" / "checkpoints" / "4")
    path = epath.Path(folder / "pretrain" / "stage.json")
    stage = directory.read_json(path)
    text = stage["settings"]["pretrain"].replace("learning_rate=0.003", "learning_rate=1e+30")
    directory.write_json(path, stage | {"settings": stage["settings"] | {"pretrain": text}})

    huge = "--gin.pretrain/OptimizerConfig.learning_rate=1e30"
    assert tiny_runs.command("train", folder, *arguments, huge) == 1
    assert capsys.readouterr().err == (
        "pit_jax train: step 4: loss or gradient was not finite in the last step; stopped. To go "
        "on from step 2, lower the learning rate and give --allow_change. Or look at the batch's "
        "data\n"
    )
    assert tiny_runs.command("train", folder, *arguments) == 2
    told = "pretrain.optimizer.learning_rate 1e+30 -> 0.003"
    output = capsys.readouterr().err
    assert f"{told}. Go back to them, give `run` or `train` --allow_change" in output
    assert output.count("\n") == 1
    assert tiny_runs.command("train", folder, *arguments, "--allow_change", "--dry_run") == 0
    assert f"pretrain: would go on with {told}\n" in capsys.readouterr().out
    assert "changes" not in directory.read_json(path)

    assert tiny_runs.command("train", folder, *arguments, "--allow_change") == 0
    output = capsys.readouterr().out
    assert f"pretrain: goes on with {told}\npretrain: continues at step 2\n" in output
    name = "pretrain.optimizer.learning_rate"
    changes = [{"step": 2, "name": name, "from": 1e30, "to": 0.003}]
    assert directory.read_json(path)["changes"] == changes
    expected = tiny_runs.result(trained / "pretrain") | {"changes": changes}
    assert tiny_runs.result(folder / "pretrain") == expected
    files = (f / "pretrain" / "metrics.jsonl" for f in (trained, folder))
    one, two = map(tiny_runs.records, files)
    assert one == two


def test_a_stage_whose_records_are_cut_off_goes_on_without_when_asked(trained, tmp_path, capsys):
    """It is ended after its second step of four; the first two lines are then what it has."""
    folder, arguments = tmp_path / "run" / "pretrain", ("--gin.STAGE='pretrain'",)
    shutil.copytree(trained / "pretrain", folder)
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "checkpoints" / "4")
    path = folder / "metrics.jsonl"
    first, second, *_ = path.read_bytes().splitlines(keepends=True)
    for left, got in ((first, 1), (b"", 0)):
        path.write_bytes(left)
        assert tiny_runs.command("train", tmp_path / "run", *arguments) == 2
        assert capsys.readouterr().err == (
            f"pit_jax train: {path}: is damaged, got {got} records, expected 2; bring it back from "
            "a copy, or rename it to metrics.jsonl.damaged to go on with the records that can be "
            "read, which only the curves have\n"
        )
    aside = path.rename(folder / "metrics.jsonl.damaged")
    aside.write_bytes(b"{" + first + second)
    assert tiny_runs.command("train", tmp_path / "run", *arguments) == 0
    output = capsys.readouterr().out
    assert "pretrain: continues at step 2\npretrain: goes on without 1 of its records\n" in output
    assert tiny_runs.result(folder) == tiny_runs.result(trained / "pretrain")
    records = tiny_runs.records(path)
    assert records == tiny_runs.records(trained / "pretrain" / "metrics.jsonl")[1:]
    (row,) = curves.stages(tiny_runs.on_one_device(tiny_runs.config(tmp_path / "run")))
    assert row["damaged"] and "records" not in row
    assert cautions.cautions({"stages": [row]}) == [
        "the records of pretrain were damaged: its curves show those that were left"
    ]


def without_model_dir(path):
    return re.sub(r"^MODEL_DIR = (\\\n)?.*\n", "", path.read_text(), flags=re.M)


def test_a_runs_config_trains_it_again(trained, tmp_path):
    folder = tmp_path / "elsewhere"
    config = (trained / "config.gin").read_text()
    assert tiny_runs.command("train", folder, "--gin.STAGE='pretrain'", gin=config) == 0
    records = tiny_runs.records(folder / "pretrain" / "metrics.jsonl")
    assert records == tiny_runs.records(trained / "pretrain" / "metrics.jsonl") != []
    assert without_model_dir(folder / "config.gin") == without_model_dir(trained / "config.gin")


def test_a_runs_config_has_the_bindings_of_its_command_line(tmp_path):
    """Of a macro, of one stage and of all; expected is what tiny_runs makes without gin."""
    folder = tmp_path / "run"
    bindings = ("SEED=3", "pretrain/SupervisedStage.steps=1", "LoopConfig.checkpoint_every=0")
    arguments = ["--gin.STAGE='pretrain'", *(f"--gin.{binding}" for binding in bindings)]
    assert tiny_runs.command("train", folder, *arguments) == 0
    gin.clear_config()
    gin.parse_config_file(str(folder / "config.gin"))
    gin.finalize()
    plain = tiny_runs.config(folder, seed=3)
    stages = [
        dataclasses.replace(stage, loop=dataclasses.replace(stage.loop, checkpoint_every=0))
        for stage in plain.stages
    ]
    stages[0] = dataclasses.replace(stages[0], steps=1)
    assert gin.get_configurable(RunConfig)() == dataclasses.replace(plain, stages=tuple(stages))
    evaluation = EvaluationConfig(
        split="test", temperatures=(1.0,), sweep=(1.0,), iterations=2, num_samples=2
    )
    assert gin.get_configurable(EvaluationConfig)() == evaluation


def test_a_network_with_the_fields_of_t5x(tmp_path, capsys):
    folder = tmp_path / "run"
    fields = {"scale_attention": False, "scale_logits": True, "positions": "relative"}
    settings = [f"--gin.NetworkConfig.{name}={value!r}" for name, value in fields.items()]
    settings += ["--gin.STAGE='pretrain'", "--gin.pretrain/stages.SupervisedStage.steps=1"]
    assert tiny_runs.command("train", folder, *settings, "--dry_run") == 0
    # 2,864 with rotary positions; 32 buckets for each of 2 heads.
    assert re.search(r"^(pretrain +){2}1 +8 +2,928 ", capsys.readouterr().out, re.M)
    assert tiny_runs.command("train", folder, *settings) == 0
    assert (folder / "pretrain" / "result.json").exists()
