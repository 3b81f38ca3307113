"""Keeps sampled references y_ref on disk, in immutable shards that a manifest lists.

A directory holds `shard-00000.jsonl`, … and `manifest.json`, which is replaced atomically. A shard
is written to a temporary file, synced and renamed, and only then listed, so a crash at any point
leaves a store that the writer can continue. A record is a JSON line: `index` (of the example),
`prompt_hash` (of its prompt; earlier versions wrote none), `reference_tokens` (ids of plain text,
cut to the window), `text` (what they decode to) and `ended` (whether the response did, within its
window). This needs no TensorFlow; seqio reads a store through sources.ReferenceSource.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from pit_jax import files
from pit_jax.data.examples import Example, prompt_hash
from pit_jax.data.texts import Examples
from pit_jax.data.vocabularies.base import Vocabulary
from pit_jax.errors import UserError

MANIFEST = "manifest.json"
_FORMAT = 1
_SHARD = {"file", "count", "sha256"}
_REQUIRED = {"index": int, "reference_tokens": list, "text": str, "ended": bool}


@dataclasses.dataclass(frozen=True)
class ReferenceMeta:
    """Says where a store's references come from.

    Attributes:
      round: number of the curriculum's round that learns from them.
      source: name of what they were sampled from, such as `rl_policy`.
      checkpoint: the checkpoint that they were sampled from.
      seed: seed of the sampling.
      prompts: how many prompts are to have one.
      stage: the stage that learns from them; empty for none.
      model: a digest of the model that improved them; empty for none, or where it isn't known.
    """

    round: int
    source: str
    checkpoint: str
    seed: int
    prompts: int
    stage: str = ""
    model: str = ""


class ReferenceWriter:
    """Writes a store, record after record, and continues where a crash interrupted it.

    Attributes:
      next_record: number of records safely on disk or waiting for their shard to fill; a resumed
        writer expects the records from this position on.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        shard_size: int,
        meta: ReferenceMeta,
        write: bool = True,
    ):
        """Opens a new or an interrupted store.

        Args:
          directory: the store's folder; it is made if missing.
          shard_size: number of records in every shard but the last.
          meta: where the references come from; an existing manifest must agree.
          write: whether this process writes; a process beside the writer gets the same records
            and only counts them.

        Raises:
          UserError: if the directory holds another store, or one of its shards is damaged.
        """
        if shard_size < 1:
            raise ValueError(f"shard_size: expected 1 or more, got {shard_size}")
        self.directory = epath.Path(directory)
        self._write = files.write_whole if write else _discard
        self._pending: list[str] = []
        expected = {
            "format": _FORMAT,
            **dataclasses.asdict(meta),
            "shard_size": shard_size,
        }
        if (self.directory / MANIFEST).exists():
            self._manifest = _read_manifest(self.directory)
            # Of versions that didn't say it.
            earlier = {"stage": meta.stage} | ({"prompts": meta.prompts} if self.closed else {})
            if not (meta.model and self._manifest.get("model")):  # one isn't known
                del expected["model"]
            for key, value in expected.items():
                if (earlier | self._manifest).get(key) != value:
                    raise UserError(
                        f"{self.directory}: holds a reference store with {key}="
                        f"{self._manifest.get(key)!r}, expected {value!r}; "
                        + _remedy(self.directory)
                    )
            for shard in self._manifest["shards"]:
                _read_shard(self.directory, shard)
        else:
            self._manifest = {**expected, "closed": False, "shards": []}
            self._write_manifest()

    @property
    def next_record(self) -> int:
        return sum(shard["count"] for shard in self._manifest["shards"]) + len(self._pending)

    @property
    def closed(self) -> bool:
        """Whether the store is complete and closed."""
        return self._manifest["closed"]

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Appends records; they are on disk once their shard is full or the store is closed.

        Raises:
          ValueError: if the store is closed, or a record lacks a field.
        """
        if self.closed:
            raise ValueError(f"{self.directory}: the reference store is closed, expected open")
        for record in records:
            for name, kind in _REQUIRED.items():
                if not isinstance(record.get(name), kind):
                    raise ValueError(
                        f"record: field {name!r} is {record.get(name)!r}, expected {kind.__name__}"
                    )
            self._pending.append(json.dumps(dict(record), ensure_ascii=True, sort_keys=True))
            if len(self._pending) == self._manifest["shard_size"]:
                self._write_shard()

    def close(self) -> None:
        """Writes what is pending as a last, smaller shard and marks the store complete."""
        if self.closed:
            return
        if self._pending:
            self._write_shard()
        self._manifest["closed"] = True
        self._write_manifest()

    def _write_shard(self) -> None:
        data = "".join(line + "\n" for line in self._pending).encode()
        name = f"shard-{len(self._manifest['shards']):05d}.jsonl"
        self._write(self.directory / name, data)
        self._manifest["shards"].append(
            {"file": name, "count": len(self._pending), "sha256": hashlib.sha256(data).hexdigest()}
        )
        self._pending = []
        self._write_manifest()

    def _write_manifest(self) -> None:
        data = json.dumps(files.sealed(self._manifest, MANIFEST), indent=1, sort_keys=True).encode()
        self._write(self.directory / MANIFEST, data)


def is_closed(directory: str | os.PathLike) -> bool:
    """Returns whether there is a store that is complete."""
    path = epath.Path(directory)
    return (path / MANIFEST).exists() and _read_manifest(path)["closed"]


class ReferenceStore:
    """Reads a complete store by position: `store[k]` is the k-th record that was written.

    Attributes:
      manifest: the content of manifest.json.
      example_indices: the `index` of every record, in order.
    """

    def __init__(self, directory: str | os.PathLike):
        """Reads and verifies a store.

        Raises:
          UserError: if the store is missing, not closed, or a shard is missing or damaged.
        """
        self.directory = epath.Path(directory)
        self.manifest = _read_manifest(self.directory)
        if not self.manifest["closed"]:
            count = sum(shard["count"] for shard in self.manifest["shards"])
            raise UserError(
                f"{self.directory}: the reference store is not complete ({count} records so far); "
                "continue the round that samples it"
            )
        self._lines: list[bytes] = []
        for shard in self.manifest["shards"]:
            self._lines += _read_shard(self.directory, shard)
        self.example_indices = [json.loads(line)["index"] for line in self._lines]

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return json.loads(self._lines[position])

    @property
    def unended(self) -> int:
        """Number of references that were cut because their response didn't end."""
        return sum(not json.loads(line)["ended"] for line in self._lines)

    @property
    def fingerprint(self) -> str:
        """Digest of the manifest, and so of every record."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()


class References:
    """Joins a store's references with the examples that they were sampled for, in its order.

    References for other examples than the given ones are left out: those are another source's.

    Attributes:
      examples: the example of each reference.
    """

    def __init__(
        self,
        store: ReferenceStore,
        examples: Iterable[Example],
        vocabulary: Vocabulary,
        text_window: int = 0,
    ):
        """Reads a store.

        Args:
          store: the store.
          examples: the examples.
          vocabulary: of the model that reads the references.
          text_window: above 0 the references' texts are encoded, and cut to so many tokens, since
            the store's ids are of another vocabulary.

        Raises:
          UserError: if a reference was sampled for another prompt than its example has.
        """
        self._store = store
        self._text_window = text_window
        self._vocabulary = vocabulary
        known = Examples.of(examples)
        wanted = np.array(store.example_indices, np.int64)
        self._positions = np.flatnonzero(np.isin(wanted, known.indices))
        order = np.argsort(known.indices)
        found = np.searchsorted(known.indices, wanted[self._positions], sorter=order)
        self.examples = known.select(order[found])
        self._check_prompts()

    def __len__(self) -> int:
        return len(self._positions)

    def ids(self, some: slice) -> list[list[int]]:
        """Returns the sampled ids of some, up to EOS and without ids that stand for no text.

        So a control token that a model has sampled is forged nowhere.
        """
        records = [self._store[int(position)] for position in self._positions[some]]
        if self._text_window:
            encode = self._vocabulary.encode
            return [encode(record["text"])[: self._text_window] for record in records]
        return [self._vocabulary.text_ids(record["reference_tokens"]) for record in records]

    def _check_prompts(self) -> None:
        for position, example in zip(self._positions, self.examples, strict=True):
            expected = self._store[int(position)].get("prompt_hash")
            if expected and (got := prompt_hash(example.prompt)) != expected:
                raise UserError(
                    f"{self._store.directory}: has a reference for another prompt of example "
                    f"{example.index} ({expected} -> {got}); bring the data back that it was "
                    "sampled from, or delete the stage's folder to train it again"
                )


def _read_manifest(directory: epath.Path) -> dict[str, Any]:
    path = directory / MANIFEST
    try:
        manifest, _ = files.unsealed(path.read_bytes(), MANIFEST)
    except FileNotFoundError:
        raise UserError(f"{directory}: no {MANIFEST}, expected a reference store") from None
    except files.NotSealed as error:
        raise UserError(f"{path}: is damaged, {error}; {_remedy(directory)}") from None
    shards = manifest.get("shards")
    if not isinstance(shards, list) or "format" not in manifest:
        raise UserError(f"{path}: is damaged, expected shards and format; {_remedy(directory)}")
    if manifest["format"] != _FORMAT:
        raise UserError(f"{path}: got format {manifest['format']!r}, expected {_FORMAT}")
    if not all(map(_is_listed, shards)) or not isinstance(manifest.get("closed"), bool):
        raise UserError(f"{path}: is damaged, expected shards and closed; {_remedy(directory)}")
    return manifest


def _is_listed(shard: Any) -> bool:
    """Whether a manifest lists a shard by what it has to have."""
    return (
        isinstance(shard, dict)
        and set(shard) >= _SHARD
        and isinstance(shard["file"], str)
        and re.fullmatch(r"shard-[0-9]{5,}\.jsonl", shard["file"]) is not None
        and type(shard["count"]) is int
        and isinstance(shard["sha256"], str)
    )


def _read_shard(directory: epath.Path, shard: Mapping[str, Any]) -> list[bytes]:
    path = directory / shard["file"]
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{path}: missing, though {MANIFEST} lists it; {_remedy(directory)}"
        ) from None
    digest = hashlib.sha256(data).hexdigest()
    lines = data.splitlines()
    if digest != shard["sha256"] or len(lines) != shard["count"]:
        raise UserError(
            f"{path}: damaged: got {len(lines)} records with sha256 {digest[:12]}…, expected "
            f"{shard['count']} with {shard['sha256'][:12]}… by {MANIFEST}; {_remedy(directory)}"
        )
    return lines


def _remedy(directory: epath.Path) -> str:
    return f"bring it back from a copy, or delete {directory} to sample the references again"


def _discard(path: epath.Path, data: bytes) -> None:
    del path, data
