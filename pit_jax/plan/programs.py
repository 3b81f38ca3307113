"""Lists every program of a run, with abstract arguments and the arithmetic it does."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from pit_jax.data import layouts
from pit_jax.data.examples import FOLDS
from pit_jax.errors import UserError
from pit_jax.method import choice, flops, ppo_step, supervised_step
from pit_jax.method.environment import Environment, Networks
from pit_jax.method.flops import Work
from pit_jax.method.frozen import Frozen
from pit_jax.method.roles import GAP_REWARD, POLICY, ROLES
from pit_jax.method.rollouts import make_answer
from pit_jax.method.sampler import Sampler
from pit_jax.models import adapters
from pit_jax.models.config import NetworkConfig
from pit_jax.plan import storage
from pit_jax.run import shapes, stages
from pit_jax.run.config import RunConfig
from pit_jax.run.stages import RewardStage, RLStage, SupervisedStage
from pit_jax.runtime.partitioning import Partitioner

# A tokenizer's space between two pieces of a layout: one token in most, none in some.
_SPACE = 1
# How the name of a role begins that is the one backbone of several models, whose names follow:
# `backbone of actor, critic, reference, reward`.
BACKBONE = "backbone of "


@dataclasses.dataclass(frozen=True)
class Program:
    """Describes a program that is compiled.

    Attributes:
      name: what the program does.
      stage: name of the stage that runs it.
      function: the jitted function.
      arguments: shapes and shardings of its arguments.
      roles: those of its arguments that stay in memory, by name; each is there once. A tree that
        several models share has a name that begins with BACKBONE.
      beside: what else of the stage is in memory while it runs.
      work: the passes that it computes, each with the network that computes it.
      tokens: number of tokens when it runs once, padding included.
      runs: how often the stage runs it.
      updates: number of gradient steps when it runs once.
    """

    name: str
    stage: str
    function: Any
    arguments: tuple[Any, ...]
    roles: dict[str, Any]
    beside: dict[str, Any]
    work: tuple[tuple[Work, NetworkConfig], ...]
    tokens: int
    runs: float
    updates: int = 0

    @property
    def flops(self) -> float:
        """The floating-point operations when it runs once, without those that are repeated."""
        return sum(work.flops(network) for work, network in self.work)

    @property
    def key(self) -> str:
        """A text that is equal for equal programs with equal arrays beside them in memory."""
        shapes = [(x.shape, str(x.dtype)) for x in jax.tree.leaves(self.arguments)]
        beside = sum(map(size_on_a_chip, self.beside.values()))
        return f"{self.name} {self.work} {self.updates} {shapes} {beside}"


def programs(config: RunConfig, partitioner: Partitioner) -> Iterator[Program]:
    """Yields the programs of every stage, in the order in which they run."""
    if any(config.of_role(role).windows.from_data for role in ROLES):
        raise UserError(
            "Lengths: got windows that come from the data, which a plan doesn't read; expected "
            "those that `data` shows, such as --gin.Lengths.prompt=512"
        )
    for stage in config.stages:
        stages.check_mesh(stage, config.networks(stage).actor, partitioner)
        if isinstance(stage, RLStage):
            yield from _rl(config, stage, partitioner)
        else:
            yield from _supervised(config, stage, partitioner)


def _supervised(
    config: RunConfig, stage: SupervisedStage | RewardStage, partitioner: Partitioner
) -> Iterator[Program]:
    role = stages.role_of(stage)
    networks, lengths = config.networks(stage), _lengths(config, role, stages.rows_of(stage))
    network = networks.actor
    state: Any = stages.abstract_state(stage, networks, partitioner)
    widths = layouts.widths(config.of_role(role).windows, _SPACE)
    loss = stages.objective(stage, network, widths)
    B = stage.batch_size
    if isinstance(stage, RewardStage):
        width = lengths["tokens"]
        batch: dict[str, Any] = dict.fromkeys(lengths, ((B, width), jnp.int32))
        logits = 0
    else:
        width = config.batching.packed_length or lengths["inputs"] + lengths["targets"]
        names = ("target_tokens", "input_tokens", "segment_ids", "positions")
        batch = {f"decoder_{name}": ((B, width), jnp.int32) for name in names}
        batch["decoder_loss_weights"] = ((B, width), jnp.float32)
        logits = width
    abstract = _batch(batch, partitioner)
    step = supervised_step.make_step(loss, partitioner, stage.microbatches)
    backbone = shapes.abstract_backbone(network, partitioner) if network.lora else None
    params = {"parameters": state.params} | ({"backbone": backbone} if backbone else {})
    yield Program(
        "training step",
        stage.name,
        step,
        (state, abstract, *([backbone] if backbone else [])),
        params | {"optimizer": state.opt_state},
        {},
        _of(network, *flops.training_step(B, width, logits > 0, stage.microbatches)),
        B * width,
        stage.steps,
        updates=1,
    )
    if isinstance(stage, RewardStage):
        evaluations = stage.steps // stage.loop.eval_every if stage.loop.eval_every else 1
        lengths = _lengths(config, role, stage.task)  # of all scores, whichever the loss reads
        width = lengths["tokens"]
        batch = dict.fromkeys(lengths, ((B, width), jnp.int32))
        weighted = _batch(batch | {"weight": ((B,), jnp.float32)}, partitioner)
        yield Program(
            "evaluation",
            stage.name,
            supervised_step.make_evaluation(
                stages.held_out_objective(stage, network, widths), partitioner, stage.microbatches
            ),
            (adapters.on(backbone, state.params), weighted),
            params,
            {"optimizer": state.opt_state},
            _of(network, Work(B // stage.parts, width, logits, times=stage.parts)),
            B * width,
            evaluations * max(1, stage.held_out // B),
        )


def _rl(config: RunConfig, stage: RLStage, partitioner: Partitioner) -> Iterator[Program]:
    networks, lengths = config.networks(stage), _lengths(config, stages.role_of(stage), stage.task)
    B, P, R = stage.batch_size, lengths["prompt"], lengths["chosen"]
    Q = lengths.get("critic_prompt", lengths["reward_prompt"])
    models = shapes.abstract_models(networks, partitioner)
    state: Any = stages.abstract_state(stage, networks, partitioner)
    resident = {"parameters": state.train.params, "optimizer": state.train.opt_state}
    backbones = models.of_trained
    resident |= _backbones(models, backbones.backbones)
    others = {role: t for role, t in models.backbones.items() if role not in backbones.backbones}
    frozen = {"frozen models": models.models} | _backbones(models, others)
    waiting = {} if stage.offload_frozen else frozen
    if any(round_.is_sampled for round_ in stage.rounds):
        yield from _sampling(config, stage, models, resident | waiting, partitioner)
    collect, update = ppo_step.make_programs(
        networks,
        dataclasses.replace(stage.ppo, widths=1),  # narrower rows take less of everything
        Environment(R, "last", difference=stage.task == "rl_pit_difference"),
        partitioner,
    )
    batch = _batch(
        {
            name if name == "example_index" else f"{name}_tokens": ((B, width), jnp.int32)
            for name, width in lengths.items()
        },
        partitioner,
    )
    key = _key(partitioner)
    difference = "reference" in lengths
    *works, critic, scores = flops.ppo_collect(B, P, Q, R, stage.ppo, difference=difference)
    updates = flops.ppo_update(B, P, Q, R, stage.ppo)
    steps = sum(round_.steps for round_ in stage.rounds)
    yield Program(
        "PPO: sample and score",
        stage.name,
        collect,
        (state, models, batch, key, key),
        resident | frozen,
        {},
        (*_of(networks.actor, *works), (critic, networks.critic), (scores, networks.reward)),
        B * (P + R),
        steps,
    )
    experience = _placed(jax.eval_shape(collect, state, models, batch, key, key)[0], partitioner)
    yield Program(
        "PPO: update",
        stage.name,
        update,
        (state, backbones, experience, key),
        resident,
        waiting,
        tuple(zip(updates, (networks.actor, networks.critic), strict=True)),
        stage.ppo.epochs * B * (P + R),
        steps,
        updates=stage.ppo.epochs * stage.ppo.minibatches,
    )
    if stage.choice is not None:
        yield _choice(config, stage, models, partitioner)


def _sampling(
    config: RunConfig,
    stage: RLStage,
    models: Frozen,
    beside: dict[str, Any],
    partitioner: Partitioner,
) -> Iterator[Program]:
    """Yields the programs by which `Sampler` samples references from the policy and scores them.

    All of the sampler's rows count as if they began together; it begins a quarter of them at once.
    A round samples as many references as its steps use, or one for each prompt of its fold if
    these are fewer, as far as the fold is known before files are read. No stage runs the scoring:
    evaluations and the `improve` command do.
    """
    policy, gap = config.of_role(POLICY), config.of_role(GAP_REWARD)
    widths, read = (layouts.widths(each.windows, _SPACE) for each in (policy, gap))
    B, P, Q, R = config.sampling_batch, widths.policy, read.gap, widths.response
    networks = config.networks(stage)
    answering, scoring = (
        # Models of other networks than the stage's share nothing with them.
        (models if here == there else shapes.abstract_models(Networks.same(there), partitioner))
        for here, there in ((networks.actor, policy.network), (networks.reward, gap.network))
    )
    fold = getattr(config.dataset, "train_size", 0) // len(FOLDS)
    needed = [r.steps * stage.batch_size for r in stage.rounds if r.is_sampled]
    sampled = [min(rows, fold or rows) for rows in needed]
    rows = {"prompts": ((B, P), jnp.int32), "rows": ((B,), jnp.int32)}
    batch = _batch(rows, partitioner)
    model = _another(answering.model("reference"))
    answer = make_answer(policy.network, Environment(R, "last"))
    yield Program(
        "sampling of references",
        stage.name,
        partitioner.jit(answer, out_shardings=partitioner.replicated),
        (model, batch["prompts"], batch["rows"], _key(partitioner)),
        {"policy": model},
        _without(beside, model),
        _of(policy.network, *flops.sampling(B, P, R)),
        B * (P + R),
        sum(-(-rows // B) for rows in sampled),
    )
    S = read.response
    inputs = {"prompts": ((B, Q), jnp.int32), "responses": ((B, S), jnp.int32)}
    model = _another(scoring.model("reward"))
    yield Program(
        "scoring",
        stage.name,
        Sampler(gap.network, partitioner, S, B).score_program("last"),
        (model, _batch(inputs | {"mask": ((B, S), jnp.bool_)}, partitioner)),
        {"reward model": model},
        _without(beside, model),
        _of(gap.network, Work(B, Q + S)),
        B * (Q + S),
        0,
    )


def _backbones(models: Frozen, trees: dict[str, Any]) -> dict[str, Any]:
    """Names backbones by all models that have them."""
    of = {name: [role for role, entry in models.backbone_of if entry == name] for name in trees}
    return {BACKBONE + ", ".join(of[name]): tree for name, tree in trees.items()}


def _without(beside: dict[str, Any], model: Any) -> dict[str, Any]:
    """Leaves out a backbone that the program's own model has."""
    backbone = getattr(model, "backbone", None)
    return {name: tree for name, tree in beside.items() if tree is not backbone}


