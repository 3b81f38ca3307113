"""The programs of a run: their arithmetic by hand, their arguments against real ones."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from pit_jax.method.environment import Networks
from pit_jax.method.flops import Work
from pit_jax.plan.estimate import Machine, estimate
from pit_jax.plan.hlo import Collective
from pit_jax.plan.programs import Program, programs, size_on_a_chip
from pit_jax.run import stages
from pit_jax.run.run import Run
from pit_jax.runtime.partitioning import MeshConfig, Partitioner
from tests import tiny_runs

NETWORK = tiny_runs.NETWORK  # D 16, L 1, H = K 2, E 8, F 16, V 64


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(tiny_runs.config(tmp_path_factory.mktemp("run")), jax.devices()[:4])


@pytest.fixture(scope="module")
def table(run):
    return {(p.stage, p.name): p for p in programs(run.config, run.partitioner)}


def test_every_stage_has_its_programs(run, table):
    assert list(table) == [
        ("pretrain", "training step"),
        ("sft_policy", "training step"),
        ("sft_pit", "training step"),
        ("rm_policy", "training step"),
        ("rm_policy", "evaluation"),
        ("rm_gap", "training step"),
        ("rm_gap", "evaluation"),
        ("rl_policy", "PPO: sample and score"),
        ("rl_policy", "PPO: update"),
        ("rl_pit", "sampling of references"),
        ("rl_pit", "scoring"),
        ("rl_pit", "PPO: sample and score"),
        ("rl_pit", "PPO: update"),
    ]
    assert table["rl_pit", "PPO: update"].runs == 4


def described(tree):
    return [(x.ndim, str(x.dtype), x.sharding.spec) for x in jax.tree.leaves(tree)]


def test_arguments_are_those_of_a_run(run, table):
    for stage in run.config.stages:
        program = table[
            stage.name, "PPO: sample and score" if "rl" in stage.name else "training step"
        ]
        batch = run.partitioner.shard_batch(
            next(run.data.batches(stage.task, "train", stage.batch_size))
        )
        planned = program.arguments[-2 if "rl" in stage.name else -1]
        assert described(planned) == described(batch)
        for name, array in batch.items():
            assert all(n <= m for n, m in zip(array.shape, planned[name].shape, strict=True)), name


def test_memory_of_a_role_is_that_of_its_shards(run, table):
    stage = run.stage("rl_pit")
    state = stages.create_state(
        stage, Networks.same(run.config.network), run.partitioner, jax.random.key(0)
    )
    roles = table["rl_pit", "PPO: update"].roles
    for role, tree in (("parameters", state.train.params), ("optimizer", state.train.opt_state)):
        leaves = jax.tree.leaves(tree)
        assert size_on_a_chip(roles[role]) == sum(
            leaf.addressable_shards[0].data.nbytes for leaf in leaves
        )


def test_an_estimate_by_hand():
    work = Work(rows=8, tokens=4, logits=4)
    x = jax.ShapeDtypeStruct((1,), jnp.float32)
    program = Program("p", "s", None, (), {"parameters": x}, {}, (work,), 32, 1)
    network = dataclasses.replace(NETWORK, dtype="bfloat16")
    moved = [Collective("all-gather", ("bf16[8]",), 16, 10, 1)]
    cost = estimate(program, network, moved, Machine(1e6, 1e5, 1e3), devices=4, model_axis=2)
    assert cost.compute == pytest.approx(work.flops(network) / 4 / 1e6)
    weights = (1792 + 1024) * 2 / 2
    activations = 8 * 4 * 16 * 2 * 16 / 4
    logits = 2 * 8 * 4 * 64 * 4 / 4
    assert cost.memory == pytest.approx((weights + activations + logits) / 1e5)
    assert cost.communication == pytest.approx(160 / 1e3)
    assert cost.seconds == max(cost.compute, cost.memory) + cost.communication


def test_an_estimate_of_passes_one_after_the_other_by_hand():
    """The prefill waits for arithmetic, the decoding for the memory, the update for both."""
    prefill, decoding = Work(8, 4, 1), Work(8, 4, steps=2, cache=3)
    x = jax.ShapeDtypeStruct((5,), jnp.float32)
    roles = {"parameters": x, "optimizer": x}
    program = Program("p", "s", None, (), roles, {}, (prefill, decoding), 32, 1)
    machine = Machine(flops=1e6, bandwidth=1e5, interconnect=1.0)

    def cost(*works, updates=0):
        changed = dataclasses.replace(program, work=works, updates=updates)
        return estimate(changed, NETWORK, [], machine, devices=1, model_axis=1)

    # A token's weights, and keys and values of 7 columns, 2 heads of 8, for 8 rows.
    bytes_ = 2 * ((1792 + 1024) * 4 + 2 * 16 * 7 * 8 * 4)
    assert cost(decoding).memory == pytest.approx(bytes_ / 1e5)
    assert cost(decoding).passes == cost(decoding).memory > cost(decoding).compute
    both = cost(prefill, decoding)
    assert both.passes == pytest.approx(cost(prefill).passes + cost(decoding).passes)
    # Three passes and the one that is done again; then 28 bytes for each of 5 parameters.
    update = dataclasses.replace(prefill, backward=True, checkpointed=True)
    four = 4 * cost(prefill).memory
    assert cost(update, updates=1).memory == pytest.approx(four + 28 * 5 / 1e5)
    # In three microbatches: two sums of gradients, of 12 bytes each.
    parts = dataclasses.replace(update, times=3)
    assert cost(parts, updates=1).memory == pytest.approx(3 * four + (28 + 2 * 12) * 5 / 1e5)
    assert cost(update).compute == pytest.approx(4 * cost(prefill).compute)


def test_partitioner_of_another_size():
    partitioner = Partitioner(MeshConfig(data=2, model=2), jax.devices()[:4])
    found = list(programs(tiny_runs.config("unused"), partitioner))
    assert {p.arguments[0].step.sharding.mesh.shape["model"] for p in found[:3]} == {2}
