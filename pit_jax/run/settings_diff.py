"""Compares what a stage was started with and what it is to go on with, and tells what differs."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pit_jax.method.ppo import PPOConfig
from pit_jax.run.stages import RewardStage, RLStage, SupervisedStage
from pit_jax.runtime.train_state import OptimizerConfig

# What a setting, the examples or a model are called, and what they were and are.
Change = tuple[str, str, str]
_SHOWN = 6  # changed settings that a message lists
_WIDTH = 60  # characters of a value that it shows
_SINCE = {
    field.name: field.metadata["since"]
    for each in (SupervisedStage, RewardStage, RLStage, PPOConfig)
    for field in dataclasses.fields(each)
    if "since" in field.metadata
}
# What a stage may go on with when it is lower, as the settings call it after the stage's name.
_MAY_BE_LOWERED = {
    f".{part}.{field.name}"
    for part, each in (("optimizer", OptimizerConfig), ("ppo", PPOConfig))
    for field in dataclasses.fields(each)
    if field.metadata.get("may_be_lowered")
}


def compare(
    stage: Mapping[str, Any], settings: Mapping[str, str], data: str, models: Mapping[str, str]
) -> tuple[list[str], list[Change]]:
    """Compares a `stage.json` with the settings, examples and models that there are now.

    Args:
      stage: what `stage.json` has.
      settings: what directory.settings returns.
      data: the digest of the examples; empty for a model without any.
      models: the digest of each model by its setting, empty for one that isn't known.

    Returns:
      what can't be checked, since an earlier version didn't record it, and what has changed.
    """
    before, old = stage.get("settings", {}), stage.get("models", {})
    known = [name for name, digest in models.items() if digest and old.get(name)]
    unknown = [name for name, digest in models.items() if digest and not old.get(name)]
    changes = [
        (f"the model of {name}", *_digests(old[name], models[name]))
        for name in known
        if old[name] != models[name]
    ]
    old_data = stage.get("data", "")
    for key in dict.fromkeys([*settings, *before]):
        if data and data == old_data and key == "dataset":  # wherever it is
            continue
        for name, was, now in differing(key, before.get(key, ""), settings.get(key, "")):
            since = _SINCE.get(name.rpartition(".")[2], 1)
            if not was and since > stage.get("format", 1):
                unknown.append(name)
            elif name not in known:  # of those the content counts, wherever it is
                changes.append((name, was, now))
    if old_data and data != old_data:
        where = place_of(settings.get("dataset", ""))
        changes.insert(0, (f"the examples of {where}", *_digests(old_data, data)))
    elif data and not old_data:
        unknown.append("the examples")
    return unknown, changes


def _digests(was: str, now: str) -> tuple[str, str]:
    """Two digests as a message shows them, in parentheses."""
    return f"({was[:8]}", f"{now[:8]})"


def place_of(dataset: str) -> str:
    """Returns the paths in the text of a dataset's configuration, or what else to call the data."""
    paths = dict.fromkeys(re.findall(r"path='([^']+)'", dataset))
    return ", ".join(paths) or "the data"


def differing(name: str, before: str, now: str) -> Iterator[Change]:
    """Yields what differs between two texts of a configuration: each field, its old and new text.

    A text is empty where there is no such field.
    """
    if before == now:
        return
    try:
        old, new = (ast.parse(text, mode="eval").body for text in (before, now))
    except SyntaxError:  # one of them is empty, or no expression
        yield name, before, now
        return
    parts = [_parts(node) for node in (old, new)]
    if parts[0][""] != parts[1][""]:
        yield name, before, now
        return
    for part in dict.fromkeys([*parts[0], *parts[1]]):
        yield from differing(name + part, *(each.get(part, "") for each in parts))


def _parts(node: ast.expr) -> dict[str, str]:
    """What an expression is made of, by name, as texts; under "" what changes as a whole."""
    if isinstance(node, ast.Call):
        fields = {f".{k.arg}": ast.unparse(k.value) for k in node.keywords}
        return {"": ast.unparse(node.func), **fields}
    if isinstance(node, ast.Tuple):
        places = {f"[{n}]": ast.unparse(part) for n, part in enumerate(node.elts)}
        return {"": f"{len(places)}", **places}
    return {"": ast.unparse(node)}


def lowers(stage: str, change: Change) -> bool:
    """Returns whether a change is a lower rate of the stage of this name."""
    name, was, now = change
    if name not in {stage + field for field in _MAY_BE_LOWERED}:
        return False
    with contextlib.suppress(ValueError):  # None takes another rate
        return float(now) < float(was)
    return False


def told(changes: Sequence[Change]) -> str:
    """Lists changes as a message has them, old -> new."""
    parts = [f"{name} {_brief(was)} -> {_brief(now)}" for name, was, now in changes]
    more = len(parts) - _SHOWN
    return "; ".join(parts[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _brief(text: str) -> str:
    text = text or "(unset)"
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def history(changes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns what was changed while a stage was trained: `step`, `name`, `from` and `to` of each.

    Of the changes in a `stage.json`, those before the first step changed nothing, and those at one
    step are one.
    """
    found: dict[tuple[int, str], dict[str, Any]] = {}
    for change in changes:
        if change["step"]:
            place = found.setdefault((change["step"], change["name"]), {**change})
            place["to"] = change["to"]
    return [*found.values()]
