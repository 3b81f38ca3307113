"""Examples as text in one piece: what comes back, and how they are divided, by plain lists."""

import dataclasses
import hashlib
import itertools
import json
import random
import unicodedata

import numpy as np
import pytest

from pit_jax.data import datasets, progress, texts
from pit_jax.data.datasets import DatasetConfig, MixtureConfig
from pit_jax.data.examples import FOLDS, SPLITS, Dialogue, Example, fold_of, stable_hash, turns_json
from pit_jax.data.files import readers, turns
from pit_jax.data.texts import Examples, of_fold

SOME = [
    Example("x", "yes", "no"),
    Example("Grüße 日本\n\n", "ä" * 300, "", "why", 7, "Grüße 日本"),
    Example(Dialogue("a\n\n", (("system", "s"), ("user", "a"))), "y", "n", index=3),
    Example(Dialogue("b", ()), "\ud800", "n\0", group="\ud801"),
]


@pytest.mark.parametrize("in_memory", [0, 10, 1 << 20])
def test_examples_come_back_as_they_were(in_memory, monkeypatch):
    monkeypatch.setattr(texts, "_IN_MEMORY", in_memory)
    found = Examples.of(iter(SOME))
    assert found == SOME and [*found] == SOME and found != SOME[:3]
    assert [found[i] for i in (3, -1, 0)] == [SOME[3], SOME[3], SOME[0]]
    for one, other in zip(found, SOME, strict=True):
        assert type(one.prompt) is type(other.prompt)
        assert getattr(one.prompt, "turns", None) == getattr(other.prompt, "turns", None)
    assert found[1:3] == SOME[1:3] and found + SOME[:1] == [*SOME, SOME[0]]
    assert SOME[:1] + found == [SOME[0], *SOME]
    assert found.select(np.array([2, 0])) == [SOME[2], SOME[0]]
    assert found.select(found.indices == 0) == [SOME[0], SOME[3]]
    columns = found[:3].columns()
    assert columns["prompt"].tolist() == [e.prompt.encode() for e in SOME[:3]]
    assert columns["reflection"].tolist() == [b"", b"why", b""]
    assert columns["turns"].tolist() == [b"", b"", b'[["system", "s"], ["user", "a"]]']
    with pytest.raises(IndexError):
        found[4]
    assert len(Examples.of([])) == 0 == len([*Examples.of([])])


def test_texts_come_in_columns_from_several_parts():
    one, other = Examples.of(SOME[:2]), Examples.of(SOME[2:])
    both = texts.Texts([*one.texts.parts, *other.texts.parts], renamed={1: "other"})
    rows = np.array([3, 0, 2, 1, 3])
    expected = [SOME[row] for row in rows]
    chosen, turns_ = both.columns(rows, ("chosen", "turns"))
    assert chosen == [e.chosen.encode("utf-8", "surrogatepass") for e in expected]
    assert turns_ == [turns_json(e.prompt).encode() for e in expected]
    assert both.groups(rows) == ["\ud801", "x", "a\n\n", "other", "\ud801"]
    assert Examples(both, rows, rows).strings()["prompt"] == [e.prompt for e in expected]
    assert both.columns(rows[:0], ("chosen",)) == [[]]


def test_the_digest_is_of_all_that_examples_are():
    """So it stays what earlier versions said: of JSON, example by example."""
    splits = {"train": Examples.of(SOME), "dev": Examples.of([]), "test": Examples.of(SOME[:1])}
    expected = hashlib.sha256(b"(2.0, 1.0)")
    for split in SPLITS:
        expected.update(f"{split} {len(splits[split])}".encode())
        for e in splits[split]:
            turns_ = json.dumps(e.prompt.turns) if isinstance(e.prompt, Dialogue) else ""
            said = (e.index, e.group, e.prompt, turns_, e.chosen, e.rejected, e.reflection)
            expected.update(json.dumps(said).encode())
    assert texts.digest([splits], [2.0, 1.0]) == expected.hexdigest()


def test_size_counts_the_bytes_of_text():
    """Of each example the prompt, its group if that is another, turns, responses; 24 beside."""
    assert Examples.of(
        [Example("ä", "yes", "no", "c"), Example("x", "y", "z", group="gg")]
    ).size() == (24 + 2 + 3 + 2 + 1 + 24 + 1 + 1 + 1 + 2)


def test_folds_and_hashes_are_those_of_the_groups():
    examples = [Example(f"x{i}", "y", "z", group=f"g{i // 2}", index=i) for i in range(40)]
    found = Examples.of(examples)
    for purpose in ("split", "order"):
        expected = [stable_hash(e.group, purpose) for e in examples]
        assert found.hashes(purpose).tolist() == expected
    for number, fold in enumerate(FOLDS):
        assert of_fold(examples, fold) == [e for e in examples if fold_of(e.group) == number]


