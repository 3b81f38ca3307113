"""PPO with a reward model that reads other ids than the actor writes."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from pit_jax.data.vocabularies.base import EOS_ID as EOS
from pit_jax.method import ppo_step
from pit_jax.method.environment import Environment, Networks
from pit_jax.method.frozen import Frozen
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel
from pit_jax.runtime.partitioning import MeshConfig, Partitioner
from tests import reference
from tests.method.test_ppo_step import CLOSE, CONFIG, B, R, batch, real, scalars_in_numpy, start
from tests.tiny_models import TINY, random_params

KEY = jax.random.key(25)  # with which some responses end, and others don't


@pytest.fixture(scope="module")
def frozen():
    return {
        "reference": random_params(LanguageModel(TINY), seed=3),
        "reward": random_params(ScalarModel(TINY), seed=4),
    }


def as_it_is(generation):
    """What a reward model of the actor's vocabulary reads, whose only end is EOS."""
    return {
        "reward_response_tokens": generation.tokens_BR,
        "reward_response_mask": generation.mask_BR.astype(np.float32),
    }


@pytest.fixture
def stepping(monkeypatch):
    """Makes steps that collect and don't update, and gives what the update would be given."""

    def step(networks, frozen, rows, translate=None):
        def make_programs(networks, config, environment, partitioner):
            collect = jax.jit(ppo_step.make_collect(networks, config, environment))

            def update(state, models, experience, key):
                return state.replace(train=experience), {}

            return collect, update

        monkeypatch.setattr(ppo_step, "make_programs", make_programs)
        made = ppo_step.make_step(
            networks,
            CONFIG,
            Environment(R, "sum"),
            Partitioner(MeshConfig(), jax.devices()[:1]),
            lambda after: Frozen(frozen),
            KEY,
            str,
            translate,
        )
        state, metrics, _ = made(start(), rows, 0)
        return state, metrics

    return step


def test_a_translation_that_changes_nothing_is_the_fused_step(stepping, frozen):
    """Sampling by itself draws, and scores, as in the program that collects, but for rounding."""
    asked = []

    def translate(generation):
        asked.append(generation)
        return as_it_is(generation)

    fused, separate = (
        stepping(Networks.same(TINY), frozen, batch(), each) for each in (None, translate)
    )
    for one, other in zip(*map(jax.tree.leaves, (fused, separate)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    (generation,) = asked
    ended = np.any(generation.tokens_BR == EOS, axis=1)
    assert 0 < ended.sum() < B, "the key should give rows with and without EOS"
    assert isinstance(generation.tokens_BR, np.ndarray)
    np.testing.assert_array_equal(generation.tokens_BR, separate[0].train.response_BR)


def test_scores_are_those_of_the_texts_that_the_reward_model_reads(stepping, frozen):
    """Its vocabulary has 40 ids, in which a text is longer: each token is two, and EOS is one."""
    network = dataclasses.replace(TINY, vocab_size=40, embed_dim=12, num_layers=1)
    params = random_params(ScalarModel(network), seed=5)
    rng, rows = np.random.default_rng(1), batch()
    own = {
        name: np.where(rows[name] > 1, rng.integers(16, 40, rows[name].shape), rows[name])
        for name in ("reward_prompt_tokens", "chosen_tokens")
    }
    seen = []

    def twice(tokens):
        return [t for token in tokens for t in ([EOS] if token == EOS else [token + 20, token])]

    def translate(generation):
        seen.extend(
            row[mask].tolist()
            for row, mask in zip(generation.tokens_BR, generation.mask_BR, strict=True)
        )
        read = [twice(row) for row in seen]
        tokens = np.array([row + [0] * (2 * R - len(row)) for row in read], np.int32)
        mask = np.arange(2 * R) < np.array([len(row) for row in read])[:, None]
        return {"reward_response_tokens": tokens, "reward_response_mask": mask.astype(np.float32)}

    networks = Networks(TINY, TINY, network)
    critic = {"critic_prompt_tokens": rows["reward_prompt_tokens"]}
    models = frozen | {"reward": params}
    state, metrics = stepping(networks, models, rows | own | critic, translate)
    in_numpy = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def score(prompt, response):
        return reference.scalars(in_numpy, network, prompt + response)[len(prompt) :].sum()

    raw, shaped = [], []
    for b, tokens in enumerate(seen):
        prompt = real(own["reward_prompt_tokens"][b])
        raw.append(score(prompt, twice(tokens)))
        shaped.append(raw[-1] - score(prompt, real(own["chosen_tokens"][b])))
    ended = np.array([EOS in tokens for tokens in seen])
    assert 0 < ended.sum() < B, "the key should give rows with and without EOS"
    np.testing.assert_allclose(metrics["score"][0], np.sum(raw), rtol=1e-4)
    np.testing.assert_allclose(
        state.moments.mean, np.mean(np.array(shaped)[ended]), rtol=1e-4, atol=1e-5
    )
    # The critic reads what the actor wrote, in the actor's ids.
    values = np.asarray(state.train.values_BR)
    for b, tokens in enumerate(seen):
        prompt = real(rows["reward_prompt_tokens"][b])
        expected = scalars_in_numpy(start().train.params["critic"], prompt + tokens)
        np.testing.assert_allclose(
            values[b, : len(tokens)], expected[len(prompt) - 1 : -1], **CLOSE
        )
