"""A whole run: stages in order, each resumed or skipped as its folder says, then the evaluation.

A run directory holds one folder per stage with `stage.json` (what it was started with),
`metrics.jsonl`, `checkpoints/` and, once it is complete, `result.json`. Giving the same command
again continues at the last checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from etils import epath

from pit_jax import curriculum, flops, processes, profiling, run_directory, stages, trainer
from pit_jax import metrics as metrics_lib
from pit_jax.checkpoints import Checkpoints
from pit_jax.data.batching import BatchingConfig
from pit_jax.data.datasets import DatasetConfig, MixtureConfig
from pit_jax.data.formats import Layout, Lengths
from pit_jax.data.input_pipeline import InputPipeline
from pit_jax.data.reference_store import ReferenceMeta, ReferenceWriter
from pit_jax.data.vocabularies import Vocabulary
from pit_jax.data.vocabularies import load as load_vocabulary
from pit_jax.errors import UserError
from pit_jax.files import write_whole
from pit_jax.improve import ImproveConfig, Improver
from pit_jax.models.config import NetworkConfig
from pit_jax.models.network import in_compute_type
from pit_jax.partitioning import MeshConfig, OnHost, Partitioner
from pit_jax.sampler import Sampler
from pit_jax.signals import Signals
from pit_jax.stages import RewardStage, RLStage, Stage, SupervisedStage

_SHOWN = {
    "pretrain": ("loss", "token_accuracy"),
    "sft_policy": ("loss", "token_accuracy"),
    "sft_pit": ("loss", "token_accuracy"),
    "rm_policy": ("loss", "accuracy", "held_out_accuracy"),
    "rm_gap": ("loss", "accuracy", "held_out_accuracy"),
    "rl_policy": ("score", "kl", "eos_rate"),
    "rl_pit": ("score", "kl", "eos_rate"),
}


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything a run is made of.

    Attributes:
      model_dir: the run directory, on a disk or in a bucket: `gs://BUCKET/FOLDER`.
      seed: of initial weights, data order and sampling.
      network: of every role.
      vocabulary: `bytes`, `words:FAMILY`, `sentencepiece:PATH` or `tokenizer:PATH`.
      dataset: the preference data, or a mixture of some.
      lengths: windows in tokens.
      stages: in the order they run.
      control_tokens: of a tokenizer: names of the two reserved pieces that become `<<Candidate>>`
        and `<<Improved>>`.
      eos_token: of a tokenizer: name of its EOS piece, where its files don't tell.
      pad_token: of a tokenizer: name of its padding piece, or of an unused reserved one.
      batching: packing and length buckets.
      mesh: of devices.
      sampling_batch: rows decoded at once when references and evaluations are sampled.
      shard_size: records in a shard of a reference store.
      improve: iterations and stop criteria of the `improve` command.
      tensorboard: whether to write TensorBoard events.
      wandb_project: where Weights & Biases shows the metrics too; empty: nowhere.
    """

    model_dir: str
    seed: int
    network: NetworkConfig
    vocabulary: str
    dataset: DatasetConfig | MixtureConfig
    lengths: Lengths
    stages: tuple[Stage, ...]
    control_tokens: tuple[str, ...] = ()
    eos_token: str = ""
    pad_token: str = ""
    batching: BatchingConfig = BatchingConfig()
    mesh: MeshConfig = MeshConfig()
    sampling_batch: int = 256
    shard_size: int = 1024
    improve: ImproveConfig = ImproveConfig()
    tensorboard: bool = False
    wandb_project: str = ""

    def __post_init__(self):
        names = [stage.name for stage in self.stages]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise UserError(f"run: stage names must differ, got {', '.join(repeated)} twice")
        if not self.model_dir:
            raise UserError("run: MODEL_DIR is empty, expected a directory for the run")


