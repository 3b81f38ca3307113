"""Reads generations that were saved, such as those that `improve` writes, to judge them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from pit_jax.data import datasets
from pit_jax.data.files import formats
from pit_jax.data.files.fields import Fields
from pit_jax.data.files.json_values import shown
from pit_jax.data.synthetic import instructions
from pit_jax.errors import UserError
from pit_jax.method.roles import POLICY_REWARD
from pit_jax.method.self_refine import as_text
from pit_jax.run import improving
from pit_jax.run.run import Run


@dataclasses.dataclass
class Generations:
    """Holds generations, and what isn't among them.

    Attributes:
      records: `prompt` and `responses` of each row, as `Suite.judge_generations` takes them.
      notes: a line for each kind of row that is left out or judged by a part.
      names: of the systems whose responses these are; none for those of `improve`.
    """

    records: list[dict[str, Any]]
    notes: list[str]
    names: tuple[str, ...] = ()


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
    notes = _cut(run, long)
    if bad:
        notes.append(f"{bad} rows are skipped: they are malformed")
    if unimproved:
        notes.append(f"{unimproved} rows are left out: improve has skipped them")
    if not kept:
        raise UserError(f"{source}: has no row to judge: {'; '.join(notes)}")
    return Generations(kept, notes)


def of_systems(run: Run, sources: Sequence[str], on_error: str) -> Generations:
    """Reads two systems' responses to the same prompts, which the judge of a run compares.

    Args:
      run: the run that judges them.
      sources, on_error: as `paired` takes them.

    Raises:
      UserError: as `paired` does, and for a prompt that isn't one of the run's data or windows.
    """
    rows, notes = paired(sources, on_error, run)
    records = [{"prompt": x, "responses": [first, second]} for x, first, second in rows]
    long = sum(found[2] for record in records if (found := _generation(run, record)))
    return Generations(records, [*notes, *_cut(run, long)], names_of(sources))


def names_of(sources: Sequence[str]) -> tuple[str, ...]:
    """What two systems are called: the names of their files, or their paths if these are equal."""
    names = tuple(pathlib.PurePath(source).name for source in sources)
    return names if names[0] != names[1] else tuple(sources)


def _cut(run: Run, long: int) -> list[str]:
    """Says that so many responses are cut, if any are."""
    window = run.role(POLICY_REWARD).lengths.response
    text = f"{long} responses are judged by their first {window} tokens, the window"
    return [text] * bool(long)


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


def paired(
    sources: Sequence[str], on_error: str, run: Run | None = None
) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Reads two systems' responses to the same prompts.

    A row has `prompt`, text or turns, and `response`, or the last of `responses`. Rows of a prompt
    that is there several times go together in their order. A row that `improve` has skipped is left
    out.

    Args:
      sources: two of what `records.records` takes.
      on_error: what becomes of rows with a problem, and of a response to which the other file has
        none: `stop` refuses all, `skip` leaves them out.
      run: what judges them; None where people read them.

    Returns:
      prompt and both responses of each row, in the order of the first file; a line for each kind of
      row that is left out.

    Raises:
      UserError: if a file can't be read, rows have problems, or none is left.
    """
    first, second = (_responses(source, on_error, run) for source in sources)
    waiting: dict[str, list[str]] = defaultdict(list)
    for _, x, text in reversed(second):
        waiting[x].append(text)
    rows, alone = [], []
    for place, x, text in first:
        if waiting[x]:
            rows.append((x if run else as_text(x), text, waiting[x].pop()))
        else:
            alone.append(place)
    if alone and on_error == "stop":
        raise UserError(
            f"{alone[0]}: {sources[1]} has no response to this prompt, nor to {len(alone)} of "
            f"{len(first)} in all; --on_error=skip leaves them out"
        )
    if not rows:
        raise UserError(f"{sources[0]} and {sources[1]} have no prompt in common")
    left_out = len(first) + len(second) - 2 * len(rows)
    return rows, [f"{left_out} responses are left out: the other file has none"] * bool(left_out)


def _responses(source: str, on_error: str, run: Run | None) -> list[tuple[str, str, str]]:
    """The place, x and response of each row of a file."""

    def parse(value: dict[str, Any]) -> tuple[str, str] | None:
        skipped = value.get("status", improving.OK) != improving.OK
        if skipped and not {"response", "responses"} & value.keys():
            return None
        last = value.get("responses")
        text = value.get("response", last[-1] if isinstance(last, list) and last else None)
        if not isinstance(text, str):
            raise ValueError(f"got {shown(text)}, expected text under 'response'")
        if run is None:
            return formats.prompt(Fields(value)), text
        found = _generation(run, value | {"responses": [text]})
        return found and (found[0], text)

    found = improving.parsed(source, parse, on_error)
    return [(record.place, *value) for record, value, _ in found if value]
