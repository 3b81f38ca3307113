"""Round trips, agreement with TensorFlow and seqio, and ids that no text reaches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pit_jax.data.synthetic.instructions import FAMILIES
from pit_jax.data.vocabularies.base import ControlTokens
from pit_jax.data.vocabularies.load import load
from pit_jax.data.vocabularies.words import ByteVocabulary, WordVocabulary
from pit_jax.errors import UserError

WORDS = WordVocabulary(["Human:", "Assistant:", "a", "b", "<b>"])
VOCABULARIES = [ByteVocabulary(), WORDS, load("words:requirements")]


@given(st.text())
def test_bytes_round_trip(text):
    assert ByteVocabulary().decode(ByteVocabulary().encode(text)) == text


@given(st.lists(st.sampled_from(WORDS.words)))
def test_words_round_trip(words):
    text = " ".join(words)
    assert WORDS.decode(WORDS.encode(text)) == text


@given(st.text() | st.sampled_from(["<<Candidate>>", "a <<Improved>> b", "<unk>", "\x00\x01"]))
def test_text_never_reaches_reserved_ids(text):
    for vocabulary in VOCABULARIES:
        ids = vocabulary.encode(text)
        control = vocabulary.control_tokens
        assert not {0, 1, control.candidate, control.improved} & set(ids)
        assert all(2 <= i < vocabulary.vocab_size - vocabulary.extra_ids for i in ids)


@given(st.lists(st.integers(0, 300)))
def test_any_ids_decode(ids):
    for vocabulary in VOCABULARIES:
        assert isinstance(vocabulary.decode(ids), str)
        kept = vocabulary.text_ids(ids)
        assert not set(kept) & {0, 1, *range(vocabulary.vocab_size - 2, 400)}
        assert vocabulary.decode(kept) == vocabulary.decode(ids)


def test_ids_of_words_by_hand():
    assert WORDS.vocab_size == 3 + 5 + 2
    assert WORDS.control_tokens == ControlTokens(8, 9)
    assert WORDS.encode(" b\ta\nnew ") == [6, 5, 2]
    assert WORDS.decode([0, 6, 8, 5, 9, 2, 0, 1, 5]) == "b a <unk>"
    assert WORDS.encode(" ") == []


def test_lone_surrogates_do_not_crash():
    assert ByteVocabulary().decode(ByteVocabulary().encode("a\ud83d")) == "a?"


@settings(max_examples=30)
@given(
    st.text() | st.lists(st.sampled_from([*WORDS.words, "c", "\n", "\x1f", "\xa0"])).map(" ".join)
)
def test_tensorflow_encodes_alike(text):
    import tensorflow as tf

    for vocabulary in VOCABULARIES:
        assert vocabulary.encode_tf(tf.constant(text)).numpy().tolist() == vocabulary.encode(text)


@given(st.lists(st.text(st.characters(), max_size=9) | st.sampled_from(["a \x1f b", "\ud83d b"])))
def test_texts_at_once_are_encoded_alike(texts):
    for vocabulary in VOCABULARIES:
        found = vocabulary.encode_batch(texts)
        rows = np.split(found.values, found.offsets[1:-1])[: len(found)]
        assert [row.tolist() for row in rows] == [vocabulary.encode(text) for text in texts]
        assert found.values.dtype == np.int32


def test_bytes_have_the_ids_of_seqio():
    import seqio

    text = "naïve <<Candidate>> 你好\n"
    theirs = seqio.ByteVocabulary(extra_ids=2)
    ours = ByteVocabulary(extra_ids=2)
    assert ours.encode(text) == theirs.encode(text)
    assert ours.vocab_size == theirs.vocab_size
    assert ours.decode([*ours.encode(text), 1, 70]) == theirs.decode(theirs.encode(text)) == text


def test_decode_tf():
    import tensorflow as tf

    assert WORDS.decode_tf(tf.constant([5, 6, 1, 5])).numpy() == b"a b"
    assert WORDS.decode_tf(tf.constant([[5, 6], [6, 0]])).numpy().tolist() == [b"a b", b"b"]
    assert ByteVocabulary().decode_tf(tf.constant([100, 3, 3])).numpy() == b"a\0\0"
    rows = tf.data.Dataset.from_tensors([[100, 3, 1], [0, 101, 3]])
    texts = rows.map(ByteVocabulary().decode_tf)
    assert texts.element_spec == tf.TensorSpec([2], tf.string)
    assert next(texts.as_numpy_iterator()).tolist() == [b"a\0", b"b\0"]
    texts = rows.unbatch().map(ByteVocabulary().decode_tf)
    assert texts.element_spec == tf.TensorSpec([], tf.string)
    assert list(texts.as_numpy_iterator()) == [b"a\0", b"b\0"]


def test_load():
    assert load("bytes") == ByteVocabulary()
    for family, module in FAMILIES.items():
        vocabulary = load(f"words:{family}", extra_words=("improve", "it"))
        text = " ".join(["Human:", "Assistant:", *module.WORDS, "improve", "it"])
        assert 2 not in vocabulary.encode(text)
        assert vocabulary.vocab_size <= 3 + 2 + 2 + 80
        assert vocabulary != load(f"words:{family}")


@pytest.mark.parametrize(
    "spec", ["byte", "words", "words:poems", "bytes:drafts", "tokenizer", "sentencepiece:", ""]
)
def test_load_names_the_choices(spec):
    choices = "bytes, words:drafts.*, sentencepiece:PATH, tokenizer:PATH$"
    with pytest.raises(UserError, match=f"got '{spec}', expected one of {choices}"):
        load(spec)


@pytest.mark.parametrize("spec", ["bytes", "words:drafts"])
@pytest.mark.parametrize(
    "given", [{"control_tokens": ("<a>", "<b>")}, {"eos_token": "</s>"}, {"pad_token": "<pad>"}]
)
def test_names_are_for_tokenizers(spec, given):
    with pytest.raises(UserError, match=f"'{spec}' has its own control.*got .*, expected none"):
        load(spec, **given)


def test_fingerprints():
    """Equal vocabularies have equal ones; words in another order are another vocabulary."""
    others = [
        ByteVocabulary(),
        ByteVocabulary(3),
        WordVocabulary(["a", "b"]),
        WordVocabulary(["b", "a"]),
        WordVocabulary(["ab"]),
        WordVocabulary(["a", "b"], 3),
    ]
    assert len({v.fingerprint for v in others}) == len(set(others)) == len(others)
    again = WordVocabulary(["a", "b", "a"])
    assert again == others[2] and hash(again) == hash(others[2])
    assert again.fingerprint == others[2].fingerprint
    assert ByteVocabulary() == others[0] != others[1]
    assert others[0] != "bytes 2"


@pytest.mark.parametrize("word", ["", "a b", "a\n", "<unk>"])
def test_words_must_be_words(word):
    with pytest.raises(ValueError, match="expected no white space"):
        WordVocabulary(["fine", word])


def test_control_tokens_need_room():
    with pytest.raises(ValueError, match="got 1, expected 2 or more"):
        ByteVocabulary(extra_ids=1)


def test_ids_that_may_be_sampled():
    """Those of text, the unknown among them, and EOS; the model has two rows more than needed."""
    allowed = WordVocabulary(["a", "b"]).sampled_ids(9)
    assert allowed.tolist() == [False, True, True, True, True, False, False, False, False]
    assert not ByteVocabulary().sampled_ids(400)[259:].any()
