"""The environment of the programs that tests start."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).resolve().parents[1]
DEVICE_COUNT = "--xla_force_host_platform_device_count"


def child_environment(
    devices: int, given: Mapping[str, str] = os.environ, **changes: str
) -> dict[str, str]:
    """`given` for a program that runs this checkout on simulated CPU devices.

    What the user has in PYTHONPATH and XLA_FLAGS stays there: the program may need it, as T5X,
    which is found by PYTHONPATH alone.

    Args:
      devices: how many devices the program simulates, in the place of what XLA_FLAGS says.
      given: the environment to start from.
      **changes: variables that are set to these values.
    """
    paths = [str(ROOT), given.get("PYTHONPATH", "")]
    flags = [f for f in given.get("XLA_FLAGS", "").split() if not f.startswith(DEVICE_COUNT)]
    return {
        **given,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "XLA_FLAGS": " ".join([*flags, f"{DEVICE_COUNT}={devices}"]),
        **changes,
    }
