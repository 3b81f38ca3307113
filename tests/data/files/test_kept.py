"""What was read of big files, found again."""

import json

import numpy as np
import pytest

from pit_jax.data import datasets, flat_arrays
from pit_jax.data.datasets import DatasetConfig
from pit_jax.data.files import kept, readers
from pit_jax.data.flat_arrays import Cache
from pit_jax.errors import UserError


def write(path, count=9, prompt="é"):
    lines = [
        {"prompt": f"{prompt} {i}", "chosen": "a", "rejected": "b" * (i % 3)} for i in range(count)
    ]
    path.write_text("\n".join(["{", *map(json.dumps, lines)]))


def same(one, other):
    assert (one.read, one.dropped, one.malformed, one.shape, one.joined) == (
        *(other.read, other.dropped, other.malformed, other.shape),
        other.joined,
    )
    assert one.examples == other.examples


def test_it_is_read_once_and_is_what_was_read(tmp_path, monkeypatch):
    monkeypatch.setattr(flat_arrays, "BIG", 0)
    write(tmp_path / "a.jsonl")
    cache, calls = Cache(tmp_path / "kept"), []

    def read(paths):
        calls.append(paths)
        return readers.read_preferences(paths, on_error="skip", with_columns=False)

    def reading(said=None, paths=str(tmp_path / "*.jsonl")):
        return kept.reading(read, paths, cache, said)

    plain = readers.read_preferences(str(tmp_path / "a.jsonl"), on_error="skip")
    assert plain.dropped == {"malformed": 1, "empty response": 3} and plain.malformed
    for _ in range(2):
        same(reading(), plain)
    assert len(calls) == 1
    reading(said="another")
    write(tmp_path / "a.jsonl", prompt="x")  # as long as before
    assert reading().examples[0].prompt.startswith("x 1")
    write(tmp_path / "b.jsonl", count=1)
    reading()
    assert len(calls) == 4
    next((tmp_path / "kept").glob("pairs-*/content.bin")).write_bytes(b"?")
    for paths in (str(tmp_path / "a.jsonl"), str(tmp_path / "*.jsonl")):
        reading(paths=paths)
    monkeypatch.setattr(flat_arrays, "BIG", 1 << 30)
    before = len(calls)
    reading(), reading()
    assert len(calls) == before + 2


def test_what_is_malformed_stops_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(flat_arrays, "BIG", 0)
    write(tmp_path / "a.jsonl")
    config = DatasetConfig("preferences", 0, 2, 2, path=str(tmp_path / "a.jsonl"))
    for _ in range(2):
        with pytest.raises(UserError, match="a.jsonl:1: got"):
            datasets.read(config, cache=Cache(tmp_path / "kept"))
    assert [p.suffix for p in (tmp_path / "kept").iterdir()] == [".lock"]


def test_a_dataset_is_divided_as_without(tmp_path, monkeypatch):
    write(tmp_path / "a.jsonl", 60)
    write(tmp_path / "t.jsonl", 20, "q")
    given = {"path": str(tmp_path / "a.jsonl"), "test_path": str(tmp_path / "t.jsonl")}
    config = DatasetConfig("preferences", 0, 4, 4, on_error="skip", **given)
    plain = datasets.load(config)
    monkeypatch.setattr(flat_arrays, "BIG", 0)
    for _ in range(2):
        (found,) = datasets.read(config, cache=Cache(tmp_path / "kept")).divided()
        assert found == plain[0]
        for split, examples in found.splits.items():
            np.testing.assert_array_equal(examples.indices, plain[0].splits[split].indices)
    assert len([*(tmp_path / "kept").glob("pairs-*/manifest")]) == 2
