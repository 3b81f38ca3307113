"""Describes the architecture of the decoder-only network as frozen data."""

from __future__ import annotations

import dataclasses
import re

from pit_jax.checked import at_least, checked
from pit_jax.errors import UserError

ACTIVATIONS = ("silu", "gelu", "gelu_exact")
DTYPES = ("float32", "bfloat16")
REMATERIALISATION = ("none", "full", "dots")
ATTENTION = ("auto", "xla", "splash", "cudnn")
POSITIONS = ("rotary", "relative")
NORMS = ("rms", "layer")
NORM_PLACES = ("before", "after", "both")
QK_NORMS = ("none", "head", "projection")
# A field that says how a family varies the network. Its default means that the variation isn't
# there, and the texts by which a run knows its models don't name it then.
_VARIATION = {"variation": True}
BACKBONES = CACHES = ("compute", "int8")


@dataclasses.dataclass(frozen=True)
@checked
class LoraConfig:
    """Says which matrices have low-rank adapters, which are trained in their place (LoRA).

    A product x W becomes x W + (x A) B * scale, where W stays as it is (Hu et al., 2021).

    Attributes:
      rank: columns of A, and rows of B.
      alpha: the scale is alpha / rank.
      targets: a regular expression, which the whole name of a module matches that has an adapter.
        The modules are `attention/query`, `attention/key`, `attention/value`, `attention/out`,
        `mlp/gate`, `mlp/up`, `mlp/down`, and `unembed` if the embeddings aren't tied.
      rslora: whether the scale is alpha / sqrt(rank) (Kalajdzievski, 2023).
      backbone: how the matrices that aren't trained are kept: in the `compute` type, or as `int8`
        with a float32 scale for each output channel, and for each row of the embedding.
    """

    rank: int
    alpha: float
    targets: str = "attention/.*|mlp/.*"
    rslora: bool = dataclasses.field(default=False, metadata=_VARIATION)
    backbone: str = dataclasses.field(default="compute", metadata=_VARIATION | {"identity": None})

    def __post_init__(self):
        at_least(self, 1, "rank")
        if self.alpha <= 0:
            raise UserError(f"LoraConfig.alpha: got {self.alpha}, expected a number above 0")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise UserError(
                f"LoraConfig.targets: got {self.targets!r}, expected a regular expression: {error}"
            ) from None
        if self.backbone not in BACKBONES:
            raise UserError(
                f"LoraConfig.backbone: got {self.backbone!r}, expected one of {BACKBONES}"
            )

    @property
    def scale(self) -> float:
        """What the product with A and B is multiplied with."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def matches(self, module: str) -> bool:
        """Returns whether the module of this name has an adapter."""
        return re.fullmatch(self.targets, module) is not None


@dataclasses.dataclass(frozen=True)
@checked
class NetworkConfig:
    """Describes a decoder-only transformer; what every network has is set, nothing by default.

    The fields from `norm` on are variations of single families, which are absent by default.

    Attributes:
      vocab_size: rows of the embedding, at least the vocabulary's size.
      embed_dim: model width D.
      num_layers: number of blocks L, stacked by scan.
      num_heads: query heads H.
      num_kv_heads: key and value heads K; H is a multiple of it.
      head_dim: width of a head E, even (rotary positions turn pairs).
      mlp_dim: width F of the MLP.
      activation: of the MLP, `silu`, `gelu` (by tanh) or `gelu_exact`.
      tied_embeddings: whether the output projection is the embedding.
      scale_embeddings: whether embedded tokens are multiplied by sqrt(D).
      scale_attention: whether attention's scores are divided by sqrt(E); if not, query kernels
        begin that much smaller (T5).
      scale_logits: whether the logits of tied embeddings are divided by sqrt(D), and these begin
        that much larger (T5X).
      positions: `rotary`, or `relative`: T5's learned bias for each head and bucket of distance.
      rope_theta: base wavelength of the rotary positions; nothing reads it with `relative`.
      norm_epsilon: epsilon of the norms.
      dtype: compute type, `float32` or `bfloat16`; parameters are float32.
      remat: what the backward pass computes again: nothing (`none`), everything within a block
        (`full`), or all but matrix products (`dots`).
      attention: the kernel for whole rows, see kernels.py; `auto` takes the platform's.
      norm: `rms`, or `layer`: LayerNorm with a bias.
      norm_offset: whether RMSNorms keep their scales as offsets from 1.
      norm_place: whether the norms of a block stand `before` attention and MLP, `after` them (and
        before their results are added), or at `both` places.
      qk_norm: which RMSNorm queries and keys have: `none`, one of each `head`, or one of the whole
        `projection`.
      qkv_bias: whether queries, keys and values have biases.
      out_bias: whether the projection of attention's result has one.
      mlp_bias: whether the MLP's products have biases.
      gated_mlp: whether the activation of one product is multiplied with another product.
      parallel_blocks: whether attention and MLP of a block both read its input.
      attention_scalar: the number whose root divides attention's scores; 0 for E.
      attention_cap: attention's scores s become cap * tanh(s / cap); 0 for no cap.
      logit_cap: the same of the logits.
      windows: for layers 0, 1, …, over and over, how many tokens a token sees, itself counted; 0
        for all. `()` if no layer has a window.
      rotary_layers: for layers 0, 1, …, over and over, whether they have rotary positions. `()` if
        all have.
      rotary_dim: how many of a head's E numbers rotary positions turn, even; 0 for all.
      rope_local_theta: the base wavelength of layers with a window, which `rope_factor` doesn't
        count in; 0 if they have that of the others.
      rope_factor: what the frequencies of rotary positions are divided by.
      rope_original_length: 0 if all frequencies are divided. If not, those of wavelengths up to
        `rope_original_length / rope_high` tokens stay, those beyond `rope_original_length /
        rope_low` are divided, and between them it goes over linearly (Llama 3.1).
      rope_low: see `rope_original_length`.
      rope_high: see `rope_original_length`.
      cache: how keys and values are kept while decoding: in the `compute` type, or as `int8` with a
        float32 scale for each head of a token.
      lora: which matrices are trained by adapters, all else of a model being frozen but a scalar
        model's head; None trains whole models.
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
    norm: str = dataclasses.field(default="rms", metadata=_VARIATION)
    norm_offset: bool = dataclasses.field(default=False, metadata=_VARIATION)
    norm_place: str = dataclasses.field(default="before", metadata=_VARIATION)
    qk_norm: str = dataclasses.field(default="none", metadata=_VARIATION)
    qkv_bias: bool = dataclasses.field(default=False, metadata=_VARIATION)
    out_bias: bool = dataclasses.field(default=False, metadata=_VARIATION)
    mlp_bias: bool = dataclasses.field(default=False, metadata=_VARIATION)
    gated_mlp: bool = dataclasses.field(default=True, metadata=_VARIATION)
    parallel_blocks: bool = dataclasses.field(default=False, metadata=_VARIATION)
    attention_scalar: int = dataclasses.field(default=0, metadata=_VARIATION)
    attention_cap: float = dataclasses.field(default=0.0, metadata=_VARIATION)
    logit_cap: float = dataclasses.field(default=0.0, metadata=_VARIATION)
    windows: tuple[int, ...] = dataclasses.field(default=(), metadata=_VARIATION)
    rotary_layers: tuple[bool, ...] = dataclasses.field(default=(), metadata=_VARIATION)
    rotary_dim: int = dataclasses.field(default=0, metadata=_VARIATION)
    rope_local_theta: float = dataclasses.field(default=0.0, metadata=_VARIATION)
    rope_factor: float = dataclasses.field(default=1.0, metadata=_VARIATION)
    rope_original_length: int = dataclasses.field(default=0, metadata=_VARIATION)
    rope_low: float = dataclasses.field(default=1.0, metadata=_VARIATION)
    rope_high: float = dataclasses.field(default=4.0, metadata=_VARIATION)
    cache: str = dataclasses.field(default="compute", metadata=_VARIATION)
    lora: LoraConfig | None = dataclasses.field(default=None, metadata=_VARIATION)

    def __post_init__(self):
        for field in (
            "vocab_size",
            "embed_dim",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
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
            ("norm", NORMS),
            ("norm_place", NORM_PLACES),
            ("qk_norm", QK_NORMS),
            ("cache", CACHES),
        ):
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"NetworkConfig: got {field}={getattr(self, field)!r}, expected one of "
                    f"{choices}"
                )
        self._check_rotary()
        self._check_kernel()
        if self.lora and not any(map(self.lora.matches, self.modules)):
            raise UserError(
                f"LoraConfig.targets: got {self.lora.targets!r}, expected a regular expression "
                f"that matches one or more of {', '.join(self.modules)}"
            )

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the modules with a matrix that can have an adapter."""
        attention = (f"attention/{name}" for name in ("query", "key", "value", "out"))
        mlp = (f"mlp/{name}" for name in (*["gate"] * self.gated_mlp, "up", "down"))
        return (*attention, *mlp, *["unembed"] * (not self.tied_embeddings))

    def adapter(self, module: str) -> LoraConfig | None:
        """Returns what adapter the module of this name has, None for none."""
        return self.lora if self.lora and self.lora.matches(module) else None

    @property
    def without_adapters(self) -> NetworkConfig:
        """The same network, trained whole."""
        return dataclasses.replace(self, lora=None) if self.lora else self

    def _check_rotary(self):
        if min(self.windows, default=0) < 0:
            raise ValueError(
                f"NetworkConfig: got windows={self.windows}, expected tokens, or 0 for all"
            )
        if self.rotary_dim not in range(0, self.head_dim + 1, 2):
            raise ValueError(
                f"NetworkConfig: got rotary_dim={self.rotary_dim}, expected an even number up to "
                f"head_dim={self.head_dim}"
            )
        if self.rope_factor <= 0 or not 0 < self.rope_low < self.rope_high:
            raise ValueError(
                f"NetworkConfig: got rope_factor={self.rope_factor}, rope_low={self.rope_low}, "
                f"rope_high={self.rope_high}, expected numbers above 0, rope_high the larger"
            )
        if self.positions == "relative" and any(self.windows):
            raise ValueError(
                f"NetworkConfig: got windows={self.windows} with positions='relative', expected "
                "none: no family has both"
            )

    def _check_kernel(self):
        if self.attention in ("auto", "xla"):
            return
        if reason := self.needs_xla():
            raise ValueError(
                f"NetworkConfig: got attention={self.attention!r} with {reason}, expected 'auto' "
                "or 'xla': fused kernels have neither biases nor windows nor caps"
            )

    def needs_xla(self) -> str:
        """Returns the field that no fused kernel computes, with its value; empty if all can."""
        if self.positions == "relative":
            return "positions='relative'"
        if any(self.windows):
            return f"windows={self.windows}"
        return f"attention_cap={self.attention_cap}" if self.attention_cap else ""

    def window_of(self, layer: int) -> int:
        """Returns how many tokens a token of this layer sees, itself counted; 0 for all."""
        return self.windows[layer % len(self.windows)] if self.windows else 0

    def has_rotary(self, layer: int) -> bool:
        """Returns whether queries and keys of this layer are turned by their positions."""
        turned = self.rotary_layers[layer % len(self.rotary_layers)] if self.rotary_layers else True
        return turned and self.positions == "rotary"
