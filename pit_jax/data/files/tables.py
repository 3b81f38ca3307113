"""Reads rows of parquet and Arrow files, of folders that `datasets` saved, and of its hub.

A row is a JSON object: dates and times are ISO text, decimals are text, and so are bytes of UTF-8.
Where a row can't be one, a ValueError stands in its place.
"""

from __future__ import annotations

import datetime
import decimal
import io
import json
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

from pit_jax.data.files.json_values import printable, shown
from pit_jax.errors import UserError

HUB = "hf://datasets/"

_KINDS = {b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow stream"}
_ROWS = 1000
_ADDRESS = re.compile(
    r"([\w.-]+(?:/[\w.-]+)?)(?:/([\w.-]+))?(?:@([\w./-]+?))?(?::([\w.\[\]%:-]+))?"
)

Row = dict[str, Any] | ValueError


def kind(head: bytes) -> str:
    """Returns what kind of table a file that begins so holds; empty for none."""
    return next((name for magic, name in _KINDS.items() if head.startswith(magic)), "")


def rows(kind: str, file: Any) -> Iterator[Row]:
    """Yields the rows of an open file of a kind; a damaged one ends with a ValueError."""
    _pyarrow(kind)
    import pyarrow as pa

    if kind != "arrow stream" and not file.seekable():
        yield ValueError(f"got {_named(kind)} file through a pipe, expected a file on a disk")
        return
    try:
        for batch in _batches(kind, file):
            names = batch.schema.names
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                yield ValueError(f"got the column {shown(twice)} twice, expected every name once")
                return
            for start in range(0, batch.num_rows, _ROWS):
                yield from _objects(batch.slice(start, _ROWS))
    except (ValueError, pa.ArrowException, OSError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = printable((str(error).splitlines() or [repr(error)])[0][:200])
        problem = f"got {_named(kind)} file that is damaged ({reason}), expected a whole one"
        yield ValueError(problem)


def _batches(kind: str, file: Any) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import parquet

    if kind == "arrow stream":
        yield from pa.ipc.open_stream(pa.PythonFile(io.BufferedReader(file), mode="r"))
        return
    file.seek(0)
    source = pa.PythonFile(io.BufferedReader(file), mode="r")
    if kind == "parquet":
        opened = parquet.ParquetFile(
            source, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True
        )
        yield from opened.iter_batches(_ROWS)
    else:
        reader = pa.ipc.open_file(source)
        yield from map(reader.get_batch, range(reader.num_record_batches))


def _objects(batch: Any) -> Iterator[Row]:
    try:
        # Arrow files aren't checked when they are opened, and reading a damaged one may crash.
        batch.validate(full=True)
        found = batch.to_pylist()
    except ValueError as error:
        if batch.num_rows == 1:
            yield ValueError(f"got a row that can't be read ({str(error).splitlines()[0][:200]})")
            return
        for number in range(batch.num_rows):
            yield from _objects(batch.slice(number, 1))
        return
    yield from map(_object, found)


def _object(row: dict[str, Any]) -> Row:
    try:
        return {name: _plain(value, name) for name, value in row.items()}
    except ValueError as error:
        return error


def _plain(value: Any, name: str) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"got the number {value} under {name!r}, expected one that JSON has")
        return value
    if isinstance(value, dict):
        return {key: _plain(part, name) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part, name) for part in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, datetime.timedelta)):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            pass
    raise ValueError(f"got {shown(value)} under {name!r}, expected text, numbers, lists or objects")


def unpacked_zstd(file: Any) -> Any:
    """Returns a file that unpacks one that zstd packed."""
    _pyarrow("zstd")
    import pyarrow as pa

    return _Small(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"))


class _Small:
    """Reads little at a time, so that little is lost where a file breaks off."""

    def __init__(self, file: Any):
        self._file = file

    def read1(self, size: int) -> bytes:
        return self._file.read(min(size, 1 << 16))


def is_saved(folder: Any) -> bool:
    """Returns whether `save_to_disk` of `datasets` wrote a folder."""
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def saved_rows(folder: Any, opened: Callable[[Any], Any]) -> Iterator[Row]:
    """Yields the rows of a folder that `save_to_disk` wrote.

    Args:
      folder: its path; a folder of splits has to have only one.
      opened: makes a file of an open one that pyarrow can read.

    Raises:
      UserError: for a folder with several splits, or whose own list of files can't be read.
    """
    try:
        if not (folder / "state.json").exists():
            splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
            if len(splits) != 1:
                choices = ", ".join(f"{folder}/{split}" for split in splits)
                raise UserError(f"{folder}: got several splits, expected one of {choices}")
            folder = folder / splits[0]
        state = json.loads((folder / "state.json").read_text())
        names = [file["filename"] for file in state["_data_files"]]
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(
            f"{folder}: got a folder whose state.json or dataset_dict.json is damaged, expected "
            "one that `datasets` saved"
        ) from None
    for name in names:
        with (folder / name).open("rb") as file:
            source = opened(file)
            yield from rows(kind(source.head()) or "arrow stream", source)


def hub_rows(address: str) -> Iterator[Row]:
    """Yields the rows of a dataset on the hub, as they arrive.

    Args:
      address: `hf://datasets/OWNER/NAME`, with `/CONFIG`, `@REVISION` and `:SPLIT` after it if
        they aren't the default ones; the default split is `train`.

    Raises:
      UserError: without the package `datasets`, and for what can't be loaded.
    """
    match = _ADDRESS.fullmatch(address.removeprefix(HUB))
    if not match:
        raise UserError(f"{address}: expected {HUB}OWNER/NAME, with /CONFIG or :SPLIT after it")
    name, config, revision, split = match.groups()
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(
            f"{address}: needs the package datasets: pip install 'pit_jax[datasets]'"
        ) from None
    try:
        # Slices, such as train[:100], are only for what is loaded whole.
        loaded = load_dataset(
            name,
            config,
            split=split or "train",
            revision=revision,
            streaming="[" not in (split or ""),
        )
    except Exception as error:
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise UserError(f"{address}: can't be read: {reason}") from None
    yield from map(_object, loaded)


def _pyarrow(kind: str) -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise ImportError(
            f"got {_named(kind)} file, which needs pyarrow: pip install 'pit_jax[tables]'"
        ) from None


def _named(kind: str) -> str:
    return f"an {kind}" if kind.startswith("arrow") else f"a {kind}"
