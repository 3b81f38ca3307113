"""Eight simulated devices compute what one does, in every layout, every kind of stage."""

from __future__ import annotations

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import numpy as np
import pytest

from pit_jax import cli, commands
from pit_jax.method import ppo_step, supervised_step
from pit_jax.method.curriculum import Round
from pit_jax.method.environment import Environment, Networks
from pit_jax.method.frozen import Frozen
from pit_jax.run import pipeline, stages
from pit_jax.run.run import Run
from pit_jax.runtime.metrics import compute
from pit_jax.runtime.partitioning import MeshConfig, OnHost, Partitioner
from tests import tiny_runs

pytestmark = [pytest.mark.mesh, pytest.mark.no_cover]

MESH = MeshConfig(data=4, model=2)
NETWORK = tiny_runs.NETWORK
# Sums in another order, in float32.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


LAYOUTS = {
    "data": MeshConfig(),
    "data_and_model": MESH,
    "model": MeshConfig(model=8),
    "slices": MeshConfig(slices=2, data=2, model=2),
    "sequence_parallel": MeshConfig(data=4, model=2, sequence_parallel=True),
}


def everywhere(**quick):
    """(stage, layout): every pair; all but the layouts that are given for a stage are slow."""
    return [
        pytest.param(stage, layout, marks=[] if layout in layouts else pytest.mark.slow)
        for stage, layouts in quick.items()
        for layout in LAYOUTS
    ]


@pytest.fixture(scope="module")
def run(trained):
    return tiny_runs.on_one_device(tiny_runs.config(trained))


@pytest.fixture(scope="module")
def on_mesh(tmp_path_factory):
    """The first stage of the run, trained on eight devices."""
    config = tiny_runs.config(tmp_path_factory.mktemp("mesh"), mesh=MESH)
    run = Run(config)
    pipeline.train(run, "pretrain")
    return run


def test_the_first_stage_has_the_losses_of_one_device(on_mesh, trained):
    one = tiny_runs.records(trained / "pretrain" / "metrics.jsonl")
    eight = tiny_runs.records(on_mesh.directory / "pretrain" / "metrics.jsonl")
    assert len(one) == len(eight) == 4
    for record, other in zip(one, eight):
        assert record.keys() == other.keys()
        for name in ("loss", "token_accuracy", "grad_norm"):
            np.testing.assert_allclose(record[name], other[name], **CLOSE, err_msg=name)
    kernel = on_mesh.load_frozen("pretrain")["decoder"]["layers"]["mlp"]["up"]["kernel"]
    assert (
        len(kernel.sharding.device_set) == 8 and kernel.addressable_data(0).size * 8 == kernel.size
    )


def test_a_stage_trained_on_eight_devices_goes_on_on_one(on_mesh):
    """Parameters come back value for value, and a stage of another mesh is no other settings."""
    config = dataclasses.replace(on_mesh.config, mesh=MeshConfig())
    run = tiny_runs.on_one_device(config)
    pipeline.train(run, "pretrain")
    for one, eight in zip(
        *(jax.tree.leaves(each.load_frozen("pretrain")) for each in (run, on_mesh)), strict=True
    ):
        np.testing.assert_array_equal(one, eight)
        assert len(one.sharding.device_set) == 1


def one_supervised_step(run, stage, partitioner):
    """Metrics of one step, and the parameters after it."""
    batch = next(run.data.batches(stage.task, "train", stage.batch_size))
    state = stages.create_state(stage, Networks.same(NETWORK), partitioner, jax.random.key(0))
    loss = stages.objective(stage, NETWORK)
    step = supervised_step.make_step(loss, partitioner, stage.microbatches)
    state, metrics = step(state, partitioner.shard_batch(batch))
    metrics["tokens"] = metrics["tokens"][0], 1.0  # a count, not a mean over microbatches
    return compute(metrics), jax.device_get(state.params)


@pytest.fixture(scope="module")
def on_one_device(run):
    """Stage -> the same of one device, each computed once."""
    one = Partitioner(MeshConfig(), jax.devices()[:1])

    @functools.cache
    def step(name):
        if name in ("rl_policy", "rl_pit"):
            return one_ppo_step(run, name, one)
        return one_supervised_step(run, run.stage(name), one)

    return step


def same(one, eight):
    assert one.keys() == eight.keys()
    for key, value in one.items():
        np.testing.assert_allclose(value, eight[key], **CLOSE, err_msg=key)


@pytest.mark.parametrize(
    ("name", "layout"),
    everywhere(sft_policy=("slices",), sft_pit=LAYOUTS, rm_policy=("slices",), rm_gap=LAYOUTS),
)
def test_a_supervised_step_has_the_loss_of_one_device(name, layout, run, on_one_device):
    layout = Partitioner(LAYOUTS[layout])
    metrics, params = on_one_device(name)
    parts = 2 if layout.mesh.shape["data"] < 8 else 1
    stage = dataclasses.replace(run.stage(name), microbatches=parts)
    others, other_params = one_supervised_step(run, stage, layout)
    same(metrics, others)
    # Adam's first step is the gradient's sign times the rate, and a sign of about 0 may turn.
    for leaf, other in zip(jax.tree.leaves(params), jax.tree.leaves(other_params), strict=True):
        assert np.mean(np.abs(leaf - other) > 1e-4) < 0.01


