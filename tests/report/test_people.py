"""The page for people as a text, and what a report says of them."""

import base64
import dataclasses
import hashlib
import json
import re

import pytest

from pit_jax.evaluation import people
from pit_jax.evaluation.verdict_files import Sheet
from pit_jax.report import people as page
from pit_jax.report import plots, sections
from pit_jax.report import write as report
from pit_jax.report.blocks import Paragraph, Table, Terms

ATTACK = "</script><script>owned()</script><!-- <img src=x onerror=owned()> & \u2028 'x' \"y\""


@pytest.fixture(scope="module")
def key():
    prompts = [f"{ATTACK} {n}" for n in range(6)]
    first, second = ([f"{name} {ATTACK} {n}" for n in range(6)] for name in ("new", "old"))
    first[5] = second[5]
    row = {"name": "PIT vs Original", "first": "pit", "second": "original", "temperature": 1.0}
    sides = people.Sides(row, prompts, first, second, prompts)
    return people.ask([sides], ATTACK, True, 0, {"title": "T", "seed": 3})


@pytest.fixture(scope="module")
def results(key):
    # All for PIT, but for the last one of the second person.
    said = {n: item.shown_as for n, item in enumerate(key.asked, 1)}
    other = said | {5: "tie"}
    sheets = [Sheet("a.csv", f"Ana {ATTACK}", said, {}), Sheet("b.csv", "Ben", other, {})]
    return people.results(key, sheets)


def test_texts_stand_in_the_page_as_data_alone(key):
    text = page.to_html(key)
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert not set("<>&'\u2028") & set(found)
    assert json.loads(found) == {
        "page": key.page,
        "ties": True,
        "comparisons": [list(item.shown) for item in key.asked],
    }
    assert text.count("<script") == 2 and "<img" not in text and text.count("</script>") == 2
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}'; style-src")
    # Nothing is fetched, and nothing tells whose the responses are.
    plain = page.to_html(dataclasses.replace(key, question="Which?"))
    plain = re.sub(r'id="data">.*?</script>', "", plain)
    assert not re.search(r"https?:|src\s*=|@import|url\(", plain)
    assert "PIT" not in text and "Original" not in text and "shown_as" not in text
    assert "innerHTML" not in script and "eval" not in script


def test_the_other_order_is_another_page_without_a_trace_of_it(key):
    turned = [dataclasses.replace(i, first=i.second, second=i.first) for i in key.items]
    turned = [
        dataclasses.replace(i, shown_as={"A": "B", "B": "A", "": ""}[i.shown_as]) for i in turned
    ]
    assert page.to_html(dataclasses.replace(key, items=turned)) == page.to_html(key)


def test_ties_can_be_left_out(key):
    without = page.to_html(dataclasses.replace(key, ties=False))
    assert 'data-verdict="tie"' in page.to_html(key) and 'data-verdict="tie"' not in without


def test_what_a_report_says_of_people(results):
    parts, drawings = sections.build(report._plain(results))
    found = {part.title: part.blocks for part in parts}
    agreement, places = found["The judge"]
    assert isinstance(agreement, Table) and isinstance(places, Table)
    assert agreement.columns == ["People", "Agrees %", "Cohen’s kappa", "Comparisons"]
    assert agreement.rows[0][1].startswith("80.0\u00a0[") and agreement.rows[0][3] == "5"
    assert "All agree on 4 of the 5" in agreement.caption
    assert "equal responses tie unasked: 1." in agreement.caption
    assert [row[0] for row in places.rows] == [f"Ana {ATTACK}", "Ben"]
    assert places.rows[1][3] == "1"
    terms, verdict, *_ = found[""]
    assert isinstance(terms, Terms) and isinstance(verdict, Paragraph)
    assert any("without knowing which was whose" in meaning for _, meaning in terms.terms)
    judge = f"people (Ana {ATTACK}, Ben)"
    assert f"on 6 held-out prompts at temperature 1, {judge} prefer PIT’s response for 66.7%" in (
        verdict.text
    )
    assert "comparisons" in drawings
    quality = next(b for b in found["Quality of the responses"] if isinstance(b, Table))
    # The paper's own people compared PIT with Self-Refine alone: its column is of GPT-4.
    assert f"Judge: {judge}." in quality.caption
    summary = report.format_summary(results)
    # One says 5 wins and the other 4, so that by chance 4 of 5 agree too: a kappa of 0. The
    # interval is Clopper and Pearson's of 4 in 5.
    assert re.search(r"and Ben +80\.0 +\[28\.4, 99\.5\] +0\.00 +- +5$", summary, re.M)


def test_a_written_report_escapes_names(results, tmp_path):
    paths = report.write_report(results, tmp_path)
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "owned()" in text and "<script" not in text and "<img src=x" not in text
    assert "<script" not in (tmp_path / "report.md").read_text("utf-8").replace("\\<", "")
    assert paths["html"].endswith("report.html")


def test_a_dollar_in_a_name_is_a_dollar():
    """Which matplotlib would take for the start of a formula."""
    rates = {"win": 50, "lose": 30, "tie": 20, "delta": 20, "ci_low": 1, "ci_high": 30, "n": 5}
    drawn = plots.comparisons([{"label": r"a$\frac$b.jsonl vs c", "name": "x", **rates}])
    assert plots.render(drawn, "svg").startswith(b"<?xml")
