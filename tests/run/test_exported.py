"""Directories of all models that improve, written by `convert --to=hf` and read again."""

from __future__ import annotations

import functools
import json
import re
import shutil

import jax
import numpy as np
import pytest
from etils import epath

import pit_jax
from pit_jax import api, cli
from pit_jax.data.datasets import DatasetConfig, MixtureConfig
from pit_jax.errors import UserError
from pit_jax.run import exported
from pit_jax.run.run import Run
from tests import tiny_exports

PROMPTS = ["Count to 3", [{"role": "user", "content": "Say dog."}], "What is 7?"]
GIVEN = [None, "dog", ""]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a run of a tiny chat model, and the directory of its models beside it."""
    return tiny_exports.made(tmp_path_factory)


@pytest.fixture(scope="module")
def loaded(made, tmp_path_factory):
    """The models of the run, and of the directory, which has been moved."""
    moved = tmp_path_factory.mktemp("elsewhere") / "moved"
    shutil.copytree(made / "all", moved)
    one = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        patch.setattr(api, "Run", functools.partial(Run, devices=one))
        directory = functools.partial(exported.ExportedRun, devices=one)
        patch.setattr(exported, "ExportedRun", directory)
        return pit_jax.load("run"), pit_jax.load(moved)


def test_answers_are_those_of_the_run(loaded):
    run, again = loaded
    found = run.improve(PROMPTS, GIVEN, iterations=2)
    assert again.improve(PROMPTS, GIVEN, iterations=2) == found
    assert len({text for each in found for text in each.responses}) > 4
    assert again.improve(PROMPTS, seed=1) == run.improve(PROMPTS, seed=1) != found
    texts = ["1 2 3", "dog", "7"]
    assert again.score(PROMPTS, texts, ["", "", ""]) == run.score(PROMPTS, texts, ["", "", ""])


@pytest.mark.parametrize("more", ["ROLES", "LORA"])
def test_models_of_several_vocabularies_and_adapters_go_out(tmp_path, monkeypatch, more):
    """Adapters are merged; models of other roles keep a tokenizer and a network of their own."""
    tiny_exports.make(tmp_path / "made", getattr(tiny_exports, more))
    monkeypatch.chdir(tmp_path / "made")
    one = jax.devices()[:1]
    monkeypatch.setattr(api, "Run", functools.partial(Run, devices=one))
    directory = functools.partial(exported.ExportedRun, devices=one)
    monkeypatch.setattr(exported, "ExportedRun", directory)
    run, again = pit_jax.load("run"), pit_jax.load("all")
    found, out = (each.improve(PROMPTS, GIVEN, iterations=2) for each in (run, again))
    assert [each.responses for each in out] == [each.responses for each in found]
    assert len({text for each in found for text in each.responses}) > 4
    for each, other in zip(found, out, strict=True):
        np.testing.assert_allclose(other.gaps, each.gaps, rtol=1e-4, atol=1e-4)


def test_what_the_directory_says(made):
    found = json.loads((made / "all" / "pit_jax.json").read_text())
    assert found["seed"] == 0 and found["shard_size"] == 2
    assert found["prompts"] == [{"as_it_stands": False, "columns": None}]
    assert found["improve"]["sampling"] == {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    assert {role: model["stage"] for role, model in found["models"].items()} == {
        "policy": "sft_policy",
        "pit": "sft_pit",
        "gap_model": "rm_gap",
    }
    gap = found["models"]["gap_model"]
    anchor = json.loads((made / "run" / "rm_gap" / "result.json").read_text()).get("anchor", 0.0)
    assert (gap["pooling"], gap["anchor"], gap["tokenizer"]) == ("last", anchor, "policy")
    assert gap["lengths"]["prompt"] == 64 and str(made) not in json.dumps(found)


def test_a_directory_may_have_no_gap_model(made, tmp_path):
    shutil.copytree(made / "all", tmp_path / "all", ignore=lambda *_: ["gap_model"])
    path = tmp_path / "all" / "pit_jax.json"
    content = json.loads(path.read_text())
    del content["models"]["gap_model"]
    path.write_text(json.dumps(content))
    pit = pit_jax.load(tmp_path / "all")
    (found,) = pit.improve(PROMPTS[:1], ["1"], iterations=0)
    assert (found.response, found.best, found.gaps) == ("1", None, ())
    with pytest.raises(UserError, match="all: has no gap model, expected one to score by"):
        pit.score(PROMPTS[:1], ["1"], ["2"])


def change(key, value):
    def edit(content):
        *path, last = key.split(".")
        for name in path:
            content = content[name]
        if value is None:
            del content[last]
        else:
            content[last] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change("format", 2), "pit_jax.json: got format 2, expected format 1 with policy and pit"),
        (change("models.pit", None), "pit_jax.json: got no pit, expected format 1"),
        (change("models", 3), "pit_jax.json: isn't what `convert --to=hf` writes: TypeError"),
        (change("improve.keep", "x"), "isn't what `convert --to=hf` writes: ValueError"),
        (change("seed", "x"), "RunConfig.seed: got 'x', expected a whole number"),
        (change("prompts", []), "isn't what `convert --to=hf` writes: IndexError"),
    ],
)
def test_a_directory_that_is_not_as_written(made, tmp_path, edit, message):
    shutil.copytree(made / "all", tmp_path / "all")
    content = json.loads((tmp_path / "all" / "pit_jax.json").read_text())
    edit(content)
    (tmp_path / "all" / "pit_jax.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=re.escape(message)) as error:
        pit_jax.load(tmp_path / "all")
    assert len(str(error.value).splitlines()) == 1


def test_a_directory_without_the_file(tmp_path):
    with pytest.raises(UserError, match="pit_jax.json: not found; `convert --to=hf` without STAGE"):
        exported.read(epath.Path(tmp_path))


def test_prompts_are_made_as_of_the_runs_dataset():
    """Synthetic texts are x as they stand; others are a user's turn, under the key of the files."""
    plain = DatasetConfig("preferences", 9, 9, 9, path="x", columns={"prompt": "question"})
    toy = DatasetConfig("tfds", 9, 9, 9, path="instructions/drafts")
    for dataset, expected in (
        (plain, [{"as_it_stands": False, "columns": {"prompt": "question"}}]),
        (
            MixtureConfig((plain, toy)),
            [
                {"as_it_stands": False, "columns": {"prompt": "question"}},
                {"as_it_stands": True, "columns": None},
            ],
        ),
    ):
        said = [exported._prompts(part) for part in exported._parts(dataset)]
        assert said == expected
        again = [exported._dataset(epath.Path("all"), part) for part in said]
        assert [exported._prompts(part) for part in again] == expected


def test_a_score_that_transformers_cannot_read_is_left_out(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(made)
    shutil.copytree("run", tmp_path / "run")
    path = tmp_path / "run" / "rm_gap" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pooling": "sum"}))
    flags = [f"--gin.MODEL_DIR='{tmp_path}/run'", "--to=hf", f"--output={tmp_path}/all"]
    assert cli.main(["convert", "--gin_file=run/config.gin", *flags]) == 0
    assert "gap_model: rm_gap is left out, since its pooling is 'sum'" in capsys.readouterr().out
    assert {*exported.read(epath.Path(tmp_path / "all"))["models"]} == {"policy", "pit"}
