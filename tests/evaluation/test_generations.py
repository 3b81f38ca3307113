"""Generations that were saved: what is judged, left out and refused."""

from __future__ import annotations

import dataclasses
import json
import re
import types

import pytest

from pit_jax.data.datasets import DatasetConfig
from pit_jax.data.layouts import Layout
from pit_jax.data.vocabularies.load import load
from pit_jax.errors import UserError
from pit_jax.evaluation import generations
from pit_jax.evaluation.classifier import ClassifierConfig
from pit_jax.evaluation.endpoint import EndpointConfig
from pit_jax.evaluation.judges import RewardJudgeConfig
from pit_jax.method.roles import Role
from tests import tiny_runs

WORDS = load("words:drafts")
PROMPT = "from 4 do +3 x7"


@pytest.fixture
def read(tmp_path):
    """Reads these lines, as rows of a run with or without a checker."""

    def read(*lines, on_error="stop", checker=True, judge=None):
        config = tiny_runs.config("unused")
        if not checker:
            dataset = DatasetConfig("preferences", 9, 9, 9, path="none.jsonl")
            config = dataclasses.replace(config, dataset=dataset)
        path = tmp_path / "given.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        path.write_text("".join(f"{line}\n" for line in texts), encoding="utf-8-sig")
        role = Role(config.network, Layout(WORDS), config.lengths, None)
        gaps = dataclasses.replace(role, lengths=dataclasses.replace(role.lengths, reference=6))
        run = types.SimpleNamespace(
            config=config,
            role={"policy_reward": role, "gap_reward": gaps}.get,
            stage=lambda name: types.SimpleNamespace(task=name),
        )
        return generations.read(run, judge, str(path), on_error)

    return read


GOOD = {"prompt": PROMPT, "responses": ["x7", "+3"], "status": "ok"}
BAD = ["{", {"prompt": PROMPT}, GOOD | {"responses": []}, GOOD | {"responses": ["a", 3]}]


def test_rows_that_improve_skipped_are_left_out_and_counted(read):
    found = read(GOOD, {"prompt": "x", "status": "in.jsonl:2: too long"}, {"status": "no JSON"})
    assert found.records == [{"prompt": PROMPT, "responses": ["x7", "+3"]}]
    assert found.notes == ["2 rows are left out: improve has skipped them"]


def test_bad_rows_are_refused_together_or_skipped_and_counted(read):
    with pytest.raises(UserError) as error:
        read(*BAD, GOOD, GOOD | {"prompt": "hello"})
    lines = str(error.value).splitlines()
    places = [line.split("given.jsonl:")[1].split(":")[0] for line in lines[:-1]]
    assert places == ["1", "2", "3", "4", "6"] and lines[-1] == "5 malformed rows in all"
    assert "expected a list of one text or more under 'responses'" in lines[1]
    assert "drafts: got the prompt 'hello'" in lines[4]
    found = read(*BAD, GOOD, on_error="skip")
    assert len(found.records) == 1 and found.notes == ["4 rows are skipped: they are malformed"]
    with pytest.raises(UserError, match="given.jsonl: has no row to judge: 4 rows are skipped"):
        read(*BAD, on_error="skip")


def test_a_reward_model_judges_what_fits(read):
    """A prompt takes 8 tokens with what stands around it, a response 13 with its end."""
    fits, long = " ".join(["1"] * 12), " ".join(["1"] * 13)
    rows = [{"prompt": PROMPT + " 1", "responses": [fits, long, long]}, GOOD]
    found = read(*rows, checker=False)
    assert found.records[0]["responses"] == [fits, long, long]
    assert found.notes == ["2 responses are judged by their first 13 tokens, the window"]
    assert read(GOOD | {"responses": [long]}).notes == []
    with pytest.raises(UserError, match=":2: got a prompt of 9 tokens, expected at most 8"):
        read(GOOD, GOOD | {"prompt": PROMPT + " 1 1"}, checker=False)


def test_a_judge_of_the_run_has_its_windows_and_another_has_none(read):
    """R_PIT reads a response as a reference too, of 6 tokens here; whatever the data has."""
    short, long = " ".join(["1"] * 6), " ".join(["1"] * 7)
    rows = [GOOD | {"responses": [short, long]}, GOOD | {"prompt": PROMPT + " 1 1"}]
    for checker in (True, False):
        found = read(rows[0], checker=checker, judge=RewardJudgeConfig("rm_gap"))
        assert found.notes == ["1 responses are judged by their first 7 tokens, the window"]
        assert read(rows[0], checker=checker, judge=RewardJudgeConfig("rm_policy")).notes == []
        with pytest.raises(UserError, match=":2: got a prompt of 9 tokens, expected at most 8"):
            read(*rows, checker=checker, judge=RewardJudgeConfig("rm_gap"))
        for judge in (EndpointConfig("http://unused", "m", "dialogue"), ClassifierConfig("m")):
            texts = [GOOD | {"responses": [long * 20] * 2, "prompt": PROMPT + " 1" * 90}]
            found = read(*texts, checker=checker, judge=judge)
            assert len(found.records) == 1 and found.notes == []


def test_what_two_files_do_not_share_is_refused_or_counted(tmp_path):
    """On either side, and malformed rows too."""
    files = {
        "a": [{"prompt": "p", "response": "1"}, {"prompt": "q"}],
        "b": [{"prompt": "p", "response": "2"}, {"prompt": "r", "response": "3"}],
        "c": [{"prompt": "p", "response": "4"}],
    }
    for name, rows in files.items():
        (tmp_path / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    a, b, c = (str(tmp_path / name) for name in files)
    rows, notes = generations.paired([a, b], "skip")
    assert rows == [("p", "1", "2")]
    assert notes == [
        "1 responses are left out: the other file has none",
        "1 rows are skipped: they are malformed",
    ]
    for sources in ([b, c], [c, b]):
        message = f"b:2: {c} has no response to this prompt, nor to 1 of 2 in all"
        with pytest.raises(UserError, match=re.escape(message)):
            generations.paired(sources, "stop")


def test_prompts_may_be_turns(read):
    turns = [{"role": "user", "content": "x7"}]
    (record,) = read({"prompt": turns, "responses": ["1"]}, checker=False).records
    assert record["prompt"].strip() == "x7"
