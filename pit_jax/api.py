"""Improves and scores responses from Python, with models that are loaded once.

    import pit_jax

    pit = pit_jax.load("runs/quickstart")
    for found in pit.improve(["from 2 do +4 x7"], iterations=2):
        print(found.response, found.gaps)

The answers are those of the command `improve` for the same rows and the same seed.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

from etils import epath

from pit_jax import bindings, checked, files
from pit_jax.errors import UserError
from pit_jax.evaluation.suite import EvaluationConfig
from pit_jax.method.improve import ImproveConfig
from pit_jax.run import exported, improver
from pit_jax.run.config import RunConfig
from pit_jax.run.run import Run
from pit_jax.runtime.partitioning import MeshConfig

# Text, or turns {role, content}.
Prompt = str | Sequence[dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Improvement:
    """Says what became of a prompt.

    Attributes:
      response: the result.
      responses: the response that was improved, then one for each iteration.
      gaps: R_PIT's gap of each iteration; above 0 it is better than what it was made of. Empty
        without gaps.
      best: which of `responses` is the best by gap, counted from 0; None without gaps.
      stop_reason: `iterations`, `unchanged`, `gap` or `time`.
      ended: whether each response ended within the window of responses.
      truncated: whether a window cut a response, or cut one that the next was made of.
      reflections: what the model wrote before the response of each iteration, if it reflects.
    """

    response: str
    responses: tuple[str, ...]
    gaps: tuple[float, ...]
    best: int | None
    stop_reason: str
    ended: tuple[bool, ...]
    truncated: bool
    reflections: tuple[str, ...] = ()


class Pit:
    """Improves and scores responses; `load` makes it.

    Models are loaded when they are first needed, and programs compiled: the first call takes long.

    Args:
      run: the run that has trained the models.
      stages: the stages of `improver.ROLES`.
    """

    def __init__(self, run: Run, stages: dict[str, str]):
        self._run = run
        improves = improver.PIT if run.config.improve.method == "pit" else improver.POLICY
        run.result(stages[improves])
        without = {role: stage for role, stage in stages.items() if role != improver.GAP_MODEL}
        # Both load a model through the run once.
        run.load_frozen = functools.cache(run.load_frozen)  # type: ignore[method-assign]
        self._has_gaps = improver.GAP_MODEL in stages
        self._with_gaps = improver.RunImprover(run, stages)
        self._without = improver.RunImprover(run, without)

    def improve(
        self,
        prompts: Sequence[Prompt],
        responses: Sequence[str | None] | None = None,
        iterations: int = 1,
        *,
        temperature: float | None = None,
        keep: str | None = None,
        gaps: bool = True,
        seed: int | None = None,
    ) -> list[Improvement]:
        """Improves responses to prompts by Algorithm 2.

        Args:
          prompts: texts, or lists of turns {role, content} of which the user's is the last.
          responses: the response to improve of each prompt; the policy samples those that are
            None, or all if there are none.
          iterations: how often in a row.
          temperature: of the improvements; as the run is configured by default, 0 for greedy.
          keep: which response is the result, `best` by gap or `last`; as configured by default.
          gaps: whether to score each improvement; without, the last one is the result. An
            exported directory may have no model for it.
          seed: of all draws; the run's by default. Draws depend on it and on a prompt's place.

        Returns:
          an Improvement for each prompt.

        Raises:
          ValueError: for a prompt or response that can't be used or is too long, by its number, and
            for settings that can't be meant.
          UserError: a ValueError too: for a model that isn't trained.
        """
        config = self._config(iterations, temperature, keep)
        if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**32):
            raise ValueError(f"seed: got {seed!r}, expected 0 to {2**32 - 1}")
        asked = self._read(prompts, responses, "responses")
        gaps = gaps and self._has_gaps
        if not gaps and config.min_gap is not None:
            raise ValueError("gaps: got none, expected some, since the run is set to stop by gap")
        made = self._with_gaps if gaps else self._without
        reflects = made.reflects(config)
        traces = made(asked, range(len(asked)), config, seed) if asked else []
        found = []
        for number, (trace, each) in enumerate(zip(traces, asked, strict=True)):
            made.check(trace, f"prompts[{number}]")
            texts = made.texts(trace, each)
            found.append(
                Improvement(
                    response=texts[trace.final(config.keep)],
                    responses=tuple(texts),
                    gaps=tuple(trace.gaps),
                    best=trace.best if gaps else None,
                    stop_reason=trace.stop_reason,
                    ended=tuple(response.ended for response in trace.responses),
                    truncated=made.is_truncated(trace),
                    reflections=tuple(made.reflections(trace)) if reflects else (),
                )
            )
        return found

    def score(self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> list[float]:
        """Scores how much better each `a` is than `b` by R_PIT, as R_gap(x, a, b).

        Args:
          prompts: as `improve` takes them.
          a, b: a text of each for each prompt.

        Returns:
          the gaps, of which the anchor is subtracted: above 0, `a` is better.

        Raises:
          ValueError: for a prompt or text that can't be used or is too long, by its number.
          UserError: a ValueError too: if R_PIT isn't trained.
        """
        if not self._has_gaps:
            raise UserError(f"{self._run.directory}: has no gap model, expected one to score by")
        asked = self._read(prompts, b, "b")
        _check_texts("a", a, len(asked))
        if None in a or None in b:
            raise ValueError("score: got None, expected a text of a and one of b for each prompt")
        try:
            return self._with_gaps.gaps(asked, a) if asked else []
        except UserError:
            raise
        except ValueError as error:
            raise ValueError(f"a{error}") from None

    def _config(self, iterations: Any, temperature: Any, keep: Any) -> ImproveConfig:
        base = self._run.config.improve
        sampling = base.sampling
        if temperature is not None:
            sampling = dataclasses.replace(sampling, temperature=temperature)
        return dataclasses.replace(
            base, iterations=iterations, sampling=sampling, keep=base.keep if keep is None else keep
        )

    def _read(self, prompts: Any, responses: Any, name: str) -> list[improver.Asked]:
        """What is asked; the first that can't be used is named by its number."""
        if isinstance(prompts, str) or not isinstance(prompts, Sequence):
            raise ValueError(f"prompts: got {type(prompts).__name__}, expected a list of prompts")
        if responses is not None:
            _check_texts(name, responses, len(prompts))
        asked = []
        for number, prompt in enumerate(prompts):
            record = {"prompt": prompt, "response": responses[number] if responses else None}
            if not isinstance(prompt, str):
                record["prompt"] = list(prompt) if isinstance(prompt, Sequence) else prompt
            try:
                asked.append(self._with_gaps.read(record))
            except ValueError as error:
                raise ValueError(f"prompts[{number}]: {error}") from None
        return asked


