"""Scores held-out pairs by reward models, for Table 4 and Figure 2."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from pit_jax.data.layouts import GAP_TREE
from pit_jax.evaluation import scoring
from pit_jax.evaluation.judges import Judge
from pit_jax.evaluation.responses import Responses
from pit_jax.method.forward import tree_scores
from pit_jax.method.losses import reference_moves_score
from pit_jax.method.roles import GAP_REWARD
from pit_jax.models.heads import ScalarModel
from pit_jax.run.run import Run

GapRewards = dict[str, np.ndarray]


class HeldOutPairs:
    """Scores the chosen and the rejected response of each example.

    Args:
      run: the run, whose stages are trained.
      responses: what has the examples, and scores texts.
      split: the split that they are the first of.
    """

    def __init__(self, run: Run, responses: Responses, split: str):
        self._run, self._responses, self._split = run, responses, split
        self._program = functools.cache(self._gap_program)

    def policy_rewards(self, stage: str) -> tuple[np.ndarray, np.ndarray]:
        """Scores the chosen and the rejected responses by an R_P, float32 [N] each."""
        examples, prompts = self._responses.examples, self._responses.prompts
        chosen = self._responses.rewards(stage, prompts, [e.chosen for e in examples])
        rejected = self._responses.rewards(stage, prompts, [e.rejected for e in examples])
        return chosen, rejected

    def policy_row(self, name: str, stage: str) -> dict[str, Any]:
        """An R_P's row of Table 4."""
        verdicts = scoring.win_lose_tie(*self.policy_rewards(stage))
        agreed = scoring.agreement(verdicts, self._responses.groups)
        return {"name": name, **dataclasses.asdict(agreed)}

    def judge_row(self, judge: Judge) -> dict[str, Any]:
        """The row of a judge, which Appendix G compares with the labels."""
        examples, prompts = self._responses.examples, self._responses.prompts
        verdicts = judge(prompts, [e.chosen for e in examples], [e.rejected for e in examples])
        agreed = scoring.agreement(verdicts, self._responses.groups)
        return {"name": judge.name, **dataclasses.asdict(agreed)}

    def gap_row(self, name: str, rewards: GapRewards) -> dict[str, Any]:
        """The row of Table 4 of a gap's rewards, with what Equation 1 and Appendix C ask of it."""
        moved, spread = reference_moves_score(rewards)
        return {
            "name": name,
            **scoring.gap_reward_summary(rewards, self._responses.groups),
            "degeneration": float(moved / max(float(spread), 1e-9)),
        }

    def gap_rewards(self, stage: str) -> GapRewards:
        """Scores the four pairs of chosen and rejected response by an R_PIT, [N] each."""
        run, score = self._run, self._program(self._run.pooling(stage))
        batch_size = run.stage(stage).batch_size
        found: dict[str, list[np.ndarray]] = {pair: [] for pair in scoring.GAP_PAIRS}
        batches = run.data_of(GAP_REWARD).batches(
            "rm_gap", self._split, batch_size, shuffle=False, num_epochs=1
        )
        for batch in batches:
            real = batch.pop("weight") > 0
            scores = score(self._responses.model(stage), run.partitioner.shard_batch(batch))
            for pair in scoring.GAP_PAIRS:
                found[pair].append(np.asarray(scores[pair])[real])
        count = len(self._responses.prompts)
        return {pair: np.concatenate(values)[:count] for pair, values in found.items()}

    def _gap_program(self, pooling: str) -> Callable:
        role = self._run.role(GAP_REWARD)
        model = ScalarModel(role.network)
        return self._run.partitioner.jit(
            lambda params, batch: tree_scores(model, params, batch, GAP_TREE, pooling, role.widths),
            out_shardings=self._run.partitioner.replicated,
        )
