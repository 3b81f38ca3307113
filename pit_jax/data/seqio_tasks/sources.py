"""Has seqio's data sources, of examples and of a reference store. Imports TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from pit_jax.data.examples import FOLDS, TEXTS, Example, turns_json
from pit_jax.data.reference_store import References
from pit_jax.data.texts import Examples, of_fold

_CHUNK = 256


class ExampleSource(seqio.DataSource):
    """Offers examples in their order.

    A split `train` also offers `train_sft`, `train_rm` and `train_rl`, the three folds by the hash
    of the group. The elements have the text fields of Example as strings, `index`, int32, and
    `turns`, a string: what examples.turns_json makes of the prompt.
    """

    def __init__(self, splits: Mapping[str, Iterable[Example]]):
        self._examples = {split: Examples.of(examples) for split, examples in splits.items()}
        for split in tuple(self._examples):
            for fold in FOLDS:
                self._examples[f"{split}_{fold}"] = of_fold(self._examples[split], fold)
        counts = {split: len(examples) for split, examples in self._examples.items()}
        super().__init__(splits=tuple(counts), num_input_examples=counts, caching_permitted=False)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        return [split]

    def examples(self, split: str) -> Examples:
        """Returns the examples of a split or a fold of it, in order."""
        return self._examples[split]

    def get_dataset(self, split="train", shuffle=False, seed=None, shard_info=None, **_):
        """Is called by seqio; it never shuffles, as the order of batches is made elsewhere."""
        _refuse_shards(shard_info)
        examples = self._examples[split]

        def read(start: np.ndarray) -> list[Any]:
            some = examples.select(slice(int(start), int(start) + _CHUNK))
            return [*some.columns().values(), some.indices]

        names = [*TEXTS, "turns", "index"]
        types = [tf.string] * (len(names) - 1) + [tf.int32]

        def chunk(start: tf.Tensor) -> dict[str, tf.Tensor]:
            columns = tf.numpy_function(read, [start], types)
            return {
                name: tf.ensure_shape(column, [None])
                for name, column in zip(names, columns, strict=True)
            }

        return tf.data.Dataset.range(0, len(examples), _CHUNK).map(chunk).unbatch()


class ReferenceSource(seqio.DataSource):
    """Offers a store's sampled references, joined with the examples they were sampled for.

    Elements have what those of ExampleSource have, and `reference`, int32 [reference].
    """

    def __init__(self, references: References):
        self._references = references
        counts = {"train": len(references)}
        super().__init__(splits=("train",), num_input_examples=counts, caching_permitted=False)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return False

    def list_shards(self, split: str) -> Sequence[str]:
        return [split]

    def get_dataset(self, split="train", shuffle=False, seed=None, shard_info=None, **_):
        """Is called by seqio; it never shuffles, as the order of batches is made elsewhere."""
        _refuse_shards(shard_info)
        signature = {field: tf.TensorSpec([], tf.string) for field in (*TEXTS, "turns")}
        signature["index"] = tf.TensorSpec([], tf.int32)
        signature["reference"] = tf.TensorSpec([None], tf.int32)
        return tf.data.Dataset.from_generator(self._elements, output_signature=signature)

    def _elements(self) -> Iterator[dict]:
        for number, example in enumerate(self._references.examples):
            (ids,) = self._references.ids(slice(number, number + 1))
            element = {field: getattr(example, field).encode() for field in TEXTS}
            element["index"] = np.int32(example.index)
            element["turns"] = turns_json(example.prompt).encode()
            element["reference"] = np.array(ids, np.int32)
            yield element


def _refuse_shards(shard_info) -> None:
    if shard_info is not None and shard_info.num_shards > 1:
        raise ValueError(
            f"shard_info: got {shard_info}, expected None or one shard; every host makes the "
            "whole of each batch (input_pipeline.py)"
        )
