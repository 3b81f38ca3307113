"""The programs of a run: their arithmetic by hand, their arguments against real ones."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from pit_jax.method.choice import Choice
from pit_jax.method.curriculum import Round
from pit_jax.method.environment import Networks
from pit_jax.method.flops import Work
from pit_jax.models.config import LoraConfig
from pit_jax.plan import chips, planner, storage
from pit_jax.plan import programs as plan_programs
from pit_jax.plan.estimate import Machine, estimate
from pit_jax.plan.hlo import Collective
from pit_jax.plan.programs import Program, programs, size_on_a_chip
from pit_jax.run import choosing, shapes, stages
from pit_jax.run.config import RoleConfig
from pit_jax.run.run import Run
from pit_jax.run.stages import RewardStage
from pit_jax.runtime.checkpoints import Checkpoints
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
        planned = program.arguments[2 if "rl" in stage.name else 1]
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
    network = dataclasses.replace(NETWORK, dtype="bfloat16")
    work = Work(rows=8, tokens=4, logits=4)
    x = jax.ShapeDtypeStruct((1,), jnp.float32)
    program = Program("p", "s", None, (), {"parameters": x}, {}, ((work, network),), 32, 1)
    moved = [Collective("all-gather", ("bf16[8]",), 16, 10, 1)]
    cost = estimate(program, moved, Machine(1e6, 1e5, 1e3), {"slice": 1, "data": 2, "model": 2})
    assert cost.compute == pytest.approx(work.flops(network) / 4 / 1e6)
    weights = (1792 + 1024) * 2 / 2
    activations = 8 * 4 * 16 * 2 * 16 / 4
    logits = 2 * 8 * 4 * 64 * 4 / 4
    assert cost.memory == pytest.approx((weights + activations + logits) / 1e5)
    assert cost.communication == pytest.approx(160 / 1e3)
    assert cost.seconds == max(cost.compute, cost.memory) + cost.communication


def test_each_slice_of_the_mesh_has_all_weights_and_its_own_rows():
    work = Work(8, 4, steps=2, cache=3)
    x = jax.ShapeDtypeStruct((5,), jnp.float32)
    roles = {"parameters": x, "optimizer": x}
    program = Program("p", "s", None, (), roles, {}, ((work, NETWORK),), 32, 1, updates=1)
    machine = Machine(flops=1e12, bandwidth=1e5, interconnect=1.0)
    cost = estimate(program, [], machine, {"slice": 4, "data": 2, "model": 1})
    weights, cache = (1792 + 1024) * 4 / 2, 2 * 16 * 7 * 8 * 4 / 8
    assert cost.memory == pytest.approx((2 * (weights + cache) + 28 * 5 / 2) / 1e5)


def test_an_estimate_of_passes_one_after_the_other_by_hand():
    """The prefill waits for arithmetic, the decoding for the memory, the update for both."""
    prefill, decoding = Work(8, 4, 1), Work(8, 4, steps=2, cache=3)
    x = jax.ShapeDtypeStruct((5,), jnp.float32)
    roles = {"parameters": x, "optimizer": x}
    program = Program("p", "s", None, (), roles, {}, (), 32, 1)
    machine = Machine(flops=1e6, bandwidth=1e5, interconnect=1.0)

    def cost(*works, updates=0):
        work = tuple((each, NETWORK) for each in works)
        changed = dataclasses.replace(program, work=work, updates=updates)
        return estimate(changed, [], machine, {"slice": 1, "data": 1, "model": 1})

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


def test_the_speeds_of_a_gpu_by_hand():
    """4e9 operations, no traffic to speak of, and 1000 kernels."""
    bfloat16 = dataclasses.replace(NETWORK, dtype="bfloat16")
    found = planner.machine(chips.CHIPS["h100"])
    assert (found.flops, found.bandwidth) == pytest.approx((0.4 * 989e12, 0.7 * 3350e9))
    assert (found.interconnect, found.launch) == pytest.approx((0.7 * 450e9, 3e-6))
    assert found.speed(bfloat16) == found.flops
    assert found.speed(NETWORK) == found.flops / 2  # TF32
    assert planner.machine(chips.CHIPS["v4"]) == Machine(275e12, 1228e9, 300e9)
    work = Work(rows=8, tokens=4)
    program = Program("p", "s", None, (), {}, {}, ((work, bfloat16),), 32, 1)
    moved = [Collective("all-gather", ("bf16[8]",), 630_000, 2, 1)]
    cost = estimate(program, moved, found, {"slice": 1, "data": 2, "model": 1}, 1000)
    assert cost.launches == pytest.approx(0.003)
    assert cost.communication == pytest.approx(4e-6)
    assert cost.compute == pytest.approx(work.flops(bfloat16) / 2 / 395.6e12)
    assert cost.seconds == pytest.approx(cost.memory + 4e-6 + 0.003)


def test_the_choice_of_a_checkpoint(run):
    """rl_policy keeps steps 1 and 2; each answers 12 prompts, in two batches of 8."""
    stage = dataclasses.replace(run.stage("rl_policy"), keep_every=1, choice=Choice(num_prompts=12))
    config = dataclasses.replace(run.config, stages=(stage,))
    *_, program = programs(config, run.partitioner)
    assert (program.name, program.runs) == ("choice of checkpoint", 2 * 2)
    assert set(program.roles["measured and frozen models"]) == {"policy", "reference", "reward"}
    rows = choosing.rows_of(run, stage, stage.choice)
    real = run.partitioner.shard_batch(next(choosing._batches(run, stage, rows)))
    planned = program.arguments[1]
    assert described(planned) == described(real)
    for name, array in real.items():
        assert all(n <= m for n, m in zip(array.shape, planned[name].shape, strict=True)), name
    measured = jax.eval_shape(program.function, *program.arguments)
    assert measured["kl"].shape == (8,)
    assert len(program.work) == 4  # a prefill, its decoding, two log-probabilities, a score
    # All of a split of 20; M_PIT answers both y_l and y_w where no reference is sampled.
    models = shapes.abstract_models(config.networks(stage), run.partitioner)
    every = dataclasses.replace(stage, choice=Choice(num_prompts=0))
    pit = run.stage("rl_pit")
    pit = dataclasses.replace(pit, rounds=pit.rounds[:1], keep_every=2, choice=Choice())
    for changed, runs in ((every, 2 * 3), (pit, 1 * 5)):
        assert plan_programs._choice(config, changed, models, run.partitioner).runs == runs


def test_checkpoints_that_stay(run):
    stage = run.stage("rl_pit")
    assert stage.steps == 4
    for every, expected in ((0, [4]), (1, [1, 2, 3, 4]), (3, [3, 4]), (4, [4]), (9, [4])):
        assert storage.kept(dataclasses.replace(stage, keep_every=every)) == expected
    rm = dataclasses.replace(run.stage("rm_policy"), steps=6)
    for every, expected in ((0, [6]), (2, [2, 6]), (6, [6]), (9, [6])):
        loop = dataclasses.replace(rm.loop, eval_every=every)
        assert storage.kept(dataclasses.replace(rm, loop=loop)) == expected
    for every, expected in ((0, [6]), (2, [2, 4, 6]), (4, [4, 6]), (6, [6])):
        loop = dataclasses.replace(rm.loop, eval_every=every, checkpoint_every=0)
        assert storage.stored(dataclasses.replace(rm, loop=loop)) == expected
    loop = dataclasses.replace(rm.loop, checkpoint_every=0)
    rounds = (Round("data", 1), Round("policy", 3))
    for every, expected in ((0, [1, 4]), (2, [2, 4]), (3, [3, 4])):
        changed = dataclasses.replace(stage, loop=loop, keep_every=every, rounds=rounds)
        assert storage.stored(changed) == expected
    rows = {row["stage"]: row for row in storage.checkpoints(run.config, run.partitioner)}
    assert list(rows) == [stage.name for stage in run.config.stages]
    # Its 16 x 64 embedding, a layer of 1792 in matrices and 2 x 16 of norms, a last norm of 16:
    # each in float32 with two moments.
    parameters = 1024 + 1792 + 32 + 16
    assert rows["sft_pit"]["bytes"] == pytest.approx(12 * parameters, abs=32)  # and counters
    assert rows["rl_pit"]["bytes"] == pytest.approx(2 * 12 * parameters, rel=0.02)  # a head


def test_checkpoints_of_a_trained_run(trained, run):
    for stage in run.config.stages:
        checkpoints = Checkpoints(trained / stage.name / "checkpoints", read_only=True)
        there = checkpoints.all_steps()
        checkpoints.close()
        if isinstance(stage, RewardStage):  # which one is best isn't known before
            assert len(there) <= len(storage.stored(stage)) + 1 and stage.steps in there
        else:
            assert there == storage.stored(stage)


def test_a_backbone_of_several_models_counts_once(run):
    """Adapters of rank 2 on all matrices of the layers; then a reward model of another size."""
    lora = dataclasses.replace(NETWORK, lora=LoraConfig(2, 4.0))
    stage = dataclasses.replace(run.stage("rl_pit"), keep_every=4, choice=Choice())
    config = dataclasses.replace(run.config, network=lora, stages=(stage,))
    one = Partitioner(MeshConfig(), jax.devices()[:1])
    found = {p.name: p for p in programs(config, one)}
    name = "backbone of actor, critic, reference, reward"
    assert planner.sharing(list(found.values())) == [["actor", "critic", "reference", "reward"]]
    update = found["PPO: update"].roles
    size, adapters = 4 * (1024 + 1792 + 32 + 16), 4 * 7 * 2 * (16 + 16)
    assert size_on_a_chip(update[name]) == size
    assert size_on_a_chip(update["parameters"]) == pytest.approx(2 * adapters, abs=4 * 17)  # a head
    for program in found.values():
        held = [*program.roles.values(), *program.beside.values()]
        assert sum(map(size_on_a_chip, held)) == size_on_a_chip(held)  # it isn't beside itself
    measured = found["choice of checkpoint"].arguments[0]
    assert size_on_a_chip(measured) == pytest.approx(size + 3 * adapters, abs=4 * 17)
    # Smaller reward models share nothing with the policy, and count with their own arithmetic.
    small = dataclasses.replace(NETWORK, num_layers=1, mlp_dim=8)
    role = RoleConfig(vocabulary="words:drafts", network=small)
    config = dataclasses.replace(run.config, stages=(stage,), gap_reward=role)
    found = {p.name: p for p in programs(config, one)}
    assert [network for _, network in found["scoring"].work] == [small]
    collect = [network for _, network in found["PPO: sample and score"].work]
    assert collect == [NETWORK, NETWORK, NETWORK, small, small]
    assert planner.sharing(list(found.values())) == []


def test_partitioner_of_another_size():
    partitioner = Partitioner(MeshConfig(data=2, model=2), jax.devices()[:4])
    found = list(programs(tiny_runs.config("unused"), partitioner))
    assert {p.arguments[0].step.sharding.mesh.shape["model"] for p in found[:3]} == {2}
