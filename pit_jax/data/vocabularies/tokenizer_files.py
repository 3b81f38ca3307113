"""Reads the files of a model's tokenizer, and what stands in the files beside it."""

from __future__ import annotations

import json
from typing import Any

from etils import epath

from pit_jax.errors import UserError

CONFIG = "tokenizer_config.json"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
NO_TEMPLATE, OWN_TEMPLATE = "none", "tokenizer"
# What the control tokens are called in a tokenizer that this package has written.
CONTROL = ("<<Candidate>>", "<<Improved>>")


def read(path: epath.Path) -> bytes:
    """Reads a file.

    Raises:
      UserError: if it can't be read.
    """
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: can't be read ({reason}), expected a tokenizer's file") from error


def settings(path: epath.Path) -> dict[str, Any]:
    """Reads a JSON object, an empty one if there is no such file.

    Raises:
      UserError: if it can't be read, or is something else.
    """
    if not path.exists():
        return {}
    try:
        value = json.loads(read(path))
        if not isinstance(value, dict):
            raise ValueError(f"got {type(value).__name__}")
    except (ValueError, RecursionError) as error:
        raise unreadable(path, "a JSON object", error) from error
    return value


def special_names(config: dict[str, Any]) -> dict[str, str]:
    """Returns the names of the special tokens that a `tokenizer_config.json` has, by their role."""
    found = {role: config.get(role) for role in _SPECIAL}
    names = {role: v.get("content") if isinstance(v, dict) else v for role, v in found.items()}
    return {role: name for role, name in names.items() if isinstance(name, str)}


def end_ids(folder: epath.Path) -> list[int]:
    """Returns the ids that end a text by the folder's `generation_config.json`."""
    ids = settings(folder / "generation_config.json").get("eos_token_id")
    return [i for i in (ids if isinstance(ids, list) else [ids]) if type(i) is int]


def chat_template(choice: str, folder: epath.Path) -> tuple[str, str]:
    """Returns a chat template and where it is from.

    Args:
      choice: `tokenizer` for the one among the tokenizer's files, or the path of a file.
      folder: the tokenizer's.

    Raises:
      UserError: if there is none.
    """
    if choice != OWN_TEMPLATE:
        return _text(epath.Path(choice)), choice
    if (path := folder / "chat_template.jinja").exists():
        return _text(path), str(path)
    for path in (folder / "chat_template.json", folder / CONFIG):
        found = settings(path).get("chat_template")
        if isinstance(found, list):  # several for several uses
            named = [each for each in found if isinstance(each, dict)]
            found = next((e.get("template") for e in named if e.get("name") == "default"), None)
        if isinstance(found, str):
            return found, str(path)
    raise UserError(
        f"chat_template: got {choice!r}, but {folder} has none, expected a chat_template.jinja, a "
        f"'chat_template' in {CONFIG}, or the path of a template"
    )


def _text(path: epath.Path) -> str:
    try:
        return read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise unreadable(path, "a chat template", error) from error


def unreadable(path: str | epath.Path, expected: str, error: Exception) -> UserError:
    """Makes the error for a file that isn't what it should be."""
    reason = (str(error).splitlines() or [repr(error)])[0][:200]
    return UserError(f"{path}: expected {expected}, which it isn't: {reason}")


def not_installed(path: str, packages: str, error: ImportError) -> UserError:
    """Makes the error for a missing package."""
    return UserError(
        f"{path}: needs a package that isn't installed ({error}), expected `pip install {packages}`"
    )
