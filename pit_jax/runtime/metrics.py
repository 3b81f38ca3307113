"""Adds up metrics as (sum, weight) pairs, and has the writers that record them.

A step function returns `{name: (sum, weight)}`. Pairs add across microbatches, steps and hosts, and
the division happens once, on the host, so a mean over tokens is over all tokens and not a mean of
means. The tree is plain tuples in a dict: it passes through jit, scan and psum unchanged.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from io import RawIOBase
from typing import Any, Protocol, TextIO

import numpy as np
from etils import epath

from pit_jax import files
from pit_jax.errors import UserError

Metrics = dict[str, tuple[Any, Any]]

_RESERVED_KEYS = ("step", "texts")
_UPLOAD_SECONDS = 60.0
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


def read_jsonl(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the records of a JSONL file; null values come back as nan.

    A last line cut short by a crash, which has no end, is left out.

    Raises:
      UserError: there is no such file, or a line is no JSON object with a step.
    """
    file = epath.Path(path)
    if not file.exists():
        raise UserError(
            f"{path}: not found, expected what the stage recorded; bring it back from a copy, or "
            f"delete {file.parent} to train the stage again"
        )
    *lines, torn = file.read_bytes().split(b"\n")
    while not torn and lines and not lines[-1].strip():
        lines.pop()
    lines += [torn] if torn else []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not an object")
            if not isinstance(record.get("step", 0), int):
                raise ValueError("its step is no number")
        except (ValueError, RecursionError) as error:
            if torn and number == len(lines):
                break
            raise UserError(
                f"{path}:{number}: is damaged, expected a JSON object, got {line[:80]!r}; bring it "
                "back from a copy, or delete the line, which only the curves have"
            ) from error
        records.append({key: math.nan if value is None else value for key, value in record.items()})
    return records


class Writer(Protocol):
    """Says what `MetricWriter` asks of each of its writers."""

    def write(
        self, step: int, scalars: Mapping[str, float], texts: Mapping[str, str] | None = None
    ) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class JsonlWriter:
    """Writes one JSON object a line: `{"step": 10, "loss": 1.5, "texts": {"sample": "..."}}`.

    On a disk every line is written at once; what a full disk refuses waits for the next line, and
    `flush` and `close` raise as long as something waits. In a bucket, where nothing can be
    appended, the file is written anew when `flush` or `close` is called, and by the first `write`
    after a minute. A value that is not finite is stored as null, so that every line is standard
    JSON.

    Args:
      path: the file; it and its folder are made when absent.
      resume_step: the step the run continues from. Records of later steps, which the run will write
        again, are dropped, as is a torn last line. None keeps every whole record; -1 starts afresh.
    """

    def __init__(self, path: str | os.PathLike[str], resume_step: int | None = None):
        self._path = epath.Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        records = read_jsonl(self._path) if self._path.exists() else []
        self._lines = [
            _json_line(record)
            for record in records
            if resume_step is None or record.get("step", 0) <= resume_step
        ]
        self._file: RawIOBase | None = None
        self._waiting = b""
        self._upload()
        if files.is_local(self._path):
            self._lines = []
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - closed by close()

    def _upload(self) -> None:
        files.write_whole(self._path, "".join(self._lines))
        self._uploaded, self._changed = time.monotonic(), False

    def write(
        self, step: int, scalars: Mapping[str, float], texts: Mapping[str, str] | None = None
    ) -> None:
        for key in _RESERVED_KEYS:
            if key in scalars:
                raise ValueError(f"a scalar may not be named {key!r}: the record itself uses it")
        record: dict[str, Any] = {"step": int(step)}
        record.update((name, float(value)) for name, value in scalars.items())
        if texts:
            record["texts"] = dict(texts)
        if self._file is not None:
            self._waiting += _json_line(record).encode()
            with contextlib.suppress(OSError):  # `flush` says it, before the next checkpoint
                self._append()
            return
        self._lines.append(_json_line(record))
        self._changed = True
        if time.monotonic() - self._uploaded > _UPLOAD_SECONDS:
            self._upload()

    def _append(self) -> None:
        while self._file is not None and self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) or 0 :]

    def flush(self) -> None:
        self._append()
        if self._changed:
            self._upload()

    def close(self) -> None:
        try:
            self.flush()
        finally:
            if self._file is not None:
                self._file.close()


def _json_line(record: Mapping[str, Any]) -> str:
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(finite, ensure_ascii=False, allow_nan=False) + "\n"


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
