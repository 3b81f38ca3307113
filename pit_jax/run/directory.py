"""Records what a stage's folder was made with, and refuses to mix two runs in one directory.

`stage.json` holds the settings that determine the stage's result, its own and those of every stage
it builds on, digests of the examples and of the models it builds on (run/sources.py), and what
gives its parameters their meaning. With the same examples it doesn't matter how the dataset was
described, such as where its files were; nor, with the same model, where that is. Settings and
meaning are texts of the configuration, in which a field counts unless its metadata says otherwise:

    changes_result  False for what says how the result is computed, or how often that is logged;
                    the settings leave the field out, so that a run may go on with another value
    identity        for what gives the parameters no other meaning: the value that stands for all
                    values in a model's identity; None leaves the field out
    variation       True for what leaves both texts while it has its default, because models that
                    were made before there was such a field are without it
    may_be_lowered  True for a rate that a stage may go on with when it is lower, if that is asked for
    since           the FORMAT of `stage.json` from which on the settings have the field; in one of
                    an earlier format it can't be checked

Beside these texts the settings hold the steps of the checkpoints that were chosen of the RL stages
it builds on, where these aren't the last ones (method/choice.py).
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from etils import epath

from pit_jax import files
from pit_jax.data.layouts import Lengths
from pit_jax.data.vocabularies.base import Vocabulary
from pit_jax.errors import UserError
from pit_jax.method.ppo import PPOConfig
from pit_jax.method.roles import ROLES
from pit_jax.models.config import NetworkConfig
from pit_jax.run.config import RunConfig
from pit_jax.run.stages import RewardStage, RLStage, Stage, SupervisedStage, network_of, role_of
from pit_jax.runtime import processes
from pit_jax.runtime.train_state import OptimizerConfig

FORMAT = 2
# What a setting, the examples or a model are called, and what they were and are.
Change = tuple[str, str, str]
_SHOWN = 6  # changed settings that a message lists
_WIDTH = 60  # characters of a value that it shows
MODEL_FIELDS = ("initial", "reference", "reward_model")  # fields that name another stage's model
_SINCE = {
    field.name: field.metadata["since"]
    for each in (SupervisedStage, RewardStage, RLStage, PPOConfig)
    for field in dataclasses.fields(each)
    if "since" in field.metadata
}
_LOWERED = {
    field.name
    for each in (OptimizerConfig, PPOConfig)
    for field in dataclasses.fields(each)
    if field.metadata.get("may_be_lowered")
}
_TRAINED = ("references", "result.json")  # there once something is trained that belongs to it


def settings(
    config: RunConfig, stage: Stage, vocabularies: Mapping[str, Vocabulary]
) -> dict[str, str]:
    """Returns what determines a stage's result: its own settings and those it builds on.

    Args:
      config: the run's configuration.
      stage: the stage.
      vocabularies: the vocabulary of each role.
    """
    own = role_of(stage)
    model = config.of_role(own)
    found = {"seed": _text(config.seed, _result_counts)}
    found["network"] = _text(network_of(stage, model.network), _result_counts)
    for name in ("dataset", "batching"):
        found[name] = _text(getattr(config, name), _result_counts)
    found["lengths"] = _text(model.windows.of_task(stage.task), _result_counts)
    found |= _of_vocabulary(vocabularies[own])
    for role in ROLES:  # the windows of all roles say which examples there are
        other = config.of_role(role)
        if other != model:
            found[f"lengths of {role}"] = _text(other.windows.of_task(""), _result_counts)
            of_vocabulary = _of_vocabulary(vocabularies[role])
            found |= {f"{name} of {role}": text for name, text in of_vocabulary.items()}
    for each in built_on(config, stage):
        found[each.name] = _text(each, _result_counts)
        if (other := config.of_role(role_of(each))) != model:
            network = _text(network_of(each, other.network), _result_counts)
            found[f"network of {role_of(each)}"] = network
    return found


def built_on(config: RunConfig, stage: Stage) -> list[Stage]:
    """Returns a stage and all stages of the run that it builds on, itself first."""
    table = {each.name: each for each in config.stages}
    found, todo = {stage.name: stage}, list(_takes(stage).values())
    while todo:
        name = todo.pop()
        if name in table and name not in found:
            found[name] = table[name]
            todo += _takes(table[name]).values()
    return list(found.values())


def taken(config: RunConfig, stage: Stage) -> dict[str, str]:
    """Returns the models, by name or path, that a stage and those it builds on take.

    They are called as in the settings: `STAGE.FIELD`.
    """
    return {
        f"{each.name}.{field}": name
        for each in built_on(config, stage)
        for field, name in _takes(each).items()
    }


def _takes(stage: Stage) -> dict[str, str]:
    """The models that a stage takes, by the field that names each."""
    rounds = enumerate(getattr(stage, "rounds", ()))
    found = {field: getattr(stage, field, "") for field in MODEL_FIELDS}
    found |= {f"rounds[{n}].policy": r.policy for n, r in rounds if r.is_sampled}
    return {field: name for field, name in found.items() if name}


def models_of(stage: Stage) -> list[str]:
    """Returns the stages, by name or path, whose chosen model a stage takes.

    A round that names the step of its policy takes that one, whichever is chosen.
    """
    names = [getattr(stage, field, "") for field in MODEL_FIELDS]
    rounds = [r for r in getattr(stage, "rounds", ()) if r.is_sampled and r.steps]
    names += [r.policy for r in rounds if not r.policy_step]
    return [name for name in dict.fromkeys(names) if name]


def with_choices(
    settings: dict[str, str],
    folder: epath.Path,
    config: RunConfig,
    stage: Stage,
    chosen: Callable[[str], str | None],
) -> dict[str, str]:
    """Adds to a stage's settings the checkpoints that were chosen of the stages it builds on.

    A stage whose last checkpoint is used leaves no mark, as if nothing had been chosen.

    Args:
      settings: what `settings` returns.
      folder: the stage's.
      config: the run's configuration.
      stage: the stage.
      chosen: name of a stage -> the step that is chosen of it, empty for the last one; None as long
        as that isn't known, where what the folder has recorded stands.
    """
    path = folder / "stage.json"
    before = read_json(path).get("settings", {}) if path.exists() else {}
    table = {each.name: each for each in config.stages}
    todo, seen, found = models_of(stage), set(), dict(settings)
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        key = f"chosen step of {name}"
        step = chosen(name)
        if step := before.get(key, "") if step is None else step:
            found[key] = step
        todo += models_of(table[name]) if name in table else []
    return found


def lengths(directory: epath.Path, config: RunConfig, role: str) -> Lengths | None:
    """Returns the windows that a role's stages were started with; None if none was.

    They are those of the role from then on, where the data gives them (data/windows.py).

    Args:
      directory: the run directory.
      config: the run's configuration.
      role: the role.

    Raises:
      UserError: for a damaged `stage.json`.
    """
    model = config.of_role(role)
    others = {each.name for each in config.stages if config.of_role(role_of(each)) != model}
    for folder in sorted(directory.iterdir()) if directory.is_dir() else ():
        if folder.name not in others and (folder / "stage.json").exists():
            text = read_json(folder / "stage.json").get("settings", {}).get("lengths", "")
            if found := re.findall(r"(\w+)=(\d+)", text):
                return Lengths(**{name: int(tokens) for name, tokens in found})
    return None


def identity(network: NetworkConfig, vocabulary: Vocabulary) -> dict[str, str]:
    """Returns what gives a model's parameters their meaning: ids of words, and architecture."""
    stand_ins = {
        field.name: field.metadata["identity"]
        for field in dataclasses.fields(network)
        if field.metadata.get("identity") is not None
    }
    network = dataclasses.replace(network, **stand_ins)
    return _of_vocabulary(vocabulary) | {"network": _text(network, _identity_counts)}


