"""Kills, damages and crowds whole pipelines at random, then compares what they end with.

    python -m tests.soak.run --seed=0 --minutes=30 --out=soak.json

Every pipeline is a run of all stages of the tiny run. It is started and disturbed several times,
then started once more to its end, and compared with a run that nobody disturbed. What a pipeline
does is drawn from its name, so `--repeat=NAME` does it again; when a signal arrives is a matter of
the clock, save for those that are sent before a certain change of a file.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

if __name__ == "__main__" and os.environ.get("PIT_JAX_SOAK") != "1":
    from tests.soak import starts

    variables = starts.overridden(os.environ) | {"PIT_JAX_SOAK": "1"}
    os.execve(sys.executable, [sys.executable, "-m", "tests.soak.run", *sys.argv[1:]], variables)

from tests import tiny_runs
from tests.soak import compare, pipelines, starts

# What is asked for of each kind, by the pipelines in which it is done.
GOALS = {"kills": 500, "damages": 500, "full_disks": 50, "double_starts": 50, "topologies": 50}
# Beside these, it has what every topology can split: heads, and the rows of half a batch.
STEPS = {
    "pretrain/stages.SupervisedStage.steps": 9,
    "sft_policy/stages.SupervisedStage.steps": 5,
    "sft_pit/stages.SupervisedStage.steps": 5,
    "rm_policy/stages.RewardStage.steps": 8,
    "rm_gap/stages.RewardStage.steps": 5,
    "rl_policy/stages.RLStage.keep_every": 4,
    "rl_policy/curriculum.Round.steps": 4,
    "rl_pit_0/curriculum.Round.steps": 2,
    "rl_pit_1/curriculum.Round.steps": 6,
    "rm_policy/loop.LoopConfig.eval_every": 4,
}
LOOP = "loop.LoopConfig:\n    log_every = {}\n    checkpoint_every = {}\n"
ROOM = 64 << 20  # bytes of the small disk


def gin() -> str:
    """The tiny run with more steps, not all of which are logged or saved."""
    text = tiny_runs.GIN.replace(LOOP.format(1, 2), LOOP.format(2, 3))
    text = text.replace("heads = 2", "heads = 4").replace("head_dim = 8", "head_dim = 4")
    text = text.replace("BATCH_SIZE = 8", "BATCH_SIZE = 16")
    return text + "".join(f"{name} = {value}\n" for name, value in STEPS.items())


class Soak:
    """Holds what the pipelines of a soak share.

    Attributes:
      folder: the run directory, one after the other's, at one path.
      reference: the run that nobody disturbed.
      counts: what was done and found, by name.
      places: how many starts were ended at each place.
      faults: what isn't as promised.
      lines: what was printed to stderr that isn't a refusal, by its beginning.
      seconds: how long the whole run takes that finds its programs compiled.
      changes: how many changes of files it makes.
    """

    def __init__(self, work: pathlib.Path, text: str, command: Sequence[str] = ("run",)):
        self.live = work / "live"
        self.folder, self.reference = self.live / "run", work / "reference"
        self.cache, self.logs = work / "programs", work / "start"
        self.small_disk = _mount(self.live)
        (self.live / "run.gin").write_text(text)
        model_dir = f"--gin.MODEL_DIR='{self.folder}'"
        self.argv = [*command, f"--gin_file={self.live}/run.gin", model_dir]
        self.counts: collections.Counter[str] = collections.Counter()
        self.places: collections.Counter[str] = collections.Counter()
        self.recomputed: collections.Counter[int] = collections.Counter()
        self.lines: collections.Counter[str] = collections.Counter()
        self.faults: list[dict] = []
        self.stages: Sequence[str] = compare.STAGES
        self.starts = (4, 9)  # that are disturbed, at least and at most
        self.at: list[int] = []  # changes of files before which kills come, instead of any
        self.interval, self.devices, self.first = 3, 1, 0
        self.seconds, self.changes, self.real = 10.0, 300, 0.1

    def close(self) -> None:
        if self.small_disk:
            subprocess.run(["umount", self.live], check=False, capture_output=True)

    def make_reference(self) -> None:
        """Runs to the end what nobody disturbs, twice: compiled now, and compiled before."""
        cache, known = "compilation_cache", self.reference.with_suffix(".json")
        if known.exists():
            self.seconds, self.changes = json.loads(known.read_text())
            return
        for number in range(2):
            shutil.rmtree(self.folder, ignore_errors=True)
            if number:
                shutil.copytree(self.reference / cache, self.folder / cache)
            start = starts.Start(starts.Plan(self.argv, self.folder, real=not number), self.logs)
            start.wait()
            if start.status:
                raise SystemExit(f"the undisturbed run ended with {start.status}:\n{start.err}")
            if not number:
                shutil.copytree(self.folder, self.reference)
        self.seconds, self.changes = start.seconds, len(start.places)
        for line in compare.differences(self.reference, self.folder):
            self.fault("reference", f"a fork differs from a process of its own: {line}")
        known.write_text(json.dumps([self.seconds, self.changes]))

    def fault(self, pipeline: str, what: str, err: str = "") -> None:
        self.faults.append({"pipeline": pipeline, "what": what, "stderr": err[-3000:]})
        print(f"FAULT {pipeline}: {what}", flush=True)

    def report(self) -> dict:
        return {
            "counts": dict(sorted(self.counts.items())),
            "places": dict(self.places.most_common()),
            "recomputed": {str(n): self.recomputed[n] for n in sorted(self.recomputed)},
            "lines": dict(self.lines.most_common()),
            "faults": self.faults,
        }


def _mount(folder: pathlib.Path) -> bool:
    """Makes a small disk; False where that isn't allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def soak(made: Soak, seed: int, until: float, goals: dict[str, int], out: pathlib.Path) -> None:
    """Runs pipelines until the time is over or all is done that was asked for."""
    number = 0
    while time.monotonic() < until:
        open_ = {kind: made.counts[kind] / goal for kind, goal in goals.items() if goal}
        kind = min(open_, key=open_.__getitem__, default="")
        if not kind or open_[kind] >= 1:
            break
        one(made, f"{kind}-{seed}-{number}", until)
        number += 1
        out.write_text(json.dumps(made.report(), indent=1) + "\n")


