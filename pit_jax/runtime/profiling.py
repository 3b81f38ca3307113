"""Traces a few training steps, for TensorBoard's profiler and Perfetto."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax

from pit_jax.errors import UserError
from pit_jax.runtime import processes


@dataclasses.dataclass(frozen=True)
class Window:
    """Says which steps to trace, counted from 1 where a stage starts or continues.

    Attributes:
      first: number of the first step.
      last: number of the last step.
    """

    first: int
    last: int

    def within(self, steps: int) -> Window:
        """Returns the window moved back, and then cut, to fit a stage of `steps` steps."""
        last = min(self.last, steps)
        return Window(max(1, last - self.last + self.first), last)


def parse(text: str) -> Window:
    """Reads the window of a flag's `FIRST:LAST`.

    Raises:
      UserError: if the text isn't of this form.
    """
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(
            f"--profile: got {text!r}, expected FIRST:LAST, steps from 1, such as 10:12"
        )
    return Window(int(found[1]), int(found[2]))


class Profiler:
    """Traces the steps of a window into a folder; it is a context manager.

    Args:
      window: which steps to trace, None for none; all calls of what `wrap` returns are counted.
      folder: where `plugins/profile/…` goes, with each process's trace for TensorBoard's profiler
        (`xplane.pb`) and, if there is one process, with Perfetto's (`perfetto_trace.json.gz`).
    """

    def __init__(self, window: Window | None, folder: pathlib.Path):
        self._window, self._folder = window, folder
        self._calls = 0
        self._running = False

    def wrap(self, step: Callable) -> Callable:
        """Returns the step `(state, batch, number) -> (state, …)` with its calls traced."""
        window = self._window
        if window is None:
            return step

        def profiled(state: Any, batch: Any, number: int):
            self._calls += 1
            if self._calls == window.first:
                jax.block_until_ready(state)  # what came before stays out of the trace
                options = jax.profiler.ProfileOptions()
                options.python_tracer_level = 0  # its events would crowd out the devices'
                # JAX makes Perfetto's file of the one trace that is in a local folder.
                alone = jax.process_count() == 1 and "://" not in str(self._folder)
                jax.profiler.start_trace(
                    str(self._folder), create_perfetto_trace=alone, profiler_options=options
                )
                self._running = True
            with jax.profiler.StepTraceAnnotation("train", step_num=number + 1):
                state, *rest = step(state, batch, number)
            if self._calls == window.last:
                jax.block_until_ready(state)
                self._stop()
            return state, *rest

        return profiled

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
        if processes.is_first():
            print(f"profile: {self._folder}", flush=True)

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._running:  # a step failed, or the stage was interrupted
            self._stop()
