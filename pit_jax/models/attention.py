"""Computes grouped-query attention; has its masks. Dims: see `network.py`.

Masks are boolean, True where a query may look at a key. All padding is expressed by segment ids:
0 is padding, and tokens see only their own segment.
"""

from __future__ import annotations

import math

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.models import kernels
from pit_jax.models.cache import KVCache
from pit_jax.models.config import NetworkConfig
from pit_jax.models.layers import Dense, RMSNorm, capped
from pit_jax.models.rotary import frequencies, frequencies_of_layers, rotary
from pit_jax.models.trees import Branches
from pit_jax.runtime.partitioning import constrain

RELATIVE_BUCKETS = 32
# The least distance of buckets 1, 2, …: one each up to 16, then 16 in a geometric row up to 128.
_STARTS = np.array([*range(1, 16), *(math.ceil(16 * 8 ** (n / 16)) for n in range(16))])


@flax.struct.dataclass
class Layers:
    """Tells layers apart; a step of the scan over layers gets one, without the leading dim.

    Attributes:
      number_L: int32 number of each layer.
      window_L: int32, how many tokens a token sees; None if no layer has a window.
      frequencies_LI: of rotary positions; None if all layers have the same.
    """

    number_L: jax.Array
    window_L: jax.Array | None
    frequencies_LI: jax.Array | None

    @classmethod
    def of(cls, config: NetworkConfig) -> Layers:
        """Makes those of a network."""
        window_L, numbers = None, range(config.num_layers)
        if any(config.windows):
            everything = np.iinfo(np.int32).max
            window_L = jnp.asarray([config.window_of(n) or everything for n in numbers], jnp.int32)
        return cls(jnp.arange(config.num_layers), window_L, frequencies_of_layers(config))


@flax.struct.dataclass
class CausalRows:
    """Stands for the `causal_mask` of whole rows, in a form that fused kernels take too.

    Attributes:
      segments_BT: int32 segment of each token, 0 for padding.
    """

    segments_BT: jax.Array

    def dense(self) -> jax.Array:
        """Returns the mask itself, bool [B, T, T]."""
        return causal_mask(self.segments_BT)


def causal_mask(segments_BT: jax.Array) -> jax.Array:
    """Returns a mask [B, T, T] by which a token sees itself and its segment's earlier tokens.

    For segments `[0, 1, 1, 2]` (padding, two tokens of one example, one of the next):

        . . . .
        . x . .
        . x x .
        . . . x
    """
    T = segments_BT.shape[1]
    earlier_TT = jnp.tril(jnp.ones((T, T), bool))
    same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    return earlier_TT[None] & same_BTT & (segments_BT > 0)[:, :, None]


def positions_of(valid_BT: jax.Array) -> jax.Array:
    """Returns positions [B, T] that count real tokens from 0, whatever the padding around them."""
    return jnp.maximum(jnp.cumsum(valid_BT.astype(jnp.int32), axis=1) - 1, 0)


def distances(mask_BTS: jax.Array) -> jax.Array:
    """Returns how many tokens back each visible key is, int32 [B, T, S]; -1 for unseen keys.

    The keys that a query sees are its history in order, with itself at the end, so a key's distance
    is the number of visible keys after it, whatever is packed, shared or padded.
    """
    after_BTS = jax.lax.cumsum(mask_BTS.astype(jnp.int32), axis=2, reverse=True) - 1
    return jnp.where(mask_BTS, after_BTS, -1)


def relative_buckets(mask_BTS: jax.Array) -> jax.Array:
    """Returns the bucket of each visible key's `distances`, int8 [B, T, S]; -1 for unseen keys.

    Section 2.1 of Raffel et al., 2020; causal, so all 32 buckets are of the past.
    """
    passed_BTSN = distances(mask_BTS)[..., None] >= jnp.asarray(_STARTS)[None, None, None]
    return jnp.where(mask_BTS, jnp.sum(passed_BTSN, axis=-1), -1).astype(jnp.int8)


