"""Writes files whole or not at all, on a disk or in a bucket (`gs://…`)."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

from etils import epath

from pit_jax.errors import UserError

_SHOWN_OF_NAME = 40  # characters of a file's name in that of the one that takes its place
_LEFT_SECONDS = 3600.0  # no file is written for so long


def is_local(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is on a disk and not in a bucket, where nothing can be appended."""
    return "://" not in os.fspath(path)


def check_folder(path: str | os.PathLike[str], what: str) -> None:
    """Refuses a folder that can't be made or not be written to, or that is none.

    Args:
      path: the folder, which need not be there yet.
      what: the setting that names it; it opens the message.

    Raises:
      UserError: if it can't.
    """
    if not is_local(path):
        if not re.match("(gs|s3|az)://[^/]", os.fspath(path)):
            raise UserError(f"{what}: got {path}, expected a folder or gs://BUCKET/FOLDER")
        return
    found = pathlib.Path(os.path.abspath(path))
    if any(len(os.fsencode(part)) > 255 for part in found.parts):
        raise UserError(f"{what}: can't write {path}, whose name is too long")
    while not os.path.lexists(found):
        found = found.parent
    if not os.path.isdir(found):
        raise UserError(f"{what}: can't write {path}, because {found} is not a folder")
    if not os.access(found, os.W_OK | os.X_OK):
        raise UserError(f"{what}: can't write {path}, because {found} is read-only")


@contextlib.contextmanager
def reported(path: str | os.PathLike[str], failure: str) -> Iterator[None]:
    """Makes a UserError, `FAILURE: REASON`, of what goes wrong with a file.

    Errors of a bucket are of any type, those of a disk OSErrors; other errors pass.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and is_local(path):
            raise
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [repr(error)])[0]
        raise UserError(f"{failure}: {reason}") from error


@contextlib.contextmanager
def named(path: str | os.PathLike[str], scratch: str | os.PathLike[str] = "") -> Iterator[None]:
    """Makes an OSError name the file, which the system doesn't know any more once it is open.

    Args:
      path: the file.
      scratch: a file that will take its place, which nobody else knows.
    """
    try:
        yield
    except OSError as error:
        if error.errno and str(error.filename) in ("None", str(scratch)):
            error.filename = os.fspath(path)
            del error.filename2
        raise


def absolute(path: epath.Path) -> epath.Path:
    """Returns the absolute path of what is on a disk, since orbax takes no other."""
    return path.resolve() if is_local(path) else path


@functools.cache
def on_disk(path: epath.Path, patterns: tuple[str, ...]) -> epath.Path:
    """Returns a folder whose files a library opens by themselves, which none does in a bucket.

    Args:
      path: a folder.
      patterns: names of the files that are wanted, such as `*.json`.

    Returns:
      `path` if it is on a disk; else a copy, which goes when the process ends.
    """
    if is_local(path):
        return path
    copy = pathlib.Path(_scratch().name) / str(len(os.listdir(_scratch().name)))
    copy.mkdir()
    for source in path.iterdir():
        if not any(fnmatch.fnmatch(source.name, pattern) for pattern in patterns):
            continue
        own = copy / source.name
        with named(own), source.open("rb") as theirs, open(own, "wb") as ours:
            shutil.copyfileobj(theirs, ours, 2**24)
    return epath.Path(copy)


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="pit_jax_")


def scratch_of(target: str | os.PathLike[str]) -> pathlib.Path:
    """Returns a path beside a file, for what will take its place, that nobody can foresee."""
    path = pathlib.Path(target)
    return path.with_name(f"{path.name[:_SHOWN_OF_NAME]}.{secrets.token_hex(8)}.tmp")


def new(path: str | os.PathLike[str], access: int = os.O_WRONLY | os.O_EXCL) -> int:
    """Opens a file of ours on a disk, which is made; returns its descriptor.

    Args:
      path: the file.
      access: how; by default to write what must not be there yet.

    Raises:
      OSError: if it can't be made, or a link is in its place, which is never followed.
    """
    return os.open(path, access | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def sweep(folder: str | os.PathLike[str]) -> None:
    """Deletes what processes that were killed while they wrote have left in a run directory.

    Args:
      folder: it, the folders in it, and theirs are looked at; checkpoints aren't.
    """
    before = time.time() - _LEFT_SECONDS
    for pattern in ("*.tmp", "*/*.tmp", "*/references/*/*.tmp"):
        for path in pathlib.Path(folder).glob(pattern) if is_local(folder) else ():
            ours = re.fullmatch(r".+\.[0-9a-f]{16}\.tmp", path.name, re.DOTALL)
            with contextlib.suppress(OSError):
                if ours and not path.is_dir() and path.lstat().st_mtime < before:
                    path.unlink()


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file to write, piece by piece, that is there once the block ends without an error.

    Neither a crash nor a reader ever meets half of it, and an error leaves what was there before.
    Its folder is made if missing. A file on a disk is synced.
    """
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if is_local(target):
        scratch = scratch_of(target)
        with named(target, scratch), _replacing(target, scratch) as file:
            yield file
        return
    with named(tempfile.gettempdir()), tempfile.TemporaryFile() as ours:
        yield ours
        ours.seek(0)
        # An object of a bucket appears when it is complete.
        with named(target), target.open("wb") as theirs:
            shutil.copyfileobj(ours, theirs, 2**24)


@contextlib.contextmanager
def _replacing(target: epath.Path, scratch: pathlib.Path) -> Iterator[BinaryIO]:
    try:
        with open(new(scratch), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, target)
    except BaseException:  # on a full disk half a file would take what is left
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise
    # The rename itself survives a power cut only once the folder is synced.
    descriptor = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: str | os.PathLike[str], data: str | bytes) -> None:
    """Writes or replaces a file as `whole` does; text is encoded as UTF-8."""
    with whole(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def move(source: epath.Path, target: epath.Path) -> None:
    """Renames a folder; in a bucket, where nothing can be renamed, every object is copied."""
    if is_local(source):
        source.rename(target)
        return
    for each in source.iterdir():
        if each.is_dir():
            move(each, target / each.name)
            continue
        aim = target / each.name
        with named(aim), each.open("rb") as theirs, aim.open("wb") as ours:
            shutil.copyfileobj(theirs, ours, 2**24)
    source.rmtree(missing_ok=True)


class NotSealed(ValueError):
    """Tells of a sealed JSON object that isn't what was written."""


_SEAL = "sha256"


def sealed(value: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns a JSON object with a digest of itself, and of the name it is kept by, as `sha256`."""
    return {**value, _SEAL: _digest(value, name)}


def unsealed(text: str | bytes, name: str) -> tuple[dict[str, Any], bool]:
    """Reads a JSON object that `sealed` made; one of an earlier version has no digest.

    Returns:
      the object without its digest, and whether it had one.

    Raises:
      NotSealed: if it is no JSON object, or not the one that was sealed by this name.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise NotSealed("expected a JSON object")
    if _SEAL not in value:
        return value, False
    digest = value.pop(_SEAL)
    if digest != _digest(value, name):
        raise NotSealed("its content isn't what its sha256 says")
    return value, True


def _digest(value: dict[str, Any], name: str) -> str:
    # As it comes back from a file, in which tuples are lists and keys are texts.
    plain = [name, json.loads(json.dumps(value))]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
