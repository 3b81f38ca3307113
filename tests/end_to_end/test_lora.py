"""All stages by adapters on one backbone, from the command line, interrupted, and on a mesh."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil

import jax
import numpy as np
import pytest

from pit_jax.errors import UserError
from pit_jax.method.choice import Choice
from pit_jax.models import adapters
from pit_jax.models.config import LoraConfig
from pit_jax.run import pipeline, stage_training, stages
from pit_jax.run.run import Run
from pit_jax.runtime import metrics
from pit_jax.runtime.checkpoints import Checkpoints
from pit_jax.runtime.partitioning import MeshConfig
from tests import tiny_runs

pytestmark = [pytest.mark.slow, pytest.mark.no_cover]

LORA = LoraConfig(rank=3, alpha=6.0, targets="attention/(query|value|out)|mlp/.*")
NETWORK = dataclasses.replace(tiny_runs.NETWORK, lora=LORA)
INCLUDE = "include 'gin/stages/all.gin'"
GIN = (
    tiny_runs.GIN.replace(INCLUDE, f"{INCLUDE}\ninclude 'gin/lora.gin'")
    + """
config.LoraConfig:
    rank = 3
    alpha = 6.0
    targets = 'attention/(query|value|out)|mlp/.*'
suite.EvaluationConfig:
    iterations = 1
    self_refine = False
