"""Looks at the memory of the process that imports it."""

from __future__ import annotations

import pathlib
import threading


def memory() -> dict[str, int]:
    """Bytes of RssAnon (no file stands for it), RssFile and VmHWM, as /proc has them."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    fields = (line.split() for line in lines if line.startswith(("RssAnon", "RssFile", "VmHWM")))
    return {name.rstrip(":"): 1024 * int(size) for name, size, _ in fields}


class Peak:
    """Watches the memory from a thread, until it is left as a context or the process ends.

    Attributes:
      found: what `memory` said when RssAnon was largest.
    """

    def __init__(self, seconds: float):
        """Begins to look, every so many seconds."""
        self.found = memory()
        self._seconds, self._over = seconds, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def __enter__(self) -> Peak:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(self._seconds):
            self.found = max(self.found, memory(), key=lambda each: each["RssAnon"])
