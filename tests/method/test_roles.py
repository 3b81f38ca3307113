"""How a role reads what a model of another has written: pieces, windows and ends."""

from __future__ import annotations

import jax
import pytest

from pit_jax.data.layouts import Layout, Lengths
from pit_jax.data.vocabularies.words import ByteVocabulary, WordVocabulary
from pit_jax.method.decode import SamplingConfig
from pit_jax.method.roles import Role
from pit_jax.method.sampler import Reflecting, Response

WORDS = WordVocabulary(["Human:", "Assistant:", "a", "b", "c"])
KEY = jax.random.key(0)


def reading(vocabulary, reference=4, response=5, sampler=None):
    lengths = Lengths(prompt=30, reference=reference, response=response)
    return Role(None, Layout(vocabulary), lengths, sampler)


def read_as_bytes(text):
    """Bytes are at 3 and above."""
    return [byte + 3 for byte in text.encode()]


def test_of_one_vocabulary_the_pieces_that_were_sampled_are_read():
    """Bytes of half a character are no text, and more of them than the window stay too."""
    writer, reader = reading(ByteVocabulary()), reading(ByteVocabulary(), response=2)
    sampled = Response([0xE2 + 3, 100, 101], False, text="ab")
    assert reader.reading(sampled, writer) is sampled


@pytest.mark.parametrize(
    ("words", "ended", "tokens", "still_ended"),
    [
        ("a b", True, [100, 35, 101], True),
        ("a b", False, [100, 35, 101], False),
        ("", True, [], True),
        # Five tokens hold four and the end.
        ("a b c", True, [100, 35, 101, 35, 102], False),
        ("a b c a", True, [100, 35, 101, 35, 102], False),
        ("a b c a", False, [100, 35, 101, 35, 102], False),
    ],
)
def test_the_text_of_another_vocabulary_is_encoded_cut_and_not_ended(
    words, ended, tokens, still_ended
):
    writer, reader = reading(WORDS), reading(ByteVocabulary())
    for text in (None, words):
        found = reader.reading(Response(WORDS.encode(words), ended, text=text), writer)
        assert (found.tokens, found.ended) == (tokens, still_ended)


def test_four_tokens_and_the_end_just_fit():
    found = reading(ByteVocabulary()).read("abcd")
    assert (found.tokens, found.ended, found.text) == (read_as_bytes("abcd"), True, "abcd")
    assert not reading(ByteVocabulary()).read("abcd", ended=False).ended


def test_a_text_counts_and_not_the_tokens_beside_it():
    """What was given as text may say more than its ids do."""
    writer, reader = reading(WORDS), reading(ByteVocabulary())
    given = Response(WORDS.encode("x"), True, text="xy")
    assert reader.reading(given, writer).tokens == read_as_bytes("xy")
    assert writer.text(given) == "xy" and writer.text(Response([3, 5], True)) == "Human: a"


def test_a_reference_is_a_text_in_the_ids_of_its_reader_up_to_its_window():
    given = Response(WORDS.encode("a b c"), True, text="a b c")
    assert reading(ByteVocabulary()).reference(given) == read_as_bytes("a b ")
    assert reading(WORDS).reference(given) == WORDS.encode("a b c")
    assert reading(WORDS, reference=2).reference(given) == WORDS.encode("a b")


class Script:
    """A sampler that says `a b` to everything, and keeps what it is asked."""

    def __init__(self):
        self.calls = []

    def respond(self, *given):
        self.calls.append(given)
        return [Response(WORDS.encode("a b"), True) for _ in given[1]]


def test_what_is_sampled_has_its_text():
    script, sampling = Script(), SamplingConfig(temperature=0.5)
    role = reading(WORDS, sampler=script)
    (found, _) = role.answers("M_P", ["a", "b"], [4, 7], KEY, sampling)
    assert (found.tokens, found.text, found.ended) == (WORDS.encode("a b"), "a b", True)
    prompts = [WORDS.encode(f"Human: {x} Assistant:") for x in "ab"]
    assert script.calls == [("M_P", prompts, 30, [4, 7], KEY, sampling)]
    reflecting = Reflecting(9, WORDS.control_tokens.improved)
    role.respond("M_PIT", prompts, 30, [4, 7], KEY, sampling, reflecting)
    assert script.calls[1][-1] == reflecting
