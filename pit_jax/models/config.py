"""Describes the architecture of the decoder-only network as frozen data."""

from __future__ import annotations

import dataclasses

ACTIVATIONS = ("silu", "gelu")
DTYPES = ("float32", "bfloat16")
REMATERIALISATION = ("none", "full", "dots")
ATTENTION = ("auto", "xla", "splash", "cudnn")
POSITIONS = ("rotary", "relative")


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Describes a decoder-only transformer; all that it computes is set, nothing by default.

    Attributes:
      vocab_size: rows of the embedding, at least the vocabulary's size.
      embed_dim: model width D.
      num_layers: number of blocks L, stacked by scan.
      num_heads: query heads H.
      num_kv_heads: key and value heads K; H is a multiple of it.
      head_dim: width of a head E, even (rotary positions turn pairs).
      mlp_dim: width F of the gated MLP.
      activation: gate of the MLP, `silu` or `gelu`.
      tied_embeddings: whether the output projection is the embedding.
      scale_embeddings: whether embedded tokens are multiplied by sqrt(D).
      scale_attention: whether attention's scores are divided by sqrt(E); if not, query kernels
        begin that much smaller (T5).
      scale_logits: whether the logits of tied embeddings are divided by sqrt(D), and these begin
        that much larger (T5X).
      positions: `rotary`, or `relative`: T5's learned bias for each head and bucket of distance.
      rope_theta: base wavelength of the rotary positions; nothing reads it with `relative`.
      norm_epsilon: epsilon of RMSNorm.
      dtype: compute type, `float32` or `bfloat16`; parameters are float32.
      remat: what the backward pass computes again: nothing (`none`), everything within a block
        (`full`), or all but matrix products (`dots`).
      attention: the kernel for whole rows, see kernels.py; `auto` takes the platform's.
    """

    vocab_size: int
    embed_dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    activation: str
    tied_embeddings: bool
    scale_embeddings: bool
    scale_attention: bool
    scale_logits: bool
    positions: str
    rope_theta: float
    norm_epsilon: float
    dtype: str = dataclasses.field(metadata={"identity": "float32"})
    remat: str = dataclasses.field(metadata={"changes_result": False, "identity": "none"})
    attention: str = dataclasses.field(
        default="auto", metadata={"changes_result": False, "identity": None}
    )

    def __post_init__(self):
        for field in (
            "vocab_size",
            "embed_dim",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "mlp_dim",
        ):
            if getattr(self, field) < 1:
                raise ValueError(
                    f"NetworkConfig: got {field}={getattr(self, field)}, expected 1 or more"
                )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"NetworkConfig: got num_heads={self.num_heads}, expected a multiple of "
                f"num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"NetworkConfig: got head_dim={self.head_dim}, expected an even number"
            )
        if self.scale_logits and not self.tied_embeddings:
            raise ValueError(
                "NetworkConfig: got scale_logits=True with tied_embeddings=False, expected "
                "scale_logits=False: an output projection of its own has a scale of its own"
            )
        for field, choices in (
            ("activation", ACTIVATIONS),
            ("positions", POSITIONS),
            ("dtype", DTYPES),
            ("remat", REMATERIALISATION),
            ("attention", ATTENTION),
        ):
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"NetworkConfig: got {field}={getattr(self, field)!r}, expected one of "
                    f"{choices}"
                )
        if self.positions == "relative" and self.attention not in ("auto", "xla"):
            raise ValueError(
                f"NetworkConfig: got attention={self.attention!r} with positions='relative', "
                "expected 'auto' or 'xla': fused kernels add no bias"
            )
