"""A trained run that is judged by a language model, from the command line."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest

from pit_jax.evaluation import classifier
from tests import tiny_api, tiny_runs

pytestmark = pytest.mark.no_cover  # of the tests, not of the fixtures, which train

KEY = "sk-Very-Secret-0123456789"
FLAGS = (
    "--gin_file=gin/judge.gin",
    "--gin.JUDGE_MODEL=judge-1",
    "--gin.JUDGE_PROMPTS=instructions",
    "--gin.EndpointConfig.key_variable=JUDGE_KEY",
    "--gin.EvaluationConfig.num_prompts=4",
    "--gin.EvaluationConfig.self_refine=False",
)


def longer(said):
    """Prefers the answer that has more words."""
    a, b = re.search(r"Answer A =+\n(.*)\n\n=+ Answer B =+\n(.*)\n=+ End", said, re.S).groups()
    a, b = len(a.split()), len(b.split())
    return f"By words: [[{'A' if a > b else 'B' if b > a else 'C'}]]"


@pytest.fixture
def judge(trained, tmp_path, monkeypatch):
    """Evaluates the run from a directory of its own; returns the status and the API."""
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "run"
    folder.mkdir()
    for stage in tiny_runs.config(trained).stages:
        (folder / stage.name).symlink_to(trained / stage.name)
    with tiny_api.api(longer) as server:

        def judge(*arguments):
            url = f"--gin.JUDGE_URL={server.url}"
            return tiny_runs.command("evaluate", folder, *FLAGS, url, *arguments)

        judge.server, judge.folder = server, folder
        yield judge


@pytest.mark.slow
def test_a_run_is_judged_by_a_language_model(judge, capsys):
    assert judge() == 0
    output, server = capsys.readouterr().out, judge.server
    folder = judge.folder / "report-language_model_judge-1_instructions"
    count = len(server.said)
    assert count and f": {count} requests to judge-1; asking {count}\n" in output
    assert f"judge: {count} answers; tokens: {10 * count} read, {3 * count} written" in output
    report = json.loads((folder / "report.json").read_text())
    name = "language model judge-1 (instructions)"
    assert report["description"].startswith(f"4 prompts of the test split, judged by {name};")
    assert report["subjects"]["judge"] == name
    assert {row["judge"] for row in report["comparisons"]} == {name}
    assert report["reward_models"][-1]["name"] == name and report["reward_models"][-1]["n"] == 4
    assert [row["iteration"] for row in report["iterations"][0]["rows"]] == [0, 1]
    assert report["judging"]["answers"] == count and report["figure3"]["series"] == {}
    page = (folder / "report.md").read_text()
    assert "## The judge" in page and "Mean score" not in page and "Mean checker" not in page
    assert "Both orders agree, % | 100.0" in page and f"Tokens read | {10 * count}" in page
    texts = [path.read_text("utf-8", "replace") for path in folder.glob("*.*")] + [output]
    texts.append((judge.folder / "judge_answers.jsonl").read_text())
    assert len(texts) == 5 and not any(KEY in text for text in texts)


def test_generations_are_judged_by_a_language_model(judge, tmp_path, capsys):
    path = tmp_path / "given.jsonl"
    responses = [["x7", "x7 9 +3"], ["x7 9", "x7"]]
    prompts = [{"prompt": "from 4 do +3 x7", "responses": each} for each in responses]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in prompts))
    assert judge(f"--generations={path}", f"--output={tmp_path / 'judged'}") == 0
    output = capsys.readouterr().out
    assert "judge: 2 comparisons of different responses in both orders: 4 requests" in output
    assert re.search(r"^language model judge-1 \(instructions\) +2 +2 +2 +2 +0 +0", output, re.M)
    # Nothing is asked again.
    assert judge(f"--generations={path}") == 0
    assert len(judge.server.said) == 4 and "judge: " not in capsys.readouterr().out
    report = json.loads((tmp_path / "judged" / "report.json").read_text())
    (row,) = report["comparisons"]
    assert (row["win"], row["lose"], row["tie"]) == (50, 50, 0)
    assert "The judge" in (tmp_path / "judged" / "report.html").read_text()


def test_two_systems_are_compared_by_the_judge_of_a_run(trained, tmp_path, capsys):
    """Files in other orders; scores of 1, 0, 1 against 2/3, 2/3, 1: a win, a loss and a tie."""
    right, half, wrong = "x7 9 +3 7 from 4", "x7 ? +3 7 from 4", "x7 8 +3 7 from 4"
    prompts = ["from 4 do +3 x7", "from 4 do +3 x7", "from 2 do +3 x7"]
    other = "x7 5 +3 5 from 2"
    ours = [{"prompt": x, "response": y, "id": "a"} for x, y in zip(prompts, (right, wrong, other))]
    theirs = [{"prompt": prompts[2], "response": other}]
    theirs += [{"prompt": prompts[0], "responses": ["?", half], "id": n} for n in range(2)]
    paths = [tmp_path / "ours.jsonl", tmp_path / "theirs.jsonl"]
    for path, rows in zip(paths, (ours, theirs), strict=True):
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    given = ("--responses", *map(str, paths))
    assert tiny_runs.command("evaluate", trained, *given, f"--output={tmp_path / 'judged'}") == 0
    assert re.search(
        r"^ours.jsonl vs theirs.jsonl +33.3 +33.3 +33.3 ", capsys.readouterr().out, re.M
    )
    report = json.loads((tmp_path / "judged" / "report.json").read_text())
    (row,) = report["comparisons"]
    assert (row["judge"], row["first"], row["second"]) == ("checker", "system", "system")
    assert [each["name"] for each in report["scores"]] == ["ours.jsonl", "theirs.jsonl"]
    means = [each["mean_score"] for each in report["scores"]]
    assert means == pytest.approx([2 / 3, 7 / 9])
    page = (tmp_path / "judged" / "report.html").read_text()
    assert "<h1>ours.jsonl and theirs.jsonl</h1>" in page and "Iteration" not in page

    for words, message in (
        ([*given, "--generations=x"], "--generations: got them with --responses"),
        ([*given, "--transfer=gin/tasks/hh.gin"], "--transfer samples anew"),
        ([*given, "--seed=1"], "expected --people=DIR too"),
        ([*given[:2], "none.jsonl"], "none.jsonl"),
    ):
        assert tiny_runs.command("evaluate", trained, *words) == 2
        error = capsys.readouterr().err
        assert error.startswith("pit_jax evaluate: ") and error.count("\n") == 1, error
        assert message in error
    paths[0].write_text('{"prompt": "hello", "response": "x7"}\n')
    assert tiny_runs.command("evaluate", trained, *given) == 2
    assert "ours.jsonl:1: drafts: got the prompt 'hello'" in capsys.readouterr().err


def test_a_run_is_judged_by_its_gap_reward_model(trained, tmp_path, capsys):
    """R_PIT was optimised, which the report says; no other stage can be a judge."""
    (tmp_path / "run").mkdir()
    for stage in tiny_runs.config(trained).stages:
        (tmp_path / "run" / stage.name).symlink_to(trained / stage.name)
    flags = ["--gin_file=gin/judge_reward_model.gin", "--gin.EvaluationConfig.num_prompts=4"]
    flags += ["--gin.EvaluationConfig.self_refine=False", "--gin.EvaluationConfig.sweep=(1.0,)"]
    assert tiny_runs.command("evaluate", tmp_path / "run", *flags) == 0
    folder = tmp_path / "run" / "report-reward_model_rm_gap"
    report = json.loads((folder / "report.json").read_text())
    assert {row["judge"] for row in report["comparisons"]} == {"R_PIT (rm_gap)"}
    assert any("the judge is rm_gap, a reward model that" in text for text in report["warnings"])
    assert report["reward_models"][-1]["name"] == "R_PIT (rm_gap)"
    page = (folder / "report.md").read_text().replace("\\", "")
    assert "R_PIT (rm_gap), this run’s own gap reward model" in page and "Mean score" not in page
    capsys.readouterr()
    for name, told in (
        ("rl_pit", "got 'rl_pit' of task rl_pit, expected a stage of task rm_policy or rm_gap"),
        ("rm", "stage: got 'rm', expected one of "),
    ):
        words = (*flags, f"--gin.JUDGE_STAGE={name}", "--dry_run")
        assert tiny_runs.command("evaluate", tmp_path / "run", *words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line


def test_a_judge_that_cannot_be_asked_is_refused_in_one_line(judge, tmp_path, monkeypatch, capsys):
    judge.server.reply = lambda said: (404, {}, b'{"error": {"message": "no such model"}}')
    path = tmp_path / "given.jsonl"
    path.write_text('{"prompt": "from 4 do +3 x7", "responses": ["x7", "+3"]}\n')
    assert judge(f"--generations={path}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{judge.server.url}/chat/completions answers 404 Not Found: no such model; " in line
    monkeypatch.delenv("JUDGE_KEY")
    assert judge("--dry_run") == 2
    assert "the environment variable JUDGE_KEY isn't set" in capsys.readouterr().err


def test_generations_are_judged_by_a_classifier(trained, tmp_path, monkeypatch, capsys):
    """A stand-in prefers what is longer; without the packages one line says what to install."""
    path = tmp_path / "given.jsonl"
    path.write_text('{"prompt": "from 4 do +3 x7", "responses": ["x7", "x7 9 +3"]}\n')
    flags = ("--gin_file=gin/judge_classifier.gin", f"--generations={path}")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert tiny_runs.command("evaluate", trained, *flags) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("needs torch and transformers: pip install '.[judges]' -c constraints.txt")

    class Longer:
        max_length = 9

        def __init__(self, config):
            assert config.model == "OpenAssistant/reward-model-deberta-v3-large-v2"

        def __call__(self, pairs):
            lengths = np.array([len(text) for _, text in pairs], float)
            return lengths, lengths > 5

    monkeypatch.setattr(classifier, "Classifier", Longer)
    assert tiny_runs.command("evaluate", trained, *flags, f"--output={tmp_path / 'judged'}") == 0
    assert "judge: 1 of 1 responses are over 9 tokens" in capsys.readouterr().out
    report = json.loads((tmp_path / "judged" / "report.json").read_text())
    name = "classifier OpenAssistant/reward-model-deberta-v3-large-v2"
    (row,) = report["comparisons"]
    assert (row["judge"], row["win"]) == (name, 100)
    assert [row["mean_score"] for row in report["scores"]] == [2, 7]
    assert any(f"the {name} scores 1 of 2 responses" in text for text in report["warnings"])
