"""What a report shows of a judge that has verdicts and no scores."""

from __future__ import annotations

import pytest

from pit_jax.evaluation import reports, seeds
from pit_jax.report import sections
from pit_jax.report import seeds as seed_sections
from pit_jax.report import write as report
from pit_jax.report.blocks import Figure, Table
from tests import tiny_reports

JUDGING = {
    "name": "language model m (dialogue)",
    "comparisons": 40,
    "agreed": 30,
    "both": 38,
    "first_twice": 6,
    "second_twice": 1,
    "swapped_low": 0.1,
    "swapped_high": 0.3333,
    "answers": 80,
    "first": 50,
    "second": 20,
    "tie": 8,
    "none": 2,
    "cut": 1,
    "prompt_tokens": 123456,
    "completion_tokens": 789,
}


def without_scores(results):
    for row in results["scores"]:
        for key in ("mean_score", "ci_low", "ci_high"):
            del row[key]
    for group in results["iterations"]:
        for row in (*group["rows"], *group["self_refine"]):
            row.pop("mean_score", None)  # one row stands in two places
    return results


@pytest.fixture(scope="module")
def results():
    samples = [{"prompt": "x", "original": "a", "iterations": ["b"], "scores": [], "chosen": "c"}]
    made = without_scores(tiny_reports.report(0)) | {"judging": JUDGING, "samples": samples}
    made["iterations"][0]["rows"][0] |= {"elo_low": 880.0, "elo_high": 920.0}
    for row in (made["iterations"][0]["rows"][1], *made["iterations"][0]["self_refine"]):
        row |= {"elo_low": 1080.0, "elo_high": 1120.0}
    made.pop("figure4")
    return made


@pytest.fixture(scope="module")
def parts(results):
    found, drawings = sections.build(results)
    return {part.title: part.blocks for part in found}, drawings


def tables(blocks):
    return [block for block in blocks if isinstance(block, Table)]


def test_the_counts_of_the_judge_by_hand(parts):
    (table,) = parts[0]["The judge"]
    assert table.columns == ["Language model m (dialogue)", "Value"]
    assert dict(table.rows) == {
        "Comparisons of different responses": "40",
        "Both orders agree, %": "75.0",
        "The verdict swaps with the order, %": "18.4\u00a0[10.0,\u00a033.3]",
        "… for the first response": "6",
        "… for the second response": "1",
        "Unjudged, for want of an answer": "0",
        "Answers": "80",
        "The first response is better, %": "62.5",
        "The second response is better, %": "25.0",
        "Tie, %": "10.0",
        "No verdict": "2",
        "Tokens read": "123,456",
        "Tokens written": "789",
    }
    assert "The judge" not in {part.title for part in sections.build({})[0]}


def test_agreement_with_the_checker():
    row = {"name": "R_P", "n": 1200, "accuracy": 0.75, "ci_low": 0.7, "ci_high": 0.8}
    row |= {"kappa": 0.5, "kappa_low": 0.41, "kappa_high": 0.59}
    unsure = {**row, "name": "m", "kappa_low": None, "kappa_high": None}
    found = {"ground_truth": [row, unsure, {"name": "of none", "n": 0}]}
    (part,) = sections.build(found)[0]
    (table,) = part.blocks
    assert (part.title, table.rows) == (
        "The judge",
        [
            ["R_P", "75.0\u00a0[70.0,\u00a080.0]", "0.50\u00a0[0.41,\u00a00.59]", "1,200"],
            ["m", "75.0\u00a0[70.0,\u00a080.0]", "0.50", "1,200"],
        ],
    )


def test_mean_scores_are_left_out(parts):
    """Of the tables and of the figure of iterations, whose Δ and ELO stay."""
    blocks, drawings = parts
    _, scores = tables(blocks["Quality of the responses"])
    assert scores.columns == ["Responses", "Temperature", "Ended %", "Tokens"]
    assert scores.rows == [["PIT", "1.0", "90.0", "20.0"]]
    (table,) = tables(blocks["Improvement iterations"])
    assert table.columns[:3] == ["Iteration", "Δ vs original", "ELO"]
    assert all(len(row) == len(table.columns) for row in table.rows)
    (figure,) = [b for b in blocks["Improvement iterations"] if isinstance(b, Figure)]
    assert "score" not in figure.alt.lower() and "score" not in figure.caption
    assert [axis.get_title("left") for axis in drawings["iterations"]().axes] == [
        "Δ vs original (points)",
        "ELO",
    ]
    (sample,) = [b for b in blocks["Samples"] if hasattr(b, "responses")]
    assert [r.label for r in sample.responses][:2] == ["Original", "Iteration 1"]


def test_the_terminal_has_the_counts_and_no_empty_table(results):
    text = report.format_summary(results)
    words = "language model m (dialogue) 40 30 50 20 8 2 0 123,456 789"
    assert words in " ".join(text.split()) and "responses  " not in text


def test_seeds_by_verdicts_are_combined(tmp_path):
    """Their reports have no mean scores either."""
    folders = tiny_reports.write(
        tmp_path, report=lambda seed: without_scores(tiny_reports.report(seed))
    )
    found = reports.read(folders)
    combined = reports.headings(found) | seeds.gather(found)
    built, drawings = seed_sections.build(combined)
    (part,) = [part for part in built if part.title == "Improvement iterations"]
    assert len(drawings["iterations"]().axes) == 2 and tables(part.blocks)
