"""Finds the machine that a user names, and its devices for the compiler."""

from __future__ import annotations

import os
from typing import Any

from pit_jax.errors import UserError
from pit_jax.plan import chips, cuda, host


def find(name: str) -> chips.Slice:
    """Finds a machine by a name that `chips.parse` knows, or this one, whose name is `cpu`.

    This machine is measured for about a second.

    Raises:
      UserError: for any other name; it lists those that are nearest.
    """
    return host.this_machine() if name == "cpu" else chips.parse(name)


def devices(slice_: chips.Slice) -> list[Any]:
    """Returns devices of the slice for the compiler; no TPU and no GPU has to be there.

    Raises:
      UserError: if the compiler isn't installed.
    """
    if slice_.chip.platform == "tpu":
        return _tpus(slice_)
    return cuda.devices(slice_) if slice_.chip.platform == "gpu" else host.devices()


def _tpus(slice_: chips.Slice) -> list[Any]:
    # No questions to a cloud about this machine, and no warnings that it has none.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v4-8")
    from jax.experimental import topologies

    generation = slice_.chip.topology
    arranged = "x".join(map(str, slice_.shape if slice_.chip.counted == 2 else slice_.shape[:2]))
    options = {"chip_config_name": "megacore"} if generation == "v4" else {}
    try:
        found = topologies.get_topology_desc(
            f"{generation}:{arranged}",
            platform="tpu",
            chips_per_host_bounds=(2, 2, 1),
            num_slices=slice_.slices,
            **options,
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--topology: no TPU compiler ({reason}); pip install 'pit_jax[plan]'"
        ) from error
    return list(found.devices)
