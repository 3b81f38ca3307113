"""Adds up metrics as (sum, weight) pairs, and has the writers that record them.

A step function returns `{name: (sum, weight)}`. Pairs add across microbatches, steps and hosts, and
the division happens once, on the host, so a mean over tokens is over all tokens and not a mean of
means. The tree is plain tuples in a dict: it passes through jit, scan and psum unchanged. What is
kept of them is written by `records`.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TextIO

import numpy as np
from etils import epath

from pit_jax import files
from pit_jax.errors import UserError
from pit_jax.runtime.records import JsonlWriter

Metrics = dict[str, tuple[Any, Any]]

# What a disk says that takes no more.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


def merge(a: Mapping[str, tuple[Any, Any]], b: Mapping[str, tuple[Any, Any]]) -> Metrics:
    """Adds two metric trees name by name; a name that only one of them has is kept as it is.

    Leaves are scalars (or arrays of equal shape). Pure, so it may be traced.
    """
    merged = dict(a)
    for name, (total, weight) in b.items():
        if name in merged:
            total, weight = merged[name][0] + total, merged[name][1] + weight
        merged[name] = (total, weight)
    return merged


def compute(metrics: Mapping[str, tuple[Any, Any]]) -> dict[str, float]:
    """Divides every sum by its weight, on the host; a metric whose weight is 0 is left out.

    A sum that is not finite stays so: a diverged loss has to be seen.

    Raises:
      ValueError: a metric is not a pair of scalars.
    """
    for pair in metrics.values():
        for leaf in pair:
            if hasattr(leaf, "copy_to_host_async"):
                leaf.copy_to_host_async()
    values = {}
    for name, pair in metrics.items():
        total, weight = (np.asarray(leaf) for leaf in pair)
        if total.size != 1 or weight.size != 1:
            raise ValueError(
                f"metric {name!r}: expected a (sum, weight) pair of scalars, got shapes "
                f"{total.shape} and {weight.shape}"
            )
        if weight.item() != 0:
            values[name] = float(total.item()) / float(weight.item())
    return values


class Writer(Protocol):
    """Says what `MetricWriter` asks of each of its writers."""

    def write(
        self, step: int, scalars: Mapping[str, float], texts: Mapping[str, str] | None = None
    ) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class TensorBoardWriter:
    """Writes scalars and texts as TensorBoard events (needs tensorboardX).

    Args:
      log_dir: the folder of the event files; to a bucket they are copied by `flush` and `close`.
      resume_step: the step the run continues from; TensorBoard hides events of later steps.
    """

    def __init__(self, log_dir: str | os.PathLike[str], resume_step: int | None = None):
        import tensorboardX

        self._folder = epath.Path(log_dir)
        self._scratch: tempfile.TemporaryDirectory | None = None
        if not files.is_local(self._folder):
            self._scratch = tempfile.TemporaryDirectory(prefix="pit_jax_tensorboard_")
        self._writer = tensorboardX.SummaryWriter(
            self._scratch.name if self._scratch else str(log_dir),
            purge_step=None if resume_step is None else resume_step + 1,
        )

    def write(
        self, step: int, scalars: Mapping[str, float], texts: Mapping[str, str] | None = None
    ) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, float(value), step)
        for name, text in (texts or {}).items():
            # TensorBoard renders Markdown; an indented block shows a model's text as it is.
            self._writer.add_text(name, "    " + text.replace("\n", "\n    "), step)

    def flush(self) -> None:
        self._writer.flush()
        self._upload()

    def close(self) -> None:
        self._writer.close()
        self._upload()
        if self._scratch:
            self._scratch.cleanup()

    def _upload(self) -> None:
        if self._scratch:
            for file in epath.Path(self._scratch.name).iterdir():
                files.write_whole(self._folder / file.name, file.read_bytes())


class WandbWriter:
    """Writes scalars and texts to a run of Weights & Biases (needs wandb and WANDB_API_KEY).

    Args:
      project: the project's name in Weights & Biases.
      name: the run's name there.
      id_file: the file that keeps the run's id. A stage that is continued goes on in the same run,
        where steps that are done again aren't written again.

    Raises:
      UserError: wandb isn't installed, or has no key or a wrong one.
    """

    def __init__(self, project: str, name: str, id_file: epath.Path):
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                f"wandb_project: wandb isn't installed ({error}), expected `pip install wandb`"
            ) from error
        if not id_file.exists():
            files.write_whole(id_file, uuid.uuid4().hex[:16])
        id_ = id_file.read_text()
        try:
            self._run = wandb.init(project=project, name=name, id=id_, resume="allow")
        except (wandb.UsageError, wandb.errors.AuthenticationError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise UserError(f"wandb_project: {reason}; expected a valid WANDB_API_KEY") from error
        self._run.define_metric("*", step_metric="training_step")
        # What a run that is resumed had last. The steps up to there come out the same.
        self._written = self._run.summary.get("training_step", -1)

    def write(
        self, step: int, scalars: Mapping[str, float], texts: Mapping[str, str] | None = None
    ) -> None:
        if step > self._written:
            self._run.log({"training_step": step, **scalars, **(texts or {})})

    def flush(self) -> None:
        """Does nothing: wandb sends what it has by itself."""

    def close(self) -> None:
        self._run.finish()


class Console:
    """Shows a stage's progress: a bar on a terminal, a line every tenth of the steps when piped.

    Args:
      stage: the name shown, such as 'rl_pit'.
      total_steps: steps of the whole stage.
      metrics_to_show: names of the scalars to print, in order; absent ones are passed over.
      initial_step: the step the run continues from.
      stream: where to print; stdout by default.
      unit: what a step is.
    """

    def __init__(
        self,
        stage: str,
        total_steps: int,
        metrics_to_show: Sequence[str],
        initial_step: int = 0,
        stream: TextIO | None = None,
        unit: str = "step",
    ):
        if total_steps < 1:
            raise ValueError(f"total_steps: expected at least 1, got {total_steps}")
        self._stage, self._total, self._shown = stage, total_steps, tuple(metrics_to_show)
        self._stream = sys.stdout if stream is None else stream
        self._initial, self._started = initial_step, time.monotonic()
        self._last_tenth: int | None = None
        self._bar = None
        if self._stream.isatty():
            import tqdm

            self._bar = tqdm.tqdm(
                total=total_steps,
                initial=initial_step,
                desc=stage,
                unit=unit,
                file=self._stream,
                dynamic_ncols=True,
            )

    def write(
        self, step: int, scalars: Mapping[str, float], texts: Mapping[str, str] | None = None
    ) -> None:
        del texts  # too long for a terminal; the other writers keep them
        shown = [f"{name} {scalars[name]:.4g}" for name in self._shown if name in scalars]
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(shown), refresh=False)
            self._bar.update(step - self._bar.n)
            return
        tenth = 10 * step // self._total
        if tenth == self._last_tenth:
            return
        self._last_tenth = tenth
        width = len(str(self._total))
        parts = [f"{self._stage}  {step:{width}d}/{self._total}", *shown, self._pace(step)]
        print("  ".join(parts), file=self._stream, flush=True)

    def _pace(self, step: int) -> str:
        elapsed = time.monotonic() - self._started
        done, left = step - self._initial, self._total - step
        text = _duration(elapsed)
        if done > 0 and left > 0:
            text += f" (about {_duration(elapsed / done * left)} left)"
        return text

    def flush(self) -> None:
        """Does nothing: every line is shown at once."""

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class MetricWriter:
    """Writes every record to each of several writers; it is a context manager."""

    def __init__(self, *writers: Writer):
        self._writers = writers

    def write(
        self, step: int, scalars: Mapping[str, float], texts: Mapping[str, str] | None = None
    ) -> None:
        """Records one step; `scalars` are floats by name, `texts` are sample outputs by name.

        What a full disk refuses stops nothing here: `flush` tells it where it would be lost.
        """
        for writer in self._writers:
            try:
                writer.write(step, scalars, texts)
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise

    def written(self) -> dict[str, Any]:
        """Returns what JsonlWriter.written does; nothing where no writer is one."""
        ours = [writer for writer in self._writers if isinstance(writer, JsonlWriter)]
        return ours[0].written() if ours else {}

    def flush(self) -> None:
        """Brings what was written so far to where it is kept; the loop calls it before it saves."""
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """Closes all writers, also when one of them fails to close."""
        errors = []
        for writer in self._writers:
            try:
                writer.close()
            except OSError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
