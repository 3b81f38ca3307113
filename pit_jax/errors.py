"""Has the errors that end a command with a line for a traceback, and quietens libraries."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings


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
    if _kept:
        os.write(_kept[0], f"{line}\n".encode())
    else:
        print(line, file=sys.stderr, flush=True)


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
    for name in ("absl", "orbax", "jax._src.xla_bridge"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # gin names every place where it doesn't find a file before it finds it.
    logging.getLogger().addFilter(lambda r: not str(r.msg).startswith("Path not found"))
