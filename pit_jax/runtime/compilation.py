"""Keeps compiled programs in the run directory, where the next start finds them.

JAX looks for a program by all that its machine code depends on: the computation, XLA's version and
flags, and the devices, which for a CPU are its instructions. What it finds computes the same bits.
The folder's own path counts too, so a run directory that was moved compiles once more. A program
that can't be read, as after a crash while it was written, or not be written, as on a full disk, is
compiled again, without a word.
"""

from __future__ import annotations

import os
import warnings

import jax
from etils import epath

from pit_jax import files
from pit_jax.errors import UserError

FOLDER = "compilation_cache"


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
    # JAX's two lines about each; they would stand among those that a run has to say.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    if files.is_local(directory):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
