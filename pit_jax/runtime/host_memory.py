"""Keeps memory that the C library got from the system for the next step, on a CPU.

XLA takes what a program needs from `malloc` at each call, and gives it back after it. glibc returns
blocks as large as these to the system at once, which has to clear every page of them again for the
next step. That took a fifth of a training step's time, and two thirds of a large operation's.
"""

from __future__ import annotations

import ctypes
import glob
import os
import sys

# Options of glibc's mallopt, malloc.h, and the values that turn giving back off.
_OPTIONS = (
    (-8, 1),  # M_ARENA_MAX: only the first arena can have blocks of any size
    (-4, 0),  # M_MMAP_MAX: no block is a mapping of its own
    (-1, 2**31 - 1),  # M_TRIM_THRESHOLD: bytes that may be free at the end
    (-2, 64 << 20),  # M_TOP_PAD: bytes that are asked for beyond what is needed
)
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*", "/dev/kfd")
_SETTINGS = ("GLIBC_TUNABLES", "LD_PRELOAD")  # by which a user says what malloc does


def keep_freed() -> bool:
    """Lets this process keep the memory that it frees; to be called before it has threads.

    Nothing is done where there is no glibc, where a user has set how `malloc` works, or with an
    accelerator, whose programs have memory of their own.

    Returns:
      whether it was done.
    """
    told = [name for name in os.environ if name in _SETTINGS or name.startswith("MALLOC_")]
    if not sys.platform.startswith("linux") or told or any(map(glob.glob, _ACCELERATORS)):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    done = [library.mallopt(option, value) for option, value in _OPTIONS]
    return all(done)
