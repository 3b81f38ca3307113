"""How many rows a task has: bounds that are known at once, and evaluation of exactly so many."""

import dataclasses
import json

import pytest

from pit_jax.data.batching import BatchingConfig
from pit_jax.data.datasets import DatasetConfig, MixtureConfig
from pit_jax.data.examples import SPLITS
from pit_jax.data.input_pipeline import InputPipeline
from pit_jax.data.layouts import FEATURES, Lengths
from pit_jax.data.vocabularies.load import load
from pit_jax.errors import UserError

BYTES = load("bytes")
LENGTHS = Lengths(prompt=40, reference=20, response=21)


def dataset(folder, name, count, dev=9):
    """Pairs of different lengths, of which every fifth is over a window."""
    pairs = [
        {
            "prompt": f"{name}{i}" + "?" * (i % 7),
            "chosen": "good " * (1 + i % 3),
            "rejected": "bad" * (10 if i % 5 == 0 else 1),
        }
        for i in range(count)
    ]
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(map(json.dumps, pairs)))
    return DatasetConfig("preferences", 0, dev, dev, path=str(path))


def mixture(folder):
    return MixtureConfig((dataset(folder, "a", 60), dataset(folder, "b", 90)), rates=(3.0, 1.0))


def in_order(pipeline, task, split, batch_size, **kwargs):
    return list(pipeline.batches(task, split, batch_size, shuffle=False, num_epochs=1, **kwargs))


def rows_of(batches, name):
    return [row.tolist() for b in batches for row, w in zip(b[name], b["weight"], strict=True) if w]


@pytest.mark.parametrize("limit", [0, 3, 8, 10, 16, 99])
def test_exactly_so_many_rows_are_evaluated(tmp_path, limit):
    pipeline = InputPipeline(dataset(tmp_path, "a", 80, dev=20), BYTES, LENGTHS)
    batches = in_order(pipeline, "rl_policy", "dev", 8, limit=limit)
    expected = [[e.index] for e in pipeline.examples("dev")][: limit or None]
    assert len(expected) == min(limit or 20, 20)
    assert len(batches) == -(-len(expected) // 8)
    assert all(len(batch["weight"]) == 8 for batch in batches)
    assert rows_of(batches, "example_index") == expected
    second = in_order(pipeline, "rl_policy", "dev", 8, limit=limit, start_batch=1)
    assert rows_of(second, "example_index") == expected[8:]


def test_a_limit_is_for_rows_in_order(tmp_path):
    pipeline = InputPipeline(dataset(tmp_path, "a", 80), BYTES, LENGTHS)
    with pytest.raises(ValueError, match="limit: got 3 of shuffled or repeated rows, expected 0"):
        pipeline.batches("rl_policy", "train", 8, limit=3)


@pytest.mark.parametrize("packed_length", [0, 96])
def test_rows_in_order_are_those_of_the_examples_of_all_parts(tmp_path, packed_length):
    """So the first rows of a mixture's held-out batches are a sample of its parts."""
    batching = BatchingConfig(packed_length=packed_length)
    pipeline = InputPipeline(mixture(tmp_path), BYTES, LENGTHS, batching)
    examples = pipeline.examples("dev")
    assert [e.prompt[0] for e in examples] != sorted(e.prompt[0] for e in examples)
    rows = rows_of(in_order(pipeline, "rl_policy", "dev", 4), "example_index")
    assert rows == [[e.index] for e in examples]
    rows = rows_of(in_order(pipeline, "rm_policy", "dev", 4), "tokens")
    for row, e in zip(rows, examples, strict=True):
        assert BYTES.decode(row).startswith(f"Human: {e.prompt}Assistant: {e.chosen}")
    packed = rows_of(in_order(pipeline, "sft_policy", "dev", 4), "decoder_input_tokens")
    assert BYTES.decode(packed[0]).find(f"Human: {examples[0].prompt}Assistant:") >= 0
    counts = pipeline.token_counts("dev")["prompt"]
    for e in examples:
        assert counts[e.index] == len(f"Human: {e.prompt}Assistant:")


def test_row_bounds_are_exact_where_rows_do_not_suffice(tmp_path):
    pipeline = InputPipeline(dataset(tmp_path, "a", 80), BYTES, LENGTHS)
    assert sum(pipeline.report()["dropped"].values()) == 16
    for task in FEATURES:
        for split in SPLITS:
            exact = pipeline.num_rows(task, split)
            bounds = pipeline.row_bounds(task, split, enough=10_000)
            assert bounds == {"preferences": (exact, exact)}, (task, split)
            assert exact > 0
    exact = pipeline.num_rows("rm_gap", "train", "sft")
    assert pipeline.row_bounds("rm_gap", "train", 10_000, fold="sft") == {
        "preferences": (exact, exact)
    }
    prompts = len(pipeline.examples("train", "rl"))
    sampled = pipeline.row_bounds("rl_pit", "train", 10_000, sampled=True)
    assert sampled == {"preferences": (prompts, prompts)}


def test_row_bounds_measure_no_more_than_enough(tmp_path):
    measured = []

    class Counting(InputPipeline):
        def _fitting_sizes(self, e, task=""):
            measured.append(e)
            return super()._fitting_sizes(e, task)

    pipeline = Counting(dataset(tmp_path, "a", 800, dev=0), BYTES, LENGTHS)
    assert not measured
    ((least, most),) = pipeline.row_bounds("rm_policy", "train", enough=8).values()
    assert least == 8 <= pipeline.num_rows("rm_policy", "train") <= most
    assert len(measured) < 20
    measured.clear()
    ((least, _),) = pipeline.row_bounds("pretrain", "train", enough=8).values()
    assert least == 8 and len(measured) < 6


def test_bounds_of_packed_rows_hold(tmp_path):
    batching = BatchingConfig(packed_length=96)
    lengths = dataclasses.replace(LENGTHS, reflection=1)  # of none and <<Improved>>
    pipeline = InputPipeline(dataset(tmp_path, "a", 80), BYTES, lengths, batching)
    for task in FEATURES:
        exact = pipeline.num_rows(task, "train")
        ((least, most),) = pipeline.row_bounds(task, "train", enough=10_000).values()
        assert 0 < least <= exact <= most
        assert (least == most) == ("inputs" not in FEATURES[task])


def test_row_bounds_of_a_mixture_tell_of_each_part(tmp_path):
    pipeline = InputPipeline(mixture(tmp_path), BYTES, LENGTHS)
    bounds = pipeline.row_bounds("rm_policy", "train", enough=10_000)
    assert list(bounds) == ["preferences", "preferences_2"]
    examples = pipeline.examples("train", "rm")
    counts = [sum(e.prompt[0] == name for e in examples) for name in "ab"]
    assert list(bounds.values()) == [(n, n) for n in counts]
    dev = len(pipeline.examples("dev"))
    assert pipeline.row_bounds("rm_policy", "dev", 99) == {"preferences": (dev, dev)}


def test_a_mixture_with_a_part_without_rows_is_refused(tmp_path):
    """A rate of nothing can't be held."""
    parts = dataset(tmp_path, "a", 80), dataset(tmp_path, "b", 12, dev=6)
    pipeline = InputPipeline(MixtureConfig(parts, rates=(1.0, 1.0)), BYTES, LENGTHS)
    message = "rm_gap: the mixture draws from preferences_2, which has no rows"
    with pytest.raises(UserError, match=message):
        pipeline.batches("rm_gap", "train", 8)
    # Without rates each example is drawn equally often, so there is nothing to refuse.
    next(InputPipeline(MixtureConfig(parts), BYTES, LENGTHS).batches("rm_gap", "train", 8))
