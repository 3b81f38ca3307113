"""Compares PIT with best-of-n and re-sampling at equal budgets of sampled tokens.

A prompt's budget after K improvements is what was sampled for PIT: y_0 and y_1 to y_K, their ends
included. The policy spends it on draws of its own: y_0, then one more as long as all together stay
within the budget. Best-of-n is the draw that R_P scores highest, the earlier one of equal scores;
re-sampling is the last draw. A draw that doesn't fit isn't counted, so a rest of the budget stays.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pit_jax.evaluation.tables import Side, Tables
from pit_jax.method.improve import Trace
from pit_jax.method.sampler import Response

LEFT_OUT = (
    "Best-of-n at equal tokens is left out: a file has no further draws of the policy, and doesn't "
    "say how many tokens were sampled."
)


def tokens(trace: Trace, iterations: int) -> int:
    """Returns how many tokens were sampled for y_0 and so many improvements of it."""
    return sum(response.sampled for response in trace.responses[: iterations + 1])


def affordable(draws: Sequence[Response], budget: int) -> int:
    """Returns how many draws in order a budget of tokens is enough for, the first one at least."""
    spent = itertools.accumulate(draw.sampled for draw in draws)
    return max(1, sum(total <= budget for total in spent))


def best(scores: Sequence[float], number: int) -> int:
    """Returns the index of the highest of the first scores, the earliest of equal ones."""
    return int(np.argmax(scores[:number]))


def rows(
    tables: Tables,
    rewards: Callable[[Sequence[str], Sequence[str]], Any],
    temperature: float,
    pit: Sequence[Trace],
    draws: Sequence[Sequence[Response]],
    iterations: int,
    best_of: int,
) -> list[dict[str, Any]]:
    """Makes a row for each number of improvements.

    Args:
      tables: compares responses.
      rewards: R_P, which scores N texts to N prompts, float [N].
      temperature: of all responses.
      pit: the improvements of the original, with gaps.
      draws: the policy's to each prompt, as `Responses.draws` gives them for the largest budget.
      iterations, best_of: as in suite.EvaluationConfig.

    Returns:
      `budgets` of report/write.py, of this temperature.
    """
    prompts = tables.responses.prompts
    limits_KN = [[tokens(t, k) for t in pit] for k in range(1, iterations + 1)]
    numbers_KN = [list(map(affordable, draws, limits_N)) for limits_N in limits_KN]
    fitting = [own[:number] for own, number in zip(draws, numbers_KN[-1], strict=True)]
    scores = _scores(rewards, prompts, fitting)
    original = Side("original", "Original", [t.responses[0] for t in pit])
    found = []
    for k, (limits_N, numbers_N) in enumerate(zip(limits_KN, numbers_KN, strict=True), 1):
        each = list(zip(fitting, scores, numbers_N, strict=True))
        chosen = Side("best_of_n", "Best-of-n", [own[best(s, n)] for own, s, n in each])
        again = Side("resampled", "Re-sampled", [own[n - 1] for own, _, n in each])
        by_gap = Side("pit", "PIT, best", [t.responses[t.best_after(k)] for t in pit])
        last = Side("pit", "PIT, last", [t.responses[k] for t in pit])
        pairs = ((by_gap, chosen), (last, chosen), (chosen, original), (again, original))
        drawn_N = [sum(draw.sampled for draw in own[:n]) for own, _, n in each]
        full = zip(numbers_N, drawn_N, limits_N, strict=True)
        found.append(
            {
                "temperature": temperature,
                "iteration": k,
                "pit_tokens": float(np.mean(limits_N)),
                "drawn_tokens": float(np.mean(drawn_N)),
                "draws": float(np.mean(numbers_N)),
                "capped": float(np.mean([n == best_of and d < t for n, d, t in full])),
                "gap_passes": float(k),
                "reward_passes": float(np.mean([n if n > 1 else 0 for n in numbers_N])),
                "comparisons": [
                    {"name": f"{a.label} vs {b.label}", **dataclasses.asdict(tables.delta(a, b))}
                    for a, b in pairs
                ],
            }
        )
    return found


def _scores(rewards, prompts: Sequence[str], draws: Sequence[Sequence[Response]]) -> list[Any]:
    """R_P's scores of each prompt's draws; zeros where there is nothing to choose."""
    rows = [
        (i, x, str(draw.text))
        for i, (x, own) in enumerate(zip(prompts, draws, strict=True))
        if len(own) > 1
        for draw in own
    ]
    found: list[list[float]] = [[0.0] if len(own) == 1 else [] for own in draws]
    if rows:
        places, asked, texts = zip(*rows)
        for i, score in zip(places, rewards(asked, texts), strict=True):
            found[i].append(float(score))
    return found
