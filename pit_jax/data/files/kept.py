"""Keeps what was read of big files, where other processes of a host and later runs map it."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from pit_jax.data import flat_arrays
from pit_jax.data.files import records
from pit_jax.data.files.readers import Reading
from pit_jax.data.flat_arrays import Append, Cache
from pit_jax.data.texts import Examples

_PIECE = 16 << 20
_ABOUT = ("read", "dropped", "malformed", "shape", "joined")


def reading(
    read: Callable[[Sequence[str]], Reading],
    paths: str | Sequence[str],
    cache: Cache,
    said: object,
) -> Reading:
    """Reads files, or maps what was read of the same files before.

    Only what is read of big local files into a folder that stays is kept. A file counts as the same
    by its path and the SHA-256 of its content.

    Args:
      read: reads files, without columns.
      paths: paths and patterns.
      cache: where it is kept.
      said: all that the reading depends on beside the files, with a `repr` that is the same in
        every process.

    Raises:
      UserError: what `read` raises, or if files can't be written.
    """
    found = records.find(paths)
    size = sum(os.path.getsize(path) for path in found if os.path.isfile(path))
    if not (cache.stays and size >= flat_arrays.BIG and all(map(os.path.isfile, found))):
        return read(found)

    def fill(append: Append) -> None:
        made = read(found)
        assert isinstance(made.examples, Examples)
        ((content, offsets),) = made.examples.texts.parts
        for start in range(0, len(content), _PIECE):
            append("content", np.frombuffer(content[start : start + _PIECE], np.uint8))
        append("offsets", offsets)
        about = json.dumps({name: getattr(made, name) for name in _ABOUT})
        append("about", np.frombuffer(about.encode(), np.uint8))

    arrays = cache.arrays(fill, size, "pairs", lambda: (said, [*map(_content, found)]))
    about = json.loads(arrays["about"].tobytes())
    about["malformed"] = tuple(about["malformed"])
    content: mmap.mmap | bytes = b""
    if isinstance(kept := arrays.get("content"), np.memmap) and kept.filename:
        with open(kept.filename, "rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return Reading(Examples.whole(content, np.array(arrays["offsets"])), **about)


def _content(path: str) -> tuple[str, str]:
    with open(path, "rb") as file:
        return str(pathlib.Path(path)), hashlib.file_digest(file, "sha256").hexdigest()
