"""The network against T5X's decoder-only example, with the same weights. Needs T5X."""

from __future__ import annotations

import dataclasses
import functools

import pytest

pytest.importorskip("t5x")

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from t5x.examples.decoder_only import layers, network

from pit_jax.method import decode
from pit_jax.models.attention import CausalRows, causal_mask, relative_buckets
from pit_jax.models.network import LanguageModel
from pit_jax.models.weights.t5x import (
    check_t5x_decoder,
    from_t5x_decoder,
    is_t5x_decoder,
    to_t5x_decoder,
)
from tests.tiny_models import TINY, abstract_params

pytestmark = pytest.mark.t5x

T = 200  # past the largest distance
CONFIG = dataclasses.replace(
    TINY,
    vocab_size=64,
    embed_dim=32,
    num_layers=3,
    num_kv_heads=4,
    head_dim=16,
    mlp_dim=48,
    activation="gelu",
    scale_attention=False,
    scale_logits=True,
    positions="relative",
)
CONFIGS = {
    "tied": CONFIG,
    "untied": dataclasses.replace(CONFIG, tied_embeddings=False, scale_logits=False),
    "silu": dataclasses.replace(CONFIG, activation="silu"),
}


def theirs(config):
    return network.DecoderWrapper(
        network.TransformerConfig(
            vocab_size=config.vocab_size,
            dtype=config.dtype,
            emb_dim=config.embed_dim,
            num_heads=config.num_heads,
            num_layers=config.num_layers,
            head_dim=config.head_dim,
            mlp_dim=config.mlp_dim,
            mlp_activations=(config.activation, "linear"),
            dropout_rate=0.0,
            logits_via_embedding=config.tied_embeddings,
        )
    )


@functools.cache
def their_params(config):
    """As T5X makes them, but norms that aren't all 1."""
    tokens = jnp.ones((1, 4), jnp.int32)
    with jax.numpy_rank_promotion("allow"):
        init = functools.partial(theirs(config).init, enable_dropout=False)
        params = jax.jit(init)(jax.random.key(0), tokens, tokens)
    flat = flax.traverse_util.flatten_dict(nn.unbox(params["params"]), sep="/")
    rng = np.random.default_rng(0)
    return {
        name: np.asarray(x) * (rng.uniform(0.5, 1.5, x.shape) if name.endswith("scale") else 1)
        for name, x in flat.items()
    }


def their_logits(config, flat, inputs, targets, **packing):
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    with jax.numpy_rank_promotion("allow"):
        apply = functools.partial(theirs(config).apply, enable_dropout=False)
        return jax.jit(apply)({"params": params}, inputs, targets, **packing)


def our_logits(config, params, inputs, segments):
    rows = CausalRows(jnp.asarray(segments, jnp.int32))
    positions = jnp.zeros(inputs.shape, jnp.int32)  # nothing reads them
    return jax.jit(LanguageModel(config).apply)({"params": params}, inputs, positions, rows)


def rows(packed):
    """Input tokens (shifted right within each segment), targets and segments [2, T]."""
    rng = np.random.default_rng(1)
    targets = rng.integers(1, 64, (2, T))
    segments = np.ones((2, T), np.int32)
    if packed:
        segments[0, 30:] = 2
        segments[0, 180:] = 3
        segments[1, 5:] = 2
    segments[1, 190:] = 0
    targets = targets * (segments > 0)
    starts = np.diff(segments, axis=1, prepend=0) != 0
    inputs = np.where(starts, 0, np.roll(targets, 1, axis=1))
    positions = np.arange(T)[None] - np.maximum.accumulate(starts * np.arange(T)[None], axis=1)
    return inputs, targets, segments, positions


