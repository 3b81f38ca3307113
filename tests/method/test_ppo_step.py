"""Episodes against an independent account of them: one row at a time, float64, no padding."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.data.vocabularies.base import EOS_ID as EOS
from pit_jax.method import ppo, ppo_step
from pit_jax.method.environment import Environment, Networks
from pit_jax.method.frozen import Frozen
from pit_jax.method.ppo_step import RLState, make_collect, make_passes, update
from pit_jax.models import adapters
from pit_jax.models.config import LoraConfig
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel
from pit_jax.runtime.train_state import OptimizerConfig, TrainState
from tests import reference
from tests.tiny_models import TINY, random_params

B, R = 8, 5
KEY = jax.random.key(0)  # of the update
KEYS = jax.random.key(20), KEY
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
    return jax.jit(make_collect(Networks.same(TINY), CONFIG, Environment(R, "sum")))


@pytest.fixture(scope="module")
def episodes(collect, frozen):
    return collect(start(), Frozen(frozen), batch(), *KEYS)


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
    # What is counted as work on real tokens: those of prompts and responses, without padding.
    prompts = np.sum(batch()["prompt_tokens"] > 0)
    assert float(metrics["tokens"][0]) == prompts + lengths(episodes).sum()
    assert float(metrics["real_token_share"][1]) == B * (4 + R)
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
    shaped, ended = np.array(shaped), np.array(ended)
    std = max(np.std(shaped[ended]), CONFIG.scale_floor)
    unended = shaped[ended].mean() + CONFIG.missing_eos_penalty * std
    scores = np.where(ended, shaped, unended) / std
    expected = reference.token_rewards(k1, scores, experience.mask_BR, CONFIG.beta)
    np.testing.assert_allclose(experience.rewards_BR, expected, rtol=2e-4, atol=2e-4)

    np.testing.assert_allclose(metrics["score"][0], np.sum(raw), rtol=1e-4)
    np.testing.assert_allclose(metrics["shaped_score"][0], np.sum(scores), rtol=1e-4)
    np.testing.assert_allclose(metrics["kl"][0], k1.sum(), rtol=1e-4)
    np.testing.assert_allclose(metrics["non_score_reward"][0], -CONFIG.beta * k1.sum(), rtol=1e-4)
    np.testing.assert_allclose(moments.mean, np.mean(shaped[ended]), rtol=1e-4, atol=1e-5)
    assert float(moments.count) == ended.sum() and float(beta) == np.float32(CONFIG.beta)


@pytest.mark.parametrize("subtract_chosen", [True, False])
def test_a_gap_may_be_a_difference_of_two_scores(frozen, subtract_chosen):
    """R_P(x, y) − R_P(x, y_ref), or less the same of y_w; the critic reads y_ref."""
    config = dataclasses.replace(CONFIG, subtract_chosen=subtract_chosen, scale_rewards=False)
    rows = batch()
    references = np.roll(rows["chosen_tokens"], 1, axis=0)
    critic_prompts = np.concatenate([rows["reward_prompt_tokens"], references[:, :3]], axis=1)
    rows |= {"reference_tokens": references, "critic_prompt_tokens": critic_prompts}
    environment = Environment(R, "sum", difference=True)
    collect = jax.jit(make_collect(Networks.same(TINY), config, environment))
    experience, _, moments, metrics, _ = collect(start(config), Frozen(frozen), rows, *KEYS)
    gaps, shaped, ended = [], [], []
    for b, n in enumerate(np.asarray(experience.mask_BR).sum(axis=1).astype(int)):
        prompt, response = real(rows["reward_prompt_tokens"][b]), experience.response_BR[b, :n]
        reference, chosen = real(references[b]), real(rows["chosen_tokens"][b])
        score, of_reference, of_chosen = (
            score_in_numpy(frozen["reward"], prompt, y)
            for y in (response.tolist(), reference, chosen)
        )
        gaps.append(score - of_reference)
        shaped.append(score - (of_chosen if subtract_chosen else of_reference))
        ended.append(EOS in response)
        expected = scalars_in_numpy(
            start().train.params["critic"], [*real(critic_prompts[b]), *response.tolist()]
        )[len(real(critic_prompts[b])) - 1 : -1]
        np.testing.assert_allclose(experience.values_BR[b, :n], expected, **CLOSE)
    np.testing.assert_allclose(metrics["score"][0], np.sum(gaps), rtol=1e-4)
    mean_shaped = np.mean(np.array(shaped)[np.array(ended)])
    np.testing.assert_allclose(moments.mean, mean_shaped, rtol=1e-4, atol=1e-5)


def on_one_backbone(models, lora):
    """Models of adapters on the first one's backbone: what is trained of actor and critic."""
    parts = {role: adapters.split(tree) for role, tree in models.items()}
    backbone = parts["actor"][0]
    if lora.backbone == "int8":
        backbone = adapters.quantised(backbone)
    on = {role: adapters.Adapted(backbone, parts[role][1]) for role in ("reference", "reward")}
    frozen = Frozen.share(on, {"actor": backbone, "critic": backbone})
    return {role: parts[role][1] for role in ("actor", "critic")}, frozen


