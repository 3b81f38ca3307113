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
from pit_jax.method.roles import GAP_REWARD, PIT, POLICY, Role
from pit_jax.method.sampler import Response
from pit_jax.run.run import Run, key_for

GAP_MODEL = "gap_model"
# What stands in the output for a role of method/roles.py.
ROLE_OF = {POLICY: POLICY, PIT: PIT, GAP_MODEL: GAP_REWARD}
ROLES = tuple(ROLE_OF)


@dataclasses.dataclass(frozen=True)
class Asked:
    """Holds a prompt, and what is to be improved.

    Attributes:
      x: the prompt, as text.
      response: the text that is improved, None to sample it.
    """

    x: str
    response: str | None = None


class RunImprover:
    """Improves responses with the models of a run.

    Args:
      run: the run, whose configuration says how to improve.
      stages: the stages of ROLES; without one of `gap_model` there are no gaps.

    Attributes:
      load: returns the model of one of ROLES, which it loads once.
    """

    def __init__(self, run: Run, stages: Mapping[str, str]):
        self.run = run
        self.stages = dict(stages)
        self.load = functools.cache(self._load)
        readers = (run.role(ROLE_OF[role]) for role in ROLES if role in self.stages)
        self._readers = list(dict.fromkeys(readers))

    def _load(self, role: str) -> Any:
        return self.run.load_frozen(self.stages[role], role=ROLE_OF[role])

    def role(self, config: ImproveConfig) -> Role:
        """Returns how the model reads and writes that improves."""
        return self.run.role(_improving(config))

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
        x = datasets.prompt(run.config.dataset, record)
        for role in self._readers:
            tokens, window = len(role.layout.policy_prompt(x)), role.lengths.prompt
            if tokens > window:
                raise ValueError(f"got a prompt of {tokens} tokens, expected at most {window}")
        if not isinstance(response, str | None):
            raise ValueError(f"got {shown(response)}, expected text under 'response'")
        if response is not None:
            role = self.role(run.config.improve)
            _check(response, role, role.lengths.reference, "references")
        return Asked(x, response)

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
            self.load(_improving(config)),
            self.load(GAP_MODEL) if gap_stage else None,
            gap_stage,
            self.reflects(config),
            _improving(config),
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
        judge = run.role(GAP_REWARD)
        for number, text in enumerate(better):
            try:
                _check(text, judge, judge.lengths.response, "responses")
            except ValueError as error:
                raise ValueError(f"[{number}]: {error}") from None
        # One that fills the window has no room for its end, as if it had been sampled.
        improved = [judge.read(text.strip()) for text in better]
        improver = run.improver(None, self.load(GAP_MODEL), stage, role=GAP_REWARD)
        current = [_given(each.response or "", judge) for each in asked]
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
        texts = [self.role(self.run.config.improve).text(each) for each in trace.responses]
        return [texts[0] if asked.response is None else asked.response, *texts[1:]]

    def reflections(self, trace: Trace) -> list[str]:
        """Returns the texts of the reflections of a trace's iterations."""
        vocabulary = self.run.role(PIT).vocabulary
        return [vocabulary.decode(each.reflection) for each in trace.responses[1:]]

    def is_truncated(self, trace: Trace) -> bool:
        """Returns whether a window cut a response, or cut one that the next was made of."""
        role = self.role(self.run.config.improve)
        encode, window = role.vocabulary.encode, role.lengths.reference
        cut = any(len(encode(role.text(each))) > window for each in trace.responses[:-1])
        return cut or not all(response.ended for response in trace.responses)

    def _drafts(
        self, asked: Sequence[Asked], rows: Sequence[int], key: Any, config: ImproveConfig
    ) -> list[Response]:
        """Returns each y_0, and samples those that aren't given."""
        missing = [n for n, each in enumerate(asked) if each.response is None]
        sampled: Iterator[Response] = iter(())
        if missing:
            responses = self.run.role(POLICY).answers(
                self.load(POLICY),
                [asked[n].x for n in missing],
                [rows[n] for n in missing],
                key,
                config.policy_sampling,
            )
            sampled = iter(responses)
        role = self.role(config)
        return [
            next(sampled) if each.response is None else _given(each.response, role)
            for each in asked
        ]


def _given(text: str, role: Role) -> Response:
    # As in training, where white space around responses is removed.
    return Response(role.vocabulary.encode(text.strip()), True, text=text.strip())


def _check(text: str, role: Role, window: int, of: str) -> None:
    tokens = len(_given(text, role).tokens)
    if tokens > window:
        raise ValueError(
            f"got a response of {tokens} tokens, expected at most {window}, the window of {of}"
        )


def _improving(config: ImproveConfig) -> str:
    """The role whose model improves."""
    return PIT if config.method == "pit" else POLICY
