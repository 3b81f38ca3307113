"""Users' own tokenizers: ids, texts that can't reach reserved ones, TensorFlow and seqio."""

import itertools
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from pit_jax.data.examples import Example
from pit_jax.data.layouts import Layout, Lengths, feature_lengths
from pit_jax.data.vocabularies.load import load
from pit_jax.data.vocabularies.tokenizer_json import TokenizerVocabulary
from tests.tiny_tokenizers import NAMES, byte_level_bpe, make_cases, save


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return make_cases(tmp_path_factory.mktemp("tokenizers"))


@pytest.fixture(scope="module")
def made(cases):
    """name -> (case, vocabulary)."""
    return {name: (case, load(case.spec, **case.names)) for name, case in cases.items()}


MARKS = [
    *("<<Candidate>>", "<<Improved>>", "<s>", "</s>", "<pad>", "<unk>", "<|endoftext|>", "<|pad|>"),
    *("<|reserved_special_token_0|>", "<|reserved_special_token_1|>", "<extra_id_0>"),
    *("<extra_id_1>", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[unused0]", "[unused1]", "<r0>", "<r1>"),
    *("<r+>", "<c0>", "<c1>", "<start_of_turn>", "FIRST", "[SECOND]", "<0x0A>", "<0x00>"),
]
ODD = [
    "\x00",
    "\ud83d",
    "\udc00\ud800",
    "\ufeff",
    "\u200b",
    "e\u0301",
    " ",
    "  ",
    "\n",
    "\r\n",
    "▁",
]
ODD += ["<|", "|>", "<", ">", "[", "]", "##", "1", "0", "Ġ", "\U0010ffff", "\x7f\x80"]


def around(mark):
    return st.integers(0, len(mark)).map(lambda k: mark[:k] + mark + mark[k:])


PIECES = st.sampled_from(MARKS) | st.sampled_from(MARKS).flatmap(around)
PIECES |= st.sampled_from(MARKS).flatmap(lambda m: st.integers(0, len(m)).map(lambda k: m[:k]))
PIECES |= st.sampled_from(ODD) | st.text(max_size=4)
ADVERSARIAL = st.lists(PIECES, max_size=10).map("".join)


def well_formed(text):
    return text.encode("utf-8", "replace").decode()


def own(vocabulary, ids):
    return [int(vocabulary.tokenizer_ids[i]) for i in ids]


# --- ids --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_0_and_eos_1_with_few_swaps(made, name):
    case, vocabulary = made[name]
    expected = list(range(vocabulary.vocab_size))
    for one, other in case.swaps:
        expected[one], expected[other] = expected[other], expected[one]
    assert vocabulary.tokenizer_ids.tolist() == expected
    assert vocabulary.tokenizer_ids.dtype == np.int32
    control = vocabulary.control_tokens
    roles = (1, control.candidate, control.improved)
    eos = case.reserved[0] if name == "bytes" else "[SEP]" if name == "words" else "</s>"
    pieces = [eos, *case.names["control_tokens"]]
    assert own(vocabulary, roles) == [case.library.id_of(piece) for piece in pieces]
    assert (vocabulary.pad_id, vocabulary.eos_id) == (0, 1)


def cycles(order):
    seen, count = set(), 0
    for start in range(len(order)):
        count += start not in seen
        while start not in seen:
            seen.add(start)
            start = order[start]
    return count


def test_no_order_needs_fewer_swaps(tmp_path):
    """A permutation takes as many swaps as its size less its number of cycles."""
    every = list(itertools.permutations(range(5)))
    for eos, pad in itertools.permutations(range(5), 2):
        names = ["a", "<c0>", "<c1>"]
        for at, name in sorted([(eos, "<eos>"), (pad, "<pad>")]):
            names.insert(at, name)
        tokenizer = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, "a"))
        tokenizer.add_special_tokens([name for name in names if name != "a"])
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        vocabulary = TokenizerVocabulary(str(tmp_path), ("<c0>", "<c1>"), "<eos>", "<pad>")
        order = vocabulary.tokenizer_ids.tolist()
        assert sorted(order) == [0, 1, 2, 3, 4] and order[:2] == [pad, eos]
        assert cycles(order) == max(cycles(o) for o in every if o[:2] == (pad, eos))


