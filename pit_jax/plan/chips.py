"""Knows TPU chips and slices by the names that users know, such as `v4-128`.

Capacities and bandwidths are those that Google Cloud's documentation gives for each TPU version;
where it gives the interconnect of both directions together, half of it is taken.
"""

from __future__ import annotations

import dataclasses
import os
import re

from pit_jax.errors import UserError
from pit_jax.method.flops import PEAKS

GB = 1e9
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Describes a generation of TPU chips.

    Attributes:
      name: the generation's name, as in accelerator names.
      hbm: bytes of memory.
      flops: bfloat16 operations a second at the peak.
      bandwidth: bytes a second between chip and memory.
      interconnect: bytes a second in one direction, over all links of a chip together.
      counted: how much a chip adds to the number in an accelerator name: 1, or 2 TensorCores.
      topology: libtpu's name of the generation.
    """

    name: str
    hbm: float
    flops: float
    bandwidth: float
    interconnect: float
    counted: int
    topology: str


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 32 * GIB, PEAKS["TPU v4"], 1228 * GB, 300 * GB, 2, "v4"),
        Chip("v5e", 16 * GIB, PEAKS["TPU v5e"], 819 * GB, 200 * GB, 1, "v5e"),
        Chip("v5p", 95 * GIB, PEAKS["TPU v5p"], 2765 * GB, 600 * GB, 2, "v5p"),
        Chip("v6e", 32 * GIB, PEAKS["TPU v6e"], 1638 * GB, 400 * GB, 1, "v6e"),
    )
}
_ALIASES = {"v5litepod": "v5e"}
# Chips -> their arrangement.
_SHAPES_3D = {
    4: (2, 2, 1),
    8: (2, 2, 2),
    16: (2, 2, 4),
    32: (2, 4, 4),
    64: (4, 4, 4),
    128: (4, 4, 8),
    256: (4, 8, 8),
    512: (8, 8, 8),
    1024: (8, 8, 16),
    2048: (8, 16, 16),
    4096: (16, 16, 16),
}
_SHAPES_2D = {
    4: (2, 2, 1),
    8: (2, 4, 1),
    16: (4, 4, 1),
    32: (4, 8, 1),
    64: (8, 8, 1),
    128: (8, 16, 1),
    256: (16, 16, 1),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Describes a slice, which is chips that an interconnect joins, or several equal slices.

    Attributes:
      name: the accelerator's name, as the user gave it.
      chip: the generation of its chips.
      shape: arrangement of the chips of a slice.
      slices: number of slices.
    """

    name: str
    chip: Chip
    shape: tuple[int, int, int]
    slices: int = 1

    @property
    def chips(self) -> int:
        """The number of chips of all slices."""
        x, y, z = self.shape
        return x * y * z * self.slices


def parse(name: str) -> Slice:
    """Finds the slice of an accelerator name: `v4-128`, `v5e-16`, or `2xv5p-256` for two slices.

    Raises:
      UserError: for any other name; it lists the choices.
    """
    found = re.fullmatch(r"(?:(\d+)x)?(v\w+)-(\d+)", name)
    chip = CHIPS.get(_ALIASES.get(found[2], found[2])) if found else None
    if found is None or chip is None:
        choices = ", ".join(f"{generation}-N" for generation in CHIPS)
        raise UserError(f"--topology: got {name!r}, expected one of {choices}, such as v4-128")
    shapes = _SHAPES_2D if chip.counted == 1 else _SHAPES_3D
    chips = int(found[3]) // chip.counted
    if chips not in shapes or int(found[3]) % chip.counted:
        sizes = ", ".join(str(chips * chip.counted) for chips in shapes)
        raise UserError(f"--topology: got {name!r}, expected {found[2]}- and one of {sizes}")
    return Slice(name, chip, shapes[chips], int(found[1] or 1))


def devices(slice_: Slice):
    """Returns devices of the slice for the compiler, none of which is there.

    Raises:
      UserError: if libtpu isn't installed.
    """
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
