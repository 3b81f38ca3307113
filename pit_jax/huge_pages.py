"""Has glibc ask the system for huge pages, which large programs on a CPU need.

XLA takes a program's memory from `malloc` at each call and gives it back after it. So the system
clears it anew for each step, page by page: of 4 KiB, which took a sixth of a step's time, or of
2 MiB where `malloc` asks for them. glibc reads that wish when a process starts, and only then.
"""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Mapping

_VARIABLE, _WISH = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def wish(environment: Mapping[str, str], setting: pathlib.Path = _SETTING) -> dict[str, str]:
    """Returns what an environment lacks for huge pages.

    Args:
      environment: that of the process to be.
      setting: where Linux says for whom huge pages are: `always [madvise] never`.

    Returns:
      the variable to set, or nothing: where huge pages come without a wish or not at all, and
      where the environment has a wish of its own.
    """
    tunables = environment.get(_VARIABLE, "")
    try:
        on_request = "[madvise]" in setting.read_text()
    except OSError:  # not Linux
        on_request = False
    if not on_request or _WISH in tunables:
        return {}
    return {_VARIABLE: ":".join(filter(None, (tunables, f"{_WISH}=1")))}


def ask() -> None:
    """Starts this process's program again, under its number, if it lacks the wish."""
    if sys.executable and (lacking := wish(os.environ)):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **lacking})
