"""Describes GPUs to XLA's compiler for CUDA, which then needs none on this machine.

The compiler chooses how to fuse and to schedule by these figures. Without a GPU it can't time the
kernels that it has a choice of. It takes cuBLAS for products of matrices then, and leaves cuDNN's
attention as a call whose scratch memory isn't known before it runs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pit_jax.errors import UserError
from pit_jax.plan.chips import Slice

# Its fusions of products with Triton are chosen by timing them, and fail to compile without.
OPTIONS = {"xla_gpu_enable_triton_gemm": False}
_KIB, _MIB = 2**10, 2**20


@dataclasses.dataclass(frozen=True)
class Cores:
    """Describes the multiprocessors of a GPU, as NVIDIA's papers on its architecture do.

    Attributes:
      device: the name of the GPU, as CUDA gives it.
      count: number of multiprocessors.
      capability: CUDA's compute capability.
      threads: threads that a multiprocessor holds.
      units: its float32 units.
      shared: bytes of its shared memory.
      cache: bytes of the second-level cache.
      clock: its highest clock, in GHz.
    """

    device: str
    count: int
    capability: tuple[int, int]
    threads: int
    units: int
    shared: int
    cache: int
    clock: float


_A100 = (108, (8, 0), 2048, 64, 164 * _KIB, 40 * _MIB, 1.41)
_H100 = (132, (9, 0), 2048, 128, 228 * _KIB, 50 * _MIB, 1.98)
CORES = {
    "a100": Cores("NVIDIA A100-SXM4-80GB", *_A100),
    "a100-40": Cores("NVIDIA A100-SXM4-40GB", *_A100),
    "h100": Cores("NVIDIA H100 80GB HBM3", *_H100),
    "h200": Cores("NVIDIA H200", *_H100),
    "l4": Cores("NVIDIA L4", 58, (8, 9), 1536, 128, 100 * _KIB, 48 * _MIB, 2.04),
    "rtx4090": Cores(
        "NVIDIA GeForce RTX 4090", 128, (8, 9), 1536, 128, 100 * _KIB, 72 * _MIB, 2.52
    ),
}


def target(slice_: Slice) -> str:
    """Writes the GPUs' description as XLA reads it, a GpuTargetConfigProto in text format."""
    chip, cores = slice_.chip, CORES[slice_.chip.name]
    major, minor = cores.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  threads_per_core_limit: {cores.threads}
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: {48 * _KIB}
  shared_memory_per_block_optin: {cores.shared - _KIB}
  shared_memory_per_core: {cores.shared}
  block_dim_limit_x: {2**31 - 1}
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  core_count: {cores.count}
  fpus_per_core: {cores.units}
  clock_rate_ghz: {cores.clock}
  l2_cache_size: {cores.cache}
  memory_bandwidth: {chip.bandwidth:.0f}
  device_memory_size: {chip.hbm:.0f}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{cores.device}"
"""


def devices(slice_: Slice) -> list[Any]:
    """Returns the GPUs of a machine for the compiler.

    Raises:
      UserError: if JAX's plugin for CUDA isn't installed.
    """
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(
            platform="cuda", target_config=target(slice_), topology=f"1x1x{slice_.chips}"
        )
    except Exception as error:
        raise absent(error) from error
    return list(found.devices)


def absent(error: Exception) -> UserError:
    """Returns what is said where JAX's plugin for CUDA, or cuDNN, isn't there."""
    reason = " ".join(str(error).split())[:200]
    return UserError(f"--topology: no CUDA compiler ({reason}); pip install 'pit_jax[plan-gpu]'")
