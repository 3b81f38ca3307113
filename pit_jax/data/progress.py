"""Says how far a long loop over data is."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

EVERY_SECONDS = 10.0
_LOOKED_EVERY = 1000


def told(items: Iterable[T], what: str, total: int = 0) -> Iterator[T]:
    """Yields the items, and writes a line to standard error every ten seconds: how many it has.

    Args:
      items: the items.
      what: what they are, such as `pairs read`.
      total: their number; 0 where it isn't known.
    """
    last = time.monotonic()
    of = f" of {total:,}" if total else ""
    for number, item in enumerate(items):
        if number % _LOOKED_EVERY == 0 and (now := time.monotonic()) - last >= EVERY_SECONDS:
            last = now
            print(f"data: {number:,}{of} {what}", file=sys.stderr, flush=True)
        yield item
