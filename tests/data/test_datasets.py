"""Configs, and how files are divided into splits."""

import dataclasses
import itertools
import json

import pytest

from pit_jax.data import datasets
from pit_jax.data.datasets import DatasetConfig, MixtureConfig
from pit_jax.data.examples import FOLDS, of_fold, stable_hash
from pit_jax.data.files import formats
from pit_jax.data.synthetic import drafts, instructions, requirements
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
        ({"kind": "hh", "path": "x", "train_size": -1}, "train_size: got -1, expected 0 or more"),
        (
            {"kind": "hh", "path": "x", "group_by": "turn"},
            "got group_by='turn', expected one of prompt, first_turn",
        ),
        (
            {"kind": "hh", "path": "x", "on_error": "stop"},
            "got on_error='stop', expected one of raise, skip",
        ),
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


def test_the_first_of_every_split_are_a_sample_of_the_file(tmp_path):
    """The file has one subset after the other, as HH-RLHF's do, and two pairs of each prompt."""
    names = [f"{subset} {i}" for subset in ("harmless", "helpful") for i in range(400)]
    lines = [name for name in names for _ in range(2)]
    path = write(tmp_path / "p.jsonl", lines)
    (dataset,) = datasets.load(DatasetConfig("preferences", 200, 200, 200, path=path))
    parts = prompts_of(dataset)
    for split, first in (("dev", 60), ("test", 60), ("train", 200)):
        helpful = sum(prompt.startswith("helpful") for prompt in parts[split][:first]) / first
        assert 0.3 < helpful < 0.7, split
    assert parts["train"] == sorted(parts["train"], key=names.index)  # the order of the file
    for split in ("dev", "test"):
        assert parts[split][::2] == parts[split][1::2]  # whole prompts, one after the other
    other_file = write(tmp_path / "q.jsonl", lines[::-1])
    (other,) = datasets.load(DatasetConfig("preferences", 200, 200, 200, path=other_file))
    other_parts = prompts_of(other)
    assert [other_parts[s] for s in ("dev", "test")] == [parts[s] for s in ("dev", "test")]
    assert set(other_parts["train"]) == set(parts["train"])
    # A larger train split only adds to a smaller one.
    (larger,) = datasets.load(DatasetConfig("preferences", 300, 200, 200, path=path))
    assert set(parts["train"]) < set(prompts_of(larger)["train"])


def test_the_first_of_a_mixture_are_a_sample_of_its_parts(tmp_path):
    """Whatever the parts' sizes: the small one's held-out prompts have other hashes."""
    sizes = {"small": 150, "large": 3000}
    parts = tuple(
        DatasetConfig(
            "preferences",
            0,
            60,
            60,
            path=write(tmp_path / f"{name}.jsonl", [f"{name} {i}" for i in range(size)]),
        )
        for name, size in sizes.items()
    )
    small, large = datasets.load(MixtureConfig(parts))
    for split in ("dev", "test"):
        both = sorted(small.splits[split] + large.splits[split], key=lambda e: e.index)
        assert [e.index for e in both] == list(range(120))
        assert 10 <= sum(e.prompt.startswith("small") for e in both[:40]) <= 30
        assert small.splits[split] == sorted(small.splits[split], key=lambda e: e.index)
    train = [e.index for part in (small, large) for e in part.splits["train"]]
    assert train == list(range(30 + 2880))


def dialogues(path, numbers, tail=""):
    """Each dialogue three times, cut after each of its turns, as HH-RLHF has them."""
    lines = []
    for i in numbers:
        context = f"\n\nHuman: question {i}"
        for turn in range(3):
            lines.append(
                {side: f"{context}\n\nAssistant: {side}{tail}" for side in ("chosen", "rejected")}
            )
            context += f"\n\nAssistant: answer {turn}\n\nHuman: and then?"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def turns(examples):
    return {e.prompt.split("\n\n")[0].strip() for e in examples}


