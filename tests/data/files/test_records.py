"""Records of files of every kind: the same objects from each, and what can't be read, in a line."""

import bz2
import codecs
import datetime
import decimal
import gzip
import io
import json
import lzma
import os
import random
import sys
import threading
import tracemalloc
import types

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import feather, parquet

from pit_jax.data.files import json_stream, json_values, records, tables
from pit_jax.data.files.records import Problems, Record, find
from pit_jax.errors import UserError
from tests import fake_bucket

ROWS = [
    {"prompt": "tea 1?", "chosen": "yes", "n": 1},
    {"prompt": "línea\u2028two \U0001f375", "chosen": "a\n\u0085\x0b\x00b", "n": -2},
    {"prompt": "", "chosen": '"[{\\', "n": 12345678901234567},
]


def lines(rows, end=b"\n"):
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + end for row in rows)


def zstd(data):
    return pa.compress(data, codec="zstd", asbytes=True)


def indented(rows):
    return json.dumps(rows, indent=2).encode()


def objects(rows):
    return b"\n".join(map(indented, rows))


def to_parquet(rows):
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def to_feather(rows):
    file = io.BytesIO()
    feather.write_feather(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def to_stream(rows):
    file = io.BytesIO()
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=300)
    return file.getvalue()


KINDS = {
    "lines": lines,
    "lines without an end": lambda rows: lines(rows)[:-1],
    "CRLF": lambda rows: codecs.BOM_UTF8 + lines(rows, b"\r\n"),
    "escaped": lambda rows: "\n\n".join(map(json.dumps, rows)).encode(),
    "array": lambda rows: json.dumps(rows).encode(),
    "array in UTF-8": lambda rows: codecs.BOM_UTF8 + json.dumps(rows, ensure_ascii=False).encode(),
    "indented array": lambda rows: indented(rows).replace(b"\n", b"\r\n") + b"\n\n",
    "indented objects": objects,
    "gzip": lambda rows: gzip.compress(lines(rows)),
    "gzip twice": lambda rows: gzip.compress(gzip.compress(lines(rows))),
    "zstd": lambda rows: zstd(lines(rows)),
    "bzip2 of an array": lambda rows: bz2.compress(indented(rows)),
    "xz of gzip": lambda rows: lzma.compress(gzip.compress(lines(rows)), preset=0),
    "parquet": to_parquet,
    "feather": to_feather,
    "arrow stream": to_stream,
    "arrow stream in zstd": lambda rows: zstd(to_stream(rows)),
}
IN_ROWS = ("array", "indented", "bzip2", "parquet", "feather", "arrow")


def read(folder, data, name="file"):
    path = folder / name
    path.write_bytes(data)
    return list(records.records(str(path)))


