"""Batches of every stage, in an order that one seed determines; the entry point of the data layer.

Examples flow through seqio once a process (source, preprocessors, feature converter) into arrays;
batches are gathered from these by index. So the k-th batch is a function of (seed, k) alone: a run
restarted at batch k sees the very batches of an uninterrupted one, and any number of hosts share
one order. TensorFlow is imported when the first batch is made.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from pit_jax.data import datasets
from pit_jax.data.examples import FOLDS, SPLITS, Example
from pit_jax.data.formats import Lengths
from pit_jax.data.reference_store import ReferenceStore
from pit_jax.data.vocabularies import Vocabulary
from pit_jax.errors import UserError

Batch = dict[str, np.ndarray]

DATA_REFERENCES = "data"
_ALL = "all"
_KEPT_TABLES = 4
_CHUNK = 512


class InputPipeline:
    """A dataset as batches and as text.

    Attributes:
      config: the dataset.
      vocabulary: of every token array.
      lengths: the windows; what is longer is in neither batches nor `examples`.
    """

    def __init__(
        self,
        config: datasets.DatasetConfig,
        vocabulary: Vocabulary,
        lengths: Lengths,
        reflection: bool = False,
        packed_length: int = 0,
    ):
        """Reads or generates the dataset.

        Args:
          config: the dataset.
          vocabulary: from vocabularies.load.
          lengths: the windows.
          reflection: whether `sft_pit` learns to write the reflection first (Appendix K).
          packed_length: tokens of a row of the stages pretrain, sft_policy and sft_pit, into which
            several examples go; 0 puts one example in a row as long as the windows. Rows are packed
            once, in the dataset's order; epochs shuffle whole rows.

        Raises:
          UserError: if the dataset can't be read.
        """
        self.config = config
        self.vocabulary = vocabulary
        self.lengths = lengths
        self._reflection = reflection
        self._packed_length = packed_length
        self._dataset = datasets.load(config)
        self._tables: dict[tuple, Batch] = {}
        self._marks: dict[str, np.ndarray] = {}
        self._seqio: Any = None

    def batches(
        self,
        stage: str,
        split: str,
        batch_size: int,
        *,
        fold: str | None = None,
        seed: int = 0,
        shuffle: bool = True,
        start_batch: int = 0,
        num_epochs: int | None = None,
        num_hosts: int = 1,
        host_index: int = 0,
        references: str = DATA_REFERENCES,
    ) -> Iterator[Batch]:
        """Batches of a stage; their keys and shapes are in the docstrings of feature_converters.py.

        In training the rows of an epoch that don't fill a batch are left out (others every epoch).
        Going through the data once in order (`shuffle=False, num_epochs=1`), the last batch is
        filled up with copies of its first row, and every batch has `weight` [B] float32: 1 for a
        row of the data, 0 for a filler.

        Args:
          stage: a key of tasks.STAGES.
          split: `train`, `dev` or `test`.
          batch_size: rows of a batch, of all hosts together.
          fold: `sft`, `rm`, `rl` or `all`; None means the stage's own fold in train, else all.
          seed: of the shuffles.
          shuffle: whether to draw a new order every epoch.
          start_batch: how many batches of the run to skip.
          num_epochs: None for ever.
          num_hosts: number of hosts that share a batch; must divide it.
          host_index: which rows to return: the host_index-th of num_hosts equal parts.
          references: for `rl_pit`: `data`, or the directory of a reference store.

        Raises:
          UserError: if there is less than one batch of examples, or the store isn't sound.
        """
        if batch_size % num_hosts or not 0 <= host_index < num_hosts:
            raise ValueError(
                f"hosts: got batch_size={batch_size}, num_hosts={num_hosts}, host_index="
                f"{host_index}; expected num_hosts to divide batch_size and host_index below it"
            )
        table = self._table(stage, split, fold, references)
        size = _rows(table)
        evaluating = not shuffle and num_epochs == 1
        if size < (1 if evaluating else batch_size):
            raise UserError(
                f"{stage}: {size} examples in split {split!r} (fold {fold or 'of the stage'}), "
                f"expected at least batch_size={batch_size}; {self.report()}"
            )
        part = batch_size // num_hosts
        mine = slice(host_index * part, (host_index + 1) * part)
        if evaluating:
            return _evaluation_batches(table, batch_size, mine, start_batch)
        order = batch_indices(size, batch_size, seed, shuffle, start_batch, num_epochs)
        return ({name: array[rows[mine]] for name, array in table.items()} for rows in order)

    def num_rows(
        self, stage: str, split: str, fold: str | None = None, references: str = DATA_REFERENCES
    ) -> int:
        """Rows of one epoch of `batches` (packed rows if packing)."""
        return _rows(self._table(stage, split, fold, references))

    def examples(self, split: str, fold: str = _ALL) -> list[Example]:
        """The examples that fit the windows, as text, in the order of the dataset."""
        examples = self._source().examples(_source_split(split, fold))
        too_long = self._too_long(split)
        return [example for example in examples if not too_long[example.index]]

    def report(self) -> dict[str, Any]:
        """Counts: `read`, `dropped` by reason, and what is left: `splits`, `folds` of train.

        Every pair is counted once: read = sum of dropped + sum of splits. A pair too long in
        several fields counts under the first of prompt, chosen, rejected, reflection.
        """
        from pit_jax.data.preprocessors import FIELDS

        dropped = dict(self._dataset.dropped)
        splits = {}
        for split in SPLITS:
            marks = self._too_long(split)
            splits[split] = int(np.sum(marks == 0))
            for code, field in enumerate(FIELDS, 1):
                if count := int(np.sum(marks == code)):
                    reason = f"{field} too long"
                    dropped[reason] = dropped.get(reason, 0) + count
        folds = {fold: len(self.examples("train", fold)) for fold in FOLDS}
        return {"read": self._dataset.read, "dropped": dropped, "splits": splits, "folds": folds}

    def _source(self):
        if self._seqio is None:
            with _quiet_stderr():
                import tensorflow as tf

                from pit_jax.data import sources, tasks

            # TensorFlow would otherwise take the accelerator's memory from JAX.
            tf.config.set_visible_devices([], "GPU")
            self._seqio = sources.ExampleSource(self._dataset.splits)
            self._tasks = tasks.register_tasks(
                self.config.name, self._seqio, self.vocabulary, self.lengths, self._reflection
            )
        return self._seqio

    def _too_long(self, split: str) -> np.ndarray:
        """The code of preprocessors.mark_too_long for every example of a split; [n] int32."""
        if split not in self._marks:
            from pit_jax.data import preprocessors

            dataset = self._source().get_dataset(split)
            dataset = preprocessors.tokenize(dataset, self.vocabulary)
            dataset = preprocessors.mark_too_long(
                dataset, self.vocabulary, self.lengths, self._reflection
            )
            dataset = dataset.map(lambda features: features["too_long"]).batch(_CHUNK)
            chunks = list(dataset.as_numpy_iterator())
            self._marks[split] = np.concatenate([np.zeros(0, np.int32), *chunks])
        return self._marks[split]

    def _table(self, stage: str, split: str, fold: str | None, references: str) -> Batch:
        """Every row of a stage's batches, as arrays with the rows first."""
        source = self._source()
        from pit_jax.data import sources, tasks

        if stage not in tasks.STAGES:
            raise ValueError(f"stage: got {stage!r}, expected one of {', '.join(tasks.STAGES)}")
        row = tasks.STAGES[stage]
        if fold is None:
            fold = row.fold if split == "train" and row.fold else _ALL
        source_split = _source_split(split, fold)
        store = None
        if references != DATA_REFERENCES:
            if stage != "rl_pit":
                raise ValueError(f"references: got {references!r} for {stage}, expected rl_pit")
            store = ReferenceStore(references)
        key = (stage, source_split, store and store.fingerprint)
        if key not in self._tables:
            task = self._tasks[stage]
            if store is not None:
                reference_source = sources.ReferenceSource(
                    store, source.examples(source_split), self.vocabulary
                )
                task = task.replace(name=f"{task.name}_references", source=reference_source)
                source_split = "train"
            lengths = tasks.feature_lengths(stage, self.vocabulary, self.lengths)
            # Only the SFT stages can be packed; the others always have one example a row.
            pack = self._packed_length > 0 and "inputs" in row.features
            if pack:
                lengths = _packed(stage, lengths, self._packed_length)
            if len(self._tables) == _KEPT_TABLES:
                self._tables.pop(next(iter(self._tables)))
            self._tables[key] = _materialise(task, source_split, row.converter(pack=pack), lengths)
        return self._tables[key]


