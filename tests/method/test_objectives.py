"""What each stage minimises and reports, against values worked out from logits and scores."""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
import pytest

from pit_jax.data.layouts import GAP_PAIR_TREE, GAP_TREE
from pit_jax.method import objectives
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel
from tests import reference
from tests.tiny_models import TINY, random_params
from tests.tree_rows import GAP_ORDER, gap_row, pair_row, tree_batch, tree_row

CLOSE = {"rtol": 3e-5, "atol": 3e-5}
SCALAR_PARAMS = random_params(ScalarModel(TINY), seed=2)
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
    (loss, weight), metrics = program(objectives.supervised, True)(LANGUAGE_PARAMS, packed_batch())
    assert weight == 5.5
    np.testing.assert_allclose(loss, total, **CLOSE)
    np.testing.assert_allclose(mean(metrics["loss"]), total / 5.5, **CLOSE)
    np.testing.assert_allclose(mean(metrics["token_accuracy"]), right / 5, **CLOSE)
    assert mean(metrics["tokens"]) == 10


def test_token_accuracy_is_of_the_tokens_that_are_learned(monkeypatch):
    """All four are guessed, and two of them count."""
    tokens = np.array([[3, 4, 5, 1]])
    logits = jax.nn.one_hot(tokens, TINY.vocab_size)

    class Model:
        hidden, logits = "hidden", "logits"

        def __init__(self, network):
            del network

        def apply(self, variables, x, *_, method):
            return logits if method == "hidden" else x

    monkeypatch.setattr(objectives, "LanguageModel", Model)
    names = ("input_tokens", "target_tokens", "positions", "segment_ids")
    batch = {f"decoder_{name}": tokens for name in names}
    batch["decoder_loss_weights"] = np.array([[0, 0, 1, 1]], np.float32)
    _, metrics = objectives.supervised(TINY)({"decoder": {}}, batch)
    assert mean(metrics["token_accuracy"]) == 1


PROMPTS = [[3, 4], [5, 6, 7], [9], [4, 4, 5]]
CHOSEN = [[3, 1], [2, 4, 1], [1], [6, 1]]
REJECTED = [[5, 5, 1], [1], [7, 1], [6, 2, 1]]


def pair_batch():
    return tree_batch([pair_row(*row) for row in zip(PROMPTS, CHOSEN, REJECTED)], 10)


def references(responses):
    """Responses after and before control tokens, without EOS."""
    return [[14, *response[:-1], 15] for response in responses]


def gap_rows(chosen_references, rejected_references):
    pieces = zip(
        PROMPTS, zip(chosen_references, rejected_references), zip(CHOSEN, REJECTED), strict=True
    )
    return tree_batch([gap_row(*row) for row in pieces], 24)


def gap_batch():
    return gap_rows(references(CHOSEN), references(REJECTED))


