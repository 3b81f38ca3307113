"""Writes docs/settings.md, every setting of a run: `python -m pit_jax.report.settings`."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator

from pit_jax.data.synthetic.instructions import FAMILIES
from pit_jax.evaluation.suite import EvaluationConfig
from pit_jax.run.config import RunConfig
from pit_jax.run.stages import Stage

_HEADER = """\
# Settings

Every setting of a run, with its type, its default and what it is. This page is made of the classes
that hold them, by `python -m pit_jax.report.settings > docs/settings.md`.

A setting is a line of a gin file, such as `LoopConfig.log_every = 5`, or a flag, such as
`--gin.LoopConfig.log_every=5`; a flag wins over a file. In a file, text stands in quotes:
`NetworkConfig.dtype = 'float32'`; in a flag it needs none: `--gin.NetworkConfig.dtype=float32`.
Capital names are macros, which gin files give to several settings at once: `--gin.SEED=1`,
`--gin.BATCH_SIZE=64`, `--gin.MODEL_DIR=runs/mine`.

Where the page says *of each stage*, the name of a stage before the setting makes it count for this
stage alone, and it wins over the setting without one: `--gin.rm_gap/LoopConfig.eval_every=20`. The
rounds of a stage have names too, such as `rl_pit_0/Round.steps`, and so have the ways to sample:
`policy/SamplingConfig.temperature` and `pit/SamplingConfig.temperature`.
"""


def classes() -> dict[type, bool]:
    """Returns the classes of a run's settings, in order, and whether each stage has its own."""
    found: dict[type, bool] = {}

    def visit(cls: type, of_stage: bool) -> None:
        if cls in found:
            found[cls] = found[cls] and of_stage
            return
        of_stage = of_stage or cls in typing.get_args(Stage)
        found[cls] = of_stage
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            for part in _dataclasses(hints[field.name]):
                visit(part, of_stage)

    for cls in (RunConfig, EvaluationConfig, *(family.CONFIG for family in FAMILIES.values())):
        visit(cls, False)
    return found


def _dataclasses(hint) -> Iterator[type]:
    """The dataclasses in a type, such as those of `tuple[Stage, ...]`."""
    if dataclasses.is_dataclass(hint):
        yield typing.cast(type, hint)
    for part in typing.get_args(hint):
        yield from _dataclasses(part)


def page() -> str:
    """Returns the page, in Markdown."""
    parts = [_HEADER]
    for cls, of_stage in classes().items():
        summary = inspect.getdoc(cls).splitlines()[0]  # type: ignore[union-attr]
        parts.append(f"## {cls.__name__}\n\n{summary}{' *Of each stage.*' if of_stage else ''}\n")
        meanings, rows = _meanings(cls), ["| setting | type | default | |", "|---|---|---|---|"]
        for field in dataclasses.fields(cls):
            kind = re.sub(r"\w+\.(?=\w)", "", str(field.type)).replace("UserPath", "str")
            kind = _cell(kind)
            cells = f"`{field.name}`", f"`{kind}`", _default(field), _cell(meanings[field.name])
            rows.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
        # A configuration in a configuration has its defaults, which have a table of their own.
        return "its own" if dataclasses.is_dataclass(value) else f"`{_cell(repr(value))}`"
    if field.default_factory is not dataclasses.MISSING:
        return "its own"
    return "must be set"


def _meanings(cls: type) -> dict[str, str]:
    """What each field is, by the `Attributes` of its class."""
    text = (inspect.getdoc(cls) or "").partition("Attributes:\n")[2]
    found = re.findall(r"^  (\w+(?:, \w+)*): (.*(?:\n    .*)*)", text, re.MULTILINE)
    return {
        name: " ".join(meaning.split()) for names, meaning in found for name in names.split(", ")
    }


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
