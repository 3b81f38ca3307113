"""Content of `config.json` for a tiny model of each family, in the form of transformers 4."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pit_jax.models.weights.configs import network_of
from pit_jax.run import stages
from pit_jax.runtime.partitioning import MeshConfig, Partitioner

SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LINEAR = {"rope_type": "linear", "factor": 4.0}
CONFIGS = {
    "llama2": {"model_type": "llama", "num_key_value_heads": 4, "rms_norm_eps": 1e-5},
    "llama3": {"model_type": "llama", "rope_theta": 500.0, "rope_scaling": LLAMA3},
    "smollm2": {"model_type": "llama", "tie_word_embeddings": True},
    "llama_with_biases": {
        "model_type": "llama",
        "head_dim": 8,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_scaling": LINEAR,
    },
    "smollm3": {
        "model_type": "smollm3",
        "rope_theta": 500.0,
        "no_rope_layers": [1, 1, 0, 1],
        "pad_token_id": 0,
    },
    "mistral": {"model_type": "mistral", "head_dim": 8, "sliding_window": 5},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2_with_windows": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 2,
    },
    "qwen3": {"model_type": "qwen3", "head_dim": 8},
    "gemma": {"model_type": "gemma", "head_dim": 8, "num_key_value_heads": 1},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 8,
        "query_pre_attn_scalar": 24,
        "sliding_window": 5,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 5.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 8,
        "sliding_window": 5,
        "sliding_window_pattern": 3,
        "rope_theta": 1000.0,
        "rope_local_base_freq": 50.0,
        "rope_scaling": LINEAR,
        "query_pre_attn_scalar": 8,
    },
    "olmo2": {"model_type": "olmo2", "pad_token_id": 0},
    "pythia": {"model_type": "gpt_neox", "rotary_pct": 0.5, "rotary_emb_base": 100.0},
    "neox_in_turn": {
        "model_type": "gpt_neox",
        "rotary_pct": 1.0,
        "use_parallel_residual": False,
        "attention_bias": False,
    },
}
CONFIGS = {name: SIZES | {"rope_theta": 100.0} | config for name, config in CONFIGS.items()}
for _name in ("pythia", "neox_in_turn"):
    del CONFIGS[_name]["num_key_value_heads"], CONFIGS[_name]["rope_theta"]


def network(name):
    """The network of a tiny model, float32."""
    return network_of(CONFIGS[name], "float32", "none")


def partitioner(model=1, devices=1):
    return Partitioner(MeshConfig(model=model), jax.devices()[:devices])


def abstract(network, mesh=None, scalar=False):
    """Shapes and shardings of its parameters."""
    init = stages.init_scalar_model if scalar else stages.init_language_model
    return stages.abstract_model(init(network), mesh or partitioner())


def rows():
    """Two left-padded rows: tokens, and how many of them are padding."""
    tokens = (jnp.arange(24).reshape(2, 12) * 7) % 38 + 2
    padding = jnp.array([5, 0])
    return jnp.where(jnp.arange(12)[None] < padding[:, None], 0, tokens), padding