@pytest.mark.parametrize(
    "lora",
    [
        None,
        pytest.param(LoraConfig(4, 8.0), marks=pytest.mark.slow),
        pytest.param(LoraConfig(4, 8.0, backbone="int8"), marks=pytest.mark.slow),
    ],
    ids=["whole", "adapters", "adapters on int8"],
)
def test_the_first_ratio_of_an_update_is_exactly_1(lora):
    """Step after step, on a network wide enough that other arithmetic shows as a rounding."""
    wide = {"vocab_size": 64, "embed_dim": 32, "head_dim": 8, "mlp_dim": 64}
    network = dataclasses.replace(TINY, lora=lora, **wide)
    config, environment = ppo.PPOConfig(epochs=1, minibatches=2), Environment(8, "last")
    compiled = functools.partial(jax.jit, compiler_options=AS_IN_RUNS)
    collect = compiled(make_collect(Networks.same(network), config, environment))
    passes = make_passes(Networks.same(network), config, environment)

    @compiled
    def improve(state, frozen, episodes, key):
        of_own = map(frozen.of_own, ("actor", "critic"), passes)
        return update(state, episodes, key, config, *of_own)

    rng = np.random.default_rng(0)
    prompts = rng.integers(2, 64, size=(32, 12))
    prompts[::2, :5] = 0
    names = ("prompt_tokens", "reward_prompt_tokens", "chosen_tokens")
    models = {
        "reference": random_params(LanguageModel(network), seed=3),
        "reward": random_params(ScalarModel(network), seed=4),
    }
    state, frozen = start(config, network), Frozen(models)
    if lora:
        own, frozen = on_one_backbone(state.train.params | models, lora)
        state = state.replace(train=TrainState.create(own, state.train.optimizer))
    steps = 3 if lora else 8
    for step in range(steps):
        keys = jax.random.split(jax.random.key(step))
        experience, _, moments, _, _ = collect(state, frozen, dict.fromkeys(names, prompts), *keys)
        train, metrics = improve(state.train, frozen.of_trained, experience, keys[1])
        state = state.replace(train=train, moments=moments)
        assert float(metrics["first_ratio_error"][0]) == 0.0, step
    # The second minibatch has moved.
    assert float(metrics["ratio_squared"][0]) != float(metrics["ratio_squared"][1])
    assert int(state.train.step) == steps * 2


