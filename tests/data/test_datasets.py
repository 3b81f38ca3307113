"""Configs, and how files are divided into splits."""

import dataclasses
import itertools
import json

import pytest

from pit_jax.data import datasets
from pit_jax.data.datasets import DatasetConfig, MixtureConfig
from pit_jax.data.examples import FOLDS, stable_hash
from pit_jax.data.files.turns import first_turn
from pit_jax.data.synthetic import drafts, instructions, requirements
from pit_jax.data.texts import of_fold
from pit_jax.errors import UserError


def write(path, prompts):
    lines = [{"prompt": p, "chosen": f"{i} yes", "rejected": "no"} for i, p in enumerate(prompts)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def prompts_of(dataset):
    """The prompts of plain pairs, as the files have them: x has a blank line after a prompt."""
    return {
        split: [e.prompt.removesuffix("\n\n") for e in examples]
        for split, examples in dataset.splits.items()
    }


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


@pytest.mark.parametrize(("pairs", "each"), [(29, 2), (54, 5), (3500, 300)])
def test_a_tenth_may_be_held_out(pairs, each, tmp_path):
    path = write(tmp_path / "p.jsonl", [f"prompt {i}" for i in range(pairs)])
    tenth = DatasetConfig("preferences", 0, datasets.A_TENTH, datasets.A_TENTH, path=path)
    (dataset,) = datasets.load(tenth)
    found = {split: len(part) for split, part in dataset.splits.items()}
    assert found == {"train": pairs - 2 * each, "dev": each, "test": each}
    # Of files with others for dev and test, it is a tenth of those.
    others = write(tmp_path / "t.jsonl", [f"other {i}" for i in range(40)])
    (dataset,) = datasets.load(dataclasses.replace(tenth, test_path=others))
    assert {split: len(part) for split, part in dataset.splits.items()} == {
        "train": pairs,
        "dev": 4,
        "test": 4,
    }


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
        (
            {"kind": "tfds", "path": "x", "test_path": "y"},
            "got test_path='y' for kind 'tfds', expected it for preferences or hh or summaries",
        ),
        (
            {"kind": "hh", "path": "x", "data_dir": "y"},
            "got data_dir='y' for kind 'hh', expected it",
        ),
        (
            {"kind": "hh", "path": "x", "columns": {"promt": "a"}},
            "got columns for 'promt', expected one of prompt, .*; did you mean 'prompt'",
        ),
        ({"kind": "hh", "path": "x", "columns": "a"}, "columns: got 'a', expected a dict in br"),
        ({"kind": "hh", "path": "x", "columns": {"prompt": 3}}, "got {'prompt': 3}, expected text"),
        (
            {"kind": "hh", "path": "x", "columns": {"prompt": "a", "chosen": "a"}},
            "expected each key once",
        ),
        ({"kind": "hh", "path": "x", "min_margin": -1}, "got min_margin=-1, expected 0 or more"),
        (
            {"kind": "summaries", "path": "x", "min_margin": 1},
            "got columns or min_margin for kind 'summaries', expected them for preferences or hh",
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
    assert first_turn(x) == turn


@pytest.mark.parametrize("way", ["prompt", "first_turn"])
def test_prompts_that_differ_in_white_space_stay_together(way, tmp_path):
    """Also those that Unicode composes in two ways, and the same as text, turns or a dialogue."""
    names = [f"caf\u00e9 {i}?" for i in range(40)]
    lines = []
    for name in names:
        turn = [{"role": "user", "content": f"{name} "}]
        marked = f"\n\nHuman: {name}\n\nAssistant:"
        spaced = (f" {name}\n", name.replace(" ", "\t\n "), name.replace("\u00e9", "e\u0301"))
        lines += [{"prompt": p, "chosen": "a", "rejected": "b"} for p in (*spaced, turn, marked)]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = DatasetConfig("preferences", 0, 40, 40, path=str(path), group_by=way)
    (dataset,) = datasets.load(config)
    sizes = {split: len(part) for split, part in dataset.splits.items()}
    assert sizes == {"train": 120, "dev": 40, "test": 40}
    assert all(len(of_fold(dataset.splits["train"], fold)) % 5 == 0 for fold in FOLDS)
    # A file of other prompts and some of these in another way holds them out.
    other = write(tmp_path / "q.jsonl", [f"{name}\n\n" for name in names[:7]])
    (dataset,) = datasets.load(dataclasses.replace(config, test_path=other))
    reason = f"{way.replace('_', ' ')} also in the test files"
    assert dataset.dropped[reason] == 7 * 5
    both = MixtureConfig((config, dataclasses.replace(config, path=other, test_size=3, dev_size=0)))
    loaded = datasets.load(both)
    held_out = {e.group for each in loaded for s in ("dev", "test") for e in each.splits[s]}
    assert not held_out & {e.group for each in loaded for e in each.splits["train"]}


def test_groups_are_hashed_as_the_files_have_them(tmp_path):
    """So that the splits of a file whose prompts don't differ in white space never change."""
    turn = [{"role": "user", "content": "b"}]
    path = write(tmp_path / "p.jsonl", ["a ", turn, "Human: c\n\nAssistant:", "d", " d"])
    (dataset,) = datasets.load(DatasetConfig("preferences", 0, 0, 0, path=path))
    groups = [e.group for e in dataset.splits["train"]]
    assert groups == ["a ", "b\n\n", "Human: c\n\nAssistant:", "d", "d"]


# --- x ------------------------------------------------------------------------------------------


def test_x_is_the_same_for_training_and_later(tmp_path):
    turn = [{"role": "user", "content": "tea 1?"}]
    marked = "\n\nHuman: tea 1?\n\nAssistant:"
    for kind in ("preferences", "hh", "summaries", "tfds"):
        config = DatasetConfig(kind, 0, 0, 0, path="x")
        found = [datasets.prompt(config, {"prompt": p}) for p in ("tea 1?", turn, marked)]
        assert found == ["tea 1?\n\n"] * 3 and len({x.turns for x in found}) == 1
    mapped = DatasetConfig("preferences", 0, 0, 0, path="x", columns={"prompt": "ask"})
    assert datasets.prompt(mapped, {"ask": "tea?", "prompt": "no"}) == "tea?\n\n"
    assert datasets.prompt(mapped, {"prompt": "tea?"}) == "tea?\n\n"
    prepared = DatasetConfig("tfds", 0, 0, 0, path="instructions/drafts")
    for plain in (SYNTHETIC, prepared, MixtureConfig((mapped, SYNTHETIC))):
        x = datasets.prompt(plain, {"prompt": " 7 +4\n"})
        assert x == " 7 +4\n" and type(x) is str
        assert datasets.prompt(plain, {"prompt": turn}) == "tea 1?\n\n"
    with pytest.raises(ValueError, match="got the keys .*, expected text or turns under 'prompt'"):
        datasets.prompt(mapped, {"chosen": "a"})


def test_columns_and_a_minimum_margin_are_those_of_the_reader(tmp_path):
    lines = [{"ask": f"{n}", "chosen": "a", "rejected": "b", "margin": n} for n in range(5)]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = DatasetConfig("preferences", 0, 0, 0, path=str(path), columns={"prompt": "ask"})
    (dataset,) = datasets.load(config)
    assert prompts_of(dataset)["train"] == ["1", "2", "3", "4"] and dataset.dropped == {"tie": 1}
    assert dataset.shape == "pairs: text prompt, text answers, prompt is 'ask'"
    (dataset,) = datasets.load(dataclasses.replace(config, min_margin=3))
    assert prompts_of(dataset)["train"] == ["3", "4"]
    assert dataset.dropped == {"tie": 1, "margin under 3": 2}


# --- fields and refusals ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "line", "prompt"),
    [
        ("preferences", {"prompt": "x", "chosen": "yes", "rejected": "no"}, "x\n\n"),
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
    for other in {"preferences", "hh", "summaries"} - {kind}:
        (dataset,) = datasets.load(dataclasses.replace(config, kind=other, on_error="skip"))
        # Preferences may have any shape, that of HH-RLHF too; only summaries are apart.
        assert len(dataset.splits["train"]) == ("summaries" not in (kind, other))


def test_on_error_says_what_becomes_of_a_malformed_line(tmp_path):
    path = write(tmp_path / "p.jsonl", ["a", "b"])
    with open(path, "a") as file:
        file.write("no JSON\n")
    config = DatasetConfig("preferences", 0, 0, 0, path=path, on_error="skip")
    (dataset,) = datasets.load(config)
    assert prompts_of(dataset)["train"] == ["a", "b"]
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
        ({"parts": ()}, "mixture: got no parts, expected one dataset or more"),
        (
            {"parts": ("hh",)},
            r"MixtureConfig.parts: got \('hh',\), expected a tuple, each part a DatasetConfig",
        ),
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
    dev = prompts_of(dataset)["dev"]
    assert dev == sorted(dev, key=lambda prompt: stable_hash(prompt, "order"))
    assert dev != sorted(dev, key=lambda prompt: stable_hash(prompt, "split"))