def error(one, other, segments):
    return np.abs(np.asarray(one) - np.asarray(other))[segments > 0].max()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_theirs(name, packed):
    config = CONFIGS[name]
    check_t5x_decoder(config)
    flat = their_params(config)
    assert is_t5x_decoder(flat)
    params = from_t5x_decoder(flat, nn.unbox(abstract_params(LanguageModel(config))))
    inputs, targets, segments, positions = rows(packed)
    packing = {"decoder_segment_ids": segments, "decoder_positions": positions} if packed else {}
    expected = their_logits(config, flat, inputs, targets, **packing)
    found = our_logits(config, params, inputs, segments)
    assert np.abs(expected).max() > 1
    print(f"{name}, packed={packed}: {error(found, expected, segments):.2e}")
    assert error(found, expected, segments) < 1e-5


@pytest.mark.parametrize("name", ["tied", "untied"])
def test_our_weights_give_them_our_logits(name):
    config = CONFIGS[name]
    inputs, targets, segments, positions = rows(packed=False)
    init = jax.jit(LanguageModel(config).init)
    params = nn.unbox(init(jax.random.key(1), inputs, positions, causal_mask(segments)))["params"]
    flat = to_t5x_decoder(params)
    assert {k: v.shape for k, v in flat.items()} == {
        k: v.shape for k, v in their_params(config).items()
    }
    expected = our_logits(config, params, inputs, segments)
    found = their_logits(config, flat, inputs, targets)
    assert error(found, expected, segments) < 1e-5


def test_gradients_are_theirs():
    inputs, targets, segments, _ = rows(packed=False)
    flat = their_params(CONFIG)
    params = from_t5x_decoder(flat, nn.unbox(abstract_params(LanguageModel(CONFIG))))
    real = jnp.asarray(segments > 0)[..., None]

    def total(logits):
        return jnp.sum(jnp.where(real, jnp.sin(logits), 0)) / T

    found = jax.grad(lambda p: total(our_logits(CONFIG, p, inputs, segments)))(params)
    expected = jax.grad(lambda f: total(their_logits(CONFIG, f, inputs, targets)))(flat)
    found = to_t5x_decoder(found)
    for name, gradient in expected.items():
        size = np.abs(gradient).max()
        assert size > 0
        np.testing.assert_allclose(found[name], gradient, atol=2e-5 * size, err_msg=name)


def test_buckets_are_theirs():
    with jax.numpy_rank_promotion("allow"):
        expected = layers.RelativePositionBiases._relative_position_bucket(
            np.arange(-600, 1), bidirectional=False, num_buckets=32, max_distance=128
        )
    found = relative_buckets(jnp.ones((1, 1, 601), bool))[0, 0]
    np.testing.assert_array_equal(found, expected)


def test_decoding_is_their_teacher_forcing():
    """Our cache, with left-padded prompts, against T5X's passes over unpadded rows."""
    flat = their_params(CONFIG)
    params = from_t5x_decoder(flat, nn.unbox(abstract_params(LanguageModel(CONFIG))))
    params = jax.tree.map(jnp.asarray, params)
    prompts = [[5, 6, 7], [9, 10, 11, 12, 13, 14]]
    padded = jnp.asarray([[0] * (6 - len(prompt)) + prompt for prompt in prompts])
    keys = decode.row_keys(jax.random.key(0), jnp.arange(2))
    generation = decode.generate(
        LanguageModel(CONFIG), params, padded, keys, 30, decode.SamplingConfig(top_k=8)
    )
    for prompt, response, mask, log_probs in zip(
        prompts, generation.tokens_BR, generation.mask_BR, generation.log_probs_BR
    ):
        tokens = np.array([*prompt, *np.asarray(response)[np.asarray(mask)]])
        assert len(tokens) > len(prompt) + 10
        inputs = tokens[None, :-1]
        logits = their_logits(CONFIG, flat, inputs, np.ones_like(inputs))[0]
        expected = jax.nn.log_softmax(logits)[np.arange(len(tokens) - 1), tokens[1:]]
        np.testing.assert_allclose(
            np.asarray(log_probs)[np.asarray(mask)], expected[len(prompt) - 1 :], atol=2e-5
        )
