"""Improves the prompts of a file as a job that may be ended anywhere and given again.

The input is read twice. First every row is checked, and nothing is sampled. Then shard after shard
is improved and written by `shards.Shards`, and at the end they are joined to the output. Only one
shard is in memory at a time. A row's draws depend on its number in the input alone, so it makes no
difference to them where a job was ended. Every process reads the input and samples.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from pit_jax import files
from pit_jax.data import datasets
from pit_jax.data.files import records
from pit_jax.data.files.json_values import shown
from pit_jax.data.files.records import Record
from pit_jax.errors import NotFiniteError, UserError
from pit_jax.method.improve import ImproveConfig, Trace
from pit_jax.method.roles import GAP_REWARD, PIT, POLICY, Role
from pit_jax.method.sampler import Response, Tokens
from pit_jax.run.run import Run
from pit_jax.run.shards import Shards
from pit_jax.runtime import metrics, processes

ON_ERROR = ("stop", "skip")
OK = "ok"
_ROLES = {"policy": POLICY, "pit": PIT, "gap_model": GAP_REWARD}
ROLES = tuple(_ROLES)
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
      x: its prompt.
      prompt: the ids of `Layout.policy_prompt`.
      response: the text that is improved, None to sample it.
    """

    number: int
    record: Record
    problem: str = ""
    x: str = ""
    prompt: Tokens = dataclasses.field(default_factory=list)
    response: str | None = None


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
      run: the run, whose configuration says how to improve.
      stages: the stages of ROLES.
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

    def __init__(
        self, run: Run, stages: Mapping[str, str], source: str, output: str, on_error: str
    ):
        self._run = run
        self._stages = dict(stages)
        self._source = source
        self._output = epath.Path(os.path.expanduser(output))
        self._load = functools.cache(run.load_frozen)
        self._writer = run.role(POLICY)
        pit = run.config.improve.method == "pit"
        self._role = run.role(PIT) if pit else self._writer
        readers = (self._writer, self._role, run.role(GAP_REWARD))
        self._readers: list[Role] = list(dict.fromkeys(readers))
        self._check_output()
        self.found = self._first_pass(on_error)
        self._improver = "pit" if run.config.improve.method == "pit" else "policy"
        roles = {"gap_model", self._improver} if self.found.bad < self.found.rows else set()
        roles |= {"policy"} if self.found.drafts else set()
        self.needed = {role: self._stages[role] for role in ROLES if role in roles}
        self._results = {
            role: run.result(stage, _ROLES[role]) for role, stage in self.needed.items()
        }
        self._models = {
            role: f"{stage}@{self._results[role]['model_step']}"
            for role, stage in self.needed.items()
        }
        count = -(-self.found.rows // run.config.shard_size)
        self._count = count
        self._reflects = "pit" in self.needed and run.reflects(self.needed["pit"])
        self._fields = (*FIELDS, REFLECTIONS) if self._reflects else FIELDS
        self.found.replaced &= {*self._fields} - {"response"}  # that is the first of `responses`
        self._shards = Shards(self._output, count, self._depends_on(on_error))

    def __call__(self) -> None:
        """Does what is left of the job, and prints how far it is and what became of the rows.

        Raises:
          UserError: if the folder of shards is of another job, a model doesn't fit the run, or the
            input has changed meanwhile.
        """
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
            for stage in self.needed.values():
                self._load(stage)
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
        for record, value, problem in parsed(self._source, self._parse, on_error):
            _add(digest, record)
            found.rows += 1
            found.bad += bool(problem)
            found.drafts += not problem and value[2] is None
            found.replaced |= (record.value or {}).keys() & {*FIELDS, REFLECTIONS}
        found.digest = digest.hexdigest()
        return found

    def _parse(self, value: dict[str, Any]) -> tuple[str, Tokens, str | None]:
        """Returns x, its prompt's ids, and the response."""
        run, lengths = self._run, self._role.lengths
        x = datasets.prompt(run.config.dataset, value)
        response = value.get("response")
        prompts = [(role, role.layout.policy_prompt(x)) for role in self._readers]
        for role, ids in prompts:
            if len(ids) > role.lengths.prompt:
                raise ValueError(
                    f"got a prompt of {len(ids)} tokens, expected at most {role.lengths.prompt}"
                )
        prompt = prompts[0][1]
        if not isinstance(response, str | None):
            raise ValueError(f"got {shown(response)}, expected text under 'response'")
        tokens = 0 if response is None else len(self._ids(response))
        if tokens > lengths.reference:
            raise ValueError(
                f"got a response of {tokens} tokens, expected at most {lengths.reference}, the "
                "window of references"
            )
        return x, prompt, response

    def _row(self, number: int, record: Record) -> Row:
        if record.value is None:
            return Row(number, record, record.problem)
        try:
            return Row(number, record, "", *self._parse(record.value))
        except ValueError as error:
            return Row(number, record, str(error))

    def _ids(self, response: str) -> Tokens:
        # As in training, where white space around responses is removed.
        return self._role.vocabulary.encode(response.strip())

    def _depends_on(self, on_error: str) -> dict[str, str]:
        """Returns all that the output's lines depend on, and which of them make a shard."""
        config = self._run.config
        improve = config.improve
        return {
            "input": f"{self.found.rows} rows, hash {self.found.digest[:12]}",
            **{
                role: f"{name}, result {_hash(self._results[role])}"
                for role, name in self._models.items()
            },
            "stage of the policy": self._stages["policy"],  # the key of drafts is made of it
            "seed": str(config.seed),
            **{
                f"improve.{field.name}": repr(getattr(improve, field.name))
                for field in dataclasses.fields(improve)
            },
            "prompts of Self-Refine": _hash(dataclasses.asdict(self._run.self_refine.prompts)),
            "lengths": repr(self._role.lengths),
            "dtype": self._role.network.dtype,
            **self._run.identity(POLICY),
            **self._of_other_roles(),
            "shard_size": str(config.shard_size),
            "on_error": on_error,
        }

    def _of_other_roles(self) -> dict[str, str]:
        """What roles with networks, vocabularies or windows of their own add to that."""
        run, policy = self._run, self._writer
        others = {name: run.role(name) for name in (PIT, GAP_REWARD)}
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
        run, gap_stage = self._run, self._stages["gap_model"]
        model = self._load(self._stages[self._improver])
        role = PIT if self._improver == "pit" else POLICY
        improver = run.improver(model, self._load(gap_stage), gap_stage, self._reflects, role)
        return improver(
            [row.x for row in rows],
            self._drafts(rows),
            [row.number for row in rows],
            run.key("improve", run.config.improve.method),
            run.config.improve,
        )

    def _drafts(self, rows: list[Row]) -> list[Response]:
        """Returns each row's y_0, and samples those that aren't given."""
        run, policy = self._run, self._stages["policy"]
        missing = [row for row in rows if row.response is None]
        sampled: Iterator[Response] = iter(())
        if missing:
            responses = self._writer.respond(
                self._load(policy),
                [row.prompt for row in missing],
                self._writer.widths.policy,
                [row.number for row in missing],
                run.key("improve", policy),
                run.config.improve.policy_sampling,
            )
            sampled = iter(responses)
        return [
            next(sampled) if row.response is None else self._given(row.response) for row in rows
        ]

    def _given(self, response: str) -> Response:
        return Response(self._ids(response), True, text=response.strip())

    def _line(self, row: Row, trace: Trace) -> dict[str, Any]:
        run = self._run
        if not all(map(math.isfinite, trace.gaps)):
            raise NotFiniteError(f"{row.record.place}: got a gap that isn't finite from the models")
        texts = [self._role.text(response) for response in trace.responses]
        encode, window = self._role.vocabulary.encode, self._role.lengths.reference
        cut = any(len(encode(text)) > window for text in texts[:-1])
        if row.response is not None:
            texts[0] = row.response  # as it was given, whatever the vocabulary makes of it
        line = self._others(row) | {
            "responses": texts,
            "ended": [response.ended for response in trace.responses],
            "gaps": trace.gaps,
            "best": trace.best,
            "response": texts[trace.final(run.config.improve.keep)],
            "stop_reason": trace.stop_reason,
            "truncated": cut or not all(response.ended for response in trace.responses),
            "models": self._models,
            "seed": run.config.seed,
            "settings": _settings(run.config.improve),
            "status": OK,
        }
        if self._reflects:
            improved = trace.responses[1:]
            line[REFLECTIONS] = [self._role.vocabulary.decode(each.reflection) for each in improved]
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
