"""Reads generations that were saved, such as those that `improve` writes, to judge them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from pit_jax.data import datasets
from pit_jax.data.files import formats
from pit_jax.data.files.fields import Fields
from pit_jax.data.files.json_values import shown
from pit_jax.errors import UserError
from pit_jax.evaluation.configured_judge import JudgeConfig
from pit_jax.evaluation.judges import RewardJudgeConfig, checker
from pit_jax.method.roles import GAP_REWARD, POLICY_REWARD, Role
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


def read(run: Run, judge: JudgeConfig | None, source: str, on_error: str) -> Generations:
    """Reads rows of `prompt` and `responses`, [y_0, y_1, …].

    A row that `improve` has skipped is left out. Where a model of the run judges, a response that
    is longer than its window is kept and counted, since as much of it as fits is judged.

    Args:
      run: the run that judges them.
      judge: the judge that is configured, if one is.
      source: what `records.records` takes.
      on_error: what becomes of other rows with a problem: `stop` refuses all, `skip` leaves them
        out.

    Raises:
      UserError: if the file can't be read, rows have problems, or no row is left.
    """
    kept: list[dict[str, Any]] = []
    unimproved = bad = long = 0
    found = improving.parsed(source, lambda v: _generation(run, judge, v), on_error)
    for _, value, problem in found:
        if problem:
            bad += 1
        elif value is None:
            unimproved += 1
        else:
            kept.append({"prompt": value[0], "responses": value[1]})
            long += value[2]
    notes = [*_cut(run, judge, long), *_malformed(bad)]
    if unimproved:
        notes.append(f"{unimproved} rows are left out: improve has skipped them")
    if not kept:
        raise UserError(f"{source}: has no row to judge: {'; '.join(notes)}")
    return Generations(kept, notes)


def of_systems(
    run: Run, judge: JudgeConfig | None, sources: Sequence[str], on_error: str
) -> Generations:
    """Reads two systems' responses to the same prompts, which the judge of a run compares.

    Args:
      run, judge: as of `read`.
      sources, on_error: as `paired` takes them.

    Raises:
      UserError: as `paired` does, and for a prompt that isn't one of the run's data or windows.
    """
    rows, notes = paired(sources, on_error, run, judge)
    records = [{"prompt": x, "responses": [first, second]} for x, first, second in rows]
    return Generations(records, notes, names_of(sources))


def names_of(sources: Sequence[str]) -> tuple[str, ...]:
    """What two systems are called: the names of their files, or their paths if these are equal."""
    names = tuple(pathlib.PurePath(source).name for source in sources)
    return names if names[0] != names[1] else tuple(sources)


def _reader(run: Run, judge: JudgeConfig | None) -> tuple[Role, int] | None:
    """The role of the run's model that judges, and its window of responses; None if none does."""
    if isinstance(judge, RewardJudgeConfig) and run.stage(judge.stage).task == "rm_gap":
        role = run.role(GAP_REWARD)
        return role, role.lengths.longest_text + 1  # it reads each as a reference too
    own = isinstance(judge, RewardJudgeConfig)
    if (judge or checker(run.config.dataset)) and not own:
        return None
    role = run.role(POLICY_REWARD)
    return role, role.lengths.response


def _cut(run: Run, judge: JudgeConfig | None, long: int) -> list[str]:
    """Says that so many responses are cut, if any are."""
    reader = _reader(run, judge)
    if not long or reader is None:
        return []
    return [f"{long} responses are judged by their first {reader[1]} tokens, the window"]


def _malformed(count: int) -> list[str]:
    """Says that so many rows are skipped, if any are."""
    return [f"{count} rows are skipped: they are malformed"] * bool(count)


