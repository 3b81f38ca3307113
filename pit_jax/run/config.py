"""Holds everything that a run is made of in one frozen dataclass."""

from __future__ import annotations

import dataclasses

from pit_jax.checked import UserPath, at_least, checked
from pit_jax.data.batching import BatchingConfig
from pit_jax.data.datasets import DatasetConfig, MixtureConfig
from pit_jax.data.layouts import Lengths
from pit_jax.errors import UserError
from pit_jax.method.environment import Networks
from pit_jax.method.improve import ImproveConfig
from pit_jax.method.roles import GAP_REWARD, PIT, POLICY, POLICY_REWARD
from pit_jax.models.config import NetworkConfig
from pit_jax.run.stages import RLStage, Stage, network_of, reward_role, role_of
from pit_jax.runtime.partitioning import MeshConfig


@dataclasses.dataclass(frozen=True)
@checked
class RoleConfig:
    """Says what is different about the models of one role (method/roles.py).

    Attributes:
      network: their network.
      vocabulary, control_tokens, eos_token, pad_token, chat_template: as of RunConfig.
      lengths: their windows in tokens of their vocabulary; None for the run's.
    """

    network: NetworkConfig
    vocabulary: UserPath
    lengths: Lengths | None = None
    control_tokens: tuple[str, ...] = ()
    eos_token: str = ""
    pad_token: str = ""
    chat_template: UserPath = "none"

    @property
    def windows(self) -> Lengths:
        """The windows, of a role that `RunConfig.of_role` gives."""
        assert self.lengths is not None
        return self.lengths


@dataclasses.dataclass(frozen=True)
@checked
class RunConfig:
    """Holds everything that a run is made of.

    Attributes:
      model_dir: the run directory, on a disk or in a bucket: `gs://BUCKET/FOLDER`.
      seed: seed of initial weights, data order and sampling.
      network: the network of every model, but for roles that have their own.
      vocabulary: `bytes`, `words:FAMILY`, `sentencepiece:PATH` or `tokenizer:PATH`.
      dataset: the preference data, or a mixture of some.
      lengths: windows in tokens.
      stages: the stages, in the order in which they run.
      control_tokens: names of the tokenizer's two reserved pieces that become `<<Candidate>>` and
        `<<Improved>>`; by default ids are appended for them.
      eos_token: name of the tokenizer's EOS piece, if its files don't tell.
      pad_token: name of the tokenizer's padding piece, or of an unused reserved piece; by default
        what its files tell, else an appended id.
      chat_template: what makes prompts: `none` for the paper's `Human: … Assistant:`, `tokenizer`
        for the chat template of a Hugging Face tokenizer, or the path of a template.
      batching: packing and length buckets.
      mesh: the mesh of devices.
      sampling_batch: rows decoded at once when references and evaluations are sampled.
      shard_size: records in a shard of a reference store, and rows that `improve` samples and
        writes together.
      improve: iterations and stop criteria of the `improve` command.
      tensorboard: whether to write TensorBoard events.
      compilation_cache: whether compiled programs are kept in the run directory, so that commands
        that are given again, or go on, needn't compile them again.
      wandb_project: project in which Weights & Biases shows the metrics too; empty for none.
      policy, pit, policy_reward, gap_reward: what is different about the models of M_P, M_PIT, R_P
        and R_PIT, where they aren't of one network and vocabulary; the critic has the network of
        what it starts from.
    """

    model_dir: UserPath
    seed: int
    network: NetworkConfig
    vocabulary: UserPath
    dataset: DatasetConfig | MixtureConfig
    lengths: Lengths
    stages: tuple[Stage, ...]
    control_tokens: tuple[str, ...] = ()
    eos_token: str = ""
    pad_token: str = ""
    chat_template: UserPath = "none"
    batching: BatchingConfig = BatchingConfig()
    mesh: MeshConfig = MeshConfig()
    sampling_batch: int = 256
    shard_size: int = 1024
    improve: ImproveConfig = ImproveConfig()
    tensorboard: bool = False
    compilation_cache: bool = True
    wandb_project: str = ""
    policy: RoleConfig | None = None
    pit: RoleConfig | None = None
    policy_reward: RoleConfig | None = None
    gap_reward: RoleConfig | None = None

    def __post_init__(self):
        names = [stage.name for stage in self.stages]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise UserError(f"run: stage names must differ, got {', '.join(repeated)} twice")
        if not self.model_dir.strip():
            raise UserError("run: MODEL_DIR is empty, expected a directory for the run")
        if not 0 <= self.seed < 2**32:  # JAX would take another one for it in silence
            raise UserError(f"RunConfig.seed: got {self.seed}, expected 0 to {2**32 - 1}")
        at_least(self, 1, "sampling_batch", "shard_size")

    def of_role(self, role: str) -> RoleConfig:
        """Returns what the models of a role are, one of method.roles.ROLES."""
        own = {
            POLICY: self.policy,
            PIT: self.pit,
            POLICY_REWARD: self.policy_reward,
            GAP_REWARD: self.gap_reward,
        }[role]
        if own is not None:
            return own if own.lengths else dataclasses.replace(own, lengths=self.lengths)
        fields = [field.name for field in dataclasses.fields(RoleConfig)]
        return RoleConfig(**{name: getattr(self, name) for name in fields})

    def networks(self, stage: Stage) -> Networks:
        """Returns the networks of a stage's models; for one without PPO all are its own."""
        own = network_of(stage, self.of_role(role_of(stage)).network)
        if not isinstance(stage, RLStage):
            return Networks.same(own)
        reward = self.of_role(reward_role(stage)).network
        return Networks(own, own if stage.ppo.critic_start == "actor" else reward, reward)