def one(made: Soak, name: str, until: float = float("inf")) -> None:
    """Runs one pipeline and prints a line about it."""
    began, before = time.monotonic(), len(made.faults)
    pipelines.Pipeline(made, name, random.Random(name), until).run()
    made.counts["pipelines"] += 1
    found = len(made.faults) - before
    print(f"{name}: {time.monotonic() - began:.0f} s, {found} faults", flush=True)


def short(made: Soak) -> None:
    """Kills and damages one stage of a run that is complete, with the devices of the tests."""
    made.stages, made.starts, made.real = ("rm_policy",), (3, 3), 0.0
    made.interval, made.devices, made.first = 2, 8, 1
    made.at = [102, 50, 125]
    one(made, "damages-short")


def table(report: dict) -> str:
    """What was done and found, as Markdown."""
    rows = [f"| {name} | {count} |" for name, count in report["counts"].items()]
    steps = ", ".join(f"{n}: {count}" for n, count in report["recomputed"].items())
    rows += [f"| steps done again: times | {steps} |", f"| faults | {len(report['faults'])} |"]
    places = [f"| {name} | {count} |" for name, count in report["places"].items()]
    head = "| what | times |\n|---|---|\n"
    return f"{head}{chr(10).join(rows)}\n\n{head.replace('what', 'ended at')}{chr(10).join(places)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=30.0, help="no pipeline begins after them")
    for name, goal in GOALS.items():
        parser.add_argument(f"--{name}", type=int, default=goal)
    parser.add_argument("--repeat", default="", help="the name of the one pipeline to run")
    parser.add_argument("--short", type=pathlib.Path, help="a complete tiny run; seconds")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("soak.json"))
    parser.add_argument("--work", type=pathlib.Path, help="a folder to work in, which stays")
    options = parser.parse_args(argv)
    until = time.monotonic() + 60 * options.minutes
    starts.import_all()
    work = options.work or pathlib.Path(tempfile.mkdtemp(prefix="pit_jax_soak_"))
    if options.short:
        command = ("train", "--gin.STAGE='rm_policy'")
        made = Soak(work, tiny_runs.GIN, command)
        made.reference = options.short
    else:
        made = Soak(work, gin())
    try:
        if options.short:
            short(made)
            return _end(made, options)
        made.make_reference()
        print(f"undisturbed: {made.seconds:.0f} s, {made.changes} changes of files", flush=True)
        if options.repeat:
            one(made, options.repeat)
        else:
            goals = {name: getattr(options, name) for name in GOALS}
            soak(made, options.seed, until, goals, options.out)
    finally:
        made.close()
        if not options.work:
            shutil.rmtree(work, ignore_errors=True)
    return _end(made, options)


def _end(made: Soak, options: argparse.Namespace) -> int:
    found = made.report() | {"seed": options.seed}
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    return int(bool(made.faults))


if __name__ == "__main__":
    sys.exit(main())
