"""Says what a run's report is about: its task and score in words, its code and its data."""

from __future__ import annotations

import pathlib
import subprocess
from typing import Any

from pit_jax.data.datasets import DatasetConfig, MixtureConfig
from pit_jax.data.synthetic import instructions
from pit_jax.run.run import Run

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent
_KINDS = {
    "preferences": "preference pairs: to each prompt, a response that is preferred to another",
    "hh": "dialogues of the kind of HH-RLHF: the assistant’s next turn",
    "summaries": "posts and their summaries, of the kind of OpenAI’s summarize-from-feedback",
    "tfds": "preference pairs of TensorFlow Datasets",
}


def facts(run: Run) -> dict[str, Any]:
    """What a report says of a run beside what was measured.

    Returns:
      task: what a response has to do; score: what its score is, where a checker computes it;
      commit: of the package's code, None if it isn't in a checkout of git; data_digest: SHA-256 of
      all examples.
    """
    dataset = run.config.dataset
    found: dict[str, Any] = {
        "task": task(dataset),
        "commit": commit(),
        "data_digest": run.data.digest,
    }
    if isinstance(dataset, DatasetConfig) and dataset.kind == "instructions":
        scored = instructions.FAMILIES[dataset.family].SCORED
        found["score"] = f"{scored[0].upper()}{scored[1:]}."
    return found


def task(dataset: DatasetConfig | MixtureConfig) -> str:
    """Says in a sentence what a response to a prompt of a dataset has to do."""
    parts = dataset.parts if isinstance(dataset, MixtureConfig) else (dataset,)
    text = "; and ".join(dict.fromkeys(map(_task, parts))) + "."
    return text[0].upper() + text[1:]


def _task(dataset: DatasetConfig) -> str:
    if dataset.kind == "instructions":
        return f"{instructions.FAMILIES[dataset.family].ASKED} (synthetic data)"
    paths = (dataset.path,) if isinstance(dataset.path, str) else dataset.path
    return f"{_KINDS[dataset.kind]}, from {', '.join(paths)}"


def commit(folder: pathlib.Path = _PACKAGE) -> str | None:
    """Returns the commit of the checkout that a folder is in, marked if files of it are changed.

    It is None outside a checkout, and where there is no git.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()

    try:
        # Another project's, where an environment with the package in it lies in its checkout.
        if not git("ls-files", "--", "."):
            return None
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None
