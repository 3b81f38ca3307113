"""Samples what an evaluation judges: a run's models, each draw once, and scores of texts."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pit_jax.data.examples import Example
from pit_jax.errors import NotFiniteError
from pit_jax.method.decode import SamplingConfig
from pit_jax.method.improve import Trace
from pit_jax.method.roles import GAP_REWARD, PIT, POLICY, POLICY_REWARD, Role
from pit_jax.method.sampler import Response
from pit_jax.run.run import Run

_PROGRESS_SECONDS = 30.0


class Responses:
    """Samples responses to the prompts of some examples, and keeps them.

    Attributes:
      examples: the examples.
      prompts: x of each.
      groups: which of them count as one draw.
      rows: the number that names each, for its random draws.

    Args:
      run: the run, whose stages are trained.
      examples: the examples.
      policy: the stage whose responses are improved.
      gap_model: the stage that trained R_PIT, which scores the improvements.
    """

    def __init__(self, run: Run, examples: Sequence[Example], policy: str, gap_model: str):
        self._run = run
        self._policy, self._gap_model = policy, gap_model
        self.examples = list(examples)
        self.prompts = [e.prompt for e in examples]
        self.groups = [e.group for e in examples]
        self.rows = [e.index for e in examples]
        # A report comes back to the same few models.
        self.model = functools.lru_cache(maxsize=8)(run.load_frozen)
        self._sampled: dict[tuple, list[Response]] = {}
        self._traces: dict[tuple, list[Trace]] = {}
        self._drawn: dict[tuple, list[list[Response]]] = {}
        self._rewards: dict[tuple[str, ...], np.float32] = {}
        self._started = self._said = time.monotonic()

    @classmethod
    def of(cls, run: Run, config: Any) -> Responses:
        """Makes those to the prompts of a suite.EvaluationConfig, whose module imports this one."""
        examples = run.data.examples(config.split)[: config.num_prompts or None]
        return cls(run, examples, config.policy, config.gap_model)

    def policy(self, stage: str, temperature: float, draw: int = 0) -> list[Response]:
        """Samples a policy's response to each prompt; another `draw` is an independent sample."""
        key = (stage, temperature, draw)
        if key not in self._sampled:
            self._say(stage, temperature)
            self._sampled[key] = self._sample(*key, self.prompts, self.rows)
        return self._sampled[key]

    def draws(self, temperature: float, budgets: Sequence[int], most: int) -> list[list[Response]]:
        """Samples the original's policy again and again, while a prompt has tokens left.

        The draws are those of `policy`, of which the first two are sampled for all prompts.

        Args:
          temperature: of the responses.
          budgets: how many tokens each prompt has, as `Response.sampled` counts them.
          most: the most draws of a prompt, at least one.

        Returns:
          the draws of each prompt in order, y_0 first: those that its tokens are enough for and,
          where there is one, the first that they aren't enough for.
        """
        stage = self._policy
        key = (temperature, *budgets, most)
        if key not in self._drawn:
            found = [[response] for response in self.policy(stage, temperature)]
            for draw in range(1, most):
                spent = [sum(each.sampled for each in own) for own in found]
                left = [i for i, tokens in enumerate(budgets) if spent[i] < tokens]
                if not left:
                    break
                if draw == 1:  # which other tables have, too
                    whole = self.policy(stage, temperature, draw)
                    new = [whole[i] for i in left]
                else:
                    self._say(stage, temperature, f"draw {draw + 1} for {len(left)} prompts")
                    prompts, rows = [self.prompts[i] for i in left], [self.rows[i] for i in left]
                    new = self._sample(stage, temperature, draw, prompts, rows)
                for i, response in zip(left, new, strict=True):
                    found[i].append(response)
            self._drawn[key] = found
        return self._drawn[key]

    def _sample(
        self, stage: str, temperature: float, draw: int, prompts: list[str], rows: list[int]
    ) -> list[Response]:
        run = self._run
        return run.role(POLICY).answers(
            self.model(stage),
            prompts,
            rows,
            run.key("evaluation", stage, draw),
            dataclasses.replace(run.config.improve.policy_sampling, temperature=temperature),
        )

    def improved(
        self,
        stage: str,
        temperature: float,
        iterations: int,
        method: str = "pit",
        with_gaps: bool = True,
    ) -> list[Trace]:
        """Improves the original responses at the same temperature (Algorithm 2).

        Args:
          stage: M_PIT's; M_P's for Self-Refine.
          temperature: of the original responses and of the improvements.
          iterations: how often at least; where more were asked for before, there are more.
          method: `pit` or `self_refine`.
          with_gaps: whether R_PIT scores the improvements.
        """
        key = (stage, temperature, method, with_gaps)
        known = self._traces.get(key)
        if known is None or (known and len(known[0].responses) <= iterations):
            run = self._run
            improver = run.improver(
                self.model(stage),
                self.model(self._gap_model) if with_gaps else None,
                self._gap_model if with_gaps else "",
                reflects=self._reflects(stage, method),
                role=_role(method),
            )
            # Gaps are shown beside Figures 2 and 4, which have R_PIT's scores as they are; which
            # response is the best is counted from the anchor, as `improve` does.
            anchor = float(np.float32(improver.anchor))
            improver = dataclasses.replace(improver, anchor=0.0, better_above=anchor)
            original = self.policy(self._policy, temperature)
            self._say(stage, temperature, method)
            draw = run.key("evaluation", stage, method)
            config = self._improving(self._at(temperature), iterations, method)
            self._traces[key] = improver(self.prompts, original, self.rows, draw, config)
        return self._traces[key]

    def swept(
        self, stage: str, temperature: float, policy: str, method: str = "pit"
    ) -> list[Response]:
        """Improves a policy's responses of temperature 1 once, at any temperature.

        Args:
          stage: the model's that improves.
          temperature: of the improvements.
          policy: the stage that gives the responses.
          method: `pit` or `self_refine`.
        """
        key = (stage, temperature, policy, method)
        if key not in self._sampled:
            run = self._run
            reflects = self._reflects(stage, method)
            improver = run.improver(self.model(stage), reflects=reflects, role=_role(method))
            purposes = () if method == "pit" else (method,)
            draw = run.key("evaluation", stage, "sweep", *purposes)
            original = self.policy(policy, 1.0)
            self._say(stage, temperature, method)
            config = self._improving(self._at(temperature), 1, method)
            traces = improver(self.prompts, original, self.rows, draw, config)
            self._sampled[key] = [trace.responses[1] for trace in traces]
        return self._sampled[key]

    def rewards(self, stage: str, prompts: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """Scores N texts by an R_P, float32 [N], each of them once.

        Args:
          stage: the stage that trained R_P.
          prompts: x of each text.
          texts: the texts; one over the window is cut, and read where it ends.
        """
        role = self._run.role(POLICY_REWARD)
        asked = zip(prompts, texts, strict=True)
        return self._scores(stage, role, role.widths.reward, asked, role.layout.reward_prompt)

    def gaps(
        self, stage: str, prompts: Sequence[str], texts: Sequence[str], references: Sequence[str]
    ) -> np.ndarray:
        """Scores N texts as improvements of others by an R_PIT, float32 [N], each of them once.

        Args:
          stage: the stage that trained R_PIT.
          prompts: x of each text.
          texts: the texts; one over the window is cut, and read where it ends.
          references: what each text is compared with, cut to the window of references.
        """
        role = self._run.role(GAP_REWARD)

        def prompt(x: str, reference: str):
            return role.layout.gap_prompt(x, role.reference(Response([], True, text=reference)))

        asked = zip(prompts, texts, references, strict=True)
        return self._scores(stage, role, role.widths.gap, asked, prompt)

    def _scores(
        self,
        stage: str,
        role: Role,
        width: int,
        asked: Iterable[tuple[str, ...]],
        prompt: Callable[..., list[int]],
    ) -> np.ndarray:
        """Scores (x, text, ...) by a reward model that reads `prompt(x, ...)` before the text."""
        keys = [(stage, *each) for each in asked]
        if new := list(dict.fromkeys(each for each in keys if each not in self._rewards)):
            built = [prompt(x, *others) for _, x, _, *others in new]
            read = [role.read(text) for _, _, text, *_ in new]
            model, pooling = self.model(stage), self._run.pooling(stage)
            scores = role.sampler.score(model, built, width, read, pooling)
            if not np.isfinite(scores).all():
                raise NotFiniteError(f"{stage}: gives a response a score that isn't finite")
            self._rewards.update(zip(new, scores, strict=True))
        return np.array([self._rewards[each] for each in keys], np.float32)

    def _say(self, stage: str, temperature: float, method: str = "responses") -> None:
        """Says what is sampled next, if nothing has been said for a while."""
        now = time.monotonic()
        if now - self._said >= _PROGRESS_SECONDS:
            what = method.replace("_", "-")
            passed = f"{round(now - self._started)} s so far"
            line = f"evaluating: {what} of {stage} at temperature {temperature:g}, {passed}"
            print(line, flush=True)
            self._said = now

    def _reflects(self, stage: str, method: str) -> bool:
        return method == "pit" and self._run.reflects(stage)

    def _at(self, temperature: float) -> SamplingConfig:
        return dataclasses.replace(self._run.config.improve.sampling, temperature=temperature)

    def _improving(self, sampling: SamplingConfig, iterations: int, method: str):
        return dataclasses.replace(
            self._run.config.improve,
            iterations=iterations,
            sampling=sampling,
            stop_unchanged=False,
            min_gap=None,
            time_budget=0.0,
            method=method,
        )


def _role(method: str) -> str:
    """The role of the model that improves by a method."""
    return PIT if method == "pit" else POLICY


def texts(responses: Sequence[Response]) -> list[str]:
    """Returns what responses say, each of which has its text."""
    assert all(response.text is not None for response in responses)
    return [str(response.text) for response in responses]
