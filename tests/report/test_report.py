"""Tests of the report: what it shows, what it leaves out, and what it must not let through."""

import copy
import html.parser
import json
import pathlib
import re
import subprocess
import sys

import jinja2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pit_jax.report import blocks, markdown, page, paper, plots, sections
from pit_jax.report import write as report
from tests import made_up_report
from tests.made_up_report import SCRIPT, comparison


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    paths = report.write_report(made_up_report.results(), tmp_path_factory.mktemp("run") / "report")
    return {name: pathlib.Path(path).read_text("utf-8") for name, path in paths.items()}, paths


class _Page(html.parser.HTMLParser):
    """Collects the tags, links and visible text of a page, and checks that tags nest."""

    VOID = ("meta", "img", "br", "source")

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.text, self.open = [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "srcset", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_html_stands_alone_and_shows_model_output_as_text(written):
    page = _Page(written[0]["html"])
    assert "script" not in page.tags
    # A prompt, its original, two iterations and the data's two responses, with what they changed;
    # the name of a comparison, in its table alone; the configuration and a warning.
    assert "".join(page.text).count(SCRIPT) == 9
    assert SCRIPT not in written[0]["html"]
    assert all(s.startswith(("#", "data:image/svg+xml;base64,")) for s in page.sources)
    # Seven figures, each for wide and for narrow screens, and the small curve of the one stage.
    assert page.tags.count("img") == page.tags.count("source") == 7
    assert page.tags.count("svg") == 1
    assert "default-src 'none'" in written[0]["html"]


def test_html_shows_numbers_with_intervals_and_the_papers(written):
    text = " ".join("".join(_Page(written[0]["html"]).text).replace("\u00a0", " ").split())
    for expected in (
        "+21.5 [+13.5, +29.5]",
        # Of temperature 1, which is the paper's, and of another.
        "PIT vs original (T=1) 40.0 18.5 41.5 +21.5 [+13.5, +29.5] 256 +33.59 +14.00 +7.20",
        "PIT vs original (T=0.4) 40.0 18.5 41.5 +21.5 [+13.5, +29.5] 256 – – –",
        "Paper’s Δ: synthetic Paper’s Δ: HH Paper’s Δ: Summary",
        "256 +30.10",
        "R_PIT 96.1 [94.0, 98.0] 512 96.09 65.63 72.66",
        "0.625 [0.600, 0.650]",
        "1050 [1040, 1060] 50.0 – 1033 1022",
        "Mean score by the exact checker (0 to 1) of each model’s responses",
        "The first model’s response against the second’s on 256 held-out prompts.",
        "Original · score 0.25",
        "Iteration 1 · score 0.50 · gap +1.25 · best",
        "Iteration 2 · score 0.50 · gap -0.50 · unchanged",
        "Rejected response of the data (y_l)",
        "loss 1",
        "1 to 2, steps 1 to 2",
        "Commit of the code c0ffee with changes",
        # Bounds (-4 - 0.5) / 2 and (3 + 0) / 2; the last rewards are 2 and 0.
        "The Similar region, -2.25 to 1.50",
        "Both rounds in Better, Second only in Similar",
        "train.steps = 4",
        "1.23M",
    ):
        assert expected in text, expected


def test_a_run_with_several_models_of_each_kind_shows_them_all():
    parts, figures = sections.build(made_up_report.whole())
    page_ = _Page(page.to_html("t", "", parts, dict.fromkeys(figures, (b"", b""))))
    text = "".join(page_.text).replace("\u00a0", " ").replace("\u2011", "-")
    text = " ".join(text.split())
    # The curves of the stage are drawn on the page itself.
    assert page_.tags.count("img") == len(figures) - 1 == 9
    for expected in (
        "First RL only vs Self-Refine 40.0 5.0 55.0 +35.0 [+27.0, +43.0] 256 -15.70",
        "PIT vs Second RL only 40.0 35.0 25.0 +5.0 [-3.0, +13.0] 256 +36.70",
        "PIT vs rl_pit_turned 40.0 35.0 25.0 +5.0 [-3.0, +13.0] 256 –",
        "PIT rl_pit from sft_pit: 40 steps on references from the data, then",
        "2 0.750 +45.0 [+38.0, +52.0] 1075 [1063, 1087] 1 1080 [1074, 1086] 50.0 0.25 1016 1049",
        "Refine 1 0.500 -30.0 [-37.0, -23.0] 950 [938, 962] 4 955 [949, 961] 50.0 0.00 1001 –",
        "Original 0.600 – 995 [983, 1007] 3 1000 [994, 1006] – – 921 900",
        "R_P(y1) - R_P(y2) 80.0 80.0 80.0 80.0 80.0 1.50 0.00 0.00 -1.50 1.00",
        "PIT (SFT, CoT) vs Original (SFT) 40.0 36.0",
        "it has these curves as a plot only, without figures",
        "PIT in Better, First RL only in Better, Second RL only in Similar. PIT begins its second "
        "round in Similar",
    ):
        assert expected in text, expected


def test_rewards_are_aligned_where_second_rounds_begin():
    figure = plots.rewards_by_step(made_up_report.whole()["figure4"], None)
    (axis,) = figure.axes
    drawn = [line.get_xdata() for line in axis.lines if len(line.get_xdata()) > 2]
    # Twice each: the values, and their running mean.
    assert [(x[0], x[-1]) for x in drawn[::2]] == [(-39, 0), (1, 40), (-79, 0), (1, 80)]
    alone = plots.rewards_by_step(made_up_report.whole()["figure4"][:2], None)
    (axis,) = alone.axes
    drawn = [line.get_xdata() for line in axis.lines]
    assert [(x[0], x[-1]) for x in drawn[::2]] == [(1, 40), (41, 80)]


def test_json_is_standard_and_holds_the_results(written):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    saved = json.loads(written[0]["json"], parse_constant=refuse)
    assert saved["scores"][0]["mean_score"] == 0.625
    assert saved["iterations"][0]["rows"][1]["gap"] is None
    assert len(saved["figure2"]["wl"]) == 50


def test_markdown_links_its_figures_and_fences_model_output(written):
    texts, paths = written
    folder = pathlib.Path(paths["markdown"]).parent
    images = re.findall(r"!\[[^\n]*\]\(([^)\n]+)\)", texts["markdown"])
    assert len(images) == 8
    for image in images:
        assert (folder / image).read_bytes().startswith(b"\x89PNG")
    outside, fence = [], None
    for line in texts["markdown"].splitlines():
        mark = re.match(r"`{3,}", line)
        if mark and fence in (None, mark[0]):
            fence = mark[0] if fence is None else None
        elif fence is None:
            outside.append(line)
    assert fence is None
    assert not any("<script>" in line for line in outside)
    assert any("\\<script\\>" in line for line in outside)


def test_report_is_the_same_for_the_same_results(written):
    parts, figures = sections.build(report._plain(made_up_report.results()))
    name = "temperatures"
    for narrow in (False, True):
        image = plots.render(figures[name](narrow=narrow), "svg")
        assert page._data_uri(image) in written[0]["html"]
    html_ = page.to_html("A small run", "What was done.", parts, dict.fromkeys(figures, (b"", b"")))
    without_images = re.sub('base64,[^"]*', "base64,", written[0]["html"])
    assert html_ == without_images


@pytest.mark.parametrize("absent", sorted(made_up_report.whole()))
def test_any_part_may_be_absent(absent):
    results = report._plain(made_up_report.whole())
    del results[absent]
    parts, figures = sections.build(results)
    drawn = {
        b.name
        for part in parts
        for b in part.blocks
        if isinstance(b, (blocks.Figure, blocks.Curves))
    }
    assert drawn == set(figures)
    assert all(part.blocks for part in parts)
    assert report.format_summary(results)


def test_empty_results_make_an_empty_report(tmp_path):
    paths = report.write_report({}, tmp_path)
    _Page(pathlib.Path(paths["html"]).read_text("utf-8"))
    assert report.format_summary({}) == "PIT report\n"
    assert not (tmp_path / "figures").exists()


def test_missing_numbers_are_dashes():
    row = comparison("a vs b", ("pit", "iteration"), "table1", delta=0.0)
    del row["ci_low"], row["ci_high"]
    results = {
        "comparisons": [row],
        "reward_models": [{"name": "R"}],
        "stages": [{"name": "sft_policy"}],
    }
    parts, _ = sections.build(results)
    text = markdown.to_markdown("t", "", parts, dict.fromkeys(("comparisons",), "x.png"))
    assert "| a vs b | 40.0 | 40.0 | 20.0 | +0.0 | 256 |" in text
    assert "| R | – | – |" in text
    assert "| sft\\_policy | – | – | – | – | – | – |" in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["reward_models"][0].update(accuracy=96.1), "accuracy: expected a share"),
        (lambda r: r["scores"][0].update(eos_rate=99.0), "eos_rate: expected a share"),
        (lambda r: r["iterations"][0]["rows"][1].update(changed=50), "changed: expected a share"),
        (lambda r: r["reward_models"][0]["inequalities"].update({"wl>ww": 91}), "wl>ww: expected"),
        (
            lambda r: r["comparisons"][0].update(win=0.4, lose=0.2, tie=0.4),
            "'PIT vs original': expected win, lose and tie in percent",
        ),
    ],
)
def test_wrong_units_are_refused_after_the_results_are_saved(change, message, tmp_path):
    results = copy.deepcopy(made_up_report.results())
    change(results)
    with pytest.raises(ValueError, match=message):
        report.write_report(results, tmp_path)
    assert (tmp_path / "report.json").exists() and not (tmp_path / "report.html").exists()


