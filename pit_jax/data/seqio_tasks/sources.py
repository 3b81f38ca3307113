"""Has seqio's data sources, of examples and of a reference store. Imports TensorFlow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from pit_jax.data.examples import FOLDS, TEXTS, Example, prompt_hash, turns_json
from pit_jax.data.reference_store import ReferenceStore
from pit_jax.data.texts import Examples, of_fold
from pit_jax.data.vocabularies.base import Vocabulary
from pit_jax.errors import UserError

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

    References for other examples than the given ones are left out: those are another source's.
    Elements are read from the store by index, in its order. They have what those of ExampleSource
    have, and `reference`, int32 [reference]: the sampled ids up to EOS without ids that stand for
    no text, so that a control token that a model has sampled is forged nowhere.
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
        self._examples = Examples.of(examples)
        wanted = np.array(store.example_indices, np.int64)
        self._positions = np.flatnonzero(np.isin(wanted, self._examples.indices))
        order = np.argsort(self._examples.indices)
        found = np.searchsorted(self._examples.indices, wanted[self._positions], sorter=order)
        self._places = order[found]
        self._check_prompts()
        counts = {"train": len(self._positions)}
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

    def _check_prompts(self) -> None:
        for position, place in zip(self._positions, self._places, strict=True):
            expected = self._store[int(position)].get("prompt_hash")
            example = self._examples[int(place)]
            if expected and (got := prompt_hash(example.prompt)) != expected:
                raise UserError(
                    f"{self._store.directory}: has a reference for another prompt of example "
                    f"{example.index} ({expected} -> {got}); bring the data back that it was "
                    "sampled from, or delete the stage's folder to train it again"
                )

    def _elements(self) -> Iterator[dict]:
        for position, place in zip(self._positions, self._places, strict=True):
            record = self._store[int(position)]
            example = self._examples[int(place)]
            element = {field: getattr(example, field).encode() for field in TEXTS}
            element["index"] = np.int32(example.index)
            element["turns"] = turns_json(example.prompt).encode()
            ids = self._vocabulary.text_ids(record["reference_tokens"])
            if self._text_window:
                ids = self._vocabulary.encode(record["text"])[: self._text_window]
            element["reference"] = np.array(ids, np.int32)
            yield element


def _refuse_shards(shard_info) -> None:
    if shard_info is not None and shard_info.num_shards > 1:
        raise ValueError(
            f"shard_info: got {shard_info}, expected None or one shard; every host makes the "
            "whole of each batch (input_pipeline.py)"
        )
