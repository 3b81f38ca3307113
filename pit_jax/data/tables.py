"""Holds every row of a task's batches as arrays, and gives batches of these."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pit_jax.data import batching
from pit_jax.data.batching import Batch, BatchingConfig
from pit_jax.errors import UserError

SPLIT = "train"  # where sources hold the examples that a table is made of
_CHUNK = 512


@dataclasses.dataclass(frozen=True)
class Table:
    """Every row of a task's batches, as arrays with the rows first.

    Attributes:
      rows: the arrays.
      sources: number of rows of each dataset of a mixture, whose rows follow each other.
      widths: the widths that batches come in, ascending; empty where rows can't be cut.
      buckets: for each row the index of the first of `widths` that holds it.
    """

    rows: Batch
    sources: list[int]
    widths: np.ndarray
    buckets: np.ndarray

    def batch(self, numbers: np.ndarray) -> Batch:
        """Returns the rows of these numbers, as wide as the batch needs."""
        rows = {name: array[numbers] for name, array in self.rows.items()}
        if not len(self.widths):
            return rows
        width = self.widths[self.buckets[numbers].max()]
        return {name: array[:, :width] for name, array in rows.items()}

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


def make(task: str, parts: list[Batch], config: BatchingConfig) -> Table:
    """Packs the rows of each dataset, or sorts them into length buckets.

    Args:
      task: name of the task, for the error.
      parts: the rows of each dataset.
      config: packing and buckets.

    Raises:
      UserError: if an example is longer than a packed row.
    """
    ids = next((i for i in ("decoder_segment_ids", "blocks") if i in parts[0]), None)
    if config.packed_length and ids == "decoder_segment_ids":
        longest = max(int(batching.row_lengths(part[ids]).max(initial=0)) for part in parts)
        if config.packed_length < longest:
            raise UserError(
                f"{task}: got packed_length={config.packed_length}, expected at least {longest}, "
                "the length of the longest example"
            )
        parts = [batching.pack(part, config.packed_length) for part in parts]
        ids = None
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    counts = [len(next(iter(part.values()))) for part in parts]
    if ids is None:
        return Table(rows, counts, np.zeros(0, int), np.zeros(sum(counts), int))
    lengths = batching.row_lengths(rows[ids])
    widths = batching.bucket_widths(lengths, config.length_buckets)
    return Table(rows, counts, widths, np.searchsorted(widths, lengths))


def materialise(task: Any, converter: Any, lengths: Mapping[str, int]) -> Batch:
    """Runs a seqio Task and its feature converter over SPLIT of its source, in order."""
    dataset = task.get_dataset(
        split=SPLIT,
        sequence_length=lengths,
        shuffle=False,
        trim_output_features=False,
        try_in_mem_cache=False,
    )
    names = list(lengths)
    dataset = dataset.map(lambda features: {name: features[name] for name in names})
    return arrays(converter(pack=False)(dataset, lengths))


def arrays(dataset: Any) -> Batch:
    """Returns the elements of a tf.data.Dataset as arrays, with the elements first."""
    dataset = dataset.batch(_CHUNK)
    chunks = list(dataset.as_numpy_iterator())
    return {
        name: np.concatenate(
            [np.zeros((0, *spec.shape[1:]), spec.dtype.as_numpy_dtype)]
            + [chunk[name] for chunk in chunks]
        )
        for name, spec in dataset.element_spec.items()
    }


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
