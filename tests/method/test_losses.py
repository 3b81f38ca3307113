"""Losses against float64 NumPy, hand-computed values, and properties of masking and symmetry."""

from __future__ import annotations

import functools
import math

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pit_jax.method import losses
from tests import reference

B, T, V = 3, 5, 7
property_settings = settings(max_examples=25)


def floats(shape, size):
    return hnp.arrays(np.float32, shape, elements=st.floats(-size, size, width=32))


masks = st.lists(st.integers(0, T), min_size=B, max_size=B).map(
    lambda lengths: (np.arange(T)[None] < np.array(lengths)[:, None]).astype(np.float32)
)


def random_case(seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (B, T, V)).astype(np.float32)
    return rng, logits, rng.integers(0, V, (B, T)).astype(np.int32)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_token_log_probs_and_entropy_match_numpy(temperature):
    _, logits, tokens = random_case()
    log_probs = losses.token_log_probs(logits, tokens, temperature)
    entropy = losses.token_entropy(logits, temperature)
    expected_log_probs, expected_entropy = reference.token_log_probs(logits, tokens, temperature)
    np.testing.assert_allclose(log_probs, expected_log_probs, atol=5e-6)
    np.testing.assert_allclose(entropy, expected_entropy, atol=5e-6)


def test_token_log_probs_by_hand():
    logits = np.log(np.array([[[0.5, 0.25, 0.25]]], np.float32)) + 4
    log_probs, entropy = (
        losses.token_log_probs(logits, np.array([[1]])),
        losses.token_entropy(logits),
    )
    assert float(log_probs[0, 0]) == pytest.approx(math.log(0.25), abs=1e-6)
    assert float(entropy[0, 0]) == pytest.approx(1.5 * math.log(2), abs=1e-6)


def test_temperature_zero_counts_as_one():
    _, logits, tokens = random_case()
    for function in (
        functools.partial(losses.token_log_probs, logits, tokens),
        functools.partial(losses.token_entropy, logits),
    ):
        np.testing.assert_array_equal(function(0), function(1.0))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_of_log_probs_is_that_of_a_softmax(temperature):
    """d log p(y) / d logits is (1[y] - p) / temperature, also where an id is never sampled."""
    rng, logits, tokens = random_case(3)
    logits[:, :, -1] = losses.NEVER
    tokens = np.minimum(tokens, V - 2)
    weights = rng.normal(0, 1, (B, T)).astype(np.float32)
    gradient = jax.grad(
        lambda x: jnp.sum(weights * losses.token_log_probs(x, tokens, temperature))
    )(logits)
    probabilities = np.exp(reference.log_softmax(logits.astype(np.float64) / temperature))
    expected = weights[..., None] * (np.eye(V)[tokens] - probabilities) / temperature
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_sft_loss_is_the_sum_over_targets_and_their_number():
    rng, logits, tokens = random_case(1)
    weights = rng.integers(0, 2, (B, T)).astype(np.float32)
    total, weight = losses.sft_loss(logits, tokens, weights)
    expected, _ = reference.token_log_probs(logits, tokens)
    assert float(total) == pytest.approx(-(expected * weights).sum(), rel=1e-6)
    assert float(weight) == weights.sum()


def test_sft_loss_of_uniform_logits_is_log_of_the_vocabulary():
    total, weight = losses.sft_loss(
        jnp.zeros((1, 4, V)), jnp.ones((1, 4), jnp.int32), jnp.array([[0.0, 1, 1, 0]])
    )
    assert (float(total), float(weight)) == (pytest.approx(2 * math.log(V), rel=1e-6), 2)


def test_negative_weights_are_unlikelihood_and_count_by_their_size():
    logits = jnp.log(jnp.array([[[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]]))
    total, weight = losses.sft_loss(logits, jnp.array([[1, 0]]), jnp.array([[1.0, -0.5]]), True)
    assert float(total) == pytest.approx(-math.log(0.3) - 0.5 * math.log(1 - 0.5), rel=1e-6)
    assert float(weight) == 1.5
    # A batch may hold unlikely targets alone, which make a mean too.
    total, weight = losses.sft_loss(logits, jnp.array([[1, 0]]), jnp.array([[-1.0, -1.0]]), True)
    assert float(total / weight) == pytest.approx(-(math.log(0.7) + math.log(0.5)) / 2, rel=1e-6)


def test_unlikelihood_of_a_certain_token_is_finite():
    def loss(logits):
        return losses.sft_loss(logits, jnp.array([[0]]), jnp.array([[-1.0]]), True)[0]

    value, grad = jax.value_and_grad(loss)(jnp.array([[[100.0, 0.0]]]))
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


def test_pairwise_loss_matches_numpy_and_ignores_filler_rows():
    chosen, rejected = jnp.array([1.5, -2.0, 99.0]), jnp.array([0.5, 3.0, -7.0])
    total, weight = losses.pairwise_loss(chosen, rejected, jnp.array([1.0, 1.0, 0.0]))
    expected = -reference.log_sigmoid(1.0) - reference.log_sigmoid(-5.0)
    assert float(total) == pytest.approx(expected, rel=1e-6)
    assert float(weight) == 2


def test_pairwise_loss_of_equal_scores_is_log_two():
    total, _ = losses.pairwise_loss(jnp.array([3.0]), jnp.array([3.0]), jnp.ones(1))
    assert float(total) == pytest.approx(math.log(2), rel=1e-6)


def gap_scores(seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 2, B).astype(np.float32) for name in ("wl", "ww", "ll", "lw")}


