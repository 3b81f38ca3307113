"""This folder makes seqio Tasks of our tasks; it is where TensorFlow is imported."""

import tensorflow as tf

# TensorFlow would otherwise take the accelerator's memory from JAX.
tf.config.set_visible_devices([], "GPU")

from __future__ import annotations

import contextlib
import os
import sys


@contextlib.contextmanager
def quiet_stderr():
    """Keeps what native libraries print while they load out of the terminal; errors still raise."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
