"""The report of several seeds: what it shows of each part, and what it leaves out."""

import json
import pathlib
import re

import pytest

from pit_jax.evaluation import reports, seeds
from pit_jax.report import blocks, seed_plots, seed_tables, write
from pit_jax.report import seeds as sections
from tests import tiny_reports


def results(folder, which=(0, 1, 2), change=lambda report: None):
    folders = tiny_reports.write(folder, which)
    found = reports.read(folders)
    for report in found:
        change(report)
    return reports.headings(found) | seeds.gather(found) | {"command": "the command"}


def tables(parts):
    """Rows of text by the section's title, and the columns of each table."""
    return [
        (part.title, block.columns, [[getattr(c, "text", c) for c in row] for row in block.rows])
        for part in parts
        for block in part.blocks
        if isinstance(block, blocks.Table)
    ]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return sections.build(results(tmp_path_factory.mktemp("seeds")))


def plain(texts):
    return [text.replace("\u00a0", " ") for text in texts]


def test_a_comparison_has_each_seed_the_mean_and_the_papers(built):
    title, columns, rows = tables(built[0])[0]
    assert title == "Quality of the responses"
    assert columns == [
        *("Comparison", "T", "Seed 0", "Seed 1", "Seed 2", "Mean [over seeds]"),
        *("[Over seeds and prompts]", "Paper’s Δ"),
    ]
    # 30, 32 and 37: mean 33, s = 3.606, and 4.303 s / √3 = 8.957; √(8.957² + 5²) = 10.258.
    assert plain(rows[0]) == [
        "PIT vs Original",
        "1.0",
        "+30.0 [+25.0, +35.0]",
        "+32.0 [+27.0, +37.0]",
        "+37.0 [+32.0, +42.0]",
        "+33.0 [+24.0, +42.0]",
        "[+22.7, +43.3]",
        "+33.59 synthetic, +14.00 HH, +7.20 Summary",
    ]
    assert rows[1][1] == "0.4"


def test_every_part_has_its_table_and_figure(built):
    parts, drawings = built
    found = [(title, rows[0][0]) for title, _, rows in tables(parts)]
    assert found == [
        ("Quality of the responses", "PIT vs Original"),
        ("Quality of the responses", "PIT"),
        ("The curriculum", "First RL only vs Original"),
        ("The curriculum", "PIT · round 0"),
        ("Improvement iterations", "Original"),
        ("The temperature of improvement", "PIT vs Original"),
        ("Supervised PIT models", "Reflected vs Original"),
        ("Supervised PIT models", "PIT, no reflection"),
        ("Supervised PIT models", "PIT vs Original"),
        ("Reward models", "R_PIT"),
        ("Reward models", "R_PIT"),
        ("Controls", "Policy re-sampled vs Original"),
        ("mine", "A vs B"),
        ("The runs", "0"),
    ]
    drawn = {b.name for part in parts for b in part.blocks if isinstance(b, blocks.Figure)}
    assert (
        drawn
        == set(drawings)
        == {
            *("table1", "table2", "figure5", "control", "rewards", "iterations", "temperatures"),
            *("supervised", "mine"),
        }
    )


def test_figures_of_the_parts(built):
    found = tables(built[0])
    rewards = found[3][2]
    # The last tenth of two steps is the last, and the bounds of each seed's regions are its own.
    assert plain(rewards[0])[1:] == [
        "0.00 similar",
        "2.00 better",
        "7.00 better",
        "3.00 [-5.96, 11.96]",
    ]
    iteration, refined = plain(found[4][2][1]), plain(found[4][2][2])
    assert (iteration[0], refined[0]) == ("PIT 1", "Self-Refine 1")
    assert iteration[3:5] == ["+34.0 [+25.0, +43.0]", "+31.0, +33.0, +38.0"]
    assert iteration[-1] == "1033 HH, 1022 Summary"
    assert refined[-1] == "1001 HH"
    assert plain(found[9][2][0])[1] == "95.0 [80.0, 99.0]"
    assert found[-1][2][1][:1] + found[-1][2][1][-1:] == ["1", "2.2 min"]


