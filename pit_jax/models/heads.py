"""Reads scalars off the decoder: a score per response (reward models) or per token (critic)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from pit_jax.models.config import NetworkConfig
from pit_jax.models.layers import Dense
from pit_jax.models.network import Decoder

POOLINGS = ("last", "sum")


class ScalarModel(nn.Module):
    """Gives every token a scalar, by a decoder with a linear head.

    Reward models pool the scalars of a response with `pool`; the critic reads them as values. Both
    have the same parameters, so that a critic can start from a reward model.
    """

    config: NetworkConfig

    @nn.compact
    def __call__(self, tokens_BT, positions_BT, mask) -> jax.Array:
        """Returns the scalars, float32 [B, T]."""
        hidden_BTD, _ = Decoder(self.config, name="decoder")(tokens_BT, positions_BT, mask)
        head = Dense((self.config.embed_dim, 1), ("embed", "scalar"), 1, "float32", name="head")
        return head(hidden_BTD.astype(jnp.float32))[..., 0]


def pool(scalars_BR: jax.Array, mask_BR: jax.Array, how: str) -> jax.Array:
    """Makes one score of each response, float32 [B], from its per-token scalars.

    Args:
      scalars_BR: scalars at the tokens of a row, or of its response alone.
      mask_BR: True on the response's real tokens, EOS included.
      how: `last` reads the scalar of the last real token, which is EOS if the response ended
        (Appendix A); `sum` adds up those of all real tokens.

    Raises:
      ValueError: if `how` is not one of POOLINGS.
    """
    if how not in POOLINGS:
        raise ValueError(f"pooling: got {how!r}, expected one of {POOLINGS}")
    mask_BR = mask_BR.astype(jnp.float32)
    if how == "sum":
        return jnp.sum(scalars_BR * mask_BR, axis=1)
    last_B1 = jnp.argmax(jnp.cumsum(mask_BR, axis=1), axis=1)[:, None]
    return jnp.take_along_axis(scalars_BR, last_B1, axis=1)[:, 0]
