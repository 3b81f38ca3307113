"""What a report shows of stop criteria."""

from pit_jax.evaluation import seeds
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


def test_criteria_of_several_seeds():
    """Limits of the gap and of tokens are a seed's own; Δ of 30 and 34 has the mean 32."""

    def report(rise):
        rows = [
            _row("iterations", 1),
            _row("iterations", 2, tokens=40.0),
            _row("unchanged", None),
            _row("gap", 0.5 + rise),
            _row("tokens", 57 + rise, iterations=1.5 + rise / 4),
        ]
        more = {key: rows[4][key] + rise for key in ("delta_vs_original", "ci_low", "ci_high")}
        rows[4] |= more
        groups = [{"temperature": t, "rows": [], "stops": rows} for t in (1.0, 0.4)]
        return {"iterations": groups}

    found = seeds.gather([report(0), report(4)]) | {"seeds": [0, 1]}
    names = [(r["temperature"], r["criterion"], r.get("iteration")) for r in found["stops"]]
    criteria = [("iterations", 1), ("iterations", 2), ("unchanged", None), ("gap", None)]
    assert names == [(t, *c) for t in (1.0, 0.4) for c in (*criteria, ("tokens", None))]
    (table,) = stopping.of_seeds(found)
    texts = [[getattr(c, "text", c).replace("\u00a0", " ") for c in row] for row in table.rows]
    assert [row[0] for row in texts[:5]] == [
        *("after 1 iteration", "after 2 iterations", "unchanged", "r_gap < 0.50, 4.50"),
        "at 57, 61 tokens",
    ]
    assert texts[1][1:4] == ["1.0", "1.25", "40.0"] and texts[5][1] == "0.4"
    # Student's t of one degree of freedom: 12.706 * 2.828 / 1.414.
    assert texts[4][2:7] == [
        *("2.00", "20.0", "+30.0 [+20.0, +40.0]", "+34.0 [+24.0, +44.0]", "+32.0 [+6.6, +57.4]"),
    ]
    assert stopping.of_seeds({}) == []
