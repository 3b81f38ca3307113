"""Runs Algorithm 2 with a run's models: reads what is asked, drafts, improves, and scores.

Models are loaded when they are first needed, and once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pit_jax.data import datasets
from pit_jax.data.files.json_values import shown
from pit_jax.errors import NotFiniteError
from pit_jax.method.improve import ImproveConfig, Trace
from pit_jax.method.sampler import Response, Tokens
from pit_jax.run.run import Run, key_for

POLICY, PIT, GAP_MODEL = ROLES = ("policy", "pit", "gap_model")


@dataclasses.dataclass(frozen=True)
class Asked:
    """Holds a prompt, and what is to be improved.

    Attributes:
      x: the prompt, as text.
      prompt: the ids of `Layout.policy_prompt`.
      response: the text that is improved, None to sample it.
    """

    x: str
    prompt: Tokens
    response: str | None = None


class RunImprover:
    """Improves responses with the models of a run.

    Args:
      run: the run, whose configuration says how to improve.
      stages: the stages of ROLES; without one of `gap_model` there are no gaps.
    """

    def __init__(self, run: Run, stages: Mapping[str, str]):
        self.run = run
        self.stages = dict(stages)
        self.load = functools.cache(run.load_frozen)

    @property
    def has_gaps(self) -> bool:
        """Whether there is a model that scores gaps."""
        return GAP_MODEL in self.stages

    def needed(self, config: ImproveConfig, drafts: bool) -> dict[str, str]:
        """Returns the stages of the roles that an improvement needs, in the order of ROLES.

        Args:
          config: how to improve.
          drafts: whether responses have to be sampled that are then improved.
        """
        roles = {GAP_MODEL, _improving(config)} | ({POLICY} if drafts else set())
        return {role: self.stages[role] for role in ROLES if role in roles & self.stages.keys()}

    def reflects(self, config: ImproveConfig) -> bool:
        """Returns whether reflections come before improved responses."""
        role = _improving(config)
        return role == PIT and self.run.reflects(self.stages[role])

    def read(self, record: Mapping[str, Any]) -> Asked:
        """Makes what is asked of a record's `prompt` and `response`.

        Raises:
          ValueError: if it can't be used; the message says what was got and what was expected.
        """
        run, response = self.run, record.get("response")
        lengths = run.config.lengths
        x = datasets.prompt(run.config.dataset, record)
        prompt = run.layout.policy_prompt(x)
        if len(prompt) > lengths.prompt:
            raise ValueError(
                f"got a prompt of {len(prompt)} tokens, expected at most {lengths.prompt}"
            )
        if not isinstance(response, str | None):
            raise ValueError(f"got {shown(response)}, expected text under 'response'")
        if response is not None:
            self._check(response, lengths.reference, "references")
        return Asked(x, prompt, response)

    def __call__(
        self,
        asked: Sequence[Asked],
        rows: Sequence[int],
        config: ImproveConfig,
        seed: int | None = None,
    ) -> list[Trace]:
        """Improves each response, once those that are missing are sampled.

        Args:
          asked: prompts, with responses or without.
          rows: a number that names each of them, for its random draws.
          config: how to improve.
          seed: the seed of all draws; by default the run's.

        Raises:
          UserError: if a model isn't trained or doesn't fit the run.
        """
        run, gap_stage = self.run, self.stages.get(GAP_MODEL, "")
        key = functools.partial(key_for, run.config.seed if seed is None else seed)
        improver = run.improver(
            self.load(self.stages[_improving(config)]),
            self.load(gap_stage) if gap_stage else None,
            gap_stage,
            self.reflects(config),
        )
        return improver(
            [each.x for each in asked],
            self._drafts(asked, rows, key("improve", self.stages[POLICY]), config),
            rows,
            key("improve", config.method),
            config,
        )

    def gaps(self, asked: Sequence[Asked], better: Sequence[str]) -> list[float]:
        """Scores by R_PIT how much better texts are than the responses of what is asked.

        Raises:
          ValueError: if a text is longer than the window of responses; it is named by its number.
          UserError: if the model isn't trained or doesn't fit the run.
        """
        run, stage = self.run, self.stages[GAP_MODEL]
        window = run.config.lengths.response
        for number, text in enumerate(better):
            try:
                self._check(text, window, "responses")
            except ValueError as error:
                raise ValueError(f"[{number}]: {error}") from None
        # One that fills the window has no room for its end, as if it had been sampled.
        given = map(self._given, better)
        improved = [dataclasses.replace(y, ended=len(y.tokens) < window) for y in given]
        improver = run.improver(None, self.load(stage), stage, False)
        current = [self._given(each.response or "") for each in asked]
        return improver.gaps([each.x for each in asked], improved, current).tolist()

    def check(self, trace: Trace, place: str) -> None:
        """Refuses a gap that isn't finite.

        Raises:
          NotFiniteError: for one; `place` opens the message.
        """
        if not all(map(math.isfinite, trace.gaps)):
            raise NotFiniteError(f"{place}: got a gap that isn't finite from the models")

    def texts(self, trace: Trace, asked: Asked) -> list[str]:
        """Returns the texts of all responses of a trace, the first as it was given."""
        texts = [self.run.vocabulary.decode(response.tokens) for response in trace.responses]
        return [texts[0] if asked.response is None else asked.response, *texts[1:]]

    def reflections(self, trace: Trace) -> list[str]:
        """Returns the texts of the reflections of a trace's iterations."""
        return [self.run.vocabulary.decode(each.reflection) for each in trace.responses[1:]]

    def is_truncated(self, trace: Trace) -> bool:
        """Returns whether a window cut a response, or cut one that the next was made of."""
        vocabulary, window = self.run.vocabulary, self.run.config.lengths.reference
        made_of = (vocabulary.decode(response.tokens) for response in trace.responses[:-1])
        cut = any(len(vocabulary.encode(text)) > window for text in made_of)
        return cut or not all(response.ended for response in trace.responses)

    def _drafts(
        self, asked: Sequence[Asked], rows: Sequence[int], key: Any, config: ImproveConfig
    ) -> list[Response]:
        """Returns each y_0, and samples those that aren't given."""
        run = self.run
        missing = [n for n, each in enumerate(asked) if each.response is None]
        sampled: Iterator[Response] = iter(())
        if missing:
            responses = run.sampler.respond(
                self.load(self.stages[POLICY]),
                [asked[n].prompt for n in missing],
                run.layout.widths(run.config.lengths).policy,
                [rows[n] for n in missing],
                key,
                config.policy_sampling,
            )
            sampled = iter(responses)
        return [
            next(sampled) if each.response is None else self._given(each.response) for each in asked
        ]

    def _given(self, text: str) -> Response:
        # As in training, where white space around responses is removed.
        return Response(self.run.vocabulary.encode(text.strip()), True)

    def _check(self, text: str, window: int, of: str) -> None:
        tokens = len(self._given(text).tokens)
        if tokens > window:
            raise ValueError(
                f"got a response of {tokens} tokens, expected at most {window}, the window of {of}"
            )


def _improving(config: ImproveConfig) -> str:
    """The role whose model improves."""
    return PIT if config.method == "pit" else POLICY
