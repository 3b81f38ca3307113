"""Teacher-forced passes against one row at a time in float64 NumPy, without any padding."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pit_jax.data import layouts
from pit_jax.method import forward, losses
from pit_jax.models.heads import POOLINGS, ScalarModel
from pit_jax.models.network import LanguageModel
from tests import reference
from tests.tiny_models import TINY, random_params
from tests.tree_rows import GAP_ORDER, gap_row, pair_row, tree_batch

B, P, Q, R = 3, 5, 4, 4
# Two layers of width 8 in float32 against float64: some hundred roundings of values around 1.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}

LANGUAGE_MODEL, SCALAR_MODEL = LanguageModel(TINY), ScalarModel(TINY)
LANGUAGE_PARAMS = random_params(LANGUAGE_MODEL, seed=1)
SCALAR_PARAMS = random_params(SCALAR_MODEL, seed=2)
IN_NUMPY = functools.partial(jax.tree.map, lambda x: np.asarray(x, np.float64))


def draw(rng, lengths, width, left=False):
    """Rows of random tokens (never padding), padded to `width`; also as lists."""
    rows = [rng.integers(1, TINY.vocab_size, size=n).tolist() for n in lengths]
    padded = np.zeros((len(rows), width), np.int32)
    for number, row in enumerate(rows):
        if row:
            start = width - len(row) if left else 0
            padded[number, start : start + len(row)] = row
    return padded, rows


def scalars_of(tokens):
    """The scalar at every token of one unpadded sequence, in float64."""
    params = IN_NUMPY(SCALAR_PARAMS)
    mask = np.array(reference.causal(len(tokens)))
    hidden = reference.decoder(
        params["decoder"], TINY, np.asarray(tokens), range(len(tokens)), mask
    )
    return hidden @ params["head"]["kernel"][:, 0]


@functools.cache
def tree_program(tree):
    """Both poolings, compiled once."""

    def both(params, batch):
        scores = functools.partial(forward.tree_scores, SCALAR_MODEL, params, batch, tree)
        return {how: scores(how) for how in POOLINGS}

    return jax.jit(both)


def draw_rows(seed, lengths):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, TINY.vocab_size, size=n).tolist() for n in lengths]


def lengths(least, most, count):
    return st.lists(st.integers(least, most), min_size=count, max_size=count)


@settings(max_examples=20)
@given(st.integers(0, 999), lengths(1, P, B), lengths(0, Q, 2 * B), lengths(1, R, 2 * B))
def test_gap_scores_are_those_of_four_whole_sequences(seed, context, references, responses):
    rows = draw_rows(seed, [*context, *references, *responses])
    batch, pieces = [], []
    for b in range(B):
        one = (rows[b], rows[B + 2 * b : B + 2 * b + 2], rows[3 * B + 2 * b : 3 * B + 2 * b + 2])
        pieces.append(one)
        batch.append(gap_row(*one))
    scores = tree_program(layouts.GAP_TREE)(SCALAR_PARAMS, tree_batch(batch, P + 2 * Q + 4 * R + 1))
    assert set(scores["last"]) == set(GAP_ORDER)
    for b, (x, references, responses) in enumerate(pieces):
        for first, second in GAP_ORDER:
            response = responses["wl".index(first)]
            prompt = x + references["wl".index(second)]
            scalars = scalars_of(prompt + response)[len(prompt) :]
            pair = first + second
            np.testing.assert_allclose(scores["last"][pair][b], scalars[-1], **CLOSE)
            np.testing.assert_allclose(scores["sum"][pair][b], scalars.sum(), **CLOSE)


def test_pair_scores_are_those_of_two_whole_sequences():
    rows = draw_rows(1, [5, 2, 3, 1, 1, 4])
    pieces = [rows[:3], rows[3:]]
    batch = tree_batch([pair_row(*row) for row in pieces], 12)
    scores = tree_program(layouts.PAIR_TREE)(SCALAR_PARAMS, batch)
    for b, (x, *responses) in enumerate(pieces):
        for name, response in zip(("chosen", "rejected"), responses, strict=True):
            scalars = scalars_of(x + response)[len(x) :]
            np.testing.assert_allclose(scores["last"][name][b], scalars[-1], **CLOSE)
            np.testing.assert_allclose(scores["sum"][name][b], scalars.sum(), **CLOSE)


def test_shared_prefixes_give_the_gradient_of_separate_passes():
    """Windows that are full, so that the pieces are arrays."""
    rng = np.random.default_rng(3)
    widths = {"x": P, "ref_w": Q, "ref_l": Q, "w": R, "l": R}
    piece = {name: rng.integers(1, TINY.vocab_size, size=(B, n)) for name, n in widths.items()}
    row = [piece[name] for name in ("x", "ref_w", "ref_l", "w", "w", "l", "l")]
    blocks = np.repeat(np.arange(1, 8), [part.shape[1] for part in row])
    batch = {"tokens": np.concatenate(row, axis=1), "blocks": np.tile(blocks, (B, 1))}

    def shared(params):
        return forward.tree_scores(SCALAR_MODEL, params, batch, layouts.GAP_TREE, "last")

    def separate(params):
        found = {}
        for a, b in GAP_ORDER:
            prompt = np.concatenate([piece["x"], piece[f"ref_{b}"]], axis=1)
            mask = np.ones((B, R), np.float32)
            found[a + b] = forward.response_scores(
                SCALAR_MODEL, params, prompt, piece[a], mask, "last"
            )
        return found

    def loss(params, scores):
        return losses.gap_loss(scores(params), np.ones(B, np.float32))[0]

    grads = [
        jax.jit(jax.grad(functools.partial(loss, scores=scores)))(SCALAR_PARAMS)
        for scores in (shared, separate)
    ]
    for one, other in zip(*map(jax.tree.leaves, grads)):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
        assert np.abs(one).max() > 1e-3


RAGGED = ([5, 1, 3], [4, 2, 1])


@pytest.fixture(scope="module")
def passes():
    """The three passes over one batch, at two widths of the prompt."""

    @functools.partial(jax.jit, static_argnames="temperature")
    def run(prompt, response, temperature):
        mask = (response != 0).astype(np.float32)
        both = (SCALAR_MODEL, SCALAR_PARAMS, prompt, response, mask)
        return {
            "log_probs": forward.response_log_probs(
                LANGUAGE_MODEL, LANGUAGE_PARAMS, prompt, response, mask, temperature
            ),
            "values": forward.response_values(*both),
            **{how: forward.response_scores(*both, how) for how in POOLINGS},
        }

    rng = np.random.default_rng(5)
    prompt, prompts = draw(rng, RAGGED[0], P, left=True)
    response, responses = draw(rng, RAGGED[1], R)
    wider = np.pad(prompt, ((0, 0), (2, 0)))
    results = [run(prompt, response, 0.7), run(wider, np.pad(response, ((0, 0), (0, 1))), 0.7)]
    return prompts, responses, results


def test_log_probs_and_entropy_of_ragged_rows_in_numpy(passes):
    prompts, responses, (result, _) = passes
    log_probs, entropy = result["log_probs"]
    params = IN_NUMPY(LANGUAGE_PARAMS)
    for b, (prompt, response) in enumerate(zip(prompts, responses)):
        n = len(response)
        logits = reference.logits(params, TINY, prompt + response)[len(prompt) - 1 : -1]
        expected = reference.token_log_probs(logits[None], np.array([response]), 0.7)
        np.testing.assert_allclose(log_probs[b, :n], expected[0][0], **CLOSE)
        np.testing.assert_allclose(entropy[b, :n], expected[1][0], **CLOSE)
        assert not np.any(log_probs[b, n:]) and not np.any(entropy[b, n:])


def test_a_value_is_read_before_its_token(passes):
    prompts, responses, (result, _) = passes
    for b, (prompt, response) in enumerate(zip(prompts, responses)):
        n = len(response)
        expected = [scalars_of(prompt + response[:t])[-1] for t in range(n)]
        np.testing.assert_allclose(result["values"][b, :n], expected, **CLOSE)
        assert not np.any(result["values"][b, n:])


def test_scores_are_read_at_the_last_token_or_summed_over_the_response(passes):
    prompts, responses, (result, _) = passes
    for b, (prompt, response) in enumerate(zip(prompts, responses)):
        scalars = scalars_of(prompt + response)[len(prompt) :]
        np.testing.assert_allclose(result["last"][b], scalars[-1], **CLOSE)
        np.testing.assert_allclose(result["sum"][b], scalars.sum(), **CLOSE)


def test_more_padding_changes_nothing(passes):
    _, _, (result, wider) = passes
    for name in result:
        for narrow, wide in zip(jax.tree.leaves(result[name]), jax.tree.leaves(wider[name])):
            wide = wide[:, :R] if wide.ndim == 2 else wide
            np.testing.assert_allclose(narrow, wide, **CLOSE)