def problem(folder, data):
    """The only record of a file that can't be read: its number and problem."""
    (record,) = read(folder, data)
    assert record.value is None and record.problem.isprintable()
    return record.number, record.problem


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["a b.jsonl", "ü.gz", "x.parquet"])
def test_every_kind_gives_the_same_objects(tmp_path, kind, name):
    found = read(tmp_path, KINDS[kind](ROWS), name)
    assert [record.value for record in found] == ROWS
    step = 2 if kind == "escaped" else 1
    row = "row " if kind.startswith(IN_ROWS) else ""
    places = [f"{tmp_path}/{name}:{row}{1 + step * n}" for n in range(3)]
    assert [record.place for record in found] == places


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
ANY = st.recursive(
    LEAVES | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(TEXT, ANY, max_size=3).map(lambda row: {"some text": "a", **row})
TYPED = st.fixed_dictionaries(
    {
        "text": st.none() | TEXT,
        "number": st.none() | st.integers(-(2**63), 2**63 - 1),
        "float": st.floats(allow_nan=False, allow_infinity=False),
        "turns": st.lists(st.fixed_dictionaries({"role": TEXT, "content": TEXT}), max_size=2),
        "true": st.booleans(),
    }
)


@settings(max_examples=30)
@given(st.lists(OBJECTS, max_size=4))
def test_any_objects_come_back_from_json(tmp_path_factory, rows):
    for kind, write in KINDS.items():
        if not {"parquet", "feather", "arrow"} & set(kind.split()):
            found = read(tmp_path_factory.getbasetemp(), write(rows))
            assert [(r.value, r.problem) for r in found] == [(row, "") for row in rows], kind


@settings(max_examples=40)
@given(st.lists(TYPED, min_size=1, max_size=4))
def test_any_rows_come_back_from_tables(tmp_path_factory, rows):
    # A column needs one value at least, or its type isn't known.
    turns = [{"role": "", "content": ""}]
    rows = [*rows, {"text": "", "number": 0, "float": 0.0, "turns": turns, "true": True}]
    for kind, write in KINDS.items():
        if {"parquet", "feather", "arrow"} & set(kind.split()):
            found = read(tmp_path_factory.getbasetemp(), write(rows))
            assert [r.value for r in found] == rows, kind


@pytest.mark.parametrize("kind", ["array", "indented objects", "gzip", "arrow stream"])
def test_what_lies_across_the_end_of_a_buffer_is_whole(tmp_path, kind):
    numbers = random.Random(0)
    rows = [{"text": "é" * numbers.randrange(9000), "n": n} for n in range(200)]
    assert [record.value for record in read(tmp_path, KINDS[kind](rows))] == rows


# --- what can't be read ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            lines(ROWS).decode().encode("utf-16"),
            "got UTF-16, expected UTF-8, which `iconv -f UTF-16",
        ),
        (lines(ROWS).decode().encode("utf-16-be"), "got UTF-16, expected UTF-8"),
        (lines(ROWS).decode().encode("utf-16-le"), "got UTF-16, expected UTF-8"),
        (
            lines(ROWS).decode().encode("utf-32"),
            "got UTF-32, expected UTF-8, which `iconv -f UTF-32",
        ),
        (gzip.compress(lines(ROWS).decode().encode("utf-16")), "got UTF-16, expected UTF-8"),
        (
            b"prompt,chosen\ntea,yes\n",
            "got a table as text with the columns 'prompt,chosen', expected",
        ),
        (b'\xef\xbb\xbf"prompt"\t"chosen"\r\ntea\tyes', "got a table as text with the columns"),
        (b"PK\x03\x04....", "got a zip archive, expected the files in it"),
        (gzip.compress(b"a.jsonl".ljust(257, b"\0") + b"ustar\0"), "got a tar archive, expected"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "got a pointer of Git LFS, expected the",
        ),
        (b"\n<!DOCTYPE html>\n<html>", "got a web page, expected the file that it links to"),
        (b"FEA1....", "got a Feather file of version 1, expected version 2"),
        (b"PAR1....", "got a parquet file that is damaged ("),
        (b"ARROW1\0\0", "got an arrow file that is damaged ("),
        (b"\xff\xff\xff\xff\x10", "got an arrow stream file that is damaged ("),
        (gzip.compress(to_parquet(ROWS)), "got a packed parquet file, expected it unpacked"),
        (b"\x1f\x8b", "got a gzip file that breaks off ("),
        (zstd(lines(ROWS))[:-3], "got a zstd file that breaks off (Truncated compressed stream)"),
        (b"\x28\xb5\x2f\xfd\xff\xff\xff\xff", "got a zstd file that breaks off ("),
        (b"BZhello", "got a bzip2 file that breaks off (Invalid data stream)"),
        (lzma.compress(lines(ROWS))[:30], "got a xz file that breaks off ("),
        (
            lines([{k: [row[k] for row in ROWS] for k in ROWS[0]}]),
            "got a table of columns ['prompt'",
        ),
        (
            indented({k: {"0": "a", "1": "b"} for k in ROWS[0]}),
            "got a table of columns ['prompt', ",
        ),
        (
            lines([{"0": ROWS[0], "1": ROWS[1]}]),
            "got a table of columns ['0', '1'], expected an obj",
        ),
        (b"\r".join(lines([row]).strip() for row in ROWS), "got lines that end with CR alone"),
        (b'\x0c[{"a": 1}]', "got '\\x0c[{\"a\": 1}]' (Expecting value, column 1), expected a JSON"),
        (b'{"a":' + b"[" * 100_000, "got brackets nested too deeply, expected a JSON object of at"),
        (
            b'[{"a":' + b"[" * 100_000,
            "got brackets nested too deeply, expected a JSON object of at",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",  # packed bytes have a date
)
def test_what_cannot_be_read_is_one_line(tmp_path, data, message):
    number, found = problem(tmp_path, data)
    assert found.startswith(message) and number == 1 and len(found) < 350


