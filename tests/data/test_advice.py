"""What is said of data before a run: what is lost, what is unknown, and what is too little."""

from __future__ import annotations

import json

import pytest

from pit_jax.data import advice
from pit_jax.data.datasets import DatasetConfig
from pit_jax.data.input_pipeline import InputPipeline
from pit_jax.data.layouts import Lengths
from pit_jax.data.vocabularies.load import load


def pipeline(tmp_path, pairs, lengths, **sizes):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    config = {"kind": "preferences", "train_size": 0, "dev_size": 0, "test_size": 10}
    dataset = DatasetConfig(**(config | sizes), path=str(path))
    return InputPipeline(dataset, load("bytes"), lengths)


def pair(number, chosen="good"):
    return {"prompt": f"p{number:03}", "chosen": chosen, "rejected": "bad"}


def test_nothing_is_said_of_sound_data(tmp_path):
    data = pipeline(tmp_path, [pair(n) for n in range(300)], Lengths(40, 8, 9), test_size=150)
    assert advice.warnings(data, "test") == []


def test_what_is_dropped_is_said_with_windows_that_fit(tmp_path):
    """Of 100 pairs, 60 have an answer of 50 bytes, 35 one of 4, and 5 one of 400."""
    long = [pair(n, "x" * 50) for n in range(60)] + [pair(n, "y" * 400) for n in range(60, 65)]
    pairs = long + [pair(n) for n in range(65, 100)]
    data = pipeline(tmp_path, pairs, Lengths(40, 8, 9))
    assert data.report()["splits"]["test"] == 10
    (dropped, few) = advice.warnings(data, "test")
    assert dropped == (
        "65 of 100 pairs (65%) are dropped: 65 chosen too long. In these windows 90% fit: "
        "--gin.Lengths.prompt=32 --gin.Lengths.reference=64 --gin.Lengths.response=65"
    )
    assert few == (
        "models are compared on 10 prompts of test only, which leaves Δ uncertain by up to "
        "±62 points: take more, such as --gin.DatasetConfig.test_size=300"
    )
    wide = pipeline(tmp_path, pairs, Lengths(32, 64, 65))
    assert sum(wide.report()["splits"].values()) == 95


def test_what_the_configuration_leaves_out_is_not_lost(tmp_path):
    pairs = [pair(n) for n in range(200)]
    data = pipeline(tmp_path, pairs, Lengths(40, 8, 9), train_size=10, test_size=100)
    assert data.report()["dropped"] == {"over train_size": 90}
    assert advice.warnings(data, "test") == []
    assert len(advice.warnings(data, "test", num_prompts=99)) == 1


def test_tokens_that_the_vocabulary_does_not_know(tmp_path):
    path = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": "do +1", "chosen": f"{n} {n}", "rejected": "x9"} for n in range(120)]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    dataset = DatasetConfig("preferences", 0, 0, 0, path=str(path))
    data = InputPipeline(dataset, load("words:drafts"), Lengths(40, 8, 9))
    shares = advice.unknown_shares(data)
    assert shares["rejected"] == 0
    assert shares["chosen"] == pytest.approx(110 / 120)  # the digits are words of the vocabulary
    (text,) = advice.warnings(data, "test")
    assert text.startswith("91.7% of the tokens of chosen are unknown to the vocabulary")


def test_reflections_that_are_not_learned(tmp_path):
    """Of `abc` and `<<Improved>>`, 4 tokens, and of one byte more, in the fold of SFT."""
    pairs = [{**pair(n), "reflection": "abcd" if n % 2 else "abc"} for n in range(300)]
    for reflection, told in ((0, False), (5, False), (4, True)):
        lengths = Lengths(40, 8, 9, reflection)
        data = pipeline(tmp_path, pairs, lengths, test_size=150)
        fold = data.examples("train", "sft")
        long = sum(example.reflection == "abcd" for example in fold)
        assert (
            advice.warnings(data, "test")
            == [
                f"{long} of {len(fold)} reflections aren't learned, since they are longer than "
                "Lengths.reflection=4"
            ]
            * told
        )
