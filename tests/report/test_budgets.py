"""What a report shows of best-of-n at equal tokens, of one run and of several seeds."""

import pytest

from pit_jax.evaluation import seeds
from pit_jax.report import budgets, seed_tables, write
from pit_jax.report.blocks import Cell, Paragraph, Table

NAMES = ("PIT, best vs Best-of-n", "PIT, last vs Best-of-n")


def row(iteration, low, temperature=1.0, capped=0.0):
    deltas = [
        {"name": name, "delta": low + 5, "ci_low": low, "ci_high": low + 10} for name in NAMES
    ]
    return {
        "temperature": temperature,
        "iteration": iteration,
        "pit_tokens": 20.25,
        "drawn_tokens": 18.5,
        "draws": 1.75,
        "capped": capped,
        "gap_passes": float(iteration),
        "reward_passes": 1.5,
        "comparisons": deltas,
    }


ROWS = [row(1, 3.0), row(2, 4.0), row(3, -5.0), row(4, -30.0), row(1, 3.0, 0.4, capped=0.125)]


def test_a_row_for_each_number_of_improvements_and_a_verdict():
    section = budgets.section({"budgets": ROWS, "judge": "checker", "num_prompts": 9}, {})
    verdict, table, costs = section.blocks
    assert isinstance(verdict, Paragraph) and verdict.text == (
        "PIT’s best response by gap against best-of-n, the policy’s own draws for no more sampled "
        "tokens: clearly better at K = 1 and 2; clearly worse at K = 4; no clear difference at "
        "K = 3 (temperature 1, judged by the exact checker)."
    )
    assert isinstance(table, Table) and isinstance(costs, Table)
    assert [each.replace("\u2011", "-") for each in table.columns[1:]] == [f"Δ: {n}" for n in NAMES]
    delta = Cell("+8.0\u00a0[+3.0,\u00a0+13.0]", "up")
    assert table.rows[0] == ["K = 1, T = 1", delta, delta]
    assert costs.rows[4] == ["K = 1, T = 0.4", "20.2", "18.5", "1.8", "1.0", "1.5"]
    assert len(table.rows) == 5 and len(costs.rows[4]) == len(costs.columns)
    assert "on 9 prompts" in table.caption.lower() and "circular" not in table.caption
    assert "best_of allows: 12.5% at K = 1, T = 0.4" in costs.caption
    assert budgets.section({}, {}).blocks == []


@pytest.mark.parametrize(
    ("lows", "said"),
    [
        ((3, 4, 5), "clearly better at K = 1 to 3 ("),
        ((3, -5, 4, 5), "clearly better at K = 1, 3 and 4; no clear difference at K = 2 ("),
    ],
)
def test_the_verdict_lists_where_it_holds(lows, said):
    rows = [row(k, float(low)) for k, low in enumerate(lows, 1)]
    verdict, *_ = budgets.section({"budgets": rows, "judge": "checker"}, {}).blocks
    assert said in verdict.text


def test_a_judge_that_also_chose_is_said_to_be_circular():
    verdict, table, _ = budgets.section({"budgets": ROWS, "judge": "R_P (rm_policy)"}, {}).blocks
    assert "circular, and in its favour" in table.caption
    assert "best-of-n is judged by what chose it" in table.caption
    assert verdict.text.endswith("judged by R_P (rm_policy), which also chooses among the draws).")
    verdict, table, _ = budgets.section({"budgets": ROWS, "judge": "R_PIT (rm_gap)"}, {}).blocks
    assert "chooses PIT’s best, so it is judged by what chose it" in table.caption
    assert verdict.text.endswith("judged by R_PIT (rm_gap), which also chooses PIT’s best).")
    for judge in ("R_P (another)", "R_PIT (another)"):
        verdict, table, _ = budgets.section({"budgets": ROWS, "judge": judge}, {}).blocks
        assert "chose it" not in table.caption and verdict.text.endswith(f"by {judge}).")
    named = {"budgets": ROWS, "judge": "R_P (another)", "subjects": {"reward_model": "another"}}
    assert "chose it" in budgets.section(named, {}).blocks[1].caption


def test_the_table_of_several_seeds():
    """Deltas of 8 and 12: mean 10, and Student's t of one degree of freedom is 12.706."""
    reports = [{"budgets": [row(1, low), row(2, low), row(1, low, 0.4)]} for low in (3.0, 7.0)]
    found = seeds.gather(reports) | {"seeds": [0, 1], "judge": "checker"}
    verdict, deltas, costs = budgets.of_seeds(found)
    assert "no clear difference at K = 1 and 2 (temperature 1" in verdict.text
    assert deltas.columns[:4] == ["Comparison", "Iterations", "Seed 0", "Seed 1"]
    texts = [getattr(c, "text", c).replace("\u00a0", " ") for c in deltas.rows[0]]
    assert texts[:5] == [
        *(NAMES[0], "K = 1, T = 1", "+8.0 [+3.0, +13.0]", "+12.0 [+7.0, +17.0]"),
        "+10.0 [-15.4, +35.4]",
    ]
    assert [tuple(line[:2]) for line in deltas.rows] == [
        *((name, f"K = {k}, T = 1") for name in NAMES for k in (1, 2)),
        *((name, "K = 1, T = 0.4") for name in NAMES),
    ]
    assert [line[:3] for line in costs.rows] == [
        ["K = 1, T = 1", "20.2", "18.5"],
        ["K = 2, T = 1", "20.2", "18.5"],
        ["K = 1, T = 0.4", "20.2", "18.5"],
    ]
    assert budgets.of_seeds({}) == []


def test_the_terminal_has_a_line_for_each_budget():
    lines = write.format_summary({"title": "A run", "budgets": ROWS[:2]}).splitlines()
    assert [line.split()[:5] for line in lines[-2:]] == [
        ["1.0", "1", "20.2", "18.5", "1.8"],
        ["1.0", "2", "20.2", "18.5", "1.8"],
    ]
    assert lines[-2].split()[-3:] == ["+8.0", "[+3.0,", "+13.0]"] and len(lines) == 5
    assert "PIT, last" not in lines[-1]


def test_the_terminal_has_the_main_comparison_of_seeds_too():
    reports = [{"budgets": [row(1, low), row(2, low)]} for low in (3.0, 7.0)]
    found = seeds.gather(reports) | {"seeds": [0, 1], "judge": "checker"}
    lines = write.format_tables(found, seed_tables.for_terminal(found)).splitlines()
    assert [line.partition(",  ")[0][:28] for line in lines if "vs" in line] == [
        *("PIT, best vs Best-of-n, K=1,", "PIT, best vs Best-of-n, K=2,")
    ]


def test_a_share_in_percent_is_refused(tmp_path):
    with pytest.raises(ValueError, match="budgets, capped: expected a share between 0 and 1"):
        write.write_report({"budgets": [row(1, 0.0, capped=12.5)]}, tmp_path)
