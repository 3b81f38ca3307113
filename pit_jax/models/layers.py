"""Has the simple layers: Dense, Embed, RMSNorm, GatedMLP, rotary. Dims: see `network.py`."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from pit_jax.models.config import NetworkConfig
from pit_jax.runtime.partitioning import constrain

RESIDUAL = ("activation_batch", "activation_length", "activation_embed")
WHOLE = ("activation_batch", "length", "activation_embed")  # the input of a layer's products
_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_EMBED_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)


class Dense(nn.Module):
    """Applies a linear map to the last dims, without bias.

    Attributes:
      shape: shape of the kernel, input dims first.
      axes: logical axis of each dim of the kernel.
      num_inputs: how many of the kernel's dims are input dims.
      dtype: compute type.
      out_dtype: type of the result; the compute type by default.
      initial_scale: factor of the kernel's initial values.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    num_inputs: int
    dtype: str
    out_dtype: str | None = None
    initial_scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        n = self.num_inputs

        def init(key, shape):
            flat = (_product(shape[:n]), _product(shape[n:]))
            return self.initial_scale * _INIT(key, flat, jnp.float32).reshape(shape)

        kernel = self.param("kernel", nn.with_logical_partitioning(init, self.axes), self.shape)
        contract = tuple(range(x.ndim - n, x.ndim))
        return jax.lax.dot_general(
            x,
            kernel.astype(self.dtype),
            ((contract, tuple(range(n))), ((), ())),
            preferred_element_type=self.out_dtype or self.dtype,
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def look_up(table_VD: jax.Array, ids: jax.Array, dtype: str) -> jax.Array:
    """Rows of a table in the compute type, whose gradients are added up in the table's own type.

    A token that a batch holds thousands of times would lose most of its gradient in bfloat16, where
    a sum stops growing at 256 times the size of what is added.

    Args:
      table_VD: the table, float32 while it is trained.
      ids: int32 rows to take, of any shape.
      dtype: of the result, [*ids.shape, D].
    """
    return table_VD.astype(dtype)[ids]


def _look_up_forward(table_VD, ids, dtype):
    return look_up(table_VD, ids, dtype), (ids, table_VD)


def _look_up_backward(dtype, residuals, cotangent):
    del dtype
    ids, table_VD = residuals
    zeros_VD = jnp.zeros_like(table_VD)
    return zeros_VD.at[ids].add(cotangent.astype(table_VD.dtype)), None


look_up.defvjp(_look_up_forward, _look_up_backward)


class Embed(nn.Module):
    """Embeds tokens and, if the embeddings are tied, projects to logits."""

    config: NetworkConfig

    def setup(self):
        c = self.config
        init = nn.initializers.normal(1.0) if c.scale_logits else _EMBED_INIT
        self.embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(init, ("vocab", "embed")),
            (c.vocab_size, c.embed_dim),
            jnp.float32,
        )

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        x_BTD = look_up(self.embedding, tokens_BT, self.config.dtype)
        if self.config.scale_embeddings:
            x_BTD = x_BTD * jnp.asarray(self.config.embed_dim**0.5, self.config.dtype)
        return constrain(x_BTD, *RESIDUAL)

    def attend(self, x_BTD: jax.Array) -> jax.Array:
        """Returns the logits of tied embeddings, float32 [B, T, V]."""
        embedding_VD = self.embedding.astype(self.config.dtype)
        logits_BTV = jnp.einsum(
            "BTD,VD->BTV", x_BTD, embedding_VD, preferred_element_type=jnp.float32
        )
        return logits_BTV / self.config.embed_dim**0.5 if self.config.scale_logits else logits_BTV


class RMSNorm(nn.Module):
    """Divides by the root mean square, computed in float32 (Zhang and Sennrich, 2019)."""

    epsilon: float
    dtype: str

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        scale_D = self.param(
            "scale",
            nn.with_logical_partitioning(nn.initializers.ones_init(), ("norm",)),
            (x_BTD.shape[-1],),
            jnp.float32,
        )
        x = x_BTD.astype(jnp.float32)
        x = x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + self.epsilon)
        return (x * scale_D[None, None]).astype(self.dtype)


class GatedMLP(nn.Module):
    """Computes `down(activation(gate(x)) * up(x))` (Shazeer, 2020); `gelu` by tanh."""

    config: NetworkConfig

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        c = self.config
        shape, axes = (c.embed_dim, c.mlp_dim), ("embed", "mlp")
        gate_BTF = Dense(shape, axes, 1, c.dtype, name="gate")(x_BTD)
        up_BTF = Dense(shape, axes, 1, c.dtype, name="up")(x_BTD)
        hidden_BTF = getattr(jax.nn, c.activation)(gate_BTF) * up_BTF
        hidden_BTF = constrain(hidden_BTF, "activation_batch", "length", "mlp")
        return Dense(shape[::-1], axes[::-1], 1, c.dtype, name="down")(hidden_BTF)


def rotary(x_BTHE: jax.Array, positions_BT: jax.Array, theta: float) -> jax.Array:
    """Turns pairs (x[i], x[i + E/2]) by `position * theta^(-2i/E)` (Su et al., 2021).

    Args:
      x_BTHE: queries or keys, E even.
      positions_BT: int32 position of each token within its sequence.
      theta: base wavelength.

    Returns:
      Same shape and type as `x_BTHE`.
    """
    half = x_BTHE.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions_BT.astype(jnp.float32)[:, :, None, None] * frequency[None, None, None]
    first, second = jnp.split(x_BTHE.astype(jnp.float32), 2, axis=-1)
    turned = (
        first * jnp.cos(angle) - second * jnp.sin(angle),
        second * jnp.cos(angle) + first * jnp.sin(angle),
    )
    return jnp.concatenate(turned, axis=-1).astype(x_BTHE.dtype)


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result
