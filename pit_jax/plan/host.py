"""Measures this machine, for plans of runs on its own processor."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pit_jax.plan.chips import Chip, Slice
from pit_jax.plan.estimate import Machine


def meter(device: Any, dtype: str, width: int, length: int, times: int) -> Callable[[], Machine]:
    """Makes what measures a device at its best: a product of matrices, and a sum of two arrays.

    Args:
      device: the JAX device.
      dtype: the type of the matrices.
      width: the matrices are [width, width].
      length: of the float32 arrays.
      times: how often each is computed.

    Returns:
      A function that measures, and was called once, so that all is compiled.
    """
    multiply = jax.jit(jnp.matmul)
    add = jax.jit(lambda a, b: a + 0.5 * b, donate_argnums=1)  # in place: no new memory to map
    with jax.default_device(device):
        matrix = jnp.full((width, width), 1 / width, dtype)
        array, total = jnp.ones(length, jnp.float32), [jnp.ones(length, jnp.float32)]

    def products():
        return [multiply(matrix, matrix) for _ in range(times)]

    def sums():
        for _ in range(times):
            total[0] = add(array, total[0])
        return total

    def measure():
        return Machine(
            flops=times * 2 * width**3 / _seconds(products),
            bandwidth=times * 3 * array.nbytes / _seconds(sums),
            interconnect=1.0,
        )

    measure()
    return measure


def _seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def devices() -> list[Any]:
    """Returns JAX's devices of the processor: one, unless XLA is told to simulate several."""
    return jax.devices("cpu")


def memory() -> int:
    """Returns the bytes of memory that the operating system has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def this_machine() -> Slice:
    """Measures the processor; where it is several devices, each has an equal part of it."""
    found = devices()
    n = len(found)
    half, single = (meter(found[0], dtype, 1024, 2**24, 4)() for dtype in ("bfloat16", "float32"))
    bandwidth = max(half.bandwidth, single.bandwidth)
    chip = Chip(
        name=f"{os.cpu_count()} cores",
        hbm=memory() / n,
        flops=half.flops / n,
        bandwidth=bandwidth / n,
        interconnect=bandwidth / n,  # from one part of the memory to another
        platform="cpu",
        float32=single.flops / half.flops,
    )
    return Slice("cpu", chip, (n, 1, 1))
