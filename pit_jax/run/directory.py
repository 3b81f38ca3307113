"""Records what a stage's folder was made with, and refuses to mix two runs in one directory.

`stage.json` holds the settings that determine the stage's result, its own and those of every stage
it builds on, digests of the examples and of the models it builds on (run/sources.py), and what
gives its parameters their meaning. Where the same examples or models are doesn't matter. Settings
and meaning are texts of the configuration; a field counts unless its metadata says otherwise:

    changes_result  False for what says how the result is computed, or how often that is logged;
                    the settings leave the field out, so that a run may go on with another value
    identity        for what gives the parameters no other meaning: the value that stands for all
                    values in a model's identity; None leaves the field out
    variation       True for what leaves both texts while it has its default, because models that
                    were made before there was such a field are without it
    may_be_lowered  True for what a stage may go on with when it is lower, if that is asked for
    since           the FORMAT of `stage.json` from which on the settings have the field; in one of
                    an earlier format it can't be checked

Beside these texts the settings hold the steps of the checkpoints that were chosen of the RL stages
it builds on, where these aren't the last ones (method/choice.py).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from pit_jax.data.layouts import Lengths
from pit_jax.data.vocabularies.base import Vocabulary
from pit_jax.errors import UserError
from pit_jax.method.roles import ROLES
from pit_jax.models.config import NetworkConfig
from pit_jax.run import settings_diff
from pit_jax.run.config import RunConfig
from pit_jax.run.settings_diff import Change
from pit_jax.run.stage_files import check_name, read_json, write_json
from pit_jax.run.stages import Stage, network_of, role_of
from pit_jax.runtime import processes

FORMAT = 2
MODEL_FIELDS = ("initial", "reference", "reward_model")  # fields that name another stage's model
WANDB_ID = "wandb_id"  # the file with the id of the stage's run of Weights & Biases
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
    stage isn't complete. Rates that are lower now, if that is allowed, go into `stage.json` as
    `changes`: `step` from which on each holds, its `name`, and what it was (`from`) and is (`to`).

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
    unknown, lowered = _compare(folder, settings, data, models, allow_change)
    if unknown is None:
        stage = {"settings": settings, "model": identity, "data": data, "models": {**models}}
        write_json(path, {"format": FORMAT, "name": folder.name, **stage})
    if unknown and not (folder / "result.json").exists():
        print(
            f"{folder.name}: couldn't check {', '.join(unknown)}: an earlier version started the "
            "stage and didn't record what they were",
            flush=True,
        )
    if lowered:
        _lower(folder, settings, lowered)
        print(f"{folder.name}: goes on with {settings_diff.told(lowered)}", flush=True)
    processes.wait()  # the first one has written
    if processes.any_process(not path.exists()):
        raise UserError(
            f"{folder}: not every process sees the first one's files; hosts that share no disk "
            "need a MODEL_DIR in a bucket, gs://BUCKET/FOLDER"
        )


def _lower(folder: epath.Path, settings: dict[str, str], lowered: list[Change]) -> None:
    """Has a stage go on with lower rates."""
    stage, step = read_json(folder / "stage.json"), max(steps(folder), default=0)
    now = [{"step": step, "name": n, "from": float(a), "to": float(b)} for n, a, b in lowered]
    if processes.is_first():  # from here on it is another curve
        (folder / WANDB_ID).unlink(missing_ok=True)
    stage |= {"settings": settings, "changes": [*stage.get("changes", []), *now]}
    write_json(folder / "stage.json", stage)


def went_on(folder: epath.Path, step: int) -> None:
    """Notes from which step a stage's training goes on.

    What was changed later than that, by a checkpoint that is gone, holds from there.

    Raises:
      UserError: for a damaged `stage.json`.
    """
    path = folder / "stage.json"
    stage = read_json(path) if path.exists() else {}
    before = stage.get("changes", [])
    now = [change | {"step": min(change["step"], step)} for change in before]
    if now != before:
        write_json(path, stage | {"changes": now})


def changes(folder: epath.Path) -> list[dict[str, Any]]:
    """Returns what was changed while a stage was trained, see settings_diff.history."""
    path = folder / "stage.json"
    return settings_diff.history(read_json(path).get("changes", []) if path.exists() else [])


def steps(folder: epath.Path) -> list[int]:
    """Returns the steps of which a stage's folder has a checkpoint, in no order."""
    checkpoints = folder / "checkpoints"
    names = [each.name for each in checkpoints.iterdir()] if checkpoints.is_dir() else []
    return [int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name)]


def check_claim(
    folder: epath.Path,
    settings: dict[str, str],
    data: str = "",
    models: Mapping[str, str] = {},
    allow_change: bool = False,
) -> list[Change]:
    """Refuses what `claim` would refuse; returns the rates that it would lower.

    Raises:
      UserError: if the folder holds a stage with other settings, examples or models.
    """
    return _compare(folder, settings, data, models, allow_change)[1]


def _compare(
    folder: epath.Path,
    settings: dict[str, str],
    data: str,
    models: Mapping[str, str],
    allow_change: bool,
) -> tuple[list[str] | None, list[Change]]:
    """What can't be checked of the stage that a folder holds, and which of its rates are lowered.

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
    stage = read_json(path)
    check_name(path, stage)
    unknown, found = settings_diff.compare(stage, settings, data, models)
    may = not (folder / "result.json").exists() and all(
        settings_diff.lowers(folder.name, change) for change in found
    )
    if found and not (may and allow_change):
        hint = "give `run` or `train` --allow_change to go on with what is lower, " if may else ""
        raise UserError(
            f"{folder}: was started with other settings: {settings_diff.told(found)}. Go back to "
            f"them, {hint}use another MODEL_DIR, or delete the folder to train the stage again"
        )
    return unknown, found


def check_data(folder: epath.Path, data: str) -> None:
    """Refuses a stage of this run that was trained on other examples than there are now.

    Raises:
      UserError: if it is known to have been.
    """
    path = folder / "stage.json"
    stage = read_json(path) if path.exists() else {}
    before = stage.get("data")
    where = settings_diff.place_of(stage.get("settings", {}).get("dataset", ""))
    if before and before != data:
        raise UserError(
            f"{folder}: was trained on other examples than {where} has now ({before[:8]} -> "
            f"{data[:8]}), so they may be among those it is judged by; bring the old data back, or "
            "train in another MODEL_DIR"
        )


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