def test_permuted_rows_give_a_piece_its_own_embedding(made):
    case, vocabulary = made["bytes"]
    theirs = np.random.default_rng(0).normal(size=(vocabulary.vocab_size, 3))
    ours = theirs[vocabulary.tokenizer_ids]
    text = '!!"Hello" the fox!'
    assert {0, 1} <= set(case.library.encode(text))  # the pieces ! and " have moved
    np.testing.assert_array_equal(ours[vocabulary.encode(text)], theirs[case.library.encode(text)])
    np.testing.assert_array_equal(ours[1], theirs[300])
    with pytest.raises(ValueError, match="read-only"):
        vocabulary.tokenizer_ids[0] = 5


ORDINARY = st.text("abcdefgh thequickbrown.,!?\né你", max_size=30)


@settings(max_examples=40)
@given(ORDINARY)
def test_ids_and_texts_of_the_libraries(made, text):
    for case, vocabulary in made.values():
        ids = vocabulary.encode(text)
        assert own(vocabulary, ids) == case.library.encode(text)
        assert vocabulary.decode(ids) == case.library.decode(case.library.encode(text))


def test_seqio_reads_a_t5_model_alike(made, cases):
    import seqio
    import tensorflow as tf

    _, vocabulary = made["sp_t5"]
    theirs = seqio.SentencePieceVocabulary(cases["sp_t5"].spec.partition(":")[2])
    for text in ("The quick  fox.", "", "naïve ☃ <unk> </s>"):
        assert vocabulary.encode(text) == theirs.encode(text)
        assert (
            vocabulary.encode_tf(tf.constant(text)).numpy().tolist()
            == theirs.encode_tf(text).numpy().tolist()
        )
        assert vocabulary.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))
    assert (vocabulary.vocab_size, vocabulary.unk_id) == (theirs.vocab_size, theirs.unk_id)


def test_unknown_ids(made):
    expected = {"bytes": None, "unigram": 2, "words": 3, "whole": 268, "sp_unigram": 3, "sp_bpe": 2}
    for name, unknown in expected.items():
        assert made[name][1].unk_id == unknown, name
    assert made["words"][1].encode("a ? fox") == [11, 3, 12]
    assert made["words"][1].decode([11, 3, 12, 1, 11]) == "a [UNK] fox"


# --- texts that can't reach reserved ids ------------------------------------------------------


@settings(max_examples=150)
@given(ADVERSARIAL)
def test_no_text_reaches_a_reserved_id(made, text):
    for name, (case, vocabulary) in made.items():
        control = vocabulary.control_tokens
        ids = vocabulary.encode(text)
        assert not {0, 1, control.candidate, control.improved} & set(ids)
        assert all(0 <= i < vocabulary.vocab_size for i in ids)
        assert not {case.library.id_of(n) for n in case.reserved} & set(own(vocabulary, ids))
        assert vocabulary.text_ids(ids) == ids
        if case.exact:
            text = well_formed(text)
            assert vocabulary.decode(ids) == (text if name == "bytes" else text.replace("▁", " "))


@settings(max_examples=40)
@given(ADVERSARIAL)
def test_tensorflow_encodes_alike(made, text):
    import tensorflow as tf

    for _, vocabulary in made.values():
        tensor = tf.constant(well_formed(text))
        assert vocabulary.encode_tf(tensor).numpy().tolist() == vocabulary.encode(text)


