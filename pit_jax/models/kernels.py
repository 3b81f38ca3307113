"""Chooses by platform an attention kernel, and whether layers are a loop.

Of the kernels for rows whose tokens see earlier ones of a segment, `xla` is plain array code
(`attention.attend_causal`) and runs everywhere; `splash` is JAX's Pallas kernel for TPUs; `cudnn`
is NVIDIA's. They agree on real tokens and differ on padding, which nothing reads. Masks of another
kind (trees, the KV cache), relative positions, windows and caps always take `xla`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pit_jax.models.config import NetworkConfig
from pit_jax.runtime import partitioning

_LANES = 128  # of a TPU's vector registers; splash wants rows and heads of multiples of it
_LARGEST_BLOCK = 512
_WRITTEN_OUT = 64  # width from which a CPU's copies cost more than compiling every layer


def platform() -> str:
    """Returns the platform of the program that is traced: `cpu`, `gpu` or `tpu`."""
    return partitioning.platform()


def written_out(config: NetworkConfig) -> bool:
    """Returns whether a program has each layer's operations by themselves, and no loop over layers.

    In a loop a CPU copies each layer's parameters out of the stack, and its activations in. For
    small networks that is quicker than compiling every layer; elsewhere a loop costs nothing.
    """
    return platform() == "cpu" and config.embed_dim >= _WRITTEN_OUT


def choose(config: NetworkConfig) -> str:
    """Chooses the kernel for the devices at hand: `xla`, `splash` or `cudnn`."""
    if config.attention != "auto":
        return config.attention
    if config.needs_xla():
        return "xla"
    if platform() == "tpu" and config.head_dim % _LANES == 0:
        return "splash"
    if platform() == "gpu" and config.dtype == "bfloat16" and config.head_dim in range(8, 129, 8):
        return "cudnn"
    return "xla"


def fused(
    kernel: str,
    q_BTHE: jax.Array,
    k_BTKE: jax.Array,
    v_BTKE: jax.Array,
    segments_BT: jax.Array,
    scale: float | None = None,
) -> jax.Array:
    """Computes causal attention within segments by one of the fused kernels.

    Args:
      kernel: `splash` or `cudnn`.
      q_BTHE: queries.
      k_BTKE: keys.
      v_BTKE: values.
      segments_BT: int32 segment of each token, 0 for padding.
      scale: factor of the scores; 1/sqrt(E) by default.

    Returns:
      [B, T, H, E] in the type of `q_BTHE`; on padding the values are finite and mean nothing.
    """
    T = q_BTHE.shape[1]
    multiple = _LANES if T <= _LARGEST_BLOCK else 2 * _LANES
    extra = -T % multiple
    q, k, v = (jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))) for x in (q_BTHE, k_BTKE, v_BTKE))
    segments = jnp.pad(segments_BT, ((0, 0), (0, extra)))
    out = {"splash": _splash, "cudnn": _cudnn}[kernel](q, k, v, segments, scale)
    return out[:, :T]


def _cudnn(q_BTHE, k_BTKE, v_BTKE, segments_BT, scale=None):
    same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    return jax.nn.dot_product_attention(
        q_BTHE,
        k_BTKE,
        v_BTKE,
        mask=same_BTT[:, None],
        scale=scale,
        is_causal=True,
        implementation="cudnn",
    )


def _splash(q_BTHE, k_BTKE, v_BTKE, segments_BT, scale=None, interpret: bool = False):
    q_BHTE, k_BKTE, v_BKTE = (jnp.swapaxes(x, 1, 2) for x in (q_BTHE, k_BTKE, v_BTKE))
    scale = q_BHTE.shape[-1] ** -0.5 if scale is None else scale
    q_BHTE = q_BHTE * jnp.asarray(scale, q_BHTE.dtype)

    def rows(q, k, v, segments):
        kernel = _splash_kernel(q.shape[1], q.shape[2], interpret)
        return jax.vmap(lambda q, k, v, s: kernel(q, k, v, (s, s)))(q, k, v, segments)

    partitioner = partitioning.active()
    if partitioner is not None:  # the compiler can't split a Pallas kernel by itself
        names = ("batch", "heads", "length", "kv")
        key_names = ("batch", "kv_heads", "length", "kv")
        q_spec = partitioner.spec(names, q_BHTE.shape)
        k_spec = partitioner.spec(key_names, k_BKTE.shape)
        H, K = q_BHTE.shape[1], k_BKTE.shape[1]
        if q_spec[1] != k_spec[1] and K > 1:  # each device needs the key heads of its queries
            k_BKTE, v_BKTE = (jnp.repeat(x, H // K, axis=1) for x in (k_BKTE, v_BKTE))
            k_spec = q_spec
        segments_spec = partitioner.spec(("batch", "length"), segments_BT.shape)
        specs = (q_spec, k_spec, k_spec, segments_spec)
        rows = jax.shard_map(
            rows, mesh=partitioner.mesh, in_specs=specs, out_specs=specs[0], check_vma=False
        )
    return jnp.swapaxes(rows(q_BHTE, k_BKTE, v_BKTE, segments_BT), 1, 2)


def _splash_kernel(heads: int, length: int, interpret: bool):
    from jax.experimental.pallas.ops.tpu import splash_attention

    block = next(b for b in range(_LARGEST_BLOCK, 0, -_LANES) if length % b == 0)
    mask = splash_attention.MultiHeadMask([splash_attention.CausalMask((length, length))] * heads)
    sizes = splash_attention.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    kernel = splash_attention.make_splash_mha(
        mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
    )

    def call(q, k, v, segments):
        return kernel(q, k, v, segment_ids=splash_attention.SegmentIds(*segments))

    return call
