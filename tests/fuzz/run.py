"""Gives mutated lines to every reader: `python -m tests.fuzz.run --lines 1000000 --seed 0`.

Readers are those of training data, of `improve --input` and of `evaluate --generations`. No reader
may raise anything but a UserError, or hang. What `records` gives has to be what `json` alone reads,
and what it refuses has to be what tests.fuzz.oracle refuses. Every text that is accepted has to be
a text of its line.
"""

import argparse
import collections
import functools
import gzip
import json
import math
import pathlib
import random
import signal
import tempfile
import time
import types

import pyarrow as pa
from pyarrow import parquet

from pit_jax.data.datasets import DatasetConfig
from pit_jax.data.files import records
from pit_jax.data.files.readers import read_hh, read_preferences, read_summaries
from pit_jax.data.layouts import Layout, Lengths
from pit_jax.data.vocabularies.load import load
from pit_jax.errors import UserError
from pit_jax.evaluation import generations
from pit_jax.method.improve import ImproveConfig
from pit_jax.method.roles import Role
from pit_jax.run.improver import ROLES, RunImprover
from tests.fuzz import mutations, oracle

READERS = {
    "preferences": read_preferences,
    "hh": read_hh,
    "posts": read_summaries,
    "articles": functools.partial(read_summaries, source="articles"),
}
BYTES = load("bytes")
# What the two commands ask of a run before they sample or judge anything.
ROLE = Role(network=None, layout=Layout(BYTES), lengths=Lengths(99, 30, 31), sampler=None)
RUN = types.SimpleNamespace(
    config=types.SimpleNamespace(
        dataset=DatasetConfig("preferences", 0, 0, 0, path="none"), improve=ImproveConfig()
    ),
    role=lambda name: ROLE,
)
IMPROVER = RunImprover(RUN, {role: role for role in ROLES})
LINES = 100
SECONDS = 20
FIRST = b'{"first": 1}'
Counts = collections.Counter


def zstd(data: bytes) -> bytes:
    return pa.compress(data, codec="zstd", asbytes=True)


def fuzz(lines: int, seed: int, folder: pathlib.Path) -> Counts:
    """Reads as many mutated lines, in files of LINES; raises AssertionError for the first fault."""
    counts: Counts = collections.Counter()
    while counts["lines"] < lines:
        numbers = random.Random(f"{seed} {counts['files']}")
        part = [mutations.mutated(numbers) for _ in range(LINES)]
        path = folder / f"{numbers.choice('ab')}.jsonl"
        kind = numbers.choice(_KINDS)
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            kind(path, part, numbers, counts)
        except Exception as error:
            error.add_note(f"file {counts['files']} of seed {seed}, {kind.__name__}")
            raise
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        counts["files"] += 1
        counts["lines"] += LINES
    return counts


def as_lines(path, part, numbers, counts) -> None:
    """Lines after a good first one, packed or not: every line is judged."""
    end = numbers.choice((b"\n", b"\r\n"))
    data = end.join([FIRST, *part]) + numbers.choice((b"", end))
    pack = numbers.choice((bytes, bytes, gzip.compress, zstd))
    path.write_bytes(numbers.choice((b"", b"\xef\xbb\xbf")) + data if pack is bytes else pack(data))
    lines = {n: line for n, line in enumerate(data.split(b"\n"), 1) if line.strip()}
    found = list(records.records(str(path)))
    assert [record.number for record in found] == list(lines)
    for record in found:
        expected = oracle.strict(lines[record.number])
        assert record.value == expected, (record, lines[record.number])
        assert (expected is None) == bool(record.problem)
    _counted(found, counts)
    _readers(path, [record.value for record in found], counts)


def as_array(path, part, numbers, counts) -> None:
    """The lines as the values of an array, which `json` alone has to read in the same way."""
    kept = [line for line in part if oracle.strict(line) is not None or numbers.random() < 0.03]
    data = b"[{}, " + numbers.choice((b",", b",\n", b"\r\n , ")).join(kept) + b"]"
    path.write_bytes(data)
    found = list(records.records(str(path)))
    try:
        whole = json.loads(data.decode("utf-8", "surrogateescape"), parse_int=_integer)
    except (ValueError, RecursionError):
        assert found[-1].problem, "an array that isn't JSON has to end with a problem"
    else:
        for value, record in zip(whole, found, strict=True):
            if record.problem:
                assert oracle.strict(_dumped(value)) is None or "twice" in record.problem, record
            else:
                assert value == record.value
    _counted(found, counts)
    _readers(path, [record.value for record in found], counts)