def test_packed_too_often(tmp_path):
    data = lines(ROWS)
    for _ in range(5):
        data = gzip.compress(data, mtime=0)
    assert problem(tmp_path, data) == (1, "got a file packed over 4 times, expected once at most")


@pytest.mark.parametrize(
    ("data", "count", "message"),
    [
        (b'[{"a": 1}, {"a": 2}', 2, "got the end of the file after a value, expected ',' or ']'"),
        (b'[{"a": 1}, {"a": ', 1, "got the end of the file (Expecting value), expected JSON"),
        (b'[{"a": 1}, ]', 1, "got ']' (Expecting value), expected JSON"),
        (b'[{"a": 1} {"b": 2}]', 1, "got '{\"b\": 2}]' after a value, expected ',' or ']'"),
        (b'[{"a": 1}, {b: 2}' + b" " * 99 + b"]", 1, "got 'b: 2}      "),
        (
            b'[{"a": 1}]\n[{"b": 2}]',
            1,
            "got '[{\"b\": 2}]' after the end of an array, expected nothi",
        ),
        (b'[\n{"a": 1}, 7]', 1, "got 7, expected a JSON object"),
        (b'[\n{"a": 1}, {"b": "\xff"}]', 1, "got byte 0xff at position 7, expected UTF-8 text"),
        (b'[{"a": 1} 3]', 1, "got '3]' after a value, expected ',' or ']'; from there on the"),
        (b'[\n{"a": 1}, {"b": NaN}]', 1, "got the number NaN, which JSON doesn't have"),
        (b'[\n{"a": 1}, {"b": "\\ud800"}]', 1, "got half a surrogate pair, \\ud800, under 'b'"),
        (b'{\n"a": 1}\n{"b": 2', 1, "got the end of the file (Expecting ',' delimiter), expected"),
        (
            b"[" + b'{"a": 1},' * 9999,
            9999,
            "got the end of the file (Expecting value), expected JSON",
        ),
    ],
)
def test_an_array_is_read_up_to_where_it_is_wrong(tmp_path, data, count, message):
    found = read(tmp_path, data)
    assert all(record.value and not record.problem for record in found[:count])
    assert len(found) == count + 1 and found[0].value == {"a": 1}
    assert found[-1].place == f"{tmp_path}/file:row {count + 1}"
    assert found[-1].problem.startswith(message)


def test_what_follows_a_row_that_is_no_object_is_read(tmp_path):
    found = read(tmp_path, b'[{"a": 1}, null, {"a": 1, "a": 2}, {"a": 3}]')
    assert [record.value for record in found] == [{"a": 1}, None, None, {"a": 3}]
    assert found[2].problem == "got the key 'a' twice, expected every key once"


def test_what_follows_a_row_with_a_control_character_is_read(tmp_path):
    found = read(tmp_path, b'[{"a": 1}, {"a": "x\ny"}, {"a": 3}]')
    assert [record.value for record in found] == [{"a": 1}, None, {"a": 3}]
    assert found[1].problem.startswith('got \'{"a": "x\\ny"}\' (Invalid control character at')


def test_numbers_lie_across_the_end_of_a_buffer(tmp_path):
    start = b'[{"a": 1},'.ljust(json_stream._READ_CHARS - 2)
    found = read(tmp_path, start + b'1234, {"b": 2}]')
    assert [record.value for record in found] == [{"a": 1}, None, {"b": 2}]
    assert found[1].problem == "got 1234, expected a JSON object"


def test_lines_that_begin_with_a_bracket_are_lines(tmp_path):
    found = read(tmp_path, b'[1]\n{"a": 1}\n[{}]\n')
    assert [(record.number, record.value) for record in found] == [
        (1, None),
        (2, {"a": 1}),
        (3, None),
    ]
    found = read(tmp_path, b'{\n{"a": 1}\n')
    assert [(record.number, record.value) for record in found] == [(1, None), (2, {"a": 1})]
    found = read(tmp_path, b'one, two\n{"a": 1}\n')
    assert [(record.number, record.value) for record in found] == [(1, None), (2, {"a": 1})]


@pytest.mark.parametrize(
    "data", [b"", b"\n\n", b" \r\n", b"[]", b"[\n]\n", codecs.BOM_UTF8, zstd(b"")]
)
def test_files_without_records(tmp_path, data):
    assert read(tmp_path, data) == []


def test_turns_are_no_columns(tmp_path):
    turns = [{"role": "user", "content": "hi"}]
    for row in ({"prompt": turns, "chosen": turns}, {"prompt": "a", "responses": ["b"]}, {}):
        json_values.check_columns(row)