def shared(loaded):
    """How many first turns two splits share, and how many two folds of train."""
    splits = [turns(e for each in loaded for e in each.splits[s]) for s in ("train", "dev", "test")]
    train = [e for each in loaded for e in each.splits["train"]]
    folds = [turns(of_fold(train, fold)) for fold in FOLDS]
    return [
        sum(len(a & b) for a, b in itertools.combinations(parts, 2)) for parts in (splits, folds)
    ]


def test_cut_dialogues_stay_together_by_their_first_turn(tmp_path):
    path = dialogues(tmp_path / "a.jsonl", range(40))
    by_turn = DatasetConfig("hh", 0, 12, 12, path=path, group_by="first_turn")
    loaded = datasets.load(by_turn)
    assert shared(loaded) == [0, 0]
    assert min(shared(datasets.load(dataclasses.replace(by_turn, group_by="prompt")))) > 0
    assert {s: len(part) for s, part in loaded[0].splits.items()} == {
        "train": 96,
        "dev": 12,
        "test": 12,
    }
    assert {e.group for e in loaded[0].splits["dev"]} == turns(loaded[0].splits["dev"])
    assert all(len(of_fold(loaded[0].splits["train"], fold)) % 3 == 0 for fold in FOLDS)


def test_test_files_and_mixtures_hold_out_first_turns(tmp_path):
    path = dialogues(tmp_path / "a.jsonl", range(40))
    # The same dialogues went on in another way, so their longer prompts differ.
    other = tmp_path / "b.jsonl"
    dialogues(other, range(30, 60), " indeed")
    other.write_text(other.read_text().replace("and then?", "and now?"))
    config = DatasetConfig("hh", 0, 9, 9, path=path, test_path=str(other), group_by="first_turn")
    (dataset,) = loaded = datasets.load(config)
    assert shared(loaded) == [0, 0]
    assert dataset.dropped["first turn also in the test files"] == 30
    assert dataset.read == sum(map(len, dataset.splits.values())) + sum(dataset.dropped.values())

    config = dataclasses.replace(config, test_path="")
    both = MixtureConfig((config, dataclasses.replace(config, path=str(other))))
    loaded = datasets.load(both)
    assert shared(loaded) == [0, 0]
    assert sum(each.dropped.get("first turn also in another part", 0) for each in loaded) > 0
    with pytest.raises(UserError, match="got group_by=first_turn and prompt, expected the same"):
        MixtureConfig((config, dataclasses.replace(config, group_by="prompt")))


@pytest.mark.parametrize(
    ("x", "turn"),
    [
        ("Hi\n\n", "Hi"),
        ("Hi \n\nAssistant: yes?\n\nHuman: no\n\n", "Hi"),
        ("Hi\n\nHuman: again\n\nAssistant: yes?\n\nHuman: no\n\n", "Hi"),
        ("two\n\nparagraphs\n\n", "two\n\nparagraphs"),
    ],
)
def test_the_first_turn_of_a_dialogue(x, turn):
    assert formats.first_turn(x) == turn


# --- fields and refusals ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "line", "prompt"),
    [
        ("preferences", {"prompt": "x", "chosen": "yes", "rejected": "no"}, "x"),
        (
            "hh",
            {side: f"\n\nHuman: x\n\nAssistant: {side}" for side in ("chosen", "rejected")},
            "x\n\n",
        ),
        (
            "summaries",
            {
                "info": {"post": "x", "title": "t", "subreddit": "r"},
                "summaries": [{"text": "yes"}, {"text": "no"}],
                "choice": 0,
                "split": "train",
            },
            None,
        ),
    ],
)
def test_kind_says_how_a_file_is_read(kind, line, prompt, tmp_path):
    (tmp_path / "f.json").write_text(json.dumps(line) + "\n")
    config = DatasetConfig(kind, 0, 0, 0, path=str(tmp_path / "f.json"))
    (dataset,) = datasets.load(config)
    (example,) = dataset.splits["train"]
    assert config.name == dataset.name == kind
    assert "x" in example.prompt if prompt is None else example.prompt == prompt
    others = {"preferences", "hh", "summaries"} - {kind}
    for other in others:
        (dataset,) = datasets.load(dataclasses.replace(config, kind=other, on_error="skip"))
        assert not dataset.splits["train"]