def batch_indices(
    size: int,
    batch_size: int,
    seed: int,
    shuffle: bool = True,
    start_batch: int = 0,
    num_epochs: int | None = None,
) -> Iterator[np.ndarray]:
    """Row numbers [batch_size] of each training batch, from batch `start_batch` of the run on.

    Epoch e goes through a permutation drawn from (seed, e), in size // batch_size whole batches.
    """
    per_epoch = size // batch_size
    first_epoch, first_batch = divmod(start_batch, per_epoch)
    epochs = itertools.count(first_epoch) if num_epochs is None else range(first_epoch, num_epochs)
    for epoch in epochs:
        order = np.arange(size)
        if shuffle:
            order = np.random.default_rng([seed, epoch]).permutation(size)
        for batch in range(first_batch if epoch == first_epoch else 0, per_epoch):
            yield order[batch * batch_size : (batch + 1) * batch_size]


def _evaluation_batches(
    table: Batch, batch_size: int, mine: slice, start_batch: int
) -> Iterator[Batch]:
    size = _rows(table)
    for start in range(start_batch * batch_size, size, batch_size):
        rows = np.arange(start, start + batch_size)
        weight = (rows < size).astype(np.float32)
        rows = np.where(rows < size, rows, start)
        batch = {name: array[rows[mine]] for name, array in table.items()}
        yield {**batch, "weight": weight[mine]}


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
    dataset = converter(dataset, lengths).batch(_CHUNK)
    chunks = list(dataset.as_numpy_iterator())
    return {
        name: np.concatenate(
            [np.zeros((0, *spec.shape[1:]), spec.dtype.as_numpy_dtype)]
            + [chunk[name] for chunk in chunks]
        )
        for name, spec in dataset.element_spec.items()
    }


def _packed(stage: str, lengths: dict[str, int], row: int) -> dict[str, int]:
    """Feature lengths whose sum is `row`; a longer bound on the inputs changes no example."""
    if row < sum(lengths.values()):
        raise UserError(
            f"{stage}: got packed_length={row}, expected at least {sum(lengths.values())}, the "
            "longest example that fits the windows"
        )
    return {**lengths, "inputs": row - lengths["targets"]}


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


def _rows(table: Batch) -> int:
    return len(next(iter(table.values())))


def _source_split(split: str, fold: str) -> str:
    if split not in SPLITS or fold not in (*FOLDS, _ALL):
        raise ValueError(
            f"split, fold: got {split!r}, {fold!r}; expected one of {', '.join(SPLITS)} and one of "
            f"{', '.join(FOLDS)}, {_ALL}"
        )
    return split if fold == _ALL else f"{split}_{fold}"
