"""Sampling against teacher forcing, exhaustive forward passes, and known distributions."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pit_jax.data.vocabularies.base import EOS_ID as EOS
from pit_jax.data.vocabularies.base import PAD_ID as PAD
from pit_jax.method import decode
from pit_jax.method.decode import SamplingConfig
from pit_jax.method.losses import token_log_probs
from pit_jax.models.attention import causal_mask, positions_of
from pit_jax.models.network import LanguageModel
from tests import reference
from tests.tiny_models import TINY, random_params

P, R = 6, 7
PROMPTS = [[3, 4, 5, 6], [7, 8], [9, 10, 11, 12, 13, 14], [15, 3, 9]]
GREEDY = SamplingConfig(temperature=0.0)
MODEL = LanguageModel(dataclasses.replace(TINY, tied_embeddings=False))


@functools.partial(jax.jit, static_argnames=("model", "length", "config", "ends"))
def generate(model, params, prompts, keys, length, config, ends=(EOS,)):
    return decode.generate(model, params, prompts, keys, length, config, ends=ends)


@jax.jit
def full_pass(params, tokens, valid):
    """Logits from the last token of the prompts on."""
    mask = causal_mask(valid.astype(jnp.int32))
    return MODEL.apply({"params": params}, tokens, positions_of(valid), mask, P - 1)


def left_pad(prompts, width=P):
    return jnp.array([[PAD] * (width - len(p)) + p for p in prompts], jnp.int32)


@pytest.fixture(scope="module")
def params():
    return random_params(MODEL, seed=4)


def sample_rows(params, prompts=PROMPTS, rows=(0, 1, 2, 3), width=P, temperature=1.0):
    keys = decode.row_keys(jax.random.key(5), jnp.array(rows))
    config = SamplingConfig(temperature=temperature)
    return generate(MODEL, params, left_pad(prompts, width), keys, R, config)


# --- against the network's own full passes -------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_log_probs_equal_teacher_forced_ones(params, temperature):
    result = sample_rows(params, temperature=temperature)
    whole = jnp.concatenate([left_pad(PROMPTS), result.tokens_BR], axis=1)
    valid = jnp.concatenate([left_pad(PROMPTS) != PAD, result.mask_BR], axis=1)
    forced = token_log_probs(full_pass(params, whole, valid)[:, :-1], result.tokens_BR, temperature)
    np.testing.assert_allclose(result.log_probs_BR, forced * result.mask_BR, atol=1e-5)
    lengths = result.mask_BR.sum(axis=1).tolist()
    assert temperature == 0 or (max(lengths) == R and min(lengths) < R)  # both kinds of row occur


@pytest.mark.parametrize(
    "fields",
    [{}, {"positions": "relative"}, {"windows": (3, 0), "rope_local_theta": 9.0, "logit_cap": 2.0}],
)
def test_greedy_equals_repeated_full_passes(fields):
    model = LanguageModel(dataclasses.replace(MODEL.config, **fields))
    params = random_params(model, seed=4)
    keys = decode.row_keys(jax.random.key(5), jnp.arange(4))
    result = generate(model, params, left_pad(PROMPTS), keys, R, GREEDY)
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    for row, prompt in enumerate(PROMPTS):
        tokens = []
        while len(tokens) < R and EOS not in tokens:
            logits = reference.logits(double, model.config, prompt + tokens)
            tokens.append(int(logits[-1].argmax()))
        assert result.tokens_BR[row].tolist() == tokens + [PAD] * (R - len(tokens))


def test_more_left_padding_and_other_neighbours_change_nothing(params):
    base = sample_rows(params)
    wider = sample_rows(params, width=P + 3)
    order = [2, 0, 3, 1]
    moved = sample_rows(params, [PROMPTS[i] for i in order], order)
    crowd = sample_rows(params, [PROMPTS[1], [4, 4, 4], PROMPTS[3], [5] * 6], [1, 20, 3, 21])
    for rows, other in (((0, 1, 2, 3), wider), (order, moved), ((1, None, 3, None), crowd)):
        for place, row in enumerate(rows):
            if row is not None:
                np.testing.assert_array_equal(other.tokens_BR[place], base.tokens_BR[row])
                np.testing.assert_array_equal(other.mask_BR[place], base.mask_BR[row])
                np.testing.assert_allclose(
                    other.log_probs_BR[place], base.log_probs_BR[row], atol=1e-6
                )


def test_rows_of_one_prompt_draw_differently(params):
    result = sample_rows(params, [PROMPTS[0]] * 4)
    assert len({tuple(row) for row in result.tokens_BR.tolist()}) > 1


def test_same_keys_repeat_the_sample(params):
    jax.tree.map(np.testing.assert_array_equal, sample_rows(params), sample_rows(params))


# --- a scripted model: the next token depends on the last one only -------------------------------


class Script:
    """Stands in for the network: next-token logits are a row of `params`; counts its calls."""

    config = TINY

    def __init__(self):
        self.calls = []

    def apply(self, variables, tokens, positions, mask, cache, index, method=None):
        jax.debug.callback(lambda: self.calls.append(1))
        return variables["params"][tokens[:, -1]], cache


def chain(*edges):
    """Logits that make `b` certain after `a`, for each edge (a, b); EOS after everything else."""
    table = np.full((8, 8), -30.0, np.float32)
    table[:, EOS] = 0
    for a, b in edges:
        table[a, [EOS, b]] = -30, 0
    return jnp.asarray(table)


def run_script(table, prompts, length, config=GREEDY, ends=(EOS,)):
    script = Script()
    keys = decode.row_keys(jax.random.key(0), jnp.arange(len(prompts)))
    result = generate(script, table, left_pad(prompts, 2), keys, length, config, ends)
    jax.effects_barrier()
    return result, len(script.calls)


def test_finished_rows_are_padded_and_the_loop_ends_with_the_longest():
    table = chain((2, 3), (3, 4), (4, 5))
    result, calls = run_script(table, [[2], [4], [6]], 50)
    expected = np.zeros((3, 50), int)
    expected[0, :4], expected[1, :2], expected[2, :1] = (3, 4, 5, EOS), (5, EOS), (EOS,)
    np.testing.assert_array_equal(result.tokens_BR, expected)
    np.testing.assert_array_equal(result.mask_BR, expected != PAD)
    assert not np.asarray(result.log_probs_BR)[expected == PAD].any()
    # The prompts, three tokens that need a next one, and at most one call for EOS.
    assert 1 + 3 <= calls <= 1 + 4


def test_any_of_several_ends_ends_a_row():
    result, _ = run_script(chain((2, 3), (3, 4), (4, 5), (6, 7)), [[2], [6], [5]], 4, ends=(EOS, 4))
    assert result.tokens_BR.tolist() == [[3, 4, PAD, PAD], [7, EOS, PAD, PAD], [EOS] + [PAD] * 3]
    assert result.mask_BR.sum(axis=1).tolist() == [2, 2, 1]


def test_rows_that_never_end_fill_the_window():
    result, _ = run_script(chain((2, 2)), [[2], [5]], 5)
    assert result.tokens_BR.tolist() == [[2] * 5, [EOS, PAD, PAD, PAD, PAD]]
    assert result.mask_BR.tolist() == [[True] * 5, [True] + [False] * 4]


def test_sampled_sequences_follow_the_models_distribution():
    """A chain of two random tokens: chi-square of the nine pairs (8 degrees of freedom)."""
    probabilities = {
        2: (0.5, 0.3, 0.2),
        3: (0.1, 0.6, 0.3),
        4: (0.25, 0.25, 0.5),
        5: (0.7, 0.2, 0.1),
    }
    table = np.full((8, 8), -np.inf, np.float32)
    for token, row in probabilities.items():
        table[token, 3:6] = np.log(row)
    N = 4000
    result, _ = run_script(jnp.asarray(np.maximum(table, -30)), [[2]] * N, 2, SamplingConfig())
    statistic = 0.0
    for a in range(3):
        for b in range(3):
            seen = ((result.tokens_BR == jnp.array([[a + 3, b + 3]])).all(axis=1)).sum()
            expected = N * probabilities[2][a] * probabilities[a + 3][b]
            statistic += (float(seen) - expected) ** 2 / expected
    assert statistic < 26.1  # the 0.999 quantile


# --- one draw ------------------------------------------------------------------------------------


def draw(logits, config, number=8000):
    keys = jax.random.split(jax.random.key(1), number)
    tokens, log_probs = decode.sample(jnp.tile(logits, (number, 1)), keys, config)
    return np.asarray(tokens), np.asarray(log_probs)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_draws_follow_the_tempered_softmax(temperature):
    logits = np.array([0.5, -1.0, 0.0, 1.5, -0.5, 1.0], np.float32)
    tokens, log_probs = draw(logits, SamplingConfig(temperature))
    expected = np.exp(reference.log_softmax(logits / temperature))
    counts = np.bincount(tokens, minlength=6)
    assert ((counts - 8000 * expected) ** 2 / (8000 * expected)).sum() < 20.5  # 5 dof, 0.999
    np.testing.assert_allclose(log_probs, np.log(expected)[tokens], atol=2e-6)


@pytest.mark.parametrize(
    ("config", "allowed"),
    [
        (SamplingConfig(top_k=1), {3}),
        (SamplingConfig(top_k=2), {3, 5}),
        (SamplingConfig(top_p=0.5), {3, 5}),  # 0.42, 0.25, 0.15, ...
        (SamplingConfig(top_p=0.4), {3}),
        (SamplingConfig(top_k=2, top_p=0.6), {3}),  # 0.62 of what top-k leaves
        (SamplingConfig(temperature=0.5, top_p=0.6), {3}),  # 0.62 once sharpened
    ],
)
def test_filters_never_draw_an_excluded_token(config, allowed):
    logits = np.array([0.5, -1.0, 0.0, 1.5, -0.5, 1.0], np.float32)
    tokens, log_probs = draw(logits, config, number=2000)
    assert set(tokens.tolist()) == allowed
    # Log-probabilities are those of the unfiltered distribution.
    unfiltered = reference.log_softmax(logits / config.temperature)
    np.testing.assert_allclose(log_probs, unfiltered[tokens], atol=2e-6)


@settings(max_examples=40)
@given(st.permutations(range(8)), st.integers(0, 9), st.floats(0.05, 1.0), st.floats(0.2, 3.0))
def test_filters_keep_what_numpy_keeps(order, top_k, top_p, spread):
    logits = np.array(order, np.float32) * np.float32(spread)
    kept = reference.top_k_set(logits, top_k) if top_k else set(range(8))
    masked = np.array([x if v in kept else -1e9 for v, x in enumerate(logits)])
    cumulative = np.cumsum(np.sort(np.exp(reference.log_softmax(masked)))[::-1])
    if top_p < 1 and np.abs(cumulative - top_p).min() < 1e-5:
        return  # float32 may stand on either side of the border
    if top_p < 1:
        kept = reference.top_p_set(masked, top_p)
    filtered = decode.filter_logits(jnp.asarray(logits)[None], SamplingConfig(1.0, top_k, top_p))[0]
    assert set(np.flatnonzero(np.isfinite(filtered)).tolist()) == kept
    np.testing.assert_array_equal(np.asarray(filtered)[sorted(kept)], logits[sorted(kept)])


def test_filters_off_change_nothing():
    logits = jnp.arange(6.0)[None]
    np.testing.assert_array_equal(decode.filter_logits(logits, SamplingConfig()), logits)
    np.testing.assert_array_equal(decode.filter_logits(logits, SamplingConfig(top_k=6)), logits)


def test_filters_keep_ties():
    filtered = decode.filter_logits(jnp.array([[1.0, 2.0, 2.0, 0.0]]), SamplingConfig(top_k=1))
    assert np.isfinite(filtered).tolist() == [[False, True, True, False]]


def test_row_keys_depend_on_the_number_of_the_row_only():
    key = jax.random.key(0)
    a = jax.random.key_data(decode.row_keys(key, jnp.array([4, 9])))
    b = jax.random.key_data(decode.row_keys(key, jnp.array([9, 1, 4])))
    np.testing.assert_array_equal(a, b[jnp.array([2, 0])])
    assert len(np.unique(b, axis=0)) == 3


@pytest.mark.parametrize(
    "values", [{"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_config_rejects(values):
    name, value = next(iter(values.items()))
    with pytest.raises(ValueError, match=f"sampling: got .*{name}={value}.*expected temperature"):
        SamplingConfig(**values)


def test_row_and_column_each_move_a_draw(params):
    """Among tokens that are all alike, so that nothing but the keys can tell draws apart."""
    flat = jax.tree.map(jnp.zeros_like, params)
    keys = decode.row_keys(jax.random.key(5), jnp.arange(64))
    config = SamplingConfig()
    found, again, other = (
        np.asarray(
            generate(MODEL, flat, left_pad([PROMPTS[0]] * 64), each, R, config).tokens_BR[:, :2]
        )
        for each in (keys, keys, decode.row_keys(jax.random.key(6), jnp.arange(64)))
    )
    np.testing.assert_array_equal(found, again)
    for one, two in ((found[:, 0], found[:, 1]), (found[1:, 0], found[:-1, 0]), (found, other)):
        assert np.mean(one == two) < 0.3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bfloat16_with_shared_key_heads_decodes(temperature):
    """XLA on a CPU refused the products of such a program when it was run."""
    config = dataclasses.replace(
        TINY, dtype="bfloat16", embed_dim=96, num_heads=6, num_kv_heads=2, head_dim=16
    )
    model, sampling = LanguageModel(config), SamplingConfig(temperature=temperature)
    params = jax.tree.map(lambda x: x / 2, random_params(model, seed=3))
    keys = decode.row_keys(jax.random.key(5), jnp.arange(4))
    result = generate(model, params, left_pad(PROMPTS), keys, R, sampling)
    whole = jnp.concatenate([left_pad(PROMPTS), result.tokens_BR], axis=1)
    valid = jnp.concatenate([left_pad(PROMPTS) != PAD, result.mask_BR], axis=1)
    mask = causal_mask(valid.astype(jnp.int32))
    exact = LanguageModel(dataclasses.replace(config, dtype="float32"))
    logits = exact.apply({"params": params}, whole, positions_of(valid), mask, P - 1)
    forced = token_log_probs(logits[:, :-1], result.tokens_BR, temperature)
    np.testing.assert_allclose(result.log_probs_BR, forced * result.mask_BR, atol=0.1)


def test_an_int8_cache_changes_little(params):
    """What is sampled has nearly the log-probability that a full pass gives it."""
    model = LanguageModel(dataclasses.replace(MODEL.config, cache="int8"))
    keys = decode.row_keys(jax.random.key(5), jnp.arange(4))
    result = generate(model, params, left_pad(PROMPTS), keys, R, SamplingConfig())
    whole = jnp.concatenate([left_pad(PROMPTS), result.tokens_BR], axis=1)
    valid = jnp.concatenate([left_pad(PROMPTS) != PAD, result.mask_BR], axis=1)
    forced = token_log_probs(full_pass(params, whole, valid)[:, :-1], result.tokens_BR)
    off = np.abs(result.log_probs_BR - forced * result.mask_BR)
    assert 1e-4 < off.max() < 0.1
