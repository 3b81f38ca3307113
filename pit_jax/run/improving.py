"""Improves the prompts of a file as a job that may be ended anywhere and given again.

The input is read twice. First every row is checked, and nothing is sampled. Then shard after shard
is improved and written by `shards.Shards`, and at the end they are joined to the output. Only one
shard is in memory at a time. A row's draws depend on its number in the input alone, so it makes no
difference to them where a job was ended. Every process reads the input and samples.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from etils import epath

from pit_jax import files
from pit_jax.data.files import records
from pit_jax.data.files.records import Record
from pit_jax.errors import UserError
from pit_jax.method.improve import ImproveConfig, Trace
from pit_jax.run.improver import GAP_MODEL, PIT, POLICY, ROLE_OF, Asked, RunImprover
from pit_jax.run.shards import Shards
from pit_jax.runtime import metrics, owner, processes

ON_ERROR = ("stop", "skip")
OK = "ok"
# What a line of the output has beside the keys of its input.
FIELDS = (
    "responses",
    "ended",
    "gaps",
    "best",
    "response",
    "stop_reason",
    "truncated",
    "models",
    "seed",
    "settings",
    "status",
)
# And the reflection of each iteration, if the model writes one before its response.
REFLECTIONS = "reflections"

# Valid in JSON, and ends of lines for Python's splitlines.
_ESCAPED = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}


@dataclasses.dataclass(frozen=True)
class Row:
    """Holds a row of the input.

    Attributes:
      number: how many rows stand before it, those with a problem included; it names the draws.
      record: the record that the row is read from.
      problem: what is wrong with the row; empty if nothing is.
      asked: what is asked; None if something is wrong.
    """

    number: int
    record: Record
    problem: str = ""
    asked: Asked | None = None


@dataclasses.dataclass
class Found:
    """Says what the first pass over the input has found.

    Attributes:
      rows: number of rows.
      bad: number of those with a problem.
      drafts: number of rows whose response has to be sampled.
      replaced: keys of the input that the output has for itself.
      digest: a hash of all records.
    """

    rows: int = 0
    bad: int = 0
    drafts: int = 0
    replaced: set[str] = dataclasses.field(default_factory=set)
    digest: str = ""


def parsed(
    source: str, parse: Callable[[dict[str, Any]], Any], on_error: str
) -> Iterator[tuple[Record, Any, str]]:
    """Yields each record of a file, with what `parse` makes of its object or what is wrong with it.

    Args:
      source: what `records.records` takes.
      parse: raises ValueError for an object that it can't use.
      on_error: `stop` or `skip`.

    Raises:
      UserError: if the file can't be read or has no record; with `stop` also, once all of it is
        read, for the records that are wrong.
    """
    problems, empty = records.Problems("malformed rows"), True
    for record in records.records(source):
        empty, value, problem = False, None, record.problem
        if record.value is not None:
            try:
                value = parse(record.value)
            except ValueError as error:
                problem = str(error)
        if problem:
            problems.add(record.place, problem)
        yield record, value, problem
    if empty:
        raise UserError(f"{source}: is empty, expected at least one JSON object a line")
    if problems.total and on_error == "stop":
        raise UserError(problems.message())


class Job:
    """Improves the rows of a file by Algorithm 2.

    Args:
      improver: what improves; the configuration of its run says how.
      source: the input, as `records.records` takes it but for standard input.
      output: the file to write.
      on_error: `stop` refuses an input in which a row has a problem; `skip` leaves such rows as
        they are, with the problem as their `status`.

    Attributes:
      found: what the first pass over the input has found.
      needed: the stages of the roles that the rows need.

    Raises:
      UserError: if the output can't be written or is the input, a row has a problem, or a model
        that the rows need isn't trained.
    """

    def __init__(self, improver: RunImprover, source: str, output: str, on_error: str):
        self._improver = improver
        self._run = improver.run
        self._config = improver.run.config.improve
        self._source = source
        self._output = epath.Path(os.path.expanduser(output))
        self._check_output()
        self.found = self._first_pass(on_error)
        self.needed: dict[str, str] = {}
        if self.found.bad < self.found.rows:
            self.needed = improver.needed(self._config, self.found.drafts > 0)
        run = improver.run
        self._results = {
            role: run.result(stage, ROLE_OF[role]) for role, stage in self.needed.items()
        }
        self._models = {
            role: f"{stage}@{self._results[role]['model_step']}"
            for role, stage in self.needed.items()
        }
        count = -(-self.found.rows // run.config.shard_size)
        self._count = count
        self._reflects = PIT in self.needed and improver.reflects(self._config)
        self._fields = (*FIELDS, REFLECTIONS) if self._reflects else FIELDS
        self.found.replaced &= {*self._fields} - {"response"}  # that is the first of `responses`
        self._shards = Shards(self._output, count, self._depends_on(on_error))

    def __call__(self) -> None:
        """Does what is left of the job, and prints how far it is and what became of the rows.

        Raises:
          UserError: if the folder of shards is of another job, another process writes the output, a
            model doesn't fit the run, or the input has changed meanwhile.
        """
        lock = self._output.with_name(f"{self._output.name}.lock")
        with owner.Owner(self._output, "improve", lock, "--output"):
            self._improve_all()

    def _improve_all(self) -> None:
        total, size = self.found.rows, self._run.config.shard_size
        shard = self._shards.claim()
        begin = done = min(shard * size, total)
        self._tell(done)
        if self.found.replaced:
            names = ", ".join(sorted(self.found.replaced))
            print(f"note: the output has its own {names} in place of the input's")
        if begin:
            print(f"improve: continues at row {begin + 1} of {total}")
        if shard < self._count:
            for role in self.needed:
                self._improver.load(role)
        digest, started = hashlib.sha256(), time.monotonic()
        numbered = enumerate(_hashed(records.records(self._source), digest))
        collections.deque(itertools.islice(numbered, begin), maxlen=0)
        console = metrics.Console("improve", total, ("rows/s",), begin, unit="row")
        while rows := [self._row(*each) for each in itertools.islice(numbered, size)]:
            self._shards.write(shard, "".join(self._improve(rows)))
            shard, done = shard + 1, done + len(rows)
            self._tell(done)
            console.write(done, {"rows/s": (done - begin) / (time.monotonic() - started)})
        console.close()
        if processes.any_process(digest.hexdigest() != self.found.digest):
            self._shards.disown()
            raise UserError(
                f"{self._source}: changed while it was read; delete {self._shards.folder} to "
                "start again"
            )
        if processes.is_first():
            summary = _summary(map(json.loads, self._shards.lines()), self._run.config.improve.keep)
            self._shards.join()
            print(f"{summary} -> {self._output}")

    def describe(self) -> str:
        """Returns a line about what there is to do."""
        found = self.found
        return (
            f"{found.rows} rows in {self._count} shards: {found.rows - found.bad} to improve, of "
            f"which {found.drafts} need a response; {found.bad} to skip"
        )

    # The input

    def _check_output(self) -> None:
        output = self._output
        if self._source == "-":
            raise UserError("--input: got '-', expected a file, since it is read twice")
        if output.is_dir() or (files.is_local(output) and not output.absolute().parent.is_dir()):
            raise UserError(f"--output: can't write {output}, expected a file in a folder there is")
        for path in records.find(self._source):
            if _is_same(path, output):
                raise UserError(f"--output: got {output}, expected another file than --input")

    def _first_pass(self, on_error: str) -> Found:
        found, digest = Found(), hashlib.sha256()
        for record, value, problem in parsed(self._source, self._improver.read, on_error):
            _add(digest, record)
            found.rows += 1
            found.bad += bool(problem)
            found.drafts += not problem and value.response is None
            found.replaced |= (record.value or {}).keys() & {*FIELDS, REFLECTIONS}
        found.digest = digest.hexdigest()
        return found

    def _row(self, number: int, record: Record) -> Row:
        if record.value is None:
            return Row(number, record, record.problem)
        try:
            return Row(number, record, "", self._improver.read(record.value))
        except ValueError as error:
            return Row(number, record, str(error))

    def _depends_on(self, on_error: str) -> dict[str, str]:
        """Returns all that the output's lines depend on, and which of them make a shard."""
        config, improver = self._run.config, self._improver
        improve = self._config
        return {
            "input": f"{self.found.rows} rows, hash {self.found.digest[:12]}",
            **{
                role: f"{name}, result {_hash(self._results[role])}"
                for role, name in self._models.items()
            },
            "stage of the policy": improver.stages[POLICY],  # the key of drafts is made of it
            "seed": str(config.seed),
            **{
                f"improve.{field.name}": repr(getattr(improve, field.name))
                for field in dataclasses.fields(improve)
            },
            "prompts of Self-Refine": _hash(dataclasses.asdict(self._run.self_refine.prompts)),
            "lengths": repr(improver.role(self._config).lengths),
            "dtype": improver.role(self._config).network.dtype,
            **self._run.identity(POLICY),
            **self._of_other_roles(),
            "shard_size": str(config.shard_size),
            "on_error": on_error,
        }

    def _of_other_roles(self) -> dict[str, str]:
        """What roles with networks, vocabularies or windows of their own add to that."""
        run = self._run
        policy = run.role(POLICY)
        others = {name: run.role(name) for name in (PIT, ROLE_OF[GAP_MODEL])}
        return {
            f"{what} of {name}": text
            for name, role in others.items()
            if role is not policy
            for what, text in {**run.identity(name), "lengths": repr(role.lengths)}.items()
        }

    def _tell(self, done: int) -> None:
        """Sets what is said when a signal ends the process."""
        self._run.signals.kept = (
            f"{done} of {self.found.rows} rows are done; give the same command again to continue"
        )

    # Sampling

    def _improve(self, rows: list[Row]) -> Iterator[str]:
        """Yields each row's line of the output."""
        good = [row for row in rows if not row.problem]
        traces = iter(self._traces(good) if good else [])
        for row in rows:
            line = self._skipped(row) if row.problem else self._line(row, next(traces))
            yield json.dumps(line, ensure_ascii=False).translate(_ESCAPED) + "\n"

    def _traces(self, rows: list[Row]) -> list[Trace]:
        asked = [row.asked for row in rows if row.asked]
        return self._improver(asked, [row.number for row in rows], self._config)

    def _line(self, row: Row, trace: Trace) -> dict[str, Any]:
        assert row.asked is not None
        improver = self._improver
        improver.check(trace, row.record.place)
        texts = improver.texts(trace, row.asked)
        line = self._others(row) | {
            "responses": texts,
            "ended": [response.ended for response in trace.responses],
            "gaps": trace.gaps,
            "best": trace.best if improver.has_gaps else None,
            "response": texts[trace.final(self._config.keep)],
            "stop_reason": trace.stop_reason,
            "truncated": improver.is_truncated(trace),
            "models": self._models,
            "seed": self._run.config.seed,
            "settings": _settings(self._config),
            "status": OK,
        }
        if self._reflects:
            line[REFLECTIONS] = improver.reflections(trace)
        return line

    def _skipped(self, row: Row) -> dict[str, Any]:
        given = {k: value for k, value in (row.record.value or {}).items() if k == "response"}
        return self._others(row) | given | {"status": f"{row.record.place}: {row.problem}"}

    def _others(self, row: Row) -> dict[str, Any]:
        """What a row has beside the fields of the output."""
        return {k: v for k, v in (row.record.value or {}).items() if k not in self._fields}


