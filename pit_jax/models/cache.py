"""Holds the keys and values of tokens that decoding looks back at. Dims: see `network.py`."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from pit_jax.models import kernels
from pit_jax.models.config import NetworkConfig
from pit_jax.runtime.partitioning import constrain


@flax.struct.dataclass
class KVCache:
    """Holds the keys and values of all layers; decoding writes one token in place.

    Where layers are written out, an attribute is a tuple of each layer's array.

    Attributes:
      k_LBKSE: keys, in the compute type, its bits or int8.
      v_LBKSE: values, likewise.
      k_scale_LBKS: float32, what int8 keys are to be multiplied with; None where they aren't int8.
      v_scale_LBKS: of the values, likewise.
    """

    k_LBKSE: jax.Array | tuple[jax.Array, ...]
    v_LBKSE: jax.Array | tuple[jax.Array, ...]
    k_scale_LBKS: jax.Array | tuple[jax.Array, ...] | None = None
    v_scale_LBKS: jax.Array | tuple[jax.Array, ...] | None = None

    @classmethod
    def zeros(cls, config: NetworkConfig, batch: int, length: int) -> KVCache:
        """Makes an empty cache of `length` tokens for `batch` rows."""
        L, shape = config.num_layers, (batch, config.num_kv_heads, length, config.head_dim)
        # XLA on a CPU has no update of a slice of bfloat16: it would cast all columns for each.
        as_bits = kernels.platform() == "cpu" and config.dtype == "bfloat16"
        dtype = "uint16" if as_bits else config.dtype

        def make(shape, dtype):
            if kernels.written_out(config):
                return tuple(jnp.zeros(shape, dtype) for _ in range(L))
            return jnp.zeros((L, *shape), dtype)

        if config.cache == "int8":
            scales = (make(shape[:3], "float32") for _ in range(2))
            return cls(make(shape, "int8"), make(shape, "int8"), *scales).placed()
        return cls(make(shape, dtype), make(shape, dtype)).placed()

    def placed(self) -> KVCache:
        """Fixes how the cache is split over devices."""
        axes = ("layers", "batch", "kv_heads", "length", "kv")[int(self._apart) :]
        return jax.tree.map(lambda x: constrain(x, *axes[: x.ndim]), self)

    def put(self, places_N: jax.Array, new: KVCache) -> KVCache:
        """Puts N rows of a cache in the places of others; a place of B or more drops its row."""
        rows = places_N if self._apart else (slice(None), places_N)
        return jax.tree.map(lambda x, y: x.at[rows].set(y, mode="drop"), self, new)

    def widened(self, columns: int) -> KVCache:
        """Adds empty columns on the left."""

        def one(x):
            length = 3 - self._apart
            return jnp.pad(x, [(columns * (axis == length), 0) for axis in range(x.ndim)])

        return jax.tree.map(one, self)

    def write(self, k_BTKE: jax.Array, v_BTKE: jax.Array, layer, index) -> KVCache:
        """Puts T tokens of one layer at `index` along the length, or one token of each row at its.

        Args:
          k_BTKE, v_BTKE: the tokens' keys and values.
          layer: its number.
          index: int32, a column; or [B], one of each row, where T is 1.
        """

        def put(whole, new):
            """Writes one of the arrays, of what is [B, T, K, …]."""
            if jnp.ndim(index):
                rows_B = jnp.arange(new.shape[0])
                how = {"mode": "promise_in_bounds", "unique_indices": True}
                if not self._apart:
                    return whole.at[layer, rows_B, :, index].set(new[:, 0], **how)
                own = whole[layer].at[rows_B, :, index].set(new[:, 0], **how)
                return (*whole[:layer], own, *whole[layer + 1 :])
            new, start = jnp.swapaxes(new, 1, 2), (0, 0, index, *(new.ndim - 3) * (0,))
            if not self._apart:
                return jax.lax.dynamic_update_slice(whole, new[None], (layer, *start))
            own = jax.lax.dynamic_update_slice(whole[layer], new, start)
            return (*whole[:layer], own, *whole[layer + 1 :])

        kept = jax.tree.leaves(self.k_LBKSE)[0].dtype
        if kept != jnp.int8:
            if kept == jnp.uint16:
                k_BTKE, v_BTKE = (
                    jax.lax.bitcast_convert_type(x, jnp.uint16) for x in (k_BTKE, v_BTKE)
                )
            return KVCache(put(self.k_LBKSE, k_BTKE), put(self.v_LBKSE, v_BTKE))
        (k, k_scale), (v, v_scale) = (_rounded(x) for x in (k_BTKE, v_BTKE))
        return KVCache(
            put(self.k_LBKSE, k),
            put(self.v_LBKSE, v),
            put(self.k_scale_LBKS, k_scale),
            put(self.v_scale_LBKS, v_scale),
        )

    def layer(self, layer) -> tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array] | None]:
        """Returns a layer's keys and values, [B, S, K, E], and both scales, [B, K, S], or None."""

        def take(whole):
            if self._apart:
                return whole[layer]
            return jax.lax.dynamic_index_in_dim(whole, layer, keepdims=False)

        def by_token(whole):
            own = take(whole)
            if own.dtype == jnp.uint16:
                own = jax.lax.bitcast_convert_type(own, jnp.bfloat16)
            return jnp.swapaxes(own, 1, 2)

        scales = None
        if self.k_scale_LBKS is not None:
            scales = take(self.k_scale_LBKS), take(self.v_scale_LBKS)
        return by_token(self.k_LBKSE), by_token(self.v_LBKSE), scales

    @property
    def _apart(self) -> bool:
        return isinstance(self.k_LBKSE, tuple)


def _rounded(x_BTKE: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rounds to int8, and returns the scales [B, T, K] too."""
    x_BTKE = x_BTKE.astype(jnp.float32)
    scale_BTK = jnp.max(jnp.abs(x_BTKE), axis=-1) / 127
    steps_BTKE = jnp.round(x_BTKE / jnp.maximum(scale_BTK, 1e-30)[..., None])
    return steps_BTKE.astype(jnp.int8), scale_BTK
