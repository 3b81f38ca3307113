"""People as judges from the command line: of two files, of a trained run, and what is refused."""

from __future__ import annotations

import csv
import io
import json

import pytest
from etils import epath

from pit_jax import cli
from pit_jax.evaluation import people
from tests import tiny_runs

pytestmark = pytest.mark.no_cover  # of the tests, not of the fixtures, which train

EVIL = "</script><script>owned()</script>"


@pytest.fixture
def files(tmp_path):
    """Responses of two systems, in other orders; one prompt is turns, and one is there twice."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    turns.append({"role": "user", "content": f"And? {EVIL}"})
    prompts = ["one", "two", "two", turns, "same"]
    first = [{"prompt": x, "response": f"=a{n} {EVIL}"} for n, x in enumerate(prompts)]
    second = [{"prompt": x, "responses": ["?", f"b{n}"]} for n, x in enumerate(prompts)]
    first[4]["response"] = second[4]["responses"][1]
    paths = []
    for name, rows in (("a", first), ("b", [second[3], *second[:3], second[4]])):
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return list(map(str, paths))


def evaluate(*arguments):
    return cli.main(["evaluate", *map(str, arguments)])


def filled(folder, name, choose):
    """A sheet as a person gives it back; `choose` says A, B or tie of prompt, A and B."""
    text = (folder / "sheet.csv").read_text("utf-8")
    header, *rows = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    path = folder.parent / f"{name}.csv"
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([*row[:4], choose(*row[1:4]), name, row[6]] for row in rows)
    return path


def test_two_files_are_asked_for_and_reported(files, tmp_path, capsys):
    folder = tmp_path / "people"
    ask = (f"--people={folder}", "--responses", *files, "--question=Which is kinder?", "--seed=4")
    assert evaluate(*ask, "--dry_run") == 0 and not folder.exists()
    assert evaluate(*ask) == 0
    output = capsys.readouterr().out
    assert output.count("4 comparisons; 1 more are of equal responses, which tie") == 2
    assert f"not for them: {folder / 'key.json'}, which says what stands behind A" in output
    assert sorted(p.name for p in folder.iterdir()) == ["key.json", "page.html", "sheet.csv"]
    page = (folder / "page.html").read_text("utf-8")
    assert "Which is kinder?" in page and page.count("<script") == 2 and "a.jsonl" not in page
    sheet = (folder / "sheet.csv").read_text("utf-8")
    assert "'=a0" in sheet and ",=a0" not in sheet and "Human: Hi" in sheet

    # Responses to the prompt that is there twice go together in their order.
    _, *rows = csv.reader(io.StringIO(sheet, newline=""))
    seen = {frozenset(text.lstrip("'=")[:2] for text in row[2:4]) for row in rows}
    assert seen == {frozenset((f"a{n}", f"b{n}")) for n in range(4)}

    def first(prompt, a, b):
        return "A" if a.startswith("'=a") else "B"

    def but_for_one(prompt, a, b):
        return {"A": "B", "B": "A"}[first(prompt, a, b)] if prompt == "one" else first(prompt, a, b)

    ana, ben = filled(folder, "Ana", first), filled(folder, "Ben", but_for_one)
    assert evaluate(f"--people={folder}", "--verdicts", ana, ben) == 0
    output = capsys.readouterr().out
    assert "a.jsonl vs b.jsonl" in output and "Ana and Ben" in output
    saved = json.loads((folder / "report.json").read_text())
    (row,) = saved["comparisons"]
    assert saved["agreement"][0]["accuracy"] == 0.75 and saved["people"]["agreed"] == 3
    assert (row["win"], row["lose"], row["tie"], row["n"]) == (60, 0, 40, 5)
    assert saved["people"]["question"] == "Which is kinder?"
    commands = saved["command"].replace(" \\\n", "").splitlines()
    assert len(commands) == 2 and "--seed=4" in commands[0] and "--verdicts" in commands[1]
    report = (folder / "report.html").read_text("utf-8")
    assert "<script" not in report and "The judge" in report
    # Again, into the same folder; and the folder is never asked from again.
    assert evaluate(f"--people={folder}", "--verdicts", ana, ben) == 0
    capsys.readouterr()
    before = (folder / "key.json").read_bytes()
    assert evaluate(*ask) == 2
    assert f"{folder / 'key.json'} is there already" in capsys.readouterr().err
    assert (folder / "key.json").read_bytes() == before


def test_verdicts_that_are_refused_and_those_that_are_skipped(files, tmp_path, capsys):
    folder, other = tmp_path / "people", tmp_path / "other"
    for place, seed in ((folder, 0), (other, 1)):
        assert evaluate(f"--people={place}", "--responses", *files, f"--seed={seed}") == 0
    ana = filled(folder, "Ana", lambda *_: "A")
    ben = filled(folder, "Ben", lambda prompt, *_: "" if prompt == "one" else "tie")
    cy = filled(other, "Cy", lambda *_: "A")
    capsys.readouterr()

    def refused(message, *arguments):
        assert evaluate(f"--people={folder}", *arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("pit_jax evaluate: ") and error.count("\n") == 1
        assert message in error

    refused("Cy.csv:2: is of another page, 'page-", "--verdicts", ana, cy)
    refused("and on 1 of 4 in all; --on_error=skip leaves them out", "--verdicts", ana, ben)
    refused("Ana.csv: is by Ana as ", "--verdicts", ana, ana)
    refused("--verdicts: got 1 file, expected those of two", "--verdicts", ana)
    assert not (folder / "report.json").exists()
    skip = ("--verdicts", ana, ben, "--on_error=skip")
    assert evaluate(f"--people={folder}", *skip, "--dry_run") == 0
    assert "1 of 4 comparisons are left out" in capsys.readouterr().out
    assert not (folder / "report.json").exists()
    # Into the directory of a run its report stays.
    run = tmp_path / "run"
    run.mkdir()
    (run / "report.json").write_text('{"seed": 0, "comparisons": []}')
    refused("report.json is the report of a run, expected another", *skip, f"--output={run}")
    assert evaluate(f"--people={folder}", *skip, f"--output={tmp_path / 'said'}") == 0
    assert json.loads((tmp_path / "said" / "report.json").read_text())["people"]["judged"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--verdicts", "a", "b"], "--verdicts: expected --people=DIR too"),
        (["--seed=0"], "expected --people=DIR too"),
        (["--no_ties", "--gin_file=gin/runs/quickstart.gin"], "expected --people=DIR too"),
        (["--people=p", "--compare", "a"], "--people takes no --compare or --generations"),
        (["--people=p", "--generations=a"], "--people takes no --compare or --generations"),
        (["--people=p", "--verdicts", "a", "b", "--seed=0"], "--verdicts takes no --responses"),
        (["--people=p", "--verdicts", "a", "b", "--gin.SEED=1"], "--verdicts takes no gin file"),
        (["--people=p", "--responses", "a", "b", "--distributed"], "--responses takes no gin file"),
        (["--people=p", "--output=o", "--responses", "a", "b"], "--output is of the report"),
        (["--people=p", "--seed=-1", "--responses", "a", "b"], "--seed: got -1, expected 0 or"),
        (["--people=/dev/null/x", "--responses", "a", "b"], "--people: can't write /dev/null/x"),
        (["--people=none", "--verdicts", "a", "b"], "none/key.json isn't there, expected the fol"),
        (["--people=p"], "expected at least one --gin_file=FILE"),
    ],
)
def test_flags_that_do_not_go_together(arguments, message, capsys, tmp_path, monkeypatch):
    if "--gin_file" not in " ".join(arguments):
        monkeypatch.chdir(tmp_path)
    assert evaluate(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("pit_jax evaluate: ") and error.count("\n") == 1
    assert message in error


def test_responses_that_do_not_go_together(files, tmp_path, capsys):
    lone = tmp_path / "lone.jsonl"
    lone.write_text('{"prompt": "one", "response": "c"}\n{"prompt": "three", "response": "c"}\n')

    def refused(message, *responses, more=()):
        ask = (f"--people={tmp_path / 'people'}", "--responses", *responses, *more)
        assert evaluate(*ask) == 2
        assert message in capsys.readouterr().err

    refused(
        f"lone.jsonl:2: {files[0]} has no response to this prompt, nor to 1 of 2", lone, files[0]
    )
    refused("all responses are equal", files[0], files[0])
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "one", "responses": []}\n')
    refused("bad.jsonl:1: got None, expected text under 'response'", bad, files[0])
    bad.write_text('{"prompt": "four", "response": "c"}\n')
    refused("have no prompt in common", bad, files[0], more=["--on_error=skip"])
    assert not (tmp_path / "people").exists()
    ask = (f"--people={tmp_path / 'people'}", "--responses", lone, files[0], "--on_error=skip")
    assert evaluate(*ask) == 0
    output = capsys.readouterr().out
    assert "5 responses are left out: the other file has none\n1 comparisons; 0 more" in output


def test_a_run_is_judged_by_people(trained, tmp_path, capsys):
    folder = tmp_path / "people"
    flags = ("--gin.EvaluationConfig.num_prompts=6",)
    assert tiny_runs.command("evaluate", trained, *flags, f"--people={folder}") == 0
    output = capsys.readouterr().out
    made = people.read_key(epath.Path(folder) / "key.json")
    assert f"{len(made.asked)} comparisons; {12 - len(made.asked)} more" in output
    assert [row["name"] for row in made.rows] == ["PIT vs Original", "PIT vs Self-Refine"]
    # What they see is what the report of the run has judged.
    report = json.loads((trained / "report.json").read_text())
    for sample in report["samples"]:
        own = [i for i in made.items if i.sides == 0 and i.prompt == sample["prompt"]]
        assert [(i.first, i.second) for i in own] == [(sample["iterations"][0], sample["original"])]
    sheets = [filled(folder, name, lambda *_: "tie") for name in ("Ana", "Ben")]
    assert evaluate(f"--people={folder}", "--verdicts", *sheets) == 0
    saved = json.loads((folder / "report.json").read_text())
    assert [row["tie"] for row in saved["comparisons"]] == [100, 100]
    assert saved["title"] == f"{report['title']}, judged by people"
    assert saved["task"] == report["task"] and saved["data_digest"] == report["data_digest"]
    assert saved["subjects"]["pit"] == "rl_pit" and "judge" not in saved["subjects"]
    page = (folder / "report.md").read_text("utf-8")
    assert "Self-Refine" in page and "Operative configuration" in page
    # A run's own report is not written over, and no other judge is asked.
    assert tiny_runs.command("evaluate", trained, *flags, f"--people={folder}") == 2
    assert "is there already" in capsys.readouterr().err
