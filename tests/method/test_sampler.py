"""A pool of a fixed size: what a row becomes depends on its own prompt, number and key alone."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.data.vocabularies.base import EOS_ID as EOS
from pit_jax.method import forward
from pit_jax.method import sampler as sampler_module
from pit_jax.method.decode import Decoding, SamplingConfig, generate, row_keys
from pit_jax.method.sampler import Reflecting, Response, Sampler, pad_left, pad_right
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel
from pit_jax.runtime.partitioning import MeshConfig, Partitioner
from tests.tiny_models import TINY, random_params

WIDTH, R = 4, 5
KEY = jax.random.key(6)
SAMPLING = SamplingConfig(temperature=1.3)
PROMPTS = [[5, 6, 7], [4], [9, 9, 3, 2], [5, 6, 7], [8, 2], [4], [10, 3]]
ROWS = [11, 12, 13, 14, 15, 12, 16]


ENDS = (EOS, 3, 5, 9)


def sampler(batch_size, ends=(EOS,)):
    partitioner = Partitioner(MeshConfig(), jax.devices()[:1])
    return Sampler(TINY, partitioner, R, batch_size, ends=ends)


@pytest.fixture(scope="module")
def params():
    return random_params(LanguageModel(TINY), seed=1)


@pytest.fixture(scope="module")
def by_three():
    """Seven rows by three: the last ones have one of them and two fillers."""
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
    found = sampler(7, ENDS).respond(params, PROMPTS, WIDTH, ROWS, KEY, SAMPLING)
    expected = []
    for one in responses:
        before = list(itertools.takewhile(lambda token: token not in ENDS, one.tokens))
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


def test_one_that_reflects_may_sample_improved_in_a_wider_window(params):
    """Of two ids and EOS; the control token 7 is Improved, which no other model ever samples."""
    mesh = Partitioner(MeshConfig(), jax.devices()[:1])
    made = Sampler(TINY, mesh, R, 7, np.isin(np.arange(TINY.vocab_size), [EOS, 5]))
    for reflecting, length, ids in (
        (None, R, {5}),
        (Reflecting(9, 7), 9, {5, 7}),
        (Reflecting(8, 7), 8, {5, 7}),
        (None, R, {5}),
    ):
        found = made.respond(params, PROMPTS, WIDTH, ROWS, KEY, SAMPLING, reflecting)
        assert {token for text in found for token in text.tokens} == ids
        assert {len(text.tokens) for text in found if not text.ended} <= {length}
        assert max(len(text.tokens) for text in found) <= length
    anything = Sampler(TINY, mesh, R, 7)
    found = anything.respond(params, PROMPTS, WIDTH, ROWS, KEY, SAMPLING, Reflecting(9, 7))
    assert len({token for text in found for token in text.tokens}) > 3


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
    made = []
    monkeypatch.setattr(sampler_module, "_Programs", lambda *given: made.append(given))
    cold = sampler(3)
    for temperature in (1.3, 0.4, 0, 0.4):
        cold._decoding(SamplingConfig(temperature=temperature), None)
    assert [decoding.config.temperature for decoding, *_ in made] == [1, 0]
    assert rows_of(found) == alone(params, PROMPTS, ROWS, SamplingConfig(temperature=0.4))


def alone(params, prompts, numbers, sampling, ends=(EOS,), width=WIDTH):
    """What `generate` samples, all rows at once: their ids, the end included as EOS."""
    keys, rows = row_keys(KEY, np.array(numbers)), pad_left(prompts, width)
    model = LanguageModel(TINY)
    generation = generate(model, params, rows, keys, R, sampling, ends=ends)
    tokens_BR, mask_BR = np.asarray(generation.tokens_BR), np.asarray(generation.mask_BR)
    tokens_BR = np.where(np.isin(tokens_BR, ends), EOS, tokens_BR)
    return [row[mask].tolist() for row, mask in zip(tokens_BR, mask_BR, strict=True)]


def rows_of(responses):
    return [[*each.tokens, *[EOS] * each.ended] for each in responses]


@pytest.mark.parametrize("size", [1, 4, 8])
def test_prompts_that_wait_take_the_places_of_rows_that_are_done(size, params):
    """Of 23 prompts each row is what it is alone, whatever row was in its place before."""
    prompts = [PROMPTS[i % 7][: 1 + i % 3] for i in range(23)]
    numbers = list(range(40, 63))
    found = sampler(size, ENDS).respond(params, prompts, WIDTH, numbers, KEY, SAMPLING)
    assert {len(each.tokens) for each in found} == {0, 2, 4, R}
    assert rows_of(found) == alone(params, prompts, numbers, SAMPLING, ENDS)


def test_a_pool_on_a_mesh_samples_what_one_device_does(params):
    prompts = [PROMPTS[i % 7][: 1 + i % 3] for i in range(23)]
    mesh = Partitioner(MeshConfig(data=4, model=2), jax.devices())
    made = Sampler(TINY, mesh, R, 16, ends=ENDS)
    found = made.respond(params, prompts, WIDTH, range(40, 63), KEY, SAMPLING)
    assert rows_of(found) == alone(params, prompts, range(40, 63), SAMPLING, ENDS)


def test_a_place_is_taken_before_the_longest_row_is_done(params):
    """Where one of four rows is done, the others go on from where they are."""
    decoding = Decoding(LanguageModel(TINY), R, SAMPLING)
    keys = row_keys(KEY, np.array(ROWS))
    rows = pad_left(PROMPTS, WIDTH)
    whole = generate(LanguageModel(TINY), params, rows, keys, R, SAMPLING)
    lengths = np.asarray(whole.mask_BR.sum(axis=1))
    pool = decoding.empty(WIDTH, jnp.ones(4), KEY)
    four = decoding.begin(params, rows[:4], keys[:4], np.full(4, 1.3), True)
    pool = decoding.advance(params, pool.replaced(np.arange(4), four), 1)
    assert 1 <= int(pool.done_B.sum()) < 4
    assert int(pool.drawn.max()) == lengths[:4].min()
    place = int(np.flatnonzero(pool.done_B)[0])
    next_two = decoding.begin(params, rows[4:6], keys[4:6], np.full(2, 1.3), True)
    pool = decoding.advance(params, pool.replaced(np.array([place, 4]), next_two))
    for name in ("tokens_BR", "mask_BR"):
        expected = np.asarray(getattr(whole, name))[:4].copy()
        expected[place] = getattr(whole, name)[4]
        np.testing.assert_array_equal(getattr(pool.generation, name), expected)


@pytest.fixture
def asked(monkeypatch):
    """The shapes of what programs are given, [rows, columns of a prompt] or the width of a row."""
    shapes = []
    forwards, begin = sampler_module.response_scores, Decoding.begin

    def beginning(self, params, prompt_BP, *rest):
        shapes.append(prompt_BP.shape)
        return begin(self, params, prompt_BP, *rest)

    def scoring(*given):
        shapes.append(given[-1])
        return forwards(*given)

    monkeypatch.setattr(Decoding, "begin", beginning)
    monkeypatch.setattr(sampler_module, "response_scores", scoring)
    return shapes


def test_rows_of_like_lengths_go_together_in_the_width_that_they_fit_in(asked, params):
    """Prompts of up to 100 ids have 56, 80 or 100 columns; the first two by two have 56."""
    prompts = [[2 + i % 9] * n for i, n in enumerate([3, 70, 9, 41, 38, 55, 100])]
    found = sampler(2).respond(params, prompts, 100, range(7), KEY, SAMPLING)
    assert asked == [(1, 56), (1, 80), (1, 100)]
    assert rows_of(found) == alone(params, prompts, range(7), SAMPLING, width=100)


def test_scored_rows_are_cut_to_the_width_that_they_fit_in(asked):
    params = random_params(ScalarModel(TINY), seed=2)
    prompts = [[2 + i % 9] * n for i, n in enumerate([3, 70, 9, 41, 38, 55, 95])]
    responses = [Response([3 + i], True) for i in range(7)]
    scores = sampler(2).score(params, prompts, 95, responses, "last")
    assert asked == [56, 80, None]  # of 100
    alone = [sampler(1).score(params, [p], 95, [r], "last") for p, r in zip(prompts, responses)]
    np.testing.assert_allclose(scores, np.concatenate(alone), rtol=1e-5, atol=1e-5)
