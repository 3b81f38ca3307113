"""Computes grouped-query attention; has its masks. Dims: see `network.py`.

Masks are boolean, True where a query may look at a key. All padding is expressed by segment ids:
0 is padding, and tokens see only their own segment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def tree_mask(blocks_BT: jax.Array, parents: Sequence[int]) -> jax.Array:
    """Returns the mask [B, T, T] of sequences that share prefixes, as a tree of blocks in a row.

    A token sees its block's ancestors and the earlier tokens of its own block. For blocks
    `[1, 2, 2, 3, 0]` with parents `(0, 1, 1)` (a prefix, two branches, padding):

        x . . . .
        x x . . .
        x x x . .
        x . . x .
        . . . . .

    Args:
      blocks_BT: number of each token's block, from 1, ascending along T; 0 for padding.
      parents: for block 1, 2, … the number of the block that it follows, 0 for none.
    """
    lineage_NN = _lineage(parents)
    T = blocks_BT.shape[1]
    earlier_TT = jnp.tril(jnp.ones((T, T), bool))
    own_BTN = jax.nn.one_hot(blocks_BT, len(lineage_NN))
    return earlier_TT[None] & (jnp.einsum("BTN,BSN->BTS", lineage_NN[blocks_BT], own_BTN) > 0)


def tree_positions(blocks_BT: jax.Array, parents: Sequence[int]) -> jax.Array:
    """Returns positions [B, T] for a `tree_mask`, counted along each token's own sequence."""
    lineage_NN = _lineage(parents)
    own_BTN = jax.nn.one_hot(blocks_BT, len(lineage_NN), dtype=jnp.int32)
    so_far_BTN = jnp.cumsum(own_BTN, axis=1)
    return jnp.maximum(jnp.sum(so_far_BTN * lineage_NN[blocks_BT].astype(jnp.int32), axis=2) - 1, 0)


def _lineage(parents: Sequence[int]) -> jax.Array:
    """Returns [N, N], 1 where a row's block is the column's or comes below it; 0 for padding."""
    lineage_NN = np.eye(len(parents) + 1, dtype=np.float32)
    lineage_NN[0, 0] = 0
    for block, parent in enumerate(parents, 1):
        lineage_NN[block] += lineage_NN[parent]
    return jnp.asarray(lineage_NN)


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
    K = k_BSKE.shape[2]
    scale = E**-0.5 if scale is None else scale
    q_BTKGE = q_BTHE.reshape(B, T, K, H // K, E) * jnp.asarray(scale, q_BTHE.dtype)
    by_head = kernels.platform() == "cpu" and q_BTHE.dtype == jnp.bfloat16
    scores_of, mixed = (_scores_by_head, _mixed_by_head) if by_head else (_scores, _mixed)
    scores = scores_of(q_BTKGE, k_BSKE.astype(q_BTHE.dtype))
    if scales is not None:
        scores *= scales[0][:, :, None, None]
    scores = capped(scores, cap)
    if bias_HN is not None:
        scores += _bias(bias_HN.reshape(K, H // K, -1), mask_BTS, q_BTHE.dtype)
        mask_BTS = mask_BTS >= 0
    scores = jnp.where(mask_BTS[:, None, None], scores, -1e30)
    weights = jax.nn.softmax(scores, axis=-1) * mask_BTS[:, None, None].any(-1, keepdims=True)
    if scales is not None:
        weights *= scales[1][:, :, None, None]
    weights = weights.astype(q_BTHE.dtype)
    return mixed(weights, v_BSKE.astype(q_BTHE.dtype)).reshape(B, T, H, E).astype(q_BTHE.dtype)


def _scores(q_BTKGE, k_BSKE):
    return jnp.einsum("BTKGE,BSKE->BKGTS", q_BTKGE, k_BSKE, preferred_element_type=jnp.float32)


def _mixed(weights_BKGTS, v_BSKE):
    how = {"preferred_element_type": jnp.float32}
    return jnp.einsum("BKGTS,BSKE->BTKGE", weights_BKGTS, v_BSKE, **how)


def _scores_by_head(q_BTKGE, k_BSKE):
    """Computes `_scores` in a form that XLA's products of bfloat16 on a CPU have."""
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

    The barriers keep XLA from folding transpositions into the product afterwards: it swaps the
    operands then, and what comes out stops the program with "Unsupported element type for
    DotThunk" when it is run.
    """
    a, b = jax.lax.optimization_barrier((a, b))
    dims = (((3,), (axis,)), ((0, 1), (0, 1)))
    product = jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)
    return jax.lax.optimization_barrier(product)


def _part(T: int) -> int:
    """Queries of a part where T go in up to 8, none but the last shorter than 16."""
    return max(16, -(-T // 8))


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
    q_BTHE: jax.Array, k_BTKE: jax.Array, v_BTKE: jax.Array, mask_BTT: jax.Array, *how
):
    """Computes `attend` where no query sees a later key, with half the work for a long row.

    The queries go in up to 8 parts, and each part gets the keys up to its last query. `how` is the
    scale, the bias and the cap.
    """
    T = q_BTHE.shape[1]
    part = _part(T)
    return jnp.concatenate(
        [
            attend(
                q_BTHE[:, first : first + part],
                k_BTKE[:, : first + part],
                v_BTKE[:, : first + part],
                mask_BTT[:, first : first + part, : first + part],
                *how,
            )
            for first in range(0, T, part)
        ],
        axis=1,
    )


def attend_in_turn(
    q_BTHE: jax.Array, k_BTKE: jax.Array, v_BTKE: jax.Array, mask_BTT: jax.Array, *how
):
    """Computes `attend` in a loop over parts of the queries, with one part in memory at a time.

    The parts are those of `attend_causal`, but each gets all keys. This is for accelerators, where
    the program of `attend_causal`, which writes every part out, takes minutes to compile, and
    gigabytes.
    """
    B, T, H, E = q_BTHE.shape
    part = _part(T)
    extra = -T % part
    q = jnp.pad(q_BTHE, ((0, 0), (0, extra), (0, 0), (0, 0))).reshape(B, -1, part, H, E)
    mask = jnp.pad(mask_BTT, ((0, 0), (0, extra), (0, 0))).reshape(B, -1, part, T)

    @jax.checkpoint
    def one(queries):
        q_BPHE, mask_BPT = queries
        return attend(q_BPHE, k_BTKE, v_BTKE, mask_BPT, *how)

    out = jax.lax.map(one, (jnp.moveaxis(q, 1, 0), jnp.moveaxis(mask, 1, 0)))
    return jnp.moveaxis(out, 0, 1).reshape(B, -1, H, E)[:, :T]


class Attention(nn.Module):
    """Computes the self-attention of a block, with or without a cache.

    `mask` is a mask, or CausalRows; the `distances` of a mask where layers have windows; or
    `relative_buckets` of one with `bias_HN`.
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
        elif mask.shape[2] == x_BTD.shape[1]:
            whole = attend_causal if kernels.platform() == "cpu" else attend_in_turn
            out_BTHE = whole(q_BTHE, k_BTKE, v_BTKE, mask, *how)
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
