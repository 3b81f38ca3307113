"""A whole run of every stage, small enough for a test, as Python and as a gin file."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import jax
import pytest

from pit_jax import cli
from pit_jax.data.datasets import DatasetConfig
from pit_jax.data.layouts import Lengths
from pit_jax.data.synthetic.drafts import DraftsConfig
from pit_jax.method.curriculum import Round
from pit_jax.method.objectives import RewardConfig
from pit_jax.method.ppo import PPOConfig
from pit_jax.models.config import NetworkConfig
from pit_jax.run import (
    exported,  # noqa: F401  its class is one of the Run that `command` replaces
    stage_training,
)
from pit_jax.run import run as runs
from pit_jax.run.config import RunConfig
from pit_jax.run.run import Run
from pit_jax.run.stages import RewardStage, RLStage, SupervisedStage
from pit_jax.runtime.loop import LoopConfig
from pit_jax.runtime.train_state import OptimizerConfig

# All that may differ between two runs of one seed: what depends on the clock.
# `records` has a digest of records, which have times.
TIMES = ("tokens_per_second", "model_tflops_per_second", "seconds", "records")

NETWORK = NetworkConfig(
    vocab_size=64,
    embed_dim=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=16,
    activation="silu",
    tied_embeddings=True,
    scale_embeddings=True,
    scale_attention=True,
    scale_logits=False,
    positions="rotary",
    rope_theta=100.0,
    norm_epsilon=1e-6,
    dtype="float32",
    remat="none",
)
DATASET = DatasetConfig(
    "instructions", 150, 20, 20, family="drafts", level=DraftsConfig(min_steps=2, max_steps=3)
)
LENGTHS = Lengths(prompt=8, reference=12, response=13)
OPTIMIZER = OptimizerConfig(learning_rate=3e-3)
RL_OPTIMIZER = OptimizerConfig(learning_rate=3e-3, epsilon=1e-5)
REWARD = RewardConfig(pooling="sum", centring=0.01)
PPO = PPOConfig(epochs=2, minibatches=2, subtract_chosen=True, scale_rewards=True)
LOOP = LoopConfig(log_every=1, checkpoint_every=2)
BATCH = 8

GIN = """
# The same run as tiny_runs.config().
from __gin__ import dynamic_registration
from pit_jax.method import curriculum
from pit_jax.method import objectives
from pit_jax.run import config as run_config
from pit_jax.method import ppo
from pit_jax.run import stages
from pit_jax.runtime import train_state
from pit_jax.runtime import loop
from pit_jax.data import datasets
from pit_jax.data.synthetic import drafts
from pit_jax.data import layouts
from pit_jax.evaluation import suite
from pit_jax.models import config

include 'gin/stages/all.gin'

BATCH_SIZE = 8
VOCABULARY = 'words:drafts'

config.NetworkConfig:
    vocab_size = 64
    embed_dim = 16
    num_layers = 1
    num_heads = 2
    num_kv_heads = 2
    head_dim = 8
    mlp_dim = 16
    activation = 'silu'
    tied_embeddings = True
    scale_embeddings = True
    scale_attention = True
    scale_logits = False
    positions = 'rotary'
    rope_theta = 100.0
    norm_epsilon = 1e-6
    dtype = 'float32'
    remat = 'none'
drafts.DraftsConfig:
    min_steps = 2
    max_steps = 3
datasets.DatasetConfig:
    kind = 'instructions'
    family = 'drafts'
    level = @drafts.DraftsConfig()
    train_size = 150
    dev_size = 20
    test_size = 20
layouts.Lengths:
    prompt = 8
    reference = 12
    response = 13
run_config.RunConfig:
    sampling_batch = 16
    shard_size = 16
loop.LoopConfig:
    log_every = 1
    checkpoint_every = 2
pretrain/train_state.OptimizerConfig.learning_rate = 3e-3
sft_policy/train_state.OptimizerConfig.learning_rate = 3e-3
sft_pit/train_state.OptimizerConfig.learning_rate = 3e-3
rm_policy/train_state.OptimizerConfig.learning_rate = 3e-3
rm_gap/train_state.OptimizerConfig.learning_rate = 3e-3
rl_policy/train_state.OptimizerConfig.learning_rate = 3e-3
rl_pit/train_state.OptimizerConfig.learning_rate = 3e-3
objectives.RewardConfig:
    pooling = 'sum'
    centring = 0.01
ppo.PPOConfig:
    epochs = 2
    minibatches = 2
    subtract_chosen = True
    scale_rewards = True
pretrain/stages.SupervisedStage.steps = 4
sft_policy/stages.SupervisedStage.steps = 2
sft_pit/stages.SupervisedStage.steps = 2
rm_policy/stages.RewardStage:
    steps = 6
    held_out = 0
rm_policy/loop.LoopConfig.eval_every = 2
rm_gap/stages.RewardStage:
    steps = 2
    held_out = 0
