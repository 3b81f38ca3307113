"""Configs, and how files are divided into splits."""

import json

import pytest

from pit_jax.data import datasets
from pit_jax.data.datasets import DatasetConfig
from pit_jax.data.synthetic import drafts
from pit_jax.errors import UserError


def write(path, prompts):
    lines = [{"prompt": p, "chosen": f"{i} yes", "rejected": "no"} for i, p in enumerate(prompts)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def prompts_of(dataset):
    return {split: [e.prompt for e in examples] for split, examples in dataset.splits.items()}


def test_files_are_divided_by_prompt(tmp_path):
    # Every prompt has two pairs, and both go the same way.
    names = [f"prompt {i}" for i in range(30)]
    path = write(tmp_path / "p.jsonl", names + names)
    (dataset,) = datasets.load(DatasetConfig("preferences", 0, 6, 4, path=path))
    parts = prompts_of(dataset)
    assert [len(parts[split]) for split in ("train", "dev", "test")] == [50, 6, 4]
    assert all(part.count(prompt) == 2 for part in parts.values() for prompt in part)
    assert not set(parts["train"]) & set(parts["dev"]) and not set(parts["dev"]) & set(
        parts["test"]
    )
    for examples in dataset.splits.values():
        assert [example.index for example in examples] == list(range(len(examples)))
    assert (dataset.read, dataset.dropped) == (60, {})

    shuffled = write(tmp_path / "q.jsonl", (names + names)[::-1])
    other = prompts_of(*datasets.load(DatasetConfig("preferences", 0, 6, 4, path=shuffled)))
    assert {split: set(part) for split, part in other.items()} == {
        split: set(part) for split, part in parts.items()
    }


def test_sizes_are_upper_bounds(tmp_path):
    path = write(tmp_path / "p.jsonl", [f"prompt {i}" for i in range(20)])
    (dataset,) = datasets.load(DatasetConfig("preferences", 5, 3, 2, path=path))
    assert {split: len(part) for split, part in dataset.splits.items()} == {
        "train": 5,
        "dev": 3,
        "test": 2,
    }
    assert dataset.dropped == {"over train_size": 10}


def test_sizes_count_what_fits(tmp_path):
    path = write(tmp_path / "p.jsonl", [f"prompt {i}" for i in range(60)])
    asked = []

    def fits(example):
        asked.append(example.prompt)
        return int(example.prompt.split()[1]) % 3 == 0

    config = DatasetConfig("preferences", 0, 4, 5, path=path)
    (dataset,) = datasets.load(config, fits)
    for split, size in (("dev", 4), ("test", 5)):
        assert sum(map(fits, dataset.splits[split])) == size
    assert sum(len(part) for part in dataset.splits.values()) == 60
    # Nothing is asked about what can only go to train.
    assert not set(asked) & {e.prompt for e in dataset.splits["train"]}


def test_test_files_hold_out_their_prompts(tmp_path):
    path = write(tmp_path / "train.jsonl", [f"prompt {i}" for i in range(20)])
    test_path = write(tmp_path / "test.jsonl", [f"prompt {i}" for i in range(15, 25)])
    config = DatasetConfig("preferences", 0, 3, 4, path=path, test_path=test_path)
    (dataset,) = datasets.load(config)
    parts = prompts_of(dataset)
    assert parts["train"] == [f"prompt {i}" for i in range(15)]
    assert (len(parts["dev"]), len(parts["test"])) == (3, 4)
    assert dataset.dropped == {"prompt also in the test files": 5, "not needed for dev or test": 3}
    assert dataset.read == 30 == sum(map(len, parts.values())) + sum(dataset.dropped.values())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "poems"}, "got kind 'poems', expected one of instructions, preferences, hh"),
        ({"kind": "hh"}, "kind 'hh' needs a path"),
        ({"kind": "instructions"}, "got family '', expected one of drafts, requirements"),
        (
            {"kind": "instructions", "family": "drafts"},
            "level None, expected an instance of Drafts",
        ),
        ({"kind": "hh", "path": "x", "train_size": -1}, "expected sizes of 0 or more"),
    ],
)
def test_config_mistakes(fields, message):
    sizes = {"train_size": 1, "dev_size": 1, "test_size": 1}
    with pytest.raises(UserError, match=message):
        DatasetConfig(**{**sizes, **fields})


def test_synthetic_dataset():
    config = DatasetConfig("instructions", 20, 5, 6, family="drafts", level=drafts.DraftsConfig())
    (dataset,) = datasets.load(config)
    assert config.name == "instructions_drafts"
    assert {split: len(part) for split, part in dataset.splits.items()} == {
        "train": 20,
        "dev": 5,
        "test": 6,
    }
    assert dataset.read == 31
