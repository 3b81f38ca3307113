"""Gives stages and evaluations a run's resources, and the models that it has trained.

A run directory holds one folder per stage with `stage.json` (what it was started with),
`metrics.jsonl`, `checkpoints/` and, once it is complete, `result.json`.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from pit_jax.data import flat_arrays
from pit_jax.data.input_pipeline import InputPipeline
from pit_jax.data.layouts import Layout, Lengths
from pit_jax.data.vocabularies.base import Vocabulary
from pit_jax.errors import UserError
from pit_jax.method import flops, roles, self_refine
from pit_jax.method.improve import Improver
from pit_jax.method.roles import ROLES, Role
from pit_jax.method.sampler import Sampler
from pit_jax.run import directory as run_directory
from pit_jax.run import hugging_face, loading, stages, t5x_checkpoints
from pit_jax.run.config import RoleConfig, RunConfig
from pit_jax.run.stages import RewardStage, RLStage, Stage
from pit_jax.runtime import profiling
from pit_jax.runtime.partitioning import Partitioner
from pit_jax.runtime.signals import Signals

# Stands for the step of a choice that isn't made yet; no checkpoint has it.
_UNDECIDED = 0


def key_for(seed: int, *purposes: str | int) -> jax.Array:
    """Makes a key from a seed and what it is for; any other purpose gives another key."""
    key = jax.random.key(seed)
    for purpose in purposes:
        number = zlib.crc32(purpose.encode()) if isinstance(purpose, str) else purpose
        key = jax.random.fold_in(key, number)
    return key


class Run:
    """Holds what a run's stages and evaluations share: data, devices and trained models.

    Attributes:
      config: the run's configuration.
      directory: the run directory.
      self_refine: what asks M_P by Self-Refine.
      finds_windows: whether the windows come from the data; `config` has what was found.
      partitioner: the mesh.
      config_text: a gin file of the whole configuration, kept as `config.gin`; empty for none.
      profile: the steps of each stage to trace, None for none.
      allow_change: whether stages may go on with lower rates, see run/directory.py.
      peak: operations a second of all devices; 0 where it isn't known.
      signals: the signals that end the training of a stage early; the command line enters it.
      backbones: the backbones of models with adapters that are loaded, see run/loading.py.
      quantisation_errors: relative errors of those that are int8, by their folders.
      digests: of models that aren't the run's, by their paths, see run/sources.py.
    """

    def __init__(self, config: RunConfig, devices: Sequence[jax.Device] | None = None, keep=True):
        """Sets up the vocabulary and the mesh.

        Args:
          config: the run's configuration.
          devices: the devices to use; all of `jax.devices()` by default.
          keep: whether to make the folder where what is read of big files is kept.

        Raises:
          UserError: if vocabulary and network don't fit each other, or the prompts of Self-Refine
            can't be read or rendered.
        """
        self.directory = epath.Path(config.model_dir)
        cache = self.directory / flat_arrays.FOLDER
        self._cache = cache if keep or cache.is_dir() else ""
        self.finds_windows = any(config.of_role(name).windows.from_data for name in ROLES)
        prompts = self_refine.read(config.improve.self_refine)
        self._layouts: dict[RoleConfig, Layout] = {}
        self._pipelines: dict[tuple[Vocabulary, Lengths], InputPipeline] = {}
        for name in ROLES:
            model = dataclasses.replace(config.of_role(name), lengths=None)
            if model not in self._layouts:
                self._layouts[model] = Layout(loading.vocabulary(model, prompts.words))
        self.config = self._with_windows(config)
        self.place(Partitioner(config.mesh, devices))
        policy = self.role(roles.POLICY)
        self.self_refine = self_refine.SelfRefine(prompts, policy.layout, policy.widths.response)
        self.config_text = ""
        self.profile: profiling.Window | None = None
        self.allow_change = False
        self.signals = Signals()
        self._stages = {stage.name: stage for stage in config.stages}
        self.digests: dict[str, str] = {}

    def _layout(self, name: str) -> Layout:
        return self._layouts[dataclasses.replace(self.config.of_role(name), lengths=None)]

    def _with_windows(self, config: RunConfig) -> RunConfig:
        """The configuration with the windows of the data where it says 0.

        They are those that the run's stages were started with, if any was.
        """
        self.config = config
        found: dict[str, Any] = {}
        for name in ROLES:
            own = config.of_role(name).windows
            if not own.from_data:
                continue
            windows = run_directory.lengths(self.directory, config, name)
            if windows is None:
                layout = self._layout(name)
                key = layout.vocabulary, own
                if key not in self._pipelines:
                    dataset, batching = config.dataset, config.batching
                    self._pipelines[key] = InputPipeline(dataset, *key, batching, cache=self._cache)
                windows = self._pipelines[key].lengths
                self._pipelines[layout.vocabulary, windows] = self._pipelines[key]
            windows = dataclasses.replace(windows, reflection=own.reflection)
            if getattr(config, name) is None:
                found["lengths"] = windows
            else:
                found[name] = dataclasses.replace(getattr(config, name), lengths=windows)
        return dataclasses.replace(config, **found)

    def place(self, partitioner: Partitioner) -> None:
        """Moves the run to a mesh."""
        self.partitioner = partitioner
        self.backbones: dict[Any, Any] = {}
        self.quantisation_errors: dict[str, float] = {}
        self.peak = flops.peak(device.device_kind for device in partitioner.mesh.devices.flat)
        made: dict[RoleConfig, Role] = {}
        for name in ROLES:
            model = self.config.of_role(name)
            if model not in made:
                made[model] = self._make_role(model, self._layout(name))
        self._roles = made  # at once: another thread may be reading batches

    def _make_role(self, model: RoleConfig, layout: Layout) -> Role:
        vocabulary = layout.vocabulary
        sampler = Sampler(
            model.network,
            self.partitioner,
            layout.widths(model.windows).response,
            self.config.sampling_batch,
            vocabulary.sampled_ids(model.network.vocab_size),
            vocabulary.ends,
        )
        return Role(model.network, layout, model.windows, sampler)

    def role(self, name: str) -> Role:
        """Returns how the models of a role read and write, one of roles.ROLES."""
        return self._roles[self.config.of_role(name)]

    def role_of(self, stage: Stage | str) -> Role:
        """Returns that of a stage's model, or of a trained stage by its name or path."""
        return self.role(self.role_name(stage))

    def role_name(self, stage: Stage | str) -> str:
        """Returns the role of a stage's model, or of a trained stage by its name or path."""
        if isinstance(stage, str) and stage in self._stages:
            stage = self._stages[stage]
        if isinstance(stage, str):
            return stages.ROLE_OF[self.task_of(stage)]
        return stages.role_of(stage)

    @property
    def data(self) -> InputPipeline:
        """The dataset's batches and texts, as M_P reads them, loaded when first asked for.

        Raises:
          UserError: if the dataset can't be read.
        """
        return self.data_of(roles.POLICY)

    def data_of(self, name: str) -> InputPipeline:
        """The same as a role reads them: examples that fit the windows of every role."""
        readers = {role: (self.role(role).vocabulary, self.role(role).lengths) for role in ROLES}
        mine = readers[name]
        beside = [reader for reader in dict.fromkeys(readers.values()) if reader != mine]
        if mine not in self._pipelines or beside != self._pipelines[mine].beside:
            config = self.config
            self._pipelines[mine] = InputPipeline(
                config.dataset, *mine, config.batching, beside, self._cache
            )
        return self._pipelines[mine]

    def reward_data(self, stage: Stage) -> InputPipeline | None:
        """The data as a PPO stage's reward model reads it, where that reads other ids."""
        if not isinstance(stage, RLStage):
            return None
        role = stages.reward_role(stage)
        if self.role(role).vocabulary == self.role_of(stage).vocabulary:
            return None
        return self.data_of(role)

    def folder(self, name: str) -> epath.Path:
        """Returns the folder of a stage of this run, or of another run's stage by its path.

        Raises:
          UserError: for a name that is no stage's, such as `..`.
        """
        if "/" not in name:
            stages.check_name(name)
        return epath.Path(name) if "/" in name else self.directory / name

    def stage(self, name: str) -> Stage:
        """Returns the stage of this name.

        Raises:
          UserError: if the run has no such stage.
        """
        if name not in self._stages:
            raise UserError(f"stage: got {name!r}, expected one of {', '.join(self._stages)}")
        return self._stages[name]

    def is_complete(self, name: str) -> bool:
        """Returns whether a stage has its result."""
        return (self.folder(name) / "result.json").exists()

    def progress(self, name: str) -> str:
        """Returns how far a stage is: `yes`, `no`, or the step of its last checkpoint."""
        if self.is_complete(name):
            return "yes"
        steps = run_directory.steps(self.folder(name))
        return f"step {max(steps)}" if steps else "no"

    def result(self, name: str, role: str = roles.POLICY) -> dict[str, Any]:
        """Returns what a completed stage reports: steps, seconds, tokens, metrics, model_step.

        `role` is that of a Hugging Face model, which is checked against it.

        For a stage that T5X trained this is its task, model_step and a reward model's pooling, as
        the stage of this run has them that is named like the folder. A Hugging Face model counts as
        the warm-up. Where a checkpoint is chosen, model_step is its step.

        Raises:
          UserError: if the stage isn't trained, or the choice isn't made yet that it is set to.
        """
        if self.is_complete(name):
            result = self._recorded(name)
            step = self._chosen_step(name)
            if step == _UNDECIDED:
                raise UserError(
                    f"{self._choice_path(name)}: not found or made by other settings; `run`, or "
                    f"`train` of stage {name!r}, makes the choice"
                )
            return result | ({} if step is None else {"model_step": step})
        if hugging_face.is_model(self.folder(name)):
            self._check_hugging_face(name, role)
            return {"task": "pretrain", "model_step": 0}
        checkpoint = self.t5x_checkpoint(name)
        if checkpoint is None:
            raise UserError(hugging_face.not_found(self.folder(name), name))
        parts = reversed(epath.Path(name).parts)
        stage = self.stage(next((part for part in parts if part in self._stages), name))
        result = {"task": stage.task, "model_step": t5x_checkpoints.step_of(checkpoint)}
        if isinstance(stage, RewardStage):
            result["pooling"] = stage.reward.pooling
        return result

    def _check_hugging_face(self, name: str, role: str) -> None:
        own = self.role(role)
        network = own.network.without_adapters
        model = stages.abstract_model(stages.init_language_model(network), self.partitioner)
        hugging_face.check(self.folder(name), network, own.vocabulary, model)

    def task_of(self, name: str, role: str = roles.POLICY) -> str:
        """Returns the task of a trained stage, also where its checkpoint isn't chosen yet.

        For `role` see `result`.

        Raises:
          UserError: if the stage isn't trained.
        """
        if not self.is_complete(name):
            return self.result(name, role)["task"]
        return self._recorded(name)["task"]

    def _recorded(self, name: str) -> dict[str, Any]:
        """What a complete stage has recorded; one of this run isn't in the place of another."""
        path = self.folder(name) / "result.json"
        result = run_directory.read_json(path)
        if name in self._stages and result.get("name") in self._stages:
            run_directory.check_name(path, result)
        return result

    def choice(self, name: str) -> dict[str, Any] | None:
        """Returns what run/choosing.py has recorded of a stage; None if that isn't made yet.

        Of a stage of this run it counts only if it was made as the configuration says.
        """
        path = self._choice_path(name)
        made = run_directory.read_json(path) if path.exists() else None
        if made is None or name not in self._stages:
            return made
        wanted = self._choice_settings(name)
        return made if wanted and wanted | {"step": 0} == made["settings"] else None

    def _choice_path(self, name: str) -> epath.Path:
        return self.folder(name) / "choice.json"

    def _choice_settings(self, name: str) -> dict[str, Any]:
        choice = getattr(self._stages.get(name), "choice", None)
        return dataclasses.asdict(choice) if choice else {}

    def _chosen_step(self, name: str) -> int | None:
        """The step that is chosen of a complete stage; None where its last checkpoint counts."""
        settings = self._choice_settings(name)
        if name in self._stages and not settings:
            return None
        made = self.choice(name)
        if name not in self._stages:
            return made["chosen"] if made else None
        return settings["step"] or (made["proposed"] if made else _UNDECIDED)

    def settings(self, stage: Stage) -> dict[str, str]:
        """Returns what determines a stage's result, chosen checkpoints included."""

        def chosen(name: str) -> str | None:
            if not self.is_complete(name) or (step := self._chosen_step(name)) == _UNDECIDED:
                return None
            if step is None:
                return ""
            path = self.folder(name) / "result.json"
            return "" if step == run_directory.read_json(path)["model_step"] else str(step)

        found = run_directory.settings(
            self.config, stage, {name: self.role(name).vocabulary for name in ROLES}
        )
        folder = self.folder(stage.name)
        return run_directory.with_choices(found, folder, self.config, stage, chosen)

    def key(self, *purposes: str | int) -> jax.Array:
        """Makes a key from the run's seed and what it is for."""
        return key_for(self.config.seed, *purposes)

    def load(self, name: str, step: int | None = None, role: str = "") -> Any:
        """Loads the float32 parameters that a stage ended with, to train on or to export.

        They are those of the stage's last checkpoint, or of the one that was chosen; a reward
        model's are those of its best.

        Args:
          name: a stage of this run, or the path of another run's stage folder, of a checkpoint
            that T5X wrote, or of a Hugging Face model.
          step: the step of another checkpoint to load instead.
          role: the role that the model is to have; by default that of its task.

        Raises:
          UserError: if the stage isn't trained, or its model doesn't fit this run.

        Returns:
          a tree, or an Adapted for a model with adapters (models/adapters.py).
        """
        return loading.load(self, name, step, role or self.role_name(name))

    def anchor(self, reward_stage: str) -> float:
        """The score of a reward stage's model that counts as 0, see stage_training."""
        return self.result(reward_stage).get("anchor", 0.0)

    def pooling(self, reward_stage: str) -> str:
        """Returns how a reward stage's score is read: `last` or `sum`."""
        return self.result(reward_stage)["pooling"]

    def load_frozen(self, name: str, step: int | None = None, role: str = "") -> Any:
        """Loads the parameters of `load` in the compute type, for a model that isn't trained.

        Models with adapters on the same backbone share its arrays.
        """
        return loading.load_frozen(self, name, step, role or self.role_name(name))

    def reflects(self, name: str) -> bool:
        """Returns whether a stage's model writes a reflection before its response (Appendix K).

        Raises:
          UserError: if the stage isn't trained, or this run has no room for its reflections.
        """
        reflects = self.task_of(name) == "sft_pit_reflection"
        if reflects and not self.role(roles.PIT).lengths.reflection:
            raise UserError(
                f"{name}: writes a reflection before its response; got reflection=0 of Lengths, "
                "expected the window that it was trained with"
            )
        return reflects

    def improver(
        self,
        model: Any,
        gap_model: Any = None,
        gap_stage: str = "",
        reflects: bool = False,
        role: str = roles.PIT,
    ) -> Improver:
        """Makes what runs Algorithm 2 on this run's mesh.

        Args:
          model: parameters of M_PIT; of M_P for Self-Refine.
          gap_model: parameters of R_PIT, None to score no gaps.
          gap_stage: the stage that trained R_PIT.
          reflects: whether M_PIT writes a reflection before its response, see `reflects`.
          role: the role of `model`.
        """
        return Improver(
            role=self.role(role),
            model=model,
            judge=self.role(roles.GAP_REWARD),
            gap_model=gap_model,
            pooling=self.pooling(gap_stage) if gap_stage else "last",
            anchor=self.anchor(gap_stage) if gap_stage else 0.0,
            reflects=reflects,
            refine=self.self_refine,
        )

    def is_from_t5x(self, name: str) -> bool:
        """Returns whether T5X has trained a stage."""
        return self.t5x_checkpoint(name) is not None

    def t5x_checkpoint(self, name: str, step: int | None = None) -> epath.Path | None:
        """Finds the newest checkpoint, or that of `step`, of a stage that T5X trained."""
        return None if self.is_complete(name) else t5x_checkpoints.find(self.folder(name), step)

    def check_data(self, needed: bool = True) -> None:
        """Refuses to go on with stages of this run that were trained on other examples.

        Args:
          needed: whether the data must be there; if not, it is no mistake that it can't be read.

        Raises:
          UserError: for the first stage that was.
        """
        try:
            digest = self.data.digest
        except UserError:
            if needed:
                raise
            return
        for name in self._stages:
            run_directory.check_data(self.folder(name), digest)

    def identity(self, role: str) -> dict[str, str]:
        """Returns what gives a role's parameters their meaning, as directory.identity has it."""
        own = self.role(role)
        return run_directory.identity(own.network, own.vocabulary)
