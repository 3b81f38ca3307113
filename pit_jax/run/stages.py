"""Defines the kinds of stages: their configuration, their objective, the state they start from.

The tasks are those of Algorithm 1: `sft_policy`, `sft_pit`, `rm_policy`, `rm_gap`, `rl_policy` and
`rl_pit`; and `pretrain`, a short language-model warm-up in place of a pre-trained model. The
paper's variations of M_PIT are tasks too:

    sft_pit_reflection   learns to write a reflection before the response (Appendix K)
    sft_pit_unlikely…    also makes M_PIT(y_l | x, y_w), (y_l | x, y_l) and (y_w | x, y_w) less
                         likely (3.2), or one of them alone: …_lw, …_ll, …_ww
    rl_pit_difference    takes R_P(x, y) − R_P(x, y_ref) for the gap (Appendix C)

A run may hold several stages of one task under different names, as ablations do.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from pit_jax.checked import UserPath, at_least, checked
from pit_jax.data.layouts import TREES, UNLIKELY, Widths
from pit_jax.errors import UserError
from pit_jax.method import objectives, roles
from pit_jax.method.choice import Choice
from pit_jax.method.curriculum import Round
from pit_jax.method.environment import Networks
from pit_jax.method.objectives import RewardConfig
from pit_jax.method.ppo import Moments, PPOConfig, make_optimizer
from pit_jax.method.ppo_step import RLState
from pit_jax.models import adapters
from pit_jax.models.config import NetworkConfig
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel, in_compute_type
from pit_jax.runtime.loop import LoopConfig
from pit_jax.runtime.partitioning import Partitioner
from pit_jax.runtime.train_state import OptimizerConfig, TrainState

PIT_SUPERVISED = ("sft_pit", "sft_pit_reflection", *UNLIKELY)
SUPERVISED_TASKS = ("pretrain", "sft_policy", *PIT_SUPERVISED)
REWARD_TASKS = ("rm_policy", "rm_gap")
# PPO task -> the task of the reward model that it learns from.
REWARD_TASK_OF = {"rl_policy": "rm_policy", "rl_pit": "rm_gap", "rl_pit_difference": "rm_policy"}
RL_TASKS = tuple(REWARD_TASK_OF)
PIT_RL = ("rl_pit", "rl_pit_difference")
# Names of stages are those of folders; these are others of the run directory.
_NAME = re.compile(r"\w[\w.+=@ -]{0,99}")
_TAKEN = ("compilation_cache", "data_cache", "figures")
# Task -> the role of its model; a warm-up's is M_P's, or what the stage says.
ROLE_OF = {
    "pretrain": roles.POLICY,
    "sft_policy": roles.POLICY,
    "rl_policy": roles.POLICY,
    **dict.fromkeys((*PIT_SUPERVISED, *PIT_RL), roles.PIT),
    "rm_policy": roles.POLICY_REWARD,
    "rm_gap": roles.GAP_REWARD,
}


@dataclasses.dataclass(frozen=True)
@checked
class SupervisedStage:
    """Configures a language-model warm-up, or supervised fine-tuning (3.2).

    Attributes:
      name: folder of the stage in the run directory.
      task: one of SUPERVISED_TASKS.
      steps: gradient steps.
      batch_size: rows over all devices.
      optimizer: the optimizer's settings.
      initial: the stage to start from, or the path of its folder; if empty, weights are random.
      microbatches: number of parts of a batch, whose gradients are added up.
      loop: how often to log, evaluate and checkpoint.
      role: the role whose network a warm-up trains, one of method.roles.ROLES; other tasks have
        their own.
    """

    name: str
    task: str
    steps: int
    batch_size: int
    optimizer: OptimizerConfig
    initial: UserPath = ""
    microbatches: int = dataclasses.field(default=1, metadata={"since": 2})
    loop: LoopConfig = dataclasses.field(default=LoopConfig(), metadata={"changes_result": False})
    role: str = dataclasses.field(default="", metadata={"variation": True})

    def __post_init__(self):
        _check_task(self.name, self.task, SUPERVISED_TASKS)
        if self.role and (self.task != "pretrain" or self.role not in roles.ROLES):
            raise ValueError(
                f"stage {self.name}: got role={self.role!r}, expected one of {roles.ROLES} for a "
                "warm-up, and none for other tasks"
            )
        _check_steps(self.name, self.steps, self.batch_size, self.microbatches)

    @property
    def parts(self) -> int:
        """Parts of a batch that pass through the network one after the other."""
        return self.microbatches


@dataclasses.dataclass(frozen=True)
@checked
class RewardStage:
    """Configures the training of a reward model (3.3), whose best held-out checkpoint is used.

    Attributes:
      name, steps, batch_size, optimizer, initial, microbatches, loop: as of SupervisedStage.
      task: one of REWARD_TASKS.
      reward: how the score is read and trained.
      held_out: examples of the dev split to evaluate on (128 in Appendix F); 0 takes all.
    """

    name: str
    task: str
    steps: int
    batch_size: int
    optimizer: OptimizerConfig
    initial: UserPath = ""
    microbatches: int = dataclasses.field(default=1, metadata={"since": 2})
    reward: RewardConfig = RewardConfig()
    held_out: int = 128
    # When it is evaluated says which checkpoint can be the best.
    loop: LoopConfig = dataclasses.field(default=LoopConfig(), metadata={"since": 2})

    def __post_init__(self):
        _check_task(self.name, self.task, REWARD_TASKS)
        _check_steps(self.name, self.steps, self.batch_size, self.microbatches)
        at_least(self, 0, "held_out")

    @property
    def parts(self) -> int:
        """Parts of a batch that pass through the network one after the other."""
        return self.microbatches


@dataclasses.dataclass(frozen=True)
@checked
class RLStage:
    """Configures PPO (3.4) in one or several rounds.

    Attributes:
      name, batch_size, optimizer, initial, loop: as of SupervisedStage.
      task: one of RL_TASKS.
      rounds: the rounds of the curriculum; M_P has one, of source `none`.
      reference: the stage whose model the KL penalty refers to.
      reward_model: the stage that trained the reward model.
      ppo: PPO's settings.
      offload_frozen: whether the frozen models stay in the hosts' memory between their uses.
      keep_every: every checkpoint whose step is a multiple of this is kept too, so that later
        rounds can sample from it; 0 keeps none of them.
      choice: how one of these checkpoints is chosen once all steps are done, for whatever uses the
        stage's model; None takes the last one.
    """

    name: str
    task: str
    rounds: tuple[Round, ...]
    batch_size: int
    optimizer: OptimizerConfig
    initial: UserPath
    reference: UserPath
    reward_model: UserPath
    ppo: PPOConfig = PPOConfig()
    offload_frozen: bool = dataclasses.field(default=False, metadata={"changes_result": False})
    keep_every: int = 0
    # What builds on the stage records the step that is chosen; the stage itself goes on with any.
    choice: Choice | None = dataclasses.field(default=None, metadata={"changes_result": False})
    loop: LoopConfig = dataclasses.field(default=LoopConfig(), metadata={"changes_result": False})

    def __post_init__(self):
        _check_task(self.name, self.task, RL_TASKS)
        for round_ in self.rounds:
            if (round_.source == "none") != (self.task == "rl_policy"):
                raise ValueError(
                    f"stage {self.name}: got a round of source {round_.source!r}; rl_policy takes "
                    "'none', rl_pit and rl_pit_difference any other"
                )
        what = "minibatches x microbatches"
        _check_steps(self.name, self.steps, self.batch_size, self.ppo.parts, what)
        at_least(self, 0, "keep_every")
        if self.choice is not None:
            self._check_choice(self.choice.step)

    def _check_choice(self, step: int) -> None:
        every = self.keep_every
        if not every:
            raise UserError(
                f"stage {self.name}: choice: got keep_every=0, expected 1 or more: one of the "
                "checkpoints is chosen that are kept"
            )
        if step > self.steps or (step != self.steps and step % every):
            raise UserError(
                f"stage {self.name}: got Choice.step={step}, expected a checkpoint that is kept: a "
                f"multiple of keep_every={every}, or the last step, {self.steps}"
            )

    @property
    def steps(self) -> int:
        """The number of PPO steps of all rounds."""
        return sum(round_.steps for round_ in self.rounds)

    @property
    def parts(self) -> int:
        """Parts of a batch that pass through the network one after the other."""
        return self.ppo.parts


Stage = SupervisedStage | RewardStage | RLStage


def rows_of(stage: Stage) -> str:
    """Returns the data layer's task of a stage's training rows, a key of layouts.FEATURES.

    It is the stage's own, but where a gap model's loss reads two of its four scores: there are no
    rows for those that aren't read.
    """
    if isinstance(stage, RewardStage) and stage.task == "rm_gap":
        return "rm_gap_pair" if stage.reward.gap_loss == "two_term" else "rm_gap"
    return stage.task


def reward_role(stage: RLStage) -> str:
    """Returns the role of an RL stage's reward model."""
    return ROLE_OF[REWARD_TASK_OF[stage.task]]


