"""Reads the reports of runs that are to be combined, and refuses those that don't belong together.

Runs belong together if they differ in their seed, and show the same figures of the same data.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from pit_jax import files
from pit_jax.data.files.json_values import printable, shown
from pit_jax.errors import UserError
from pit_jax.evaluation.judges import told

_FLAG = "--compare"
# Classes that decide what a figure of a report means.
_EVALUATION = (
    "EvaluationConfig",
    "EndpointConfig",
    "ClassifierConfig",
    "RewardJudgeConfig",
    "ImproveConfig",
    "SamplingConfig",
    "DatasetConfig",
)
# Settings that may differ: what tells the runs apart, where the data is, what adds rows.
_FREE = (
    *("RunConfig.model_dir", "RunConfig.seed"),
    *("DatasetConfig.path", "DatasetConfig.test_path", "DatasetConfig.data_dir"),
    *("EvaluationConfig.controls", "EvaluationConfig.ablations", "EvaluationConfig.temperatures"),
    *("EvaluationConfig.sweep", "EvaluationConfig.num_samples"),
    *("EndpointConfig.url", "EndpointConfig.key_variable", "EndpointConfig.concurrency"),
    *("EndpointConfig.retries", "EndpointConfig.timeout", "EndpointConfig.max_unanswered"),
    *("EndpointConfig.prices", "ClassifierConfig.batch_size"),
)
_MOST = 8
# What the reports say of their runs.
_RUN = ("seed", "folder", "commit", "data_digest", "device", "versions")


def read(folders: Sequence[str]) -> list[dict[str, Any]]:
    """Reads the report of each run.

    Args:
      folders: the run directories, on disks or in buckets.

    Returns:
      the reports in the order of their seeds, each with its `folder` and its `judge`.

    Raises:
      UserError: for one that isn't there or is no report of a run, and for two that have the same
        seed, or another title, judge, number of prompts or setting of evaluation.
    """
    if not folders or not all(folders):
        got = ",".join(folders)
        raise UserError(f"{_FLAG}: got {got!r}, expected run directories with commas between them")
    reports = [_read(folder) for folder in folders]
    for report in reports[1:]:
        _check_alike(reports[0], report)
    reports.sort(key=lambda report: report["seed"])
    for before, after in itertools.pairwise(reports):
        if before["seed"] == after["seed"]:
            raise UserError(
                f"{_FLAG}: {before['folder']} and {after['folder']} both have seed "
                f"{after['seed']}, expected one run of each seed"
            )
    return reports


def headings(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a report of these seeds says of them, in the layout of `report.seeds`."""
    first = reports[0]
    seeds = [report["seed"] for report in reports]
    split = first["subjects"].get("split", "test")
    plural = "s" if len(seeds) > 1 else ""
    return {
        "title": f"{first['title']}: {len(seeds)} seed{plural}",
        "description": (
            f"{first.get('num_prompts')} prompts of the {split} split, judged by "
            f"{told(first['judge'])}; seed{plural} {', '.join(map(str, seeds))}."
        ),
        "seeds": seeds,
        "num_prompts": first.get("num_prompts"),
        "judge": first["judge"],
        **{key: first[key] for key in ("task", "score", "subjects") if key in first},
        "warnings": [*_own_warnings(reports), *warnings(reports)],
        "runs": [
            {
                **{key: report.get(key) for key in _RUN},
                "seconds": sum(stage.get("seconds") or 0 for stage in report.get("stages", ())),
            }
            for report in reports
        ],
    }


def _read(folder: str) -> dict[str, Any]:
    path = epath.Path(folder) / "report.json"
    with files.reported(path, f"{_FLAG}: can't read {path}"):
        if not path.exists():
            raise UserError(
                f"{_FLAG}: {folder} has no report.json, expected the directory of a run that "
                "`run` or `evaluate` has evaluated"
            )
        text = path.read_bytes()
    try:
        report = json.loads(text)
        subjects = report.get("subjects") or {}
        judges = {row["judge"] for row in report["comparisons"]}
        fits = (
            isinstance(report["seed"], int)
            and isinstance(report["title"], str)
            and isinstance(subjects, dict)
            and isinstance(report.get("config_text", ""), str)
            and len(judges) == 1
            and all(isinstance(row["group"], str) for row in report["comparisons"])
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        fits = False
    if not fits:
        raise UserError(
            f"{_FLAG}: {path} is not the report of a run, expected JSON with a title, a seed and "
            "comparisons by one judge"
        )
    return {**report, "folder": folder, "judge": judges.pop(), "subjects": subjects}


def _check_alike(first: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    facts = [(name, first.get(name), other.get(name)) for name in ("title", "judge", "num_prompts")]
    facts += [
        (name, value, other["subjects"][name])
        for name, value in first["subjects"].items()
        if name in other["subjects"]
    ]
    facts += [each for each in _differences(first, other) if _decides(each[0])]
    for name, expected, got in facts:
        if got != expected:
            raise UserError(
                f"{_FLAG}: {other['folder']}: {name} is {shown(got)}, expected "
                f"{shown(expected)} as in {first['folder']}"
            )


def _decides(name: str) -> bool:
    return _without_scope(name).partition(".")[0] in _EVALUATION


def _without_scope(name: str) -> str:
    return name.rpartition("/")[2]


def _own_warnings(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the report of each seed warns of, once for the seeds that say the same."""
    seeds: dict[str, list[str]] = {}
    for report in reports:
        for text in report.get("warnings", ()):
            seeds.setdefault(text, []).append(str(report["seed"]))
    return [
        f"seed{'s' if len(those) > 1 else ''} {', '.join(those)}: {text}"
        for text, those in seeds.items()
    ]


def warnings(reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names every setting of training in which the runs differ, beside seed and directory."""
    first, found = reports[0], []
    for other in reports[1:]:
        for name, theirs, got in _differences(first, other):
            if not _decides(name):
                found.append(
                    f"seed {other['seed']} has another {name} than seed {first['seed']}: "
                    f"{_brief(got)}, not {_brief(theirs)}"
                )
    if len(found) > _MOST:
        found[_MOST:] = [f"{len(found) - _MOST} more settings differ"]
    return found


def _brief(text: str) -> str:
    text = printable(text)
    return text if len(text) <= 60 else text[:57] + "…"


def _differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Settings of both runs that shouldn't differ and do: (name, the first's, the other's)."""
    a, b = (settings(report.get("config_text", "")) for report in (first, other))
    return [
        (name, a[name], b[name])
        for name in a
        if a[name] != b.get(name, a[name])
        and _without_scope(name) not in _FREE
        and not name.startswith("MeshConfig.")
    ]


def settings(config_text: str) -> dict[str, str]:
    """Reads an operative configuration as gin writes it.

    Returns:
      the value of each setting, with those of macros in their places, by its name without the
      module, such as `rm_gap/LoopConfig.log_every`.
    """
    found: dict[str, str] = {}
    name = ""
    for line in config_text.splitlines():
        if line[:1].isspace():  # goes on with the value before
            if name:
                found[name] += " " + line.strip()
        elif " = " in line and not line.startswith("#"):
            name, _, value = line.partition(" = ")
            found[name] = value.strip()
    found = {key: value.removeprefix("\\").strip() for key, value in found.items()}
    macros = {key: value for key, value in found.items() if "." not in key}
    # In a name, what stands between a scope and the last two words is the module.
    return {
        re.sub(r"(^|/)[\w.]*?(\w+\.\w+)$", r"\1\2", key): macros.get(value.removeprefix("%"), value)
        if value.startswith("%")
        else value
        for key, value in found.items()
        if key not in macros
    }
