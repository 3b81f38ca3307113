"""Examples that models of several vocabularies read: what fits all of them, in equal rows.

Words and bytes of seven pairs by hand: a text of n words of one letter has 2n - 1 bytes.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from pit_jax.data.batching import BatchingConfig
from pit_jax.data.datasets import DatasetConfig
from pit_jax.data.input_pipeline import InputPipeline
from pit_jax.data.layouts import Layout, Lengths
from pit_jax.data.reference_store import ReferenceMeta, ReferenceWriter
from pit_jax.data.vocabularies.words import ByteVocabulary, WordVocabulary

BYTES = ByteVocabulary()
WORDS = WordVocabulary(["Human:", "Assistant:", "q", "a", "b", "c", "d", "long", "question"])
# Around x stand two words, and 19 bytes with a blank line.
OF_WORDS = Lengths(prompt=4, reference=3, response=4)
OF_BYTES = Lengths(prompt=25, reference=5, response=6)
KEPT = {
    "q a": ("a b c", "a b"),
    "q b": ("c d", "d"),
    "q c": ("b", "a b"),
}
PAIRS = KEPT | {
    "q d": ("a b c d", "a"),  # four words
    "question": ("a", "b"),  # 27 bytes of a prompt
    "b q": ("long", "a long"),  # six bytes
    "c q": ("x", "y"),  # neither of them is a word
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [{"prompt": x, "chosen": c, "rejected": r} for x, (c, r) in PAIRS.items()]
    path.write_text("\n".join(map(json.dumps, rows)))
    return DatasetConfig("preferences", 0, 0, 0, path=str(path))


@pytest.fixture(scope="module")
def words(dataset):
    return InputPipeline(dataset, WORDS, OF_WORDS, beside=[(BYTES, OF_BYTES)])


@pytest.fixture(scope="module")
def letters(dataset):
    return InputPipeline(dataset, BYTES, OF_BYTES, beside=[(WORDS, OF_WORDS)])


def rows(pipeline, task, **options):
    """All rows of a task, shuffled by one seed."""
    batches = pipeline.batches(task, "train", 1, fold="all", seed=3, num_epochs=1, **options)
    batches = list(batches)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def unpadded(row):
    return [int(token) for token in row if token]


def test_an_example_is_left_out_of_all_pipelines_where_one_has_no_room(words, letters):
    for pipeline in (words, letters):
        found = pipeline.examples("train")
        assert {e.prompt.strip(): (e.chosen, e.rejected) for e in found} == KEPT
        report = pipeline.report()
        assert report["read"] == 7 and report["splits"] == {"train": 3, "dev": 0, "test": 0}
        assert report["dropped"] == {
            "chosen too long": 1,
            "prompt too long": 1,
            "rejected too long": 1,
            "identical tokens": 1,
        }
        assert pipeline.num_rows("rl_policy", "train", "all") == 3
        assert pipeline.num_rows("sft_pit", "train", "all") == 3
        bounds = pipeline.row_bounds("rl_policy", "train", 9, fold="all")
        assert list(bounds.values()) == [(3, 3)]
    assert words.examples("train") == letters.examples("train")


def test_alone_each_leaves_out_what_it_has_no_room_for_itself(dataset):
    alone = InputPipeline(dataset, WORDS, OF_WORDS).report()["dropped"]
    assert alone == {"chosen too long": 1, "identical tokens": 1}
    alone = InputPipeline(dataset, BYTES, OF_BYTES).report()["dropped"]
    assert alone == {"chosen too long": 1, "prompt too long": 1, "rejected too long": 1}


@pytest.mark.parametrize("packed", [0, 64])
def test_rows_are_of_the_same_examples_in_their_own_ids(dataset, packed):
    """Packed into one row, or one by one in the same order."""
    given = {"batching": BatchingConfig(packed_length=packed)}
    pairs = (WORDS, OF_WORDS), (BYTES, OF_BYTES)
    for mine, other in (pairs, pairs[::-1]):
        pipeline = InputPipeline(dataset, *mine, beside=[other], **given)
        found = rows(pipeline, "sft_policy")
        real = int(np.sum(found["decoder_segment_ids"] > 0))
        layout = Layout(mine[0])
        assert real == sum(
            len(layout.policy_prompt(f"{x}\n\n") + layout.response(chosen))
            for x, (chosen, _) in KEPT.items()
        )


@pytest.mark.parametrize("task", ["rl_policy", "rl_pit", "rl_pit_difference"])
def test_a_reward_model_reads_the_rows_of_the_actor_in_its_own_ids(words, letters, task):
    own, theirs = rows(words, task), rows(letters, task)
    both = rows(words, task, reward=letters)
    assert set(both) == {*own, "critic_prompt_tokens"} == {*theirs, "critic_prompt_tokens"}
    np.testing.assert_array_equal(own["example_index"], theirs["example_index"])
    critic = own.get("critic_prompt_tokens", own["reward_prompt_tokens"])
    for name, array in both.items():
        mine = name in ("prompt_tokens", "example_index")
        expected = own[name] if mine else theirs.get(name)
        np.testing.assert_array_equal(
            array, critic if name == "critic_prompt_tokens" else expected, err_msg=name
        )
    # Read back, both say the same of each row.
    by_index = {example.index: example for example in words.examples("train")}
    layout = Layout(BYTES)
    for k, index in enumerate(both["example_index"].ravel().tolist()):
        x, chosen = by_index[index].prompt, by_index[index].chosen
        assert unpadded(both["chosen_tokens"][k]) == layout.response(chosen)
        given = unpadded(both["prompt_tokens"][k])
        if task == "rl_policy":
            assert unpadded(both["reward_prompt_tokens"][k]) == layout.reward_prompt(x)
            assert given == Layout(WORDS).policy_prompt(x)
            continue
        (y_ref,) = [
            y for y in (chosen, by_index[index].rejected) if given == Layout(WORDS).pit_prompt(x, y)
        ]
        read = layout.gap_prompt(x, y_ref) if task == "rl_pit" else layout.reward_prompt(x)
        assert unpadded(both["reward_prompt_tokens"][k]) == read
        if task == "rl_pit_difference":
            assert unpadded(both["reference_tokens"][k]) == layout.response(y_ref)


@pytest.mark.parametrize("task", ["rl_pit", "rl_pit_difference"])
def test_references_of_a_store_are_read_as_text_by_another_vocabulary(
    words, letters, task, tmp_path
):
    """The ids of a store are M_PIT's. Of `long c` five bytes fit the other window."""
    examples, texts = words.examples("train"), ("long c", "", "d d")
    writer = ReferenceWriter(tmp_path, 16, ReferenceMeta(1, "policy", "x@1", 0, 8))
    for e, text in zip(examples, texts, strict=True):
        tokens = WORDS.encode(text)
        record = {"index": e.index, "reference_tokens": tokens, "text": text, "ended": True}
        writer.add([record])
    writer.close()
    found = rows(words, task, references=str(tmp_path), reward=letters)
    order = found["example_index"].ravel().tolist()
    assert sorted(order) == [example.index for example in examples]
    cut = dict(zip((e.index for e in examples), ("long ", "", "d d"), strict=True))
    by_index = {e.index: (e, text) for e, text in zip(examples, texts, strict=True)}
    for k, index in enumerate(order):
        example, text = by_index[index]
        given = Layout(WORDS).pit_prompt(example.prompt, WORDS.encode(text))
        assert unpadded(found["prompt_tokens"][k]) == given
        read = BYTES.encode(cut[index])
        if task == "rl_pit":
            expected = Layout(BYTES).gap_prompt(example.prompt, read)
        else:
            expected = Layout(BYTES).reward_prompt(example.prompt)
            assert unpadded(found["reference_tokens"][k]) == [*read, 1]
            critic = Layout(WORDS).gap_prompt(example.prompt, WORDS.encode(text))
            assert unpadded(found["critic_prompt_tokens"][k]) == critic
        assert unpadded(found["reward_prompt_tokens"][k]) == expected


def test_rows_of_other_examples_are_not_put_together(words, dataset):
    wide = InputPipeline(dataset, BYTES, OF_BYTES)
    with pytest.raises(ValueError, match=r"rl_policy: got \[4\] rows, expected \[3\]"):
        words.batches("rl_policy", "train", 1, fold="all", reward=wide)
