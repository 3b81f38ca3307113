"""Fills arrays on the mesh piece by piece, so that the host never holds one whole."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Filling:
    """Is an array on the mesh that is being filled.

    Args:
      abstract: its shape, type and sharding.
    """

    def __init__(self, abstract: Any):
        self._abstract = abstract
        indices = abstract.sharding.addressable_devices_indices_map(abstract.shape)
        self._ranges = {
            device: [part.indices(size)[:2] for part, size in zip(index, abstract.shape)]
            for device, index in indices.items()
        }
        self._shards = {
            device: jnp.zeros(
                [stop - start for start, stop in ranges], abstract.dtype, device=device
            )
            for device, ranges in self._ranges.items()
        }

    def put(self, piece: np.ndarray, place: tuple[int, ...]) -> None:
        """Writes numbers whose first index is `place`, to the devices that hold them.

        `piece` has as many dims as the array, or lacks the first.
        """
        piece = piece.reshape((1,) * (len(place) - piece.ndim) + piece.shape)
        for device, ranges in self._ranges.items():
            cut, start = [], []
            for first, size, (low, high) in zip(place, piece.shape, ranges, strict=True):
                begin, end = max(first, low), min(first + size, high)
                cut.append(slice(begin - first, end - first))
                start.append(begin - low)
            if all(part.start < part.stop for part in cut):
                values = np.ascontiguousarray(piece[tuple(cut)], self._abstract.dtype)
                shard = _write(self._shards[device], jax.device_put(values, device), tuple(start))
                # Not the next piece before this one has arrived: the host holds one at a time.
                self._shards[device] = jax.block_until_ready(shard)

    def array(self) -> jax.Array:
        """Returns the array, after which nothing may be written any more."""
        return jax.make_array_from_single_device_arrays(
            self._abstract.shape, self._abstract.sharding, list(self._shards.values())
        )


@functools.partial(jax.jit, donate_argnums=0)
def _write(shard, values, start):
    return jax.lax.dynamic_update_slice(shard, values, start)
