"""Records what a stage's folder was made with, and refuses to mix two runs in one directory.

`stage.json` holds the settings that determine the stage's result, its own and those of every stage
it builds on, and what gives its parameters their meaning. Both are texts of the configuration, in
which a field counts unless its metadata says otherwise:

    changes_result  False for what says how the result is computed, or how often that is logged;
                    the settings leave the field out, so that a run may go on with another value
    identity        for what gives the parameters no other meaning: the value that stands for all
                    values in a model's identity; None leaves the field out
    variation       True for what leaves both texts while it has its default, because models that
                    were made before there was such a field are without it
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from typing import Any

from etils import epath

from pit_jax import files
from pit_jax.data.vocabularies.base import Vocabulary
from pit_jax.errors import UserError
from pit_jax.models.config import NetworkConfig
from pit_jax.run.config import RunConfig
from pit_jax.run.stages import Stage
from pit_jax.runtime import processes


def settings(config: RunConfig, stage: Stage, vocabulary: Vocabulary) -> dict[str, str]:
    """Returns what determines a stage's result: its own settings and those it builds on."""
    names = ("seed", "network", "dataset", "lengths", "batching")
    found = {name: _text(getattr(config, name), _result_counts) for name in names}
    found |= _of_vocabulary(vocabulary)
    table = {each.name: each for each in config.stages}
    todo, seen = [stage.name], set()
    while todo:
        name = todo.pop()
        if name in seen or name not in table:
            continue
        seen.add(name)
        each = table[name]
        found[name] = _text(each, _result_counts)
        todo += [getattr(each, field, "") for field in ("initial", "reference", "reward_model")]
        todo += [r.policy for r in getattr(each, "rounds", ()) if r.is_sampled]
    return found


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


def claim(folder: epath.Path, settings: dict[str, str], identity: dict[str, str]) -> None:
    """Writes `stage.json` into a stage's folder, unless it holds the same stage already.

    Raises:
      UserError: if the folder holds a stage that was trained with other settings, or not every
        process sees what the first one writes.
    """
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    path, checkpoints = folder / "stage.json", folder / "checkpoints"
    trained = checkpoints.is_dir() and any(c.name.isdigit() for c in checkpoints.iterdir())
    if path.exists() and (trained or (folder / "references").exists()):
        before = json.loads(path.read_text())
        if before["fingerprint"] != fingerprint:
            keys = dict.fromkeys([*settings, *before["settings"]])
            changed = [key for key in keys if before["settings"].get(key) != settings.get(key)]
            raise UserError(
                f"{folder}: was started with other settings ({', '.join(changed)} changed); "
                "use another MODEL_DIR, or delete the folder to train the stage again"
            )
    else:
        write_json(path, {"fingerprint": fingerprint, "settings": settings, "model": identity})
    processes.wait()  # the first one has written
    if processes.any_process(not path.exists()):
        raise UserError(
            f"{folder}: not every process sees the first one's files; hosts that share no disk "
            "need a MODEL_DIR in a bucket, gs://BUCKET/FOLDER"
        )


def check_identity(folder: epath.Path, identity: dict[str, str]) -> None:
    """Refuses a model whose parameters mean something else here than where they were trained.

    Raises:
      UserError: if vocabulary or architecture differ.
    """
    path = folder / "stage.json"
    trained = json.loads(path.read_text()).get("model", {}) if path.exists() else {}
    for what, expected in trained.items():
        if (got := identity.get(what, "none")) != expected:
            hint = " (the words of improve's prompts are part of it)" if "words" in expected else ""
            raise UserError(
                f"{folder}: was trained with another {what}: got {got}, expected {expected}{hint}"
            )


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a JSON file whole or not at all; only the first process writes."""
    if processes.is_first():
        files.write_whole(path, json.dumps(value, indent=1, sort_keys=True) + "\n")