@pytest.fixture(scope="module")
def of_widths():
    """PPO steps of one batch whose rows have the full windows, and that choose between 4 widths."""
    network = dataclasses.replace(TINY, vocab_size=64, embed_dim=32, head_dim=8, mlp_dim=64)
    rng = np.random.default_rng(0)
    prompts = rng.integers(2, 64, size=(16, 96))
    for row, length in enumerate([3, 90, 9, 50, 12, 96, 1, 20] * 2):
        prompts[row, : 96 - length] = 0
    rows = dict.fromkeys(("prompt_tokens", "reward_prompt_tokens", "chosen_tokens"), prompts)
    models = {
        "reference": random_params(LanguageModel(network), seed=3),
        "reward": random_params(ScalarModel(network), seed=4),
    }
    environment, found = Environment(8, "last"), {}
    for widths in (1, 4):
        config = ppo.PPOConfig(epochs=2, minibatches=2, microbatches=4, widths=widths)
        state = start(config, network)
        collect = jax.jit(make_collect(Networks.same(network), config, environment))
        passes = make_passes(Networks.same(network), config, environment)
        improve = jax.jit(lambda *given, c=config, p=passes: update(*given, c, *p))
        keys = jax.random.split(jax.random.key(5))
        experience, _, _, metrics, _ = collect(state, Frozen(models), rows, *keys)
        train, learned = improve(state.train, experience, keys[1])
        found[widths] = experience, train.params, metrics | learned
    return found


def test_rows_cut_to_a_width_give_what_whole_windows_give(of_widths):
    (whole, params, _), (cut, cut_params, _) = of_widths[1], of_widths[4]
    np.testing.assert_array_equal(whole.response_BR, cut.response_BR)
    for one, other in zip(jax.tree.leaves((whole, params)), jax.tree.leaves((cut, cut_params))):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


def test_the_first_ratio_is_exactly_1_whatever_the_widths(of_widths):
    for _, _, metrics in of_widths.values():
        assert float(metrics["first_ratio_error"][0]) == 0


def test_what_is_computed_is_counted_by_the_widths(of_widths):
    """Of 103 columns the parts with short rows have 56 or 80."""
    whole, cut = (float(of_widths[n][2]["model_flops"][0]) for n in (1, 4))
    assert 0.6 * whole < cut < 0.9 * whole


