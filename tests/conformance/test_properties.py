"""What any PPO for language models must do: one property a test, its reason in the docstring.

`peers/run.py` asks the same of other libraries; `peers/properties.py` lists the properties.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pit_jax.data.vocabularies.base import EOS_ID as EOS
from pit_jax.data.vocabularies.base import PAD_ID as PAD
from pit_jax.method import forward, ppo, ppo_step
from pit_jax.method.environment import Environment, Networks
from pit_jax.method.frozen import Frozen
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel
from pit_jax.runtime.checkpoints import Checkpoints
from pit_jax.runtime.train_state import OptimizerConfig, TrainState
from tests.conformance.peers.properties import PROPERTIES
from tests.tiny_models import TINY, random_params

# Large enough that other arithmetic shows as a rounding.
NETWORK = dataclasses.replace(TINY, vocab_size=64, embed_dim=32, head_dim=8, mlp_dim=64)
B, P, R = 32, 12, 8
CONFIG = ppo.PPOConfig(
    beta=0.1, target_kl=0.5, horizon=64, epochs=2, minibatches=2, temperature=2.0
)
OPTIMIZER = OptimizerConfig(learning_rate=1e-3).build()
# Programs of different shapes round differently.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


# A scalar model is extended by a number that is added to every scalar, so that a score can be
# shifted, or be the same for all texts.
def response_scores(model, params, *rest, width):
    return forward.response_scores(model, params["model"], *rest, width) + params["constant"]


def response_values(model, params, prompt_BP, response_BR, mask_BR, width):
    rows = prompt_BP, response_BR, mask_BR
    values_BR = forward.response_values(model, params["model"], *rows, width)
    return jnp.where(mask_BR > 0, values_BR + params["constant"], 0.0)


@pytest.fixture(scope="module", autouse=True)
def with_constants():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo_step, "response_scores", response_scores)
        patch.setattr(ppo_step, "response_values", response_values)
        yield


@functools.cache
def draw(kind, seed):
    params = random_params(kind(NETWORK), seed)
    # Distributions that are flat enough for every token to be sampled, EOS among them.
    params["decoder"]["embed"]["embedding"] *= 0.4
    return params


def start(beta=CONFIG.beta, constant=0.0, anchor=0.0):
    """As after a step, so that there are scores of before."""
    critic = {"model": draw(ScalarModel, 2), "constant": jnp.float32(constant)}
    train = TrainState.create({"actor": draw(LanguageModel, 1), "critic": critic}, OPTIMIZER)
    moments = ppo.Moments(jnp.float32(B), jnp.float32(constant - anchor), jnp.float32(B))
    state = ppo_step.RLState(train, jnp.float32(beta), moments)
    # On a device by name, as a restored state is: one compiled program serves both.
    return jax.device_put(state, jax.devices()[0])


def frozen(constant=0.0, scale=1.0):
    reward = jax.tree.map(lambda x: x, draw(ScalarModel, 4))
    reward["head"]["kernel"] *= scale
    reward = {"model": reward, "constant": jnp.float32(constant)}
    return Frozen({"reference": draw(LanguageModel, 3), "reward": reward})


def prompts(rows=B, padding=0):
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, NETWORK.vocab_size, size=(B, P))
    tokens[::2, :5] = PAD
    tokens = np.pad(tokens[:rows], ((0, 0), (padding, 0)), constant_values=PAD)
    return {"prompt_tokens": tokens, "reward_prompt_tokens": tokens}


@functools.cache
def collector(response_length, anchor=0.0):
    environment = Environment(response_length, "last", anchor)
    return jax.jit(ppo_step.make_collect(Networks.same(NETWORK), CONFIG, environment))


def collect(state=None, models=None, batch=None, response_length=R, seed=12, anchor=0.0):
    """Experience, new beta, new moments, metrics, Generation."""
    state, models, batch = state or start(), models or frozen(), batch or prompts()
    return collector(response_length, anchor)(
        state, models, batch, jax.random.key(seed), jax.random.key(0)
    )


@functools.cache
def improver():
    passes = ppo_step.make_passes(Networks.same(NETWORK), CONFIG, Environment(R, "last"))
    return jax.jit(lambda train, *rest: ppo_step.update(train, *rest, CONFIG, *passes))


def step(state, number):
    """A whole PPO step."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(5), number))
    experience, beta, moments, _, _ = collector(R)(state, frozen(), prompts(), keys[0])
    train, metrics = improver()(state.train, experience, keys[1])
    return ppo_step.RLState(train, beta, moments), metrics


def ended(experience):
    rows = np.any(np.asarray(experience.response_BR) == EOS, axis=1)
    full = np.asarray(experience.mask_BR).all(axis=1)
    assert {(True, True), (True, False), (False, True)} == set(zip(rows, full)), (
        "the key should give rows that end, rows that end at the last token, and rows that don't"
    )
    return rows


