"""Makes flat arrays piece by piece: small ones in memory, big ones in files mapped to memory.

Files are kept in a folder that all processes of a host share: a raw file for each array and a
manifest, a line of JSON with their types, sizes and SHA-256 after a line with its own SHA-256, of
the folder's name too. They are written under a temporary name, synced and renamed, by one process
while the others wait; so a crash leaves nothing that could be taken for them. They are checked when
they are opened, and made anew if anything is wrong with them.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator

import numpy as np

from pit_jax import files
from pit_jax.errors import UserError

Arrays = dict[str, np.ndarray]
# Adds a piece [n] to the end of the array of this name, whose pieces are all of one type.
Append = Callable[[str, np.ndarray], None]
Fill = Callable[[Append], None]

FOLDER = "data_cache"  # of a run directory
BIG = 8 << 20
_MANIFEST = "manifest"


class Cache:
    """Makes arrays, or finds them where another run or process has made them."""

    def __init__(self, folder: str | os.PathLike[str]):
        """Prepares nothing.

        Args:
          folder: where big arrays are kept; it is made once there are some. Where it is empty, in a
            bucket or read-only, they are in temporary files of this process, which go with it.
        """
        self._folder = pathlib.Path(folder) if folder and _can_keep(folder) else None

    @property
    def stays(self) -> bool:
        """Whether big arrays are kept for other processes and later runs."""
        return self._folder is not None

    def arrays(self, fill: Fill, size: int, task: str, key: Callable[[], object]) -> Arrays:
        """Returns the arrays whose pieces `fill` appends, by their names.

        Args:
          fill: appends the pieces.
          size: characters of text that they are made of.
          task: what their files are called by.
          key: gives all that the arrays depend on beside the code of this folder, with a `repr`
            that is the same in every process.

        Returns:
          arrays that mustn't be written to.

        Raises:
          UserError: if files can't be written.
        """
        if size < BIG:
            return _in_memory(fill)
        if self._folder is None:
            place = tempfile.gettempdir()
            with (
                files.reported(place, f"{place}: can't keep the data"),
                tempfile.TemporaryDirectory(prefix="pit_jax_") as own,
            ):
                folder = pathlib.Path(own)
                _write(folder, folder.name, fill)
                return _mapped(folder)  # what is mapped stays without its name
        said = hashlib.sha256(repr((_code(), key())).encode()).hexdigest()
        return _in_files(self._folder / f"{task}-{said[:32]}", fill)


def _can_keep(folder: str | os.PathLike[str]) -> bool:
    try:
        files.check_folder(folder, "")
    except UserError:
        return False
    return files.is_local(folder)


@functools.cache
def _code() -> str:
    """A digest of the modules of this folder: other code may make other arrays."""
    here = pathlib.Path(__file__).parent
    sources = (path.read_bytes() for path in sorted(here.rglob("*.py")))
    return hashlib.sha256(b"".join(sources)).hexdigest()


def _in_memory(fill: Fill) -> Arrays:
    found: dict[str, list[np.ndarray]] = {}
    fill(lambda name, piece: found.setdefault(name, []).append(piece))
    return {name: np.concatenate(pieces) for name, pieces in found.items()}


def _in_files(folder: pathlib.Path, fill: Fill) -> Arrays:
    """Returns arrays of a folder, which are made if it isn't there or isn't sound."""
    _sweep(folder.parent)
    with files.reported(folder, f"{folder}: can't keep the data"), _locked(folder):
        if not _is_sound(folder):
            _delete(folder)
            scratch = pathlib.Path(tempfile.mkdtemp(".tmp", f"{folder.name}.", folder.parent))
            try:
                _write(scratch, folder.name, fill)
                os.replace(scratch, folder)
            except BaseException:
                shutil.rmtree(scratch, ignore_errors=True)
                raise
            _sync(folder.parent)
        return _mapped(folder)


def _delete(left: pathlib.Path) -> None:
    """Deletes a folder, or whatever else is in its place; a link isn't followed."""
    if left.is_dir() and not left.is_symlink():
        shutil.rmtree(left, ignore_errors=True)
    else:
        left.unlink(missing_ok=True)


def _sweep(folder: pathlib.Path) -> None:
    """Deletes what processes that were killed have left of any arrays, whose locks are free."""
    for left in folder.glob("*.*.tmp"):
        lock = left.with_name(f"{left.name.rsplit('.', 2)[0]}.lock")
        with contextlib.suppress(OSError), open(files.new(lock, os.O_WRONLY), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _delete(left)


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Waits for other processes; the lock of one that has ended is free."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(files.new(folder.with_name(f"{folder.name}.lock"), os.O_WRONLY), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(folder: pathlib.Path, name: str, fill: Fill) -> None:
    """Writes the arrays of this name, and what they are, into a folder."""
    arrays: dict[str, dict] = {}
    with contextlib.ExitStack() as stack:
        opened = {}

        def append(name: str, piece: np.ndarray) -> None:
            if name not in opened:
                opened[name] = stack.enter_context(open(folder / f"{name}.bin", "wb"))
                arrays[name] = {"type": piece.dtype.str, "bytes": 0, "digest": hashlib.sha256()}
            data = np.ascontiguousarray(piece).tobytes()
            opened[name].write(data)
            arrays[name]["bytes"] += len(data)
            arrays[name]["digest"].update(data)

        fill(append)
        for file in opened.values():
            file.flush()
            os.fsync(file.fileno())
    for each in arrays.values():
        each["sha256"] = each.pop("digest").hexdigest()
    content = json.dumps(arrays, sort_keys=True).encode()
    files.write_whole(folder / _MANIFEST, _digest(name, content) + b"\n" + content)


def _digest(name: str, content: bytes) -> bytes:
    """Of a manifest, and of the name that its folder has."""
    return hashlib.sha256(name.encode() + b"\n" + content).hexdigest().encode()


def _manifest(folder: pathlib.Path) -> dict[str, dict]:
    """Reads a folder's manifest; raises OSError or ValueError if there is none of its, whole."""
    digest, _, content = (folder / _MANIFEST).read_bytes().partition(b"\n")
    if digest != _digest(folder.name, content):
        raise ValueError(f"{folder}: got a damaged manifest, expected its SHA-256 before it")
    return json.loads(content)


def _is_sound(folder: pathlib.Path) -> bool:
    """Returns whether a folder holds all that its manifest lists, unchanged."""
    try:
        for name, about in _manifest(folder).items():
            with open(folder / f"{name}.bin", "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != about["sha256"]:
                    return False
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return False
    return True


def _mapped(folder: pathlib.Path) -> Arrays:
    found: Arrays = {}
    for name, about in _manifest(folder).items():
        if about["bytes"]:
            found[name] = np.memmap(folder / f"{name}.bin", about["type"], mode="r")
        else:
            found[name] = np.zeros(0, about["type"])
    return found


def _sync(folder: pathlib.Path) -> None:
    """A rename itself survives a power cut only once its folder is synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