def attend(
    q_BTHE: jax.Array,
    k_BSKE: jax.Array,
    v_BSKE: jax.Array,
    mask_BTS: jax.Array,
    scale: float | None = None,
    bias_HN: jax.Array | None = None,
    cap: float = 0.0,
    scales: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Computes grouped-query attention, softmax in float32; a query that sees no key gets zeros.

    Args:
      q_BTHE: queries.
      k_BSKE: keys.
      v_BSKE: values.
      mask_BTS: bool, True where a query sees a key; with `bias_HN` its `relative_buckets`.
      scale: factor of the scores; 1/sqrt(E) by default.
      bias_HN: added to the scores, for each head and bucket of distance.
      cap: of the scores, see `layers.capped`.
      scales: what keys and values are to be multiplied with, float32 [B, K, S] each; None for 1.

    Returns:
      [B, T, H, E] in the type of `q_BTHE`.
    """
    B, T, H, E = q_BTHE.shape
    K, dtype = k_BSKE.shape[2], q_BTHE.dtype
    scale = E**-0.5 if scale is None else scale
    q_BTKGE = q_BTHE.reshape(B, T, K, H // K, E) * jnp.asarray(scale, dtype)
    by_head = kernels.platform() == "cpu"
    scores_of, mixed = (_scores_by_head, _mixed_by_head) if by_head else (_scores, _mixed)
    scores = scores_of(q_BTKGE, k_BSKE.astype(dtype))
    if scales is not None:
        scores *= scales[0][:, :, None, None]
    scores = capped(scores, cap)
    if bias_HN is not None:
        scores += _bias(bias_HN.reshape(K, H // K, -1), mask_BTS, dtype)
        mask_BTS = mask_BTS >= 0
    scores = jnp.where(mask_BTS[:, None, None], scores, -1e30)
    weights = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    # Divided by their sum after they are mixed, which is less work; it is at least 1.
    total_BT = jnp.sum(weights, axis=-1).transpose(0, 3, 1, 2)
    if scales is not None:
        weights *= scales[1][:, :, None, None]
    out_BTKGE = mixed(weights.astype(dtype), v_BSKE.astype(dtype)) / total_BT[..., None]
    out_BTKGE *= mask_BTS.any(-1)[:, :, None, None, None]
    return out_BTKGE.reshape(B, T, H, E).astype(dtype)


def _scores(q_BTKGE, k_BSKE):
    return jnp.einsum("BTKGE,BSKE->BKGTS", q_BTKGE, k_BSKE, preferred_element_type=jnp.float32)


def _mixed(weights_BKGTS, v_BSKE):
    how = {"preferred_element_type": jnp.float32}
    return jnp.einsum("BKGTS,BSKE->BTKGE", weights_BKGTS, v_BSKE, **how)


def _scores_by_head(q_BTKGE, k_BSKE):
    """Computes `_scores` as a product of matrices for each head, which suits a CPU."""
    B, T, K, G, E = q_BTKGE.shape
    q_BKNE = jnp.transpose(q_BTKGE, (0, 2, 3, 1, 4)).reshape(B, K, G * T, E)
    return _by_head(q_BKNE, jnp.swapaxes(k_BSKE, 1, 2), 3).reshape(B, K, G, T, -1)


def _mixed_by_head(weights_BKGTS, v_BSKE):
    B, K, G, T, S = weights_BKGTS.shape
    weights_BKNS = weights_BKGTS.reshape(B, K, G * T, S)
    out_BKNE = _by_head(weights_BKNS, jnp.swapaxes(v_BSKE, 1, 2), 2)
    return jnp.transpose(out_BKNE.reshape(B, K, G, T, -1), (0, 3, 1, 2, 4))


def _by_head(a, b, axis):
    """The product of the last dim of a [B, K, N, X] and an axis of b, float32.

    The barriers, which bfloat16 needs, keep XLA from folding transpositions into the product
    afterwards: it swaps the operands then, and what comes out stops the program with "Unsupported
    element type for DotThunk" when it is run.
    """
    barrier = jax.lax.optimization_barrier if a.dtype == jnp.bfloat16 else lambda x: x
    a, b = barrier((a, b))
    dims = (((3,), (axis,)), ((0, 1), (0, 1)))
    product = jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)
    return barrier(product)


def _part(T: int, most: int) -> int:
    """Queries of a part where T go in up to `most`, none but the last shorter than 16."""
    return max(16, -(-T // most))


def _bias(bias_KGN, buckets_BTS, dtype):
    """A look-up as a matrix product, since accelerators are slow to scatter its gradient."""
    one_hot_BTSN = jax.nn.one_hot(buckets_BTS, RELATIVE_BUCKETS, dtype=dtype)
    found_KGBTS = jnp.einsum(
        "KGN,BTSN->KGBTS",
        bias_KGN.astype(dtype),
        one_hot_BTSN,
        preferred_element_type=jnp.float32,
    )
    return jnp.moveaxis(found_KGBTS, 2, 0)


def attend_causal(
    q_BTHE: jax.Array, k_BSKE: jax.Array, v_BSKE: jax.Array, mask_BTS: jax.Array, *how
):
    """Computes `attend` where no query sees a later key, with half the work for a long row.

    The queries, which are those of the last T keys, go in up to 4 parts, and each part gets the
    keys up to its last query. `how` is the scale, the bias and the cap.
    """
    T, S = mask_BTS.shape[1:]
    part = _part(T, 4)
    return jnp.concatenate(
        [
            attend(
                q_BTHE[:, first : first + part],
                k_BSKE[:, : S - T + first + part],
                v_BSKE[:, : S - T + first + part],
                mask_BTS[:, first : first + part, : S - T + first + part],
                *how,
            )
            for first in range(0, T, part)
        ],
        axis=1,
    )


def attend_in_turn(
    q_BTHE: jax.Array, k_BSKE: jax.Array, v_BSKE: jax.Array, mask_BTS: jax.Array, *how
):
    """Computes `attend` in a loop over parts of the queries, with one part in memory at a time.

    There are up to 8 parts, and each gets all keys. This is for accelerators, where
    the program of `attend_causal`, which writes every part out, takes minutes to compile, and
    gigabytes.
    """
    B, T, H, E = q_BTHE.shape
    part = _part(T, 8)
    extra = -T % part
    q = jnp.pad(q_BTHE, ((0, 0), (0, extra), (0, 0), (0, 0))).reshape(B, -1, part, H, E)
    mask = jnp.pad(mask_BTS, ((0, 0), (0, extra), (0, 0))).reshape(B, -1, part, mask_BTS.shape[2])

    @jax.checkpoint
    def one(queries):
        q_BPHE, mask_BPS = queries
        return attend(q_BPHE, k_BSKE, v_BSKE, mask_BPS, *how)

    out = jax.lax.map(one, (jnp.moveaxis(q, 1, 0), jnp.moveaxis(mask, 1, 0)))
    return jnp.moveaxis(out, 0, 1).reshape(B, -1, H, E)[:, :T]


def attend_whole(*arguments) -> jax.Array:
    """Computes `attend` of rows to themselves in the way that suits the platform."""
    whole = attend_causal if kernels.platform() == "cpu" else attend_in_turn
    return whole(*arguments)


def cost(queries: int, keys: int) -> float:
    """Returns how many scores `attend_whole` computes of a number of queries and keys."""
    unseen = 3 / 8 * queries**2 if kernels.platform() == "cpu" else 0.0
    return queries * keys - unseen


def attend_apart(
    q_BTHE: jax.Array, k_BTKE: jax.Array, v_BTKE: jax.Array, branches: Branches, *how
) -> jax.Array:
    """Computes `attend` by the mask of a tree, each block of it apart."""

    def apart(x_BT, move, rows: int):
        return move(x_BT).reshape(rows, -1, *x_BT.shape[2:])

    found = []
    for group in branches.groups:
        N = len(group.mask_NQW)
        q_NQHE = apart(q_BTHE, group.queries, N)
        k_NWKE, v_NWKE = (apart(x, group.keys, N) for x in (k_BTKE, v_BTKE))
        out_NQHE = attend_whole(q_NQHE, k_NWKE, v_NWKE, group.mask_NQW, *how)
        found.append(out_NQHE.reshape(len(q_BTHE), -1, *q_BTHE.shape[2:]))
    return branches.out(jnp.concatenate(found, axis=1))


class Attention(nn.Module):
    """Computes the self-attention of a block, with or without a cache.

    `mask` is a mask, CausalRows, or Branches; the `distances` of a mask where layers have windows;
    or `relative_buckets` of one with `bias_HN`.
    """

    config: NetworkConfig

    @nn.compact
    def __call__(self, x_BTD, positions_BT, mask, bias_HN, cache: KVCache | None, layer, index):
        c = self.config
        D, H, K, E = c.embed_dim, c.num_heads, c.num_kv_heads, c.head_dim
        scale, initial_scale = (None, 1.0) if c.scale_attention else (1.0, E**-0.5)
        if c.attention_scalar:
            scale = c.attention_scalar**-0.5

        def project(name, heads, axis, initial_scale=1.0):
            return Dense(
                (D, heads, E),
                ("embed", axis, "kv"),
                1,
                c.dtype,
                initial_scale=initial_scale,
                bias=c.qkv_bias,
                lora=c.adapter(f"attention/{name}"),
                name=name,
            )(x_BTD)

        def placed(name, x, axis):
            if c.qk_norm != "none":
                axes = ("norm",) if c.qk_norm == "head" else (axis, "kv")
                x = RMSNorm(c.norm_epsilon, c.dtype, c.norm_offset, axes, name=name)(x)
            if c.positions != "rotary":
                return x
            own = layer.frequencies_LI
            return rotary(x, positions_BT, frequencies(c) if own is None else own)

        q_BTHE = placed("query_norm", project("query", H, "heads", initial_scale), "heads")
        k_BTKE = placed("key_norm", project("key", K, "kv_heads"), "kv_heads")
        v_BTKE = project("value", K, "kv_heads")
        q_BTHE = constrain(q_BTHE, "batch", "length", "heads", "kv")
        k_BTKE = constrain(k_BTKE, "batch", "length", "kv_heads", "kv")
        v_BTKE = constrain(v_BTKE, "batch", "length", "kv_heads", "kv")
        if cache is not None:
            cache = cache.write(k_BTKE, v_BTKE, layer.number_L, index)
        if layer.window_L is not None:
            mask = (mask >= 0) & (mask < layer.window_L)
        how = scale, bias_HN, c.attention_cap
        if isinstance(mask, CausalRows):
            kernel = kernels.choose(c)
            out_BTHE = kernels.fused(kernel, q_BTHE, k_BTKE, v_BTKE, mask.segments_BT, scale)
        elif isinstance(mask, Branches):
            out_BTHE = attend_apart(q_BTHE, k_BTKE, v_BTKE, mask, *how)
        elif mask.shape[2] == x_BTD.shape[1]:
            out_BTHE = attend_whole(q_BTHE, k_BTKE, v_BTKE, mask, *how)
        else:  # decoding: look at what the cache holds
            assert cache is not None
            k_BSKE, v_BSKE, scales = cache.layer(layer.number_L)
            out_BTHE = attend(q_BTHE, k_BSKE, v_BSKE, mask, *how, scales)
        # Attention is split by rows, as the cache is; decoding, its result then goes to the weights
        # of the projection. In training the two are the same.
        out_BTHE = constrain(out_BTHE, "batch", "length", "heads", "kv")
        out_BTHE = constrain(out_BTHE, "activation_batch", "length", "heads", "kv")
        shape, axes = (H, E, D), ("heads", "kv", "embed")
        lora = c.adapter("attention/out")
        out = Dense(shape, axes, 2, c.dtype, bias=c.out_bias, lora=lora, name="out")(out_BTHE)
        return out, cache
