"""Kills `improve` again and again, and compares what it writes with a job that nobody ended.

    python -m tests.end_to_end.killed_improve --folder=/tmp/killed --prompts=100000 --kills=20

prints rows per second, peak memory, and whether the outputs are equal.
"""

from __future__ import annotations

import argparse
import dataclasses
import filecmp
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

from pit_jax.data.synthetic import instructions
from tests import tiny_runs
from tests.child_environment import ROOT, child_environment


@dataclasses.dataclass
class Ended:
    """How one start of the command ended.

    Attributes:
      status: the exit status, -9 for SIGKILL.
      seconds: how long it ran.
      peak_mb: the most memory that it had.
      errors: what it printed to stderr.
      before, after: the shards that were there when it began and ended.
    """

    status: int
    seconds: float
    peak_mb: float
    errors: str
    before: frozenset[str]
    after: frozenset[str]


def write_prompts(path: pathlib.Path, count: int) -> None:
    """Prompts of the tiny run, half of them with a response, each with an id."""
    examples = instructions.examples("drafts", "dev", 200, 0, tiny_runs.DATASET.level)
    with open(path, "w") as file:
        for number in range(count):
            example = examples[number % len(examples)]
            given = {"response": example.rejected} if number % 2 else {}
            file.write(json.dumps({"id": number, "prompt": example.prompt} | given) + "\n")


def start(
    run: pathlib.Path, given: pathlib.Path, out: pathlib.Path, shard: int, kill=None
) -> Ended:
    """Runs the command to its end, or ends it by `kill`: a signal, and a number of new shards."""
    parts = out.with_name(f"{out.name}.parts")

    def shards() -> frozenset[str]:
        return frozenset(path.name for path in parts.glob("*.jsonl"))

    flags = [f"--gin.MODEL_DIR='{run}'", f"--gin.RunConfig.shard_size={shard}"]
    flags += ["--gin.RunConfig.sampling_batch=256", "--gin.ImproveConfig.iterations=2"]
    flags += [f"--input={given}", f"--output={out}", f"--gin_file={run}.gin"]
    before, began = shards(), time.monotonic()
    with open(f"{out}.errors", "w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "pit_jax", "improve", *flags],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            cwd=ROOT,
            env=child_environment(1, JAX_PLATFORMS="cpu"),
        )
        if kill:
            number, more, wait = kill
            while process.poll() is None and len(shards() - before) < more:
                time.sleep(0.01)
            time.sleep(wait)
            process.send_signal(number)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        errors.seek(0)
        text = errors.read()
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, seconds, usage.ru_maxrss / 1024, text, before, shards())


def drive(run: pathlib.Path, folder: pathlib.Path, prompts: int, kills: int, shard: int) -> dict:
    """Makes the output at once and with kills, and says what came of it."""
    given, whole, killed = folder / "in.jsonl", folder / "whole.jsonl", folder / "killed.jsonl"
    write_prompts(given, prompts)
    once = start(run, given, whole, shard)
    assert once.status == 0, once.errors
    draw, ended = random.Random(0), []
    per_kill = max(1, -(-prompts // shard) // (kills + 1))
    for number in range(kills):
        by = (signal.SIGKILL, signal.SIGTERM)[number % 2]
        more = draw.randint(0, per_kill)
        ended.append(start(run, given, killed, shard, (by, more, draw.random() * 0.3)))
        # -15 comes before the command has begun to listen.
        assert ended[-1].status in (-9, -15, 143), ended[-1].errors
        assert ended[-1].before <= ended[-1].after, "a whole shard is never lost"
        print(f"kill {number + 1}: {by.name}, {len(ended[-1].after)} shards", flush=True)
    last = start(run, given, killed, shard)
    assert last.status == 0, last.errors
    return {
        "prompts": prompts,
        "rows_per_second": round(prompts / once.seconds, 1),
        "seconds": round(once.seconds, 1),
        "seconds_with_kills": round(sum(e.seconds for e in [*ended, last]), 1),
        "peak_mb": round(max(e.peak_mb for e in [once, *ended, last])),
        "kills": kills,
        "said": sorted({e.errors.strip() for e in ended if e.status == 143}),
        "equal": filecmp.cmp(whole, killed, shallow=False),
    }


def main() -> None:
    """Trains the tiny run if it isn't there, and drives it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--shard", type=int, default=1024)
    options = parser.parse_args()
    run = options.folder / "run"
    run.mkdir(parents=True, exist_ok=True)
    assert tiny_runs.command("run", run) == 0
    found = drive(run, options.folder, options.prompts, options.kills, options.shard)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
