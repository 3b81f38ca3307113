"""What config.json says, for every family: read, written, refused."""

from __future__ import annotations

import dataclasses

import pytest

from pit_jax.errors import UserError
from pit_jax.models.weights.configs import config_of, model_type_of, network_of
from tests.models.weights.tiny_families import CONFIGS, LINEAR, LLAMA3, network

# What sets a family apart from Llama 2, by its own paper or code.
FIELDS = {
    "llama2": {"norm_epsilon": 1e-5},
    "llama3": {
        "rope_theta": 500.0,
        "rope_factor": 8.0,
        "rope_original_length": 32,
        "rope_low": 1.0,
        "rope_high": 4.0,
    },
    "smollm2": {"tied_embeddings": True},
    "llama_with_biases": {
        "head_dim": 8,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "rope_factor": 4.0,
    },
    "smollm3": {
        "tied_embeddings": True,
        "rope_theta": 500.0,
        "rotary_layers": (True, True, False),
    },
    "mistral": {"head_dim": 8, "windows": (5,)},
    "qwen2": {"tied_embeddings": True, "qkv_bias": True},
    "qwen2_with_windows": {"qkv_bias": True, "windows": (0, 0, 5, 5)},
    "qwen3": {"head_dim": 8, "qk_norm": "head"},
    "gemma": {
        "head_dim": 8,
        "num_kv_heads": 1,
        "activation": "gelu",
        "tied_embeddings": True,
        "scale_embeddings": True,
        "norm_offset": True,
    },
    "gemma2": {
        "head_dim": 8,
        "activation": "gelu",
        "tied_embeddings": True,
        "scale_embeddings": True,
        "norm_offset": True,
        "norm_place": "both",
        "windows": (5, 0),
        "attention_scalar": 24,
        "attention_cap": 2.0,
        "logit_cap": 5.0,
    },
    "gemma3": {
        "head_dim": 8,
        "activation": "gelu",
        "tied_embeddings": True,
        "scale_embeddings": True,
        "norm_offset": True,
        "norm_place": "both",
        "qk_norm": "head",
        "windows": (5, 5, 0),
        "rope_theta": 1000.0,
        "rope_local_theta": 50.0,
        "rope_factor": 4.0,
    },
    "olmo2": {"norm_epsilon": 1e-5, "norm_place": "after", "qk_norm": "projection"},
    "pythia": {
        "activation": "gelu_exact",
        "norm": "layer",
        "norm_epsilon": 1e-5,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "gated_mlp": False,
        "parallel_blocks": True,
        "rotary_dim": 2,
    },
    "neox_in_turn": {
        "activation": "gelu_exact",
        "norm": "layer",
        "norm_epsilon": 1e-5,
        "mlp_bias": True,
        "gated_mlp": False,
        "rope_theta": 10_000.0,
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_family_varies(name):
    llama = dataclasses.replace(
        network("llama2"),
        num_kv_heads=CONFIGS[name].get("num_key_value_heads", 4),
        norm_epsilon=1e-6,
    )
    assert network(name) == dataclasses.replace(llama, **FIELDS[name])


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_is_read_again(name):
    model_type = CONFIGS[name]["model_type"]
    written = config_of(network(name), model_type)
    assert network_of(written, "float32", "none") == network(name)
    assert model_type_of(network(name)) in (model_type, "llama")


def test_the_form_of_transformers_5():
    """One dict has all of the rotary positions."""
    llama = CONFIGS["llama3"] | {"rope_parameters": LLAMA3 | {"rope_theta": 500.0}}
    del llama["rope_theta"], llama["rope_scaling"]
    assert network_of(llama, "float32", "none") == network("llama3")
    gemma = CONFIGS["gemma3"] | {
        "rope_parameters": {
            "full_attention": LINEAR | {"rope_theta": 1000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
        "layer_types": 2 * (2 * ["sliding_attention"] + ["full_attention"]),
    }
    gemma["layer_types"] = gemma["layer_types"][:4]
    for field in ("rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern"):
        del gemma[field]
    assert network_of(gemma, "float32", "none") == network("gemma3")
    pythia = CONFIGS["pythia"] | {
        "rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.5}
    }
    del pythia["rotary_pct"], pythia["rotary_emb_base"]
    assert network_of(pythia, "float32", "none") == network("pythia")


def test_gemmas_gelu_is_by_tanh():
    for config in ({"hidden_act": "gelu"}, {"hidden_act": "gelu", "hidden_activation": None}):
        assert network_of(CONFIGS["gemma"] | config).activation == "gelu"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("llama2", {"model_type": "gpt2"}, "got model_type='gpt2', expected one of llama, mistral"),
        ("llama2", {"model_type": None}, "got model_type=None, expected one of llama, "),
        ("llama2", {"hidden_act": "relu"}, "got hidden_act='relu', expected one of silu, "),
        ("gemma2", {"hidden_activation": "relu"}, "got hidden_activation='relu', expected one"),
        (
            "llama2",
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
            "got rope_type='yarn', expected one of default, linear, llama3",
        ),
        ("llama2", {"rope_scaling": {"type": "dynamic"}}, "got rope_type='dynamic', expected"),
        ("llama2", {"partial_rotary_factor": 0.5}, "got partial_rotary_factor=0.5, expected 1"),
        (
            "qwen3",
            {"layer_types": 4 * ["chunked"]},
            "got 'chunked' in layer_types, expected",
        ),
        (
            "gemma3",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}},
            "got rope_type='linear' of sliding_attention, expected 'default'",
        ),
        (
            "gemma3",
            {"use_bidirectional_attention": True},
            "got use_bidirectional_attention=True",
        ),
        ("llama2", {"quantization_config": {}}, "got quantization_config={}, expected none"),
    ],
)
def test_what_is_not_computed_is_refused(name, change, message):
    with pytest.raises(UserError) as raised:
        network_of(CONFIGS[name] | change)
    assert str(raised.value).startswith(f"config.json: {message}")


def test_a_field_that_is_missing_is_named():
    config = dict(CONFIGS["qwen3"])
    del config["hidden_size"]
    with pytest.raises(UserError, match=r"config.json: got no hidden_size, which qwen3 needs"):
        network_of(config)


@pytest.mark.parametrize(
    ("name", "model_type", "message"),
    [
        ("gemma2", "llama", "llama weights: got scale_embeddings=True of the network, ex"),
        ("pythia", "gpt_neox", None),
        ("qwen3", "llama", "llama weights: got qk_norm='head' of the network, expected 'none'"),
        ("llama3", "mistral", None),
        ("qwen2", "llama", "llama weights: got qkv_bias=True of the network, expected False"),
        ("mistral", "llama", r"llama weights: got windows=\(5,\) of the network, expected \(0,\)"),
        ("smollm3", "qwen3", "qwen3 weights: got qk_norm='none' of the network, expected 'head'"),
    ],
)
def test_a_family_writes_only_what_it_computes(name, model_type, message):
    if message is None:
        assert config_of(network(name), model_type)["model_type"] == model_type
        return
    with pytest.raises(UserError, match=message):
        config_of(network(name), model_type)


def test_a_network_of_no_family():
    other = dataclasses.replace(network("llama2"), norm_place="both", rotary_dim=2)
    with pytest.raises(UserError, match="no family of llama, .* computes what this network does"):
        model_type_of(other)
