"""Weights under T5X's names: round trips, hand-placed values, mistakes."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pit_jax.errors import UserError
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel
from pit_jax.models.weights.t5x import (
    check_t5x_decoder,
    from_t5x_decoder,
    is_t5x_decoder,
    to_t5x_decoder,
)
from tests.tiny_models import TINY, abstract_params, random_params

CONFIG = dataclasses.replace(
    TINY,
    num_kv_heads=4,
    scale_attention=False,
    scale_logits=True,
    positions="relative",
)
UNTIED = dataclasses.replace(CONFIG, tied_embeddings=False, scale_logits=False)
# What T5X's decoder has, counted by hand from its source; a layer's names without `layers_N/`.
SHAPES = {
    "token_embedder/embedding": (16, 8),
    "relpos_bias/rel_embedding": (4, 32),
    "decoder_norm/scale": (8,),
    "logits_dense/kernel": (8, 16),
}
LAYER = {
    "pre_self_attention_layer_norm/scale": (8,),
    "self_attention/query/kernel": (8, 16),
    "self_attention/key/kernel": (8, 16),
    "self_attention/value/kernel": (8, 16),
    "self_attention/out/kernel": (16, 8),
    "pre_mlp_layer_norm/scale": (8,),
    "mlp/wi_0/kernel": (8, 12),
    "mlp/wi_1/kernel": (8, 12),
    "mlp/wo/kernel": (12, 8),
}


def shapes_of(config):
    return nn.unbox(abstract_params(LanguageModel(config)))


def t5x_weights(config, seed=0):
    """Random arrays under T5X's names."""
    shapes = {f"decoder/{name}": shape for name, shape in SHAPES.items()}
    if config.tied_embeddings:
        del shapes["decoder/logits_dense/kernel"]
    for layer in range(config.num_layers):
        shapes |= {f"decoder/layers_{layer}/{name}": shape for name, shape in LAYER.items()}
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@settings(max_examples=10)
@given(st.integers(1, 12), st.booleans(), st.integers(0, 99))
def test_round_trips_are_bit_identical(num_layers, tied, seed):
    config = dataclasses.replace(CONFIG if tied else UNTIED, num_layers=num_layers)
    flat, abstract = t5x_weights(config, seed), shapes_of(config)
    assert is_t5x_decoder(flat)
    params = from_t5x_decoder(flat, abstract)
    same = jax.tree.map(lambda x, y: (x.shape, x.dtype) == (y.shape, y.dtype), params, abstract)
    assert all(jax.tree.leaves(same)) and all(
        type(x) is np.ndarray for x in jax.tree.leaves(params)
    )
    back = to_t5x_decoder(params)
    assert back.keys() == flat.keys()
    for name, array in flat.items():
        np.testing.assert_array_equal(back[name], array)


def test_where_single_numbers_go():
    flat = t5x_weights(UNTIED)
    ours = from_t5x_decoder(flat, shapes_of(UNTIED))["decoder"]
    attention, mlp = ours["layers"]["attention"], ours["layers"]["mlp"]
    one, other = ({n: flat[f"decoder/layers_{i}/{n}"] for n in LAYER} for i in (0, 1))
    # Heads have 4 numbers: head 2's third is the joined dim's 10.
    assert attention["query"]["kernel"][1, 5, 2, 2] == other["self_attention/query/kernel"][5, 10]
    assert attention["key"]["kernel"][0, 7, 0, 3] == one["self_attention/key/kernel"][7, 3]
    assert attention["value"]["kernel"][1, 0, 3, 1] == other["self_attention/value/kernel"][0, 13]
    assert attention["out"]["kernel"][0, 1, 2, 6] == one["self_attention/out/kernel"][6, 6]
    assert mlp["gate"]["kernel"][1, 2, 11] == other["mlp/wi_0/kernel"][2, 11]
    assert mlp["up"]["kernel"][0, 2, 11] == one["mlp/wi_1/kernel"][2, 11]
    assert mlp["down"]["kernel"][0, 11, 2] == one["mlp/wo/kernel"][11, 2]
    norms = "attention_norm", "mlp_norm"
    assert [ours["layers"][name]["scale"][1, 4] for name in norms] == [
        other["pre_self_attention_layer_norm/scale"][4],
        other["pre_mlp_layer_norm/scale"][4],
    ]
    assert ours["embed"]["embedding"][9, 3] == flat["decoder/token_embedder/embedding"][9, 3]
    assert ours["relative_bias"][3, 30] == flat["decoder/relpos_bias/rel_embedding"][3, 30]
    assert ours["final_norm"]["scale"][6] == flat["decoder/decoder_norm/scale"][6]
    assert ours["unembed"]["kernel"][6, 15] == flat["decoder/logits_dense/kernel"][6, 15]


