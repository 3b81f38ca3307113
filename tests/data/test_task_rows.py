"""Rows of many examples at once are those that seqio's Tasks make one by one."""

import numpy as np
import pytest

from pit_jax.data import task_rows
from pit_jax.data.examples import Example
from pit_jax.data.flat_arrays import Cache
from pit_jax.data.layouts import FEATURES, TASK_ROWS, Layout, Lengths, feature_lengths
from pit_jax.data.reference_store import ReferenceMeta, References, ReferenceStore, ReferenceWriter
from pit_jax.data.rows import features
from pit_jax.data.texts import Examples
from pit_jax.data.vocabularies.load import load

BYTES = load("bytes")
LENGTHS = Lengths(prompt=25, reference=6, response=7, reflection=4)
TEXTS = ("", "a", "b", "é a", "abc", " ba", "abcdé", "ab é ab", "abcdefghi")
SOME = Examples.of(
    Example(*np.random.default_rng(i).choice(TEXTS, 4).tolist(), index=i) for i in range(90)
)


def padded(task, fill):
    """Every feature of all rows that `fill` appends."""
    lengths = feature_lengths(task, Layout(BYTES).widths(LENGTHS))
    arrays = Cache("").arrays(lambda append: fill(append, lengths), 0, task, lambda: "key")
    found = {}
    for name, feature in features(arrays, task_rows.widths(task, lengths)).items():
        count = len(feature)
        found[name] = np.zeros((count, feature.width), feature.values.dtype)
        feature.put(found[name], *[np.arange(count)] * 2, np.zeros(count, np.int64))
    assert arrays["counts"].tolist() == [count]
    return found


def at_once(task, columns):
    layout = task_rows.ragged_layout(BYTES)

    def fill(append, lengths):
        task_rows.write(append, task, [[columns]], layout, LENGTHS, lengths)

    return padded(task, fill)


def streamed(task, source):
    from pit_jax.data.seqio_tasks import tasks

    built = tasks.build_task(task, task, source, BYTES, LENGTHS)
    return padded(task, lambda append, lengths: tasks.append_rows(append, task, [built], lengths))


def one_by_one(task, source):
    from pit_jax.data.seqio_tasks import tasks

    lengths = feature_lengths(task, Layout(BYTES).widths(LENGTHS))
    built = tasks.build_task(task, task, source, BYTES, LENGTHS)
    dataset = built.get_dataset(lengths, "train", shuffle=False, trim_output_features=False)
    dataset = dataset.map(lambda each: {name: each[name] for name in FEATURES[task]})
    rows = list(tasks.TASKS[task].converter(pack=False)(dataset, lengths).as_numpy_iterator())
    return {name: np.stack([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def same(found, expected):
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    assert not expected or expected.keys() == found.keys()
    assert expected or not any(map(len, found.values()))


@pytest.mark.parametrize("task", FEATURES)
def test_every_task_has_the_rows_of_seqio(task):
    from pit_jax.data.seqio_tasks import sources

    found = at_once(task, task_rows.encoded(SOME, BYTES))
    assert 0 < len(next(iter(found.values()))) < len(SOME) * TASK_ROWS.get(task, 1)
    same(found, one_by_one(task, sources.ExampleSource({"train": SOME})))


def test_no_examples_have_no_rows_of_any_task():
    for task in FEATURES:
        same(at_once(task, task_rows.encoded(Examples.of([]), BYTES)), {})


@pytest.mark.parametrize("task", ["rl_pit", "rl_pit_difference"])
@pytest.mark.parametrize("text_window", [0, 2])
def test_references_of_a_store_are_those_of_seqio(tmp_path, task, text_window):
    from pit_jax.data.seqio_tasks import sources

    examples = Examples.of(Example(f"q{i}", "yes", "no", "", i) for i in range(9))
    writer = ReferenceWriter(tmp_path, 4, ReferenceMeta(1, "rl_policy", "last", 0, 8))
    for i in (7, 2, 3, 8):
        ids = [5, BYTES.control_tokens.improved, 9, 1, 6] if i == 3 else [7] * i
        writer.add([{"index": i, "reference_tokens": ids, "text": "abc"[:i], "ended": True}])
    writer.close()
    joined = References(ReferenceStore(tmp_path), examples, BYTES, text_window)
    found = streamed(task, sources.ReferenceSource(joined))
    kept = [7, 2, 3, 8] if text_window else [2, 3]  # others are too long
    assert found["example_index"].ravel().tolist() == kept
    same(found, one_by_one(task, sources.ReferenceSource(joined)))


def test_a_task_without_examples_streams_no_rows():
    from pit_jax.data.seqio_tasks import sources

    for task in FEATURES:
        found = streamed(task, sources.ExampleSource({"train": Examples.of([])}))
        same(found, at_once(task, task_rows.encoded(Examples.of([]), BYTES)))


@pytest.mark.parametrize("task", ["sft_pit", "sft_pit_reflection"])
def test_examples_are_measured_as_seqios_preprocessors_do(task):
    from pit_jax.data.seqio_tasks import preprocessors, sources

    columns, lengths = task_rows.encoded(SOME, BYTES), LENGTHS.of_task(task)
    sizes, marks = task_rows.measured(columns, task_rows.ragged_layout(BYTES), lengths)
    dataset = sources.ExampleSource({"train": SOME}).get_dataset("train")
    dataset = preprocessors.tokenize(dataset, BYTES)
    dataset = preprocessors.mark_left_out(dataset, BYTES, lengths)
    expected = [*dataset.as_numpy_iterator()]
    assert marks.tolist() == [e["left_out"] for e in expected]
    assert {0, 1, 2, 3, 6} <= set(marks.tolist())
    around = {"prompt": len("Human: Assistant:"), "chosen": 0, "rejected": 0}
    for name, more in around.items():
        assert sizes[name].tolist() == [len(e[name]) + more for e in expected]
