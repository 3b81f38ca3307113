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

SCRIPT = '<script>alert("owned")</script>'


def _comparison(name, kinds, group, delta=21.5, temperature=1.0):
    first, second = kinds
    return {
        "name": name,
        "first": first,
        "second": second,
        "temperature": temperature,
        "judge": "checker",
        "group": group,
        "win": 40.0,
        "lose": 40.0 - delta,
        "tie": 20.0 + delta,
        "delta": delta,
        "ci_low": delta - 8,
        "ci_high": delta + 8,
        "n": 256,
    }


def _results():
    rng = np.random.default_rng(0)
    means = {"wl": 3.0, "ww": 0.0, "ll": -0.5, "lw": -4.0}
    return {
        "title": "A small run",
        "description": "What was done.",
        "command": "python -m pit_jax run --gin_file=gin/runs/small.gin",
        "seed": 7,
        "versions": {"jax": "0.10"},
        "device": "CPU",
        "num_prompts": 256,
        "config_text": f"train.steps = 4\n# {SCRIPT}\n",
        "data": {"rows": [["examples", 12000], ["dropped", 3]]},
        "stages": [
            {
                "name": "sft_policy",
                "steps": 400,
                "seconds": 83.0,
                "tokens": 1_234_567,
                "tokens_per_second": 14874.0,
                "mfu": 0.4321,
                "parameters": 1_204_331,
                "final": {"loss": 0.3125},
            }
        ],
        "comparisons": [
            _comparison("PIT vs original", ("pit", "original"), "table1"),
            _comparison("PIT vs original", ("pit", "original"), "table1", temperature=0.4),
            _comparison(f"PIT vs {SCRIPT}", ("pit", "first_only"), "table2", delta=20.0),
            _comparison("PIT vs itself", ("pit", "control"), "control", delta=0.0),
        ],
        "scores": [
            {
                "name": "original",
                "temperature": 1.0,
                "mean_score": 0.625,
                "ci_low": 0.6,
                "ci_high": 0.65,
                "eos_rate": 0.992,
                "mean_length": 21.0,
            }
        ],
        "iterations": [
            {
                "temperature": 0.4,
                "rows": [
                    {
                        "iteration": 0,
                        "mean_score": 0.6,
                        "elo": 950.0,
                        "elo_low": 940.0,
                        "elo_high": 960.0,
                    },
                    {
                        "iteration": 1,
                        "mean_score": 0.7,
                        "delta_vs_original": 31.2,
                        "ci_low": 20.0,
                        "ci_high": 40.0,
                        "elo": 1050.0,
                        "elo_low": 1040.0,
                        "elo_high": 1060.0,
                        "changed": 0.5,
                        "gap": float("nan"),
                    },
                ],
            }
        ],
        "reward_models": [
            {
                "name": "R_PIT",
                "accuracy": 0.9609,
                "ci_low": 0.94,
                "ci_high": 0.98,
                "n": 512,
                "inequalities": {"wl>ww": 0.91, "wl>ll": 0.92, "wl>lw": 0.96, "ww>lw": 0.9},
                "means": means,
                "degeneration": 3.5,
            },
            {"name": "R_P", "accuracy": 0.875, "ci_low": 0.84, "ci_high": 0.9, "n": 512},
        ],
        "figure2": {pair: rng.normal(mean, 1, 50).tolist() for pair, mean in means.items()},
        "figure3": {
            "temperatures": [0.0, 0.5, 1.0],
            "series": {"PIT vs original": [20.0, 25.0, None]},
            "intervals": {"PIT vs original": [[15, 25], [20, 30], [None, None]]},
        },
        "figure4": [
            {"round": "Both rounds", "steps": [0, 1, 2], "reward": [0.0, 1.0, 2.0]},
            {"round": "Second only", "steps": [0, 1], "reward": [-1.0, 0.0]},
        ],
        "curves": [
            {"stage": "sft_policy", "metric": "loss", "steps": [1, 2], "values": [2.0, 1.0]}
        ],
        "samples": [
            {
                "prompt": f"do {SCRIPT}",
                "original": f"one {SCRIPT} two",
                "iterations": [f"one two {SCRIPT} `three`", f"one two {SCRIPT} `three`"],
                "scores": [0.25, 0.5, 0.5],
                "chosen": f"```\n{SCRIPT}",
            }
        ],
        "warnings": [f"careful with {SCRIPT}"],
    }


