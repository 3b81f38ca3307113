"""Checks every field of a configuration against its annotation when the configuration is made.

A class that is marked so,

    @dataclasses.dataclass(frozen=True)
    @checked
    class LoopConfig:
        log_every: int = 10

refuses `LoopConfig(log_every=4.0)` with `LoopConfig.log_every: got 4.0, expected a whole number,
such as 4`. Whole numbers pass for numbers, lists become tuples, and `~` at the start of a UserPath
becomes the home folder; all else stays as it was given.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
import os
import re
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pit_jax.errors import UserError

T = TypeVar("T")
_PATH = "a path"
# A path, or a kind and a path as in `tokenizer:~/base`, as people write it.
UserPath = Annotated[str, _PATH]
_LARGEST = 2**63


class _Misfit(Exception):
    """Says what was expected in place of a value."""


def checked(cls: type[T]) -> type[T]:
    """Makes a class check its fields before its own `__post_init__`; stands below `dataclass`.

    The class then raises UserError for a value that the annotation of its field doesn't allow.
    """
    own = cls.__dict__.get("__post_init__")
    hints = functools.cache(lambda: _hints(cls))

    def __post_init__(self):
        for name, hint in hints().items():
            given = getattr(self, name)
            try:
                taken = _take(given, hint)
            except _Misfit as misfit:
                text = repr(given)
                text = text if len(text) <= 100 else text[:97] + "…"
                raise UserError(f"{cls.__name__}.{name}: got {text}, expected {misfit}") from None
            if taken is not given:
                object.__setattr__(self, name, taken)
        if own:
            own(self)

    cls.__post_init__ = __post_init__  # type: ignore[attr-defined]
    return cls


def at_least(config: Any, least: float, *fields: str) -> None:
    """Refuses numbers below `least`.

    Raises:
      UserError: for the first of the fields that is.
    """
    for field in fields:
        if (value := getattr(config, field)) < least:
            raise UserError(
                f"{type(config).__name__}.{field}: got {value}, expected {least} or more"
            )


def expand(path: str) -> str:
    """Returns a path, or a kind and a path, with the home folder in the place of a leading `~`."""
    kind, colon, rest = path.partition(":")
    if colon and rest.startswith("~"):
        return f"{kind}:{os.path.expanduser(rest)}"
    return os.path.expanduser(path)


def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _take(value: Any, hint: Any) -> Any:
    """Returns a value as its field holds it; raises _Misfit if the field can't hold it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        return _take_path(value) if _PATH in arguments else _take(value, arguments[0])
    if origin in (typing.Union, types.UnionType):
        return _take_any(value, arguments)
    if origin is tuple:
        return _take_tuple(value, arguments)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise _Misfit("a dict in braces")
        return {_take(k, arguments[0]): _take(v, arguments[1]) for k, v in value.items()}
    if hint in _TAKERS:
        return _TAKERS[hint](value)
    if inspect.isclass(origin or hint) and not isinstance(value, origin or hint):
        raise _Misfit(f"a {(origin or hint).__name__}")
    return value


def _take_any(value: Any, hints: tuple[Any, ...]) -> Any:
    misfits = []
    for hint in hints:
        try:
            return _take(value, hint)
        except _Misfit as misfit:
            misfits.append(str(misfit))
    raise _Misfit(" or ".join(dict.fromkeys(misfits)))


def _take_tuple(value: Any, hints: tuple[Any, ...]) -> Any:
    if not isinstance(value, tuple | list):
        raise _Misfit(f"a tuple, such as ({value!r},)" if len(repr(value)) < 40 else "a tuple")
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = hints[:1] * len(value)
    elif len(value) != len(hints):
        raise _Misfit(f"a tuple of {len(hints)}")
    parts = []
    for part, hint in zip(value, hints, strict=True):
        try:
            parts.append(_take(part, hint))
        except _Misfit as misfit:
            raise _Misfit(f"a tuple, each part {misfit}") from None
    same = isinstance(value, tuple) and all(a is b for a, b in zip(parts, value, strict=True))
    return value if same else tuple(parts)


def _take_int(value: Any) -> int:
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        if abs(int(value)) >= _LARGEST:
            raise _Misfit("a whole number below 2**63")
        return value if isinstance(value, int) else int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST:
        raise _Misfit(f"a whole number, such as {int(value)}")
    raise _Misfit("a whole number" + _unquoted(value, int))


def _take_float(value: Any) -> float:
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            finite = math.isfinite(float(value))
        except OverflowError:
            finite = False
        if not finite:
            raise _Misfit("a finite number")
        return value if isinstance(value, int | float) else float(value)
    raise _Misfit("a number" + _unquoted(value, float))


def _unquoted(value: Any, kind: type) -> str:
    """A hint for numbers in quotes."""
    try:
        return ", without quotes" if isinstance(value, str) and kind(value) is not None else ""
    except ValueError:
        return ""


def _take_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Misfit("True or False")
    return value


def _take_str(value: Any) -> str:
    if not isinstance(value, str):
        raise _Misfit("text" + (f", '{value}' in quotes" if type(value) in (int, float) else ""))
    return value


def _take_none(value: Any) -> None:
    if value is not None:
        raise _Misfit("None")


def _take_path(value: Any) -> str:
    text = _take_str(value)
    if "\0" in text:
        raise _Misfit("a path, which has no NUL")
    found = expand(text)
    if re.match(r"(\w+:)?~", found):  # as of a user that there isn't
        raise _Misfit("a path whose ~ is somebody's home, or with ./ before it")
    return found


_TAKERS = {
    int: _take_int,
    float: _take_float,
    bool: _take_bool,
    str: _take_str,
    type(None): _take_none,
}
