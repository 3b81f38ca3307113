"""What is too long for the windows, as seqio's preprocessors mark it and as a Layout says it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pit_jax.data import task_rows
from pit_jax.data.examples import Example
from pit_jax.data.layouts import Layout, Lengths
from pit_jax.data.seqio_tasks import preprocessors, sources
from pit_jax.data.vocabularies.load import load
from pit_jax.data.vocabularies.words import WordVocabulary

BYTES = load("bytes")
NAMES = ("prompt", "chosen", "rejected", "reflection")
TEXT = st.text("aé", max_size=8)  # of one byte and of two
EXAMPLES = st.lists(st.builds(Example, TEXT, TEXT, TEXT, TEXT), min_size=1, max_size=20)
LENGTHS = st.builds(
    Lengths, st.integers(17, 33), st.integers(1, 16), st.integers(1, 16), st.integers(0, 9)
)


def size(text):
    return len(text.encode())


def first_reason(e, lengths):
    """By hand: 17 bytes stand around x, EOS behind y, and `<<Improved>>` behind a reflection."""
    longest = min(lengths.reference, lengths.response - 1)
    over = [
        17 + size(e.prompt) > lengths.prompt,
        size(e.chosen) > longest,
        size(e.rejected) > longest,
        lengths.reflection and size(e.reflection) + 1 > lengths.reflection,
    ]
    return over.index(True) + 1 if any(over) else 6 * (e.chosen == e.rejected)


@settings(max_examples=15)
@given(EXAMPLES, LENGTHS)
def test_one_rule_says_what_fits(examples, lengths):
    dataset = sources.ExampleSource({"train": examples}).get_dataset("train")
    dataset = preprocessors.tokenize(dataset, BYTES)
    dataset = preprocessors.mark_left_out(dataset, BYTES, lengths)
    marks = [int(features["left_out"]) for features in dataset.as_numpy_iterator()]
    assert marks == [first_reason(e, lengths) for e in examples]
    layout = Layout(BYTES)
    for e, mark in zip(examples, marks, strict=True):
        pieces = [getattr(e, name) for name in NAMES[: 4 if lengths.reflection else 3]]
        assert any(layout.too_long(lengths, *pieces).values()) == (mark not in (0, 6))


@pytest.mark.parametrize(("reference", "mark"), [("ab", 0), ("abc", 5)])
def test_a_sampled_reference_has_a_window_of_its_own(reference, mark):
    import tensorflow as tf

    lengths = Lengths(prompt=20, reference=2, response=9)
    features = {name: [BYTES.encode("a")] for name in NAMES}
    features |= {"reference": [BYTES.encode(reference)], "rejected": [BYTES.encode("b")]}
    dataset = tf.data.Dataset.from_tensor_slices(features)
    (marked,) = preprocessors.mark_left_out(dataset, BYTES, lengths).as_numpy_iterator()
    assert marked["left_out"] == mark
    over = Layout(BYTES).too_long(lengths, "a", "a", "a", None, reference)
    assert any(over.values()) == (mark != 0)


@pytest.mark.parametrize(
    ("chosen", "rejected", "mark", "unknown"),
    [
        ("a b", "a  b", 6, (0, 0)),
        ("a b", "a", 0, (0, 0)),
        ("x y", "y x", 6, (2, 2)),
        ("a x", "x a", 0, (1, 1)),
    ],
)
def test_responses_of_the_same_tokens_teach_nothing(chosen, rejected, mark, unknown):
    """Texts that differ can be the same to a tokenizer: by white space, or where it knows none."""
    words = WordVocabulary(["Human:", "Assistant:", "a", "b"])
    source = sources.ExampleSource({"train": [Example("a x", chosen, rejected)]})
    dataset = preprocessors.tokenize(source.get_dataset("train"), words)
    lengths = Lengths(prompt=20, reference=9, response=10)
    dataset = preprocessors.mark_left_out(dataset, words, lengths)
    examples = source.examples("train")
    counts = task_rows.token_counts(examples, task_rows.ragged_layout(words), lengths)
    assert counts["left_out"] == mark
    names = ("prompt_unknown", "chosen_unknown", "rejected_unknown")
    assert [int(counts[name][0]) for name in names] == [1, *unknown]
    kept = list(preprocessors.drop_left_out(dataset).as_numpy_iterator())
    assert len(kept) == (mark == 0)
