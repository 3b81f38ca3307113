"""Compares a run directory with that of an uninterrupted run, and reads how far a run has come."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from tests import tiny_runs

RELATIVE, ABSOLUTE = 1e-4, 1e-5  # losses of other topologies
CHECKPOINTS = 6  # two newest, as many best, and two that signals may leave between
STAGES = tuple(stage.name for stage in tiny_runs.config("unused").stages)


class Where(NamedTuple):
    """How far a run is, as far as its files tell.

    Attributes:
      stage: the first one without a result; empty if all have one.
      doing: what was going on.
      recorded: the last step in its records.
      saved: the step of its newest checkpoint.
      saving: whether a checkpoint was being written.
    """

    stage: str
    doing: str
    recorded: int
    saved: int
    saving: bool


def where(folder: pathlib.Path, out: str, since: float = 0.0) -> Where:
    """How far a run is; `out` is what its last start printed, `since` when that was, in seconds."""
    stage = next((s for s in STAGES if not (folder / s / "result.json").exists()), "")
    if not stage:
        doing = "evaluating" if "evaluating" in out else "start-up"
        figures = folder / "figures"
        if figures.is_dir() and figures.stat().st_mtime >= since:
            doing = "writing the report"
        return Where("", doing, 0, 0, False)
    checkpoints, metrics = folder / stage / "checkpoints", folder / stage / "metrics.jsonl"
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    saved = max((int(name) for name in names if name.isdigit()), default=0)
    saving = any("tmp" in name for name in names)
    recorded = max((r.get("step", 0) for r in _whole(metrics)), default=0)
    if out.rstrip().rpartition("\n")[2].startswith(f"{stage}: sampling"):
        doing = "sampling"
    elif not metrics.exists() or metrics.stat().st_mtime < since:  # a stage that starts writes it
        doing = "loading" if out.strip() else "start-up"
    else:
        doing = "saving" if saving else "training"
    return Where(stage, doing, recorded, saved, saving)


def _whole(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics.jsonl that can be read."""
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("step", 0), int):
                yield record
        except ValueError:
            continue


def differences(
    expected: pathlib.Path,
    found: pathlib.Path,
    stages: Collection[str] = STAGES,
    curves: Collection[str] = (),
    close: bool = False,
    damaged: Collection[pathlib.Path] = (),
) -> list[str]:
    """What a finished run has otherwise than the uninterrupted one, as lines.

    Args:
      expected: the uninterrupted run.
      found: the other.
      stages: the stages that are compared; the report is, if they are all.
      curves: stages whose records were damaged in a way that can't be noticed.
      close: whether the losses are only equal to float tolerance, as on another topology.
    """
    lines: list[str] = []
    for stage in stages:
        one, two = expected / stage, found / stage
        if stage not in curves:
            lines += _records(stage, one, two, close)
        lines += _results(stage, one, two, stage in curves, close)
        for path in sorted(one.glob("references/*/*")):
            other = two / path.relative_to(one)
            if other in damaged:
                continue
            if not other.exists() or path.read_bytes() != other.read_bytes():
                lines.append(f"{stage}/{path.relative_to(one)}: other bytes")
        left = [path.name for path in (two / "checkpoints").iterdir()]
        if unfinished := [name for name in left if "tmp" in name]:
            lines.append(f"{stage}: left {unfinished[0]}")
        if sum(name.isdigit() for name in left) > CHECKPOINTS:
            lines.append(f"{stage}: {len(left)} checkpoints are left")
    if set(stages) == set(STAGES):
        lines += _reports(expected, found, curves, close)
        one, two = expected / "config.gin", found / "config.gin"
        if not close and two not in damaged and one.read_bytes() != two.read_bytes():
            lines.append("config.gin: other bytes")
    return lines


def _records(stage: str, one: pathlib.Path, two: pathlib.Path, close: bool) -> list[str]:
    """Differences of a stage's records."""
    expected, found = (tiny_runs.records(each / "metrics.jsonl") for each in (one, two))
    steps, got = ([record["step"] for record in records] for records in (expected, found))
    if got != steps:
        return [f"{stage}: records of steps {got}, expected {steps}"]
    lines: list[str] = []
    for step, record, other in zip(steps, expected, found, strict=True):
        lines += _unequal(f"{stage}@{step}", record, other, close)
    return lines[:3]


def _results(
    stage: str, one: pathlib.Path, two: pathlib.Path, loose: bool, close: bool
) -> list[str]:
    expected, found = (
        tiny_runs.without_times(json.loads((each / "result.json").read_text()))
        for each in (one, two)
    )
    for result in (expected, found):
        result.pop("sha256")  # of the times too
        if loose:
            result.pop("final")
        if close:
            result.pop("digest")
    return list(_unequal(f"{stage}/result.json", expected, found, close))[:3]


def _reports(
    one: pathlib.Path, two: pathlib.Path, curves: Collection[str], close: bool
) -> list[str]:
    expected, found = (
        tiny_runs.without_times(json.loads((each / "report.json").read_text()))
        for each in (one, two)
    )
    if close:  # a sample may be another one
        return [] if expected.keys() == found.keys() else ["report.json: other parts"]
    for report in (expected, found):
        report.pop("commit", None)
        for stage in report["stages"]:
            if stage["name"] in curves:
                stage.pop("final", None)
        report["curves"] = [c for c in report["curves"] if c["stage"] not in curves]
        if "rl_pit" in curves:
            report.pop("figure4")
    told = []
    for stage in found["stages"]:  # what a remedy has set aside, it says
        if stage["name"] in curves:
            warning = (
                f"the records of {stage['name']} were damaged: its curves show those that were"
            )
            told += (
                [] if stage.pop("damaged", False) else [f"report.json: {stage['name']}: no word"]
            )
            found["warnings"] = [w for w in found["warnings"] if not w.startswith(warning)]
    return told + list(_unequal("report.json", expected, found, close))[:3]


def _unequal(name: str, one: Any, two: Any, close: bool) -> Iterator[str]:
    """Yields a line for each value that differs; of close ones only losses and counts count."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in {**one, **two}:
            if close and key == "texts":  # a sample may be another one
                continue
            if key not in one or key not in two:
                yield f"{name}.{key}: only in one of them"
            else:
                yield from _unequal(f"{name}.{key}", one[key], two[key], close)
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for number, (a, b) in enumerate(zip(one, two)):
            yield from _unequal(f"{name}[{number}]", a, b, close)
    elif close and isinstance(one, float) and isinstance(two, float):
        key = name.rpartition(".")[2]
        counts = "loss" in key or key in ("tokens", "steps", "model_step")
        if counts and not math.isclose(one, two, rel_tol=RELATIVE, abs_tol=ABSOLUTE):
            yield f"{name}: {two!r}, expected {one!r}"
    elif one != two:
        yield f"{name}: {two!r:.80}, expected {one!r:.80}"
