"""Tells errors of a disk or bucket from others while orbax saves, and quietens its tracebacks."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from etils import epath

from pit_jax import files

_ATTEMPTS, _PAUSE = 10, 0.1  # to delete an unfinished checkpoint, and seconds between them
# TensorStore's errors have no number, only its words.
_WORDS = re.compile(
    r"No space left on device|Disk quota exceeded|Read-only file system|Input/output error|"
    r"File too large|Permission denied|Stale file handle|Too many open files"
)


def reason(error: BaseException, directory: epath.Path) -> str | None:
    """Returns why a disk or bucket refused a file, in a few words; None for another error.

    Args:
      error: what was raised, or an error that it came from.
      directory: where the file was written, one elsewhere is named. Errors of a bucket may be of
        any type.
    """
    chain = _chain(error)
    for each in chain:  # what a full disk makes of the clean-up may have been raised after it
        if found := _WORDS.search(str(each)):
            return found[0] + _elsewhere(each, directory)
    for each in chain:
        if isinstance(each, OSError):
            return (each.strerror or str(each) or repr(each)) + _elsewhere(each, directory)
    if not files.is_local(directory) and isinstance(error, Exception):
        return (str(error).splitlines() or [repr(error)])[0][:200]
    return None


def _elsewhere(error: BaseException, directory: epath.Path) -> str:
    path = getattr(error, "filename", None)
    inside = isinstance(path, str) and path.startswith(f"{directory}/")
    return f": {path}" if path and not inside else ""


def _chain(error: BaseException) -> list[BaseException]:
    """An error and all that it came from."""
    found: dict[int, BaseException] = {}
    todo: list[BaseException | None] = [error]
    while todo:
        each = todo.pop(0)
        if each is not None and id(each) not in found:
            found[id(each)] = each
            todo += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]
    return list(found.values())


def remove_unfinished(directory: epath.Path, step: int) -> None:
    """Deletes what a failed save has left of a step, so that it takes no room on a full disk.

    Other threads of the save may still write for a moment.
    """
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(OSError):
            left = [
                each
                for each in directory.iterdir()
                if each.name.startswith(f"{step}.orbax-checkpoint-tmp")
            ]
            for each in left:
                each.rmtree(missing_ok=True)
            if not left:
                return
        time.sleep(_PAUSE)


def quieten() -> None:
    """Keeps tracebacks of orbax's threads and coroutines out of the terminal.

    Who waits for a save or a read gets its error; what that leaves behind would print it again.
    """
    log = logging.getLogger("absl")
    if _is_ours not in log.filters:
        log.addFilter(_is_ours)
        logging.getLogger("asyncio").addFilter(_was_retrieved)
    if not isinstance(sys.unraisablehook, _Quiet):
        sys.unraisablehook = _Quiet(sys.unraisablehook)


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether no part of orbax has raised what is logged, wherever it was logged."""
    raised = record.exc_info[2] if record.exc_info else None
    frames = (frame for frame, _ in traceback.walk_tb(raised))
    return not any(f"{os.sep}orbax{os.sep}" in frame.f_code.co_filename for frame in frames)


def _was_retrieved(record: logging.LogRecord) -> bool:
    return "never retrieved" not in record.getMessage()


class _Quiet:
    """A hook for errors that nobody can catch, without those of orbax's coroutines."""

    def __init__(self, hook: Callable[[Any], Any]):
        self._hook = hook

    def __call__(self, unraisable: Any) -> None:
        left = "Event loop is closed" in str(unraisable.exc_value)
        if not left and "_read_array_index" not in repr(unraisable.object):
            self._hook(unraisable)
