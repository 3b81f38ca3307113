"""Batches of a fixed size: what a row becomes depends on its own prompt, number and key alone."""

from __future__ import annotations

import itertools
import types

import jax
import numpy as np
import pytest

from pit_jax.data.vocabularies.base import EOS_ID as EOS
from pit_jax.method import forward
from pit_jax.method import sampler as sampler_module
from pit_jax.method.decode import SamplingConfig, generate, row_keys
from pit_jax.method.sampler import Reflecting, Response, Sampler, pad_left, pad_right
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel
from pit_jax.runtime.partitioning import MeshConfig, Partitioner
from tests.tiny_models import TINY, random_params

WIDTH, R = 4, 5
KEY = jax.random.key(6)
SAMPLING = SamplingConfig(temperature=1.3)
DRAWN = SamplingConfig()  # what the program of every temperature but 0 is made for
PROMPTS = [[5, 6, 7], [4], [9, 9, 3, 2], [5, 6, 7], [8, 2], [4], [10, 3]]
ROWS = [11, 12, 13, 14, 15, 12, 16]


def sampler(batch_size):
    return Sampler(TINY, Partitioner(MeshConfig(), jax.devices()[:1]), R, batch_size)


@pytest.fixture(scope="module")
def params():
    return random_params(LanguageModel(TINY), seed=1)


@pytest.fixture(scope="module")
def by_three():
    """Seven rows by three: the last batch has one of them and two fillers."""
    return sampler(3)


@pytest.fixture(scope="module")
def responses(by_three, params):
    return by_three.respond(params, PROMPTS, WIDTH, ROWS, KEY, SAMPLING)


def test_responses_end_before_eos_or_at_the_window(responses):
    assert len(responses) == len(PROMPTS)
    for response in responses:
        assert EOS not in response.tokens
        assert len(response.tokens) == R or response.ended
    assert {response.ended for response in responses} == {True, False}


def test_each_of_several_ends_ends_a_response(responses, params):
    """It has the tokens before the first of them, as without the others."""
    ends = (EOS, 3, 5, 9)
    made = Sampler(TINY, Partitioner(MeshConfig(), jax.devices()[:1]), R, 7, ends=ends)
    found = made.respond(params, PROMPTS, WIDTH, ROWS, KEY, SAMPLING)
    expected = []
    for one in responses:
        before = list(itertools.takewhile(lambda token: token not in ends, one.tokens))
        expected.append(Response(before, one.ended or len(before) < len(one.tokens)))
    assert found == expected != responses


def test_the_batch_size_changes_nothing(responses, params):
    assert sampler(8).respond(params, PROMPTS, WIDTH, ROWS, KEY, SAMPLING) == responses


def test_order_and_neighbours_change_nothing(responses, by_three, params):
    order = [6, 2, 0, 5, 1]
    prompts, rows = ([values[i] for i in order] for values in (PROMPTS, ROWS))
    again = by_three.respond(params, prompts, WIDTH, rows, KEY, SAMPLING)
    assert again == [responses[i] for i in order]


def test_the_number_of_a_row_decides_its_draw(responses, by_three, params):
    # Rows 1 and 5 have one prompt and one number; 0 and 3 have one prompt and two numbers.
    assert responses[1] == responses[5]
    assert responses[0] != responses[3]
    other = by_three.respond(params, PROMPTS, WIDTH, ROWS, jax.random.key(4), SAMPLING)
    assert other != responses


def test_greedy_decoding_needs_no_key(by_three, params):
    greedy = SamplingConfig(temperature=0.0)
    one, two = (
        by_three.respond(params, PROMPTS[:4], WIDTH, rows, jax.random.key(seed), greedy)
        for seed, rows in ((0, ROWS[:4]), (1, ROWS[3:]))
    )
    assert one == two and one[0] == one[3]


def test_scores_are_those_of_whole_sequences(by_three):
    params = random_params(ScalarModel(TINY), seed=2)
    given = [
        Response([7, 8], True),
        Response([3] * R, False),
        Response([], True),
        Response([2], True),
    ]
    scores = by_three.score(params, PROMPTS[:4], WIDTH, given, "sum")
    assert scores.shape == (4,) and scores.dtype == np.float32
    for prompt, response, score in zip(PROMPTS, given, scores):
        tokens = np.array([[*response.tokens, *[EOS] * response.ended]])
        alone = forward.response_scores(
            ScalarModel(TINY), params, np.array([prompt]), tokens, np.ones(tokens.shape), "sum"
        )
        np.testing.assert_allclose(score, alone[0], rtol=1e-5, atol=1e-5)