class Run:
    """A run on the devices of all processes.

    Attributes:
      config: what it is made of.
      directory: the run directory.
      data: the dataset's batches and texts.
      vocabulary, layout: of the data.
      partitioner: the mesh.
      config_text: the configuration as the user's file has it; kept in the folder of each stage.
      profile: steps of each stage to trace.
      sampler: decodes and scores in batches.
      signals: that end the training of a stage early; entered by the command line.
    """

    def __init__(self, config: RunConfig, devices: Sequence[jax.Device] | None = None):
        """Loads the data and sets up the mesh.

        Args:
          config: what it is made of.
          devices: the devices to use; all of `jax.devices()` by default.

        Raises:
          UserError: for data, vocabulary or a network that don't fit each other.
        """
        self.config = config
        self.directory = epath.Path(config.model_dir)
        self.partitioner = Partitioner(config.mesh, devices)
        self._peak = flops.peak(device.device_kind for device in self.partitioner.mesh.devices.flat)
        words = " ".join([config.improve.feedback_prompt, config.improve.refine_prompt])
        extra = tuple(word for word in words.split() if not word.startswith("{"))
        self.vocabulary: Vocabulary = load_vocabulary(
            config.vocabulary, extra, config.control_tokens, config.eos_token, config.pad_token
        )
        if self.vocabulary.vocab_size > config.network.vocab_size:
            raise UserError(
                f"network: got vocab_size={config.network.vocab_size}, expected at least "
                f"{self.vocabulary.vocab_size}, the size of vocabulary {config.vocabulary!r}"
            )
        self.layout = Layout(self.vocabulary)
        self.data = InputPipeline(config.dataset, self.vocabulary, config.lengths, config.batching)
        response = self.layout.widths(config.lengths).response
        self.sampler = Sampler(config.network, self.partitioner, response, config.sampling_batch)
        self.config_text = ""
        self.profile: profiling.Window | None = None
        self.signals = Signals()
        self._stages = {stage.name: stage for stage in config.stages}

    def stage(self, name: str) -> Stage:
        """The stage of this name.

        Raises:
          UserError: if the run has none.
        """
        if name not in self._stages:
            raise UserError(f"stage: got {name!r}, expected one of {', '.join(self._stages)}")
        return self._stages[name]

    def is_complete(self, name: str) -> bool:
        """Whether a stage has its result."""
        return (self.directory / name / "result.json").exists()

    def result(self, name: str) -> dict[str, Any]:
        """What a completed stage reports: steps, seconds, tokens, final metrics, model_step."""
        path = self._folder(name) / "result.json"
        if not path.exists():
            raise UserError(f"{path}: not found; train stage {name!r} first")
        return json.loads(path.read_text())

    def key(self, *purposes: str | int) -> jax.Array:
        """A key from the run's seed and what it is for."""
        key = jax.random.key(self.config.seed)
        for purpose in purposes:
            number = zlib.crc32(purpose.encode()) if isinstance(purpose, str) else purpose
            key = jax.random.fold_in(key, number)
        return key

    @functools.lru_cache(maxsize=8)  # noqa: B019 - a Run lives as long as its process
    def model(self, name: str, step: int | None = None) -> Any:
        """`load`, remembered: for evaluations, which come back to the same few models."""
        return self.load(name, step)

    def load(self, name: str, step: int | None = None) -> Any:
        """Parameters a stage ended with: its last checkpoint, or a reward model's best one.

        Args:
          name: a stage of this run, or the path of another run's stage folder.
          step: a certain checkpoint instead.

        Raises:
          UserError: if it isn't trained.
        """
        result = self.result(name)
        run_directory.check_identity(self._folder(name), self._identity())
        scalar = result["task"] in stages.REWARD_TASKS
        init = stages.init_scalar_model if scalar else stages.init_language_model
        checkpoints = Checkpoints(self._folder(name) / "checkpoints", read_only=True)
        abstract = stages.abstract_model(init(self.config.network), self.partitioner)
        params = checkpoints.restore_model(abstract, step or result["model_step"])
        checkpoints.close()
        return params

    def improver(self, pit: str, gap: str | None = None) -> Improver:
        """Algorithm 2 with the models of these stages."""
        if gap is None:
            return self._improver(self.model(pit))
        return self._improver(self.model(pit), self.model(gap), self.pooling(gap))

    def pooling(self, reward_stage: str) -> str:
        """How a reward stage's score is read."""
        return self.result(reward_stage)["pooling"]

    def train_all(self) -> None:
        """Runs every stage that isn't complete, in order."""
        for stage in self.config.stages:
            self.train(stage.name)

    def train(self, name: str) -> dict[str, Any]:
        """Runs one stage, from its last checkpoint if there is one; returns its result.

        Raises:
          UserError: if its folder holds a stage with other settings, or what it starts from isn't
            trained.
        """
        stage = self.stage(name)
        stages.check_rows(stage, self.partitioner)
        folder = self.directory / name
        settings = run_directory.settings(self.config, stage, self.vocabulary)
        run_directory.claim(folder, settings, self._identity())
        if self.is_complete(name):
            print(f"{name}: complete, skipped", flush=True)
            return self.result(name)
        if processes.is_first():
            write_whole(folder / "operative_config.gin", self.config_text)
        best = "accuracy" if isinstance(stage, RewardStage) else None
        keep_every = stage.keep_every if isinstance(stage, RLStage) else 0
        checkpoints = Checkpoints(folder / "checkpoints", best, keep_every)
        try:
            state, progress = self._fit(stage, checkpoints, keep_every)
        finally:  # an interrupted run too leaves its last checkpoint whole
            checkpoints.close()
        self._finish(stage, state, progress)
        return self.result(name)

    def _fit(self, stage: Stage, checkpoints: Checkpoints, keep_every: int):
        name = stage.name
        state = stages.create_state(
            stage, self.config.network, self.partitioner, self.key("init", stage.task)
        )
        progress = trainer.Progress()
        if checkpoints.latest_step() is not None:
            state, extra = checkpoints.restore(state)
            progress = trainer.Progress(**extra)
            print(f"{name}: continues at step {progress.step}", flush=True)
        else:
            state = self._start_from(stage, state)
        with (
            self._writer(stage, progress.step) as writer,
            self._profiler(stage, progress) as profiler,
        ):
            fit = functools.partial(
                trainer.fit,
                progress=progress,
                loop=stage.loop,
                writer=writer,
                checkpoints=checkpoints,
                keep_every=keep_every,
                peak=self._peak,
                wrap=profiler.wrap,
                signals=self.signals,
            )
            if isinstance(stage, RLStage):
                state = self._train_rl(stage, state, fit, progress)
            else:
                state = self._train_supervised(stage, state, fit, progress)
        return state, progress

    def _train_supervised(self, stage, state, fit, progress):
        loss = stages.objective(stage, self.config.network)
        step = trainer.make_step(loss, self.partitioner, stage.microbatches)
        batches = self._batches(stage, start_batch=progress.step)
        held_out = None
        if isinstance(stage, RewardStage):
            jitted = self.partitioner.jit(loss)

            def held_out(state):
                dev = self._dev_batches(stage)
                return trainer.evaluate(jitted, state.params, dev, self.partitioner)

        def placed(state, batch, number):
            del number
            batch = self.partitioner.shard_batch(batch)
            state, metrics = step(state, batch)
            rows, width = jax.tree.leaves(batch)[0].shape
            is_text = isinstance(stage, SupervisedStage)
            work = flops.training_step(rows, width, is_text, stage.microbatches)
            done = flops.total(work, self.config.network)
            return state, metrics | {"model_flops": (done, 1.0)}, dict

        with self.signals.training():
            return fit(state, placed, batches, stop=stage.steps, held_out=held_out)

    def _train_rl(self, stage: RLStage, state, fit, progress):
        expected = {"rl_policy": "rm_policy", "rl_pit": "rm_gap"}[stage.task]
        if (task := self.result(stage.reward_model)["task"]) != expected:
            raise UserError(
                f"stage {stage.name}: reward_model {stage.reward_model!r} is of task {task}, whose "
                f"layout differs; expected one of task {expected}"
            )
        frozen = {
            "reference": self._load_frozen(stage.reference),
            "reward": self._load_frozen(stage.reward_model),
        }
        step = curriculum.make_step(
            self.config.network,
            stage.ppo,
            self.pooling(stage.reward_model),
            self.layout.widths(self.config.lengths).response,
            self.partitioner,
            OnHost(frozen) if stage.offload_frozen else lambda: frozen,
            self.key("ppo", stage.name),
            self.vocabulary.decode,
        )
        for number, round_, first, last in curriculum.locate(stage.rounds, progress.step):
            store = None
            if round_.is_sampled:
                store = self._sample_references(stage, number, round_, state)
            batches = self._batches(stage, progress.step - first, number, store)
            with self.signals.training():
                state = fit(state, step, batches, stop=last)
        return state

    def _sample_references(self, stage, number, round_, state) -> str:
        """Fills the round's reference store, from where a crash left it; returns its directory."""
        directory = self.directory / stage.name / "references" / f"round-{number}"
        policy_step = round_.policy_step or self.result(round_.policy)["model_step"]
        meta = ReferenceMeta(
            number, round_.source, f"{round_.policy}@{policy_step}", self.config.seed
        )
        open_writer = functools.partial(ReferenceWriter, directory, self.config.shard_size, meta)
        writer = open_writer(write=False)
        processes.any_process()  # all have read how far the store is
        if processes.is_first():
            writer = open_writer()
        if writer.closed:
            return str(directory)
        print(
            f"{stage.name}: sampling references of round {number} from {round_.source}", flush=True
        )
        curriculum.sample_references(
            round_,
            writer,
            self.data.examples("train", "rl"),
            policy=self._load_frozen(round_.policy, policy_step),
            improver=self._improver(state.train.params["actor"]),
            key=self.key("references", stage.name, number),
            shard_size=self.config.shard_size,
        )
        processes.any_process()  # the first one has closed the store
        return str(directory)

    def _load_frozen(self, name: str, step: int | None = None) -> Any:
        """A model that isn't trained, in the compute type."""
        return in_compute_type(self.load(name, step), self.config.network)

    def _improver(self, model: Any, gap_model: Any = None, pooling: str = "last") -> Improver:
        return Improver(
            sampler=self.sampler,
            layout=self.layout,
            lengths=self.config.lengths,
            clean=self.vocabulary.text_ids,
            decode=self.vocabulary.decode,
            model=model,
            gap_model=gap_model,
            pooling=pooling,
        )

    def _start_from(self, stage: Stage, state: Any) -> Any:
        """The starting state with the parameters of the stages it builds on."""
        if not stage.initial:
            return state
        initial = self.load(stage.initial)
        if isinstance(stage, SupervisedStage):
            return state.replace(params=initial)
        if isinstance(stage, RewardStage):
            return state.replace(params=stages.reward_from_language_model(state.params, initial))
        critic = state.train.params["critic"]
        if stage.ppo.critic_start == "reward":
            pooling = self.pooling(stage.reward_model)
            critic = stages.critic_from_reward_model(self.load(stage.reward_model), pooling)
        else:
            critic = stages.own_copy(stages.critic_from_actor(critic, initial))
        params = {"actor": initial, "critic": critic}
        return state.replace(train=state.train.replace(params=params))

    def _batches(
        self, stage: Stage, start_batch: int, round_number: int = 0, store=None
    ) -> Iterator:
        return self.data.batches(
            stage.task,
            "train",
            stage.batch_size,
            seed=zlib.crc32(f"{self.config.seed} {stage.task} {round_number}".encode()),
            start_batch=start_batch,
            **({"references": store} if store else {}),
        )

    def _dev_batches(self, stage: RewardStage) -> Iterator:
        batches = self.data.batches(
            stage.task, "dev", stage.batch_size, shuffle=False, num_epochs=1
        )
        count = -(-stage.held_out // stage.batch_size) if stage.held_out else None
        return itertools.islice(batches, count)

    def _folder(self, name: str) -> epath.Path:
        return epath.Path(name) if "/" in name else self.directory / name

    def _identity(self) -> dict[str, str]:
        return run_directory.identity(self.config, self.vocabulary)

    def _profiler(self, stage: Stage, progress: trainer.Progress) -> profiling.Profiler:
        window = self.profile and self.profile.within(stage.steps - progress.step)
        return profiling.Profiler(window, self.directory / stage.name / "profile")

    def _writer(self, stage: Stage, step: int) -> metrics_lib.MetricWriter:
        folder = self.directory / stage.name
        if not processes.is_first():
            return metrics_lib.MetricWriter()
        writers: list[metrics_lib.Writer] = [
            metrics_lib.JsonlWriter(folder / "metrics.jsonl", resume_step=step),
            metrics_lib.Console(stage.name, stage.steps, (*_SHOWN[stage.task], "mfu"), step),
        ]
        if self.config.tensorboard:
            writers.append(metrics_lib.TensorBoardWriter(folder / "tensorboard", step))
        if self.config.wandb_project:
            writers.append(metrics_lib.WandbWriter(self.config.wandb_project, str(folder)))
        return metrics_lib.MetricWriter(*writers)

    def _finish(self, stage: Stage, state: Any, progress: trainer.Progress) -> None:
        """Writes the stage's result, for all processes to read."""
        processes.any_process()  # the first one has closed the metrics
        records = metrics_lib.read_jsonl(self.directory / stage.name / "metrics.jsonl")
        params = state.train.params["actor"] if isinstance(stage, RLStage) else state.params
        result = {
            "name": stage.name,
            "task": stage.task,
            "steps": progress.step,
            "seconds": progress.seconds,
            "tokens": progress.tokens,
            **trainer.rates(
                progress.tokens, progress.flops, max(progress.seconds, 1e-9), self._peak
            ),
            "parameters": sum(x.size for x in jax.tree.leaves(params)),
            "model_step": int(progress.best.get("step", progress.step)),
            "final": {k: v for k, v in records[-1].items() if isinstance(v, float) and v == v},
        }
        if isinstance(stage, RewardStage):
            result["pooling"] = stage.reward.pooling
        run_directory.write_json(self.directory / stage.name / "result.json", result)
        processes.any_process()
