"""Knows machines by the names that users know: `v4-128`, `h100-8`.

TPUs: capacities and bandwidths are those that Google Cloud's documentation gives for each version;
where it gives the interconnect of both directions together, half of it is taken.

GPUs: NVIDIA's data sheets of A100, H100 SXM, H200 SXM and L4, and the Ada architecture's of the
RTX 4090; of links half of what they give for both directions, NVLink's where there is one and PCIe
4.0's with 16 lanes elsewhere. The memory is less than the name says: it is what CUDA reports, as
messages of errors on such GPUs show it, rounded down.
"""

from __future__ import annotations

import dataclasses
import difflib
import re

from pit_jax.errors import UserError
from pit_jax.method.flops import PEAKS

GB = 1e9
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Shares:
    """Says how much of each peak a plan counts with.

    Attributes:
      flops: of the operations a second.
      bandwidth: of the memory's bandwidth.
      interconnect: of the links' bandwidth.
      launch: seconds that starting a kernel adds, for devices that run a program kernel by kernel.
    """

    flops: float = 1.0
    bandwidth: float = 1.0
    interconnect: float = 1.0
    launch: float = 0.0


@dataclasses.dataclass(frozen=True)
class Chip:
    """Describes a generation of TPU chips, a GPU, or this machine's processor.

    Attributes:
      name: its name, as in accelerator names.
      hbm: bytes of memory.
      flops: bfloat16 operations a second at the peak.
      bandwidth: bytes a second between chip and memory.
      interconnect: bytes a second in one direction, over all links of a chip together.
      counted: how much a chip adds to the number in an accelerator name: 1, or 2 TensorCores.
      topology: libtpu's name of the generation.
      platform: `tpu`, `gpu` or `cpu`.
      float32: products of a float32 network run at this multiple of `flops`: GPUs compute them in
        TF32, TPUs in bfloat16.
      shares: how much of the peaks a plan counts with.
    """

    name: str
    hbm: float
    flops: float
    bandwidth: float
    interconnect: float
    counted: int = 1
    topology: str = ""
    platform: str = "tpu"
    float32: float = 1.0
    shares: Shares = Shares()


# Training of 0.8 to 13 billion parameters reached 35 to 46 % of an H100's peak in the published
# benchmark of MPT (mosaicml/llm-foundry), repeated arithmetic not counted. Large copies reach nine
# tenths of the memory's bandwidth, small ones less. The time of a kernel's start is an assumption.
GPU_SHARES = Shares(flops=0.4, bandwidth=0.7, interconnect=0.7, launch=3e-6)


def _gpu(name: str, kind: str, hbm: float, bandwidth: float, interconnect: float) -> Chip:
    peak = PEAKS[kind]
    sizes = hbm * GIB, peak, bandwidth * GB, interconnect * GB
    return Chip(name, *sizes, platform="gpu", float32=0.5, shares=GPU_SHARES)


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", 32 * GIB, PEAKS["TPU v4"], 1228 * GB, 300 * GB, 2, "v4"),
        Chip("v5e", 16 * GIB, PEAKS["TPU v5e"], 819 * GB, 200 * GB, 1, "v5e"),
        Chip("v5p", 95 * GIB, PEAKS["TPU v5p"], 2765 * GB, 600 * GB, 2, "v5p"),
        Chip("v6e", 32 * GIB, PEAKS["TPU v6e"], 1638 * GB, 400 * GB, 1, "v6e"),
        _gpu("a100", "NVIDIA A100", 79.1, 2039, 300),
        _gpu("a100-40", "NVIDIA A100", 39.4, 1555, 300),
        _gpu("h100", "NVIDIA H100", 79.1, 3350, 450),
        _gpu("h200", "NVIDIA H200", 139.7, 4800, 450),
        _gpu("l4", "NVIDIA L4", 22.0, 300, 32),
        _gpu("rtx4090", "NVIDIA GeForce RTX 4090", 23.5, 1008, 32),
    )
}
_GPUS_OF_A_MACHINE = (1, 2, 4, 8)
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
    """Describes a slice: chips that an interconnect joins, or several equal slices of them.

    A machine with GPUs is one slice, and so is this machine.

    Attributes:
      name: the accelerator's name, as the user gave it.
      chip: the kind of its chips.
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


def _table() -> dict[str, tuple[Chip, tuple[int, int, int]]]:
    """All names: the chip, and how the chips of a slice are arranged."""
    found: dict[str, tuple[Chip, tuple[int, int, int]]] = {}
    for chip in CHIPS.values():
        if chip.platform == "gpu":
            found |= {f"{chip.name}-{n}": (chip, (n, 1, 1)) for n in _GPUS_OF_A_MACHINE}
            continue
        shapes = _SHAPES_2D if chip.counted == 1 else _SHAPES_3D
        found |= {f"{chip.name}-{n * chip.counted}": (chip, shapes[n]) for n in shapes}
    for alias, name in _ALIASES.items():
        longer = {key: value for key, value in found.items() if key.startswith(f"{name}-")}
        found |= {key.replace(name, alias, 1): value for key, value in longer.items()}
    return found


def parse(name: str) -> Slice:
    """Finds the machine of a name.

    Args:
      name: `v4-128` and the like for TPUs, `2xv4-128` for two slices of them; `h100-8` for a
        machine with 8 GPUs.

    Raises:
      UserError: for any other name; it lists those that are nearest.
    """
    table = _table()
    slices, single = re.fullmatch(r"(?:(\d+)x)?(.*)", name, re.DOTALL).groups()  # type: ignore
    chip, shape = table.get(single, (None, None))
    if chip is None or shape is None or (slices and chip.platform != "tpu"):
        # The machines with this chip, else what is spelt like it.
        near = [known for known in table if known.rpartition("-")[0] == single.rpartition("-")[0]]
        near = near or difflib.get_close_matches(single.lower(), [*table, "cpu"], 4, 0.5)
        expected = ", ".join(near or ("v4-8", "h100-1", "cpu"))
        raise UserError(
            f"--topology: got {name!r}, expected "
            + (f"one of {expected}" if near else f"a name such as {expected}")
        )
    return Slice(name, chip, shape, int(slices or 1))