def test_on_error_says_what_becomes_of_a_malformed_line(tmp_path):
    path = write(tmp_path / "p.jsonl", ["a", "b"])
    with open(path, "a") as file:
        file.write("no JSON\n")
    config = DatasetConfig("preferences", 0, 0, 0, path=path, on_error="skip")
    (dataset,) = datasets.load(config)
    assert [e.prompt for e in dataset.splits["train"]] == ["a", "b"]
    assert sum(dataset.dropped.values()) == 1 and dataset.read == 3
    (line,) = dataset.malformed
    assert line.startswith(f"{path}:3: ")
    for place in ("path", "test_path"):
        with pytest.raises(UserError, match="p.jsonl:3: "):
            datasets.load(dataclasses.replace(config, on_error="raise", **{place: path}))


SYNTHETIC = DatasetConfig("instructions", 12, 4, 3, family="drafts", level=drafts.DraftsConfig())


def test_family_level_and_seed_are_those_of_the_generator():
    """With each, exactly what the generator makes, in every split."""
    plain, short = drafts.DraftsConfig(), drafts.DraftsConfig(min_steps=2)
    words = requirements.RequirementsConfig(max_words=2)
    for family, level, seed in (
        ("drafts", plain, 0),
        ("drafts", plain, 5),
        ("drafts", short, 0),
        ("requirements", words, 0),
    ):
        config = dataclasses.replace(SYNTHETIC, family=family, level=level, seed=seed)
        (dataset,) = datasets.load(config)
        assert dataset.splits == {
            split: instructions.examples(family, split, size, seed, level)
            for split, size in (("train", 12), ("dev", 4), ("test", 3))
        }


def test_parts_of_a_mixture_are_loaded_each_by_its_own_config():
    parts = SYNTHETIC, dataclasses.replace(SYNTHETIC, train_size=5, seed=9)
    found = datasets.load(MixtureConfig(parts))
    assert [each.name for each in found] == ["instructions_drafts", "instructions_drafts_2"]
    assert [len(each.splits["train"]) for each in found] == [12, 5]
    alone = [datasets.load(part)[0].splits["train"] for part in parts]
    for each, expected in zip(found, alone, strict=True):
        assert [e.prompt for e in each.splits["train"]] == [e.prompt for e in expected]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parts": ()}, r"mixture: got parts \(\), expected one dataset or more"),
        ({"parts": ("hh",)}, r"parts: got \('hh',\), expected a tuple, each part a DatasetConfig"),
        (
            {"parts": (SYNTHETIC,), "rates": (1.0, 2.0)},
            r"mixture: got rates \(1.0, 2.0\), expected 1 positive numbers",
        ),
        (
            {"parts": (SYNTHETIC, SYNTHETIC), "rates": (1.0, 0.0)},
            r"mixture: got rates \(1.0, 0.0\), expected 2 positive numbers",
        ),
    ],
)
def test_mixtures_that_cannot_be(fields, message):
    with pytest.raises(UserError, match=message):
        MixtureConfig(**fields)


# --- draws by a hash ----------------------------------------------------------------------------


def test_splits_folds_and_order_are_drawn_apart(tmp_path):
    """One hash for two of them would make a fold of the prompts that are held out first."""
    names = [f"prompt {i}" for i in range(600)]
    assert len({stable_hash("x", purpose) for purpose in ("split", "fold", "order")}) == 3
    path = write(tmp_path / "p.jsonl", names)
    (dataset,) = datasets.load(DatasetConfig("preferences", 0, 150, 150, path=path))
    for examples in dataset.splits.values():
        folds = [len(of_fold(examples, fold)) / len(examples) for fold in FOLDS]
        assert all(0.2 < share < 0.47 for share in folds)
    dev = [e.prompt for e in dataset.splits["dev"]]
    assert dev == sorted(dev, key=lambda prompt: stable_hash(prompt, "order"))
    assert dev != sorted(dev, key=lambda prompt: stable_hash(prompt, "split"))
