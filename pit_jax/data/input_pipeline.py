"""Batches of every task, in an order that one seed determines; the entry point of the data layer.

Examples flow through seqio once a process (source, preprocessors, feature converter) into arrays,
and batches are gathered from these by index. So the k-th batch is a function of (seed, k) alone: a
run restarted at batch k sees the batches of an uninterrupted run, and all hosts see the same.
TensorFlow is imported when the first batch is made.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from pit_jax.data import batching, datasets
from pit_jax.data.batching import Batch, BatchingConfig
from pit_jax.data.examples import FOLDS, SPLITS, Example
from pit_jax.data.layouts import FEATURES, Layout, Lengths, feature_lengths
from pit_jax.data.reference_store import ReferenceStore
from pit_jax.data.vocabularies.base import Vocabulary
from pit_jax.errors import UserError

DATA_REFERENCES = "data"
_ALL = "all"
_KEPT_TABLES = 4
_CHUNK = 512


@dataclasses.dataclass(frozen=True)
class _Table:
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


class InputPipeline:
    """Gives a dataset, or a mixture of several, as batches and as text.

    Attributes:
      config: the dataset.
      vocabulary: the vocabulary of every token array.
      lengths: the windows; what is longer is in neither batches nor `examples`.
      batching: how examples of different lengths share batches.
    """

    def __init__(
        self,
        config: datasets.DatasetConfig | datasets.MixtureConfig,
        vocabulary: Vocabulary,
        lengths: Lengths,
        batching: BatchingConfig = BatchingConfig(),
        reflection: bool = False,
    ):
        """Reads or generates the dataset.

        Args:
          config: the dataset.
          vocabulary: what vocabularies.load returns.
          lengths: the windows.
          batching: packing and length buckets.
          reflection: whether `sft_pit` learns to write the reflection first (Appendix K).

        Raises:
          UserError: if the dataset can't be read.
        """
        self.config = config
        self.vocabulary = vocabulary
        self.lengths = lengths
        self.batching = batching
        self._reflection = reflection
        layout = Layout(vocabulary)

        def fits(e: Example) -> bool:
            target = e.reflection if reflection else None
            return layout.fits(lengths, e.prompt, e.chosen, e.rejected, target)

        self._datasets = datasets.load(config, fits)
        self._rates = config.rates if isinstance(config, datasets.MixtureConfig) else ()
        self._tables: dict[tuple, _Table] = {}
        self._counts: dict[str, Batch] = {}
        self._seqio: list[Any] = []

    def batches(
        self,
        task: str,
        split: str,
        batch_size: int,
        *,
        fold: str | None = None,
        seed: int = 0,
        shuffle: bool = True,
        start_batch: int = 0,
        num_epochs: int | None = None,
        references: str = DATA_REFERENCES,
    ) -> Iterator[Batch]:
        """Batches of a task; their keys and shapes are in the docstrings of feature_converters.py.

        In training, the rows of an epoch that don't fill a batch are left out; they are others in
        each epoch. If the data is gone through once in order (`shuffle=False, num_epochs=1`), the
        last batch is filled up with copies of its first row, and every batch has `weight` [B]
        float32: 1 for a row of the data, 0 for a filler.

        Args:
          task: a key of layouts.FEATURES.
          split: `train`, `dev` or `test`.
          batch_size: rows of a batch.
          fold: `sft`, `rm`, `rl` or `all`; None means the task's own fold in train, else all.
          seed: of the shuffles.
          shuffle: whether to draw a new order every epoch.
          start_batch: how many batches of the run to skip.
          num_epochs: number of epochs; None never ends.
          references: for `rl_pit`: `data`, or the directory of a reference store.

        Raises:
          UserError: if there is less than one batch of examples, or the store isn't sound.
        """
        table = self._table(task, split, fold, references)
        size = sum(table.sources)
        evaluating = not shuffle and num_epochs == 1
        if size < (1 if evaluating else batch_size):
            packed = "decoder_segment_ids" in table.rows and self.batching.packed_length
            what = f"rows of {packed} tokens" if packed else "examples"
            raise UserError(
                f"{task}: {size} {what} in split {split!r} (fold {fold or 'of the task'}), "
                f"expected at least batch_size={batch_size}; {self.report()}"
            )
        if evaluating:
            return _evaluation_batches(table, batch_size, start_batch)
        rates = self._rates if len(table.sources) > 1 else ()
        if rates and min(table.sources) == 0:
            empty = [d.name for d, n in zip(self._datasets, table.sources, strict=True) if not n]
            raise UserError(f"{task}: the mixture draws from {empty[0]}, which has no rows")
        order = batching.batch_rows(
            table.sources,
            rates,
            table.buckets,
            batch_size,
            seed,
            shuffle=shuffle,
            start_batch=start_batch,
            num_epochs=num_epochs,
        )
        return (table.batch(numbers) for numbers in order)

    def register(self, task: str) -> str:
        """Returns the name of the task, or of its Mixture, in seqio's registry."""
        self._sources()
        from pit_jax.data.seqio_tasks import tasks

        if len(self._datasets) > 1:
            return tasks.mixture_name(self.config.name, task)
        return self._tasks[self._datasets[0].name, task].name

    def feature_lengths(self, task: str) -> dict[str, int]:
        """Returns the length in tokens of every feature of the task."""
        return feature_lengths(task, Layout(self.vocabulary).widths(self.lengths))

    def feature_converter(self, task: str) -> type:
        """Returns the seqio feature converter of the task."""
        self._sources()
        from pit_jax.data.seqio_tasks import tasks

        return tasks.TASKS[task].converter

    def num_rows(
        self, task: str, split: str, fold: str | None = None, references: str = DATA_REFERENCES
    ) -> int:
        """Counts the rows of an epoch of `batches` (packed rows if packing)."""
        return sum(self._table(task, split, fold, references).sources)

    def examples(self, split: str, fold: str = _ALL) -> list[Example]:
        """Returns the examples that fit the windows, as text, in the order of the dataset."""
        name = _source_split(split, fold)
        examples = [e for source in self._sources() for e in source.examples(name)]
        too_long = self._too_long(split)
        return [example for example in examples if not too_long[example.index]]

    def report(self) -> dict[str, Any]:
        """Counts pairs: `read`, `dropped` by reason, and what is left: `splits`, `folds` of train.

        `malformed` lists the first lines that were skipped, as `file:line: …`.

        Every pair is counted once: read = sum of dropped + sum of splits. A pair too long in
        several fields counts under the first of prompt, chosen, rejected, reflection.
        """
        dropped: collections.Counter[str] = collections.Counter()
        for each in self._datasets:
            dropped.update(each.dropped)
        splits = {}
        for split in SPLITS:
            marks = self._too_long(split)
            splits[split] = int(np.sum(marks == 0))
            for number, field in enumerate(self.lengths.windows, 1):
                if count := int(np.sum(marks == number)):
                    dropped[f"{field} too long"] += count
        return {
            "read": sum(each.read for each in self._datasets),
            "dropped": dict(dropped),
            "splits": splits,
            "folds": {fold: len(self.examples("train", fold)) for fold in FOLDS},
            "malformed": [line for each in self._datasets for line in each.malformed],
        }

    def _sources(self) -> list[Any]:
        """Makes an ExampleSource of each dataset, and registers the seqio tasks with them."""
        if not self._seqio:
            with _quiet_stderr():
                from pit_jax.data.seqio_tasks import sources, tasks
            self._seqio = [sources.ExampleSource(each.splits) for each in self._datasets]
            names = [each.name for each in self._datasets]
            self._tasks = tasks.register_tasks(
                dict(zip(names, self._seqio, strict=True)),
                self.vocabulary,
                self.lengths,
                self._reflection,
            )
            if len(names) > 1:
                tasks.register_mixtures(self.config.name, names, self._rates)
        return self._seqio

    def token_counts(self, split: str) -> Batch:
        """Counts the tokens of every example of a split, of those over a window too.

        Returns:
          `prompt` (of the whole of `Human: {x}Assistant:`), `chosen` and `rejected` without EOS,
          and `too_long`, the number of preprocessors.mark_too_long; each [n] int32.
        """
        if split not in self._counts:
            sources = self._sources()
            from pit_jax.data.seqio_tasks import preprocessors

            parts = []
            for source in sources:
                dataset = preprocessors.tokenize(source.get_dataset(split), self.vocabulary)
                dataset = preprocessors.mark_too_long(
                    dataset, self.vocabulary, self.lengths, self._reflection
                )
                dataset = preprocessors.count_tokens(dataset, self.vocabulary)
                parts.append(_rows(dataset))
            self._counts[split] = {
                name: np.concatenate([part[name] for part in parts]) for name in parts[0]
            }
        return self._counts[split]

    def padding(self, task: str, batch_size: int) -> dict[str, Any]:
        """Counts what an epoch of a task's training batches is made of.

        Returns:
          `rows` and `batches` of an epoch, `widths` of the batches, `real_tokens`, `tokens` and
          `real_share`; and `examples`, `window_width` and `window_share`, for rows of a single
          example that are as wide as all their windows together.

        Raises:
          UserError: if there is less than one batch of examples.
        """
        table = self._table(task, "train", None, DATA_REFERENCES)

        lengths = self.feature_lengths(task)
        name, width = {
            "inputs": ("decoder_segment_ids", lengths.get("inputs", 0) + lengths.get("targets", 0)),
            "tokens": ("blocks", lengths.get("tokens", 0)),
            "prompt": ("prompt_tokens", lengths.get("prompt", 0)),
        }[next(iter(lengths))]
        ids = table.rows[name]
        packed = name == "decoder_segment_ids"
        examples = int(ids.max(axis=1, initial=0).sum()) if packed else len(ids)
        batches = self.batches(task, "train", batch_size, num_epochs=1)
        shapes: collections.Counter[tuple[int, int]] = collections.Counter()
        real = 0
        for batch in batches:
            shapes[batch[name].shape] += 1
            real += int(np.sum(batch[name] > 0))
        tokens = sum(rows * columns * count for (rows, columns), count in shapes.items())
        return {
            "rows": len(ids),
            "batches": sum(shapes.values()),
            "widths": sorted(columns for _, columns in shapes),
            "real_tokens": real,
            "tokens": tokens,
            "real_share": real / tokens,
            "examples": examples,
            "window_width": width,
            "window_share": float(np.sum(ids > 0) / (examples * width)),
        }

    def _too_long(self, split: str) -> np.ndarray:
        return self.token_counts(split)["too_long"]

    def _table(self, task: str, split: str, fold: str | None, references: str) -> _Table:
        sources = self._sources()
        from pit_jax.data.seqio_tasks import tasks

        if task not in FEATURES:
            raise ValueError(f"task: got {task!r}, expected one of {', '.join(FEATURES)}")
        row = tasks.TASKS[task]
        if fold is None:
            fold = row.fold if split == "train" and row.fold else _ALL
        source_split = _source_split(split, fold)
        store = None
        if references != DATA_REFERENCES:
            if task != "rl_pit":
                raise ValueError(f"references: got {references!r} for {task}, expected rl_pit")
            store = ReferenceStore(references)
        key = (task, source_split, store and store.fingerprint)
        if key not in self._tables:
            parts = [self._tasks[each.name, task] for each in self._datasets]
            if store is not None:
                examples = [e for source in sources for e in source.examples(source_split)]
                parts = [self._reference_task(parts[0], store, examples)]
                source_split = "train"
            lengths = self.feature_lengths(task)
            tables = [_materialise(part, source_split, row.converter, lengths) for part in parts]
            if len(self._tables) == _KEPT_TABLES:
                self._tables.pop(next(iter(self._tables)))
            self._tables[key] = self._finish(task, tables)
        return self._tables[key]

    def _reference_task(self, task, store: ReferenceStore, examples: list[Example]):
        from pit_jax.data.seqio_tasks import sources

        source = sources.ReferenceSource(store, examples, self.vocabulary)
        return task.replace(name=f"{task.name}_references", source=source)

    def _finish(self, task: str, parts: list[Batch]) -> _Table:
        """Packs the rows, or sorts them into length buckets."""
        ids = next((i for i in ("decoder_segment_ids", "blocks") if i in parts[0]), None)
        packed_length = self.batching.packed_length
        if packed_length and ids == "decoder_segment_ids":
            longest = max(int(batching.row_lengths(part[ids]).max(initial=0)) for part in parts)
            if packed_length < longest:
                raise UserError(
                    f"{task}: got packed_length={packed_length}, expected at least {longest}, the "
                    "length of the longest example"
                )
            parts = [batching.pack(part, packed_length) for part in parts]
            ids = None
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        counts = [len(next(iter(part.values()))) for part in parts]
        if ids is None:
            return _Table(rows, counts, np.zeros(0, int), np.zeros(sum(counts), int))
        lengths = batching.row_lengths(rows[ids])
        widths = batching.bucket_widths(lengths, self.batching.length_buckets)
        return _Table(rows, counts, widths, np.searchsorted(widths, lengths))