def test_each_pooling_has_a_program_of_its_own(by_three):
    """The same sampler reads R_P and R_PIT, which may be pooled in different ways."""
    params = random_params(ScalarModel(TINY), seed=2)
    given = [Response([7, 8], True), Response([3] * R, False)]
    summed, last, again = (
        by_three.score(params, PROMPTS[:2], WIDTH, given, how) for how in ("sum", "last", "sum")
    )
    np.testing.assert_array_equal(summed, again)
    assert (np.abs(summed - last) > 0.1).all()


def test_each_sampling_has_a_program_of_its_own(by_three, params, responses):
    """What is filtered away is in no response, whichever was sampled first."""
    greedy = SamplingConfig(temperature=1.3, top_k=1)
    found = by_three.respond(params, PROMPTS, WIDTH, ROWS, KEY, greedy)
    assert found == by_three.respond(params, PROMPTS, WIDTH, ROWS, KEY, SamplingConfig(0.0))
    assert found != responses
    assert by_three.respond(params, PROMPTS, WIDTH, ROWS, KEY, SAMPLING) == responses


def test_a_program_samples_the_ids_that_are_allowed(monkeypatch):
    monkeypatch.setattr("pit_jax.method.sampler.generate", lambda *given: given)
    partitioner = types.SimpleNamespace(jit=lambda function, **_: function, replicated=None)
    made = Sampler(TINY, partitioner, R, 3, "allowed")
    batch = {"prompts": "prompts", "rows": np.array([4]), "temperatures": 1.3}
    given = made.respond_program(SAMPLING)("params", batch, KEY)
    assert given[1:3] == ("params", "prompts") and given[4:] == (R, DRAWN, "allowed", (1,), 1.3)


def test_one_that_reflects_may_sample_improved_in_a_wider_window(monkeypatch):
    """Of the control tokens 6 and 7, Improved is 7; models that don't reflect never sample it."""
    monkeypatch.setattr("pit_jax.method.sampler.generate", lambda *given: given)
    partitioner = types.SimpleNamespace(jit=lambda function, **_: function, replicated=None)
    text = [False, True, True, True, True, True, False, False]
    made = Sampler(TINY, partitioner, R, 3, np.array(text))
    batch = {"prompts": "prompts", "rows": np.array([4]), "temperatures": 1.3}
    for reflecting, length, improved in (
        (None, R, False),
        (Reflecting(9, 7), 9, True),
        (Reflecting(8, 7), 8, True),
        (None, R, False),
    ):
        given = made.respond_program(SAMPLING, reflecting)("params", batch, KEY)
        assert given[4:6] == (length, DRAWN)
        assert given[6].tolist() == [*text[:7], improved]
    anything = Sampler(TINY, partitioner, R, 3).respond_program(SAMPLING, Reflecting(9, 7))
    assert anything("params", batch, KEY)[6] is None


def test_a_model_that_reflects_draws_improved_beside_what_it_may(params):
    """Of two ids, in the reflection's window; a response alone would be of 5 alone."""
    mesh = Partitioner(MeshConfig(), jax.devices()[:1])
    made = Sampler(TINY, mesh, R, 7, np.arange(TINY.vocab_size) == 5)
    found = made.respond(params, PROMPTS, WIDTH, ROWS, KEY, SAMPLING, Reflecting(9, 7))
    assert {token for text in found for token in text.tokens} == {5, 7}
    assert {(len(text.tokens), text.ended) for text in found} == {(9, False)}


def test_a_text_with_a_reflection_comes_back_whole(monkeypatch):
    """It is padded to its own window, and ends before EOS; the shorter prompt goes first."""
    tokens = np.array([[4, 4, 7, 5, 5, 5, 5], [4, 7, 5, 1, 0, 0, 0]])
    generation = types.SimpleNamespace(tokens_BR=tokens, mask_BR=tokens > 0)
    made = sampler(2)
    asked = []
    monkeypatch.setattr(
        made, "respond_program", lambda *given: asked.append(given) or (lambda *_: generation)
    )
    found = made.respond("params", PROMPTS[:2], WIDTH, ROWS[:2], KEY, SAMPLING, Reflecting(7, 7))
    assert asked == [(SAMPLING, Reflecting(7, 7))]
    assert found == [Response([4, 7, 5], True), Response([4, 4, 7, 5, 5, 5, 5], False)]