def _generation(
    run: Run, judge: JudgeConfig | None, value: dict[str, Any]
) -> tuple[str, list[str], int] | None:
    """Returns x, its responses and how many of them are too long; None for a skipped row."""
    if "responses" not in value and value.get("status", improving.OK) != improving.OK:
        return None
    texts = value.get("responses")
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        got = shown(texts if "responses" in value else list(value))
        raise ValueError(f"got {got}, expected a list of one text or more under 'responses'")
    dataset, reader = run.config.dataset, _reader(run, judge)
    x = datasets.prompt(dataset, value)
    if reader is None:
        if not judge and (exact := checker(dataset)):
            exact.check(x, texts[0])  # which refuses another task's prompt
        return x, texts, 0
    role, window = reader
    tokens, most = len(role.layout.policy_prompt(x)), role.lengths.prompt
    if tokens > most:
        raise ValueError(f"got a prompt of {tokens} tokens, expected at most {most}")
    return x, texts, sum(len(role.layout.response(text)) > window for text in texts)


def paired(
    sources: Sequence[str],
    on_error: str,
    run: Run | None = None,
    judge: JudgeConfig | None = None,
) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Reads two systems' responses to the same prompts.

    A row has `prompt`, text or turns, and `response`, or the last of `responses`. Rows of a prompt
    that is there several times go together in their order. A row that `improve` has skipped is left
    out.

    Args:
      sources: two of what `records.records` takes.
      on_error: what becomes of rows with a problem, and of a response to which the other file has
        none: `stop` refuses all, `skip` leaves them out.
      run, judge: what judges them, as of `read`; None where people read them.

    Returns:
      prompt and both responses of each row, in the order of the first file; a line for each kind of
      row that is left out.

    Raises:
      UserError: if a file can't be read, rows have problems, or none is left.
    """
    read = [_responses(source, on_error, run, judge) for source in sources]
    (first, second), bad = [rows for rows, _ in read], sum(problems for _, problems in read)
    waiting: dict[str, list[_Read]] = defaultdict(list)
    for each in reversed(second):
        waiting[each.x].append(each)
    pairs, alone = [], []
    for each in first:
        if waiting[each.x]:
            pairs.append((each, waiting[each.x].pop()))
        else:
            alone.append(each.place)
    others = [each.place for those in waiting.values() for each in those]
    for places, own, other in ((alone, first, sources[1]), (others, second, sources[0])):
        if places and on_error == "stop":
            raise UserError(
                f"{places[0]}: {other} has no response to this prompt, nor to {len(places)} of "
                f"{len(own)} in all; --on_error=skip leaves them out"
            )
    if not pairs:
        raise UserError(f"{sources[0]} and {sources[1]} have no prompt in common")
    left_out = len(alone) + len(others)
    notes = [f"{left_out} responses are left out: the other file has none"] * bool(left_out)
    notes += _malformed(bad)
    if run:
        notes += _cut(run, judge, sum(a.long + b.long for a, b in pairs))
    return [(a.x if run else as_text(a.x), a.text, b.text) for a, b in pairs], notes


class _Read(NamedTuple):
    """Holds a row of a file: where it is, x, its response, and 1 if that is cut."""

    place: str
    x: str
    text: str
    long: int


def _responses(
    source: str, on_error: str, run: Run | None, judge: JudgeConfig | None
) -> tuple[list[_Read], int]:
    """The rows of a file, and how many have problems."""

    def parse(value: dict[str, Any]) -> tuple[str, str, int] | None:
        skipped = value.get("status", improving.OK) != improving.OK
        if skipped and not {"response", "responses"} & value.keys():
            return None
        last = value.get("responses")
        text = value.get("response", last[-1] if isinstance(last, list) and last else None)
        if not isinstance(text, str):
            raise ValueError(f"got {shown(text)}, expected text under 'response'")
        if run is None:
            return formats.prompt(Fields(value)), text, 0
        found = _generation(run, judge, value | {"responses": [text]})
        return found and (found[0], text, found[2])

    found = list(improving.parsed(source, parse, on_error))
    rows = [_Read(record.place, *value) for record, value, _ in found if value]
    return rows, sum(bool(problem) for *_, problem in found)