rl_policy/stages.RLStage.keep_every = 1
rl_policy/curriculum.Round.steps = 2
rl_pit_0/curriculum.Round.steps = 1
rl_pit_1/curriculum.Round.steps = 3
suite.EvaluationConfig:
    temperatures = (1.0,)
    sweep = (1.0,)
    iterations = 2
    num_samples = 2
"""


def supervised(name: str, steps: int = 2, **changes) -> SupervisedStage:
    """A supervised stage called after its task."""
    fields = {"task": name, "batch_size": BATCH, "optimizer": OPTIMIZER, "loop": LOOP}
    return SupervisedStage(name=name, steps=steps, **(fields | changes))


def reward(name: str, steps: int = 2, **changes) -> RewardStage:
    """A reward stage called after its task."""
    fields = {"task": name, "batch_size": BATCH, "optimizer": OPTIMIZER, "loop": LOOP}
    fields |= {"initial": "pretrain", "reward": REWARD, "held_out": 0}
    return RewardStage(name=name, steps=steps, **(fields | changes))


def rl(name: str, rounds: tuple[Round, ...], **changes) -> RLStage:
    """A PPO stage called after its task."""
    sft, reward_model = {
        "rl_policy": ("sft_policy", "rm_policy"),
        "rl_pit": ("sft_pit", "rm_gap"),
    }[changes.get("task", name)]
    fields = {"task": name, "batch_size": BATCH, "optimizer": RL_OPTIMIZER, "loop": LOOP}
    fields |= {"initial": sft, "reference": sft, "reward_model": reward_model, "ppo": PPO}
    return RLStage(name=name, rounds=rounds, **(fields | changes))


def config(model_dir, **changes) -> RunConfig:
    """All six stages after a warm-up; M_P keeps its checkpoints for an intermediate source."""
    stages = (
        supervised("pretrain", 4),
        supervised("sft_policy", initial="pretrain"),
        supervised("sft_pit", initial="pretrain"),
        reward("rm_policy", 6, loop=dataclasses.replace(LOOP, eval_every=2)),
        reward("rm_gap"),
        rl("rl_policy", (Round("none", 2),), keep_every=1),
        rl("rl_pit", (Round("data", 1), Round("policy", 3))),
    )
    fields = {
        "seed": 0,
        "network": NETWORK,
        "vocabulary": "words:drafts",
        "dataset": DATASET,
        "lengths": LENGTHS,
        "stages": stages,
        "sampling_batch": 16,
        "shard_size": 16,
    }
    return RunConfig(model_dir=str(model_dir), **(fields | changes))


def with_stages(base: RunConfig, *stages) -> RunConfig:
    """The run with these stages in place of those of their names, or at the end."""
    table = {stage.name: stage for stage in (*base.stages, *stages)}
    return dataclasses.replace(base, stages=tuple(table.values()))


def on_one_device(run_config: RunConfig) -> Run:
    """A run on the first of the simulated devices."""
    return Run(run_config, devices=jax.devices()[:1])


def command(name: str, folder: pathlib.Path, *arguments: str, gin: str | None = None) -> int:
    """`python -m pit_jax NAME` with the tiny run in `folder`, in this process on one device."""
    file = folder.with_name(f"{folder.name}.gin")
    text = GIN if gin is None else gin
    if not file.exists() or file.read_text() != text:  # another worker may be reading a shared one
        file.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "Run", functools.partial(Run, devices=jax.devices()[:1]))
        return cli.main([name, f"--gin_file={file}", f"--gin.MODEL_DIR='{folder}'", *arguments])


def copy(run, target):
    """Copies a run to change it, without the lock of a test at work in it."""
    return shutil.copytree(run, target, ignore=shutil.ignore_patterns("owner.lock*"))


def once(folder: pathlib.Path, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """`folder`, filled by `make` once, however many test processes ask for it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    done = folder.with_name(f"{folder.name}.done")
    with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make(folder)
            done.touch()
    return folder


def shared_folder(tmp_path_factory) -> pathlib.Path:
    """A folder that the workers of one test session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def without_times(value):
    """JSON without what depends on the clock."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def records(path: pathlib.Path) -> list[dict]:
    """The records of a metrics.jsonl, without times."""
    return [without_times(json.loads(line)) for line in path.read_text().splitlines()]


def result(folder: pathlib.Path) -> dict:
    """The result.json of a stage's folder, without times and the digest that they change."""
    found = without_times(json.loads((folder / "result.json").read_text()))
    return {name: value for name, value in found.items() if name != "sha256"}


@contextlib.contextmanager
def compilations(path: pathlib.Path) -> Iterator[None]:
    """Writes what each stage compiles meanwhile, as JSON: the names of programs by stage."""
    found: dict[str, list[str]] = {}
    train = stage_training.train

    def training(run, stage):
        found[stage.name] = names = []

        def listen(event, seconds, fun_name="", **_):
            if event == "/jax/core/compile/backend_compile_duration":  # also of a cached one
                names.append(fun_name)

        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            train(run, stage)
        finally:
            jax.monitoring.unregister_event_duration_listener(listen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage_training, "train", training)
        yield
    path.write_text(json.dumps(found))
