"""The tables that say what the models of a section are, where a run has several of one kind."""

from __future__ import annotations

from pit_jax.report.blocks import Results, Table
from pit_jax.report.formatting import NONE


def table_of(results: Results, group: str) -> list[Table]:
    """Makes the table of a group's models; none where there is one of each kind.

    Args:
      results: the results, whose part `variants` it is.
      group: `table2`, `control`, `reward_models` or `figure5`.
    """
    rows = [row for row in results.get("variants", ()) if row["group"] == group]
    if not rows:
        return []
    cells = [[row["label"], row["stage"], row.get("what") or NONE] for row in rows]
    columns = ["Model", "Stage", "How it was trained"]
    return [Table(columns, cells, labels=3)]
