"""Has a row for each family of transformers: its table, and what its `config.json` says.

What `config.json` doesn't say has the value that transformers gives it in the family's class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from pit_jax.errors import UserError
from pit_jax.models.config import NetworkConfig
from pit_jax.models.weights import tables
from pit_jax.models.weights.positions import (
    FULL,
    SLIDING,
    alternating,
    period,
    rotary_fields,
    scaling_of,
    types_of,
    window_fields,
)
from pit_jax.models.weights.rows import Row

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu_exact",
    "gelu_pytorch_tanh": "gelu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
}
_ACTIVATION_NAMES = {"silu": "silu", "gelu_exact": "gelu", "gelu": "gelu_pytorch_tanh"}


@dataclasses.dataclass(frozen=True)
class Family:
    """Says how a family of transformers keeps its networks.

    Attributes:
      prefix: of the names of its classes, such as `Llama`.
      rows: its table of tensors.
      defaults: what a missing field of `config.json` stands for; fields without must be there.
      network: makes the fields of a NetworkConfig that differ from those of Llama.
      config: makes the fields of `config.json` that differ from those of Llama; ABSENT takes one
        off.
    """

    prefix: str
    rows: tuple[Row, ...]
    defaults: Mapping[str, Any]
    network: Callable[[Mapping[str, Any]], dict[str, Any]]
    config: Callable[[NetworkConfig], dict[str, Any]]

    @property
    def language_model(self) -> str:
        """The name of the class of its language models."""
        return f"{self.prefix.removesuffix('Text')}ForCausalLM"

    @property
    def scalar_model(self) -> str:
        """The name of the class of its models with one label."""
        return f"{self.prefix}ForSequenceClassification"


ABSENT = object()  # a field that a family's config.json doesn't have


class Fields(dict):
    """Is a config.json that names a field which is asked for and missing."""

    def __missing__(self, name: str) -> Any:
        raise UserError(f"config.json: got no {name}, which {self['model_type']} needs")


def llama(c: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a network that most families have, and Llama has."""
    heads = c["num_attention_heads"]
    bias = bool(c.get("attention_bias"))
    return {
        "vocab_size": c["vocab_size"],
        "embed_dim": c["hidden_size"],
        "num_layers": c["num_hidden_layers"],
        "num_heads": heads,
        "num_kv_heads": c["num_key_value_heads"] or heads,
        "head_dim": c["head_dim"] or c["hidden_size"] // heads,
        "mlp_dim": c["intermediate_size"],
        "activation": _activation(c, "hidden_act"),
        "tied_embeddings": bool(c["tie_word_embeddings"]),
        "scale_embeddings": False,
        "scale_attention": True,
        "scale_logits": False,
        "positions": "rotary",
        "norm_epsilon": c["rms_norm_eps"],
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": bool(c.get("mlp_bias")),
        **rotary_fields(c, c.get("rope_parameters") or c.get("rope_scaling") or {}),
    }


def llama_config(network: NetworkConfig, model_type: str) -> dict[str, Any]:
    """Returns the fields of `config.json` that most families have, and Llama has."""
    c = network
    return {
        "model_type": model_type,
        "vocab_size": c.vocab_size,
        "hidden_size": c.embed_dim,
        "intermediate_size": c.mlp_dim,
        "num_hidden_layers": c.num_layers,
        "num_attention_heads": c.num_heads,
        "num_key_value_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
        "hidden_act": _ACTIVATION_NAMES[c.activation],
        "rms_norm_eps": c.norm_epsilon,
        "tie_word_embeddings": c.tied_embeddings,
        "attention_bias": c.out_bias,
        "rope_theta": c.rope_theta,
        "rope_scaling": scaling_of(c),
    }


