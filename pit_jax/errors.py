"""Has what ends a command with a line for a traceback: errors, signals; and quietens libraries."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Callable


class UserError(ValueError):
    """Tells of a mistake in what the user asked for: a path, a flag, a config value, a data file.

    The message is one line that says what was wrong, what was got and what was expected. The
    command line prints it without a traceback and exits with status 2.
    """


class Damaged(UserError):
    """Tells of a file of ours that isn't what was written.

    Attributes:
      reason: what is wrong with it, a part of the message.
    """

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


class NotFiniteError(RuntimeError):
    """Tells of a loss or gradient that isn't finite in ten steps in a row, or in a stage's last."""


class Interrupted(Exception):
    """Tells that a stage was stopped by a signal, after it wrote a checkpoint.

    Attributes:
      number: number of the signal.
    """

    def __init__(self, number: int, step: int):
        super().__init__(f"interrupted; the same command continues at step {step}")
        self.number = number


_kept: list[int] = []  # where the terminal is while native libraries are kept out of it


def last_words(line: str) -> None:
    """Prints a line to stderr, also while native libraries are kept out of the terminal."""
    # Not by sys.stderr, which may be in use where a signal came.
    os.write(_kept[0] if _kept else 2, f"{line}\n".encode())


# What this process does before it ends without waiting for anything, such as giving a lock back.
leaving: list[Callable[[], None]] = []


def end_process(status: int, line: str) -> None:
    """Ends this process at once with a line, from any thread, after all that is in `leaving`."""
    for action in leaving[::-1]:
        with contextlib.suppress(Exception):
            action()
    with contextlib.suppress(Exception):
        last_words(line)
        sys.stdout.flush()
    os._exit(status)


def end_at_signals() -> None:
    """Has SIGTERM and SIGINT end the process with a line, where runtime/signals.py doesn't catch.

    That is no KeyboardInterrupt: a library that is being imported may make another error of it. A
    signal that is ignored, as SIGINT is in the background of a script, stays so.
    """

    def end(number: int, frame: object) -> None:
        del frame
        end_process(128 + number, "interrupted")

    for number in (signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)


@contextlib.contextmanager
def quiet_stderr():
    """Keeps what native libraries print while they load out of the terminal; errors still raise."""
    sys.stderr.flush()
    kept = os.dup(2)
    _kept.append(kept)
    with open(os.devnull, "wb") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        _kept.remove(kept)
        os.close(kept)


def quieten() -> None:
    """Keeps libraries' start-up chatter out of the user's terminal."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for name in ("absl", "orbax", "tensorflow", "jax._src.xla_bridge"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # gin names every place where it doesn't find a file before it finds it.
    logging.getLogger().addFilter(lambda r: not str(r.msg).startswith("Path not found"))
