"""Times what a checkpoint costs, and how long an interrupted stage takes until it trains again.

    JAX_PLATFORMS=cpu python benchmarks/saving.py
    JAX_PLATFORMS=cpu python benchmarks/saving.py --restart gin/runs/quickstart.gin

The first form trains a network of 14 million parameters on one batch and saves it, several times:
the seconds of a step, those for which a save holds training up, those until it is on disk, those of
reading it again, and the memory that the process takes beside what it takes in training. One step
is trained while a checkpoint is written. The other
starts the first stage of a gin file, stops it with SIGTERM after its first steps, and gives the
same command again: the seconds from the start of the process to its first step, the first time and
with programs that are compiled already.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
from memory import Peak
from roofline import network

from pit_jax.method import supervised_step
from pit_jax.method.environment import Networks
from pit_jax.run import stages
from pit_jax.run.stages import SupervisedStage
from pit_jax.runtime import digests
from pit_jax.runtime.checkpoints import Checkpoints
from pit_jax.runtime.partitioning import MeshConfig, Partitioner
from pit_jax.runtime.train_state import OptimizerConfig

ROOT = pathlib.Path(__file__).resolve().parents[1]
ROWS, WIDTH = 32, 21
NETWORK = network(4096, 384, 7, kv_heads=6, mlp=1024)


def saving(rounds: int) -> None:
    """Prints the table of the first form."""
    stage = SupervisedStage(
        name="sft_policy",
        task="sft_policy",
        steps=1,
        batch_size=ROWS,
        optimizer=OptimizerConfig(learning_rate=1e-3),
    )
    partitioner = Partitioner(MeshConfig(), jax.devices()[:1])
    state = stages.create_state(stage, Networks.same(NETWORK), partitioner, jax.random.key(0))
    step = supervised_step.make_step(stages.objective(stage, NETWORK), partitioner)
    ids = np.random.default_rng(0).integers(3, 4096, (ROWS, WIDTH)).astype(np.int32)
    batch = {f"decoder_{n}_tokens": ids for n in ("input", "target")}
    batch |= {"decoder_segment_ids": np.ones_like(ids)}
    batch |= {"decoder_positions": np.tile(np.arange(WIDTH, dtype=np.int32), (ROWS, 1))}
    batch |= {"decoder_loss_weights": np.ones(ids.shape, np.float32)}
    batch = partitioner.shard_batch(batch)
    size = sum(x.nbytes for x in jax.tree.leaves(state.split()))
    print(f"a state of {size / 1e6:.0f} MB, {rounds} rounds: median, least, most")
    found: dict[str, list[float]] = {}

    def timed(name, function):
        started = time.perf_counter()
        result = function()
        found.setdefault(name, []).append(time.perf_counter() - started)
        return result

    def train():
        nonlocal state
        state, metrics = step(state, batch)
        return jax.block_until_ready(metrics)

    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(pathlib.Path(folder) / "sft_policy" / "checkpoints")
        train()
        checkpoints.save(1, state, {})
        checkpoints.wait()
        for number in range(2, rounds + 2):
            with Peak(0.005) as usual:
                for _ in range(3):
                    timed("a step", train)
            jax.block_until_ready(jax.tree.leaves(state.split()))
            with Peak(0.005) as saved:
                started = time.perf_counter()
                save = checkpoints.save
                timed("training waits for a save", lambda n=number, save=save: save(n, state, {}))
                train()
                checkpoints.wait()
                found.setdefault("until it is on disk", []).append(time.perf_counter() - started)
            timed("of it, the digests", lambda: list(map(digests.of, _named(state))))
            timed("reading it", lambda: checkpoints.restore(state))
            extra = (saved.found["RssAnon"] - usual.found["RssAnon"]) / 1e6
            found.setdefault("memory beside training's, MB", []).append(extra)
    for name, each in found.items():
        print(f"{name:30s} {statistics.median(each):8.3f} {min(each):8.3f} {max(each):8.3f}")


def _named(state):
    model, rest = state.split()
    return model, digests.names_of(rest)


def restart(file: str) -> None:
    """Prints the seconds from a start to the first step, before and after an interruption."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "pit_jax", "run", f"--gin_file={file}"]
        words += [f"--gin.MODEL_DIR='{folder}/run'", "--gin.LoopConfig.log_every=1"]
        for name in ("first start", "after an interruption"):
            started = time.perf_counter()
            process = subprocess.Popen(
                words,
                cwd=ROOT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            assert process.stdout
            for line in process.stdout:
                if re.match(r"\S+ +\d+/\d+ ", line):
                    print(f"{name}: {time.perf_counter() - started:.1f} s to the first step")
                    break
            process.send_signal(signal.SIGTERM)
            process.communicate()


def main() -> None:
    """Prints one of the two."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--restart", metavar="GIN_FILE", help="time starts in place of saves")
    options = parser.parse_args()
    if options.restart:
        restart(options.restart)
    else:
        saving(options.rounds)


if __name__ == "__main__":
    main()