def advantages(experience):
    """Before whitening, which mixes the rows."""
    rewards, values, mask = experience.rewards_BR, experience.values_BR, experience.mask_BR
    return jax.jit(ppo.gae)(rewards, values, mask, CONFIG.gamma, CONFIG.gae_lambda)[0]


def assert_same_rows(one, other, rows=slice(None), columns=R, exactly=False):
    """Responses, log-probabilities, values, rewards and advantages of some rows are the same."""
    same = (
        np.testing.assert_array_equal
        if exactly
        else functools.partial(np.testing.assert_allclose, **CLOSE)
    )
    np.testing.assert_array_equal(one.response_BR[rows], other.response_BR[rows, :columns])
    np.testing.assert_array_equal(one.mask_BR[rows], other.mask_BR[rows, :columns])
    for field in ("log_probs_BR", "values_BR", "rewards_BR"):
        same(getattr(one, field)[rows], getattr(other, field)[rows, :columns])
    same(advantages(one)[rows], advantages(other)[rows, :columns])


def assert_same_leaves(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other)):
        np.testing.assert_array_equal(x, y)


def test_each_property_has_a_test():
    assert all(f"test_{name}" in globals() for name in PROPERTIES)


# --- What is sampled and what is scored ----------------------------------------------------------


def test_first_ratio():
    """Before the first gradient step the policy is the one that sampled, so any other ratio is an
    error of the program, which clipping and the gradient then take for learning."""
    state = start()
    for number in range(8):
        state, metrics = step(state, number)
        assert float(metrics["first_ratio_error"][0]) == 0.0, number
    squares, tokens = metrics["ratio_squared"]
    assert float(squares) != float(tokens), "later ratios should have moved"


def test_temperature():
    """A ratio of probabilities at another temperature than the sampling one weighs each sample by
    a distribution that it doesn't come from."""
    batch = {name: np.repeat(rows[:1], B, axis=0) for name, rows in prompts().items()}
    state, models, tokens, log_probs = start(), frozen(), [], []
    for seed in range(64):
        experience, *_, generation = collect(state, models, batch, seed=seed)
        np.testing.assert_allclose(experience.log_probs_BR, generation.log_probs_BR, **CLOSE)
        tokens.append(experience.response_BR[:, 0])
        log_probs.append(experience.log_probs_BR[:, 0])
    n = 64 * B
    _, first, counts = np.unique(np.concatenate(tokens), return_index=True, return_counts=True)
    p = np.exp(np.concatenate(log_probs)[first])
    error = 5 * np.sqrt(p * (1 - p) / n) + 1 / n
    np.testing.assert_array_less(abs(counts / n - p), error)
    at_1 = p**CONFIG.temperature / np.sum(p**CONFIG.temperature)
    assert np.any(abs(counts / n - at_1) > 2 * error), "temperature 1 should be told from this one"


# --- Rewards -------------------------------------------------------------------------------------


def test_rewards_unrounded():
    """Most reward models differ between two responses by less than 1, so a reward that is stored
    as an integer is no signal at all."""
    experience, *_ = collect(start(beta=0.0), frozen(scale=0.0, constant=0.3))
    rewards = np.asarray(experience.rewards_BR).sum(axis=1)
    np.testing.assert_array_equal(rewards[ended(experience)], np.float32(0.3))


def test_reward_on_last_token():
    """A reward further on is one that no token earned, and the critic's guess of what follows the
    end stands between it and the last token."""
    experience, *_ = collect(start(beta=0.0))
    ended(experience)
    mask = np.asarray(experience.mask_BR)
    last = mask.cumsum(axis=1) * mask == mask.sum(axis=1, keepdims=True)
    np.testing.assert_array_equal(np.asarray(experience.rewards_BR) != 0, last)
    penalised, *_ = collect()
    for x in (penalised.rewards_BR, penalised.log_probs_BR, penalised.values_BR):
        assert np.all(np.asarray(x)[mask == 0] == 0)
    assert np.all(np.asarray(advantages(penalised))[mask == 0] == 0)


@pytest.mark.parametrize("anchor", [0.0, 8.0])
def test_constant_in_reward(anchor):
    """Losses of score differences leave a reward model's offset free, so nothing that is learned
    may depend on it; the critic, which starts as the reward model, has the same offset. An anchor,
    if there is one, was measured with the same offset."""
    plain, *_ = collect()
    shifted, *_ = collect(start(constant=8.0, anchor=anchor), frozen(constant=8.0), anchor=anchor)
    ended(plain)
    same = np.allclose(plain.rewards_BR, shifted.rewards_BR, atol=1e-4)
    assert same == (anchor == 8.0)
    np.testing.assert_allclose(advantages(plain), advantages(shifted), rtol=1e-4, atol=1e-4)


# --- Padding and neighbours ----------------------------------------------------------------------