def test_a_value_of_an_array_may_be_as_large_as_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 100_000)
    row = {"a": "b" * 90_000}
    assert [r.value for r in read(tmp_path, indented([row, row]))] == [row, row]
    number, found = problem(tmp_path, indented([{"a": "b" * 400_000}, row]))
    assert (number, found) == (1, "got a value of over 100000 bytes, expected 100000 bytes at most")


@pytest.mark.parametrize(
    "kind", ["lines", "indented array", "gzip", "zstd", "parquet", "arrow stream"]
)
def test_a_large_file_is_never_in_memory_whole(tmp_path, kind):
    rows = [{"text": f"{n:05} " * 600} for n in range(5_000)]  # 18 MB
    path = tmp_path / "file"
    path.write_bytes(KINDS[kind](rows))
    tracemalloc.start()
    arrow = pa.total_allocated_bytes()
    count = peak_arrow = 0
    for record in records.records(str(path)):
        count += len(record.value["text"])
        peak_arrow = max(peak_arrow, pa.total_allocated_bytes() - arrow)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == sum(len(row["text"]) for row in rows)
    assert max(peak, peak_arrow) < (16 << 20 if kind in ("parquet", "arrow stream") else 8 << 20)


# --- tables ------------------------------------------------------------------------------------


def test_values_of_tables_become_values_of_json(tmp_path):
    table = pa.table(
        {
            "day": [datetime.date(2024, 2, 29)],
            "at": [datetime.datetime(2024, 2, 29, 12, 30)],
            "price": [decimal.Decimal("1.50")],
            "bytes": pa.array(["é".encode()], pa.binary()),
            "code": pa.array(["a"]).dictionary_encode(),
            "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int8())),
            "inner": [{"at": datetime.time(1, 2)}],
        }
    )
    parquet.write_table(table, tmp_path / "file")
    (record,) = records.records(str(tmp_path / "file"))
    assert record.value == {
        "day": "2024-02-29",
        "at": "2024-02-29T12:30:00",
        "price": "1.50",
        "bytes": "é",
        "code": "a",
        "map": [["k", 1]],
        "inner": {"at": "01:02:00"},
    }


def test_a_row_that_is_no_json_is_named_and_loses_no_other(tmp_path):
    def found(column):
        table = pa.table({"a": column})
        with pa.ipc.new_file(str(tmp_path / "file"), table.schema) as writer:
            writer.write_table(table)
        return [r.value or r.problem for r in records.records(str(tmp_path / "file"))]

    message = "got the number nan under 'a', expected one that JSON has"
    assert found([0.5, float("nan"), 2.0]) == [{"a": 0.5}, message, {"a": 2.0}]
    message = "got b'\\xff' under 'a', expected text, numbers, lists or objects"
    assert found([b"b", b"\xff"]) == [{"a": "b"}, message]
    data = pa.py_buffer(b"ab\xff")
    offsets = pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 3)))
    first, second = found(pa.Array.from_buffers(pa.string(), 2, [None, offsets, data]))
    assert first == {"a": "a"} and second.startswith(
        "got a row that can't be read (In column 0: Inv"
    )


def test_an_arrow_file_whose_offsets_lead_out_of_it(tmp_path):
    data = to_stream([{"a": "b"}, {"a": "c"}, {"a": "d"}])
    offsets = [b"".join(n.to_bytes(4, "little") for n in (0, 1, n, 3)) for n in (2, 1 << 30)]
    assert data.count(offsets[0]) == 1
    # Arrow itself doesn't look, and reads far outside of what it has.
    first, *others = read(tmp_path, data.replace(*offsets))
    assert first.value == {"a": "b"} and len(others) == 2
    for record in others:
        assert record.problem.startswith("got a row that can't be read (In column 0: ")


def test_two_columns_of_one_name(tmp_path):
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["x", "x"])
    parquet.write_table(table, tmp_path / "file")
    (record,) = records.records(str(tmp_path / "file"))
    assert record.problem == "got the column 'x' twice, expected every name once"


def test_a_damaged_table_keeps_the_rows_before(tmp_path):
    data = bytearray(to_stream(ROWS))
    found = read(tmp_path, bytes(data[:-8]) + b"\xff\xff\xff\xff\x10\0\0\0abc")
    assert [record.value for record in found[:-1]] == ROWS
    assert found[-1].problem.startswith("got an arrow stream file that is damaged (")