def load(path: str, batch_size: int = 16) -> Pit:
    """Loads the models of a run, for whatever devices there are.

    Args:
      path: a run directory, or one that `convert --to=hf` has written of all models.
      batch_size: how many rows are sampled and scored at once, rounded up to a multiple of the
        devices; a shorter list is filled up, so that no other number of prompts compiles anew.

    Raises:
      UserError: if neither is there, or the PIT model isn't trained.
    """
    given = checked.expand(str(path))
    # Models load later, when the working directory may be another one.
    folder = epath.Path(os.path.abspath(given) if files.is_local(given) else given)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size!r}, expected a whole number above 0")
    run: Run
    if exported.is_exported(folder):
        run = of_directory = exported.ExportedRun(folder)
        names = dict(of_directory.stages)
    elif (folder / "config.gin").exists():
        file, roots = str(folder / "config.gin"), (RunConfig, EvaluationConfig)
        config, evaluation = bindings.read(file, roots)
        run = Run(dataclasses.replace(config, model_dir=str(folder), mesh=MeshConfig()))
        names = {role: getattr(evaluation, role) for role in improver.ROLES}
    else:
        raise UserError(
            f"{folder}: expected a run directory, which has a config.gin, or an exported one, "
            f"which has a {exported.FILE}"
        )
    _fill_up(run, batch_size)
    return Pit(run, names)


def _fill_up(run: Run, batch_size: int) -> None:
    """Sets how many rows a run samples at once."""
    rows = run.partitioner.row_shards
    run.config = dataclasses.replace(run.config, sampling_batch=-(-batch_size // rows) * rows)
    run.place(run.partitioner)


def _check_texts(name: str, texts: Any, count: int) -> None:
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise ValueError(f"{name}: got {type(texts).__name__}, expected a list of texts")
    if len(texts) != count:
        raise ValueError(f"{name}: got {len(texts)} texts for {count} prompts, expected as many")
    for number, text in enumerate(texts):
        if not isinstance(text, str | None):
            raise ValueError(f"{name}[{number}]: got {type(text).__name__}, expected a text")