def _of_vocabulary(vocabulary: Vocabulary) -> dict[str, str]:
    """What ids mean, and the protocol that prompts follow, if there is more to it than layouts."""
    protocol = {"protocol": vocabulary.protocol} if vocabulary.protocol else {}
    return {"vocabulary": vocabulary.fingerprint} | protocol


def _result_counts(field: dataclasses.Field) -> bool:
    return field.metadata.get("changes_result", True)


def _identity_counts(field: dataclasses.Field) -> bool:
    return field.metadata.get("identity", "") is not None


def _text(value: Any, counts: Callable[[dataclasses.Field], bool]) -> str:
    """The `repr` of a value without the fields of dataclasses that don't count."""
    if isinstance(value, tuple):
        parts = [_text(part, counts) for part in value]
        return f"({', '.join(parts)}{',' * (len(parts) == 1)})"
    if not dataclasses.is_dataclass(value):
        return repr(value)
    fields = [
        field.name
        for field in dataclasses.fields(value)
        if counts(field)
        and not (field.metadata.get("variation") and getattr(value, field.name) == field.default)
    ]
    parts = [f"{name}={_text(getattr(value, name), counts)}" for name in fields]
    return f"{type(value).__qualname__}({', '.join(parts)})"


def claim(
    folder: epath.Path,
    settings: dict[str, str],
    identity: dict[str, str],
    data: str = "",
    models: Mapping[str, str] = {},
    allow_change: bool = False,
) -> None:
    """Writes `stage.json` into a stage's folder, unless it holds the same stage already.

    What an earlier version's `stage.json` doesn't say can't be checked, which is printed if the
    stage isn't complete. Rates that are lower now, if that is allowed, go into `stage.json` with
    the step from which on they hold, as `changes`.

    Args:
      folder: the stage's.
      settings: what `settings` returns.
      identity: what `identity` returns.
      data: the digest of the examples, InputPipeline.digest; empty for a model without any.
      models: the digest of each model of `taken`, empty for one that isn't known.
      allow_change: whether a stage that isn't complete may go on with lower rates of its own.

    Raises:
      UserError: if the folder holds a stage that was trained with other settings, examples or
        models, or not every process sees what the first one writes.
    """
    path = folder / "stage.json"
    unknown, lowered = _unchecked(folder, settings, data, models, allow_change)
    if unknown is None:
        stage = {"settings": settings, "model": identity, "data": data, "models": {**models}}
        write_json(path, {"format": FORMAT, **stage})
    elif lowered:
        stage, step = read_json(path), max(steps(folder), default=0)
        now = [{"step": step, "name": name, "from": a, "to": b} for name, a, b in lowered]
        write_json(path, stage | {"settings": settings, "changes": [*changes(folder), *now]})
        said = ", ".join(f"{name} {a} -> {b}" for name, a, b in lowered)
        print(f"{folder.name}: from step {step} on with {said}", flush=True)
    elif unknown and not (folder / "result.json").exists():
        print(
            f"{folder.name}: couldn't check {', '.join(unknown)}: an earlier version started the "
            "stage and didn't record what they were",
            flush=True,
        )
    processes.wait()  # the first one has written
    if processes.any_process(not path.exists()):
        raise UserError(
            f"{folder}: not every process sees the first one's files; hosts that share no disk "
            "need a MODEL_DIR in a bucket, gs://BUCKET/FOLDER"
        )