def save(folder, shards):
    """Writes what `save_to_disk` of `datasets` writes."""
    folder.mkdir(parents=True)
    names = [f"data-{n:05}-of-{len(shards):05}.arrow" for n in range(len(shards))]
    for name, rows in zip(names, shards, strict=True):
        (folder / name).write_bytes(to_stream(rows))
    files = [{"filename": name} for name in names]
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": "train"}))
    return str(folder)


def test_a_saved_dataset(tmp_path, monkeypatch):
    path = save(tmp_path / "bucket" / "saved", [ROWS[:2], ROWS[2:]])
    found = list(records.records(path))
    assert [record.value for record in found] == ROWS
    assert found[2].place == f"{path}:row 3"
    fake_bucket.install(monkeypatch, tmp_path)
    assert [record.value for record in records.records("gs://bucket/saved")] == ROWS


def test_splits_of_a_saved_dataset(tmp_path):
    folder = tmp_path / "saved"
    paths = [save(folder / split, [ROWS]) for split in ("train", "test")]
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(UserError) as error:
        list(records.records(str(folder)))
    assert str(error.value) == (
        f"{folder}: got several splits, expected one of {paths[0]}, {paths[1]}"
    )
    (folder / "dataset_dict.json").write_text('{"splits": ["test"]}')
    assert [record.value for record in records.records(str(folder))] == ROWS
    (folder / "dataset_dict.json").write_text('{"splits": ')
    with pytest.raises(
        UserError, match="saved: got a folder whose state.json or dataset_dict.json"
    ):
        list(records.records(str(folder)))
    (folder / "test" / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(UserError, match=r"can't be read: No such file or directory$"):
        list(records.records(paths[1]))


def test_a_dataset_of_the_hub(monkeypatch):
    calls = []

    def load_dataset(*args, **options):
        calls.append((args, options))
        if args[0] == "none":
            raise ConnectionError("no network\nat all")
        return iter(ROWS)

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    found = list(records.records("hf://datasets/owner/na-me.2"))
    assert [record.value for record in found] == ROWS
    assert found[0].place == "hf://datasets/owner/na-me.2:row 1"
    next(records.records(["hf://datasets/owner/name/config@v1:test_sft"]))
    next(records.records("hf://datasets/imdb:train[:10%]"))
    assert calls == [
        (("owner/na-me.2", None), {"split": "train", "revision": None, "streaming": True}),
        (("owner/name", "config"), {"split": "test_sft", "revision": "v1", "streaming": True}),
        (("imdb", None), {"split": "train[:10%]", "revision": None, "streaming": False}),
    ]
    with pytest.raises(UserError, match="^hf://datasets/none: can't be read: no network$"):
        next(records.records("hf://datasets/none"))
    with pytest.raises(
        UserError, match="^hf://datasets/a/b/c/d: expected hf://datasets/OWNER/NAME"
    ):
        next(records.records("hf://datasets/a/b/c/d"))


@pytest.mark.parametrize(
    ("package", "data", "message"),
    [
        (
            "pyarrow",
            to_parquet(ROWS),
            "got a parquet file, which needs pyarrow: pip install 'pit_j",
        ),
        (
            "pyarrow",
            zstd(b"{}"),
            "got a zstd file, which needs pyarrow: pip install 'pit_jax[tables]'",
        ),
        ("datasets", None, "needs the package datasets: pip install 'pit_jax[datasets]'"),
    ],
)
def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch, package, data, message):
    monkeypatch.setitem(sys.modules, package, None)
    path = "hf://datasets/a"
    if data:
        path = str(tmp_path / "file")
        (tmp_path / "file").write_bytes(data)
    with pytest.raises(UserError) as error:
        list(records.records(path))
    assert str(error.value).startswith(f"{path}: {message}")


# --- paths -------------------------------------------------------------------------------------