def test_the_plain_score_without_options(frozen):
    """The raw score at the last token; one deviation below those of ended rows without EOS."""
    config = ppo.PPOConfig(beta=0.0, minibatches=2, target_kl=14.0, horizon=80)
    collect = make_collect(Networks.same(TINY), config, Environment(R, "last"))
    experience, beta, _, metrics, _ = jax.jit(collect)(
        start(config).replace(beta=jnp.float32(0.5)), Frozen(frozen), batch(), *KEYS
    )
    plain = experience.rewards_BR + 0.5 * (
        experience.log_probs_BR - jax.jit(lambda: _reference_log_probs(frozen, experience))()
    )
    counts = np.asarray(experience.mask_BR).sum(axis=1).astype(int)
    responses = [row[:n].tolist() for row, n in zip(np.asarray(experience.response_BR), counts)]
    prompts = [real(row) for row in batch()["reward_prompt_tokens"]]
    last = np.array(
        [scalars_in_numpy(frozen["reward"], p + y)[-1] for p, y in zip(prompts, responses)]
    )
    ended = np.array([EOS in response for response in responses])
    worse = last[ended].mean() - max(last[ended].std(), config.scale_floor)
    for b, n in enumerate(counts):
        expected = last[b] if ended[b] else worse
        np.testing.assert_allclose(plain[b, n - 1], expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(plain[b, : n - 1], 0, atol=1e-4)
    # Per episode, and not so far from the target that the controller's limit hides what it is.
    kl = float(metrics["kl"][0]) / B
    assert 0.01 < kl / 14 - 1 < 0.2
    expected = 0.5 * (1 + (kl / 14 - 1) * B / 80)
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
    again = collect(start(), Frozen(frozen), batch(), *KEYS)
    for one, two in zip(jax.tree.leaves(episodes[0]), jax.tree.leaves(again[0])):
        np.testing.assert_array_equal(one, two)
    other = collect(start(), Frozen(frozen), batch(), jax.random.key(9), KEY)
    assert (np.asarray(other[0].response_BR) != np.asarray(episodes[0].response_BR)).any()


def test_rows_of_one_prompt_draw_apart(collect, frozen):
    """The number of a row in the batch is part of its key."""
    same = {name: np.repeat(rows[1:2], B, axis=0) for name, rows in batch().items()}
    responses = collect(start(), Frozen(frozen), same, *KEYS)[0].response_BR
    assert len({tuple(row) for row in np.asarray(responses).tolist()}) > B / 2


# --- scores without an origin -------------------------------------------------------------------


@pytest.mark.parametrize(("pooling", "critic"), [("last", "reward"), ("sum", "actor")])
def test_a_constant_added_to_the_reward_model_changes_nothing(pooling, critic, monkeypatch):
    """Its losses don't see one: the anchor has it too, and a critic that starts as the score."""
    config = ppo.PPOConfig(minibatches=2, critic_start=critic)
    found = []
    for constant in (0.0, 7.5):
        offset = constant - 10.0 if critic == "reward" else 0.0

        def scores(model, params, prompt_BQ, response_BR, mask_BR, pooling, width, c=constant):
            return 0.3 * jnp.sum(response_BR, axis=1) - 10.0 + c

        def values(model, params, prompt_BQ, response_BR, mask_BR, width, offset=offset):
            return jnp.where(mask_BR > 0, 0.2 * response_BR + offset, 0.0)

        monkeypatch.setattr(ppo_step, "response_scores", scores)
        monkeypatch.setattr(ppo_step, "response_values", values)
        environment = Environment(R, pooling, anchor=-9.0 + constant)
        frozen = Frozen({"reference": start().train.params["actor"], "reward": None})
        collect = jax.jit(make_collect(Networks.same(TINY), config, environment))
        experience, _, moments, *_ = collect(start(config), frozen, batch(), *KEYS)
        found.append((experience.rewards_BR, experience.values_BR, moments))
    for one, other in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_response_without_end_never_has_the_best_score():
    scores = jnp.array([-12.0, -10.0, -9.0, 3.0])
    ended = jnp.array([True, True, True, False])
    shaped, moments = ppo.shape_scores(scores, ended, ppo.Moments.zero(), ppo.PPOConfig())
    # Mean -31/3 and variance 14/9 of the three that ended, in the first step.
    np.testing.assert_allclose(shaped, [-12, -10, -9, -31 / 3 - (14 / 9) ** 0.5], rtol=1e-6)
    assert float(moments.count) == 3
    # Then of those before: three scores of mean -31/3, whatever those beside it have.
    config = ppo.PPOConfig(missing_eos_penalty=-2.0)
    shaped, moments = ppo.shape_scores(scores + 5, ended, moments, config)
    np.testing.assert_allclose(shaped, [-7, -5, -4, -31 / 3 - 2 * (14 / 9) ** 0.5], rtol=1e-6)
    # Three of mean -31/3 and three of mean -16/3.
    np.testing.assert_allclose(moments.mean, -47 / 6, rtol=1e-6)
    scaled, moments = ppo.shape_scores(
        scores, ended, moments, dataclasses.replace(config, scale_rewards=True)
    )
    np.testing.assert_allclose(scaled[:3], scores[:3] / moments.std(0.1), rtol=1e-6)


# --- what isn't finite --------------------------------------------------------------------------


def test_scores_that_are_not_finite_change_nothing_but_a_counter(frozen):
    """Not the moments, nor beta: one bad batch would switch rewards off for the rest of the run."""
    config = dataclasses.replace(CONFIG, target_kl=1.0, epochs=5)
    environment = Environment(R, "sum")
    collect = jax.jit(make_collect(Networks.same(TINY), config, environment))
    passes = make_passes(Networks.same(TINY), config, environment)
    improve = jax.jit(lambda state, episodes, key: update(state, episodes, key, config, *passes))
    bad, worse = (
        Frozen({**frozen, name: jax.tree.map(lambda x: x * np.nan, frozen[name])})
        for name in ("reward", "reference")  # of the latter only the KL isn't finite
    )
    state = start(config)
    good = Frozen(frozen)
    for number, models in enumerate((good, bad, worse, good)):
        before = state
        experience, beta, moments, _, _ = collect(state, models, batch(), *KEYS)
        train, metrics = improve(state.train, experience, jax.random.key(number))
        state = RLState(train, beta, moments)
        assert float(metrics["skipped_steps"][0]) == (models is not good)
        if models is not good:
            same = (before.train.params, before.train.opt_state, before.beta, before.moments)
            now = (train.params, train.opt_state, beta, moments)
            jax.tree.map(np.testing.assert_array_equal, same, now)
        # Ten gradient steps of one PPO step are one skipped step.
        assert int(train.skipped_in_row) == (0, 1, 2, 0)[number]
        assert int(train.skipped) == (0, 1, 2, 2)[number]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_nothing_is_learned_from_the_first_bad_gradient_on(frozen):
    """A minibatch after it would train from half an epoch."""
    config = ppo.PPOConfig(epochs=1, minibatches=4)
    environment = Environment(R, "sum")
    experience = jax.jit(make_collect(Networks.same(TINY), config, environment))(
        start(config), Frozen(frozen), batch(), *KEYS
    )[0]
    passes = make_passes(Networks.same(TINY), config, environment)

    def log_probs(params, episodes):
        log_probs_BR, entropy_BR = passes[0](params, episodes)
        bad = jnp.all(episodes.prompt_BP == experience.prompt_BP[:1], axis=1)
        return jnp.where(bad[:, None], jnp.nan, log_probs_BR), entropy_BR

    train, metrics = jax.jit(
        lambda state, key: update(state, experience, key, config, log_probs, passes[1])
    )(start(config).train, jax.random.key(0))
    assert int(train.skipped) == int(train.skipped_in_row) == 1
    assert float(metrics["skipped_steps"][0]) == 1
    assert int(train.step) == 4


# --- several ends -------------------------------------------------------------------------------


def test_every_end_ends_an_episode_and_is_scored_as_eos(frozen):
    ends = (EOS, 4, 6, 9)
    collect = jax.jit(make_collect(Networks.same(TINY), CONFIG, Environment(R, "sum", ends=ends)))
    episodes = collect(start(), Frozen(frozen), batch(), *KEYS)
    experience, _, _, metrics, _ = episodes
    scores, ended, last = [], [], set()
    rows = zip(experience.critic_prompt_BQ, np.asarray(experience.response_BR), lengths(episodes))
    for prompt, response, n in rows:
        tokens = response[:n].tolist()
        last.add(tokens[-1])
        assert not set(tokens[:-1]) & set(ends)
        ended.append(tokens[-1] in ends)
        as_eos = [*tokens[:-1], EOS if ended[-1] else tokens[-1]]
        scores.append(score_in_numpy(frozen["reward"], real(prompt), as_eos))
    assert len(last & set(ends)) > 1, "the key should give several ends"
    np.testing.assert_allclose(metrics["score"][0], np.sum(scores), rtol=1e-4)
    assert float(metrics["eos_rate"][0]) == sum(ended)


# --- ids that may be sampled --------------------------------------------------------------------


def test_ids_outside_of_the_text_are_never_sampled_nor_counted_on(frozen):
    allowed = np.ones(TINY.vocab_size, bool)
    allowed[[0, 2, 3, 5, 14, 15]] = False
    environment = Environment(R, "sum", allowed_V=allowed)
    collect = jax.jit(make_collect(Networks.same(TINY), CONFIG, environment))
    actor = start().train.params["actor"]
    for key in range(3):
        experience, _, _, _, generation = collect(
            start(), Frozen(frozen), batch(), jax.random.key(key), KEY
        )
        mask = np.asarray(generation.mask_BR)
        assert allowed[np.asarray(generation.tokens_BR)[mask]].all()
        np.testing.assert_allclose(
            experience.log_probs_BR, generation.log_probs_BR, rtol=1e-5, atol=1e-5
        )
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), actor)
    for b, n in enumerate(mask.sum(axis=1)):
        prompt = real(batch()["prompt_tokens"][b])
        response = experience.response_BR[b, :n].tolist()
        logits = reference.logits(params, TINY, [*prompt, *response])[len(prompt) - 1 : -1]
        logits[:, ~allowed] = -np.inf
        scaled = logits / TEMPERATURE
        expected = scaled[range(n), response] - np.log(np.exp(scaled).sum(axis=1))
        np.testing.assert_allclose(experience.log_probs_BR[b, :n], expected, **CLOSE)