def test_padding():
    """A prompt is padded to its batch's longest, a response to the window, and what fills them
    says nothing about the row."""
    plain, _, _, _, _ = collect()
    padded, _, _, _, _ = collect(batch=prompts(padding=3), response_length=R + 3)
    assert_same_rows(plain, padded, rows=ended(plain))
    filled = plain.replace(response_BR=jnp.where(plain.mask_BR > 0, plain.response_BR, 7))
    train, key = start().train, jax.random.key(1)
    assert_same_leaves(improver()(train, plain, key), improver()(train, filled, key))


def test_batch_size():
    """A row's episode is its own: the number of rows beside it is a matter of memory."""
    half, whole = collect(batch=prompts(rows=B // 2))[0], collect()[0]
    assert_same_rows(half, jax.tree.map(lambda x: x[: B // 2], whole))


def test_neighbours():
    """A row that depends on the texts beside it can't be sampled again, nor be told right from
    wrong."""
    batch = prompts()
    others = {name: np.concatenate([x[: B // 2], x[: B // 2]]) for name, x in batch.items()}
    assert_same_rows(collect()[0], collect(batch=others)[0], slice(B // 2), exactly=True)


# --- Epochs and minibatches ----------------------------------------------------------------------


@functools.cache
def recorder(config):
    """An update of 8 episodes that records which of them each gradient step sees.

    Each episode has a parameter of its own for its log-probabilities and one for its values, and
    an optimizer that changes nothing keeps the gradients.
    """
    kept = jnp.zeros((config.epochs * config.minibatches, 8), jnp.float32)
    optimizer = optax.GradientTransformation(
        lambda params: (jnp.int32(0), jax.tree.map(lambda _: kept, params)),
        lambda grads, state, _: (
            jax.tree.map(jnp.zeros_like, grads),
            (state[0] + 1, jax.tree.map(lambda x, g: x.at[state[0]].set(g), state[1], grads)),
        ),
    )
    rows, ones = jnp.arange(8)[:, None], jnp.ones((8, 1), jnp.float32)
    experience = ppo.Experience(rows, rows, rows, ones, ones, ones, 3.0 + rows)
    state = TrainState.create({"actor": jnp.zeros(8), "critic": jnp.zeros(8)}, optimizer)

    def log_probs(params, episodes):
        return episodes.log_probs_BR + params[episodes.prompt_BP], episodes.mask_BR

    def values(params, episodes):
        return episodes.values_BR + params[episodes.critic_prompt_BQ]

    return jax.jit(
        lambda key: ppo_step.update(state, experience, key, config, log_probs, values)[0]
    )


def seen(config, seed=0):
    """bool [gradient steps, 8]: which episodes each gradient step saw."""
    count, gradients = recorder(config)(jax.random.key(seed)).opt_state
    assert count == len(gradients["actor"]), "as many steps as epochs x minibatches"
    actor, critic = np.asarray(gradients["actor"]) != 0, np.asarray(gradients["critic"]) != 0
    np.testing.assert_array_equal(actor, critic)
    return actor


@pytest.mark.parametrize(("epochs", "parts"), [(1, 4), (3, 1), (3, 2)])
def test_gradient_steps(epochs, parts):
    """A setting that is taken and not read makes a run another one than its record says."""
    state = recorder(ppo.PPOConfig(epochs=epochs, minibatches=parts))(jax.random.key(0))
    assert int(state.step) == int(state.opt_state[0]) == epochs * parts


@pytest.mark.parametrize("microbatches", [1, 2])
def test_every_episode_once(microbatches):
    """An epoch that leaves some episodes out, or takes some twice, weighs them by chance."""
    parts = seen(ppo.PPOConfig(epochs=3, minibatches=2, microbatches=microbatches))
    np.testing.assert_array_equal(parts.sum(axis=1), [4] * 6)
    np.testing.assert_array_equal(parts.reshape(3, 2, 8).sum(axis=1), np.ones((3, 8)))


def test_reshuffled():
    """Minibatches that stay the same over the epochs follow one path of noise again and again."""
    config = ppo.PPOConfig(epochs=3, minibatches=2)
    parts = seen(config)
    assert len({row.tobytes() for row in parts}) == 6, "no two minibatches have the same episodes"
    assert (parts != seen(config, seed=1)).any(), "nor do two steps"


# --- Resume --------------------------------------------------------------------------------------


def test_resume(tmp_path):
    """A run that was interrupted is otherwise another run, and no result of it can be had again."""
    state = start()
    for number in range(2):
        state, _ = step(state, number)
    saved = Checkpoints(tmp_path)
    saved.save(2, state, {})
    saved.close()
    again = Checkpoints(tmp_path)
    resumed, _ = again.restore(jax.tree.map(jnp.zeros_like, start()))
    again.close()
    for number in range(2, 4):
        state, resumed = step(state, number)[0], step(resumed, number)[0]
    assert_same_leaves(state, resumed)
    assert float(state.beta) != CONFIG.beta and B < float(state.moments.count) < 5 * B