def test_gap_loss_is_equation_two():
    scores, weight = gap_scores(), np.array([1.0, 0.0, 1.0], np.float32)
    total, count = losses.gap_loss(scores, weight)
    expected = sum(
        reference.gap_loss(**{name: float(s[b]) for name, s in scores.items()}) for b in (0, 2)
    )
    assert float(total) == pytest.approx(expected, rel=1e-6)
    assert float(count) == 2


def test_gap_loss_by_hand():
    equal = {name: jnp.zeros(1) for name in ("wl", "ww", "ll", "lw")}
    assert float(losses.gap_loss(equal, jnp.ones(1))[0]) == pytest.approx(5 * math.log(2))
    # With r_wl = log 3 and the others 0: three terms of -log(3/4), two of log 2.
    scores = {**equal, "wl": jnp.array([math.log(3)])}
    expected = 3 * math.log(4 / 3) + 2 * math.log(2)
    assert float(losses.gap_loss(scores, jnp.ones(1))[0]) == pytest.approx(expected, rel=1e-6)


def test_gap_loss_gradient_pushes_the_ends_apart():
    grads = jax.grad(lambda s: losses.gap_loss(s, jnp.ones(B))[0])(
        {name: jnp.zeros(B) for name in ("wl", "ww", "ll", "lw")}
    )
    # Each log σ(a − b) at 0 pulls a up and b down by one half.
    for name, expected in (("wl", -1.5), ("ww", 0.0), ("ll", 0.0), ("lw", 1.5)):
        np.testing.assert_allclose(grads[name], expected, atol=1e-6)


def test_gap_ablations():
    scores, weight = gap_scores(1), np.array([0.0, 1.0, 0.0], np.float32)
    row = {name: float(s[1]) for name, s in scores.items()}
    two_term, _ = losses.gap_loss(scores, weight, "two_term")
    assert float(two_term) == pytest.approx(-reference.log_sigmoid(row["wl"] - row["lw"]), rel=1e-6)
    pointwise, count = losses.gap_loss(scores, weight, "pointwise")
    expected = (row["wl"] - 1) ** 2 + row["lw"] ** 2
    expected += (row["ww"] - 0.5) ** 2 + (row["ll"] - 0.5) ** 2
    assert float(pointwise) == pytest.approx(expected / 4, rel=1e-6)
    assert float(count) == 1


def test_unknown_gap_loss_names_the_choices():
    with pytest.raises(ValueError, match="gap loss: got 'eq3', expected one of .*'eq2'"):
        losses.gap_loss(gap_scores(), np.ones(B), "eq3")


@pytest.mark.parametrize("array", [np.array, jnp.array])
def test_how_far_the_reference_moves_the_score_by_hand(array):
    """A model that ignores the reference, and a difference of two scores, 5 and 2."""
    scores = {"wl": [5.0, 3.0], "ww": [5.0, 0.0], "ll": [2.0, 0.0], "lw": [2.0, -3.0]}
    scores = {name: array(values, np.float32) for name, values in scores.items()}
    for weights, expected in (([1, 0], (0, 3)), ([0, 1], (6, 6)), ([1, 1], (6, 9))):
        assert losses.reference_moves_score(scores, array(weights, np.float32)) == expected
    assert losses.reference_moves_score(scores) == (6, 9)


def test_centring_penalty_is_the_mean_square_of_real_rows():
    scores = jnp.array([[1.0, 50.0], [3.0, 50.0]])
    total, weight = losses.centring_penalty(scores, jnp.array([1.0, 0.0]))
    assert float(total / weight) == pytest.approx((1 + 9) / 2)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "clipped"),
    [
        (1.1, 2.0, -2.2, 0),  # inside the range
        (1.5, 2.0, -2.4, 1),  # a gain stops at 1.2
        (0.5, 2.0, -1.0, 0),  # a loss of a good token is not bounded
        (0.5, -2.0, 1.6, 1),  # a gain on a bad token stops at 0.8
        (1.5, -2.0, 3.0, 0),  # a bad token made likelier counts in full
    ],
)
def test_policy_loss_by_hand(ratio, advantage, expected, clipped):
    old = jnp.array([[-1.0]])
    (total, weight), metrics = losses.ppo_policy_loss(
        old + math.log(ratio), old, jnp.array([[advantage]]), jnp.ones((1, 1)), 0.2
    )
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(weight) == 1
    assert float(metrics["policy_clip_fraction"][0]) == clipped
    assert float(metrics["ratio"][0]) == pytest.approx(ratio, rel=1e-5)
    assert float(metrics["ratio_squared"][0]) == pytest.approx(ratio**2, rel=1e-5)
    assert float(metrics["approx_kl"][0]) == pytest.approx(math.log(ratio) ** 2 / 2, rel=1e-5)