def test_summary_is_aligned():
    summary = report.format_summary(made_up_report.results())
    lines = summary.splitlines()
    assert lines[0] == "A small run"
    header = next(line for line in lines if line.startswith("comparison"))
    row = next(line for line in lines if line.startswith("PIT vs original (T=0.4)"))
    expected = "PIT vs original (T=0.4) 40.0 18.5 41.5 +21.5 [+13.5, +29.5] 256"
    assert " ".join(row.split()) == expected
    assert len(header) == len(row) and header.index("delta") == row.index("+21.5")
    assert f"warning: careful with {SCRIPT}" in lines
    assert max(map(len, lines)) <= 100


TEXTS = st.text(alphabet='ab<>&" \n', max_size=30)


@settings(max_examples=200)
@given(TEXTS, TEXTS)
def test_changes_hold_the_new_text_and_words_of_the_old(before, after):
    changes = list(page._changes(before, after))
    assert "".join(text for tag, text in changes if tag != "del") == after
    assert {tag for tag, _ in changes} <= {"", "ins", "del"}
    kept = "".join(text for tag, text in changes if tag != "ins")
    assert kept.split() == before.split()


def test_changes_by_hand():
    assert list(page._changes("one two three", "one 2 three four")) == [
        ("", "one "),
        ("del", "two"),
        ("ins", "2"),
        ("", " three"),
        ("ins", " four"),
    ]