def as_table(path, part, numbers, counts) -> None:
    """A parquet or Arrow file, whole, cut short, or with other bits, which it may not notice."""
    rows = [{"text": line.decode("utf-8", "replace"), "n": n} for n, line in enumerate(part)]
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows)
    make = numbers.choice((pa.ipc.new_stream, pa.ipc.new_file, parquet.ParquetWriter))
    with make(sink, table.schema) as writer:
        writer.write_table(table, 10)
    data = bytearray(sink.getvalue().to_pybytes())
    damage = numbers.choice(("none", "end", "bits"))
    if damage == "end":
        del data[numbers.randrange(8, len(data)) :]
    elif damage == "bits":
        for at in numbers.choices(range(8, len(data)), k=numbers.choice((1, 2, 5))):
            data[at] ^= 1 << numbers.randrange(8)
    path.write_bytes(data)
    found = list(records.records(str(path)))
    if damage != "bits":
        values = [record.value for record in found if record.value is not None]
        assert values == rows[: len(values)]
        assert (len(values) == len(rows)) == (len(found) == len(values))
        assert damage == "end" or values == rows
    _counted(found, counts)


def as_bytes(path, part, numbers, counts) -> None:
    """Files whose beginnings, ends and packing are damaged too."""
    data = b"\n".join(part)
    if numbers.random() < 0.5:
        data = numbers.choice((gzip.compress, zstd))(data)
        data = data[: numbers.randint(1, len(data))] + numbers.choice((b"", b"\0\0", b"more"))
    path.write_bytes(data)
    found = list(records.records(str(path)))
    assert all((record.value is None) == bool(record.problem) for record in found)
    _counted(found, counts)
    _readers(path, [record.value for record in found], counts)


_KINDS = (as_lines,) * 6 + (as_array, as_table, as_bytes, as_bytes)


def _integer(digits: str) -> float:
    return int(digits) if len(digits) < 4000 else math.inf


def _dumped(value) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _counted(found, counts: Counts) -> None:
    counts["records"] += len(found)
    counts["objects"] += sum(record.value is not None for record in found)
    for record in found:
        assert record.problem.isprintable() and len(record.problem) < 500, record


def _commands(value, counts: Counts) -> None:
    """Reads a record as a row of `improve` and of `evaluate`, whose texts have to stay theirs."""
    for name, parse in (
        ("improve", IMPROVER.read),
        ("evaluate", functools.partial(generations._generation, RUN, None)),
    ):
        try:
            found = parse(value)
        except ValueError as error:
            assert str(error).isprintable() and len(str(error)) < 500, (name, value)
            continue
        if found is None:
            continue
        if name == "improve":
            found = found.x, [found.response] * (found.response is not None)
        texts = found[1]
        given = value["responses"] if name == "evaluate" else [value.get("response")]
        assert texts == [text for text in given if text is not None], (name, value)
        assert oracle.is_prompt(found[0], value), (name, found[0], value)
        counts[name] += 1


def _readers(path, values, counts: Counts) -> None:
    """Reads a file as every format: each example is of a record of its own, in their order."""
    for value in values:
        if value is not None:
            _commands(value, counts)
    for name, read in READERS.items():
        reading = read(str(path), on_error="skip")
        assert reading.read == len(values) == len(reading.examples) + sum(reading.dropped.values())
        waiting = iter(value for value in values if value is not None)
        for example in reading.examples:
            assert any(oracle.is_from(example, value) for value in waiting), (name, example)
        counts[name] += len(reading.examples)
        if reading.dropped.get("malformed"):
            try:
                read(str(path))
            except UserError as error:
                assert str(error).startswith(reading.malformed[0])
            else:
                raise AssertionError(f"{name}: malformed lines and no UserError")


def _too_long(*_):
    raise AssertionError(f"a file of {LINES} lines took over {SECONDS} s of processor time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGVTALRM, _too_long)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts = fuzz(options.lines, options.seed, pathlib.Path(folder))
    print(f"seed {options.seed}, {time.monotonic() - start:.0f} s: {dict(counts)}")


if __name__ == "__main__":
    main()
