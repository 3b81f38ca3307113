"""Times the input pipeline on one core against what the quickstart's model consumes in training.

    python benchmarks/input_pipeline.py
    python benchmarks/input_pipeline.py --gin_file gin/runs/hh.gin \\
        --binding "HH_PATH = 'dialogues/*.jsonl.gz'"

For every supervised and reward task of the gin file: real tokens a second of the first epoch, with
reading, tokenization and packing, and of later epochs, on one core; then real tokens a second of
the quickstart's training steps on all cores, in the same process. Prints a line for each.
"""

from __future__ import annotations

import argparse
import itertools
import os
import pathlib
import tempfile
import time

import jax
import numpy as np

import gin
from pit_jax.data.input_pipeline import InputPipeline
from pit_jax.data.vocabularies.load import load
from pit_jax.method import supervised_step
from pit_jax.run import stages
from pit_jax.run.config import RunConfig
from pit_jax.run.run import Run

ROOT = pathlib.Path(__file__).resolve().parents[1]


def configuration(file: str, bindings: list[str]) -> RunConfig:
    """The run of a gin file."""
    gin.clear_config()
    gin.add_config_file_search_path(str(ROOT))
    gin.parse_config_file(file)
    gin.parse_config([*bindings, f"MODEL_DIR = '{tempfile.mkdtemp()}'"])
    return gin.get_configurable(RunConfig)()


def real_tokens(batch) -> int:
    """Tokens that aren't padding."""
    return int(
        np.sum(batch["decoder_segment_ids" if "decoder_segment_ids" in batch else "blocks"] > 0)
    )


def delivered(config: RunConfig, seconds: float) -> dict[str, tuple[float, float]]:
    """Task -> tokens a second of its first epoch, and of later ones."""
    import tensorflow  # noqa: F401  (not part of the time)

    start = time.perf_counter()
    vocabulary = load(config.vocabulary)
    data = InputPipeline(config.dataset, vocabulary, config.lengths, config.batching)
    data.report()
    reading = time.perf_counter() - start
    found = {}
    chosen = [s for s in config.stages if not isinstance(s, stages.RLStage)]
    for stage in chosen:
        start = time.perf_counter()
        tokens = sum(
            map(real_tokens, data.batches(stage.task, "train", stage.batch_size, num_epochs=1))
        )
        first = tokens / (time.perf_counter() - start + reading / len(chosen))
        start, tokens = time.perf_counter(), 0
        for batch in data.batches(stage.task, "train", stage.batch_size, seed=1):
            tokens += real_tokens(batch)
            if time.perf_counter() - start > seconds:
                break
        found[stage.task] = first, tokens / (time.perf_counter() - start)
    return found


def consumed(config: RunConfig, steps: int) -> dict[str, float]:
    """Task -> tokens a second of training steps, compilation left out."""
    run = Run(config)
    found = {}
    for stage in config.stages:
        if isinstance(stage, stages.RLStage):
            continue
        networks = config.networks(stage)
        state = stages.create_state(stage, networks, run.partitioner, jax.random.key(0))
        loss = stages.objective(stage, networks.actor)
        step = supervised_step.make_step(loss, run.partitioner, stage.microbatches)
        batches = run.data.batches(stage.task, "train", stage.batch_size)
        state, metrics = step(state, run.partitioner.shard_batch(next(batches)))
        jax.block_until_ready(metrics)
        start, tokens = time.perf_counter(), 0
        for batch in itertools.islice(batches, steps):
            tokens += real_tokens(batch)
            state, metrics = step(state, run.partitioner.shard_batch(batch))
        jax.block_until_ready(metrics)
        found[stage.task] = tokens / (time.perf_counter() - start)
    return found


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--gin_file", default="gin/runs/quickstart.gin", help="whose data to read")
    parser.add_argument("--binding", action="append", default=[], help="a gin binding of that file")
    parser.add_argument("--seconds", type=float, default=3.0, help="of later epochs, for each task")
    parser.add_argument("--steps", type=int, default=30, help="training steps of each task")
    options = parser.parse_args()
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # threads that start from here on inherit it
    data = delivered(configuration(options.gin_file, options.binding), options.seconds)
    os.sched_setaffinity(0, cores)
    model = consumed(configuration("gin/runs/quickstart.gin", []), options.steps)
    for task, rate in model.items():
        print(f"quickstart trains {task:<12}{rate:>14,.0f} tokens/s on {len(cores)} cores")
    fastest = max(model.values())
    for task, (first, later) in data.items():
        print(
            f"pipeline delivers {task:<12}{first:>14,.0f} tokens/s in its first epoch, "
            f"{later:,.0f} later: {first / fastest:.1f} and {later / fastest:.1f} times the fastest"
        )


if __name__ == "__main__":
    main()
