"""Judges responses, and makes of the verdicts the rows of Tables 1 to 3."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from pit_jax.evaluation import bradley_terry, elo, lengths, scoring, stopping
from pit_jax.evaluation.intervals import Groups
from pit_jax.evaluation.judges import Judge, Verdicts, known
from pit_jax.evaluation.responses import Responses, texts
from pit_jax.method.improve import Trace
from pit_jax.method.sampler import Response


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
      kind: what the responses are, one of those that report/write.py lists.
      label: what tables call them.
      responses: one to each prompt.
    """

    kind: str
    label: str
    responses: Sequence[Response]


def compared(
    outcomes: np.ndarray,
    first: Sequence[str],
    second: Sequence[str],
    groups: Groups,
    seed: int = 0,
) -> dict[str, Any]:
    """Summarises verdicts, as a row of a comparison.

    Args:
      outcomes: verdicts [N] for the first of two responses to each prompt.
      first, second: what these say.
      groups: the group of each; see `intervals.group_numbers`.
      seed: of the intervals.

    Returns:
      the fields of `scoring.Comparison`; `sign_test` has those of `scoring.SignTest`, and `lengths`
      those of `lengths.LengthEffect`, with None for NaN.
    """
    effect = lengths.effect(outcomes, list(map(len, first)), list(map(len, second)), groups)
    return {
        **dataclasses.asdict(scoring.compare(outcomes, groups, seed)),
        "sign_test": dataclasses.asdict(scoring.sign_test(outcomes, groups)),
        "lengths": {k: known(v) for k, v in dataclasses.asdict(effect).items()},
    }


