"""Layers against float64 NumPy and by hand."""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.method.losses import sft_loss
from pit_jax.models.layers import MLP, Dense, Embed, RMSNorm, look_up
from pit_jax.models.network import LanguageModel
from pit_jax.models.rotary import frequencies, frequencies_of_layers, rotary
from tests import reference
from tests.tiny_models import TINY, inputs_of, random_params


def theta(base, width):
    """Frequencies of heads of a width."""
    return frequencies(dataclasses.replace(TINY, head_dim=width, rope_theta=base))


def test_rotary_turns_each_pair_by_its_angle():
    x = jnp.array([1.0, 2.0, 0.0, 0.0]).reshape(1, 1, 1, 4)
    turned = rotary(x, jnp.array([[3]]), theta(100.0, 4))
    # Pair (x0, x2) turns by 3, pair (x1, x3) by 3 / 100^(1/2).
    expected = [math.cos(3), 2 * math.cos(0.3), math.sin(3), 2 * math.sin(0.3)]
    np.testing.assert_allclose(turned[0, 0, 0], expected, atol=1e-6)


def test_rotary_matches_numpy():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 2, 6)).astype(np.float32)
    positions = np.array([[0, 1, 2], [5, 40, 700]], np.int32)
    turned = rotary(jnp.asarray(x), jnp.asarray(positions), theta(10_000.0, 6))
    for b, t, h in np.ndindex(2, 3, 2):
        expected = reference.rotate(x[b, t, h].astype(np.float64), positions[b, t], 10_000.0)
        # The angle, up to 700, is known to 6e-5 in float32.
        np.testing.assert_allclose(turned[b, t, h], expected, atol=2e-4)
    np.testing.assert_array_equal(turned[0, 0], x[0, 0])  # position 0 turns nothing


def test_the_first_numbers_of_a_head_turn_alone():
    x = jnp.array([1.0, 0.0, 5.0, 6.0]).reshape(1, 1, 1, 4)
    turned = rotary(x, jnp.array([[3]]), jnp.array([0.5]))
    np.testing.assert_allclose(turned[0, 0, 0], [math.cos(1.5), math.sin(1.5), 5, 6], atol=1e-6)


def test_frequencies_by_hand():
    """theta 16 and 8 pairs: 1, 0.7071, 0.5, …, which are 10.2, 7.2, 5.1, … turns in 64 tokens."""
    config = dataclasses.replace(TINY, head_dim=16, rope_theta=16.0)
    plain = [2 ** (-i / 2) for i in range(8)]
    np.testing.assert_allclose(frequencies(config), plain, rtol=1e-6)
    linear = dataclasses.replace(config, rope_factor=4.0)
    np.testing.assert_allclose(frequencies(linear), np.array(plain) / 4, rtol=1e-6)
    turns = [64 * frequency / (2 * math.pi) for frequency in plain]  # 5.09 of pair 2, 1.8 of pair 5
    llama = dataclasses.replace(linear, rope_original_length=64, rope_low=2.0, rope_high=5.0)
    share = (turns[3] - 2) / 3  # 3.6 turns
    found = np.asarray(frequencies(llama), np.float64)
    np.testing.assert_allclose(found[:3], plain[:3], rtol=1e-6)
    assert found[3] == pytest.approx(plain[3] * (share + (1 - share) / 4), rel=1e-6)
    np.testing.assert_allclose(found[5:], np.array(plain[5:]) / 4, rtol=1e-6)


def test_layers_have_frequencies_of_their_own_where_they_differ():
    assert frequencies_of_layers(dataclasses.replace(TINY, windows=(4, 0))) is None
    config = dataclasses.replace(
        TINY,
        num_layers=4,
        windows=(4, 0),
        rope_local_theta=9.0,
        rope_factor=2.0,
        rotary_layers=(True, True, False),
    )
    # theta 9 with a window, 100 halved without; none in layer 2. A head has 2 pairs.
    expected = [[1, 1 / 3], [1 / 2, 1 / 20], [0, 0], [1 / 2, 1 / 20]]
    np.testing.assert_allclose(frequencies_of_layers(config), expected, rtol=1e-6)


def test_rotary_scores_depend_on_distance_only():
    rng = np.random.default_rng(1)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def score(m, n):
        turned = [rotary(x, jnp.array([[at]]), theta(50.0, 8)) for x, at in ((q, m), (k, n))]
        return float(jnp.sum(turned[0] * turned[1]))

    assert score(7, 4) == pytest.approx(score(23, 20), abs=1e-5)
    assert abs(score(7, 4) - score(7, 5)) > 1e-3


def test_rotary_keeps_the_type_and_computes_in_float32():
    x = jnp.asarray(np.random.default_rng(2).normal(size=(1, 1, 1, 8)), jnp.bfloat16)
    position = jnp.array([[301]])
    turned = rotary(x, position, theta(10_000.0, 8))
    assert turned.dtype == jnp.bfloat16
    exact = rotary(x.astype(jnp.float32), position, theta(10_000.0, 8))
    np.testing.assert_array_equal(turned, exact.astype(jnp.bfloat16))


def test_rms_norm_matches_numpy_at_any_size():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(2, 3, 8)).astype(np.float32) * np.array([[[1e-3]], [[1e3]]], np.float32)
    scale = rng.normal(size=8).astype(np.float32)
    out = RMSNorm(1e-6, "float32").apply({"params": {"scale": scale}}, x)
    expected = reference.rms_norm(x.astype(np.float64), scale.astype(np.float64), 1e-6)
    np.testing.assert_allclose(out, expected, rtol=2e-6)