def test_types_become_ours():
    flat = {name: array.astype(np.float16) for name, array in t5x_weights(CONFIG).items()}
    params = from_t5x_decoder(flat, shapes_of(CONFIG))
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def without(name):
    return lambda flat: flat.pop(name)


def renamed(old, new):
    return lambda flat: flat.update({new: flat.pop(old)})


LAYER_1 = "decoder/layers_1/"


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (
            CONFIG,
            renamed(LAYER_1 + "mlp/wi_0/kernel", LAYER_1 + "mlp/wi/kernel"),
            "decoder/layers_1/mlp/wi/kernel: got shape (8, 12), expected wi_0 and wi_1, gated: "
            "mlp_activations ('gelu', 'linear') or ('silu', 'linear')",
        ),
        (
            CONFIG,
            without(LAYER_1 + "mlp/wo/kernel"),
            "decoder/layers_1/mlp/wo/kernel: got none, expected shape (12, 8)",
        ),
        (
            CONFIG,
            renamed("decoder/decoder_norm/scale", "decoder/encoder_norm/scale"),
            "decoder/encoder_norm/scale: got shape (8,), expected no such parameter",
        ),
        (
            CONFIG,
            lambda flat: flat.update({"decoder/logits_dense/kernel": np.zeros((8, 16))}),
            "decoder/logits_dense/kernel: got shape (8, 16), expected none with "
            "tied_embeddings=True",
        ),
        (
            UNTIED,
            without("decoder/logits_dense/kernel"),
            "decoder/logits_dense/kernel: got none, expected shape (8, 16)",
        ),
        (
            dataclasses.replace(CONFIG, num_layers=1),
            lambda flat: flat.update(t5x_weights(CONFIG)),
            "decoder/layers_1/mlp/wi_0/kernel: got shape (8, 12), expected none beyond num_layers",
        ),
        (
            dataclasses.replace(CONFIG, vocab_size=20),
            lambda flat: None,
            "decoder/token_embedder/embedding: got shape (16, 8), expected shape (20, 8)",
        ),
        (
            dataclasses.replace(CONFIG, head_dim=6),
            lambda flat: None,
            "decoder/layers_0/self_attention/key/kernel: got shape (8, 16), expected shape (8, 24)",
        ),
        (
            dataclasses.replace(CONFIG, positions="rotary"),
            lambda flat: None,
            "our decoder/relative_bias: got none, expected positions='relative'",
        ),
        (
            dataclasses.replace(CONFIG, num_kv_heads=2),
            lambda flat: None,
            "got num_kv_heads=2, expected 4, as num_heads",
        ),
    ],
)
def test_weights_that_do_not_fit(config, change, message):
    flat = t5x_weights(config)
    change(flat)
    with pytest.raises(UserError) as raised:
        from_t5x_decoder(flat, shapes_of(config))
    assert str(raised.value) == f"T5X weights: {message}"


def test_what_t5x_has_no_place_for():
    model = ScalarModel(CONFIG)
    with pytest.raises(UserError, match="our head/kernel: got a parameter that T5X's decoder has"):
        to_t5x_decoder(random_params(model))
    with pytest.raises(UserError, match="our decoder/relative_bias: got none"):
        to_t5x_decoder(random_params(LanguageModel(TINY)))
    params = random_params(LanguageModel(CONFIG))
    del params["decoder"]["final_norm"]
    with pytest.raises(UserError, match="our decoder/final_norm/scale: got none"):
        to_t5x_decoder(params)


def test_other_checkpoints_are_not_a_t5x_decoder():
    assert not is_t5x_decoder({"token_embedder/embedding": 0, "decoder/layers_0/mlp/wo/kernel": 0})
    assert not is_t5x_decoder({"model.embed_tokens.weight": 0})


def test_configs_that_compute_as_t5x_does():
    check_t5x_decoder(CONFIG)
    check_t5x_decoder(UNTIED)
    for field, value in (
        ("scale_attention", True),
        ("scale_logits", False),
        ("scale_embeddings", True),
        ("positions", "rotary"),
        ("num_kv_heads", 2),
        ("norm_epsilon", 1e-5),
        ("norm", "layer"),
        ("logit_cap", 30.0),
    ):
        other = dataclasses.replace(CONFIG, **{field: value})
        with pytest.raises(UserError, match=f"T5X weights: got {field}={value!r} of the network, "):
            check_t5x_decoder(other)
