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
        "[Over seeds and prompts]",
        *("Paper’s Δ: synthetic", "Paper’s Δ: HH", "Paper’s Δ: Summary"),
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
        *("+33.59", "+14.00", "+7.20"),
    ]
    # The paper's figures are of temperature 1.
    assert rows[1][1] == "0.4" and rows[1][-3:] == ["–", "–", "–"]


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
    at_best = sections._iteration_table(
        [
            {"method": method, "temperature": 0.4, "iteration": 1}
            for method in ("PIT", "Self-Refine")
        ],
        "",
    )
    assert at_best.columns[-2:] == ["Paper’s ELO: HH", "Paper’s ELO: Summary"]
    assert [row[-2:] for row in at_best.rows] == [["1033", "1022"], ["1001", "–"]]
    assert plain(found[9][2][0])[1] == "95.0 [80.0, 99.0]"
    runs = found[-1][2]
    assert runs[1][:1] + runs[1][2:4] + runs[1][-1:] == ["1", "c" * 12, "1" * 12, "2.2 min"]


def test_a_row_that_a_seed_lacks_counts_those_that_have_it(tmp_path):
    def lacking(report):
        if report["seed"] == 1:
            del report["comparisons"][1]

    (_, columns, rows) = tables(sections.build(results(tmp_path, change=lacking))[0])[2]
    assert columns[-2:] == ["Seeds", "Paper’s Δ: HH"]
    assert [row[3] for row in rows] == ["–", rows[1][3]] and rows[1][3] != "–"
    assert [row[-2] for row in rows] == ["2", "3"]


def test_it_opens_with_a_verdict_over_seeds_and_the_seeds_warnings(tmp_path):
    def warned(report):
        report["task"] = "Sums."
        report["warnings"] = ["few prompts", f"weak by {report['seed'] // 2}"]

    folders = tiny_reports.write(tmp_path)
    found = reports.read(folders)
    for report in found:
        warned(report)
    combined = reports.headings(found) | seeds.gather(found)
    first = sections.build(combined)[0][0]
    terms, verdict, tiles, warnings = first.blocks
    assert [word for word, _ in terms.terms] == ["Task", "Judge", "Score", "Original", "PIT"]
    assert verdict.leads and verdict.text == (
        "PIT improves the original responses: trained from 3 seeds and judged by the exact checker "
        "at temperature 1, it has a mean Δ of +33.0 points, 95% interval over seeds and prompts "
        "+22.7 to +43.3. Seed by seed it is +30.0, +32.0, +37.0."
    )
    assert [tile.label for tile in tiles.tiles] == ["PIT vs Original"]
    assert list(warnings.texts) == [
        *("seeds 0, 1, 2: few prompts", "seeds 0, 1: weak by 0", "seed 2: weak by 1")
    ]


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
    assert page.count("data:image/svg+xml") == 4 and "Student’s t" in page
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


def test_transfer_of_seeds(tmp_path):
    """Deltas 10, 12 and 17: mean 13, as far apart as those of the first comparison."""

    def change(report):
        rise = report["comparisons"][0]["delta"] - 30
        row = report["comparisons"][0] | {"group": "transfer", "delta": 10 + rise}
        row |= {"ci_low": 5 + rise, "ci_high": 15 + rise, "read": 40, "too_long": 7}
        model = report["reward_models"][0] | {"name": "R_PIT"}
        for place, digest in (("own", "a"), ("own (other.gin)", f"b{report['seed']}")):
            moved = {"trained_on": "own", "evaluated_on": place, "data_digest": digest}
            moved |= {"gap_model": model, "seen": report["seed"]}
            report.setdefault("transfer", []).append(row | moved)

    found = results(tmp_path, change=change)
    assert [row["evaluated_on"] for row in found["transfer"]] == ["own", "own (other.gin)"]
    assert found["transfer"][1]["seen"]["values"] == (0.0, 1.0, 2.0)
    made = [each for each in tables(sections.build(found)[0]) if each[0] == "Transfer"]
    (_, columns, deltas), (_, _, models), (_, _, data) = made
    assert columns[:4] == ["Trained on", "Evaluated on", "Judge", "Seed 0"]
    assert plain(deltas[1]) == [
        *("own", "own (other.gin)", "checker", "+10.0 [+5.0, +15.0]", "+12.0 [+7.0, +17.0]"),
        *("+17.0 [+12.0, +22.0]", "+13.0 [+4.0, +22.0]", "[+2.7, +23.3]"),
    ]
    assert plain(models[0])[:3] == ["own", "own", "95.0 [80.0, 99.0]"]
    assert data == [["own", "40", "7", "1"], ["own (other.gin)", "40", "7", "1"]]
    printed = write.format_tables(found, seed_tables.for_terminal(found)).splitlines()
    for title in ("delta of PIT on", "R_PIT right % on"):
        (place,) = (i for i, line in enumerate(printed) if line.startswith(f"{title} "))
        assert printed[place + 2].startswith("own (other.gin)"), printed


def test_deltas_of_one_temperature_are_a_table_alone(tmp_path):
    def change(report):
        sweep = report["figure3"]
        sweep["temperatures"] = [0.4]
        for part in ("series", "intervals"):
            sweep[part] = {name: values[:1] for name, values in sweep[part].items()}

    parts, drawings = sections.build(results(tmp_path, change=change))
    (part,) = (part for part in parts if part.title == "The temperature of improvement")
    assert [type(block) for block in part.blocks] == [blocks.Table]
    assert "temperatures" not in drawings and "supervised" in drawings