# --- actor and critic apart ---------------------------------------------------------------------


def adam(config, **fields):
    rule = ppo.make_optimizer(config, ppo.PPOConfig(epochs=1, minibatches=1, **fields))
    params = {"actor": jnp.zeros(2), "critic": jnp.zeros(2)}
    return rule, params, rule.init(params)


def test_a_large_gradient_of_the_critic_does_not_shorten_the_actors_step():
    config = OptimizerConfig(learning_rate=0.1, epsilon=1.0, clip_norm=1.0)
    rule, params, state = adam(config)
    steps = []
    for critic in (0.0, 1000.0):
        grads = {"actor": jnp.array([0.6, 0.0]), "critic": jnp.array([critic, 0.0])}
        updates, _ = rule.update(grads, state, params)
        steps.append(float(updates["actor"][0]))
    # Adam's first step: g / (|g| + epsilon) with the gradient itself, whose norm is below 1.
    np.testing.assert_allclose(steps, [-0.1 * 0.6 / 1.6] * 2, rtol=1e-5)
    np.testing.assert_allclose(updates["critic"][0], -0.1 * 1.0 / 2.0, rtol=1e-5)  # clipped to 1


def test_the_critic_has_a_learning_rate_of_its_own():
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=2, epsilon=1e-8)
    rule, params, state = adam(config, critic_learning_rate=0.5)
    grads = {"actor": jnp.array([1.0, -1.0]), "critic": jnp.array([1.0, -1.0])}
    for rate in (0.5, 0.75):  # the warm-up of both
        updates, state = rule.update(grads, state, params)
        np.testing.assert_allclose(updates["actor"], [-0.1 * rate, 0.1 * rate], rtol=1e-5)
        np.testing.assert_allclose(updates["critic"], [-0.5 * rate, 0.5 * rate], rtol=1e-5)


def test_a_critic_learns_by_its_own_rate_where_the_actor_has_none():
    rule, params, state = adam(OptimizerConfig(learning_rate=0.0), critic_learning_rate=0.5)
    grads = {"actor": jnp.ones(2), "critic": jnp.array([1.0, -1.0])}
    updates, _ = rule.update(grads, state, params)
    np.testing.assert_allclose(updates["actor"], [0.0, 0.0])
    np.testing.assert_allclose(updates["critic"], [-0.5, 0.5], rtol=1e-5)


def test_the_actor_waits_while_the_critic_warms_up():
    rule, params, state = adam(OptimizerConfig(learning_rate=0.1), critic_warmup=2)
    grads = {"actor": jnp.ones(2), "critic": jnp.ones(2)}
    moved = []
    for _ in range(3):
        updates, state = rule.update(grads, state, params)
        assert np.all(np.asarray(updates["critic"]) < 0)
        moved.append(bool(np.any(np.asarray(updates["actor"]))))
    assert moved == [False, False, True]
