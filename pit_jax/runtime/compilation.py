"""Keeps compiled programs in the run directory, where the next start finds them.

JAX looks for a program by all that its machine code depends on: the computation, XLA's version and
flags, and the devices, which for a CPU are its instructions. What it finds computes the same bits.
The folder's own path counts too, so a run directory that was moved compiles once more.

JAX takes what a file holds for the program that it is named after. So each file opens with a digest
of its program and of what it is looked for by. A file that isn't what was written, as after a crash
while it was, is deleted, and the program compiled again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings

import jax
from etils import epath
from jax._src import compilation_cache as jax_cache

from pit_jax import files
from pit_jax.errors import UserError

FOLDER = "compilation_cache"
_OF_JAX = jax_cache.get_file_cache


class _Checked(jax_cache.CacheInterface):
    """A cache of JAX's whose programs are compared with their digests when they are read."""

    def __init__(self, cache: jax_cache.CacheInterface, folder: str):
        self._cache, self._path = cache, cache._path
        self._folder = epath.Path(folder)

    def get(self, key: str) -> bytes | None:
        found = self._cache.get(key)
        if found is None:
            return None
        size = hashlib.sha256().digest_size
        digest, program = found[:size], found[size:]
        if digest == _digest(key, program):
            return program
        with contextlib.suppress(OSError):  # it may be read-only
            (self._folder / f"{key}-cache").unlink(missing_ok=True)
        return None

    def put(self, key: str, value: bytes) -> None:
        self._cache.put(key, _digest(key, value) + value)


def _digest(key: str, program: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\n" + program).digest()


def _check(folder: str) -> None:
    """Makes JAX check what it reads from this folder."""

    def get_file_cache(path: str):
        found = _OF_JAX(path)
        return found if found is None or path != folder else (_Checked(found[0], folder), path)

    jax_cache.get_file_cache = get_file_cache


def keep(directory: str) -> None:
    """Keeps compiled programs in the folder `FOLDER` of a run directory from now on.

    Nothing changes where the user has set a folder of JAX's own (JAX_COMPILATION_CACHE_DIR), nor
    where the run directory can't be written to.

    Args:
      directory: the run directory. On a disk every program is kept; in a bucket, where each takes a
        request, those that took JAX's JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS (1) or longer.
    """
    if jax.config.values["jax_compilation_cache_dir"] is not None:
        return
    folder = os.fspath(files.absolute(epath.Path(directory)) / FOLDER)
    try:
        files.check_folder(folder, FOLDER)
    except UserError:
        return
    jax.config.update("jax_compilation_cache_dir", folder)
    _check(folder)
    # Two lines of JAX's, as on a full disk; they would stand among those that a run has to say.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    if files.is_local(directory):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