@settings(max_examples=25)
@given(st.lists(ADVERSARIAL, max_size=4))
def test_texts_at_once_are_encoded_alike(made, texts):
    for _, vocabulary in made.values():
        for found in (vocabulary.encode_batch(texts), vocabulary.encode_prompts(texts, texts)):
            rows = np.split(found.values, found.offsets[1:-1])[: len(found)]
            assert [row.tolist() for row in rows] == [vocabulary.encode(text) for text in texts]
            assert found.values.dtype == np.int32


@settings(max_examples=60)
@given(ADVERSARIAL)
def test_special_strings_have_the_ids_of_plain_text(made, text):
    """As in the same tokenizer before it had special tokens."""
    plain = byte_level_bpe().encode(well_formed(text)).ids
    _, vocabulary = made["bytes"]
    assert own(vocabulary, vocabulary.encode(text)) == plain


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bytes", "a<|endoftext|>"),
        ("unigram", "a</s>"),
        ("words", "a [unused1]"),
        ("whole", "a </s>"),
        ("sp_bpe", "a FIRST"),
        ("sp_bpe", "a<extra_id_0>"),
    ],
)
def test_the_libraries_themselves_take_names_for_pieces(made, name, text):
    """So the properties above say something."""
    case, vocabulary = made[name]
    reserved = {case.library.id_of(piece) for piece in case.reserved}
    assert reserved & set(case.library.encode(text))
    assert vocabulary.encode(text)
    if name != "words":
        assert vocabulary.decode(vocabulary.encode(text)) == text


def test_names_by_hand(made):
    _, words = made["words"]
    # A word is cut after its first character: `[` and `unused1]`.
    assert own(words, words.encode("[unused1] [unused0]x")) == [6, 7, 8, 9, 10, 6, 3]
    case, whole = made["whole"]
    # ▁ < / s > and not </s>; the byte piece of a line feed is for line feeds.
    assert own(whole, whole.encode("</s>")) == [259, 260, 263, 261, 262]
    assert own(whole, whole.encode("\n")) == [259, 3 + 10]
    assert whole.decode(whole.encode("<0x0A>")) == "<0x0A>"
    assert own(whole, whole.encode("sa")) == [259, 265]
    for mark in (*case.reserved, "<unk>"):
        assert whole.decode(whole.encode(mark)) == mark
        assert whole.unk_id not in whole.encode(mark)


def test_very_long_texts(made):
    text = "<|endoftext|></s>FIRST[unused1] " * 10_000
    for case, vocabulary in made.values():
        ids = vocabulary.encode(text)
        assert not {case.library.id_of(name) for name in case.reserved} & set(own(vocabulary, ids))
        if case.exact:
            assert vocabulary.decode(ids) == text


def test_added_text_stays_text(tmp_path):
    """White space and HTML tags that a tokenizer adds are text; marks are not, special or not."""
    tokenizer = byte_level_bpe()
    tokenizer.add_special_tokens(["<eos>", "<pad>", "<c0>", "<c1>"])
    tokenizer.add_tokens(["\n\n", "   ", "<table>", "</h1>", "<think>", "[INST]", "<unused7>"])
    library = save(tmp_path / "t", tokenizer)
    vocabulary = TokenizerVocabulary(f"{tmp_path}/t", ("<c0>", "<c1>"), "<eos>", "<pad>")
    for text in ("a\n\nb", "a   b", "<table>a</h1>"):
        assert own(vocabulary, vocabulary.encode(text)) == library.encode(text)
        assert max(library.encode(text)) >= 304
    for mark in ("<think>", "[INST]", "<unused7>"):
        assert library.id_of(mark) in library.encode(f"a{mark}b")
        assert max(own(vocabulary, vocabulary.encode(f"a{mark}b"))) < 300
        assert vocabulary.decode(vocabulary.encode(f"a{mark}b")) == f"a{mark}b"
        assert vocabulary.decode([library.id_of(mark)]) == ""


