"""Gives stages and evaluations a run's resources, and the models that it has trained.

A run directory holds one folder per stage with `stage.json` (what it was started with),
`metrics.jsonl`, `checkpoints/` and, once it is complete, `result.json`.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from etils import epath

from pit_jax.data.input_pipeline import InputPipeline
from pit_jax.data.layouts import Layout
from pit_jax.data.vocabularies.base import Vocabulary
from pit_jax.data.vocabularies.load import load as load_vocabulary
from pit_jax.errors import UserError
from pit_jax.method import flops, self_refine
from pit_jax.method.improve import Improver
from pit_jax.method.sampler import Sampler
from pit_jax.run import directory as run_directory
from pit_jax.run import hugging_face, loading, stages, t5x_checkpoints
from pit_jax.run.config import RunConfig
from pit_jax.run.stages import RewardStage, Stage
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
      vocabulary: the vocabulary of the data and the models.
      layout: the token layouts of the models' inputs.
      self_refine: what asks M_P by Self-Refine.
      finds_windows: whether the windows come from the data; `config` has what was found.
      partitioner: the mesh.
      config_text: a gin file of the whole configuration, kept as `config.gin`; empty for none.
      profile: the steps of each stage to trace, None for none.
      peak: operations a second of all devices; 0 where it isn't known.
      sampler: what samples and scores in batches.
      signals: the signals that end the training of a stage early; the command line enters it.
      backbones: the backbones of models with adapters that are loaded, see run/loading.py.
      quantisation_errors: relative errors of those that are int8, by their folders.
    """

    def __init__(self, config: RunConfig, devices: Sequence[jax.Device] | None = None):
        """Sets up the vocabulary and the mesh.

        Args:
          config: the run's configuration.
          devices: the devices to use; all of `jax.devices()` by default.

        Raises:
          UserError: if vocabulary and network don't fit each other, or the prompts of Self-Refine
            can't be read or rendered.
        """
        self.config = config
        self.directory = epath.Path(config.model_dir)
        prompts = self_refine.read(config.improve.self_refine)
        self.vocabulary: Vocabulary = load_vocabulary(
            config.vocabulary,
            prompts.words,
            config.control_tokens,
            config.eos_token,
            config.pad_token,
            config.chat_template,
        )
        if self.vocabulary.vocab_size > config.network.vocab_size:
            raise UserError(
                f"network: got vocab_size={config.network.vocab_size}, expected at least "
                f"{self.vocabulary.vocab_size}, the size of vocabulary {config.vocabulary!r} with "
                "its ids for padding and control tokens"
            )
        self.layout = Layout(self.vocabulary)
        self.finds_windows = config.lengths.from_data
        if self.finds_windows:
            lengths = run_directory.lengths(self.directory) or self.data.lengths
            lengths = dataclasses.replace(lengths, reflection=config.lengths.reflection)
            self.config = config = dataclasses.replace(config, lengths=lengths)
        window = self.layout.widths(config.lengths).response
        self.self_refine = self_refine.SelfRefine(prompts, self.layout, window)
        self.place(Partitioner(config.mesh, devices))
        self.config_text = ""
        self.profile: profiling.Window | None = None
        self.signals = Signals()
        self._stages = {stage.name: stage for stage in config.stages}

    @functools.cached_property
    def data(self) -> InputPipeline:
        """The dataset's batches and texts, loaded when they are first asked for.

        Raises:
          UserError: if the dataset can't be read.
        """
        config = self.config
        return InputPipeline(config.dataset, self.vocabulary, config.lengths, config.batching)

    def place(self, partitioner: Partitioner) -> None:
        """Moves the run to a mesh."""
        config = self.config
        self.partitioner = partitioner
        self.backbones: dict[Any, Any] = {}
        self.quantisation_errors: dict[str, float] = {}
        self.peak = flops.peak(device.device_kind for device in partitioner.mesh.devices.flat)
        response = self.layout.widths(config.lengths).response
        allowed_V = self.vocabulary.sampled_ids(config.network.vocab_size)
        self.sampler = Sampler(
            config.network,
            partitioner,
            response,
            config.sampling_batch,
            allowed_V,
            self.vocabulary.ends,
        )

    def folder(self, name: str) -> epath.Path:
        """Returns the folder of a stage of this run, or of another run's stage by its path."""
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

    def result(self, name: str) -> dict[str, Any]:
        """Returns what a completed stage reports: steps, seconds, tokens, metrics, model_step.

        For a stage that T5X trained this is its task, model_step and a reward model's pooling, as
        the stage of this run has them that is named like the folder. A Hugging Face model counts as
        the warm-up. Where a checkpoint is chosen, model_step is its step.

        Raises:
          UserError: if the stage isn't trained, or the choice isn't made yet that it is set to.
        """
        if self.is_complete(name):
            result = run_directory.read_json(self.folder(name) / "result.json")
            step = self._chosen_step(name)
            if step == _UNDECIDED:
                raise UserError(
                    f"{self._choice_path(name)}: not found or made by other settings; `run`, or "
                    f"`train` of stage {name!r}, makes the choice"
                )
            return result | ({} if step is None else {"model_step": step})
        if hugging_face.is_model(self.folder(name)):
            model = self._abstract(stages.init_language_model)
            hugging_face.check(self.folder(name), self.config.network, self.vocabulary, model)
            return {"task": "pretrain", "model_step": 0}
        checkpoint = self.t5x_checkpoint(name)
        if checkpoint is None:
            path = self.folder(name) / "result.json"
            raise UserError(f"{path}: not found; train stage {name!r} first")
        parts = reversed(epath.Path(name).parts)
        stage = self.stage(next((part for part in parts if part in self._stages), name))
        result = {"task": stage.task, "model_step": t5x_checkpoints.step_of(checkpoint)}
        if isinstance(stage, RewardStage):
            result["pooling"] = stage.reward.pooling
        return result

    def task_of(self, name: str) -> str:
        """Returns the task of a trained stage, also where its checkpoint isn't chosen yet.

        Raises:
          UserError: if the stage isn't trained.
        """
        if not self.is_complete(name):
            return self.result(name)["task"]
        return run_directory.read_json(self.folder(name) / "result.json")["task"]

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

        found = run_directory.settings(self.config, stage, self.vocabulary)
        folder = self.folder(stage.name)
        return run_directory.with_choices(found, folder, self.config, stage, chosen)

    def key(self, *purposes: str | int) -> jax.Array:
        """Makes a key from the run's seed and what it is for."""
        return key_for(self.config.seed, *purposes)

    def load(self, name: str, step: int | None = None) -> Any:
        """Loads the float32 parameters that a stage ended with, to train on or to export.

        They are those of the stage's last checkpoint, or of the one that was chosen; a reward
        model's are those of its best.

        Args:
          name: a stage of this run, or the path of another run's stage folder, of a checkpoint
            that T5X wrote, or of a Hugging Face model.
          step: the step of another checkpoint to load instead.

        Raises:
          UserError: if the stage isn't trained, or its model doesn't fit this run.
        """
        return loading.load(self, name, step, self.kind)

    @property
    def kind(self) -> loading.Kind:
        """What the parameters of the run's models mean."""
        return loading.Kind(self.config.network, self.vocabulary)

    def _abstract(self, init: Callable) -> Any:
        """The shapes and shardings of the parameters that `init(network)` makes."""
        network = self.config.network.without_adapters
        return stages.abstract_model(init(network), self.partitioner)

    def anchor(self, reward_stage: str) -> float:
        """The score of a reward stage's model that counts as 0, see stage_training."""
        return self.result(reward_stage).get("anchor", 0.0)

    def pooling(self, reward_stage: str) -> str:
        """Returns how a reward stage's score is read: `last` or `sum`."""
        return self.result(reward_stage)["pooling"]

    def load_frozen(self, name: str, step: int | None = None) -> Any:
        """Loads the parameters of `load` in the compute type, for a model that isn't trained.

        Models with adapters on the same backbone share its arrays.
        """
        return loading.load_frozen(self, name, step, self.kind)

    def reflects(self, name: str) -> bool:
        """Returns whether a stage's model writes a reflection before its response (Appendix K).

        Raises:
          UserError: if the stage isn't trained, or this run has no room for its reflections.
        """
        reflects = self.result(name)["task"] == "sft_pit_reflection"
        if reflects and not self.config.lengths.reflection:
            raise UserError(
                f"{name}: writes a reflection before its response; got reflection=0 of Lengths, "
                "expected the window that it was trained with"
            )
        return reflects

    def improver(
        self, model: Any, gap_model: Any = None, gap_stage: str = "", reflects: bool = False
    ) -> Improver:
        """Makes what runs Algorithm 2 on this run's mesh.

        Args:
          model: parameters of M_PIT.
          gap_model: parameters of R_PIT, None to score no gaps.
          gap_stage: the stage that trained R_PIT.
          reflects: whether M_PIT writes a reflection before its response, see `reflects`.
        """
        return Improver(
            sampler=self.sampler,
            layout=self.layout,
            lengths=self.config.lengths,
            encode=self.vocabulary.encode,
            decode=self.vocabulary.decode,
            model=model,
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

    def identity(self) -> dict[str, str]:
        """Returns what gives the models' parameters their meaning, as directory.identity has it."""
        return run_directory.identity(self.config.network, self.vocabulary)
