"""The optimizer against AdamW in float64, its schedule, and skipped steps."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.models.network import LanguageModel
from pit_jax.runtime.partitioning import MeshConfig, Partitioner
from pit_jax.runtime.train_state import OptimizerConfig, TrainState
from tests import reference
from tests.tiny_models import TINY, abstract_params

CONFIG = OptimizerConfig(
    learning_rate=0.1,
    warmup_steps=2,
    decay_steps=6,
    final_fraction=0.1,
    b1=0.8,
    b2=0.9,
    epsilon=1e-3,
    weight_decay=0.05,
    clip_norm=1.5,
)


def start(config=CONFIG):
    rng = np.random.default_rng(0)
    params = {"a": rng.normal(size=(3, 2)), "b": rng.normal(size=4)}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    return TrainState.create(params, config.build())


def gradients(seed, scale):
    rng = np.random.default_rng(seed)
    return {
        "a": (scale * rng.normal(size=(3, 2))).astype(np.float32),
        "b": (scale * rng.normal(size=4)).astype(np.float32),
    }


apply = jax.jit(lambda state, grads: state.apply_gradients(grads, jnp.float32(0)))


def test_steps_match_numpy_adamw():
    state = start()
    expected = jax.tree.map(lambda x: np.asarray(x, np.float64), state.params)
    adam = reference.AdamW(0.8, 0.9, 1e-3, 0.05, 1.5)
    for step in range(8):
        # Above and below the clipping norm in turns.
        grads = gradients(step, scale=(3.0, 0.1)[step % 2])
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grads.values()))
        assert (norm > 1.5) == (step % 2 == 0)
        state, metrics = apply(state, grads)
        rate = reference.learning_rate(step, 0.1, 2, 6, 0.1)
        grads = {name: g.astype(np.float64) for name, g in grads.items()}
        expected = adam.update(expected, grads, rate)
        assert float(metrics["grad_norm"][0]) == pytest.approx(norm, rel=1e-6)
        for name, value in expected.items():
            # Each step moves by about 0.1 and is rounded to 1e-7 of that.
            np.testing.assert_allclose(state.params[name], value, atol=2e-6)
    assert int(state.step) == 8
    assert int(state.skipped) == 0


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, {0: 1.0, 1: 1.0, 1000: 1.0}),
        ({"warmup_steps": 4}, {0: 0.25, 4: 1.0, 5: 1.0, 1000: 1.0}),
        ({"decay_steps": 10}, {0: 1.0, 5: 0.5, 10: 0.0, 1000: 0.0}),
        (
            {"warmup_steps": 4, "decay_steps": 12, "final_fraction": 0.2},
            {0: 0.25, 4: 1.0, 8: 0.6, 12: 0.2, 1000: 0.2},
        ),
    ],
)
def test_schedule(values, expected):
    schedule = OptimizerConfig(learning_rate=1.0, **values).schedule()
    for step, rate in expected.items():
        assert float(schedule(step)) == pytest.approx(rate, abs=1e-6), step
    warmup = values.get("warmup_steps", 0)
    rates = [float(schedule(step)) for step in range(warmup + 1)]
    np.testing.assert_allclose(np.diff(rates, 2), 0, atol=1e-6)  # the warm-up is a straight line


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_but_the_counters(bad):
    state, _ = apply(start(), gradients(0, 1.0))
    grads = gradients(1, 1.0)
    grads["b"][2] = bad
    after, metrics = apply(state, grads)
    for old, new in ((state.params, after.params), (state.opt_state, after.opt_state)):
        jax.tree.map(np.testing.assert_array_equal, old, new)
    assert (int(after.step), int(after.skipped), int(after.skipped_in_row)) == (2, 1, 1)
    assert [float(x) for x in metrics["grad_norm"]] == [0, 0]
    assert [float(x) for x in metrics["skipped_steps"]] == [1, 1]


def test_a_step_whose_loss_is_not_finite_changes_no_parameter():
    state = start()
    after, _ = jax.jit(TrainState.apply_gradients)(state, gradients(0, 1.0), jnp.float32(np.nan))
    jax.tree.map(np.testing.assert_array_equal, state.params, after.params)
    assert int(after.skipped) == 1


def test_skipped_in_row_counts_up_and_resets_and_training_goes_on():
    state = start()
    bad = jax.tree.map(lambda g: g * np.nan, gradients(0, 1.0))
    history = []
    for grads in (bad, bad, gradients(0, 1.0), bad, gradients(1, 1.0)):
        state, _ = apply(state, grads)
        history.append((int(state.step), int(state.skipped), int(state.skipped_in_row)))
    assert history == [(1, 1, 1), (2, 2, 2), (3, 2, 0), (4, 3, 1), (5, 3, 0)]
    # The good steps alone lead to the very same state.
    straight = start()
    for seed in (0, 1):
        straight, _ = apply(straight, gradients(seed, 1.0))
    jax.tree.map(np.testing.assert_array_equal, state.params, straight.params)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, straight.opt_state)


def test_counters_are_buffers_of_their_own():
    state = start()
    counters = (state.step, state.skipped, state.skipped_in_row)
    assert all(c.dtype == jnp.int32 for c in counters)
    assert len({c.unsafe_buffer_pointer() for c in counters}) == 3  # each can be donated


def test_moments_keep_the_axes_of_their_parameters():
    boxed = abstract_params(LanguageModel(TINY))
    optimizer = CONFIG.build()
    state = jax.eval_shape(lambda p: TrainState.create(p, optimizer), boxed)

    def names(tree):
        leaves = jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
        return [x.names for x in leaves if isinstance(x, nn.LogicallyPartitioned)]

    assert names(state.opt_state) == 2 * names(boxed)  # first and second moments


def test_every_field_of_the_config_changes_the_result():
    changes = {
        "learning_rate": 0.2,
        "warmup_steps": 3,
        "decay_steps": 9,
        "final_fraction": 0.5,
        "b1": 0.5,
        "b2": 0.5,
        "epsilon": 0.1,
        "weight_decay": 0.5,
        "clip_norm": 0.01,
        "kind": "adafactor",
    }
    assert set(changes) == {field.name for field in dataclasses.fields(OptimizerConfig)}

    steps = [gradients(seed, 1.0) for seed in range(4)]

    def final(config):
        @jax.jit
        def train(params, steps):
            state = TrainState.create(params, config.build())
            for grads in steps:
                state, _ = state.apply_gradients(grads, jnp.float32(0))
            return state.params["a"]

        return train(start().params, steps)

    base = final(dataclasses.replace(CONFIG, weight_decay=0.0))
    for name, value in changes.items():
        other = dataclasses.replace(CONFIG, **{"weight_decay": 0.0, name: value})
        assert not np.allclose(final(other), base), name


def test_adafactor_keeps_one_row_and_one_column_of_a_matrix():
    """Against the paper's update (Algorithm 4 of Shazeer and Stern, 2018) in float64."""
    rng = np.random.default_rng(0)
    value, grad = rng.normal(size=(2, 128, 160))
    config = OptimizerConfig(learning_rate=0.01, clip_norm=1e9, kind="adafactor")
    params = {"w": jnp.asarray(value, jnp.float32)}
    state = TrainState.create(params, config.build())
    kept = sum(x.size for x in jax.tree.leaves(state.opt_state))
    assert kept < 128 + 160 + 10
    state, _ = apply(state, {"w": jnp.asarray(grad, jnp.float32)})
    square = grad**2 + 1e-30  # of the first step, whose decay is 0
    second = np.outer(square.mean(1), square.mean(0)) / square.mean()
    update = grad / np.sqrt(second)
    update /= max(1.0, np.sqrt(np.mean(update**2)))
    size = max(1e-3, np.sqrt(np.mean(value**2)))
    np.testing.assert_allclose(state.params["w"], value - 0.01 * size * update, rtol=2e-5)


@pytest.mark.mesh
def test_adafactors_state_is_placed_on_a_mesh():
    config = dataclasses.replace(TINY, embed_dim=128, mlp_dim=128)
    partitioner = Partitioner(MeshConfig(model=2))
    boxed = abstract_params(LanguageModel(config))
    optimizer = OptimizerConfig(kind="adafactor").build()
    state = jax.eval_shape(lambda p: TrainState.create(p, optimizer), boxed)
    shardings = partitioner.tree_shardings(state)
    shapes = nn.meta.unbox(state)
    factored = 0
    for x, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True):
        sharding.shard_shape(x.shape)  # fits
        factored += x.ndim == 2 and x.shape == (config.num_layers, 128)
    assert factored >= 6  # rows and columns of the MLP's three matrices, a layer each


def test_an_optimizer_that_is_none():
    with pytest.raises(ValueError, match="got kind='sgd', expected one of .*adamw.*adafactor"):
        OptimizerConfig(kind="sgd")
    with pytest.raises(ValueError, match="got weight_decay=0.1, expected 0 with adafactor"):
        OptimizerConfig(kind="adafactor", weight_decay=0.1)