def steps(folder: epath.Path) -> list[int]:
    """Returns the steps of which a stage's folder has a checkpoint, in no order."""
    checkpoints = folder / "checkpoints"
    names = [each.name for each in checkpoints.iterdir()] if checkpoints.is_dir() else []
    return [int(name) for name in names if name.isdigit()]


def changes(folder: epath.Path) -> list[dict[str, Any]]:
    """Returns the rates that a stage went on with: `step`, `name`, `from` and `to` of each."""
    path = folder / "stage.json"
    return read_json(path).get("changes", []) if path.exists() else []


def is_claimed(
    folder: epath.Path,
    settings: dict[str, str],
    data: str = "",
    models: Mapping[str, str] = {},
    allow_change: bool = False,
) -> bool:
    """Returns whether a folder holds something of this stage already; for the rest see `claim`.

    Raises:
      UserError: if it is of a stage with other settings, examples or models.
    """
    return _unchecked(folder, settings, data, models, allow_change)[0] is not None


def _unchecked(
    folder: epath.Path,
    settings: dict[str, str],
    data: str,
    models: Mapping[str, str],
    allow_change: bool,
) -> tuple[list[str] | None, list[Change]]:
    """What can't be checked of the stage that a folder holds, and which rates it may lower.

    The first is None if nothing of the stage is there.
    """
    path = folder / "stage.json"
    if not steps(folder) and not any((folder / name).exists() for name in _TRAINED):
        return None, []
    if not path.exists():
        raise UserError(
            f"{folder}: holds a stage without stage.json, which says what it was trained with; "
            "bring that back from a copy, use another MODEL_DIR, or delete the folder to train the "
            "stage again"
        )
    before = read_json(path)
    unknown, found = _compare(before, settings, models)
    old_data = before.get("data", "")
    if old_data and data != old_data:
        where = _where(settings.get("dataset", ""))
        found.insert(0, (f"the examples of {where}", f"({old_data[:8]}", f"{data[:8]})"))
    elif data and not old_data:
        unknown.append("the examples")
    if data and old_data == data:
        found = [change for change in found if not re.match(r"dataset\b", change[0])]
    may = not (folder / "result.json").exists() and all(_lowers(folder.name, *c) for c in found)
    if found and not (may and allow_change):
        parts = [f"{name} {_brief(was)} -> {_brief(now)}" for name, was, now in found]
        more = len(parts) - _SHOWN
        shown = "; ".join(parts[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
        allow = "give --allow_change to go on with the lower rate, " if may else ""
        raise UserError(
            f"{folder}: was started with other settings: {shown}. Go back to them, {allow}use "
            "another MODEL_DIR, or delete the folder to train the stage again"
        )
    return unknown, found


def _lowers(stage: str, name: str, was: str, now: str) -> bool:
    """Whether a change of settings is a lower rate of the stage's own."""
    own, _, field = name.rpartition(".")
    if field not in _LOWERED or own.partition(".")[0] != stage:
        return False
    with contextlib.suppress(ValueError):
        return float(now) < float(was)
    return False


def _compare(
    stage: Mapping[str, Any], settings: dict[str, str], models: Mapping[str, str]
) -> tuple[list[str], list[Change]]:
    """What a `stage.json` doesn't say of settings and models, and what has changed of them."""
    before, old = stage.get("settings", {}), stage.get("models", {})
    known = [name for name, digest in models.items() if digest and old.get(name)]
    unknown = [name for name, digest in models.items() if digest and not old.get(name)]
    found = []
    for key in dict.fromkeys([*settings, *before]):
        for name, was, now in _changes(key, before.get(key, ""), settings.get(key, "")):
            since = _SINCE.get(name.rpartition(".")[2], 1)
            if not was and since > stage.get("format", 1):
                unknown.append(name)
            elif name not in known:  # of those the content counts, wherever it is
                found.append((name, was, now))
    found[:0] = [
        (f"the model of {name}", f"({old[name][:8]}", f"{models[name][:8]})")
        for name in known
        if old[name] != models[name]
    ]
    return unknown, found


def check_data(folder: epath.Path, data: str) -> None:
    """Refuses a stage of this run that was trained on other examples than there are now.

    Raises:
      UserError: if it is known to have been.
    """
    path = folder / "stage.json"
    stage = read_json(path) if path.exists() else {}
    before, where = stage.get("data"), _where(stage.get("settings", {}).get("dataset", ""))
    if before and before != data:
        raise UserError(
            f"{folder}: was trained on other examples than {where} has now ({before[:8]} -> "
            f"{data[:8]}), so they may be among those it is judged by; bring the old data back, or "
            "train in another MODEL_DIR"
        )


def _where(dataset: str) -> str:
    """The paths in the text of a dataset's configuration, or what else to call the data."""
    paths = dict.fromkeys(re.findall(r"path='([^']+)'", dataset))
    return ", ".join(paths) or "the data"


def _changes(name: str, before: str, now: str) -> Iterator[Change]:
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
        yield from _changes(name + part, *(each.get(part, "") for each in parts))


def _parts(node: ast.expr) -> dict[str, str]:
    """What an expression is made of, by name, as texts; under "" what changes as a whole."""
    if isinstance(node, ast.Call):
        fields = {f".{k.arg}": ast.unparse(k.value) for k in node.keywords}
        return {"": ast.unparse(node.func), **fields}
    if isinstance(node, ast.Tuple):
        places = {f"[{n}]": ast.unparse(part) for n, part in enumerate(node.elts)}
        return {"": f"{len(places)}", **places}
    return {"": ast.unparse(node)}


def _brief(text: str) -> str:
    text = text or "(unset)"
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"


def check_identity(folder: epath.Path, identity: dict[str, str]) -> None:
    """Refuses a model whose parameters mean something else here than where they were trained.

    Raises:
      UserError: if vocabulary or architecture differ.
    """
    path = folder / "stage.json"
    trained = read_json(path).get("model", {}) if path.exists() else {}
    for what, expected in trained.items():
        if (got := identity.get(what, "none")) != expected:
            hint = " (the words of improve's prompts are part of it)" if "words" in expected else ""
            raise UserError(
                f"{folder}: was trained with another {what}: got {got}, expected {expected}{hint}"
            )


def read_json(path: epath.Path) -> dict[str, Any]:
    """Reads a file that `write_json` wrote; one that an earlier version wrote has no digest.

    Raises:
      UserError: if it isn't what was written, as after a full disk, or can't be read.
    """
    with files.reported(path, f"{path}: can't be read"):
        text = path.read_bytes()
    try:
        return files.unsealed(text, path.name)[0]
    except files.NotSealed as error:
        raise UserError(
            f"{path}: is damaged, {error}; bring it back from a copy, or delete {path.parent} to "
            "train the stage again"
        ) from None


def write_json(path: epath.Path, value: dict[str, Any]) -> None:
    """Writes a JSON file with a digest, whole or not at all; only the first process writes.

    Raises:
      UserError: if it can't be written.
    """
    if processes.is_first():
        with files.reported(path, f"{path}: can't be written"):
            text = json.dumps(files.sealed(value, path.name), indent=1, sort_keys=True)
            files.write_whole(path, text + "\n")