def test_rms_norm_of_bfloat16_is_computed_in_float32():
    x = jnp.asarray(np.random.default_rng(4).normal(size=(1, 1, 64)), jnp.bfloat16)
    params = {"params": {"scale": jnp.ones(64)}}
    out = RMSNorm(1e-6, "bfloat16").apply(params, x)
    exact = RMSNorm(1e-6, "float32").apply(params, x.astype(jnp.float32))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))


def test_dense_contracts_the_last_dims():
    rng = np.random.default_rng(5)
    x, kernel = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(4, 5, 6))
    out = Dense((4, 5, 6), ("heads", "kv", "embed"), 2, "float32").apply(
        {"params": {"kernel": kernel.astype(np.float32)}}, jnp.asarray(x, jnp.float32)
    )
    np.testing.assert_allclose(out, np.einsum("btij,ijk->btk", x, kernel), atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "num_inputs", "fan_in"), [((64, 8, 16), 1, 64), ((8, 16, 64), 2, 128)]
)
def test_dense_starts_with_variance_one_over_its_inputs(shape, num_inputs, fan_in):
    dense = Dense(shape, ("a", "b", "c"), num_inputs, "float32")
    x = jnp.zeros((1, *shape[:num_inputs]))
    kernel = nn.unbox(dense.init(jax.random.key(0), x))["params"]["kernel"]
    # 8192 draws: the sample variance is known to 1.6 %.
    assert float(kernel.var()) == pytest.approx(1 / fan_in, rel=0.08)


def test_embedding_starts_with_variance_one_over_the_width():
    config = dataclasses.replace(TINY, vocab_size=512, embed_dim=32)
    variables = Embed(config).init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    embedding = nn.unbox(variables)["params"]["embedding"]
    assert float(embedding.var()) == pytest.approx(1 / 32, rel=0.05)


@pytest.mark.parametrize(("scaled", "factor"), [(False, 1.0), (True, math.sqrt(8))])
def test_embedding_looks_up_rows(scaled, factor):
    embedding = np.random.default_rng(6).normal(size=(16, 8)).astype(np.float32)
    config = dataclasses.replace(TINY, scale_embeddings=scaled)
    out = Embed(config).apply({"params": {"embedding": embedding}}, jnp.array([[3, 15]]))
    np.testing.assert_allclose(out[0], embedding[[3, 15]] * factor, rtol=1e-6)


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_gated_mlp_matches_numpy(activation):
    rng = np.random.default_rng(7)
    x = rng.normal(size=(1, 2, 8))
    kernels = {
        "gate": rng.normal(size=(8, 12)),
        "up": rng.normal(size=(8, 12)),
        "down": rng.normal(size=(12, 8)),
    }
    out = MLP(dataclasses.replace(TINY, activation=activation)).apply(
        {"params": {name: {"kernel": k.astype(np.float32)} for name, k in kernels.items()}},
        jnp.asarray(x, jnp.float32),
    )
    gate = getattr(reference, activation)(x @ kernels["gate"])
    expected = (gate * (x @ kernels["up"])) @ kernels["down"]
    # Sums of a dozen products, of size 10 to 30.
    np.testing.assert_allclose(out, expected, atol=5e-5)


BIASES = {"qkv_bias": True, "out_bias": True, "mlp_bias": True, "norm": "layer", "qk_norm": "head"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"tied_embeddings": False, "positions": "relative"}, marks=pytest.mark.slow),
        BIASES,
    ],
)
def test_gradients_of_4096_repetitions_survive_bfloat16(changes):
    """Every parameter's, against float32: a token that comes 4,096 times lost 0.88 of its own."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, TINY.vocab_size, size=(64, 128))
    tokens[:, ::2] = 3
    assert (tokens == 3).sum() >= 4096
    network = dataclasses.replace(TINY, num_layers=1, **changes)
    params = random_params(LanguageModel(network), 1)
    inputs = jnp.asarray(tokens), *inputs_of(np.ones_like(tokens))

    def gradients(dtype):
        model = LanguageModel(dataclasses.replace(network, dtype=dtype))

        def loss(params):
            logits = model.apply({"params": params}, *inputs)
            return sft_loss(logits, inputs[0], jnp.ones(tokens.shape))[0] / tokens.size

        return jax.tree_util.tree_flatten_with_path(jax.jit(jax.grad(loss))(params))[0]

    for (path, exact), (_, rounded) in zip(gradients("float32"), gradients("bfloat16")):
        exact, rounded = (np.asarray(x, np.float64) for x in (exact, rounded))
        error = np.linalg.norm(rounded - exact) / np.linalg.norm(exact)
        assert error < 0.15, f"{jax.tree_util.keystr(path)}: {error:.2f}"


def test_the_gradient_of_a_look_up_is_summed_in_the_tables_type():
    table, ids = jnp.ones((3, 2)), jnp.ones((4096, 1), jnp.int32)
    gradient = jax.grad(lambda t: jnp.sum(look_up(t, ids, "bfloat16").astype(jnp.float32)))(table)
    np.testing.assert_array_equal(gradient, [[0, 0], [4096, 4096], [0, 0]])
    assert look_up(table, ids, "bfloat16").dtype == jnp.bfloat16