def role_of(stage: Stage) -> str:
    """Returns the role of a stage's model, one of method.roles.ROLES."""
    return getattr(stage, "role", "") or ROLE_OF[stage.task]


def check_name(name: str) -> None:
    """Refuses a stage's name that is no folder's inside of the run directory, or that of another.

    Raises:
      UserError: if it is.
    """
    if not _NAME.fullmatch(name) or name in _TAKEN:
        raise UserError(
            f"stage: got the name {name!r}, expected that of a folder in the run directory: "
            "letters, digits and any of ._+=@- and spaces, a letter or digit first, at most 100, "
            f"and none of {', '.join(_TAKEN)}"
        )


def _check_task(name: str, task: str, choices: tuple[str, ...]) -> None:
    check_name(name)
    if task not in choices:
        raise ValueError(f"stage {name}: got task={task!r}, expected one of {choices}")


def _check_steps(name: str, steps: int, batch_size: int, parts: int, what="microbatches") -> None:
    if steps < 1:
        raise ValueError(f"stage {name}: got steps={steps}, expected 1 or more")
    if parts < 1 or batch_size < 1 or batch_size % parts:
        raise ValueError(
            f"stage {name}: got batch_size={batch_size}, expected a multiple of {what}={parts}"
        )


def check_mesh(stage: Stage, network: NetworkConfig, partitioner: Partitioner) -> None:
    """Refuses what the mesh can't split, as every device would do all of its work.

    Raises:
      UserError: for heads that the mesh's model axis doesn't divide, or for a batch; it says what
        its size must be a multiple of.
    """
    rows, model = partitioner.row_shards, partitioner.mesh.shape["model"]
    if network.num_heads % model:
        raise UserError(f"mesh: got model={model}, expected a divisor of {network.num_heads} heads")
    if stage.batch_size % (stage.parts * rows):
        raise UserError(
            f"stage {stage.name}: got batch_size={stage.batch_size} in {stage.parts} parts, "
            f"expected a multiple of {stage.parts} x {rows}: rows are split over slices x data of "
            f"the mesh"
        )


