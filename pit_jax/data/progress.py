"""Says how far a long loop over data is."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

EVERY_SECONDS = 10.0
_LOOKED_EVERY = 1000
_CHUNK = 4096


def told(items: Iterable[T], what: str, total: int = 0, each: int = 1) -> Iterator[T]:
    """Yields the items, and writes a line to standard error every ten seconds: how many it has.

    Args:
      items: the items.
      what: what they are, such as `pairs read`.
      total: their number; 0 where it isn't known.
      each: how many an item counts as.
    """
    last = time.monotonic()
    of = f" of {total:,}" if total else ""
    for number, item in enumerate(items):
        looked = each > 1 or number % _LOOKED_EVERY == 0
        if looked and (now := time.monotonic()) - last >= EVERY_SECONDS:
            last = now
            print(f"data: {number * each:,}{of} {what}", file=sys.stderr, flush=True)
        yield item


def chunks(count: int, what: str) -> Iterator[slice]:
    """Yields slices that go through `count` items, at least one slice, and tells as `told` does."""
    starts = range(0, max(count, 1), _CHUNK)
    for start in told(starts, what, count, _CHUNK):
        yield slice(start, start + _CHUNK)
