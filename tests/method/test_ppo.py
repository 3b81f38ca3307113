"""PPO's pieces against float64 NumPy, and one whole update against an independent one."""

from __future__ import annotations

import dataclasses
import math

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pit_jax.method import losses, ppo
from pit_jax.method.ppo_step import update
from pit_jax.runtime.train_state import OptimizerConfig, TrainState
from tests import reference

B, R = 4, 5
property_settings = settings(max_examples=25)
floats = hnp.arrays(np.float32, (B, R), elements=st.floats(-3, 3, width=32))


def mask_of(lengths):
    return (np.arange(R)[None] < np.array(lengths)[:, None]).astype(np.float32)


masks = st.lists(st.integers(0, R), min_size=B, max_size=B).map(mask_of)


@property_settings
@given(floats, floats, masks, st.sampled_from([(1.0, 0.95), (0.9, 0.5), (0.99, 0.0)]))
def test_gae_matches_the_defining_sum(rewards, values, mask, discounts):
    advantages, returns = ppo.gae(rewards, values, mask, *discounts)
    expected_advantages, expected_returns = reference.gae(rewards, values, mask, *discounts)
    # Sums of at most five deltas of at most 9.
    np.testing.assert_allclose(advantages, expected_advantages, atol=3e-5)
    np.testing.assert_allclose(returns, expected_returns, atol=3e-5)


def test_gae_by_hand():
    mask = mask_of([3])
    rewards, values = np.zeros((1, R), np.float32), np.zeros((1, R), np.float32)
    rewards[0, 2], values[0, :3] = 1.0, (0.2, 0.4, 0.6)
    advantages, returns = ppo.gae(rewards, values, mask, 1.0, 0.5)
    # δ = 0.2, 0.2, 0.4; A_2 = 0.4, A_1 = 0.2 + 0.2, A_0 = 0.2 + 0.2.
    np.testing.assert_allclose(advantages[0], [0.4, 0.4, 0.4, 0, 0], atol=1e-6)
    np.testing.assert_allclose(returns[0], [0.6, 0.8, 1.0, 0, 0], atol=1e-6)


@property_settings
@given(floats, floats, masks)
def test_gae_without_discounts_is_the_return_minus_the_value(rewards, values, mask):
    advantages, returns = ppo.gae(rewards, values, mask, 1.0, 1.0)
    to_go = np.cumsum((rewards * mask)[:, ::-1].astype(np.float64), axis=1)[:, ::-1] * mask
    np.testing.assert_allclose(returns, to_go, atol=3e-5)
    np.testing.assert_allclose(advantages, (to_go - values) * mask, atol=3e-5)


@property_settings
@given(floats, floats, masks, st.floats(-1000, 1000, width=32))
def test_masked_positions_change_nothing(a, b, mask, garbage):
    clean = [x * mask for x in (a, b)]
    dirty = [np.where(mask == 1, x, np.float32(garbage)) for x in (a, b)]
    scores = np.arange(B, dtype=np.float32)
    for function in (
        lambda x, y: ppo.gae(x, y, mask, 0.99, 0.95),
        lambda x, y: ppo.whiten(x, mask),
        lambda x, y: ppo.masked_mean(x, mask),
        lambda x, y: ppo.explained_variance(x, y, mask),
        lambda x, y: ppo.token_rewards(x, scores, mask, 0.1),
    ):
        jax.tree.map(np.testing.assert_array_equal, function(*clean), function(*dirty))


@property_settings
@given(floats, masks)
def test_whitened_values_have_mean_zero_and_variance_one(x, mask):
    real = x[mask == 1].astype(np.float64)
    assume(real.size > 1 and real.var() > 1e-2)
    whitened = np.asarray(ppo.whiten(x, mask))
    # Rounding of the mean (3e-7 at most) is stretched by 1/std, 10 at most.
    np.testing.assert_allclose(whitened, reference.whiten(x, mask), atol=2e-5)
    assert whitened[mask == 1].mean() == pytest.approx(0, abs=1e-5)
    assert whitened[mask == 1].var() == pytest.approx(1, abs=1e-4)
    assert (whitened[mask == 0] == 0).all()


def test_whitening_equal_or_no_values_gives_zeros():
    assert not np.asarray(ppo.whiten(jnp.full((B, R), 2.0), jnp.ones((B, R)))).any()
    assert not np.asarray(ppo.whiten(jnp.full((B, R), 2.0), jnp.zeros((B, R)))).any()