def test_a_response_on_the_page_keeps_its_white_space_and_marks_its_changes():
    responses = [
        blocks.Response("Original", "\n one  two\n"),
        blocks.Response("Iteration 1", "\n one  <b>\n", revises=True),
    ]
    sections_ = [blocks.Section("", [blocks.Sample("p", responses)])]
    text = page.to_html("t", "", sections_, {})
    assert "<dd>\n one  two\n</dd>" in text
    assert "<dd>\n one  <del>two</del><ins>&lt;b&gt;</ins>\n</dd>" in text


def test_a_long_text_is_folded_behind_its_opening():
    words = " ".join(f"word{n}" for n in range(200))
    responses = [
        blocks.Response("Original", "short"),
        blocks.Response("Iteration 1", words, revises=True, marked=True),
    ]
    found = _Page(page.to_html("t", "", [blocks.Section("", [blocks.Sample("p", responses)])], {}))
    text = "".join(found.text)
    assert found.tags.count("details") == 1 and f"all {len(words)} characters" in text
    # The opening, up to a whole word below 320 characters; then all of it.
    assert f"{words[:319].rpartition(' ')[0]} … " in text and words in text
    assert page._opening("x " * 450) == "" and page._opening("x " * 451) != ""


def test_small_curves_by_hand():
    drawn = page._drawn({"steps": [10, 20, 30], "values": [1.0, None, 3.0]})
    # 300 by 84, with 3 and 4 left free at each side: from the lowest left to the highest right.
    assert drawn["lines"] == [("plain", "3.0,80.0 297.0,4.0")]
    assert [drawn[key] for key in ("last", "low", "high", "first", "end")] == [
        *("3", "1", "3", "10", "30")
    ]
    assert not drawn["single"]
    flat = page._drawn({"steps": [5], "values": [2.0]})
    assert flat["single"] and flat["end"] == "5"
    assert flat["lines"] == [("plain", "3.0,4.0")]
    assert page._drawn({"steps": [5], "values": [None]}) == {"lines": []}
    many = page._drawn({"steps": list(range(1000)), "values": [float(n % 7) for n in range(1000)]})
    assert [kind for kind, _ in many["lines"]] == ["faint", "plain"]
    assert all(len(points.split()) == 250 for _, points in many["lines"])


def test_a_metric_that_was_recorded_once_is_a_point():
    curve = {"stage": "rm_gap", "metric": "held_out_loss", "steps": [5], "values": [2.0]}
    text = page.to_html("t", "", sections.build({"curves": [curve]})[0], {})
    assert text.count("<circle") == 1 and "once, at step 5" in text and "2 to 2" not in text