def test_paths_that_are_found(tmp_path, monkeypatch):
    for name in ("b/c/x.jsonl", "a/x.jsonl", "top.jsonl", "[1] ü.jsonl", ".hidden.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "link.jsonl").symlink_to("top.jsonl")
    (tmp_path / "link").symlink_to("a", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    assert find("**/x.jsonl") == ["a/x.jsonl", "b/c/x.jsonl", "link/x.jsonl"]
    assert find(["link.jsonl", "t*.jsonl"]) == ["link.jsonl", "top.jsonl"]
    assert find("[1] ü.jsonl") == ["[1] ü.jsonl"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("~/a/*.jsonl") == [f"{tmp_path}/a/x.jsonl"]
    assert find(["-", "hf://datasets/a/b"]) == ["-", "hf://datasets/a/b"]
    for pattern in ("none/**", "gone.jsonl", "a\0b"):
        with pytest.raises(UserError, match="no such file, and no file matches it as a pattern"):
            find(pattern)
    with pytest.raises(
        UserError, match="^got an empty path, expected a file or a pattern of files$"
    ):
        find("")
    for url in ("https://example.com/a.jsonl", "file:///a.jsonl", "hf://owner/name"):
        with pytest.raises(
            UserError, match=f"^{url}: got a URL, expected a path, gs://… or hf://d"
        ):
            find(url)
    (tmp_path / "broken.jsonl").symlink_to("gone")
    with pytest.raises(UserError, match=r"broken.jsonl: no such file"):
        find("broken.jsonl")


def test_a_file_that_is_named_twice_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    for paths in (["*.jsonl", "a.jsonl"], ["a.jsonl", "./a.jsonl"], ["-", "-"]):
        with pytest.raises(UserError, match=": is named twice, expected every file once"):
            find(paths)
    assert find("**/**/a.jsonl") == ["a.jsonl"]


def test_a_file_that_is_missing_is_named_before_any_is_read(tmp_path):
    with pytest.raises(UserError, match="none: no such file"):
        records.records([str(tmp_path), str(tmp_path / "none")][1:])


@pytest.mark.parametrize("kind", ["CRLF", "zstd", "indented array", "arrow stream"])
def test_pipes_are_read_in_one_go(tmp_path, kind):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(KINDS[kind](ROWS * 99)))
    writer.start()
    found = [record.value for record in records.records(str(path))]
    writer.join()
    assert found == ROWS * 99


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines(ROWS) + b"7")))
    found = list(records.records("-"))
    assert [record.value for record in found] == [*ROWS, None]
    assert found[3] == Record("stdin", 4, None, "got 7, expected a JSON object")

    class Pipe(io.BytesIO):
        def seekable(self):
            return False

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Pipe(to_parquet(ROWS))))
    (record,) = records.records("-")
    assert record.problem == "got a parquet file through a pipe, expected a file on a disk"


@pytest.mark.parametrize("kind", ["zstd", "array", "parquet", "feather"])
def test_every_kind_is_read_from_a_bucket(tmp_path, monkeypatch, kind):
    fake_bucket.install(monkeypatch, tmp_path)
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "file").write_bytes(KINDS[kind](ROWS))
    assert [record.value for record in records.records("gs://bucket/file")] == ROWS


# --- the message -------------------------------------------------------------------------------


def test_equal_problems_are_one_line():
    problems = Problems()
    problems.add("a:1", "odd")
    assert problems.message() == "a:1: odd"
    for number in range(2, 61):
        problems.add(f"a:{number}", "odd")
    assert problems.message() == "a:1: odd (and 59 more lines alike)"
    problems.add("b:1", "even")
    assert problems.lines() == ("a:1: odd (and 59 more lines alike)", "b:1: even")
    assert problems.message().splitlines()[2:] == ["61 malformed lines in all"]
    for number in range(12):
        problems.add(f"c:{number}", f"kind {number}")
    problems.add("b:2", "even")
    message = problems.message().splitlines()
    assert message[1] == "b:1: even (and 1 more line alike)"
    assert message[9:] == ["c:7: kind 7", "… and 4 more, 74 malformed lines in all"]
    assert problems.total == 74


def test_kinds_of_tables():
    assert [tables.kind(head) for head in (b"PAR1", b"ARROW1\0", b"\xff" * 4, b"PAR", b"{}")] == [
        "parquet",
        "arrow",
        "arrow stream",
        "",
        "",
    ]


def test_what_a_library_says_of_a_damaged_table_is_printable(tmp_path, monkeypatch):
    """It may quote bytes of the file."""
    path = tmp_path / "x.parquet"
    path.write_bytes(to_parquet(ROWS))

    def batches(kind, file):
        raise OSError("don't know what type: \x0e")

    monkeypatch.setattr(tables, "_batches", batches)
    (found,) = records.records(str(path))
    assert "is damaged (don't know what type: \\x0e), expected a whole one" in found.problem
