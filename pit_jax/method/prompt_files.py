"""Reads what a language model is asked from JSON files: those of the package, or a user's own.

A file has steps, and each is an object of a text `user` with fields in braces; its other braces
are doubled. `system`, and an `opening` where a model can be given one, may be left out; they have
no fields.
"""

from __future__ import annotations

import dataclasses
import pathlib
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from etils import epath

from pit_jax import files
from pit_jax.data.files.json_values import json_object, shown
from pit_jax.errors import UserError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Step:
    """Holds what a language model is asked once.

    Attributes:
      user: what the user says, with fields in braces.
      system: what the system says before; empty for no such turn.
      opening: how the assistant's answer begins; empty where it is sampled from its first token on.
    """

    user: str
    system: str = ""
    opening: str = ""

    def says(self, texts: Mapping[str, str]) -> str:
        """Returns what the user says, with texts in the place of the fields."""
        return self.user.format(**texts).strip()


def read(setting: str, shipped: pathlib.Path, name: str, make: Callable[[dict], T]) -> T:
    """Reads a file of prompts.

    Args:
      setting: the setting that names it; it opens the messages.
      shipped: the folder of those that come with the package.
      name: of one of these without `.json`, or the path of a file.
      make: makes the result of the file's object; its ValueErrors are told as the file's faults.

    Raises:
      UserError: if there is no such file, or it is no JSON object that `make` takes.
    """
    ours = {path.stem: path for path in sorted(shipped.glob("*.json"))}
    path = epath.Path(ours.get(name, name))
    with files.reported(path, f"{setting}: can't read {path}"):
        if not path.exists():
            known = ", ".join(ours)
            raise UserError(
                f"{setting}: got {name!r}, expected one of {known}, or the path of a file"
            )
        content = path.read_bytes()
    try:
        return make(json_object(content))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def step(
    name: str,
    value: Any,
    needed: Sequence[str],
    keys: Sequence[str] = ("user", "system", "opening"),
) -> Step:
    """Makes a step of its object in a file.

    Args:
      name: of the step; it opens the messages.
      value: the object.
      needed: the fields that `user` has to have, and no others.
      keys: those that the object may have.

    Raises:
      ValueError: if it is anything else.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{name}: got {shown(value)}, expected an object with 'user'")
    check_keys(value, name, ("user",), keys)
    for key, text in value.items():
        if not isinstance(text, str):
            raise ValueError(f"{name}.{key}: got {shown(text)}, expected text")
    made = Step(value["user"], value.get("system", "").strip(), value.get("opening", ""))
    expected = [f"{{{field}}}" for field in needed]
    got = _fields(made.user)
    problems = [field for field in got if field not in expected]
    problems += [f"no {field}" for field in expected if field not in got]
    if problems:
        raise ValueError(
            f"{name}.user: got {problems[0]}, expected the fields {', '.join(expected)}, and other "
            "braces doubled"
        )
    for key in ("system", "opening"):
        if misplaced := [field for field in expected if field in getattr(made, key)]:
            raise ValueError(f"{name}.{key}: got {misplaced[0]}, expected fields in 'user' alone")
    return made


def _fields(text: str) -> list[str]:
    """Returns the fields of a text as they are written, braces included."""
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError:
        return ["a single brace"]
    return [
        "{" + name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "") + "}"
        for _, name, form, conversion in parts
        if name is not None
    ]


def check_keys(
    found: Mapping[str, Any], what: str, needed: Sequence[str], known: Sequence[str]
) -> None:
    """Refuses an object that lacks a key, or has one that isn't known.

    Raises:
      ValueError: if it does; `what` names the object.
    """
    missing = [f"no {key!r}" for key in needed if key not in found]
    unknown = [shown(key) for key in found if key not in known]
    if problems := unknown + missing:
        expected = ", ".join(map(repr, known))
        raise ValueError(f"{what}: got {problems[0]}, expected the keys {expected}")
