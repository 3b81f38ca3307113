"""Compares stop criteria (4.7) on improvements that were sampled to the last iteration.

A criterion only cuts a row's iterations short, and no draw depends on where others stop: so what it
would have ended with, and what that would have cost, is in the rows of all iterations.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pit_jax.method.improve import Trace


@dataclasses.dataclass(frozen=True)
class Criterion:
    """Says when a row stops.

    Attributes:
      name: `iterations`, after so many; `unchanged`, when a response comes back unchanged, or after
        the last iteration; `gap`, when r_gap of a new response against the one before is below the
        limit, and the one before is kept; `tokens`, when as many tokens as the limit have been
        sampled for the row.
      limit: of `iterations`, `gap` and `tokens`; None of `unchanged`.
    """

    name: str
    limit: float | None = None


@dataclasses.dataclass(frozen=True)
class Stop:
    """Holds where a row stops.

    Attributes:
      kept: the index of the response that it ends with; 0 is the original.
      iterations: how many were sampled, that of a rejected response included.
      tokens: how many were sampled in these, as `Response.sampled` counts them.
    """

    kept: int
    iterations: int
    tokens: int


def criteria(traces: Sequence[Trace], count: int, min_gap: float) -> list[Criterion]:
    """Lists the criteria that a report compares.

    Args:
      traces: the improvements.
      count: how many iterations there are.
      min_gap: the limit of `gap`.

    Returns:
      each number of iterations; `unchanged`; `gap`; and `tokens`, as many as half of all iterations
      (rounded up) take on average.
    """
    half = (count + 1) // 2
    spent = [stop(trace, Criterion("iterations", half), count).tokens for trace in traces]
    return [
        *(Criterion("iterations", k) for k in range(1, count + 1)),
        Criterion("unchanged"),
        Criterion("gap", min_gap),
        Criterion("tokens", round(sum(spent) / len(spent))),
    ]


def stop(trace: Trace, criterion: Criterion, count: int) -> Stop:
    """Returns where a row stops by a criterion, after `count` iterations at the latest."""
    kept = tokens = 0
    for k in range(1, count + 1):
        new, old = trace.responses[k], trace.responses[k - 1]
        tokens += new.sampled
        name, limit = criterion.name, criterion.limit or 0.0
        if name == "gap" and trace.gaps[k - 1] < limit:
            return Stop(kept, k, tokens)
        kept = k
        if (
            (name == "iterations" and k >= limit)
            or (name == "unchanged" and new.text == old.text)
            or (name == "tokens" and tokens >= limit)
        ):
            return Stop(kept, k, tokens)
    return Stop(kept, count, tokens)