@property_settings
@given(floats((B, T), 1), floats((B, T), 1), floats((B, T), 3), masks)
def test_policy_loss_matches_numpy(log_probs, old, advantages, mask):
    (total, weight), metrics = losses.ppo_policy_loss(log_probs, old, advantages, mask, 0.2)
    expected, _ = reference.ppo_policy_loss(
        *(x.astype(np.float64) for x in (log_probs, old, advantages)), mask, 0.2
    )
    # Up to 15 terms of at most 3 e²: float32 leaves about 1e-4 of the largest sums.
    assert float(total) == pytest.approx(expected, rel=1e-5, abs=5e-5)
    assert float(weight) == mask.sum()
    assert set(metrics) == {"ratio", "ratio_squared", "policy_clip_fraction", "approx_kl"}


def test_clip_fractions_match_numpy():
    rng = np.random.default_rng(3)
    a, b, c = (rng.normal(0, 0.5, (B, T)).astype(np.float32) for _ in range(3))
    mask = np.ones((B, T), np.float32)
    _, policy = losses.ppo_policy_loss(a, b, c, mask, 0.2)
    _, value = losses.ppo_value_loss(a, b, c, mask, 0.2)
    policy_clipped = reference.ppo_policy_loss(a, b, c, mask, 0.2)[1]
    value_clipped = reference.ppo_value_loss(a, b, c, mask, 0.2)[1]
    assert 0 < policy_clipped < B * T
    assert 0 < value_clipped < B * T
    assert float(policy["policy_clip_fraction"][0]) == policy_clipped
    assert float(value["value_clip_fraction"][0]) == value_clipped


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.1, 0.5 * 0.9**2),  # inside the range: plain error to the return 2
        (1.9, 0.5 * 0.8**2),  # moved towards the return too far: counted as if at 1.2
        (0.0, 0.5 * 2.0**2),  # moved away: the larger error counts
    ],
)
def test_value_loss_by_hand(value, expected):
    one = jnp.ones((1, 1))
    (total, weight), _ = losses.ppo_value_loss(value * one, one, 2 * one, one, 0.2)
    assert (float(total), float(weight)) == (pytest.approx(expected, rel=1e-5), 1)


@property_settings
@given(floats((B, T), 3), floats((B, T), 3), floats((B, T), 3), masks)
def test_value_loss_matches_numpy(values, old, returns, mask):
    (total, _), _ = losses.ppo_value_loss(values, old, returns, mask, 0.2)
    expected, _ = reference.ppo_value_loss(
        *(x.astype(np.float64) for x in (values, old, returns)), mask, 0.2
    )
    assert float(total) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@property_settings
@given(masks, st.integers(0, 2**31), st.floats(-50, 50, width=32))
def test_masked_positions_change_no_loss(mask, seed, garbage):
    rng = np.random.default_rng(seed)
    inputs = [rng.normal(0, 0.5, (B, T)).astype(np.float32) for _ in range(3)]
    dirty = [np.where(mask == 1, x, x + np.float32(garbage)) for x in inputs]
    for function in (losses.ppo_policy_loss, losses.ppo_value_loss):
        clean_result, dirty_result = function(*inputs, mask, 0.2), function(*dirty, mask, 0.2)
        jax.tree.map(np.testing.assert_array_equal, clean_result, dirty_result)
    logits = rng.normal(0, 1, (B, T, V)).astype(np.float32)
    tokens = rng.integers(0, V, (B, T)).astype(np.int32)
    dirty_logits = np.where(mask[..., None] == 1, logits, np.float32(garbage))
    dirty_tokens = np.where(mask == 1, tokens, 0).astype(np.int32)
    jax.tree.map(
        np.testing.assert_array_equal,
        losses.sft_loss(logits, tokens, mask),
        losses.sft_loss(dirty_logits, dirty_tokens, mask),
    )


def test_policy_gradient_at_ratio_one_is_the_plain_policy_gradient():
    rng = np.random.default_rng(5)
    log_probs, advantages = (rng.normal(0, 1, (B, T)).astype(np.float32) for _ in range(2))
    mask = np.ones((B, T), np.float32)
    mask[0, 2:] = 0
    grad = jax.grad(lambda x: losses.ppo_policy_loss(x, log_probs, advantages, mask, 0.2)[0][0])(
        log_probs
    )
    np.testing.assert_allclose(grad, -advantages * mask, rtol=1e-6)


def test_without_unlikelihood_the_logits_are_gone_through_once():
    """Its branch takes two further passes over them."""

    def passes(unlikelihood):
        arguments = jnp.zeros((2, 3, 5)), jnp.zeros((2, 3), jnp.int32), jnp.ones((2, 3))
        program = jax.make_jaxpr(losses.sft_loss, static_argnums=3)(*arguments, unlikelihood)
        return str(program).count("reduce_max")

    assert (passes(False), passes(True)) == (1, 3)
