"""Improves responses at inference: Algorithm 2 by PIT or Self-Refine, and stop criteria (4.7)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from pit_jax.checked import UserPath, at_least, checked
from pit_jax.method.decode import SamplingConfig
from pit_jax.method.roles import Role
from pit_jax.method.sampler import Reflecting, Response
from pit_jax.method.self_refine import SelfRefine
from pit_jax.runtime import processes

METHODS = ("pit", "self_refine")
KEEP = ("best", "last")


@dataclasses.dataclass(frozen=True)
@checked
class ImproveConfig:
    """Says how long to improve, and how to sample.

    Attributes:
      iterations: K of Algorithm 2.
      sampling: how M_PIT samples, and M_P where it refines its own responses (Self-Refine).
      policy_sampling: how M_P samples y_0.
      keep: which response a row ends with: `best`, the best by gap of all that were sampled, or
        `last`, the one that the stop criterion left. Without a gap model it is the last.
      stop_unchanged: whether a row stops when its response comes back unchanged.
      min_gap: a row stops when r_gap(x, y_{k+1}, y_k) is below this, and keeps y_k; with None it
        never stops for its gap.
      time_budget: seconds after which no further iteration starts, of the rows that are improved
        together (a shard of `improve`); 0 sets no limit.
      method: `pit`, or the baseline `self_refine`.
      self_refine: what Self-Refine asks M_P: `words`, a few words for toys; `dialogue`, for the
        helpful next turn of a dialogue; `instructions`, for answers that follow instructions; or
        the path of your own prompts, a JSON file as method/self_refine.py describes it.
    """

    iterations: int = 1
    sampling: SamplingConfig = SamplingConfig()
    policy_sampling: SamplingConfig = SamplingConfig()
    keep: str = "best"
    stop_unchanged: bool = False
    min_gap: float | None = None
    time_budget: float = 0.0
    method: str = "pit"
    self_refine: UserPath = "words"

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"improve: got method={self.method!r}, expected one of {METHODS}")
        if self.keep not in KEEP:
            raise ValueError(f"improve: got keep={self.keep!r}, expected one of {KEEP}")
        at_least(self, 0, "iterations", "time_budget")


@dataclasses.dataclass
class Trace:
    """Records what became of a row.

    Attributes:
      responses: y_0, y_1, … as they were sampled, including a last response that was rejected.
      gaps: r_gap(x, y_{k+1}, y_k) of each iteration, if there is a gap model; above 0 the new
        response is better.
      last: index in `responses` of the one that the stop criterion left.
      best: index of the best one by gap: each new one is compared with the best before it.
      best_gap: r_gap(x, y_best, y_j) against the best one before, y_j; 0 where y_0 is the best.
      bests: the indices of all that were the best one for a while, without y_0.
      stop_reason: `iterations`, `unchanged`, `gap` or `time`.
    """

    responses: list[Response]
    gaps: list[float]
    last: int = 0
    best: int = 0
    best_gap: float = 0.0
    stop_reason: str = "iterations"
    bests: list[int] = dataclasses.field(default_factory=list)

    def at(self, iteration: int) -> Response:
        """Returns the response that stands after so many iterations."""
        return self.responses[min(iteration, self.last)]

    def best_after(self, iteration: int) -> int:
        """Returns the index in `responses` of the best one by gap after so many iterations."""
        return max((i for i in self.bests if i <= iteration), default=0)

    def final(self, keep: str) -> int:
        """Returns the index in `responses` of the result, by `ImproveConfig.keep`."""
        return self.best if keep == "best" and self.gaps else self.last


@dataclasses.dataclass(frozen=True)
class Improver:
    """Runs Algorithm 2 over lists of prompts.

    Attributes:
      role: how M_PIT reads and writes; M_P for Self-Refine.
      model: parameters of M_PIT; of M_P for Self-Refine.
      judge: how R_PIT reads; if None, as `role` does.
      gap_model: parameters of R_PIT, if gaps are wanted.
      pooling: how R_PIT's score is read.
      anchor: the score of R_PIT that counts as a gap of 0.
      better_above: a new response is the best where its gap to the best before is above this.
      reflects: whether M_PIT writes a reflection before its response (Appendix K). Only the
        response is scored and improved further.
      refine: what asks M_P by Self-Refine; only that method needs it.
    """

    role: Role
    model: Any
    judge: Role | None = None
    gap_model: Any = None
    pooling: str = "last"
    anchor: float = 0.0
    better_above: float = 0.0
    reflects: bool = False
    refine: SelfRefine | None = None

    def __call__(
        self,
        prompts: Sequence[str],
        responses: Sequence[Response],
        rows: Sequence[int],
        key: jax.Array,
        config: ImproveConfig,
    ) -> list[Trace]:
        """Improves each response until a stop criterion holds for its row.

        Args:
          prompts: x, as text.
          responses: y_0.
          rows: a number that names each row, for its random draws.
          key: the base key; iteration k draws with fold_in(key, k).
          config: iterations and stop criteria.

        Returns:
          a Trace for each prompt.
        """
        started = time.monotonic()
        traces = [Trace([response], []) for response in responses]
        active = list(range(len(prompts)))
        for iteration in range(config.iterations):
            late = time.monotonic() - started > config.time_budget
            if config.time_budget and processes.any_process(late):
                for i in active:
                    traces[i].stop_reason = "time"
                break
            texts = [prompts[i] for i in active]
            current = [traces[i].responses[-1] for i in active]
            step_key = jax.random.fold_in(key, iteration)
            one_pass = self.improve_once if config.method == "pit" else self.self_refine
            improved = one_pass(texts, current, [rows[i] for i in active], step_key, config)
            gaps = None
            if self.gap_model is not None:
                gaps = self.gaps(texts, improved, current)
                self._find_best(traces, active, texts, improved, gaps)
            active = self._settle(traces, active, improved, gaps, config)
            if not active:
                break
        return traces

    def improve_once(self, prompts, current, rows, key, config: ImproveConfig) -> list[Response]:
        """Samples `y_{k+1} ~ M_PIT(x, y_k)` for each prompt (3.5)."""
        role = self.role
        built = [
            role.layout.pit_prompt(prompt, role.reference(response))
            for prompt, response in zip(prompts, current, strict=True)
        ]
        widths, sampling = role.widths, config.sampling
        if not self.reflects:
            return role.respond(self.model, built, widths.pit, rows, key, sampling)
        reflecting = Reflecting(widths.reflected, role.layout.control.improved)
        texts = role.respond(self.model, built, widths.pit, rows, key, sampling, reflecting)
        return [self.read_out(text) for text in texts]

    def read_out(self, text: Response) -> Response:
        """Makes the response of a sampled text `{c}<<Improved>>{y}`, and its reflection.

        The response is what follows the last `<<Improved>>`. A text that ended without one is a
        response alone. One that filled its window without one is a reflection alone: its response
        is empty and didn't end. A response that is longer than the window of responses is cut to
        it, as if it had been sampled alone.
        """
        role = self.role
        improved, window = role.layout.control.improved, role.lengths.response
        tokens, reflection = role.layout.final_response(text.tokens), text.tokens
        if improved in text.tokens:
            reflection = text.tokens[: -len(tokens) - 1]
        elif text.ended:
            reflection = []
        else:
            tokens = []
        tokens, ended = tokens[:window], text.ended and len(tokens) < window
        return Response(tokens, ended, reflection, role.vocabulary.decode(tokens))

    def self_refine(self, prompts, current, rows, key, config: ImproveConfig) -> list[Response]:
        """Samples feedback and then a refinement, both from M_P (Madaan et al., 2023)."""
        assert self.refine is not None, "an Improver for Self-Refine needs its prompts"
        return self.refine(self.role, self.model, prompts, current, rows, key, config.sampling)

    def gaps(self, prompts, improved, current) -> np.ndarray:
        """Computes r_gap(x, y_{k+1}, y_k), float32 [n]."""
        judge = self.judge or self.role
        built = [
            judge.layout.gap_prompt(prompt, judge.reference(self._spoken(response)))
            for prompt, response in zip(prompts, current, strict=True)
        ]
        read = [judge.reading(response, self.role) for response in improved]
        scores = judge.sampler.score(self.gap_model, built, judge.widths.gap, read, self.pooling)
        return scores - np.float32(self.anchor)

    def _spoken(self, response: Response) -> Response:
        """A response with its text, which other roles need."""
        return dataclasses.replace(response, text=self.role.text(response))

    def _find_best(self, traces, active, prompts, improved, gaps) -> None:
        """Makes a new response the best one where its gap to the best so far is high enough."""
        to_best = np.array(gaps)
        # Where the best response isn't the one that was improved, its gap is another one.
        others = [p for p, i in enumerate(active) if traces[i].best != len(traces[i].responses) - 1]
        if others:
            best = [traces[active[p]].responses[traces[active[p]].best] for p in others]
            pick = [improved[p] for p in others]
            to_best[others] = self.gaps([prompts[p] for p in others], pick, best)
        for gap, i in zip(to_best.tolist(), active, strict=True):
            if gap > self.better_above:
                traces[i].best, traces[i].best_gap = len(traces[i].responses), gap
                traces[i].bests.append(traces[i].best)

    def _settle(self, traces, active, improved, gaps, config: ImproveConfig) -> list[int]:
        """Records an iteration and returns the rows that go on."""
        going_on = []
        for position, i in enumerate(active):
            trace, new = traces[i], improved[position]
            old = trace.responses[-1]
            trace.responses.append(new)
            if gaps is not None:
                trace.gaps.append(float(gaps[position]))
            if config.min_gap is not None and gaps is not None and gaps[position] < config.min_gap:
                trace.stop_reason = "gap"
                continue
            trace.last = len(trace.responses) - 1
            if config.stop_unchanged and self.role.text(new) == self.role.text(old):
                trace.stop_reason = "unchanged"
                continue
            going_on.append(i)
        return going_on
