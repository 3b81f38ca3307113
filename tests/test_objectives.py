"""What each stage minimises and reports, against values worked out from logits and scores."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
import pytest

from pit_jax import objectives
from pit_jax.forward import gap_scores_separately, response_scores
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel
from tests import reference
from tests.tiny_models import TINY, random_params

CLOSE = {"rtol": 3e-5, "atol": 3e-5}
SCALAR_MODEL = ScalarModel(TINY)
SCALAR_PARAMS = random_params(SCALAR_MODEL, seed=2)
LANGUAGE_PARAMS = random_params(LanguageModel(TINY), seed=1)
INEQUALITIES = ("wl>ww", "wl>ll", "wl>lw", "ww>lw", "ll>lw")


def mean(pair):
    return float(pair[0]) / float(pair[1])


@functools.cache
def program(make, config=None):
    loss = make(TINY) if config is None else make(TINY, config)
    return jax.jit(loss)


def packed_batch():
    """One row of two examples and padding, one of a single example; the last weight is negative."""
    return {
        "decoder_target_tokens": np.array([[7, 8, 5, 1, 9, 6, 1, 0], [3, 4, 1, 0, 0, 0, 0, 0]]),
        "decoder_input_tokens": np.array([[0, 7, 8, 5, 0, 9, 6, 0], [0, 3, 4, 0, 0, 0, 0, 0]]),
        "decoder_loss_weights": np.array(
            [[0, 0, 1, 1, 0, 1, 1, 0], [0, 1, -0.5, 0, 0, 0, 0, 0]], np.float32
        ),
        "decoder_segment_ids": np.array([[1, 1, 1, 1, 2, 2, 2, 0], [1, 1, 1, 0, 0, 0, 0, 0]]),
        "decoder_positions": np.array([[0, 1, 2, 3, 0, 1, 2, 0], [0, 1, 2, 0, 0, 0, 0, 0]]),
    }


def test_supervised_loss_of_packed_rows_with_an_unlikely_target():
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), LANGUAGE_PARAMS)
    total, right = 0.0, 0
    sequences = (([7, 8, 5, 1], [0, 0, 1, 1]), ([9, 6, 1], [0, 1, 1]), ([3, 4, 1], [0, 1, -0.5]))
    for targets, weights in sequences:
        logits = reference.logits(params, TINY, [0, *targets[:-1]])
        for row, target, weight in zip(reference.log_softmax(logits), targets, weights):
            if weight > 0:
                total -= weight * row[target]
                right += row.argmax() == target
            if weight < 0:
                total += weight * math.log(1 - math.exp(row[target]))
    (loss, weight), metrics = program(objectives.supervised)(LANGUAGE_PARAMS, packed_batch())
    assert weight == 5
    np.testing.assert_allclose(loss, total, **CLOSE)
    np.testing.assert_allclose(mean(metrics["loss"]), total / 5, **CLOSE)
    np.testing.assert_allclose(mean(metrics["token_accuracy"]), right / 5, **CLOSE)
    assert mean(metrics["tokens"]) == 10


def pair_batch():
    return {
        "prompt_tokens": np.array([[0, 3, 4], [5, 6, 7], [0, 0, 9], [4, 4, 5]]),
        "chosen_tokens": np.array([[3, 1, 0], [2, 4, 1], [1, 0, 0], [6, 1, 0]]),
        "rejected_tokens": np.array([[5, 5, 1], [1, 0, 0], [7, 1, 0], [6, 2, 1]]),
    }


def gap_batch():
    """pair_batch with y after control tokens as references."""
    pairs = pair_batch()
    batch = {"context_tokens": pairs["prompt_tokens"]}
    for name in ("chosen", "rejected"):
        tokens = batch[f"{name}_tokens"] = pairs[f"{name}_tokens"]
        texts = [[t for t in row if t > 1] for row in tokens]
        padding = [[0] * (3 - len(text)) for text in texts]
        batch[f"{name}_reference"] = np.array(
            [[14, *text, 15, *zeros] for text, zeros in zip(texts, padding)]
        )
    return batch


def pair_scores(pooling):
    batch = pair_batch()
    return [
        np.asarray(
            response_scores(
                SCALAR_MODEL,
                SCALAR_PARAMS,
                batch["prompt_tokens"],
                batch[name],
                batch[name] != 0,
                pooling,
            ),
            np.float64,
        )
        for name in ("chosen_tokens", "rejected_tokens")
    ]


def test_reward_metrics_by_hand():
    config = objectives.RewardConfig(pooling="sum", centring=0.1)
    chosen, rejected = pair_scores("sum")
    (loss, weight), metrics = program(objectives.reward, config)(SCALAR_PARAMS, pair_batch())
    pairwise = -sum(reference.log_sigmoid(margin) for margin in chosen - rejected)
    squares = (np.sum(chosen**2) + np.sum(rejected**2)) / 8
    assert weight == 4
    np.testing.assert_allclose(loss, pairwise + 0.1 * squares * 4, **CLOSE)
    np.testing.assert_allclose(mean(metrics["loss"]), pairwise / 4, **CLOSE)
    assert mean(metrics["accuracy"]) == np.mean(chosen > rejected)
    np.testing.assert_allclose(mean(metrics["margin"]), np.mean(chosen - rejected), **CLOSE)
    np.testing.assert_allclose(mean(metrics["mean_score"]), np.mean([chosen, rejected]), **CLOSE)
    assert mean(metrics["tokens"]) == 9 + 8 + 9


def test_gap_metrics_by_hand():
    config = objectives.RewardConfig(pooling="last", centring=0.1)
    batch = gap_batch()
    (loss, weight), metrics = program(objectives.gap_reward, config)(SCALAR_PARAMS, batch)
    scores = gap_scores_separately(SCALAR_MODEL, SCALAR_PARAMS, batch, "last")
    scores = {pair: np.asarray(score, np.float64) for pair, score in scores.items()}
    rows = zip(*(scores[pair] for pair in ("wl", "ww", "ll", "lw")))
    eq2 = sum(reference.gap_loss(*row) for row in rows)
    squares = np.mean([score**2 for score in scores.values()])
    assert weight == 4
    np.testing.assert_allclose(loss, eq2 + 0.1 * squares * 4, **CLOSE)
    np.testing.assert_allclose(mean(metrics["loss"]), eq2 / 4, **CLOSE)
    assert mean(metrics["accuracy"]) == np.mean(scores["wl"] > scores["lw"])
    for inequality in INEQUALITIES:
        greater, smaller = inequality.split(">")
        right = np.mean(scores[greater] > scores[smaller])
        assert mean(metrics[f"accuracy_{inequality}"]) == right
    for pair, score in scores.items():
        np.testing.assert_allclose(mean(metrics[f"mean_{pair}"]), score.mean(), **CLOSE)
    moved = np.abs(scores["wl"] - scores["ww"]) + np.abs(scores["ll"] - scores["lw"])
    spread = np.abs(scores["wl"] - scores["lw"])
    expected = moved.sum() / spread.sum()
    np.testing.assert_allclose(mean(metrics["reference_moves_score"]), expected, rtol=1e-4)


def test_a_score_that_ignores_the_reference_shows_as_degenerate():
    """With all references alike, swapping them moves no score (Appendix C's shortcut)."""
    batch = gap_batch()
    batch["rejected_reference"] = batch["chosen_reference"]
    config = objectives.RewardConfig(pooling="last", centring=0.1)
    _, metrics = program(objectives.gap_reward, config)(SCALAR_PARAMS, batch)
    assert mean(metrics["reference_moves_score"]) < 1e-5


@pytest.mark.parametrize(
    ("make", "batch"),
    [(objectives.reward, pair_batch()), (objectives.gap_reward, gap_batch())],
    ids=["reward", "gap_reward"],
)
def test_filler_rows_change_nothing(make, batch):
    config = objectives.RewardConfig(pooling="last", centring=0.1)
    weight = np.array([1, 1, 1, 0], np.float32)
    other = {name: np.concatenate([x[:3], x[:1]]) for name, x in batch.items()}
    run = program(make, config)
    results = [run(SCALAR_PARAMS, {**rows, "weight": weight}) for rows in (batch, other)]
    results = [(total, {**metrics, "tokens": 0}) for total, metrics in results]
    for one, two in zip(*map(jax.tree.leaves, results)):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)
    assert results[0][0][1] == 3
    whole = run(SCALAR_PARAMS, {**batch, "weight": np.ones(4, np.float32)})
    assert abs(float(whole[0][0]) - float(results[0][0][0])) > 1e-3


@pytest.mark.parametrize("kind", ["two_term", "pointwise"])
def test_ablations_of_the_gap_loss_are_selected(kind):
    config = objectives.RewardConfig(gap_loss=kind)
    (loss, _), _ = program(objectives.gap_reward, config)(SCALAR_PARAMS, gap_batch())
    scores = gap_scores_separately(SCALAR_MODEL, SCALAR_PARAMS, gap_batch(), "last")
    wl, ww, ll, lw = (np.asarray(scores[p], np.float64) for p in ("wl", "ww", "ll", "lw"))
    if kind == "two_term":
        expected = -sum(map(reference.log_sigmoid, wl - lw))
    else:
        expected = ((wl - 1) ** 2 + (ww - 0.5) ** 2 + (ll - 0.5) ** 2 + lw**2).sum() / 4
    np.testing.assert_allclose(loss, expected, **CLOSE)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": "mean"}, r"got pooling='mean', expected one of \('last', 'sum'\)"),
        ({"gap_loss": "eq3"}, r"got gap_loss='eq3', expected one of \('eq2', 'two_term'"),
    ],
)
def test_unknown_choices_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        objectives.RewardConfig(**fields)
