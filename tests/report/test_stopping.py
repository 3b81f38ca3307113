"""What a report shows of stop criteria."""

from pit_jax.report import stopping
from pit_jax.report.blocks import Cell


def _row(criterion, limit, **more):
    row = {"criterion": criterion, "limit": limit, "iterations": 1.25, "tokens": 20.0}
    return row | {"delta_vs_original": 30.0, "ci_low": 20.0, "ci_high": 40.0} | more


def test_a_line_for_each_criterion_and_temperature():
    rows = [
        _row("iterations", 1, mean_score=0.5),
        _row("iterations", 2),
        _row("unchanged", None, ci_low=-1.0),
        _row("gap", 0.5),
        _row("tokens", 57),
    ]
    groups = [{"temperature": 1.0, "stops": rows}, {"temperature": 0.4, "stops": rows[:1]}]
    (table,) = stopping.blocks(groups)
    delta = Cell("+30.0\u00a0[+20.0,\u00a0+40.0]", "up")
    assert table.rows[0] == ["1.0", "after 1 iteration", "1.25", "20.0", "0.500", delta]
    assert [row[1] for row in table.rows[1:]] == [
        *("after 2 iterations", "unchanged", "r_gap < 0.50", "at 57 tokens", "after 1 iteration"),
    ]
    assert table.rows[2][-1] == Cell("+30.0\u00a0[-1.0,\u00a0+40.0]", "")
    assert table.rows[5][0] == "0.4" and len(table.columns) == 6
    (table,) = stopping.blocks([{"temperature": 1.0, "stops": rows[1:]}])
    assert "Mean score" not in table.columns and len(table.rows[0]) == 5
    assert stopping.blocks([{"temperature": 1.0}]) == []