def objective(
    stage: SupervisedStage | RewardStage, network: NetworkConfig, widths: Widths | None = None
) -> Callable:
    """Returns the loss that a stage minimises on its rows, a function of objectives.py.

    Args:
      stage: the stage.
      network: network of its model.
      widths: of the model's windows, which make a reward model's step cheaper if they are known.
    """
    if isinstance(stage, SupervisedStage):
        return objectives.supervised(network, stage.task in UNLIKELY)
    if stage.task == "rm_policy":
        return objectives.reward(network, stage.reward, widths)
    return objectives.gap_reward(network, stage.reward, TREES[rows_of(stage)], widths)


def held_out_objective(
    stage: RewardStage, network: NetworkConfig, widths: Widths | None = None
) -> Callable:
    """Returns the same with all metrics, on held-out rows of the stage's own task."""
    if stage.task == "rm_policy":
        return objectives.reward(network, stage.reward, widths)
    return objectives.gap_reward(network, stage.reward, widths=widths)


def init_language_model(network: NetworkConfig) -> Callable[[jax.Array], Any]:
    """Returns a function: key -> a policy's or PIT model's parameters, boxed with logical axes."""
    return _init(LanguageModel(network))


def init_scalar_model(network: NetworkConfig) -> Callable[[jax.Array], Any]:
    """Returns a function: key -> a reward model's or critic's parameters, boxed likewise."""
    return _init(ScalarModel(network))


@functools.cache  # JAX traces each function once
def _init(model: nn.Module) -> Callable[[jax.Array], Any]:
    def init(key):
        tokens_BT = jnp.zeros((1, 2), jnp.int32)
        return model.init(key, tokens_BT, tokens_BT, jnp.ones((1, 2, 2), bool))["params"]

    return init


def network_of(stage: Stage, network: NetworkConfig) -> NetworkConfig:
    """Returns the network that a stage trains, which for a warm-up has no adapters."""
    return network.without_adapters if stage.task == "pretrain" else network


