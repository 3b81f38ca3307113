"""Windows that come from the data, by hand and through a run."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from pit_jax.data.datasets import DatasetConfig
from pit_jax.data.input_pipeline import InputPipeline
from pit_jax.data.layouts import Lengths
from pit_jax.data.vocabularies.load import load
from pit_jax.data.windows import windows_for
from pit_jax.errors import UserError
from pit_jax.plan import programs
from pit_jax.run import directory
from tests import tiny_runs

FROM_DATA = Lengths(0, 0, 0)


def test_windows_by_hand():
    prompts, responses = np.arange(1, 101), np.full(100, 20)
    assert windows_for(prompts, responses) == {
        "prompt": 96,  # 90 of 100 are at most 90 long; the next multiple of 16
        "reference": 32,
        "response": 33,
    }
    # The long response is that of a long prompt, so that 90% fit into the quantiles of 90%.
    both = windows_for(np.r_[np.full(90, 10), np.full(10, 90)], np.r_[np.full(99, 5), 50])
    assert both["prompt"] == 16
    # Long prompts have short responses here: quantiles of 90% would keep 80% of the examples.
    crossed = windows_for(np.arange(1, 101), np.arange(100, 0, -1))
    assert crossed["prompt"] == 96 and crossed["reference"] == 96


def test_a_row_of_the_gap_reward_model_has_a_limit():
    """It has a prompt, two references and four responses: 48 + 6 x 48 fits, 64 + 6 x 64 doesn't."""
    tokens = np.arange(1, 101)
    assert windows_for(tokens, tokens, 400) == {"prompt": 48, "reference": 48, "response": 49}
    assert windows_for(tokens + 5000, tokens, 400)["prompt"] == 5008  # the least there is


def pairs(tmp_path, count=40):
    """Answers of 2 to 41 bytes."""
    path = tmp_path / "pairs.jsonl"
    lines = (
        {"prompt": f"p{n:02}", "chosen": "x" * n, "rejected": "y"} for n in range(2, count + 2)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return DatasetConfig("preferences", 0, 4, 4, path=str(path))


def test_a_pipeline_finds_its_windows(tmp_path):
    data = InputPipeline(pairs(tmp_path), load("bytes"), FROM_DATA)
    # 17 bytes stand around a prompt of 3. Of 40 pairs, 36 have at most 37 bytes.
    assert data.lengths == Lengths(prompt=32, reference=48, response=49)
    assert sum(data.report()["splits"].values()) == 40


def test_no_example_gives_no_windows(tmp_path):
    config = pairs(tmp_path, count=1)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "x", "chosen": "a", "rejected": "a"}\n')
    with pytest.raises(
        UserError,
        match="read 1, dropped 1 identical responses",
    ):
        InputPipeline(config, load("bytes"), FROM_DATA)


def test_a_run_keeps_the_windows_it_began_with(trained, tmp_path):
    config = dataclasses.replace(tiny_runs.config(tmp_path), lengths=FROM_DATA)
    run = tiny_runs.on_one_device(config)
    assert run.finds_windows and not run.config.lengths.from_data
    assert run.config.lengths == run.data.lengths
    assert directory.lengths(run.directory, config, "policy") is None
    again = tiny_runs.on_one_device(dataclasses.replace(config, model_dir=str(trained)))
    assert again.config.lengths == tiny_runs.config(trained).lengths != run.config.lengths
    assert directory.lengths(again.directory, config, "policy") == again.config.lengths


def test_a_plan_needs_windows(tmp_path):
    config = dataclasses.replace(tiny_runs.config(tmp_path), lengths=FROM_DATA)
    with pytest.raises(UserError, match="got windows that come from the data, which a plan"):
        next(programs.programs(config, None))


def test_windows_are_all_from_the_data_or_none():
    assert FROM_DATA.from_data and not Lengths(1, 1, 2).from_data
    with pytest.raises(ValueError, match="or 0 for prompt, reference and response"):
        Lengths(0, 5, 6)