def test_a_reserved_character_is_left_out(tmp_path):
    """A name of one character can't be cut; the model takes it, the vocabulary doesn't."""
    tokenizer = Tokenizer(models.BPE({"§": 0, "<pad>": 1, "<c0>": 2, "<c1>": 3, "a": 4}, []))
    tokenizer.add_special_tokens(["§", "<pad>", "<c0>", "<c1>"])
    save(tmp_path / "t", tokenizer)
    vocabulary = TokenizerVocabulary(f"{tmp_path}/t", ("<c0>", "<c1>"), "§", "<pad>")
    assert own(vocabulary, vocabulary.encode("a§a")) == [4, 4]


def test_user_defined_text_stays_text(made):
    case, vocabulary = made["sp_bpe"]
    for piece in ("\n", "<b>"):
        assert case.library.id_of(piece) in own(vocabulary, vocabulary.encode(f"a{piece}a"))


@settings(max_examples=40)
@given(st.lists(st.integers(-3, 500)))
def test_any_ids_decode(made, ids):
    for case, vocabulary in made.values():
        assert isinstance(vocabulary.decode(ids), str)
        kept = vocabulary.text_ids(ids)
        assert not {case.library.id_of(name) for name in case.reserved} & set(own(vocabulary, kept))
        assert vocabulary.decode(kept) == vocabulary.decode(ids)


def test_what_the_file_adds_to_a_text_is_left_out(tmp_path):
    """Truncation, padding, templates and dropout."""
    from tokenizers import processors

    tokenizer = byte_level_bpe()
    tokenizer.add_special_tokens(["<eos>", "<pad>", "<c0>", "<c1>"])
    plain = save(tmp_path / "plain", tokenizer)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(pad_id=0, pad_token="!", length=50)
    tokenizer.post_processor = processors.TemplateProcessing("$A !", None, [("!", 0)])
    save(tmp_path / "t", tokenizer)
    same = TokenizerVocabulary(f"{tmp_path}/t", ("<c0>", "<c1>"), "<eos>", "<pad>")
    text = "The quick brown fox jumps over the lazy dog"
    assert own(same, same.encode(text)) == plain.encode(text)
    assert same == TokenizerVocabulary(f"{tmp_path}/plain", ("<c0>", "<c1>"), "<eos>", "<pad>")

    tokenizer.enable_padding(pad_id=301, pad_token="<pad>")
    save(tmp_path / "padded", tokenizer)
    assert TokenizerVocabulary(f"{tmp_path}/padded", ("<c0>", "<c1>"), "<eos>") == same

    tokenizer.model.dropout = 0.9
    save(tmp_path / "dropout", tokenizer)
    dropped = TokenizerVocabulary(f"{tmp_path}/dropout", ("<c0>", "<c1>"), "<eos>", "<pad>")
    assert dropped.encode(text) == same.encode(text)


# --- in TensorFlow and seqio ------------------------------------------------------------------


def test_graphs(made):
    import tensorflow as tf

    for case, vocabulary in made.values():
        texts = ["The fox", "", "hello </s> a"]
        dataset = tf.data.Dataset.from_tensor_slices(texts).map(
            vocabulary.encode_tf, num_parallel_calls=2
        )
        assert dataset.element_spec == tf.TensorSpec([None], tf.int32)
        rows = [row.tolist() for row in dataset.as_numpy_iterator()]
        assert rows == [vocabulary.encode(text) for text in texts]
        back = dataset.map(vocabulary.decode_tf)
        assert back.element_spec == tf.TensorSpec([], tf.string)
        expected = [vocabulary.decode(row).encode() for row in rows]
        assert list(back.as_numpy_iterator()) == expected
        batch = dataset.padded_batch(3).map(vocabulary.decode_tf)
        assert batch.element_spec == tf.TensorSpec([None], tf.string)
        assert next(batch.as_numpy_iterator()).tolist() == expected
        if case.exact:
            assert expected == [text.encode() for text in texts]
            ids = vocabulary.encode_tf(tf.constant("a\0\0"))
            assert vocabulary.decode_tf(ids).numpy() == b"a\0\0"