def trained_part(init: Callable, network: NetworkConfig) -> Callable[[jax.Array], Any]:
    """Returns a function: key -> what is trained of the parameters that `init(network)` makes."""
    make = init(network)
    return (lambda key: adapters.split(make(key))[1]) if network.lora else make


def create_state(
    stage: Stage, networks: Networks, partitioner: Partitioner, key: jax.Array
) -> TrainState | RLState:
    """Makes a stage's random starting state on the mesh; parameters are float32."""
    create = starting_state(stage, networks)
    shardings = partitioner.tree_shardings(jax.eval_shape(create, key))
    return partitioner.jit(lambda key: nn.meta.unbox(create(key)), out_shardings=shardings)(key)


def optimizer(stage: Stage) -> optax.GradientTransformation:
    """The optimizer of all parameters that a stage trains."""
    if isinstance(stage, RLStage):
        return make_optimizer(stage.optimizer, stage.ppo)
    return stage.optimizer.build()


def starting_state(stage: Stage, networks: Networks) -> Callable[[jax.Array], TrainState | RLState]:
    """Returns a function: key -> the starting state, its parameters boxed with logical axes.

    Args:
      stage: the stage.
      networks: of PPO's models; for another stage `actor` is its own model's. The state has what
        is trained only, of a network with adapters.
    """
    rule, network = optimizer(stage), networks.actor

    def create(key):
        if isinstance(stage, SupervisedStage):
            return TrainState.create(trained_part(init_language_model, network)(key), rule)
        if isinstance(stage, RewardStage):
            return TrainState.create(trained_part(init_scalar_model, network)(key), rule)
        actor_key, critic_key = jax.random.split(key)
        params = {
            "actor": trained_part(init_language_model, network)(actor_key),
            "critic": trained_part(init_scalar_model, networks.critic)(critic_key),
        }
        train = TrainState.create(params, rule)
        return RLState(train, jnp.float32(stage.ppo.beta), Moments.zero())

    return create


def abstract_state(
    stage: Stage, networks: Networks, partitioner: Partitioner
) -> TrainState | RLState:
    """Returns the shapes and shardings of a stage's state; nothing is computed."""
    return _abstract(starting_state(stage, networks), partitioner)


def abstract_model(init: Callable, partitioner: Partitioner) -> Any:
    """Returns the shapes and shardings of a model's parameters, to restore into."""
    return _abstract(init, partitioner)


def abstract_frozen(init: Callable, network: NetworkConfig, partitioner: Partitioner) -> Any:
    """Returns those of a model that isn't trained, which is kept in the compute type."""
    abstract = abstract_model(init, partitioner)
    typed = jax.eval_shape(lambda params: in_compute_type(params, network), abstract)
    return jax.tree.map(
        lambda x, new: jax.ShapeDtypeStruct(x.shape, new.dtype, sharding=x.sharding),
        abstract,
        typed,
    )


def _abstract(create: Callable, partitioner: Partitioner) -> Any:
    boxed = jax.eval_shape(create, jax.random.key(0))
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        nn.meta.unbox(boxed),
        partitioner.tree_shardings(boxed),
    )


def reward_from_language_model(scalar: Any, language_model: Any) -> Any:
    """Makes a reward model's parameters: a language model's decoder with the head of `scalar`.

    With adapters this makes what is trained of the one of what is trained of the other.
    """
    if "decoder" not in scalar:  # no adapter but one of the output projection
        return scalar
    decoder = {name: language_model["decoder"][name] for name in scalar["decoder"]}
    return {**scalar, "decoder": decoder}


def critic_from_reward_model(reward_model: Any, pooling: str) -> Any:
    """Makes a critic's parameters from a reward model's.

    A head that is read at the last token already estimates the score there, so it is kept. A head
    that is summed over tokens gives parts of the score and no values, so it is set to zero.
    """
    if pooling == "last":
        return reward_model
    return {**reward_model, "head": jax.tree.map(jnp.zeros_like, reward_model["head"])}


def critic_from_actor(critic: Any, actor: Any) -> Any:
    """Makes a critic's parameters from the actor's, with a zero head."""
    critic = reward_from_language_model(critic, actor)
    return {**critic, "head": jax.tree.map(jnp.zeros_like, critic["head"])}


def own_copy(params: Any) -> Any:
    """Copies parameters into buffers of their own, since a donated state must not share any."""
    return jax.tree.map(lambda x: jnp.array(x, copy=True, device=x.sharding), params)
