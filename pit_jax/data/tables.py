"""Holds every row of a task's batches without padding, and gives batches of these."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pit_jax.data import batching
from pit_jax.data.batching import Batch, BatchingConfig
from pit_jax.data.rows import Feature
from pit_jax.errors import UserError

_SEGMENTS = "decoder_segment_ids"


@dataclasses.dataclass(frozen=True)
class Packing:
    """Says which examples each packed row has.

    Attributes:
      members: the examples of all rows, one row after another.
      offsets: where each row begins in `members`, and where the last one ends; [rows + 1].
      width: tokens of a row.
    """

    members: np.ndarray
    offsets: np.ndarray
    width: int


@dataclasses.dataclass(frozen=True)
class Table:
    """Every row of a task's batches.

    Attributes:
      features: the rows, before they are packed.
      sources: number of rows of each dataset of a mixture, whose rows follow each other.
      widths: the widths that batches come in, ascending; empty where rows can't be cut.
      buckets: for each row the index of the first of `widths` that holds it.
      packing: which of the features' rows make a row; None if each is one of its own.
    """

    features: dict[str, Feature]
    sources: list[int]
    widths: np.ndarray
    buckets: np.ndarray
    packing: Packing | None = None

    @property
    def num_examples(self) -> int:
        """Number of rows before they are packed."""
        return len(next(iter(self.features.values())))

    def batch(self, numbers: np.ndarray) -> Batch:
        """Returns the rows of these numbers, as wide as the batch needs."""
        if self.packing is not None:
            return self._packed(numbers)
        most = int(self.widths[self.buckets[numbers].max()]) if len(self.widths) else None
        rows = np.arange(len(numbers))
        found = {}
        for name, feature in self.features.items():
            width = feature.width if most is None else min(feature.width, most)
            found[name] = np.zeros((len(numbers), width), feature.values.dtype)
            feature.put(found[name], numbers, rows, np.zeros(len(numbers), np.int64))
        return found

    def _packed(self, numbers: np.ndarray) -> Batch:
        """Puts the examples of each row behind one another; segment ids count them from 1."""
        assert self.packing is not None
        bounds = zip(self.packing.offsets[numbers], self.packing.offsets[numbers + 1], strict=True)
        each = [self.packing.members[start:end] for start, end in bounds]
        members = np.concatenate(each)
        counts = [len(part) for part in each]
        rows = np.repeat(np.arange(len(numbers)), counts)
        segments = self.features[_SEGMENTS]
        lengths = segments.offsets[members + 1] - segments.offsets[members]
        before = np.cumsum(lengths) - lengths
        columns = before - before[np.repeat(np.cumsum(counts) - counts, counts)]
        found = {}
        for name, feature in self.features.items():
            found[name] = np.zeros((len(numbers), self.packing.width), feature.values.dtype)
            feature.put(found[name], members, rows, columns)
        begins = np.zeros_like(found[_SEGMENTS])
        begins[rows, columns] = 1
        found[_SEGMENTS] *= np.cumsum(begins, axis=1, dtype=begins.dtype)
        return found

    def in_order(self, batch_size: int, start_batch: int = 0, limit: int = 0) -> Iterator[Batch]:
        """Yields batches of all rows, or of the first `limit`, with their `weight`.

        The last batch is filled up with copies of its first row, of weight 0.
        """
        size = sum(self.sources)
        size = min(size, limit) if limit else size
        for start in range(start_batch * batch_size, size, batch_size):
            rows = np.arange(start, start + batch_size)
            weight = (rows < size).astype(np.float32)
            batch = self.batch(np.where(rows < size, rows, start))
            yield {**batch, "weight": weight}


def make(
    task: str, rows: Mapping[str, Feature], counts: Sequence[int], config: BatchingConfig
) -> Table:
    """Packs the rows of each dataset, or sorts them into length buckets.

    Args:
      task: name of the task, for the error.
      rows: the rows of all datasets.
      counts: the number of rows of each dataset.
      config: packing and buckets.

    Raises:
      UserError: if an example is longer than a packed row.
    """
    found = dict(rows)
    ids = next((name for name in (_SEGMENTS, "blocks") if name in found), None)
    if ids is None:
        return Table(found, [*counts], np.zeros(0, int), np.zeros(sum(counts), np.int32))
    lengths = found[ids].lengths()
    if config.packed_length and ids == _SEGMENTS:
        if config.packed_length < (longest := int(lengths.max(initial=0))):
            raise UserError(
                f"{task}: got packed_length={config.packed_length}, expected at least {longest}, "
                "the length of the longest example"
            )
        packing, sizes = _pack(lengths, counts, config.packed_length)
        return Table(found, sizes, np.zeros(0, int), np.zeros(sum(sizes), np.int32), packing)
    widths = batching.bucket_widths(lengths, config.length_buckets)
    buckets = np.searchsorted(widths, lengths).astype(np.int32)
    return Table(found, [*counts], widths, buckets)


def _pack(lengths: np.ndarray, counts: Sequence[int], room: int) -> tuple[Packing, list[int]]:
    """Packs each dataset by itself; returns their numbers of packed rows too."""
    members, sizes, rows = [], [np.zeros(1, np.int64)], []
    for start, count in zip(np.cumsum([0, *counts]), counts, strict=False):
        packed, each = batching.pack(lengths[start : start + count], room)
        members.append(start + packed)
        sizes.append(each)
        rows.append(len(each))
    return Packing(np.concatenate(members), np.cumsum(np.concatenate(sizes)), room), rows


def read_by(batch: Batch, reward: Batch) -> Batch:
    """Makes a batch of PPO's prompts of which the reward model reads ids of its own.

    Args:
      batch: in ids of the actor's vocabulary, which its critic reads too.
      reward: the same rows in ids of the reward model's.
    """
    critic = batch.get("critic_prompt_tokens", batch["reward_prompt_tokens"])
    own = ("prompt_tokens", "example_index")
    read = {name: ids for name, ids in reward.items() if name not in own}
    return {**batch, **read, "critic_prompt_tokens": critic}
