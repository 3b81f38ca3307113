"""Each setting of PPO, and each key of its draws, by pure functions and stand-ins for programs."""

from __future__ import annotations

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pit_jax.method import parts, ppo, ppo_step
from pit_jax.method.environment import Environment, Networks
from pit_jax.method.frozen import Frozen
from pit_jax.method.ppo_step import RLState, update
from pit_jax.runtime.train_state import OptimizerConfig, TrainState
from tests import reference
from tests.tiny_models import TINY

R = 5


def start():
    params = {"actor": jnp.zeros(1), "critic": jnp.zeros(1)}
    train = TrainState.create(params, OptimizerConfig().build())
    return RLState(train, jnp.float32(0.3), ppo.Moments.zero())


def one_gradient(config):
    """The gradients of one step over all of 6 episodes, and what they should be, in float64.

    Each token has a parameter of its own for its log-probability and one for its value, and both
    have moved since the episodes were collected.
    """
    rng = np.random.default_rng(4)
    mask = (np.arange(R)[None] < np.array([5, 3, 1, 4, 5, 2])[:, None]).astype(np.float32)
    old, new, old_values, values, rewards = (
        scale * rng.normal(size=mask.shape).astype(np.float32) * mask
        for scale in (0.2, 0.2, 0.5, 0.5, 1.0)
    )
    numbers = np.arange(mask.size).reshape(mask.shape)  # as tokens: episodes come in another order
    experience = jax.tree.map(
        jnp.asarray, ppo.Experience(numbers, numbers, numbers, mask, old, old_values, rewards)
    )
    keep = optax.GradientTransformation(
        lambda params: params, lambda grads, state, _: (jax.tree.map(jnp.zeros_like, grads), grads)
    )
    params = {"actor": jnp.zeros(mask.shape), "critic": jnp.zeros(mask.shape)}
    state = TrainState.create(params, keep)

    def log_probs(actor, episodes):
        return (actor + new).reshape(-1)[episodes.response_BR], episodes.mask_BR

    def value_of(critic, episodes):
        return (critic + values).reshape(-1)[episodes.response_BR]

    config = dataclasses.replace(config, epochs=1, minibatches=1)
    found, _ = jax.jit(
        lambda state, key: update(state, experience, key, config, log_probs, value_of)
    )(state, jax.random.key(0))
    advantages, returns = reference.gae(rewards, old_values, mask, config.gamma, config.gae_lambda)
    advantages = reference.whiten(advantages, mask)
    ratio = np.exp((new - old).astype(np.float64))
    clipped = np.clip(ratio, 1 - config.clip, 1 + config.clip)
    actor = np.where(-advantages * ratio >= -advantages * clipped, -advantages * ratio, 0)
    near = np.clip(values - old_values, -config.value_clip, config.value_clip)
    moved = old_values + near - returns
    inside = np.abs(values - old_values) < config.value_clip
    critic = np.where((values - returns) ** 2 >= moved**2, values - returns, moved * inside)
    critic = config.value_coefficient * critic
    return found.opt_state, {
        name: grad * mask / mask.sum() for name, grad in (("actor", actor), ("critic", critic))
    }


UPDATE = ppo.PPOConfig(gae_lambda=0.9)