def one_ppo_step(run, name, partitioner):
    """Metrics and sampled texts of a PPO step of one gradient step.

    One only: Adam's first step is the gradient's sign, which rounding turns where a gradient is 0.
    """
    ppo = dataclasses.replace(tiny_runs.PPO, epochs=1, minibatches=1)
    source = "none" if name == "rl_policy" else "data"
    stage = tiny_runs.rl(name, (Round(source, 1),), ppo=ppo)
    batch = next(run.data.batches(name, "train", stage.batch_size))
    frozen = {
        "reference": random_model(stages.init_language_model, partitioner, 1),
        "reward": random_model(stages.init_scalar_model, partitioner, 2),
    }
    networks, role, waiting = Networks.same(NETWORK), run.role("policy"), OnHost(frozen)
    state = stages.create_state(stage, networks, partitioner, jax.random.key(0))
    step = ppo_step.make_step(
        networks,
        stage.ppo,
        Environment(role.widths.response, "sum"),
        partitioner,
        lambda after: Frozen(waiting(after)),
        jax.random.key(5),
        role.vocabulary.decode,
    )
    _, metrics, texts = step(state, batch, 0)
    return compute(metrics), texts()["sample_0"]


# A step of rl_policy is one of rl_pit with shorter prompts.
@pytest.mark.parametrize(("name", "layout"), everywhere(rl_policy=(), rl_pit=("slices",)))
def test_a_ppo_step_has_the_episodes_and_losses_of_one_device(name, layout, run, on_one_device):
    """The rollout draws the same tokens, and the update reports the same losses."""
    layout = Partitioner(LAYOUTS[layout])
    metrics, text = on_one_device(name)
    others, other_text = one_ppo_step(run, name, layout)
    assert text == other_text
    same(metrics, others)
    assert metrics["first_ratio_error"] == others["first_ratio_error"] == 0.0


def random_model(init, partitioner, seed):
    make = init(NETWORK)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, stages.abstract_model(make, partitioner))
    build = partitioner.jit(lambda key: nn.meta.unbox(make(key)), out_shardings=shardings)
    return build(jax.random.key(seed))


def test_what_a_pod_needs_from_the_command_line(tmp_path, monkeypatch, capsys):
    """Slices, sequence parallelism, Adafactor, microbatches, models on the host: a run with all."""
    gin = tmp_path / "pod.gin"
    gin.write_text(
        tiny_runs.GIN
        + """
run_config.RunConfig.stages = (
    @pretrain/stages.SupervisedStage(),
    @rm_policy/stages.RewardStage(),
    @rm_gap/stages.RewardStage(),
    @rl_policy/stages.RLStage())
rm_policy/stages.RewardStage.steps = 2
rm_gap/stages.RewardStage.steps = 1
rl_policy/stages.RLStage:
    initial = 'pretrain'
    reference = 'pretrain'
suite.EvaluationConfig:
    sft = 'pretrain'
    pit = 'pretrain'
"""
    )
    monkeypatch.setattr(commands, "_report", lambda *arguments: None)
    argv = ["run", f"--gin_file={gin}", f"--gin.MODEL_DIR='{tmp_path}/run'"]
    flags = {
        "MeshConfig.slices": 2,
        "MeshConfig.model": 2,
        "MeshConfig.sequence_parallel": True,
        "OptimizerConfig.kind": "'adafactor'",
        "NetworkConfig.attention": "'xla'",
        "pretrain/SupervisedStage.microbatches": 2,
        "RLStage.offload_frozen": True,
        "PPOConfig.minibatches": 1,
        "PPOConfig.microbatches": 2,
    }
    argv += [f"--gin.{name}={value}" for name, value in flags.items()]
    assert cli.main(argv) == 0
    assert "rl_policy" in capsys.readouterr().out
    records = tiny_runs.records(tmp_path / "run" / "rl_policy" / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2]
    assert records[0]["first_ratio_error"] == 0.0
    # Another split of the same sums is no other setting: the run is complete.
    fewer = [flag for flag in argv if not re.search("slices|offload|sequence|attention", flag)]
    assert cli.main(fewer) == 0
    assert capsys.readouterr().out.count("complete, skipped") == 4


def test_batches_that_the_mesh_cant_split_are_refused_before_anything_is_trained(tmp_path, capsys):
    gin = tmp_path / "odd.gin"
    gin.write_text(tiny_runs.GIN)
    argv = ["run", f"--gin_file={gin}", f"--gin.MODEL_DIR='{tmp_path}/run'"]
    assert cli.main([*argv, "--gin.PPOConfig.minibatches=8"]) == 2
    assert "stage rl_policy: got batch_size=8 in 8 parts" in capsys.readouterr().err
    assert (
        cli.main([*argv, "--gin.PPOConfig.minibatches=1", "--gin.RunConfig.sampling_batch=4"]) == 2
    )
    assert "got sampling_batch=4, expected a multiple of 8" in capsys.readouterr().err
    assert not (tmp_path / "run" / "pretrain").exists()
    assert not (tmp_path / "run").exists()
