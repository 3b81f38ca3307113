"""Batches of every task, in an order that one seed determines; the entry point of the data layer.

Examples become arrays once, and batches are gathered from these by index. So the k-th batch is a
function of (seed, k) alone: a run restarted at batch k sees the batches of an uninterrupted run,
and all hosts see the same. The rows of a task are those of its seqio Task, which T5X reads too: the
examples of the data are made rows many at a time, in NumPy, and equal to them; references that a
policy has sampled stream through the Task itself, for which TensorFlow is imported.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pit_jax.data import batching, datasets, layouts, tables, task_rows, windows
from pit_jax.data.batching import Batch, BatchingConfig
from pit_jax.data.examples import FOLDS, SPLITS, Example
from pit_jax.data.flat_arrays import Append, Cache
from pit_jax.data.layouts import FEATURES, TASK_FOLDS, TASK_ROWS, Layout, Lengths, feature_lengths
from pit_jax.data.reference_store import References, ReferenceStore
from pit_jax.data.rows import features
from pit_jax.data.texts import Examples, digest, of_fold
from pit_jax.data.vocabularies.base import Vocabulary
from pit_jax.errors import UserError, quiet_stderr

DATA_REFERENCES = "data"
_ALL = "all"
_KEPT_TABLES = 4


class InputPipeline:
    """Gives a dataset, or a mixture of several, as batches and as text.

    Attributes:
      config: the dataset.
      vocabulary: the vocabulary of every token array.
      lengths: the windows, those that suit the data if they are to come from it; what is longer is
        in neither batches nor `examples`.
      batching: how examples of different lengths share batches.
      beside: (vocabulary, windows) of other models that the examples have to fit too.
    """

    def __init__(
        self,
        config: datasets.DatasetConfig | datasets.MixtureConfig,
        vocabulary: Vocabulary,
        lengths: Lengths,
        batching: BatchingConfig = BatchingConfig(),
        beside: Sequence[tuple[Vocabulary, Lengths]] = (),
        cache: str | os.PathLike[str] = "",
    ):
        """Reads or generates the dataset.

        Args:
          config: the dataset.
          vocabulary: what vocabularies.load returns.
          lengths: the windows.
          batching: packing and length buckets.
          beside: see the attribute.
          cache: where the rows of big data are kept, for all processes of a host and later runs;
            empty for temporary files.

        Raises:
          UserError: if the dataset can't be read.
        """
        self.config = config
        self.vocabulary = vocabulary
        self.lengths = lengths
        self.batching = batching
        self.beside = list(beside)
        self._cache = Cache(cache)
        self._layouts = [Layout(each) for each in (vocabulary, *(v for v, _ in beside))]
        templates = any(layout.vocabulary.has_template for layout in self._layouts)
        check = self._check if templates else None
        models = [
            (v.fingerprint, v.protocol) for v in (layout.vocabulary for layout in self._layouts)
        ]
        read = datasets.read(config, check, self._cache, check and models)
        if lengths.from_data:
            found = windows.from_data(read.divided(), self._layouts[0])
            self.lengths = dataclasses.replace(found, reflection=lengths.reflection)
        windows_of = [self.lengths, *(of_model for _, of_model in beside)]
        self._models = [
            (task_rows.ragged_layout(layout.vocabulary), of_model.of_task(""))
            for layout, of_model in zip(self._layouts, windows_of, strict=True)
        ]
        self._datasets = read.divided(lambda example: bool(self._fitting_sizes(example)))
        self._rates = config.rates if isinstance(config, datasets.MixtureConfig) else ()
        self._tables: dict[tuple, tables.Table] = {}
        self._counts: dict[str, Batch] = {}
        self._marks: dict[str, np.ndarray] = {}
        self._tasks: dict[tuple[str, str], Any] = {}

    @functools.cached_property
    def digest(self) -> str:
        """A digest of the examples of every split, their groups, and how often they are drawn."""
        return digest([each.splits for each in self._datasets], self._rates)

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
        limit: int = 0,
        reward: InputPipeline | None = None,
    ) -> Iterator[Batch]:
        """Batches of a task; their keys and shapes are in the docstrings of feature_converters.py.

        In training, the rows of an epoch that don't fill a batch are left out; they are others in
        each epoch. A mixture's rates hold in `train`; its dev and test are one source.

        If the data is gone through once in order (`shuffle=False, num_epochs=1`), the last batch is
        filled up with copies of its first row, and every batch has `weight` [B] float32: 1 for a
        row of the data, 0 for a filler. In dev and test the first rows are a sample of all.

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
          limit: for data in order, how many rows to go through; 0 takes all.
          reward: of PPO's prompts, the pipeline of the reward model, where that reads other ids;
            the critic's prompt is then in the ids of this one.

        Raises:
          UserError: if there is less than one batch of examples, or the store isn't sound.
        """
        table = self.table(task, split, fold, references)
        size = sum(table.sources)
        evaluating = not shuffle and num_epochs == 1
        if limit and not evaluating:
            raise ValueError(f"limit: got {limit} of shuffled or repeated rows, expected 0")
        if size < (1 if evaluating else batch_size):
            what = f"rows of {table.packing.width} tokens" if table.packing else "examples"
            raise UserError(
                f"{task}: {size} {what} in split {split!r} (fold {fold or 'of the task'}), "
                f"expected at least batch_size={batch_size}; {self.counts()}"
            )
        if evaluating:
            return table.in_order(batch_size, start_batch, limit)
        rates = self._rates if len(table.sources) > 1 else ()
        if rates and min(table.sources) == 0:
            empty = self._datasets[table.sources.index(0)].name
            raise UserError(f"{task}: the mixture draws from {empty}, which has no rows")
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
        if reward is None:
            return (table.batch(numbers) for numbers in order)
        other = reward.table(task, split, fold, references, as_text=True)
        if other.sources != table.sources:
            raise ValueError(f"{task}: got {other.sources} rows, expected {table.sources}")
        return (tables.read_by(table.batch(each), other.batch(each)) for each in order)

    def register(self, task: str) -> str:
        """Returns the name of the task, or of its Mixture, in seqio's registry."""
        self._register()
        from pit_jax.data.seqio_tasks import tasks

        if len(self._datasets) > 1:
            return tasks.mixture_name(self.config.name, task)
        return self._tasks[self._datasets[0].name, task].name

    def feature_lengths(self, task: str) -> dict[str, int]:
        """Returns the length in tokens of every feature of the task."""
        return feature_lengths(task, Layout(self.vocabulary).widths(self.lengths))

    def feature_converter(self, task: str) -> type:
        """Returns the seqio feature converter of the task."""
        self._register()
        from pit_jax.data.seqio_tasks import tasks

        return tasks.TASKS[task].converter

    def num_rows(
        self, task: str, split: str, fold: str | None = None, references: str = DATA_REFERENCES
    ) -> int:
        """Counts the rows of an epoch of `batches` (packed rows if packing)."""
        return sum(self.table(task, split, fold, references).sources)

    def row_bounds(
        self, task: str, split: str, enough: int, *, fold: str | None = None, sampled: bool = False
    ) -> dict[str, tuple[int, int]]:
        """Bounds what `num_rows` would count, without tokenizing everything.

        Examples are measured one by one until `enough` rows of a dataset are certain. Where they
        aren't, the bounds are the exact number, unless rows are packed.

        Args:
          task: a key of layouts.FEATURES.
          split: `train`, `dev` or `test`.
          enough: how many rows suffice, such as a batch.
          fold: as in `batches`.
          sampled: whether the references of `rl_pit` are sampled ones, one for each prompt.

        Returns:
          Name of each dataset of a mixture -> rows at least and rows at most. Dev and test of a
          mixture are one, under its name.
        """
        each = 1 if sampled else TASK_ROWS.get(task, 1)
        length = self.batching.packed_length if "inputs" in FEATURES[task] else 0
        bounds = {}
        for name, examples in self._parts(split, _fold(task, split, fold)):
            least, most, tokens = 0, each * len(examples), 0
            for example in examples:
                if least >= enough:
                    break
                if not (sizes := self._fitting_sizes(example, task)):
                    most -= each
                    continue
                tokens += each * (sizes["prompt"] + min(sizes["chosen"], sizes["rejected"]) + 1)
                least = -(-tokens // length) if length else least + each
            bounds[name] = (least, most)
        return bounds

    def _check(self, e: Example) -> None:
        """Raises ValueError if a chat template refuses the prompt, or a response has no target."""
        for layout in self._layouts:
            layout.policy_prompt(e.prompt)
            for name in ("chosen", "rejected"):
                if not layout.vocabulary.encode(getattr(e, name)):
                    why = "expected some to learn"
                    raise ValueError(f"got a {name} response without a token, {why}")

    def _fitting_sizes(self, e: Example, task: str = "") -> dict[str, int]:
        """The tokens of each field of an example that is learned from; nothing if it isn't."""
        sizes, left_out = self._measure(e, task)
        return {} if left_out else sizes

    def _measure(self, e: Example, task: str = "") -> tuple[dict[str, int], int]:
        """The tokens of each field, and what preprocessors.mark_left_out would mark it with.

        What doesn't fit the windows of another model is marked too.
        """
        sizes, left_out = windows.measured(e, self._layouts[0], self.lengths.of_task(task))
        return sizes, left_out or self._left_out_beside(e)

    def _fitting_beside(self, examples: Examples) -> Examples:
        if not self.beside:
            return examples
        return examples.select(task_rows.left_out(examples, self._models[1:]) == 0)

    def _left_out_beside(self, e: Example) -> int:
        for layout, (_, lengths) in zip(self._layouts[1:], self.beside, strict=True):
            if left_out := windows.measured(e, layout, lengths.of_task(""))[1]:
                return left_out
        return 0

    def _parts(self, split: str, fold: str = _ALL) -> list[tuple[str, Examples]]:
        """The name and the examples of each source of a split's batches, too long ones as well."""
        if split not in SPLITS or fold not in (*FOLDS, _ALL):
            raise ValueError(
                f"split, fold: got {split!r}, {fold!r}; expected one of {', '.join(SPLITS)} and "
                f"one of {', '.join(FOLDS)}, {_ALL}"
            )
        parts = [(each.name, each.splits[split]) for each in self._datasets]
        if split != "train" and len(parts) > 1:
            parts = [(self.config.name, Examples.joined([part for _, part in parts]))]
        if fold == _ALL:
            return parts
        return [(name, of_fold(examples, fold)) for name, examples in parts]

    def examples(self, split: str, fold: str = _ALL) -> Examples:
        """Returns the examples that fit the windows, as text, in the order of the dataset.

        The first ones of dev and test are a sample of all (`datasets.load`).
        """
        examples = Examples.joined([part for _, part in self._parts(split, fold)])
        return examples.select(self._left_out(split)[examples.indices] == 0)

    def counts(self) -> str:
        """Says on one line, for a message, what became of the pairs; see `report`."""
        report = self.report()
        parts = {"splits": report["splits"], "train": report["folds"], "dropped": report["dropped"]}
        told = [
            f"{name} " + ", ".join(f"{count} {what}" for what, count in counts.items())
            for name, counts in parts.items()
            if counts
        ]
        return f"of {report['read']} pairs read: " + "; ".join([*told, *report["malformed"][:1]])

    def report(self) -> dict[str, Any]:
        """Counts pairs: `read`, `dropped` by reason, and what is left: `splits`, `folds` of train.

        `malformed` lists the first lines that were skipped, as `file:line: …`; `shapes` says as
        what the files were read.

        Every pair is counted once: read = sum of dropped + sum of splits. Of several reasons the
        first one in layouts.LEFT_OUT counts.
        """
        dropped: collections.Counter[str] = collections.Counter()
        for each in self._datasets:
            dropped.update(each.dropped)
        splits = {}
        for split in SPLITS:
            marks = self._left_out(split)
            splits[split] = int(np.sum(marks == 0))
            for number, reason in enumerate(layouts.LEFT_OUT, 1):
                if count := int(np.sum(marks == number)):
                    dropped[reason] += count
        return {
            "read": sum(each.read for each in self._datasets),
            "dropped": dict(dropped),
            "splits": splits,
            "folds": {fold: len(self.examples("train", fold)) for fold in FOLDS},
            "malformed": [line for each in self._datasets for line in each.malformed],
            "shapes": [each.shape for each in self._datasets if each.shape],
        }

    def _register(self) -> None:
        """Registers the seqio tasks of each dataset, once."""
        if not self._tasks:
            with quiet_stderr():
                from pit_jax.data.seqio_tasks import sources, tasks
            names = [each.name for each in self._datasets]
            self._tasks = tasks.register_tasks(
                {each.name: sources.ExampleSource(each.splits) for each in self._datasets},
                self.vocabulary,
                self.lengths,
            )
            if len(names) > 1:
                tasks.register_mixtures(self.config.name, names, self._rates)

    def token_counts(self, split: str) -> Batch:
        """Counts the tokens of every example of a split, by its index; of those over a window too.

        Returns:
          `prompt` (of the whole of `Human: {x}Assistant:`), `chosen` and `rejected` without EOS,
          how many of each are unknown (`NAME_unknown`), and `left_out`, a number of
          layouts.LEFT_OUT from 1, or 0; each [n] int32.
        """
        if split not in self._counts:
            parts = [task_rows.token_counts(e, *self._models[0]) for _, e in self._parts(split)]
            self._counts[split] = {
                name: np.concatenate([part[name] for part in parts]) for name in parts[0]
            }
        return self._counts[split]

    def _left_out(self, split: str) -> np.ndarray:
        if split not in self._marks:
            examples = Examples.joined([part for _, part in self._parts(split)])
            self._marks[split] = task_rows.left_out(examples, self._models)
        return self._marks[split]

    def table(
        self,
        task: str,
        split: str,
        fold: str | None = None,
        references: str = DATA_REFERENCES,
        as_text: bool = False,
    ) -> tables.Table:
        """Holds every row of `batches`; `as_text` says that references are read as text.

        Their ids in a store are of M_PIT's vocabulary, which a reward model may not have.
        """
        fold = _fold(task, split, fold)
        store = None
        if references != DATA_REFERENCES:
            if not task.startswith("rl_pit"):
                raise ValueError(f"references: got {references!r} for {task}, expected rl_pit")
            store = ReferenceStore(references)
        key = (task, split, fold, store and store.fingerprint, as_text)
        if key not in self._tables:
            lengths = self.feature_lengths(task)
            parts = [self._fitting_beside(part) for _, part in self._parts(split, fold)]

            def fill(append: Append) -> None:
                if store is not None:
                    self._stream(append, task, parts, store, as_text)
                    return
                what = f"pairs made rows of {task}"
                sources = (task_rows.columns_of(part, self.vocabulary, what) for part in parts)
                task_rows.write(append, task, sources, self._models[0][0], self.lengths, lengths)

            arrays = self._cache.arrays(
                fill, sum(part.size() for part in parts), task, lambda: self._identity(key)
            )
            counts = arrays.pop("counts").tolist()
            widths = task_rows.widths(task, lengths)
            if len(self._tables) == _KEPT_TABLES:
                self._tables.pop(next(iter(self._tables)))
            rows = features(arrays, widths)
            self._tables[key] = tables.make(task, rows, counts, self.batching)
        return self._tables[key]

    def _identity(self, key: tuple) -> tuple:
        """All that the rows of a table depend on, beside the code."""
        own = (self.vocabulary, self.lengths)
        models = [(v.fingerprint, v.protocol, windows) for v, windows in (own, *self.beside)]
        return (self.digest, models, *key)

    def _stream(
        self,
        append: Append,
        task: str,
        parts: list[Examples],
        store: ReferenceStore,
        as_text: bool,
    ) -> None:
        """Appends the rows of sampled references, those of each source through a seqio Task."""
        known = np.concatenate([examples.indices for examples in parts])
        found = np.array(store.example_indices, np.int64)
        if len(missing := found[~np.isin(found, known)]):
            raise UserError(
                f"{store.directory}: has a reference for example {missing[0]}, which isn't among "
                f"the {len(known)} examples read; was it sampled from another dataset?"
            )
        with quiet_stderr():
            from pit_jax.data.seqio_tasks import sources, tasks
        own = self.vocabulary
        window = self.lengths.reference if as_text else 0
        references = (References(store, part, own, window) for part in parts)
        built = (
            tasks.build_task(f"{task}_rows", task, sources.ReferenceSource(r), own, self.lengths)
            for r in references
        )
        tasks.append_rows(append, task, built, self.feature_lengths(task))


def _fold(task: str, split: str, fold: str | None) -> str:
    if task not in FEATURES:
        raise ValueError(f"task: got {task!r}, expected one of {', '.join(FEATURES)}")
    return fold or (TASK_FOLDS[task] if split == "train" else _ALL)