def scores_apart(prompts, responses, pooling):
    """Scores of whole sequences, one at a time, in float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), SCALAR_PARAMS)
    return np.array(
        [
            {"last": scores[-1], "sum": scores[len(prompt) :].sum()}[pooling]
            for prompt, response in zip(prompts, responses, strict=True)
            for scores in [reference.scalars(params, TINY, [*prompt, *response])]
        ]
    )


def pair_scores(pooling):
    return [scores_apart(PROMPTS, responses, pooling) for responses in (CHOSEN, REJECTED)]


@functools.cache
def gap_scores_apart():
    responses = {"w": CHOSEN, "l": REJECTED}
    return {
        a + b: scores_apart(
            [x + y for x, y in zip(PROMPTS, references(responses[b]))], responses[a], "last"
        )
        for a, b in GAP_ORDER
    }


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
    assert mean(metrics["real_token_share"]) == pytest.approx(26 / 40)


def test_gap_metrics_by_hand():
    config = objectives.RewardConfig(pooling="last", centring=0.1)
    batch = gap_batch()
    (loss, weight), metrics = program(objectives.gap_reward, config)(SCALAR_PARAMS, batch)
    scores = gap_scores_apart()
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
    batch = gap_rows(references(CHOSEN), references(CHOSEN))
    config = objectives.RewardConfig(pooling="last", centring=0.1)
    _, metrics = program(objectives.gap_reward, config)(SCALAR_PARAMS, batch)
    assert mean(metrics["reference_moves_score"]) < 1e-5


def test_equal_scores_are_not_right():
    """A model that scores everything alike has learned nothing, and its accuracies say so."""
    flat = {**SCALAR_PARAMS, "head": jax.tree.map(np.zeros_like, SCALAR_PARAMS["head"])}
    for make, config, batch in (
        (objectives.reward, objectives.RewardConfig(pooling="sum", centring=0.1), pair_batch()),
        (objectives.gap_reward, objectives.RewardConfig(centring=0.1), gap_batch()),
    ):
        _, metrics = program(make, config)(flat, batch)
        found = {name: mean(pair) for name, pair in metrics.items() if "accuracy" in name}
        assert set(found.values()) == {0.0}
        assert len(found) == (1 if make is objectives.reward else 6)


@pytest.mark.parametrize("make", [objectives.reward, objectives.gap_reward])
def test_scores_are_read_as_the_configuration_says(make, monkeypatch):
    read = []

    def tree_scores(model, params, batch, tree, pooling, widths):
        read.append(pooling)
        return {block.score: jax.numpy.zeros(2) for block in tree if block.score}

    monkeypatch.setattr(objectives, "tree_scores", tree_scores)
    batch = {name: np.ones((2, 3), np.int32) for name in ("tokens", "blocks")}
    for pooling in ("sum", "last"):
        make(TINY, objectives.RewardConfig(pooling=pooling))({}, batch)
    assert read == ["sum", "last"]


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
    counts = {"tokens": 0, "real_token_share": 0}
    results = [(total, metrics | counts) for total, metrics in results]
    for one, two in zip(*map(jax.tree.leaves, results)):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)
    assert results[0][0][1] == 3
    whole = run(SCALAR_PARAMS, {**batch, "weight": np.ones(4, np.float32)})
    assert abs(float(whole[0][0]) - float(results[0][0][0])) > 1e-3


@pytest.mark.parametrize("kind", ["two_term", "pointwise"])
def test_ablations_of_the_gap_loss_are_selected(kind):
    config = objectives.RewardConfig(gap_loss=kind)
    (loss, _), _ = program(objectives.gap_reward, config)(SCALAR_PARAMS, gap_batch())
    wl, ww, ll, lw = (gap_scores_apart()[pair] for pair in GAP_ORDER)
    if kind == "two_term":
        expected = -sum(map(reference.log_sigmoid, wl - lw))
    else:
        expected = ((wl - 1) ** 2 + (ww - 0.5) ** 2 + (ll - 0.5) ** 2 + lw**2).sum() / 4
    np.testing.assert_allclose(loss, expected, **CLOSE)


def test_two_terms_need_two_of_the_four_scores():
    """On rows without the others: the same loss and gradients, and metrics of what there is."""
    config = objectives.RewardConfig(gap_loss="two_term")
    pieces = zip(PROMPTS, references(CHOSEN), references(REJECTED), CHOSEN, REJECTED, strict=True)
    fewer = tree_batch([tree_row(*row) for row in pieces], 18)

    def found(tree, batch):
        def loss(params):
            (total, weight), metrics = objectives.gap_reward(TINY, config, tree)(params, batch)
            return total, (weight, metrics)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(SCALAR_PARAMS)

    (loss, (weight, metrics)), gradients = found(GAP_TREE, gap_batch())
    (loss_2, (weight_2, metrics_2)), gradients_2 = found(GAP_PAIR_TREE, fewer)
    np.testing.assert_allclose(loss_2, loss, **CLOSE)
    assert float(weight_2) == float(weight) == 4
    for one, two in zip(*map(jax.tree.leaves, (gradients, gradients_2)), strict=True):
        np.testing.assert_allclose(one, two, **CLOSE)
    assert set(metrics) - set(metrics_2) == {
        *("accuracy_wl>ww", "accuracy_wl>ll", "accuracy_ww>lw", "accuracy_ll>lw"),
        *("mean_ww", "mean_ll", "reference_moves_score"),
    }
    assert mean(metrics_2["accuracy"]) == mean(metrics["accuracy"])


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
