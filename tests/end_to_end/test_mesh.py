"""Eight simulated devices compute what one does: a 4 x 2 mesh (data x model) against one device."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from pit_jax import curriculum, stages, trainer
from pit_jax.curriculum import Round
from pit_jax.metrics import compute
from pit_jax.partitioning import MeshConfig, Partitioner
from pit_jax.pipeline import Run
from tests import tiny_runs

pytestmark = [pytest.mark.mesh, pytest.mark.usefixtures("quick_compiling")]

MESH = MeshConfig(data=4, model=2)
# Sums in another order, in float32.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def partitioners():
    return Partitioner(MeshConfig(), jax.devices()[:1]), Partitioner(MESH)


@pytest.fixture(scope="module")
def on_mesh(tmp_path_factory):
    """The first stage of the run, trained on eight devices."""
    config = tiny_runs.config(tmp_path_factory.mktemp("mesh"), mesh=MESH)
    run = Run(config)
    run.train("pretrain")
    return run


def test_the_first_stage_has_the_losses_of_one_device(on_mesh, trained):
    one = tiny_runs.records(trained / "pretrain" / "metrics.jsonl")
    eight = tiny_runs.records(on_mesh.directory / "pretrain" / "metrics.jsonl")
    assert len(one) == len(eight) == 4
    for record, other in zip(one, eight):
        assert record.keys() == other.keys()
        for name in ("loss", "token_accuracy", "grad_norm"):
            np.testing.assert_allclose(record[name], other[name], **CLOSE, err_msg=name)
    kernel = on_mesh.model("pretrain")["decoder"]["layers"]["mlp"]["up"]["kernel"]
    assert (
        len(kernel.sharding.device_set) == 8 and kernel.addressable_data(0).size * 8 == kernel.size
    )


def test_a_stage_trained_on_eight_devices_goes_on_on_one(on_mesh):
    """Parameters come back value for value, and a stage of another mesh is no other settings."""
    config = dataclasses.replace(on_mesh.config, mesh=MeshConfig())
    run = tiny_runs.on_one_device(config)
    run.train("pretrain")
    for one, eight in zip(
        *(jax.tree.leaves(each.model("pretrain")) for each in (run, on_mesh)), strict=True
    ):
        np.testing.assert_array_equal(one, eight)
        assert len(one.sharding.device_set) == 1


@pytest.mark.parametrize("name", ["rm_policy", "rm_gap"])
def test_a_reward_step_has_the_loss_of_one_device(name, trained):
    run = tiny_runs.on_one_device(tiny_runs.config(trained))
    stage = run.stage(name)
    batch = next(run.data.batches(name, "train", stage.batch_size))
    results = []
    for partitioner in partitioners():
        state = stages.create_state(stage, run.config.network, partitioner, jax.random.key(0))
        step = trainer.make_step(stages.objective(stage, run.config.network), partitioner)
        state, metrics = step(state, partitioner.shard_batch(batch))
        results.append((compute(metrics), jax.device_get(state.params)))
    (one, params), (eight, other) = results
    assert one.keys() == eight.keys()
    for key, value in one.items():
        np.testing.assert_allclose(value, eight[key], **CLOSE, err_msg=key)
    # Adam's first step is the gradient's sign times the rate, and a sign of about 0 may turn.
    for leaf, same in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True):
        assert np.mean(np.abs(leaf - same) > 1e-4) < 0.01


def test_a_ppo_step_has_the_episodes_and_losses_of_one_device(trained):
    """The rollout draws the same tokens, and the update reports the same losses.

    One gradient step only: Adam's first step is the gradient's sign, which rounding turns where a
    gradient is 0.
    """
    run = tiny_runs.on_one_device(tiny_runs.config(trained))
    ppo = dataclasses.replace(tiny_runs.PPO, epochs=1, minibatches=1)
    stage = tiny_runs.rl("rl_pit", (Round("data", 1),), ppo=ppo)
    batch = next(run.data.batches("rl_pit", "train", stage.batch_size))
    results = []
    for partitioner in partitioners():
        frozen = {
            "reference": random_model(stages.init_language_model, partitioner, 1),
            "reward": random_model(stages.init_scalar_model, partitioner, 2),
        }
        state = stages.create_state(stage, run.config.network, partitioner, jax.random.key(0))
        step = curriculum.make_step(
            run.config.network,
            stage.ppo,
            "sum",
            run.layout.widths(run.config.lengths).response,
            partitioner,
            frozen,
            jax.random.key(5),
            run.vocabulary.decode,
        )
        _, metrics, texts = step(state, batch, 0)
        results.append((compute(metrics), texts()))
    (one, texts), (eight, other_texts) = results
    assert texts["sample_0"] == other_texts["sample_0"]
    assert one.keys() == eight.keys()
    for name, value in one.items():
        np.testing.assert_allclose(value, eight[name], **CLOSE, err_msg=name)
    assert one["first_ratio_error"] == eight["first_ratio_error"] == 0.0


def random_model(init, partitioner, seed):
    make = init(tiny_runs.NETWORK)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, stages.abstract_model(make, partitioner))
    import flax.linen as nn

    build = partitioner.jit(lambda key: nn.meta.unbox(make(key)), out_shardings=shardings)
    return build(jax.random.key(seed))