def test_a_row_that_a_seed_lacks_counts_those_that_have_it(tmp_path):
    def lacking(report):
        if report["seed"] == 1:
            del report["comparisons"][1]

    (_, columns, rows) = tables(sections.build(results(tmp_path, change=lacking))[0])[2]
    assert columns[-2:] == ["Seeds", "Paper’s Δ"]
    assert [row[3] for row in rows] == ["–", rows[1][3]] and rows[1][3] != "–"
    assert [row[-2] for row in rows] == ["2", "3"]


def test_one_seed_has_no_interval_over_seeds(tmp_path):
    parts, _ = sections.build(results(tmp_path, (1,)))
    assert plain(tables(parts)[0][2][0])[2:5] == ["+32.0 [+27.0, +37.0]", "+32.0", "–"]


@pytest.mark.parametrize(
    "absent",
    [
        *("scores", "iterations", "reward_models", "figure3", "figure4", "figure5", "stages"),
        *("versions", "device", "config_text"),
    ],
)
def test_any_part_may_be_absent(absent, tmp_path, monkeypatch):
    monkeypatch.setattr(seed_plots, "lines", lambda *_: None)
    monkeypatch.setattr(seed_plots, "comparisons", lambda *_: None)
    found = results(tmp_path, change=lambda report: report.pop(absent))
    parts, drawings = sections.build(found)
    assert all(part.blocks for part in parts) and "table1" in drawings
    assert write.format_tables(found, seed_tables.for_terminal(found))


def test_written_and_printed(tmp_path):
    def small(report):  # drawing takes time
        report["comparisons"] = report["comparisons"][:1]
        for part in ("iterations", "figure4", "figure5"):
            del report[part]

    found = results(tmp_path, change=small)
    paths = write.write_report(found, tmp_path / "all", sections.build)
    saved = json.loads(pathlib.Path(paths["json"]).read_text("utf-8"))
    assert saved["comparisons"][0]["delta"]["values"] == [30.0, 32.0, 37.0]
    page = pathlib.Path(paths["html"]).read_text("utf-8")
    assert page.count("data:image/svg+xml") == 2 and "Student’s t" in page
    images = re.findall(r"\]\((figures/\w+\.png)\)", pathlib.Path(paths["markdown"]).read_text())
    assert len(images) == 2 and all((tmp_path / "all" / image).exists() for image in images)
    lines = (
        write.format_tables(found, seed_tables.for_terminal(found))
        .replace("\u00a0", " ")
        .splitlines()
    )
    (line,) = (line for line in lines if line.startswith("PIT vs Original"))
    assert line.split()[-8:] == [
        *("+30.0", "+32.0", "+37.0", "+33.0", "[+24.0,", "+42.0]", "[+22.7,", "+43.3]")
    ]
    assert max(map(len, lines)) <= 120


def test_lengths_and_bradley_terry_of_seeds(tmp_path):
    def change(report):
        rise = report["seed"]
        lengths = {"delta": 10.0 + rise, "ci_low": 2.0, "ci_high": 20.0, "longer_wins": 0.5}
        report["comparisons"][0]["lengths"] = lengths
        for row in report["iterations"][0]["rows"]:
            row["bradley_terry"] = 1200.0 + rise

    found = results(tmp_path, change=change)
    (row,) = found["lengths"]
    assert (row["name"], row["temperature"], row["group"]) == ("PIT vs Original", 1.0, "table1")
    assert row["delta"]["prompts"] == ((2.0, 20.0),) * 3
    assert row["longer_wins"]["values"] == (0.5, 0.5, 0.5)
    made = tables(sections.build(found)[0])
    (_, columns, rows) = made[1]
    assert plain(rows[0])[:3] == ["PIT vs Original", "+10.0 [+2.0, +20.0]", "+11.0 [+2.0, +20.0]"]
    assert columns[0] == "Comparison" and len(rows) == 1
    ((_, columns, rows),) = [each for each in made if each[0] == "Improvement iterations"]
    place = columns.index("Bradley–Terry")
    assert plain(rows[0][place : place + 2]) == ["1201 [1199, 1203]", "1200, 1201, 1202"]
    # Terminal lines have the ratings too.
    titles = [columns[0] for columns, _ in seed_tables.for_terminal(found)]
    assert "bradley-terry by iteration" in titles
