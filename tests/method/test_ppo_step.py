"""Episodes against an independent account of them: one row at a time, float64, no padding."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.data.vocabularies.base import EOS_ID as EOS
from pit_jax.method import ppo
from pit_jax.method.ppo_step import RLState, make_collect, make_passes, update
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel
from pit_jax.runtime.train_state import OptimizerConfig, TrainState
from tests import reference
from tests.tiny_models import TINY, random_params

B, R = 8, 5
TEMPERATURE = 0.8
CONFIG = ppo.PPOConfig(
    beta=0.3,
    epochs=2,
    minibatches=2,
    missing_eos_penalty=-1.5,
    subtract_chosen=True,
    scale_rewards=True,
    scale_floor=0.1,
    temperature=TEMPERATURE,
)
# All that tests/conftest.py leaves out.
AS_IN_RUNS = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
}
# Random float32 networks of two layers against float64.
CLOSE = {"rtol": 5e-5, "atol": 5e-5}


def batch():
    rng = np.random.default_rng(0)
    prompts = rng.integers(2, TINY.vocab_size, size=(B, 4))
    prompts[::2, :2] = 0
    chosen = rng.integers(2, TINY.vocab_size, size=(B, R))
    chosen[:, 3], chosen[:, 4] = EOS, 0
    spaces = np.full((B, 1), 2)
    return {
        "prompt_tokens": prompts,
        "reward_prompt_tokens": np.concatenate([prompts, spaces], axis=1),
        "chosen_tokens": chosen,
    }


def start(config=CONFIG, network=TINY):
    params = {
        "actor": random_params(LanguageModel(network), seed=1),
        "critic": random_params(ScalarModel(network), seed=2),
    }
    train = TrainState.create(params, OptimizerConfig(learning_rate=1e-3).build())
    return RLState(train, jnp.float32(config.beta), ppo.Moments.zero())


@pytest.fixture(scope="module")
def frozen():
    return {
        "reference": random_params(LanguageModel(TINY), seed=3),
        "reward": random_params(ScalarModel(TINY), seed=4),
    }


@pytest.fixture(scope="module")
def collect():
    return jax.jit(make_collect(TINY, TINY, CONFIG, "sum", R))


@pytest.fixture(scope="module")
def episodes(collect, frozen):
    return collect(start(), frozen, batch(), jax.random.key(20))


def real(tokens):
    return [int(token) for token in tokens if token]


def lengths(episodes):
    return np.asarray(episodes[0].mask_BR).sum(axis=1).astype(int)


def log_probs_in_numpy(params, prompt, response):
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    logits = reference.logits(params, TINY, [*prompt, *response])[len(prompt) - 1 : -1]
    return reference.token_log_probs(logits[None], np.array([response]), TEMPERATURE)[0][0]


def scalars_in_numpy(params, tokens):
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    return reference.scalars(params, TINY, tokens)


def score_in_numpy(params, prompt, response):
    return scalars_in_numpy(params, [*prompt, *response])[len(prompt) :].sum()


def test_a_response_stops_at_its_first_eos(episodes):
    experience, _, _, metrics, generation = episodes
    for tokens, mask in zip(np.asarray(experience.response_BR), np.asarray(experience.mask_BR)):
        n = int(mask.sum())
        assert mask.tolist() == [1] * n + [0] * (R - n)
        assert EOS not in tokens[: n - 1] and not tokens[n:].any()
        assert tokens[n - 1] == EOS or n == R
    ended = np.asarray(experience.response_BR == EOS).any(axis=1)
    assert 0 < ended.sum() < B, "the key should give rows with and without EOS"
    assert float(metrics["eos_rate"][0]) == ended.sum()
    assert float(metrics["response_length"][0]) == lengths(episodes).sum()
    np.testing.assert_array_equal(generation.tokens_BR, experience.response_BR)


def test_log_probs_are_those_of_decoding_and_of_numpy(episodes):
    experience, _, _, _, generation = episodes
    np.testing.assert_allclose(
        experience.log_probs_BR, generation.log_probs_BR, rtol=1e-5, atol=1e-5
    )
    params = start().train.params["actor"]
    for b, n in enumerate(lengths(episodes)):
        prompt, response = real(batch()["prompt_tokens"][b]), experience.response_BR[b, :n].tolist()
        expected = log_probs_in_numpy(params, prompt, response)
        np.testing.assert_allclose(experience.log_probs_BR[b, :n], expected, **CLOSE)


def test_values_are_of_the_state_before_each_token(episodes):
    experience = episodes[0]
    params = start().train.params["critic"]
    for b, n in enumerate(lengths(episodes)):
        prompt = real(batch()["reward_prompt_tokens"][b])
        response = experience.response_BR[b, :n].tolist()
        expected = scalars_in_numpy(params, prompt + response)[len(prompt) - 1 : -1]
        np.testing.assert_allclose(experience.values_BR[b, :n], expected, **CLOSE)


def test_rewards_are_the_shaped_score_and_the_kl_penalty(episodes, frozen):
    experience, beta, moments, metrics, _ = episodes
    raw, shaped, k1, ended = [], [], np.zeros((B, R)), []
    for b, n in enumerate(lengths(episodes)):
        rows = {name: real(array[b]) for name, array in batch().items()}
        response = experience.response_BR[b, :n].tolist()
        k1[b, :n] = log_probs_in_numpy(
            start().train.params["actor"], rows["prompt_tokens"], response
        ) - log_probs_in_numpy(frozen["reference"], rows["prompt_tokens"], response)
        prompt = rows["reward_prompt_tokens"]
        raw.append(score_in_numpy(frozen["reward"], prompt, response))
        chosen = score_in_numpy(frozen["reward"], prompt, rows["chosen_tokens"])
        shaped.append(raw[-1] - chosen)
        ended.append(EOS in response)
    scaled = np.array(shaped) / max(np.std(shaped), CONFIG.scale_floor)
    scores = np.where(ended, scaled, CONFIG.missing_eos_penalty)
    expected = reference.token_rewards(k1, scores, experience.mask_BR, CONFIG.beta)
    np.testing.assert_allclose(experience.rewards_BR, expected, rtol=2e-4, atol=2e-4)

    np.testing.assert_allclose(metrics["score"][0], np.sum(raw), rtol=1e-4)
    np.testing.assert_allclose(metrics["shaped_score"][0], np.sum(scores), rtol=1e-4)
    np.testing.assert_allclose(metrics["kl"][0], k1.sum(), rtol=1e-4)
    np.testing.assert_allclose(metrics["non_score_reward"][0], -CONFIG.beta * k1.sum(), rtol=1e-4)
    np.testing.assert_allclose(moments.mean, np.mean(shaped), rtol=1e-4, atol=1e-5)
    assert float(moments.count) == B and float(beta) == np.float32(CONFIG.beta)


def test_the_first_ratio_of_an_update_is_exactly_1():
    """Step after step, on a network wide enough that other arithmetic shows as a rounding."""
    network = dataclasses.replace(TINY, vocab_size=64, embed_dim=32, head_dim=8, mlp_dim=64)
    config = ppo.PPOConfig(epochs=1, minibatches=2)
    compiled = functools.partial(jax.jit, compiler_options=AS_IN_RUNS)
    collect = compiled(make_collect(network, network, config, "last", 8))
    passes = make_passes(network, network, config)
    improve = compiled(lambda state, episodes, key: update(state, episodes, key, config, *passes))
    rng = np.random.default_rng(0)
    prompts = rng.integers(2, 64, size=(32, 12))
    prompts[::2, :5] = 0
    names = ("prompt_tokens", "reward_prompt_tokens", "chosen_tokens")
    frozen = {
        "reference": random_params(LanguageModel(network), seed=3),
        "reward": random_params(ScalarModel(network), seed=4),
    }
    state = start(config, network)
    for step in range(8):
        keys = jax.random.split(jax.random.key(step))
        experience, _, moments, _, _ = collect(
            state, frozen, dict.fromkeys(names, prompts), keys[0]
        )
        train, metrics = improve(state.train, experience, keys[1])
        state = state.replace(train=train, moments=moments)
        assert float(metrics["first_ratio_error"][0]) == 0.0, step
    # The second minibatch has moved.
    assert float(metrics["ratio_squared"][0]) != float(metrics["ratio_squared"][1])
    assert int(state.train.step) == 8 * 2


def test_the_plain_score_without_options(frozen):
    """METHOD's defaults: the raw score at the last token, the penalty where EOS is missing."""
    config = ppo.PPOConfig(beta=0.0, minibatches=2, target_kl=1.0, horizon=80)
    collect = make_collect(TINY, TINY, config, "last", R)
    experience, beta, _, metrics, _ = jax.jit(collect)(
        start(config).replace(beta=jnp.float32(0.5)), frozen, batch(), jax.random.key(20)
    )
    plain = experience.rewards_BR + 0.5 * (
        experience.log_probs_BR - jax.jit(lambda: _reference_log_probs(frozen, experience))()
    )
    for b in range(B):
        n = int(experience.mask_BR[b].sum())
        response = experience.response_BR[b, :n].tolist()
        prompt = real(batch()["reward_prompt_tokens"][b])
        last = scalars_in_numpy(frozen["reward"], prompt + response)[-1]
        expected = last if EOS in response else config.missing_eos_penalty
        np.testing.assert_allclose(plain[b, n - 1], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(plain[b, : n - 1], 0, atol=1e-4)
    kl = float(metrics["kl"][0]) / B
    # The controller moves by at most a fifth of episodes / horizon.
    expected = 0.5 * (1 + np.clip(kl / 1.0 - 1, -0.2, 0.2) * B / 80)
    np.testing.assert_allclose(beta, expected, rtol=1e-6)


def _reference_log_probs(frozen, experience):
    from pit_jax.method.forward import response_log_probs

    return response_log_probs(
        LanguageModel(TINY),
        frozen["reference"],
        experience.prompt_BP,
        experience.response_BR,
        experience.mask_BR,
    )[0]


def test_the_key_decides_the_episodes(collect, frozen, episodes):
    again = collect(start(), frozen, batch(), jax.random.key(20))
    for one, two in zip(jax.tree.leaves(episodes[0]), jax.tree.leaves(again[0])):
        np.testing.assert_array_equal(one, two)
    other = collect(start(), frozen, batch(), jax.random.key(9))
    assert (np.asarray(other[0].response_BR) != np.asarray(episodes[0].response_BR)).any()
