"""Gives T5X the stages' batches to iterate over."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging
from clu.data import dataset_iterator
from etils import epath

from pit_jax import files
from pit_jax.adapters.t5x.setups import Setup
from pit_jax.data import reference_store
from pit_jax.data.input_pipeline import DATA_REFERENCES
from pit_jax.errors import UserError
from pit_jax.method import curriculum
from pit_jax.run import stage_training
from pit_jax.run.references import references_folder
from pit_jax.run.stages import RLStage

_CHECKPOINT = re.compile(r"checkpoint_(\d+)")


def get_dataset(
    cfg: Any,
    shard_id: int,
    num_shards: int,
    feature_converter_cls: Any,
    num_epochs: int | None = None,
    continue_from_last_checkpoint: bool = False,
    *,
    setup: Setup,
) -> Batches:
    """Returns the stage's training batches, those of pit_jax, for `train.get_dataset_fn`.

    Their order is a function of the run's seed. Nothing of T5X's DatasetConfig is used, but the
    batch size is checked.

    Raises:
      UserError: if the batch size isn't the stage's, or batches would come in several widths.
    """
    del feature_converter_cls, num_epochs, continue_from_last_checkpoint
    _check(cfg, setup)
    return Batches(setup, shard_id, num_shards)


def _check(cfg: Any, setup: Setup) -> None:
    if cfg.batch_size != setup.trained.batch_size:
        raise UserError(
            f"DatasetConfig.batch_size: got {cfg.batch_size}, expected "
            f"{setup.trained.batch_size}, the stage's; BATCH_SIZE sets both"
        )
    if (buckets := setup.config.batching.length_buckets) != 1:
        raise UserError(
            f"batching: got length_buckets={buckets}, expected 1: T5X compiles for one width"
        )


class Batches(dataset_iterator.DatasetIterator):
    """Iterates over the batches of all rounds of a stage, without end if it has no rounds.

    A saved state is the number of batches that the saved training state has seen. It isn't
    disturbed by T5X, which looks at the first batch before its loop.

    Args:
      setup: the stage.
      shard_id: which part of each batch's rows this process gets.
      num_shards: number of parts.
    """

    def __init__(self, setup: Setup, shard_id: int, num_shards: int):
        self._setup, self._stage = setup, setup.trained
        self._rows = _rows(setup, shard_id, num_shards)
        self.reset()

    def reset(self) -> None:
        """Goes back to the first batch."""
        self._go_to(0)
        self._first_step: int | None = None

    def _go_to(self, position: int) -> None:
        self._position = position
        self._batches = self._from(position)

    @property
    def element_spec(self) -> Mapping[str, dataset_iterator.ArraySpec]:
        """Types and shapes of this process's part of a batch."""
        return _spec(self._part(next(stage_training.train_batches(self._setup, self._stage, 0))))

    def __next__(self) -> Mapping[str, np.ndarray]:
        batch = next(self._batches)
        self._position += 1
        return self._part(batch)

    def save(self, filename: str | os.PathLike[str]) -> None:
        """Writes the position that goes with the checkpoint whose folder the file is in."""
        step = _step_of(filename)
        if self._first_step is None:  # T5X saves before its loop begins
            self._first_step = step
        state = {"batches": step - self._first_step}
        if not 0 <= self._position - state["batches"] <= 1:
            raise ValueError(f"{filename}: {self._position} batches read, expected {state}")
        files.write_whole(epath.Path(filename), json.dumps(state))

    def restore(self, filename: str | os.PathLike[str]) -> None:
        """Goes to the position that `save` wrote."""
        position = json.loads(epath.Path(filename).read_text())["batches"]
        self._first_step = _step_of(filename) - position
        self._go_to(position)

    load = restore

    def _part(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: array[self._rows] for name, array in batch.items()}

    def _from(self, position: int) -> Iterator[Mapping[str, np.ndarray]]:
        setup, stage = self._setup, self._stage
        if not isinstance(stage, RLStage):
            yield from stage_training.train_batches(setup, stage, position)
            return
        for number, round_, first, last in curriculum.locate(stage.rounds, position):
            references = _closed_store(setup, number) if round_.is_sampled else DATA_REFERENCES
            start = max(position, first)
            batches = stage_training.train_batches(setup, stage, start - first, number, references)
            yield from itertools.islice(batches, last - start)


def _closed_store(setup: Setup, number: int) -> str:
    """Returns the directory of a round's reference store, once PPOTrainer has filled it."""
    folder = references_folder(setup, setup.trained, number)
    if not reference_store.is_closed(folder):
        logging.info("Waiting for the references of round %d in %s", number, folder)
    while not reference_store.is_closed(folder):
        time.sleep(0.1)
    return str(folder)


def _step_of(filename: str | os.PathLike[str]) -> int:
    found = _CHECKPOINT.findall(os.fspath(filename))
    if not found:
        raise ValueError(f"{filename}: expected a path in a folder checkpoint_N")
    return int(found[-1])


def _rows(setup: Setup, shard_id: int, num_shards: int) -> slice:
    """Returns this process's rows of a batch."""
    count = setup.trained.batch_size // num_shards
    return slice(shard_id * count, (shard_id + 1) * count)


def _spec(batch: Mapping[str, np.ndarray]) -> dict[str, dataset_iterator.ArraySpec]:
    return {
        name: dataset_iterator.ArraySpec(array.dtype, array.shape) for name, array in batch.items()
    }


class HeldOut:
    """Iterates over the batches of a split in order, each time from the first.

    Args:
      setup: the stage.
      split: split of the data.
      shard_id, num_shards: which part of each batch's rows this process gets.
      limit: largest number of batches; 0 for all.
    """

    def __init__(self, setup: Setup, split: str, shard_id: int, num_shards: int, limit: int):
        self._setup, self._split = setup, split
        self._limit = limit * setup.trained.batch_size
        self._rows = _rows(setup, shard_id, num_shards)

    @property
    def element_spec(self) -> Mapping[str, dataset_iterator.ArraySpec]:
        """Types and shapes of this process's part of a batch."""
        return _spec(next(iter(self)))

    def __iter__(self) -> Iterator[Mapping[str, np.ndarray]]:
        setup = self._setup
        for batch in stage_training.held_out_batches(
            setup, setup.trained, self._split, self._limit
        ):
            part = {name: array[self._rows] for name, array in batch.items()}
            if "decoder_loss_weights" in part:  # rows that only fill up the last batch
                part["decoder_loss_weights"] = (
                    part["decoder_loss_weights"] * part.pop("weight")[:, None]
                )
            yield part


def get_eval_datasets(
    cfg: Any,
    shard_id: int,
    num_shards: int,
    eval_steps: int = 0,
    feature_converter_cls: Any = None,
    *,
    setup: Setup,
) -> Mapping[str, HeldOut]:
    """Returns held-out batches, for `train.train_eval_get_dataset_fn`.

    They are those of the split `cfg.split`, at most `eval_steps` of them; 0 takes all.

    Raises:
      UserError: as `get_dataset` does.
    """
    del feature_converter_cls
    _check(cfg, setup)
    return {setup.task: HeldOut(setup, cfg.split, shard_id, num_shards, eval_steps)}