def _activation(c: Mapping[str, Any], field: str) -> str:
    if c[field] not in _ACTIVATIONS:
        raise UserError(
            f"config.json: got {field}={c[field]!r}, expected one of {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[c[field]]


# --- families -----------------------------------------------------------------------------------


def _mistral(c):
    window = c["sliding_window"]
    return {"windows": (window,) if window else (), "qkv_bias": False, "out_bias": False}


def _mistral_config(c):
    return {"sliding_window": c.window_of(0) or None, "attention_bias": ABSENT}


def _qwen(c):
    layers = range(c["num_hidden_layers"])
    window = c["sliding_window"] if c["use_sliding_window"] else None
    types = c.get("layer_types") or [
        SLIDING if window and layer >= c["max_window_layers"] else FULL for layer in layers
    ]
    return window_fields(types, window)


def _qwen_config(c):
    return {**types_of(c), "use_sliding_window": any(c.windows)}


def _qwen2(c):
    return {**_qwen(c), "qkv_bias": True, "out_bias": False}


def _qwen2_config(c):
    return {**_qwen_config(c), "attention_bias": ABSENT}


def _qwen3(c):
    return {**_qwen(c), "qk_norm": "head"}


def _smollm3(c):
    layers = range(c["num_hidden_layers"])
    interval = c["no_rope_layer_interval"]
    turned = c["no_rope_layers"] or [(layer + 1) % interval != 0 for layer in layers]
    window = c["sliding_window"] if c["use_sliding_window"] else None
    types = c.get("layer_types") or [
        SLIDING if window and not turned[layer] else FULL for layer in layers
    ]
    rotary_layers = period(map(bool, turned))
    return {
        **window_fields(types, window),
        "rotary_layers": () if all(rotary_layers) else rotary_layers,
    }


def _smollm3_config(c):
    turned = [int(c.has_rotary(layer)) for layer in range(c.num_layers)]
    return {**_qwen_config(c), "no_rope_layers": turned, "mlp_bias": c.mlp_bias}


def _gemma(c):
    # Published files say gelu, and mean the tanh form that the models were trained with.
    act = c["hidden_activation"] or c["hidden_act"]
    act = "gelu_pytorch_tanh" if act == "gelu" else act
    return {
        "activation": _activation({"hidden_act": act}, "hidden_act"),
        "scale_embeddings": True,
        "norm_offset": True,
    }


def _gemma2(c):
    scalar = c["query_pre_attn_scalar"]
    return {
        "activation": _activation(c, "hidden_activation"),
        "scale_embeddings": True,
        "norm_offset": True,
        "norm_place": "both",
        "attention_scalar": 0 if scalar == c["head_dim"] else scalar,
        "attention_cap": float(c["attn_logit_softcapping"] or 0.0),
        "logit_cap": float(c["final_logit_softcapping"] or 0.0),
        **window_fields(alternating(c, 2), c["sliding_window"]),
    }


def _gemma2_config(c):
    return {
        **types_of(c),
        "hidden_act": ABSENT,
        "hidden_activation": _ACTIVATION_NAMES[c.activation],
        "query_pre_attn_scalar": c.attention_scalar or c.head_dim,
        "attn_logit_softcapping": c.attention_cap or None,
        "final_logit_softcapping": c.logit_cap or None,
    }


def _gemma3(c):
    given = c.get("rope_parameters") or {}
    full, local = dict(given.get(FULL) or {}), dict(given.get(SLIDING) or {})
    full = dict(c.get("rope_scaling") or {}) | full
    full.setdefault("rope_theta", c["rope_theta"])
    kind = local.get("rope_type", "default")
    if kind != "default":
        raise UserError(f"config.json: got rope_type={kind!r} of {SLIDING}, expected 'default'")
    types = alternating(c, c["sliding_window_pattern"])
    theta = float(local.get("rope_theta", c["rope_local_base_freq"]))
    return {
        **_gemma2(c),
        **window_fields(types, c["sliding_window"]),
        **rotary_fields(c, full),
        "rope_local_theta": theta if SLIDING in types and c["sliding_window"] else 0.0,
        "qk_norm": "head",
    }


def _gemma3_config(c):
    return {**_gemma2_config(c), "rope_local_base_freq": c.rope_local_theta or c.rope_theta}


def _olmo2(c):
    return {"norm_place": "after", "qk_norm": "projection"}


def _neox(c):
    rope = dict(c.get("rope_parameters") or c.get("rope_scaling") or {})
    rope.setdefault("rope_theta", c["rotary_emb_base"])
    width = c["hidden_size"] // c["num_attention_heads"]
    turned = int(width * rope.get("partial_rotary_factor", c["rotary_pct"]))
    return {
        **rotary_fields(c, rope),
        "num_kv_heads": c["num_attention_heads"],
        "norm": "layer",
        "norm_epsilon": c["layer_norm_eps"],
        "mlp_bias": True,
        "gated_mlp": False,
        "parallel_blocks": bool(c["use_parallel_residual"]),
        "rotary_dim": 0 if turned == width else turned,
    }


def _neox_config(c):
    return {
        "num_key_value_heads": ABSENT,
        "head_dim": ABSENT,
        "rms_norm_eps": ABSENT,
        "rope_theta": ABSENT,
        "layer_norm_eps": c.norm_epsilon,
        "rotary_emb_base": c.rope_theta,
        "rotary_pct": (c.rotary_dim or c.head_dim) / c.head_dim,
        "use_parallel_residual": c.parallel_blocks,
    }


_LLAMA = {
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
_WINDOWS = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28}
_GEMMA = {
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
_GEMMA2 = _GEMMA | {
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
FAMILIES = {
    "llama": Family(
        "Llama", tables.LLAMA, _LLAMA, lambda c: {}, lambda c: {"mlp_bias": c.mlp_bias}
    ),
    "mistral": Family(
        "Mistral",
        tables.LLAMA,
        _LLAMA | {"num_key_value_heads": 8, "sliding_window": 4096},
        _mistral,
        _mistral_config,
    ),
    "qwen2": Family(
        "Qwen2",
        tables.LLAMA,
        _LLAMA | _WINDOWS | {"num_key_value_heads": 32},
        _qwen2,
        _qwen2_config,
    ),
    "qwen3": Family(
        "Qwen3",
        tables.QWEN3,
        _LLAMA | _WINDOWS | {"num_key_value_heads": 32, "head_dim": 128},
        _qwen3,
        _qwen_config,
    ),
    "gemma": Family(
        "Gemma",
        tables.LLAMA,
        _GEMMA | {"num_key_value_heads": 16},
        _gemma,
        lambda c: {"hidden_activation": _ACTIVATION_NAMES[c.activation]},
    ),
    "gemma2": Family(
        "Gemma2", tables.GEMMA2, _GEMMA2 | {"num_key_value_heads": 4}, _gemma2, _gemma2_config
    ),
    "gemma3_text": Family(
        "Gemma3Text",
        tables.GEMMA3,
        _GEMMA2
        | {
            "num_key_value_heads": 4,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "sliding_window_pattern": 6,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
        },
        _gemma3,
        _gemma3_config,
    ),
    "olmo2": Family(
        "Olmo2",
        tables.OLMO2,
        _LLAMA | {"rms_norm_eps": 1e-5},
        _olmo2,
        lambda c: {},
    ),
    "smollm3": Family(
        "SmolLM3",
        tables.LLAMA,
        _LLAMA
        | {
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
            "rope_theta": 2_000_000.0,
            "use_sliding_window": False,
            "sliding_window": None,
            "no_rope_layers": None,
            "no_rope_layer_interval": 4,
        },
        _smollm3,
        _smollm3_config,
    ),
    "gpt_neox": Family(
        "GPTNeoX",
        tables.NEOX,
        _LLAMA
        | {
            "hidden_act": "gelu",
            "attention_bias": True,
            "layer_norm_eps": 1e-5,
            "rotary_emb_base": 10_000.0,
            "rotary_pct": 0.25,
            "use_parallel_residual": True,
        },
        _neox,
        _neox_config,
    ),
}