@dataclasses.dataclass(frozen=True)
class Tables:
    """Makes rows of responses to the same prompts.

    Attributes:
      responses: what has the prompts and their groups.
      judge: says which response is better.
      seed: of the intervals.
    """

    responses: Responses
    judge: Judge
    seed: int

    @functools.cached_property
    def verdicts(self) -> Verdicts:
        """What the judge says of responses to the prompts."""
        return Verdicts(self.judge, self.responses.prompts)

    def compare(self, temperature: float, group: str, a: Side, b: Side) -> dict[str, Any]:
        """Compares two sides, as a row of a group of comparisons."""
        said = texts(a.responses), texts(b.responses)
        outcomes = self.verdicts(*said)
        return {
            "name": f"{a.label} vs {b.label}",
            "first": a.kind,
            "second": b.kind,
            "temperature": temperature,
            "judge": self.judge.name,
            "group": group,
            **compared(outcomes, *said, self.responses.groups, self.seed),
        }

    def delta(self, a: Side, b: Side) -> scoring.Comparison:
        """Compares two sides by Δ alone, as a point of a curve."""
        outcomes = self.verdicts(texts(a.responses), texts(b.responses))
        return scoring.compare(outcomes, self.responses.groups, self.seed)

    def score(self, name: str, temperature: float, responses: Sequence[Response]) -> dict[str, Any]:
        """Takes the mean score of responses, how many of them ended, and their mean length.

        There is no mean score by a judge that has verdicts alone.
        """
        return {
            "name": name,
            "temperature": temperature,
            **self.verdicts.mean(texts(responses), self.responses.groups, self.seed),
            "eos_rate": float(np.mean([r.ended for r in responses])),
            "mean_length": float(np.mean([len(r.tokens) for r in responses])),
        }

    def iterations(
        self, pit: Sequence[Trace], self_refine: Sequence[Trace], count: int
    ) -> dict[str, Any]:
        """Rates the original and its improvements against each other (Table 3).

        There are no mean scores by a judge that has verdicts alone.

        Args:
          pit: the improvements of the original by PIT.
          self_refine: those by Self-Refine; none if it isn't compared.
          count: how many improvements in a row.

        Returns:
          rows: the original's and PIT's, by iteration; self_refine: Self-Refine's, where it is
          compared.
        """
        methods = [traces for traces in (pit, self_refine) if traces]
        entries = [(pit, 0)] + [(traces, k) for traces in methods for k in range(1, count + 1)]
        said = [texts([t.responses[k] for t in ts]) for ts, k in entries]
        groups = self.responses.groups

        def verdicts(a: int, b: int) -> np.ndarray:
            return self.verdicts(said[a], said[b])

        pairs, outcomes = scoring.pairwise_outcomes(len(entries), verdicts)
        ratings = elo.elo_ratings(pairs, outcomes, groups, seed=self.seed)
        fitted = bradley_terry.ratings(pairs, outcomes, groups, seed=self.seed)
        rows = []
        for m, (traces, k) in enumerate(entries):
            scores = self.verdicts.scores(said[m])
            row = {
                "iteration": k,
                **({} if scores is None else {"mean_score": float(scores.mean())}),
                "elo": float(ratings.rating[m]),
                "elo_low": known(ratings.low[m]),
                "elo_high": known(ratings.high[m]),
                "rank": int(ratings.rank[m]),
                "bradley_terry": float(fitted.rating[m]),
                "bradley_terry_low": known(fitted.low[m]),
                "bradley_terry_high": known(fitted.high[m]),
            }
            if k:
                delta = scoring.compare(verdicts(m, 0), groups, self.seed)
                changed = [t.responses[k].text != t.responses[k - 1].text for t in traces]
                row |= {
                    "delta_vs_original": delta.delta,
                    "ci_low": delta.ci_low,
                    "ci_high": delta.ci_high,
                    "changed": float(np.mean(changed)),
                    "gap": float(np.mean([t.gaps[k - 1] for t in traces])),
                }
            rows.append(row)
        table = {"rows": rows[: count + 1]}
        return table | ({"self_refine": rows[count + 1 :]} if self_refine else {})

    def stops(self, pit: Sequence[Trace], count: int, min_gap: float) -> list[dict[str, Any]]:
        """Compares stop criteria by what PIT ends with and by what that takes.

        Args:
          pit: the improvements of the original by PIT, with gaps.
          count: how many improvements in a row.
          min_gap: the gap below which a row stops that stops by its gap.
        """
        groups, original = self.responses.groups, texts([t.responses[0] for t in pit])
        rows = []
        for criterion in stopping.criteria(pit, count, min_gap):
            ends = [stopping.stop(trace, criterion, count) for trace in pit]
            kept = texts([t.responses[end.kept] for t, end in zip(pit, ends, strict=True)])
            scores = self.verdicts.scores(kept)
            delta = scoring.compare(self.verdicts(kept, original), groups, self.seed)
            rows.append(
                {
                    "criterion": criterion.name,
                    "limit": criterion.limit,
                    "iterations": float(np.mean([end.iterations for end in ends])),
                    "tokens": float(np.mean([end.tokens for end in ends])),
                    **({} if scores is None else {"mean_score": float(scores.mean())}),
                    "delta_vs_original": delta.delta,
                    "ci_low": delta.ci_low,
                    "ci_high": delta.ci_high,
                }
            )
        return rows


def of_generations(
    judge: Judge, records: Sequence[dict[str, Any]], names: Sequence[str] = ()
) -> dict[str, Any]:
    """Compares each iteration's text of saved generations with the original's.

    Args:
      judge: says which is better.
      records: `prompt` and `responses` [y_0, y_1, …], all of the same length or stopped early (the
        last one then stands for the later ones).
      names: of two systems, if `responses` are theirs: the first is compared with the second.

    Returns:
      comparisons; scores, which are none by a judge that has verdicts alone.
    """
    prompts = [record["prompt"] for record in records]
    depth = max(len(record["responses"]) for record in records)
    said = [
        [r["responses"][min(k, len(r["responses"]) - 1)] for r in records] for k in range(depth)
    ]
    verdicts = Verdicts(judge, prompts)
    scores = []
    for k, each in enumerate(said):
        if mean := verdicts.mean(each, prompts):
            scores.append({"name": names[k] if names else f"iteration {k}", **mean})
    pairs = [(f"Iteration {k} vs Original", "iteration", "original", k, 0) for k in range(1, depth)]
    if names:
        pairs = [(" vs ".join(names), "system", "system", 0, 1)]
    comparisons = [
        {
            "name": name,
            "first": first,
            "second": second,
            "judge": judge.name,
            "group": "table1",
            **compared(verdicts(said[a], said[b]), said[a], said[b], prompts),
        }
        for name, first, second, a, b in pairs
    ]
    return {"comparisons": comparisons, "scores": scores}
