"""Reads and writes the JSON files of a stage's folder, which have digests and know the stage."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from etils import epath

from pit_jax import files
from pit_jax.errors import UserError
from pit_jax.runtime import processes

# Files that have the stage's name, and what else each has had in every version.
_ALWAYS = {
    "stage.json": ("settings",),
    "result.json": ("task", "model_step"),
    "choice.json": ("checkpoints",),
}
# What a file without a digest, which anybody may have changed, has to have where it has it.
_TEXTS = ("settings", "model", "models")  # objects of texts
_TYPES = {
    **dict.fromkeys(("name", "data", "task", "digest", "pooling"), str),
    **dict.fromkeys(("format", "steps", "model_step", "parameters", "chosen", "proposed"), int),
    **dict.fromkeys(("final", "records"), dict),
    **dict.fromkeys(("changes", "references", "checkpoints"), list),
}


def read_json(path: epath.Path) -> dict[str, Any]:
    """Reads a file that `write_json` wrote; one that an earlier version wrote has no digest.

    Raises:
      UserError: if it isn't what was written, is another stage's or can't be read.
    """
    with files.reported(path, f"{path}: can't be read"):
        text = path.read_bytes()
    try:
        value, is_sealed = files.unsealed(text, path.name)
        if path.name in _ALWAYS and not is_sealed:
            _check_types(path.name, value)
    except files.NotSealed as error:
        raise UserError(f"{path}: is damaged, {error}; {_remedy(path)}") from None
    if path.name in _ALWAYS:
        check_name(path, value, may_be_renamed=True)
    return value


def check_name(path: epath.Path, value: dict[str, Any], may_be_renamed: bool = False) -> None:
    """Refuses a file with the name of another stage than its folder's.

    Args:
      path: the file.
      value: what it holds.
      may_be_renamed: whether the folder may have another name than all of its files.

    Raises:
      UserError: if it has such a name.
    """
    name = value.get("name", path.parent.name)
    if name != path.parent.name and not (may_be_renamed and _is_renamed(path, name)):
        raise UserError(f"{path}: is damaged, it is that of stage {name}; {_remedy(path)}")


def write_json(path: epath.Path, value: dict[str, Any]) -> None:
    """Writes a JSON file with a digest, whole or not at all; only the first process writes.

    Raises:
      UserError: if it can't be written.
    """
    if processes.is_first():
        with files.reported(path, f"{path}: can't be written"):
            text = json.dumps(files.sealed(value, path.name), indent=1, sort_keys=True)
            files.write_whole(path, text + "\n")


def _check_types(name: str, value: dict[str, Any]) -> None:
    """Raises NotSealed for another JSON file in the place, or a value of another kind."""
    for key in _ALWAYS[name]:
        if key not in value:
            raise files.NotSealed(f"expected {key!r} in it")
    for key, kind in _TYPES.items():
        if key in value and type(value[key]) is not kind:
            raise files.NotSealed(f"{key!r} isn't what it has to be")
    # What a choice was made by is of numbers too.
    for key in _TEXTS if name == "stage.json" else ():
        found = value.get(key, {})
        if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
            raise files.NotSealed(f"{key!r} isn't what it has to be")


def _is_renamed(path: epath.Path, name: str) -> bool:
    """Whether all other files of the folder have this name too: then the folder was renamed."""
    beside = []
    for other in _ALWAYS:
        with contextlib.suppress(OSError, files.NotSealed):
            if other != path.name:
                found = files.unsealed((path.parent / other).read_bytes(), other)[0]
                beside.append(found.get("name"))
    return set(beside) <= {name}


def _remedy(path: epath.Path) -> str:
    return f"bring it back from a copy, or delete {path.parent} to train the stage again"