@pytest.mark.parametrize(
    ("field", "value", "moves"),
    [
        ("gamma", 0.7, {"actor", "critic"}),
        ("gae_lambda", 0.5, {"actor", "critic"}),
        ("clip", 0.05, {"actor"}),
        ("value_clip", 0.9, {"critic"}),
        ("value_coefficient", 0.7, {"critic"}),
    ],
)
def test_each_setting_of_the_update_moves_its_own_gradient(field, value, moves):
    (before, expected_before), (after, expected) = (
        one_gradient(config) for config in (UPDATE, dataclasses.replace(UPDATE, **{field: value}))
    )
    for name in ("actor", "critic"):
        np.testing.assert_allclose(before[name], expected_before[name], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(after[name], expected[name], rtol=1e-4, atol=1e-6)
        assert np.allclose(before[name], after[name], rtol=1e-3, atol=1e-5) == (name not in moves)


def test_each_option_of_the_scores_by_hand():
    """Scores 1 and 5 that ended, of mean 3 and deviation 2, and one that didn't."""
    scores, ended = jnp.array([1.0, 5.0, 4.0]), jnp.array([True, True, False])

    def shaped(**fields):
        config = ppo.PPOConfig(**fields)
        return ppo.shape_scores(scores, ended, ppo.Moments.zero(), config)[0]

    np.testing.assert_allclose(shaped(), [1, 5, 3 - 2], rtol=1e-6)
    np.testing.assert_allclose(shaped(missing_eos_penalty=-2.5), [1, 5, 3 - 5], rtol=1e-6)
    np.testing.assert_allclose(shaped(scale_rewards=True), [0.5, 2.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(shaped(scale_floor=4.0), [1, 5, 3 - 4], rtol=1e-6)
    both = shaped(scale_rewards=True, scale_floor=4.0)
    np.testing.assert_allclose(both, [0.25, 1.25, -0.25], rtol=1e-6)


@pytest.fixture
def scripted(monkeypatch):
    """`make_step` with programs that record their states and keys; beta and moments go up by 1."""
    calls, keys = [], []

    def collect(state, models, batch, key, update_key):
        keys.append(jax.random.key_data(update_key).tolist())
        calls.append(("collect", state, models, jax.random.key_data(key).tolist()))
        moments = jax.tree.map(lambda x: x + 1, state.moments)
        return "experience", state.beta + 1, moments, {"score": (1.0, 1.0)}, None

    def update(state, models, experience, key):
        assert not models.models  # they may have left the devices
        assert keys[-1] == jax.random.key_data(key).tolist()  # known while collecting
        calls.append(("update", state, experience, jax.random.key_data(key).tolist()))
        return state.replace(train=state.train.replace(step=state.train.step + 1)), {}

    monkeypatch.setattr(ppo_step, "make_programs", lambda *_: (collect, update))

    def waiting(after):
        return Frozen({"reward": after})

    def step(state, number, seed=7):
        partitioner = types.SimpleNamespace(
            shard_batch=lambda batch: batch, jit=lambda program, **_: program, replicated=None
        )
        key = jax.random.key(seed)
        run = ppo_step.make_step(
            Networks.same(TINY), UPDATE, Environment(R, "sum"), partitioner, waiting, key, str
        )
        return run(state, {}, number)[0]

    return calls, step


def test_a_step_draws_with_keys_of_its_stage_its_number_and_its_purpose(scripted):
    calls, step = scripted
    for number, seed in ((0, 7), (1, 7), (2, 7), (0, 8), (1, 7)):
        step(start(), number, seed)
    keys = [tuple(call[-1]) for call in calls]
    assert len(set(keys[:8])) == 8  # of four steps, each with one to sample and one to shuffle
    assert keys[8:] == keys[2:4]  # the same step again


def test_a_step_hands_on_beta_and_the_moments_of_scores(scripted):
    """What `collect` returns reaches the update, and the step after it."""
    calls, step = scripted
    state = start()
    for number in range(3):
        state = step(state, number)
    betas = [float(call[1].beta) for call in calls]
    np.testing.assert_allclose(betas, [0.3, 1.3, 1.3, 2.3, 2.3, 3.3], rtol=1e-6)
    assert [float(call[1].moments.count) for call in calls] == [0, 1, 1, 2, 2, 3]
    # The frozen models may wait for the last update.
    assert [int(call[2].models["reward"]) for call in calls[::2]] == [0, 1, 2]
    assert [call[2] for call in calls[1::2]] == ["experience"] * 3


@pytest.mark.parametrize(
    ("critic", "pooling", "subtract", "expected"),
    [
        ("reward", "last", False, 0.75),
        ("reward", "last", True, 1.0),
        ("reward", "sum", False, 1.0),
        ("actor", "last", False, 1.0),
    ],
)
def test_a_critic_is_anchored_where_it_starts_as_the_score(
    critic, pooling, subtract, expected, monkeypatch
):
    """Else it starts at 0, or what it learns has no origin: the score of y_w is subtracted."""
    monkeypatch.setattr(ppo_step, "response_values", lambda *given, width: given[-1])
    config = ppo.PPOConfig(critic_start=critic, subtract_chosen=subtract)
    _, values = ppo_step.make_passes(
        Networks.same(TINY), config, Environment(R, pooling, anchor=0.25)
    )
    mask = jnp.array([[1.0, 1.0, 0.0]])
    episodes = ppo.Experience(*[mask] * 7)
    np.testing.assert_array_equal(values(None, episodes), [[expected, expected, 0]])


def test_the_critics_warm_up_is_of_ppo_steps():
    """Of 2 epochs of 3 minibatches each: the seventh gradient step is the actor's first."""
    fields = {"critic_warmup": 1, "epochs": 2, "minibatches": 3}
    rule = ppo.make_optimizer(OptimizerConfig(learning_rate=0.1), ppo.PPOConfig(**fields))
    params = {"actor": jnp.zeros(2), "critic": jnp.zeros(2)}
    step, state, moved = jax.jit(rule.update), rule.init(params), []
    for _ in range(7):
        updates, state = step({"actor": jnp.ones(2), "critic": jnp.ones(2)}, state, params)
        moved.append(bool(np.any(np.asarray(updates["actor"]))))
    assert moved == [False] * 6 + [True]


@pytest.mark.parametrize(("minibatches", "microbatches", "rows"), [(1, 1, 6), (3, 1, 2), (3, 2, 1)])
def test_so_many_rows_pass_through_the_networks_at_once(minibatches, microbatches, rows):
    """In the update, and where the same functions are applied to the episodes before it."""
    zeros = jnp.zeros((6, R))
    experience = ppo.Experience(zeros, zeros, zeros, zeros + 1, zeros, zeros, zeros)
    seen = set()

    def log_probs(actor, episodes):
        seen.add(len(episodes.mask_BR))
        return episodes.log_probs_BR + actor, episodes.mask_BR

    def value_of(critic, episodes):
        seen.add(len(episodes.mask_BR))
        return episodes.values_BR + critic

    config = ppo.PPOConfig(epochs=1, minibatches=minibatches, microbatches=microbatches)
    params = {"actor": jnp.zeros(()), "critic": jnp.zeros(())}
    state = TrainState.create(params, OptimizerConfig().build())
    key = jax.random.key(0)
    jax.eval_shape(lambda: update(state, experience, key, config, log_probs, value_of))
    assert seen == {rows}
    seen.clear()
    jax.eval_shape(lambda: parts.in_parts(lambda part: value_of(0.0, part), experience, config))
    assert seen == {rows}


def test_only_minibatches_before_the_first_bad_one_are_learned_from():
    """Of three: the second holds the bad episode, and the third isn't learned from any more."""
    config = ppo.PPOConfig(epochs=1, minibatches=3)
    order = jax.random.permutation(jax.random.split(jax.random.key(0), 1)[0], 6).reshape(3, 2)
    numbers, ones, none = jnp.arange(6 * R).reshape(6, R), jnp.ones((6, R)), jnp.zeros((6, R))
    rewards = jnp.asarray(np.random.default_rng(5).normal(size=(6, R)), jnp.float32)
    episodes = ppo.Experience(numbers, numbers, numbers, ones, none, none, rewards)

    def log_probs(actor, part):
        bad = part.response_BR[:, :1] == numbers[order[1, 0], 0]
        return jnp.where(bad, jnp.nan, actor.reshape(-1)[part.response_BR]), part.mask_BR

    params = {"actor": none, "critic": none}
    state = TrainState.create(params, optax.sgd(1.0))
    after, _ = jax.jit(
        lambda state, key: update(
            state, episodes, key, config, log_probs, lambda critic, part: 0.0 * part.mask_BR
        )
    )(state, jax.random.key(0))
    moved = np.any(np.asarray(after.params["actor"]), axis=1)
    assert sorted(np.flatnonzero(moved)) == sorted(np.asarray(order[0]).tolist())
