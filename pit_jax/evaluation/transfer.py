"""Measures a run's PIT on datasets that it wasn't trained on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from pit_jax.data.advice import MUCH_UNKNOWN
from pit_jax.data.datasets import DatasetConfig, MixtureConfig
from pit_jax.errors import UserError
from pit_jax.evaluation.suite import EvaluationConfig, Suite
from pit_jax.evaluation.tables import Side
from pit_jax.method.roles import ROLES
from pit_jax.run import checks
from pit_jax.run.run import Run

_FLAG = "--transfer"
_LOOKED_AT = 1000  # examples whose tokens are counted


def moved(run: Run, file: str, dataset: DatasetConfig | MixtureConfig, split: str) -> Run:
    """Returns the run with another dataset, to be evaluated there with the models that it has.

    Args:
      run: the run.
      file: what the dataset is called in messages.
      dataset: the dataset.
      split: the split to evaluate on.

    Raises:
      UserError: if the dataset can't be read, nothing of the split fits the run's windows, or a
        vocabulary of the run has no ids for what it says.
    """
    config = dataclasses.replace(run.config, dataset=dataset)
    other = Run(config, devices=list(run.partitioner.mesh.devices.flat))
    try:
        checks.check_split(other, split, "with the run's windows nothing is left of")
    except UserError as error:
        raise UserError(f"{_FLAG}: {file}: {error}") from None
    texts = [
        text
        for e in itertools.islice(other.data.examples(split), _LOOKED_AT)
        for text in (e.prompt, e.chosen, e.rejected)
    ]
    named: dict[str, str] = {}  # vocabulary -> the first role that has it
    for role in ROLES:
        named.setdefault(other.role(role).vocabulary.fingerprint, role)
    for role in named.values():
        vocabulary = other.role(role).vocabulary
        ids = [token for text in texts for token in vocabulary.encode(text)]
        unknown = ids.count(vocabulary.unk_id) if vocabulary.unk_id is not None else 0
        if unknown > MUCH_UNKNOWN * len(ids):
            name = run.config.of_role(role).vocabulary
            raise UserError(
                f"{_FLAG}: {file}: {unknown / len(ids):.0%} of the tokens of its {split} split are "
                f"unknown to the run's vocabulary {name!r}, expected {MUCH_UNKNOWN:.0%} at most"
            )
    return other


def label(file: str, other: Run) -> str:
    """What a dataset that `moved` was given is called in the report."""
    return f"{other.config.dataset.name} ({file})"


def rows(
    suite: Suite, run: Run, config: EvaluationConfig, others: Mapping[str, Run]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Compares PIT with the policy's response, and R_PIT with the data, on several datasets.

    Args:
      suite: of the run.
      run: the run.
      config: what to evaluate; its first temperature is taken.
      others: what `moved` makes of the run, by what its dataset is called.

    Returns:
      `transfer` of report/write.py: a row of the run's own dataset, then one of each other; and
      what is to be known of the judge on the others.
    """
    trained = {e.prompt for e in run.data.examples("train")}
    name = run.config.dataset.name
    found, told = [_row(suite, run, config, name, trained)], []
    for file, other in others.items():
        there = Suite(other, config)
        found.append(_row(there, other, config, label(file, other), trained))
        told += [f"on {label(file, other)}: {text}" for text in there.judging().get("warnings", ())]
    return [{**row, "trained_on": name} for row in found], told


def _row(
    suite: Suite, run: Run, config: EvaluationConfig, name: str, trained: set[str]
) -> dict[str, Any]:
    temperature = config.temperatures[0]
    original = Side("original", "Original", suite.policy(config.policy, temperature))
    traces = suite.improved(config.pit, temperature, 1)
    pit = Side("pit", "PIT", [trace.responses[1] for trace in traces])
    compared = suite.with_verdicts(
        lambda: suite.tables.compare(temperature, "transfer", pit, original)
    )
    report = run.data.report()
    too_long = sum(n for reason, n in report["dropped"].items() if reason.endswith("too long"))
    return {
        **compared,
        "evaluated_on": name,
        "data_digest": run.data.digest,
        "gap_model": suite.pairs.gap_row("R_PIT", suite.pairs.gap_rewards(config.gap_model)),
        "read": report["read"],
        "too_long": too_long,
        "seen": sum(prompt in trained for prompt in suite.responses.prompts),
    }
