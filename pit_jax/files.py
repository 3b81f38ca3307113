"""Writes files whole or not at all, on a disk or in a bucket (`gs://…`)."""

from __future__ import annotations

import os

from etils import epath


def is_local(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is on a disk and not in a bucket, where nothing can be appended."""
    return "://" not in os.fspath(path)


def absolute(path: epath.Path) -> epath.Path:
    """Returns the absolute path of what is on a disk, since orbax takes no other."""
    return path.resolve() if is_local(path) else path


def write_whole(path: str | os.PathLike[str], data: str | bytes) -> None:
    """Writes or replaces a file, so that neither a crash nor a reader ever meets half of it.

    Its folder is made if missing. Text is encoded as UTF-8. A file on a disk is synced.
    """
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    content = data.encode() if isinstance(data, str) else data
    if not is_local(target):
        target.write_bytes(content)  # an object of a bucket appears when it is complete
        return
    scratch = target.with_name(target.name + ".tmp")
    with open(scratch, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(scratch, target)
    # The rename itself survives a power cut only once the folder is synced.
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