def test_deltas_of_one_temperature_are_a_table_alone():
    one = {
        "temperatures": [1.0],
        "series": {"PIT vs Original": [4.0], "Policy re-sampled vs Original": [-3.0]},
        "intervals": {
            "PIT vs Original": [[1.0, 7.0]],
            "Policy re-sampled vs Original": [[-8.0, 2.0]],
        },
    }
    for part in ("figure3", "figure5"):
        (section,), figures = sections.build({part: one})
        (table,) = section.blocks
        assert not figures and table.columns == ["Δ of", "T = 1"]
        texts = [[cell if isinstance(cell, str) else cell.text for cell in r] for r in table.rows]
        assert [row[-1].replace("\u00a0", " ") for row in texts] == [
            *("+4.0 [+1.0, +7.0]", "-3.0 [-8.0, +2.0]")
        ]
        assert [row[-1].tone for row in table.rows] == ["up", ""]
        assert "brackets: 95% intervals" in table.caption


def test_rest_of_the_curves_is_folded():
    results = made_up_report.results()
    (shown,) = results["curves"]
    folded = shown | {"metric": "grad_norm", "folded": True}
    parts, figures = sections.build({"curves": [shown, folded], "stages": results["stages"]})
    (part,) = parts
    (block,) = [block for block in part.blocks if isinstance(block, blocks.Curves)]
    assert (block.shown, block.folded) == ([shown], [folded])
    assert list(figures) == ["curves_sft_policy"] == [block.name]
    text = "".join(_Page(page.to_html("t", "", parts, {})).text)
    assert "1 more metrics of sft_policy" in text and "grad_norm" in text
    assert "loss 0.3125" in text  # of its last record, the metrics that are shown


def test_a_block_that_the_page_cannot_draw_is_refused():
    with pytest.raises(jinja2.UndefinedError, match="has no attribute 'Cell'"):
        page.to_html("t", "", [blocks.Section("", [blocks.Cell("1")])], {})
    with pytest.raises(TypeError, match="expected a block of a report, got Cell"):
        markdown._block(blocks.Cell("1"), {})


@given(st.text(alphabet="`ab\n", max_size=40))
def test_a_fence_outlasts_the_backticks_inside(text):
    fenced = markdown._fenced(text)
    fence = re.match("`+", fenced)[0]
    assert fence not in fenced[len(fence) : -len(fence)] and fenced.endswith(fence)


def test_markdown_tables_keep_their_columns():
    table = blocks.Table(["a|b", "c"], [["x | y\nz", blocks.Cell("1", "up")]])
    assert markdown._table(table).splitlines() == [
        "| a\\|b | c |",
        "| --- | ---: |",
        "| x \\| y z | 1 |",
    ]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("pit", "self_refine", "+10.16 synthetic, +3.70 HH"),
        ("original", "chosen", "-22.66 synthetic, +50.20 HH, +74.20 Summary"),
        ("chosen", "original", "+22.66 synthetic, -50.20 HH, -74.20 Summary"),
        ("second_only", "pit", "-36.70 HH"),
        ("pit", "second_only", "+36.70 HH"),
        ("pit", "control", ""),
        ("pit", "pit", ""),
    ],
)
def test_paper_deltas(first, second, expected):
    found = paper.delta(first, second, 1.0)
    assert ", ".join(f"{value} {dataset}" for dataset, value in found.items()) == expected
    assert paper.delta(first, second, 0.4) == {} == paper.delta(first, second, None)


def test_the_paper_has_eachcomparison_once_only():
    assert not {(b, a) for a, b in paper.DELTAS} & set(paper.DELTAS)


def test_what_the_paper_does_not_have():
    assert paper.accuracy("other") == {} == paper.elo(6) == paper.elo(1, "pit", 1.0)
    assert paper.elo(1, "self_refine") == {"HH": "1001"} and paper.elo(6, "self_refine") == {}
    assert paper.columns("Δ", [{}, {}]) == ([], [[], []])


def test_importing_the_report_loads_no_matplotlib_or_jax():
    code = (
        "import sys, pit_jax.report.write, pit_jax.evaluation.judges\n"
        'print([m for m in ("matplotlib", "jax", "tensorflow") if m in sys.modules])'
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_smoothing_keeps_a_straight_line_straight():
    _, axes = plots.canvas(2.0)
    plots._draw_smoothed(axes[0], range(50), [2.0 * i for i in range(50)], "k", "-", None)
    x, y = axes[0].lines[1].get_data()
    # The window is cut off at the end only.
    np.testing.assert_allclose(y[:48], 2.0 * x[:48])
