"""What a report shows of whether comparisons hold."""

import pytest

from pit_jax.report import robustness
from pit_jax.report.blocks import Cell

ROW = {
    "sign_test": {"wins": 70, "losses": 1300, "ties": 5, "p": 0.0123},
    "lengths": {
        "longer_wins": 0.625,
        "longer_low": 0.55,
        "longer_high": 0.7,
        "longer_n": 900,
        "delta": 12.34,
        "ci_low": 2.0,
        "ci_high": 22.5,
    },
}


def test_the_line_of_a_comparison():
    (table,) = robustness.blocks([ROW], ["PIT vs Original"])
    (line,) = table.rows
    assert line == [
        "PIT vs Original",
        "70",
        "1,300",
        "5",
        "0.012",
        "62.5\u00a0[55.0,\u00a070.0]",
        Cell("+12.3\u00a0[+2.0,\u00a0+22.5]", "up"),
    ]
    assert len(table.columns) == len(line)


def test_what_is_not_known_is_a_dash():
    unknown = dict.fromkeys(ROW["lengths"]) | {"longer_n": 0}
    rows = [{**ROW, "lengths": unknown}, {"name": "of an older report"}]
    (table,) = robustness.blocks(rows, ["a", "b"])
    assert [line[-2:] for line in table.rows] == [["–", Cell("–")]]
    assert robustness.blocks(rows[1:], ["b"]) == []


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "1.000"), (0.001, "0.001"), (0.00099, "<0.001"), (None, "–")]
)
def test_probability(value, text):
    assert robustness.probability(value) == text