def test_a_long_loop_says_how_far_it_is(monkeypatch, capsys):
    assert [*progress.told(range(2500), "pairs read")] == [*range(2500)]
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0)
    for _ in progress.told(range(1001), "pairs measured", 1001):
        pass
    assert capsys.readouterr().err == (
        "data: 0 of 1,001 pairs measured\ndata: 1,000 of 1,001 pairs measured\n"
    )


# --- how examples are divided, by plain lists -----------------------------------------------------


def divided(readings, group_by, sizes):
    """The splits of each part: lists of Examples, as `datasets.load` says."""

    def told(e):
        return (e.prompt, e.group) if group_by == "prompt" else (turns.first_turn(e.prompt),) * 2

    def normal(text):
        return " ".join(unicodedata.normalize("NFC", text).split())

    names = {}
    for e in itertools.chain.from_iterable(itertools.chain.from_iterable(readings)):
        text, name = told(e)
        names.setdefault(normal(text), set()).add(name)
    shortest = {key: min(found, key=lambda n: (len(n), n)) for key, found in names.items()}

    def order(e):
        return stable_hash(e.group, "order"), e.group

    parts = []
    for reading in readings:
        piles = [
            [dataclasses.replace(e, group=shortest[normal(told(e)[0])]) for e in pile]
            for pile in reading
        ]
        groups = {}
        for e in piles[-1]:
            groups.setdefault(e.group, []).append(e)
        splits, room = {"test": [], "dev": [], "train": []}, dict(sizes)
        for name in sorted(groups, key=lambda g: (stable_hash(g, "split"), g)):
            count = sum(len(e.chosen) < 9 for e in groups[name])
            where = next((s for s in ("test", "dev") if room[s] and count <= room[s]), "train")
            if where != "train":
                room[where] -= count
            splits[where] += groups[name]
        if len(piles) > 1:
            splits["train"] = [e for e in piles[0] if e.group not in groups]
        elif sizes["train"]:
            chosen = sorted(sorted(splits["train"], key=lambda e: e.index), key=order)
            splits["train"] = chosen[: sizes["train"]]
        splits["train"].sort(key=lambda e: e.index)
        for split in ("test", "dev"):
            splits[split].sort(key=order)
        parts.append(splits)
    for split, others in (("dev", ("test",)), ("train", ("test", "dev"))):
        taken = {e.group for part in parts for other in others for e in part[other]}
        for part in parts:
            part[split] = [e for e in part[split] if e.group not in taken]
    for split in SPLITS:
        pool = [(number, e) for number, part in enumerate(parts) for e in part[split]]
        if split != "train" and len(parts) > 1:
            pool.sort(key=lambda one: order(one[1]))
        for number, part in enumerate(parts):
            part[split] = [
                dataclasses.replace(e, index=i) for i, (n, e) in enumerate(pool) if n == number
            ]
    return parts


def write(folder, name, seed):
    draw = random.Random(seed)
    lines = []
    for i in range(150):
        spelled = draw.choice(
            ["both {}", "both  {} ", "Caf\u00e9 {}", "Cafe\u0301 {}", name + " {}"]
        )
        prompt = spelled.format(draw.randrange(25))
        if draw.random() < 0.3:
            said = [("user", prompt), ("assistant", "hm"), ("user", f"and {draw.randrange(9)}")]
            prompt = [{"role": role, "content": content} for role, content in said]
        chosen = draw.choice(["fits", "is too long"])
        lines.append({"prompt": prompt, "chosen": f"{chosen} {i}", "rejected": "no"})
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.mark.parametrize("group_by", ["prompt", "first_turn"])
@pytest.mark.parametrize("train_size", [0, 40])
@pytest.mark.parametrize("held_out_too", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_files_are_divided_as_lists_are(tmp_path, group_by, train_size, held_out_too, count):
    paths = [write(tmp_path, f"part{k}", k) for k in range(count)]
    other = write(tmp_path, "other", 9) if held_out_too else ""
    train_size *= not held_out_too
    parts = tuple(
        DatasetConfig(
            "preferences", train_size, 14, 11, 0, path=p, test_path=other, group_by=group_by
        )
        for p in paths
    )
    loaded = datasets.load(MixtureConfig(parts), fits=lambda e: len(e.chosen) < 9)
    read = [[readers.read_preferences(p).examples for p in (path, other) if p] for path in paths]
    sizes = {"train": train_size, "dev": 14, "test": 11}
    expected = divided(read, group_by, sizes)
    for each, splits in zip(loaded, expected, strict=True):
        for split in SPLITS:
            assert each.splits[split] == splits[split]
            assert {e.group for e in splits[split]}