def _whole_results():
    """Those of a run with Self-Refine and with several models of each kind."""
    results = _results()
    rng = np.random.default_rng(1)
    names = ("First RL only", "Second RL only", "rl_pit_turned")
    kinds = ("first_only", "second_only", "ablation")
    results["comparisons"] = [
        _comparison(name, pair, group, delta)
        for group, delta, name, pair in (
            ("table1", 30, "RL vs SFT", ("original", "sft")),
            ("table1", 15, "PIT vs Original", ("pit", "original")),
            ("table1", -18, "Self-Refine vs Original", ("self_refine", "original")),
            *(
                ("table2", delta, name, pair)
                for variant, kind in zip(names, kinds, strict=True)
                for delta, name, pair in (
                    (10, f"{variant} vs Original", (kind, "original")),
                    (35, f"{variant} vs Self-Refine", (kind, "self_refine")),
                    (5, f"PIT vs {variant}", ("pit", kind)),
                )
            ),
            ("control", 0, "rl_policy_longer vs Original", ("control", "original")),
            ("figure5", 12, "PIT (SFT) vs Original (SFT)", ("pit_sft", "original_sft")),
            ("figure5", 4, "PIT (SFT, CoT) vs Original (SFT)", ("pit_sft", "original_sft")),
            ("figure5", 8, "PIT (SFT) vs PIT (SFT, CoT)", ("pit_sft", "pit_sft")),
        )
    ]
    what = "from sft_pit: 40 steps on references from the data, then 40 steps on references from "
    results["variants"] = [
        {"group": group, "label": label, "stage": stage, "what": said}
        for group, label, stage, said in (
            ("table2", "PIT", "rl_pit", f"{what}rl_policy; reward: rm_gap (gap loss eq2)"),
            ("table2", "First RL only", "rl_pit_first_only", "from sft_pit: 80 steps"),
            ("control", "rl_policy_longer", "rl_policy_longer", "from rl_policy: 80 steps"),
            ("reward_models", "R_PIT", "rm_gap", "gap loss eq2, 400 steps from sft_pit"),
            ("reward_models", "rm_gap_pair", "rm_gap_pair", "gap loss two_term, 400 steps"),
            ("figure5", "PIT (SFT)", "sft_pit", "sft_pit, 400 steps from pretrain"),
        )
    ]

    def rating(iteration, mean, elo, rank):
        spread = {"elo_low": elo - 12, "elo_high": elo + 12}
        row = {"iteration": iteration, "mean_score": mean, "elo": elo, "rank": rank, **spread}
        names = ("bradley_terry", "bradley_terry_low", "bradley_terry_high")
        row |= dict(zip(names, (elo + 5, elo - 1, elo + 11), strict=True))
        delta = {"delta_vs_original": 300 * (mean - 0.6), "changed": 0.5, "gap": mean - 0.5}
        ends = {"ci_low": 300 * (mean - 0.6) - 7, "ci_high": 300 * (mean - 0.6) + 7}
        return row | (delta | ends if iteration else {})

    results["iterations"] = [
        {
            "temperature": temperature,
            "rows": [rating(0, 0.6, 995, 3), rating(1, 0.7, 1040, 2), rating(2, 0.75, 1075, 1)],
            "self_refine": [rating(1, 0.5, 950, 4), rating(2, 0.45, 940, 5)],
        }
        for temperature in (1.0, 0.4)
    ]
    both = {"wl>ww": 0.8, "wl>ll": 0.8, "wl>lw": 0.8, "ww>lw": 0.8, "ll>lw": 0.8}
    means = {"wl": 1.5, "ww": 0.0, "ll": 0.0, "lw": -1.5}
    results["reward_models"].insert(
        1,
        {
            "name": "R_P(y1) - R_P(y2)",
            "accuracy": 0.8,
            "n": 512,
            "inequalities": both,
            "means": means,
            "degeneration": 1.0,
        },
    )
    for figure, curves in (
        ("figure3", ("PIT", "Policy re-sampled", "Self-Refine")),
        ("figure5", ("PIT (SFT)", "PIT (SFT, CoT)", "Self-Refine (SFT)")),
    ):
        series = {f"{c} vs Original": [20 - 9 * i, 24 - 9 * i] for i, c in enumerate(curves)}
        series["PIT vs Self-Refine"] = [38.0, 40.0]
        intervals = {c: [[v - 5, v + 5] for v in values] for c, values in series.items()}
        results[figure] = {"temperatures": [0.4, 1.0], "series": series, "intervals": intervals}

    def curve(model, round_, steps, start, low, high):
        reward = np.linspace(low, high, len(steps)) + rng.normal(0, 0.3, len(steps))
        return {
            "model": model,
            "round": f"round {round_}: references from {('data', 'policy')[round_]}",
            "steps": list(steps),
            "reward": reward.tolist(),
            "start": start,
        }

    results["figure4"] = [
        curve("PIT", 0, range(1, 41), 40, -3, 3),
        curve("PIT", 1, range(41, 81), 40, 0, 3),
        curve("First RL only", 0, range(1, 81), 80, -3, 4),
        curve("Second RL only", 1, range(1, 81), 0, -1.5, 0.5),
    ]
    return results


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    paths = report.write_report(_results(), tmp_path_factory.mktemp("run") / "report")
    return {name: pathlib.Path(path).read_text("utf-8") for name, path in paths.items()}, paths


