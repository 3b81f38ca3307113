"""Explains the command `sweep`, and is it: a run, its variations, and several seeds of them.

What it costs is said before it starts. Given again, the same command goes on where it ended.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

from pit_jax import bindings, files
from pit_jax.errors import UserError

SWEEP = """
variations:
  --vary=NAME:WHAT trains the run once more with other settings of some stages. WHAT is gin files
  and bindings, with semicolons between them:
    --vary='reversed:reversed.gin'
    --vary='weak:rl_pit/PPOConfig.beta=0.02; rl_pit/OptimizerConfig.learning_rate=1e-3'
  Only stages that differ, or build on some that do, are trained anew, as STAGE_NAME in the run's
  own directory; all others are shared, and so is what is trained there already. Every PIT model
  improves the same responses, those of the run's own policy, and Table 2 has a row for each. A
  variation of what all stages have, such as the network or the data, is another run.

seeds:
  --seeds=0,1,2 trains everything with each seed, in MODEL_DIR/seed0 and so on, and combines the
  reports in MODEL_DIR. It needs the macros SEED and MODEL_DIR, which all files of gin/runs have.

  With --transfer each seed's PIT is taken to other data, and the combined report has that too.

cost:
  Before anything is trained, the cost of each stage and of all is shown. Times are those of stages
  that are trained already, by any of the seeds, or at the speed of one of the same task. With
  --topology=cpu, `plan` compiles the programs and estimates what neither of them says.

  Ended at any time, the same command goes on where it ended.
