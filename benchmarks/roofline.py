"""Holds the plan's estimates against the time that programs take on the device at hand.

    python benchmarks/roofline.py
    python benchmarks/roofline.py --embed 2048 --layers 16 --batch 64 --dtype bfloat16

Measures what one device does at its best, a large matrix product and a large sum of two arrays,
gives these two numbers to `plan.estimate` in place of a chip's, and compares what it says of a
run's programs with their times. Nothing in the estimate is fitted. Device and program are measured
in turn, so a machine that is busy for a while shifts both. Prints a line for each program: the two
measured peaks; arithmetic, memory traffic, estimate and time in seconds; and how many times as long
as the estimate the time is.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from pit_jax.data.datasets import DatasetConfig
from pit_jax.data.layouts import Lengths
from pit_jax.data.synthetic.drafts import DraftsConfig
from pit_jax.method.curriculum import Round
from pit_jax.method.frozen import Frozen
from pit_jax.method.ppo import PPOConfig
from pit_jax.models.config import NetworkConfig
from pit_jax.plan import host
from pit_jax.plan.estimate import estimate
from pit_jax.plan.programs import Program, programs
from pit_jax.run import stages
from pit_jax.run.config import RunConfig
from pit_jax.runtime.partitioning import MeshConfig, Partitioner
from pit_jax.runtime.train_state import OptimizerConfig

ONE = {"slice": 1, "data": 1, "model": 1}


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    sizes = {"embed": 512, "layers": 4, "vocabulary": 8192, "batch": 4, "window": 64, "runs": 5}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--remat", default="none", choices=("none", "dots", "full"))
    return parser.parse_args()


def seconds(run: Callable[[], Any]) -> float:
    """The time of a call."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def network(
    vocabulary: int,
    embed: int,
    layers: int,
    kv_heads: int,
    mlp: int,
    dtype: str = "float32",
    remat: str = "none",
) -> NetworkConfig:
    """A decoder of these sizes, with heads of 64 numbers."""
    return NetworkConfig(
        vocab_size=vocabulary,
        embed_dim=embed,
        num_layers=layers,
        num_heads=embed // 64,
        num_kv_heads=kv_heads,
        head_dim=64,
        mlp_dim=mlp,
        activation="silu",
        tied_embeddings=True,
        scale_embeddings=True,
        scale_attention=True,
        scale_logits=False,
        positions="rotary",
        rope_theta=10000.0,
        norm_epsilon=1e-6,
        dtype=dtype,
        remat=remat,
    )


def configuration(options: argparse.Namespace) -> RunConfig:
    """A supervised stage and one of PPO whose references are sampled."""
    sizes = options.vocabulary, options.embed, options.layers
    heads, mlp = options.embed // 128, 4 * options.embed
    optimizer = OptimizerConfig(learning_rate=1e-5)
    sft = stages.SupervisedStage("sft_pit", "sft_pit", 1, options.batch, optimizer)
    rounds = (Round("policy", 1),)
    names = {"initial": "sft_pit", "reference": "sft_pit", "reward_model": "rm_gap"}
    ppo = PPOConfig(epochs=1, minibatches=2)
    rl = stages.RLStage("rl_pit", "rl_pit", rounds, options.batch, optimizer, **names, ppo=ppo)
    return RunConfig(
        model_dir="unused",
        seed=0,
        network=network(*sizes, heads, mlp, options.dtype, options.remat),
        vocabulary="words:drafts",
        dataset=DatasetConfig("instructions", 100, 10, 10, family="drafts", level=DraftsConfig()),
        lengths=Lengths(options.window, options.window, options.window),
        stages=(sft, rl),
        sampling_batch=options.batch,
    )


def filled(shapes: dict[str, jax.ShapeDtypeStruct], vocabulary: int) -> dict[str, np.ndarray]:
    """A batch of rows without padding."""
    rng = np.random.default_rng(0)
    batch = {}
    for name, x in shapes.items():
        if "tokens" in name or name in ("prompts", "responses"):
            batch[name] = rng.integers(2, vocabulary, x.shape).astype(np.int32)
        elif "positions" in name:
            batch[name] = np.tile(np.arange(x.shape[1], dtype=np.int32), (x.shape[0], 1))
        else:
            batch[name] = np.ones(x.shape, x.dtype)
    return batch


def calls(config: RunConfig, partitioner: Partitioner) -> Iterator[tuple[Program, Callable]]:
    """Each program of the plan, and a call of it with arguments of the shapes planned."""
    key = jax.random.key(0)
    language = nn.meta.unbox(stages.init_language_model(config.network)(key))
    scalar = nn.meta.unbox(stages.init_scalar_model(config.network)(key))
    held: dict[str, Any] = {}  # the state, which a step donates, and the last episodes

    def call(program: Program) -> Callable[[], Any]:
        run = program.function
        first = program.arguments[-2 if program.name.startswith(("PPO", "sampling")) else -1]
        if program.name == "PPO: update":

            def update():
                held["state"], metrics = run(held["state"], Frozen({}), held["episodes"], key)
                return held["state"], metrics

            return update
        batch = partitioner.shard_batch(filled(first, config.network.vocab_size))
        if program.name == "training step":

            def step():
                held["state"], metrics = run(held["state"], batch)
                return held["state"], metrics

            return step
        if program.name == "PPO: sample and score":

            def collect():
                frozen = Frozen({"reference": language, "reward": scalar})
                held["episodes"], *rest = run(held["state"], frozen, batch, key)
                return held["episodes"], rest

            return collect
        if program.name == "scoring":
            return lambda: run(scalar, batch)
        return lambda: run(language, batch, key)

    for stage in config.stages:
        held["state"] = stages.create_state(stage, config.networks(stage), partitioner, key)
        for program in programs(config, partitioner):
            if program.stage == stage.name:
                yield program, call(program)


def main() -> None:
    """Measures the device and a program in turn, program after program."""
    options = parse_arguments()
    device = jax.devices()[0]
    config = configuration(options)
    partitioner = Partitioner(MeshConfig(), [device])
    times = 1 if device.platform == "cpu" else 100
    measure = host.meter(device, options.dtype, width=4096, length=2**26, times=times)
    print(f"{device.device_kind}, {options.dtype}, medians of {options.runs} pairs")
    print(
        f"{'program':<24}{'GFLOP/s':>9}{'GB/s':>7}{'arithmetic':>12}{'memory':>8}{'estimate':>10}"
        f"{'time':>8}{'factor':>8}"
    )
    for program, call in calls(config, partitioner):
        jax.block_until_ready(call())  # compiles
        rows = []
        for _ in range(options.runs):
            machine = measure()
            cost = estimate(program, [], machine, ONE)
            took, least = seconds(call), cost.seconds
            speeds = machine.flops / 1e9, machine.bandwidth / 1e9
            rows.append((*speeds, cost.compute, cost.memory, least, took, took / least))
        flops, bandwidth, *times, factor = map(statistics.median, zip(*rows, strict=True))
        arithmetic, memory, least, took = times
        print(
            f"{program.name:<24}{flops:>9,.0f}{bandwidth:>7,.1f}{arithmetic:>12.4f}{memory:>8.4f}"
            f"{least:>10.4f}{took:>8.4f}{factor:>8.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