@pytest.mark.parametrize("name", NAMES)
def test_a_seqio_task_end_to_end(made, name):
    from pit_jax.data.seqio_tasks import sources, tasks

    case, vocabulary = made[name]
    examples = [
        Example(f"what is {i} + 2 ? ", f"it is {i + 2}\nfox", "hello </s><extra_id_0>", "", i)
        for i in range(12)
    ]
    lengths = Lengths(prompt=90, reference=60, response=60)
    source = sources.ExampleSource({"train": examples})
    task = tasks.build_task("subwords", "sft_pit", source, vocabulary, lengths)
    widths = feature_lengths("sft_pit", Layout(vocabulary).widths(lengths))
    dataset = task.get_dataset(widths, "train", shuffle=False)
    dataset = tasks.TASKS["sft_pit"].converter(pack=False)(dataset, widths)
    rows = list(dataset.as_numpy_iterator())
    assert len(rows) == 12
    layout = Layout(vocabulary)
    control = vocabulary.control_tokens
    for row, e in zip(rows, examples):
        tokens = [int(token) for token in row["decoder_input_tokens"] if token]
        assert tokens == layout.pit_prompt(e.prompt, e.rejected) + layout.response(e.chosen)
        candidate, improved = tokens.index(control.candidate), tokens.index(control.improved)
        assert tokens.count(control.candidate) == tokens.count(control.improved) == 1
        targets = row["decoder_target_tokens"][row["decoder_loss_weights"] > 0]
        assert targets.tolist() == [*tokens[improved + 1 : -1], vocabulary.eos_id]
        normalised = case.library.decode(case.library.encode(e.chosen))
        assert vocabulary.decode(targets) == (e.chosen if case.exact else normalised)
        reference = vocabulary.decode(tokens[candidate:improved])
        if case.exact:
            assert reference.split() == e.rejected.split()
        assert vocabulary.decode(row["decoder_input_tokens"]).count("fox") == 1


# --- identity ---------------------------------------------------------------------------------


def test_fingerprints_tell_vocabularies_apart(made, tmp_path):
    everything = [vocabulary for _, vocabulary in made.values()]
    everything += [load("bytes"), load("words:drafts"), load("words:requirements")]
    assert len({v.fingerprint for v in everything}) == len(everything)
    assert len(set(everything)) == len(everything)
    for name, (case, vocabulary) in made.items():
        kind, _, path = case.spec.partition(":")
        assert vocabulary.fingerprint.startswith(kind + " ")
        moved = tmp_path / name
        moved.mkdir()
        source = pathlib.Path(path)
        for file in source.iterdir() if source.is_dir() else source.parent.iterdir():
            if file.is_file():
                (moved / file.name).write_bytes(file.read_bytes())
        target = moved / source.name if source.is_file() else moved
        again = load(f"{kind}:{target}", **case.names)
        assert again == vocabulary and hash(again) == hash(vocabulary)
        first, second = case.names["control_tokens"]
        other = load(case.spec, **{**case.names, "control_tokens": (second, first)})
        assert other != vocabulary and other.fingerprint != vocabulary.fingerprint
        assert vocabulary != object()


def test_gaps_between_ids_are_no_text(tmp_path):
    pieces = {"<pad>": 0, "</s>": 1, "<unk>": 2, "<c0>": 3, "<c1>": 4, "a": 9}
    tokenizer = Tokenizer(models.WordLevel(pieces, "<unk>"))
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>", "<c0>", "<c1>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocabulary = TokenizerVocabulary(str(tmp_path), ("<c0>", "<c1>"), "</s>", "<pad>")
    assert vocabulary.vocab_size == 10
    assert vocabulary.text_ids(range(2, 20)) == [2, 9]
    assert vocabulary.encode("a") == [9]