def _choice(config: RunConfig, stage: RLStage, models: Frozen, partitioner: Partitioner) -> Program:
    """Returns the program by which a stage's checkpoints are measured, of which one is chosen.

    Each checkpoint that is kept answers the same prompts of the dev split, and y_l and y_w count
    as two of them. Where the size of the split isn't known before the data is read, there are as
    many as the choice asks for.
    """
    assert stage.choice is not None
    networks, lengths = config.networks(stage), _lengths(config, stages.role_of(stage), stage.task)
    B, P, Q, R = (stage.batch_size, *(lengths[n] for n in ("prompt", "reward_prompt", "chosen")))
    difference = "reference" in lengths
    widths = {"prompts": P, "reward_prompts": Q}
    widths |= {"references": lengths["reference"]} if difference else {}
    inputs = {name: ((B, width), jnp.int32) for name, width in widths.items()}
    batch = _batch(inputs | {"rows": ((B,), jnp.int32)}, partitioner)
    reference, reward = models.model("reference"), models.model("reward")
    measured = {"policy": _another(reference), "reference": reference, "reward": reward}
    measure = choice.make_measure(
        networks, stage.ppo, Environment(R, "last", difference=difference)
    )
    known = max(0, getattr(config.dataset, "dev_size", 0)) or stage.choice.num_prompts or B
    rows = min(stage.choice.num_prompts or known, known)
    if stage.task in stages.PIT_RL and not stage.rounds[-1].is_sampled:
        rows *= 2
    scored = Work(B, Q + R, times=1 + difference)
    part = Work(B // stage.ppo.parts, P + R, R, times=2 * stage.ppo.parts)
    return Program(
        "choice of checkpoint",
        stage.name,
        partitioner.jit(measure, out_shardings=partitioner.replicated),
        (measured, batch, _key(partitioner)),
        {"measured and frozen models": measured},
        {},
        (*_of(networks.actor, *flops.sampling(B, P, R), part), (scored, networks.reward)),
        B * (P + R),
        len(storage.kept(stage)) * -(-rows // B),
    )


def _of(network: NetworkConfig, *works: Work) -> tuple[tuple[Work, NetworkConfig], ...]:
    return tuple((work, network) for work in works)


def _another(model: Any) -> Any:
    """Returns the abstract parameters of another model on the same backbone, if it has one."""
    if isinstance(model, adapters.Adapted):
        return adapters.Adapted(model.backbone, _another(model.own))
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), model
    )


def _lengths(config: RunConfig, role: str, task: str) -> dict[str, int]:
    """Width of each feature of a task, in the ids of a role."""
    return layouts.feature_lengths(task, layouts.widths(config.of_role(role).windows, _SPACE))


def _batch(shapes: Mapping[str, tuple[tuple[int, ...], Any]], partitioner: Partitioner) -> Any:
    return _placed(
        {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}, partitioner
    )


def _placed(tree: Any, partitioner: Partitioner) -> Any:
    """Splits the rows of abstract arrays over the mesh, as Partitioner.shard_batch does."""

    def place(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=partitioner.row_sharding(x.shape))

    return jax.tree.map(place, tree)


def _key(partitioner: Partitioner) -> Any:
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=partitioner.replicated)


def size_on_a_chip(tree: Any) -> int:
    """Returns the bytes that a tree of abstract arrays takes on one chip.

    A backbone that several models of the tree share is the same abstract arrays, and counts once.
    """
    leaves = {id(leaf): leaf for leaf in jax.tree.leaves(tree)}
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in leaves.values()
    )