class _Page(html.parser.HTMLParser):
    """Collects the tags, links and visible text of a page, and checks that tags nest."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.text, self.open = [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_html_stands_alone_and_shows_model_output_as_text(written):
    page = _Page(written[0]["html"])
    assert "script" not in page.tags
    # A prompt, its original, two iterations and the data's response, each with what it changed; the
    # name of a comparison, in its table alone; the configuration and a warning.
    assert "".join(page.text).count(SCRIPT) == 8
    assert SCRIPT not in written[0]["html"]
    assert all(s.startswith(("#", "data:image/svg+xml;base64,")) for s in page.sources)
    assert page.tags.count("img") == 8
    assert "default-src 'none'" in written[0]["html"]


def test_html_shows_numbers_with_intervals_and_the_papers(written):
    text = " ".join("".join(_Page(written[0]["html"]).text).replace("\u00a0", " ").split())
    for expected in (
        "+21.5 [+13.5, +29.5]",
        "+33.59 synthetic, +14.00 HH, +7.20 Summary",
        "+30.10 HH",
        "96.1 [94.0, 98.0]",
        "96.09 synthetic, 65.63 HH, 72.66 Summary",
        "0.625 [0.600, 0.650]",
        "1050 [1040, 1060]",
        "1033 HH, 1022 Summary",
        "The first model’s response against the second’s on 256 held-out prompts.",
        "Iteration 2 · score 0.50 · unchanged",
        # Bounds (-4 - 0.5) / 2 and (3 + 0) / 2; the last rewards are 2 and 0.
        "The Similar region, -2.25 to 1.50",
        "Both rounds in Better, Second only in Similar",
        "train.steps = 4",
        "1.23M",
    ):
        assert expected in text, expected


def test_a_run_with_several_models_of_each_kind_shows_them_all():
    parts, figures = sections.build(_whole_results())
    page_ = _Page(page.to_html("t", "", parts, dict.fromkeys(figures, b"")))
    text = "".join(page_.text).replace("\u00a0", " ").replace("\u2011", "-")
    text = " ".join(text.split())
    assert page_.tags.count("img") == len(figures) == 10
    for expected in (
        "First RL only vs Self-Refine 40.0 5.0 55.0 +35.0 [+27.0, +43.0] 256 -15.70 HH",
        "PIT vs Second RL only 40.0 35.0 25.0 +5.0 [-3.0, +13.0] 256 +36.70 HH",
        "PIT vs rl_pit_turned 40.0 35.0 25.0 +5.0 [-3.0, +13.0] 256 –",
        "PIT rl_pit from sft_pit: 40 steps on references from the data, then",
        "PIT 2 0.750 +45.0 [+38.0, +52.0] 1075 [1063, 1087] 1 1080 [1074, 1086] 50.0 0.25 1016 HH",
        "Refine 1 0.500 -30.0 [-37.0, -23.0] 950 [938, 962] 4 955 [949, 961] 50.0 0.00 1001 HH",
        "Original 0.600 – 995 [983, 1007] 3 1000 [994, 1006] – – 921 HH, 900 Summary",
        "R_P(y1) - R_P(y2) 80.0 80.0 80.0 80.0 80.0 1.50 0.00 0.00 -1.50 1.00",
        "PIT (SFT, CoT) vs Original (SFT) 40.0 36.0",
        "it has these curves as a plot only, without figures",
        "PIT in Better, First RL only in Better, Second RL only in Similar. PIT begins its second "
        "round in Similar",
    ):
        assert expected in text, expected


def test_rewards_are_aligned_where_second_rounds_begin():
    figure = plots.rewards_by_step(_whole_results()["figure4"], None)
    (axis,) = figure.axes
    drawn = [line.get_xdata() for line in axis.lines if len(line.get_xdata()) > 2]
    # Twice each: the values, and their running mean.
    assert [(x[0], x[-1]) for x in drawn[::2]] == [(-39, 0), (1, 40), (-79, 0), (1, 80)]
    alone = plots.rewards_by_step(_whole_results()["figure4"][:2], None)
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


def test_report_is_the_same_for_the_same_results(written, tmp_path):
    again = report.write_report(_results(), tmp_path)
    assert pathlib.Path(again["html"]).read_text("utf-8") == written[0]["html"]


@pytest.mark.parametrize("absent", sorted(_whole_results()))
def test_any_part_may_be_absent(absent):
    results = report._plain(_whole_results())
    del results[absent]
    parts, figures = sections.build(results)
    drawn = {b.name for part in parts for b in part.blocks if isinstance(b, blocks.Figure)}
    assert drawn == set(figures)
    assert all(part.blocks for part in parts)
    assert report.format_summary(results)


def test_empty_results_make_an_empty_report(tmp_path):
    paths = report.write_report({}, tmp_path)
    _Page(pathlib.Path(paths["html"]).read_text("utf-8"))
    assert report.format_summary({}) == "PIT report\n"
    assert not (tmp_path / "figures").exists()


def test_missing_numbers_are_dashes():
    row = _comparison("a vs b", ("pit", "iteration"), "table1", delta=0.0)
    del row["ci_low"], row["ci_high"]
    results = {
        "comparisons": [row],
        "reward_models": [{"name": "R"}],
        "stages": [{"name": "sft_policy"}],
    }
    parts, _ = sections.build(results)
    text = markdown.to_markdown("t", "", parts, dict.fromkeys(("comparisons",), "x.png"))
    assert "| a vs b | 40.0 | 40.0 | 20.0 | +0.0 | 256 |" in text
    assert "| R | – | – | – |" in text
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
    results = copy.deepcopy(_results())
    change(results)
    with pytest.raises(ValueError, match=message):
        report.write_report(results, tmp_path)
    assert (tmp_path / "report.json").exists() and not (tmp_path / "report.html").exists()


def test_summary_is_aligned():
    summary = report.format_summary(_results())
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
    assert paper.delta(first, second).replace("\u00a0", " ") == expected


def test_the_paper_has_each_comparison_once_only():
    assert not {(b, a) for a, b in paper.DELTAS} & set(paper.DELTAS)


def test_what_the_paper_does_not_have():
    assert paper.accuracy("other") == "" == paper.elo(6)
    assert "Summary" not in paper.elo(1, "self_refine") and paper.elo(6, "self_refine") == ""


def test_importing_the_report_loads_no_matplotlib_or_jax():
    code = (
        "import sys, pit_jax.report.write, pit_jax.evaluation.judges\n"
        'print([m for m in ("matplotlib", "jax", "tensorflow") if m in sys.modules])'
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_smoothing_keeps_a_straight_line_straight():
    _, axes = plots.canvas(2.0)
    plots._draw_smoothed(axes[0][0], range(50), [2.0 * i for i in range(50)], "k", "-", None)
    x, y = axes[0][0].lines[1].get_data()
    # The window is cut off at the end only.
    np.testing.assert_allclose(y[:48], 2.0 * x[:48])