def _settings(config: ImproveConfig) -> dict[str, Any]:
    """What the configuration says otherwise than by default."""
    default, given = dataclasses.asdict(ImproveConfig()), dataclasses.asdict(config)
    return {name: value for name, value in given.items() if value != default[name]}


def _is_same(path: str, output: epath.Path) -> bool:
    """Whether two paths are of one file, also through links."""
    if not (files.is_local(path) and files.is_local(output)):
        return path == os.fspath(output)
    if os.path.realpath(path) == os.path.realpath(output):
        return True
    return output.exists() and os.path.samefile(path, output)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _add(digest: Any, record: Record) -> None:
    """Adds a record to a hash: its object as it would be written, or its problem."""
    text = record.problem if record.value is None else json.dumps(record.value)
    digest.update(f"{text}\n".encode())


def _hashed(found: Iterable[Record], digest: Any) -> Iterator[Record]:
    for record in found:
        _add(digest, record)
        yield record


def _summary(lines: Iterable[dict[str, Any]], keep: str) -> str:
    """What became of all rows, in one line."""
    counts: collections.Counter[str] = collections.Counter()
    reasons: collections.Counter[str] = collections.Counter()
    for line in lines:
        if line["status"] != OK:
            counts["skipped"] += 1
            continue
        counts["prompts"] += 1
        counts["changed"] += line["response"] != line["responses"][0]
        counts["steps"] += len(line["gaps"])
        counts["better"] += sum(gap > 0 for gap in line["gaps"])
        counts["worse"] += sum(gap < 0 for gap in line["gaps"])
        counts["truncated"] += line["truncated"]
        reasons[line["stop_reason"]] += 1
    what = "the best response by gap" if keep == "best" else "the last response"
    stopped = ", ".join(f"{count} by {reason}" for reason, count in sorted(reasons.items()))
    parts = [
        f"{counts['prompts']} prompts, each with {what}: {counts['changed']} changed",
        f"of {counts['steps']} steps {counts['better']} better and {counts['worse']} worse by gap",
        f"stopped: {stopped or 'none'}",
    ]
    if counts["truncated"]:
        parts.append(f"{counts['truncated']} truncated")
    if counts["skipped"]:
        parts.append(f"{counts['skipped']} skipped, whose status says why")
    return "; ".join(parts)