def _evaluation_batches(table: _Table, batch_size: int, start_batch: int) -> Iterator[Batch]:
    size = sum(table.sources)
    for start in range(start_batch * batch_size, size, batch_size):
        rows = np.arange(start, start + batch_size)
        weight = (rows < size).astype(np.float32)
        batch = table.batch(np.where(rows < size, rows, start))
        yield {**batch, "weight": weight}


def _materialise(task, source_split: str, converter, lengths: dict[str, int]) -> Batch:
    dataset = task.get_dataset(
        split=source_split,
        sequence_length=lengths,
        shuffle=False,
        trim_output_features=False,
        try_in_mem_cache=False,
    )
    names = list(lengths)
    dataset = dataset.map(lambda features: {name: features[name] for name in names})
    return _rows(converter(pack=False)(dataset, lengths))


def _rows(dataset) -> Batch:
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


@contextlib.contextmanager
def _quiet_stderr():
    """Keeps what native libraries print while they load out of the terminal; errors still raise."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _source_split(split: str, fold: str) -> str:
    if split not in SPLITS or fold not in (*FOLDS, _ALL):
        raise ValueError(
            f"split, fold: got {split!r}, {fold!r}; expected one of {', '.join(SPLITS)} and one of "
            f"{', '.join(FOLDS)}, {_ALL}"
        )
    return split if fold == _ALL else f"{split}_{fold}"
