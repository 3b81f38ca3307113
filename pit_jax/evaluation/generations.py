"""Reads generations that were saved, such as those that `improve` writes, to judge them."""

from __future__ import annotations

import dataclasses
from typing import Any

from pit_jax.data import datasets
from pit_jax.data.files.json_values import shown
from pit_jax.data.synthetic import instructions
from pit_jax.errors import UserError
from pit_jax.method.roles import POLICY_REWARD
from pit_jax.run import improving
from pit_jax.run.run import Run


@dataclasses.dataclass
class Generations:
    """Holds generations, and what isn't among them.

    Attributes:
      records: `prompt` and `responses` of each row, as `Suite.judge_generations` takes them.
      notes: a line for each kind of row that is left out or judged by a part.
    """

    records: list[dict[str, Any]]
    notes: list[str]


def read(run: Run, source: str, on_error: str) -> Generations:
    """Reads rows of `prompt` and `responses`, [y_0, y_1, …].

    A row that `improve` has skipped is left out. A response that is longer than the window is kept
    and counted, since a reward model judges as much of it as fits.

    Args:
      run: the run that judges them.
      source: what `records.records` takes.
      on_error: what becomes of other rows with a problem: `stop` refuses all, `skip` leaves them
        out.

    Raises:
      UserError: if the file can't be read, rows have problems, or no row is left.
    """
    kept: list[dict[str, Any]] = []
    unimproved = bad = long = 0
    for _, value, problem in improving.parsed(source, lambda v: _generation(run, v), on_error):
        if problem:
            bad += 1
        elif value is None:
            unimproved += 1
        else:
            kept.append({"prompt": value[0], "responses": value[1]})
            long += value[2]
    notes = []
    if bad:
        notes.append(f"{bad} rows are skipped: they are malformed")
    if unimproved:
        notes.append(f"{unimproved} rows are left out: improve has skipped them")
    if long:
        window = run.role(POLICY_REWARD).lengths.response
        notes.append(f"{long} responses are judged by their first {window} tokens, the window")
    if not kept:
        raise UserError(f"{source}: has no row to judge: {'; '.join(notes)}")
    return Generations(kept, notes)


def _generation(run: Run, value: dict[str, Any]) -> tuple[str, list[str], int] | None:
    """Returns x, its responses and how many of them are too long; None for a skipped row."""
    if "responses" not in value and value.get("status", improving.OK) != improving.OK:
        return None
    texts = value.get("responses")
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        got = shown(texts if "responses" in value else list(value))
        raise ValueError(f"got {got}, expected a list of one text or more under 'responses'")
    dataset, role = run.config.dataset, run.role(POLICY_REWARD)
    lengths = role.lengths
    x = datasets.prompt(dataset, value)
    if isinstance(dataset, datasets.DatasetConfig) and dataset.kind == "instructions":
        instructions.check(dataset.family, x, texts[0])
        return x, texts, 0
    prompt = role.layout.policy_prompt(x)
    if len(prompt) > lengths.prompt:
        raise ValueError(f"got a prompt of {len(prompt)} tokens, expected at most {lengths.prompt}")
    return x, texts, sum(len(role.layout.response(text)) > lengths.response for text in texts)