"""
_NAME = re.compile(r"\w+")


def add_flags(command: argparse.ArgumentParser) -> None:
    """Adds what `sweep` takes."""
    add = command.add_argument
    add("--vary", action="append", default=[], metavar="NAME:WHAT", help="see below; repeatable")
    add("--seeds", default="", metavar="N,N,…", help="seeds; by default the one of the run")
    add(
        "--topology",
        default="",
        metavar="NAME",
        help="estimate by `plan` for this machine, cpu is this one, what isn't measured",
    )


def seeds_of(text: str) -> list[int]:
    """Reads `0,1,2`; nothing is no seed.

    Raises:
      UserError: for what isn't a list of different seeds.
    """
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(part.isdecimal() for part in parts) or len({*map(int, parts)}) < len(parts):
        raise UserError(f"--seeds: got {text!r}, expected different whole numbers, such as 0,1,2")
    return [int(part) for part in parts]


def variations_of(texts: Sequence[str]) -> dict[str, tuple[list[str], list[tuple[str, str]]]]:
    """Reads `NAME:WHAT` of each variation.

    Returns:
      its gin files and its (name, value) of bindings, by its name.

    Raises:
      UserError: for another form, and for a name that is there twice.
    """
    found: dict[str, tuple[list[str], list[tuple[str, str]]]] = {}
    for text in texts:
        label, colon, what = text.partition(":")
        parts = [part.strip() for part in what.split(";") if part.strip()]
        if not (colon and parts and _NAME.fullmatch(label)):
            raise UserError(
                f"--vary: got {text!r}, expected NAME:FILE.gin or NAME:SETTING=VALUE, with a name "
                "of letters, digits and _"
            )
        if label in found or label == "base":
            raise UserError(f"--vary: got the name {label!r} again, expected another")
        is_file = [part.endswith(".gin") and "=" not in part for part in parts]
        bound = [
            part.removeprefix("--gin.") for part, own in zip(parts, is_file, strict=True) if not own
        ]
        if wrong := [part for part in bound if "=" not in part]:
            raise UserError(f"--vary: {label}: got {wrong[0]!r}, expected a gin file or NAME=VALUE")
        pairs = [tuple(each.strip() for each in part.split("=", 1)) for part in bound]
        own_files = [part for part, own in zip(parts, is_file, strict=True) if own]
        found[label] = own_files, [(name, value) for name, value in pairs]
    return found


@dataclasses.dataclass
class _Member:
    """A run of the sweep, what evaluates it, its operative configuration, and it on other data."""

    run: Any
    evaluation: Any
    operative: str
    others: dict[str, Any] = dataclasses.field(default_factory=dict)


class Sweep:
    """Holds the runs of a sweep, one for each seed.

    Args:
      options: the flags; see `add_flags`.
      flags: (name, value) of each binding on the command line.

    Raises:
      UserError: for what `run` refuses, and variations that can't be in one run.
    """

    def __init__(self, options: argparse.Namespace, flags: Sequence[tuple[str, str]]):
        from pit_jax.evaluation.suite import EvaluationConfig
        from pit_jax.run import variations
        from pit_jax.run.config import RunConfig

        self._options, self._flags = options, list(flags)
        self._roots = (RunConfig, EvaluationConfig)
        self.seeds = seeds_of(options.seeds)
        if self.seeds and any(name == "SEED" for name, _ in flags):
            raise UserError("--gin.SEED: --seeds says it, expected one of them")
        base, evaluation = self._configured()
        self.folder: str = base.model_dir
        wanted = variations_of(options.vary)
        found = {}
        for label, (own_files, bound) in wanted.items():
            found[label], judged = self._configured(own_files, bound)
            if judged != evaluation:
                raise UserError(f"--vary: {label} changes the evaluation, expected stages alone")
        self.merged = variations.merge(base, found)
        text = self._text(evaluation) if found else ""
        seeds: Sequence[int | None] = self.seeds or [None]
        self.members = [self._member(seed, text) for seed in seeds]

    def _configured(self, more=(), flags=(), text: str = "") -> tuple[Any, Any]:
        options = self._options
        given = [*options.gin_file, *more]
        bound = [*self._flags, *flags]
        paths = options.gin_search_paths
        bindings.parse(given, paths, bound, self._roots, takes_stage=False, more=text)
        config, evaluation = map(bindings.configured, self._roots)
        return config, evaluation

    def _text(self, evaluation) -> str:
        """Binds the stages of all variations, and what the report calls their main models."""
        run_config, evaluation_config = self._roots
        labelled = {"controls": evaluation.controls, "ablations": evaluation.ablations}
        for label, names in self.merged.names.items():
            for field, main in (("controls", evaluation.policy), ("ablations", evaluation.pit)):
                name = names.get(main, main)
                if name != main:
                    labelled[field] += ((label, name),)
        fields: dict[tuple[type, str], Any] = {(run_config, "stages"): self.merged.config.stages}
        fields |= {(evaluation_config, field): value for field, value in labelled.items()}
        return bindings.written(fields)

    def _member(self, seed: int | None, text: str) -> _Member:
        from pit_jax.run import run as runs

        own = []
        if seed is not None:
            own = [("SEED", f"{seed}"), ("MODEL_DIR", repr(f"{self.folder}/seed{seed}"))]
        config, evaluation = self._configured((), own, text)
        assert config.stages == self.merged.config.stages
        files.check_folder(config.model_dir, "MODEL_DIR")
        made = runs.Run(config, keep=not self._options.dry_run)
        member = _Member(made, evaluation, bindings.operative())
        member.run.config_text = bindings.whole(self._roots)
        return member

    def check(self) -> None:
        """Refuses what would fail when hours of it are done."""
        from pit_jax import commands

        for member in self.members:
            commands.check(member.run, member.evaluation, self._options)
            member.others = commands.others(member.run, member.evaluation, self._options.transfer)
        if self.seeds:
            commands.check_combined(self.folder)

    def cost(self) -> str:
        """Says what is to be trained, and what it costs."""
        from pit_jax.plan import costs

        runs = [member.run for member in self.members]
        partitioner = runs[0].partitioner
        found = costs.costs(runs, partitioner)
        name = self._options.topology
        if name and any(each.seconds is None for each in found):
            found = costs.costs(runs, partitioner, _planned(runs[0].config, name))
        return "\n".join(_told(found, self))

    def train(self, caught: Any) -> None:
        """Trains and evaluates each run, and combines the reports of several.

        Args:
          caught: the signals, see `signals.Signals`.
        """
        from pit_jax import commands
        from pit_jax.report import write as report
        from pit_jax.runtime import compilation, owner, processes

        options, folders = self._options, []
        if self.members[0].run.config.compilation_cache:
            compilation.keep(self.folder)
        for member in self.members:
            options.operative, options.others = member.operative, member.others
            member.run.signals = caught
            print(f"\n{member.run.directory}:", flush=True)
            made = _reported(member, options)
            # Where one process has something to do, all have.
            if processes.any_process(made is None) or made is None:
                with owner.Owner(member.run.directory, "sweep"):
                    commands.run(member.run, member.evaluation, options)
            elif not self.seeds:
                print(report.format_summary(made))
            else:
                print("complete, skipped", flush=True)
            folders.append(f"{commands.report_folder(member.run, member.evaluation)}")
        if self.seeds and processes.is_first():
            options.compare, options.output = folders, self.folder
            commands.compare(options)


def _reported(member: _Member, options) -> dict[str, Any] | None:
    """Returns the report that `run` would write again; None if it has anything to do."""
    from pit_jax import commands
    from pit_jax.evaluation import transfer
    from pit_jax.run import choosing

    run, evaluation = member.run, member.evaluation
    stages = run.config.stages
    if any(not run.is_complete(s.name) or choosing.is_due(run, s) for s in stages):
        return None
    folder = commands.report_folder(run, evaluation)
    try:
        found = json.loads((folder / "report.json").read_text())
        written = (folder / "report.md").stat().mtime >= (folder / "report.json").stat().mtime
        before = [(row["name"], row["seconds"], row["model_step"]) for row in found["stages"]]
        same = found["config_text"], found["data_digest"]
        moved = {row["evaluated_on"]: row["data_digest"] for row in found.get("transfer", ())}
    except (OSError, ValueError, TypeError, KeyError):
        return None
    results = [run.result(stage.name) for stage in stages]
    now = [(row["name"], row["seconds"], row["model_step"]) for row in results]
    is_same = written and before == now and same == (options.operative, run.data.digest)
    is_same &= all(
        moved.get(transfer.label(file, other)) == other.data.digest
        for file, other in member.others.items()
    )
    return found if is_same else None


def _planned(config, topology: str) -> dict[str, float]:
    """Seconds of each stage by a plan."""
    from pit_jax import commands
    from pit_jax.plan import machines, planner

    slice_ = machines.find(topology)
    commands.say(f"planning for {slice_.name}")
    plan = planner.make_plan(config, slice_, machines.devices(slice_), commands.say)
    found = dict.fromkeys((stage.name for stage in config.stages), 0.0)
    for row in plan["programs"]:
        found[row["stage"]] += row.get("seconds", 0.0) * row["runs"]
    return found


def _told(found: Sequence[Any], sweep: Sweep) -> list[str]:
    from pit_jax.report.formatting import duration

    merged, runs = sweep.merged, len(sweep.members)
    width = max(len(each.stage) for each in found) + 2
    lines = [f"{'stage':<{width}}{'steps':>7}{'TFLOP':>12}{'MB':>9}{'time':>10}  {'left':<6}of"]
    for each in found:
        users = merged.users(each.stage)
        told = "all" if len(users) == len(merged.names) else ", ".join(users)
        source = f" ({each.source})" if each.source else ""
        lines.append(
            f"{each.stage:<{width}}{each.steps:>7,}{each.flops / 1e12:>12,.4g}"
            f"{each.size / 1e6:>9,.1f}{duration(each.seconds):>10}  {each.to_do:<6.3g}{told}"
            f"{source}"
        )
    all_of_them = sum(len(names) for names in merged.names.values()) * runs
    to_train = sum(left > 0 for each in found for left in each.left)
    shared = all_of_them - len(found) * runs
    seeds = f", seeds {', '.join(map(str, sweep.seeds))}" if sweep.seeds else ""
    steps = sum(each.steps * each.to_do for each in found)
    flops = sum(each.flops * each.to_do for each in found)
    size = sum(each.size * (left > 0) for each in found for left in each.left)
    known = [each for each in found if each.seconds is not None]
    unknown = [each for each in found if each.seconds is None and each.to_do]
    seconds = sum(each.seconds * each.to_do for each in known)
    time = f"about {duration(seconds)}" + (
        ""
        if not unknown
        else f", and {len(unknown)} stages of which nothing says it: --topology=cpu plans them"
    )
    if len(unknown) == len(found):
        time = "nothing says it yet: --topology=cpu plans it"
    lines += [
        "",
        f"sweep      {', '.join(merged.names)}{seeds} -> {sweep.folder}",
        f"to train   {to_train} of {len(found) * runs} stages; {shared} more are the same as these "
        "and shared",
        f"steps      {steps:,.0f}; {flops / 1e12:,.4g} model TFLOP, padding counted",
        f"disk       {size / 1e6:,.1f} MB of checkpoints still to be written",
        f"time       {time}; compilation and evaluation come on top",
    ]
    return lines


def main(options: argparse.Namespace, flags: Sequence[tuple[str, str]]) -> int:
    """Says what the sweep costs, then trains and evaluates it."""
    from pit_jax.runtime import processes, signals

    together = options.distributed and not options.dry_run
    if together and options.topology:
        raise UserError("--topology: got it with --distributed, expected it with --dry_run then")
    with contextlib.ExitStack() as stack:
        caught = stack.enter_context(signals.Signals())
        if together:
            processes.initialize()
        stack.enter_context(processes.one_voice())
        made = Sweep(options, flags)
        made.check()
        print(made.cost(), flush=True)
        if options.dry_run:
            print("\nnothing is written")
        else:
            made.train(caught)
    return 0