"""
)
ADAPTED = ("sft_policy", "sft_pit", "rm_policy", "rm_gap", "rl_policy", "rl_pit")
# A layer of width 16: three kernels of 16 x 16 in attention and three in the MLP, of rank 3.
OWN = 6 * 3 * (16 + 16)


@pytest.fixture(scope="module")
def adapted(trained, tmp_path_factory):
    """The tiny run by adapters, on the warm-up of the one that is trained whole."""

    def make(folder):
        shutil.copytree(trained / "pretrain", folder / "pretrain")
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert tiny_runs.command("run", folder, gin=GIN) == 0
        assert "pretrain: complete, skipped" in said.getvalue()  # it has no adapters

    return tiny_runs.once(tiny_runs.shared_folder(tmp_path_factory) / "adapted", make)


def config(folder, **changes):
    return tiny_runs.config(folder, **({"network": NETWORK} | changes))


def copied(adapted, folder, *names):
    """The configuration of a run directory that holds these stages already."""
    for name in names:
        shutil.copytree(adapted / name, folder / name)
    return config(folder)


def result(folder, name):
    return json.loads((folder / name / "result.json").read_text())


def test_every_stage_says_what_it_trained_on_which_backbone(adapted):
    whole = result(adapted, "pretrain")
    assert "backbone" not in whole and "lora" not in whole
    for name in ADAPTED:
        found = result(adapted, name)
        head = 16 * name.startswith("rm")
        assert found["backbone"] == "pretrain"
        assert found["lora"] == dataclasses.asdict(LORA)
        assert found["trained_parameters"] == OWN + head
        assert found["parameters"] == whole["parameters"] + OWN + head
    assert "PIT vs Original" in (adapted / "report.md").read_text()


@pytest.mark.parametrize("name", ADAPTED)
def test_checkpoints_have_what_is_trained_alone(adapted, name):
    step = max(int(each.name) for each in (adapted / name / "checkpoints").iterdir())
    for item in ("model", "rest"):
        saved = json.loads(
            (adapted / name / "checkpoints" / str(step) / item / "_METADATA").read_text()
        )
        names = list(saved["tree_metadata"])
        arrays = [n for n in names if "decoder" in n or "head" in n]
        assert arrays and all("lora_" in n or "'head'" in n or "head" in n for n in arrays)
        assert not [n for n in names if "embedding" in n or "scale" in n]


def test_the_first_ratio_of_every_ppo_step_is_exactly_1(adapted):
    for name in ("rl_policy", "rl_pit"):
        records = tiny_runs.records(adapted / name / "metrics.jsonl")
        assert records and {record["first_ratio_error"] for record in records} == {0.0}
        assert {record["step"]: record["kl"] for record in records}[1] == pytest.approx(0, abs=1e-5)
        assert records[-1]["kl"] != 0


def test_all_models_share_the_arrays_of_one_backbone(adapted):
    run = tiny_runs.on_one_device(config(adapted))
    models = [run.load_frozen(name) for name in ADAPTED]
    assert len({id(model.backbone) for model in models}) == 1
    stage = run.stage("rl_pit")
    for each in (stage, dataclasses.replace(stage, offload_frozen=True)):
        frozen = stage_training.frozen(run, each)(None)
        assert list(frozen.backbones) == ["actor"]
        assert dict(frozen.backbone_of) == dict.fromkeys(
            ("actor", "critic", "reference", "reward"), "actor"
        )
        assert frozen.backbones["actor"] is models[0].backbone
    jax.tree.map(np.testing.assert_array_equal, run.load("pretrain"), models[0].backbone)


class Stopped(Exception):
    """Stands for a crash."""


@pytest.mark.parametrize(
    ("name", "needs", "step"),
    [
        ("sft_pit", ("pretrain",), 1),
        ("rm_policy", ("pretrain",), 3),
        ("rl_policy", ("pretrain", "sft_policy", "rm_policy"), 1),
    ],
)
def test_an_interrupted_stage_goes_on_bit_for_bit(
    adapted, tmp_path, monkeypatch, capsys, name, needs, step
):
    of_run = copied(adapted, tmp_path, *needs)
    (stage,) = (each for each in of_run.stages if each.name == name)
    loop = dataclasses.replace(stage.loop, checkpoint_every=1)
    of_run = tiny_runs.with_stages(of_run, dataclasses.replace(stage, loop=loop))
    write = metrics.JsonlWriter.write

    def write_and_stop(self, number, *args):
        write(self, number, *args)
        if number == step + 1:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(metrics.JsonlWriter, "write", write_and_stop)
        with pytest.raises(Stopped):
            pipeline.train(tiny_runs.on_one_device(of_run), name)
    run = tiny_runs.on_one_device(of_run)
    pipeline.train(run, name)
    assert f"{name}: continues at step {step}" in capsys.readouterr().out
    found, expected = (
        tiny_runs.records(folder / name / "metrics.jsonl") for folder in (tmp_path, adapted)
    )
    assert found == expected
    states = [
        stage_training.restore(each, each.stage(name), each.stage(name).steps)
        for each in (run, tiny_runs.on_one_device(config(adapted)))
    ]
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.mesh
def test_eight_devices_train_as_one_does(adapted, tmp_path):
    """A supervised stage, and the first step of PPO: the same episodes and losses."""
    of_run = copied(adapted, tmp_path, "pretrain", "sft_policy", "rm_policy")
    run = Run(dataclasses.replace(of_run, mesh=MeshConfig(data=4, model=2)))
    for name, steps in (("sft_pit", 2), ("rl_policy", 1)):
        pipeline.train(run, name)
        found, expected = (
            tiny_runs.records(folder / name / "metrics.jsonl")[:steps]
            for folder in (tmp_path, adapted)
        )
        for record, other in zip(found, expected, strict=True):
            assert record.keys() == other.keys()
            for key, value in record.items():
                if isinstance(value, float):
                    np.testing.assert_allclose(value, other[key], rtol=1e-4, atol=1e-5, err_msg=key)
                elif isinstance(value, dict):  # the episodes of the first device
                    assert value and value.items() <= other[key].items()
                else:
                    assert value == other[key]
    backbone = run.load_frozen("sft_pit").backbone
    kernel = backbone["decoder"]["layers"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_data(0).size * 8 == kernel.size


# --- from adapters to whole models and back -----------------------------------------------------


def test_a_stage_that_trains_whole_starts_from_the_merged_model(adapted):
    run = tiny_runs.on_one_device(tiny_runs.config(adapted))  # of a network without adapters
    stage = dataclasses.replace(run.stage("sft_pit"), initial="sft_policy", name="another")
    networks = run.config.networks(stage)
    state = stages.create_state(stage, networks, run.partitioner, jax.random.key(0))
    params = stage_training.start_from(run, stage, state).params
    with_adapters = tiny_runs.on_one_device(config(adapted)).load("sft_policy")
    expected = adapters.merged(with_adapters, LORA)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    up = params["decoder"]["layers"]["mlp"]["up"]["kernel"]
    before = with_adapters.backbone["decoder"]["layers"]["mlp"]["up"]["kernel"]
    assert np.any(up != before)
    # And as a frozen model, such as another run's reference.
    jax.tree.map(np.testing.assert_array_equal, run.load_frozen("sft_policy"), expected)


def test_a_stage_goes_on_with_the_adapters_of_its_initial_one(adapted):
    run = tiny_runs.on_one_device(config(adapted))
    for name, initial in (("sft_pit", "sft_policy"), ("rm_policy", "sft_policy")):
        stage = dataclasses.replace(run.stage(name), initial=initial, name="another")
        networks = run.config.networks(stage)
        state = stages.create_state(stage, networks, run.partitioner, jax.random.key(0))
        params = stage_training.start_from(run, stage, state).params
        own = run.load(initial).own["decoder"]
        jax.tree.map(np.testing.assert_array_equal, params["decoder"], own)
        if name == "rm_policy":
            assert np.any(params["head"]["kernel"])
        own_role = stages.role_of(stage)
        assert stage_training.backbones(run, stage) == {"model": ("pretrain", own_role)}


@pytest.mark.parametrize("initial", ["", "sft_policy"])
def test_what_adapters_cannot_start_from_is_refused(adapted, tmp_path, initial):
    of_run = copied(adapted, tmp_path, "pretrain", "sft_policy")
    stage = tiny_runs.supervised("sft_pit", initial=initial)
    network, message = (
        NETWORK,
        (
            "stage sft_pit: got no initial, expected the stage or path of a model: with "
            "NetworkConfig.lora its matrices stay as they are"
        ),
    )
    if initial:
        network = dataclasses.replace(NETWORK, lora=dataclasses.replace(LORA, alpha=3.0))
        message = "stage sft_pit: got LoraConfig(rank=3, alpha=3.0, "
        initial = str(tmp_path / "sft_policy")
        stage = dataclasses.replace(stage, initial=initial)
    run = tiny_runs.on_one_device(
        tiny_runs.with_stages(dataclasses.replace(of_run, network=network), stage)
    )
    with pytest.raises(UserError) as caught:
        pipeline.train(run, "sft_pit")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_int8_backbones_go_through_ppo(adapted, tmp_path, capsys):
    network = dataclasses.replace(NETWORK, lora=dataclasses.replace(LORA, backbone="int8"))
    of_run = copied(adapted, tmp_path, "pretrain", "sft_policy", "rm_policy")
    run = tiny_runs.on_one_device(dataclasses.replace(of_run, network=network))
    pipeline.train(run, "rl_policy")
    found = result(tmp_path, "rl_policy")
    error = found["quantisation_error"]
    assert f"pretrain: int8, relative error of the matrices {error:.2%}" in capsys.readouterr().out
    assert 0.001 < error < 0.02 and found["lora"]["backbone"] == "int8"
    records = tiny_runs.records(tmp_path / "rl_policy" / "metrics.jsonl")
    assert {record["first_ratio_error"] for record in records} == {0.0}
    kernels = run.load_frozen("rl_policy").backbone["decoder"]["layers"]["mlp"]["up"]
    assert kernels["kernel"].dtype == np.int8 and kernels["kernel_scale"].dtype == np.float32
    # What is exported is what was trained: the rounded matrices.
    loaded = run.load("rl_policy").backbone["decoder"]["layers"]["mlp"]["up"]["kernel"]
    scale = np.asarray(kernels["kernel_scale"])[:, None]
    np.testing.assert_allclose(loaded, np.asarray(kernels["kernel"]) * scale, rtol=1e-6)


def test_a_checkpoint_of_adapters_is_chosen(adapted, tmp_path):
    """Measured on the shared backbone; a step of which nothing is trained yet has no KL."""
    of_run = copied(adapted, tmp_path, "pretrain", "sft_policy", "rm_policy", "rl_policy")
    choice = Choice(num_prompts=8, samples=1)
    stage = dataclasses.replace(of_run.stages[5], choice=choice)
    assert stage.name == "rl_policy"
    run = tiny_runs.on_one_device(tiny_runs.with_stages(of_run, stage))
    pipeline.train(run, "rl_policy")
    made = run.choice("rl_policy")
    assert [row["step"] for row in made["checkpoints"]] == [1, 2]
    assert all(np.isfinite(row["kl"]) and row["kl"] != 0 for row in made["checkpoints"])
    assert run.result("rl_policy")["model_step"] == made["chosen"]


def test_the_states_of_checkpoints_are_small(adapted):
    """The optimizer's moments too are those of adapters."""
    run = tiny_runs.on_one_device(config(adapted))
    for name in ("sft_policy", "rl_policy"):
        stage = run.stage(name)
        state = stages.abstract_state(stage, run.config.networks(stage), run.partitioner)
        own = 2 * OWN + 16 if name == "rl_policy" else OWN
        moments = [x.size for x in jax.tree.leaves(state.train.opt_state) if x.ndim]
        assert sum(x.size for x in jax.tree.leaves(state.train.params)) == own
        assert sum(moments) == 2 * own
    checkpoints = Checkpoints(adapted / "rl_policy" / "checkpoints", read_only=True)
    assert checkpoints.all_steps() == [1, 2]
    checkpoints.close()
