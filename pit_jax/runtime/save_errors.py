"""Tells errors of a disk or bucket from others while orbax saves, and quietens what orbax logs."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys

from etils import epath

from pit_jax import files

# TensorStore's errors have no number, only its words.
_WORDS = re.compile(
    r"No space left on device|Disk quota exceeded|Read-only file system|Input/output error|"
    r"File too large|Permission denied|Stale file handle|Too many open files"
)


def reason(error: BaseException, directory: epath.Path) -> str | None:
    """Returns why a disk or bucket refused a file, in a few words; None for another error.

    Args:
      error: what was raised, or an error that it came from.
      directory: where the file was written. Errors of a bucket may be of any type.
    """
    todo, seen = [error], set()
    while todo:
        each = todo.pop(0)
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        if found := _WORDS.search(str(each)):
            return found[0]
        if isinstance(each, OSError):
            return each.strerror or str(each) or repr(each)
        todo += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]
    if not files.is_local(directory) and isinstance(error, Exception):
        return (str(error).splitlines() or [repr(error)])[0][:200]
    return None


def remove_unfinished(directory: epath.Path, step: int | None) -> None:
    """Deletes what a failed save has left of a step, so that it takes no room on a full disk."""
    with contextlib.suppress(OSError):
        for each in directory.iterdir():
            if each.name.startswith(f"{step}.orbax-checkpoint-tmp"):
                each.rmtree(missing_ok=True)


def quieten() -> None:
    """Keeps orbax from printing the tracebacks of its threads: who waits for them gets the error.

    Coroutines that a failed save leaves behind would print one too.
    """
    log = logging.getLogger("absl")
    if not any(each is _not_of_a_save for each in log.filters):
        log.addFilter(_not_of_a_save)
        hook = sys.unraisablehook
        sys.unraisablehook = lambda found: None if _is_left(found) else hook(found)


def _not_of_a_save(record: logging.LogRecord) -> bool:
    return not (record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname)


def _is_left(unraisable) -> bool:
    return isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(
        unraisable.exc_value
    )