def test_an_empty_response_has_the_score_of_its_end(by_three):
    """Whether it ended or was cut to nothing after its reflection."""
    params = random_params(ScalarModel(TINY), seed=2)
    given = [Response([], True), Response([], False)]
    ended, cut = by_three.score(params, [PROMPTS[0]] * 2, WIDTH, given, "sum")
    assert ended == cut != 0


def test_no_rows_give_no_responses_and_no_scores(by_three, params):
    assert by_three.respond(params, [], WIDTH, [], KEY, SAMPLING) == []
    assert by_three.score(params, [], WIDTH, [], "last").shape == (0,)


def test_padding():
    np.testing.assert_array_equal(pad_left([[1, 2], [3]], 3), [[0, 1, 2], [0, 0, 3]])
    np.testing.assert_array_equal(pad_right([[1, 2], []], 3), [[1, 2, 0], [0, 0, 0]])
    with pytest.raises(ValueError, match="prompt of 4 tokens, expected at most 3"):
        pad_left([[1, 2, 3, 4]], 3)


def test_one_program_draws_at_every_temperature(by_three, params, monkeypatch):
    """What it draws is what a program made for that temperature draws."""
    found = by_three.respond(params, PROMPTS, WIDTH, ROWS, KEY, SamplingConfig(temperature=0.4))
    program = by_three.respond_program(SAMPLING)
    assert program is by_three.respond_program(SamplingConfig(temperature=0.4))
    assert program is not by_three.respond_program(SamplingConfig(temperature=0))
    keys = row_keys(KEY, np.array(ROWS))
    rows = pad_left(PROMPTS, WIDTH)
    alone = generate(LanguageModel(TINY), params, rows, keys, R, SamplingConfig(temperature=0.4))
    tokens = [np.asarray(row[mask]).tolist() for row, mask in zip(*alone_rows(alone), strict=True)]
    assert [[*each.tokens, *[EOS] * each.ended] for each in found] == tokens


def alone_rows(generation):
    return np.asarray(generation.tokens_BR), np.asarray(generation.mask_BR)


@pytest.fixture
def asked(monkeypatch):
    """The shapes of what programs are given, [rows, columns of a prompt] or the width of a row."""
    shapes = []
    forwards = sampler_module.response_scores

    def generating(model, params, prompt_BP, *rest):
        shapes.append(prompt_BP.shape)
        return generate(model, params, prompt_BP, *rest)

    def scoring(*given):
        shapes.append(given[-1])
        return forwards(*given)

    monkeypatch.setattr(sampler_module, "generate", generating)
    monkeypatch.setattr(sampler_module, "response_scores", scoring)
    return shapes


def test_rows_of_like_lengths_go_together_in_the_width_that_they_fit_in(asked, params):
    """Prompts of up to 100 ids have 56, 80 or 100 columns; the first two batches have 56."""
    prompts = [[2 + i % 9] * n for i, n in enumerate([3, 70, 9, 41, 38, 55, 100])]
    found = sampler(2).respond(params, prompts, 100, range(7), KEY, SAMPLING)
    assert asked == [(2, 56), (2, 80), (2, 100)]
    for row, (prompt, response) in enumerate(zip(prompts, found, strict=True)):
        alone = sampler(1).respond(params, [prompt], len(prompt), [row], KEY, SAMPLING)
        assert alone == [response]


def test_scored_rows_are_cut_to_the_width_that_they_fit_in(asked):
    params = random_params(ScalarModel(TINY), seed=2)
    prompts = [[2 + i % 9] * n for i, n in enumerate([3, 70, 9, 41, 38, 55, 95])]
    responses = [Response([3 + i], True) for i in range(7)]
    scores = sampler(2).score(params, prompts, 95, responses, "last")
    assert asked == [56, 80, None]  # of 100
    alone = [sampler(1).score(params, [p], 95, [r], "last") for p, r in zip(prompts, responses)]
    np.testing.assert_allclose(scores, np.concatenate(alone), rtol=1e-5, atol=1e-5)