def test_kl_estimates_by_hand():
    k1, k3 = ppo.kl_estimates(jnp.array([[-1.0, -2.0]]), jnp.array([[-1.5, -2.0]]))
    np.testing.assert_allclose(k1, [[0.5, 0.0]], atol=1e-7)
    np.testing.assert_allclose(k3, [[math.exp(-0.5) - 0.5, 0.0]], atol=1e-6)


@property_settings
@given(floats, floats)
def test_k3_matches_numpy_and_is_never_negative(log_probs, ref_log_probs):
    k1, k3 = ppo.kl_estimates(log_probs, ref_log_probs)
    gap = log_probs.astype(np.float64) - ref_log_probs
    np.testing.assert_allclose(k1, gap, atol=1e-6)
    # exp(6) is the largest term.
    np.testing.assert_allclose(k3, np.expm1(-gap) + gap, rtol=1e-5, atol=1e-6)
    assert (np.asarray(k3) >= -1e-6).all()


def test_kl_estimators_are_unbiased():
    """Both average to the exact KL of two categorical distributions."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    k1, k3 = ppo.kl_estimates(jnp.log(p), jnp.log(q))
    exact = float((p * np.log(p / q)).sum())
    assert float((p * np.asarray(k1)).sum()) == pytest.approx(exact, abs=1e-6)
    assert float((p * np.asarray(k3)).sum()) == pytest.approx(exact, abs=1e-6)


@property_settings
@given(floats, masks, hnp.arrays(np.float32, B, elements=st.floats(-3, 3, width=32)))
def test_token_rewards_match_numpy(k1, mask, scores):
    rewards = ppo.token_rewards(k1, scores, mask, 0.05)
    expected = reference.token_rewards(k1, scores, mask, 0.05)
    np.testing.assert_allclose(rewards, expected, atol=1e-6)


def test_token_rewards_sum_to_score_minus_beta_kl():
    k1 = jnp.array([[0.1, 0.2, 7.0], [0.3, 7.0, 7.0]])
    mask = jnp.array([[1.0, 1, 0], [1, 0, 0]])
    rewards = ppo.token_rewards(k1, jnp.array([2.0, -1.0]), mask, 0.5)
    np.testing.assert_allclose(rewards, [[-0.05, 1.9, 0], [-1.15, 0, 0]], atol=1e-6)


def test_moments_match_numpy_over_batches():
    rng = np.random.default_rng(0)
    batches = [rng.normal(5, 2, n).astype(np.float32) for n in (3, 1, 8, 8)]
    moments = ppo.Moments.zero()
    for batch in batches:
        moments = moments.add(jnp.asarray(batch), jnp.ones(len(batch)))
    scores = np.concatenate(batches).astype(np.float64)
    assert float(moments.count) == scores.size
    assert float(moments.mean) == pytest.approx(scores.mean(), rel=1e-6)
    assert float(moments.std(0.0)) == pytest.approx(scores.std(), rel=1e-5)
    assert float(moments.std(100.0)) == 100.0


def test_moments_keep_precision_far_from_zero():
    scores = np.float32(1000) + np.linspace(-0.5, 0.5, 64, dtype=np.float32)
    moments = ppo.Moments.zero()
    for batch in scores.reshape(8, 8):
        moments = moments.add(jnp.asarray(batch), jnp.ones(len(batch)))
    # A score near 1000 is itself known to 3e-5.
    assert float(moments.std(0.0)) == pytest.approx(scores.astype(np.float64).std(), rel=1e-3)


def test_moments_of_no_or_equal_scores_stand_on_the_floor():
    zero = ppo.Moments.zero()
    assert float(zero.std(0.1)) == pytest.approx(0.1)
    assert float(zero.add(jnp.full(4, 3.0), jnp.ones(4)).std(0.1)) == pytest.approx(0.1)
    buffers = jax.tree.leaves(zero)
    assert len({b.unsafe_buffer_pointer() for b in buffers}) == 3  # each can be donated


def test_adapt_beta_by_hand():
    config = ppo.PPOConfig(target_kl=6.0, horizon=1000)
    assert float(ppo.adapt_beta(0.05, 6.0, config, 100)) == pytest.approx(0.05)
    assert float(ppo.adapt_beta(0.05, 6.6, config, 100)) == pytest.approx(0.05 * 1.01)
    assert float(ppo.adapt_beta(0.05, 600.0, config, 100)) == pytest.approx(0.05 * 1.02)
    assert float(ppo.adapt_beta(0.05, 0.0, config, 100)) == pytest.approx(0.05 * 0.98)
    assert ppo.adapt_beta(0.05, 600.0, ppo.PPOConfig(), 100) == 0.05


@property_settings
@given(floats, floats, masks)
def test_explained_variance_matches_numpy(values, returns, mask):
    assume((mask == 1).sum() > 1 and returns[mask == 1].astype(np.float64).var() > 0.1)
    expected = reference.explained_variance(values, returns, mask)
    result = float(ppo.explained_variance(values, returns, mask))
    assert result == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_explained_variance_of_perfect_and_constant_critics():
    returns, mask = jnp.arange(6.0).reshape(2, 3), jnp.ones((2, 3))
    assert float(ppo.explained_variance(returns, returns, mask)) == 1
    assert float(ppo.explained_variance(returns + 3, returns, mask)) == pytest.approx(1)
    assert float(ppo.explained_variance(jnp.ones((2, 3)), returns, mask)) == pytest.approx(0)


def test_config_rejects_unknown_starts_and_greedy_sampling():
    with pytest.raises(ValueError, match=r"got critic_start='sft', expected one of .*'reward'"):
        ppo.PPOConfig(critic_start="sft")
    with pytest.raises(ValueError, match="temperature must be above 0"):
        ppo.PPOConfig(temperature=0.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"missing_eos_penalty": 0.0}, "got missing_eos_penalty=0.0, expected below 0"),
        ({"critic_warmup": -1}, "got critic_warmup=-1, expected >= 0"),
        ({"epochs": 0}, "got epochs=0, expected 1 or more"),
        ({"minibatches": 0}, "got minibatches=0, expected 1 or more"),
        ({"microbatches": -2}, "got microbatches=-2, expected 1 or more"),
    ],
)
def test_config_rejects_what_cannot_be(fields, message):
    with pytest.raises(ValueError, match=f"PPOConfig: {message}"):
        ppo.PPOConfig(**fields)


# --- the whole update ----------------------------------------------------------------------------
# The policy is a linear softmax over features of the previous token, the critic linear in them.

V, D = 5, 3
N = 8  # episodes
OPTIMIZER = OptimizerConfig(
    learning_rate=0.15, warmup_steps=2, decay_steps=10, final_fraction=0.5, weight_decay=0.01
)
PPO = ppo.PPOConfig(epochs=2, minibatches=2, value_coefficient=0.5)


def log_probs_fn(params, episodes):
    logits = features(jnp, episodes) @ params
    return losses.token_log_probs(logits, episodes.response_BR), losses.token_entropy(logits)


def values_fn(params, episodes):
    return features(jnp, episodes) @ params


def features(library, episodes):
    """Fixed features [B, R, D] of the token before each response token."""
    table = np.random.default_rng(7).normal(0, 1, (V, D)).astype(np.float32)
    before = library.concatenate([episodes.prompt_BP[:, -1:], episodes.response_BR[:, :-1]], axis=1)
    return library.asarray(table)[before]


def case():
    rng = np.random.default_rng(11)
    params = {
        "actor": rng.normal(0, 0.5, (D, V)).astype(np.float32),
        "critic": rng.normal(0, 0.5, D).astype(np.float32),
    }
    mask = (np.arange(R)[None] < rng.integers(1, R + 1, N)[:, None]).astype(np.float32)
    prompt = rng.integers(2, V, (N, 2)).astype(np.int32)
    experience = ppo.Experience(
        prompt_BP=prompt,
        critic_prompt_BQ=prompt,
        response_BR=(rng.integers(1, V, (N, R)) * mask).astype(np.int32),
        mask_BR=mask,
        log_probs_BR=np.zeros((N, R), np.float32),
        values_BR=np.zeros((N, R), np.float32),
        rewards_BR=rng.normal(0, 1, (N, R)).astype(np.float32) * mask,
    )
    experience = jax.tree.map(jnp.asarray, experience)
    log_probs, _ = log_probs_fn(params["actor"], experience)
    return params, experience.replace(
        log_probs_BR=log_probs, values_BR=values_fn(params["critic"], experience)
    )


@pytest.fixture(scope="module")
def result():
    params, experience = case()
    state = TrainState.create(jax.tree.map(jnp.asarray, params), OPTIMIZER.build())
    program = jax.jit(lambda s, e, k: update(s, e, k, PPO, log_probs_fn, values_fn))
    return params, experience, *program(state, experience, jax.random.key(3))


def numpy_update(params, experience):
    """The update in float64: gradients by central differences, AdamW by hand."""
    e = jax.tree.map(np.asarray, experience)
    inputs = features(np, e).astype(np.float64)
    params = {name: value.astype(np.float64) for name, value in params.items()}
    old_log_probs, _ = reference.token_log_probs(inputs @ params["actor"], e.response_BR)
    old_values = inputs @ params["critic"]
    advantages, returns = reference.gae(e.rewards_BR, old_values, e.mask_BR, 1.0, 0.95)
    advantages = reference.whiten(advantages, e.mask_BR)
    adam = reference.AdamW(0.9, 0.95, 1e-8, 0.01, 1.0)
    sums = dict.fromkeys(("policy_loss", "value_loss", "policy_clip_fraction", "weight"), 0.0)

    def parts(params, rows):
        log_probs, _ = reference.token_log_probs(
            inputs[rows] @ params["actor"], e.response_BR[rows]
        )
        policy = reference.ppo_policy_loss(
            log_probs, old_log_probs[rows], advantages[rows], e.mask_BR[rows], 0.2
        )
        values = inputs[rows] @ params["critic"]
        value = reference.ppo_value_loss(
            values, old_values[rows], returns[rows], e.mask_BR[rows], 0.2
        )
        return policy, value

    def loss(params, rows):
        (policy, _), (value, _) = parts(params, rows)
        return (policy + 0.5 * value) / e.mask_BR[rows].sum()

    step = 0
    for key in jax.random.split(jax.random.key(3), PPO.epochs):
        order = np.asarray(jax.random.permutation(key, N))
        for rows in np.split(order, PPO.minibatches):
            (policy, clipped), (value, _) = parts(params, rows)
            sums["policy_loss"] += policy
            sums["value_loss"] += value
            sums["policy_clip_fraction"] += clipped
            sums["weight"] += e.mask_BR[rows].sum()
            grads = reference.numerical_gradient(lambda p, rows=rows: loss(p, rows), params)
            rate = reference.learning_rate(step, 0.15, 2, 10, 0.5)
            params = adam.update(params, grads, rate)
            step += 1
    return params, sums, reference.explained_variance(old_values, returns, e.mask_BR)


def test_update_matches_numpy(result):
    params, experience, state, metrics = result
    expected, sums, explained = numpy_update(params, experience)
    assert sums["policy_clip_fraction"] > 0  # the case reaches the clipped branch
    for name, value in expected.items():
        moved = np.abs(value - params[name]).max()
        assert moved > 0.1
        # Gradients are known to about 1e-6 of their size, Adam keeps relative errors.
        np.testing.assert_allclose(state.params[name], value, atol=1e-5)
    for name in ("policy_loss", "value_loss", "policy_clip_fraction"):
        total, weight = metrics[name]
        assert float(total) == pytest.approx(sums[name], rel=1e-4, abs=1e-5)
        assert float(weight) == sums["weight"]
    assert float(metrics["explained_variance"][0]) == pytest.approx(explained, abs=1e-5)
    assert int(state.step) == 4
    assert float(metrics["skipped_steps"][0]) == 0
    assert float(metrics["skipped_steps"][1]) == 1  # steps of PPO


def test_microbatches_add_up_to_a_minibatch(result):
    """Their token counts differ, so a mean of means would not."""
    params, experience, expected, metrics = result
    state = TrainState.create(jax.tree.map(jnp.asarray, params), OPTIMIZER.build())
    config = dataclasses.replace(PPO, microbatches=2)
    program = jax.jit(lambda s, e, k: update(s, e, k, config, log_probs_fn, values_fn))
    parts, part_metrics = program(state, experience, jax.random.key(3))
    assert int(parts.step) == int(expected.step)
    for one, two in zip(jax.tree.leaves(expected), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
    assert metrics.keys() == part_metrics.keys()
    for name, pair in metrics.items():
        np.testing.assert_allclose(pair, part_metrics[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert float(part_metrics["first_ratio_error"][0]) == 0.0


def test_first_ratio_is_exactly_one(result):
    *_, metrics = result
    assert float(metrics["first_ratio_error"][0]) == 0.0


def test_first_ratio_error_shows_log_probs_of_another_function():
    params, experience = case()
    experience = experience.replace(log_probs_BR=experience.log_probs_BR - 0.1)
    state = TrainState.create(params, OPTIMIZER.build())
    config = dataclasses.replace(PPO, epochs=1, minibatches=1)
    _, metrics = update(state, experience, jax.random.key(0), config, log_probs_fn, values_fn)
    assert float(metrics["first_ratio_error"][0]) == pytest.approx(math.exp(0.1) - 1, rel=1e-4)


def test_update_needs_whole_minibatches():
    params, experience = case()
    config = dataclasses.replace(PPO, minibatches=3)
    with pytest.raises(ValueError, match="got a batch of 8 episodes, expected a multiple of .*= 3"):
        update(
            TrainState.create(params, OPTIMIZER.build()),
            experience,
            jax.random.key(0),
            config,
            log_probs_fn,
            values_fn,
        )
