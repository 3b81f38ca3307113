"""Says what each task is made of, and registers it as a seqio Task. Imports TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from pit_jax.data.flat_arrays import Append
from pit_jax.data.layouts import FEATURES, UNLIKELY, Lengths
from pit_jax.data.rows import Feature, RowWriter
from pit_jax.data.seqio_tasks import feature_converters, preprocessors
from pit_jax.data.sequences import SEQUENCES
from pit_jax.data.vocabularies.base import Vocabulary

_CHUNK = 512

# Our vocabularies have seqio's methods without importing it; this makes isinstance agree.
seqio.Vocabulary.register(Vocabulary)


@dataclasses.dataclass(frozen=True)
class TaskRow:
    """Describes a row of TASKS.

    Attributes:
      converter: makes the model's features from the task's.
      metrics: what seqio's Evaluator computes of a model's scores or predictions.
    """

    converter: type[seqio.FeatureConverter]
    metrics: tuple[Callable, ...]


def log_likelihood(targets: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """Takes the mean score of a language model."""
    del targets
    return {"log_likelihood": float(np.mean(scores))}


def exact_match(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Computes the share of predictions that are the chosen response."""
    pairs = zip(targets, predictions, strict=True)
    return {"exact_match": float(np.mean([target == guess for target, guess in pairs]))}


def pair_accuracy(targets: Sequence[str], scores: Any) -> dict[str, float]:
    """Measures how often, and by how much, a reward model prefers the chosen response.

    Args:
      targets: not used.
      scores: (margins, scores by name); a margin above 0 is right.
    """
    del targets
    margins, _ = scores
    return {"accuracy": float(np.mean(np.greater(margins, 0))), "margin": float(np.mean(margins))}


_SUPERVISED = (log_likelihood, exact_match)
_SFT = TaskRow(feature_converters.SFTFeatureConverter, _SUPERVISED)
_TREE = TaskRow(feature_converters.TreeFeatureConverter, (pair_accuracy,))
_PROMPT = TaskRow(feature_converters.PromptFeatureConverter, (log_likelihood,))

TASKS = {
    "pretrain": TaskRow(feature_converters.PretrainFeatureConverter, _SUPERVISED),
    "sft_policy": _SFT,
    "sft_pit": _SFT,
    "sft_pit_reflection": _SFT,
    **dict.fromkeys(
        UNLIKELY, TaskRow(feature_converters.UnlikelihoodFeatureConverter, _SUPERVISED)
    ),
    "rm_policy": _TREE,
    "rm_gap": _TREE,
    "rm_gap_pair": _TREE,
    "rl_policy": _PROMPT,
    "rl_pit": _PROMPT,
    "rl_pit_difference": TaskRow(
        feature_converters.DifferencePromptFeatureConverter, (log_likelihood,)
    ),
}


def build_task(
    name: str,
    task: str,
    source: seqio.DataSource,
    vocabulary: Vocabulary,
    lengths: Lengths,
) -> seqio.Task:
    """Makes a seqio Task over `source`: tokenize, drop what is too long, build the sequences.

    Args:
      name: of the seqio Task, letters, digits, `_`, `.`, `:` only.
      task: a key of TASKS.
      source: ExampleSource, or ReferenceSource for `rl_pit`.
      vocabulary: of every feature.
      lengths: the windows.

    Raises:
      ValueError: if the task is unknown.
    """
    if task not in TASKS:
        raise ValueError(f"task: got {task!r}, expected one of {', '.join(TASKS)}")
    row = TASKS[task]
    steps = [
        functools.partial(preprocessors.tokenize, vocabulary=vocabulary),
        functools.partial(
            preprocessors.mark_left_out, vocabulary=vocabulary, lengths=lengths.of_task(task)
        ),
        preprocessors.drop_left_out,
        functools.partial(
            preprocessors.build_sequences, vocabulary=vocabulary, sequences=SEQUENCES[task]
        ),
    ]
    features = {
        feature: seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32)
        for feature in FEATURES[task]
    }
    return seqio.Task(
        name,
        source=source,
        output_features=features,
        preprocessors=steps,
        metric_fns=list(row.metrics),
        shuffle_buffer_size=None,
    )


def append_rows(
    append: Append, task: str, built: Iterable[seqio.Task], lengths: Mapping[str, int]
) -> None:
    """Appends the rows of seqio Tasks, in order, and how many each of them has.

    Args:
      append: adds to the flat arrays.
      task: the key of TASKS that they were built by.
      built: the seqio Tasks.
      lengths: the most tokens of each feature of their sequences.
    """
    writer = RowWriter(append)
    for each in built:
        dataset = each.get_dataset(
            lengths, "train", shuffle=False, trim_output_features=False, try_in_mem_cache=False
        )
        dataset = dataset.map(lambda features: {name: features[name] for name in lengths})
        dataset, count = TASKS[task].converter(pack=False)(dataset, lengths), 0
        none = {
            name: np.zeros((0, *spec.shape), spec.dtype.as_numpy_dtype)
            for name, spec in dataset.element_spec.items()
        }
        for rows in itertools.chain([none], dataset.batch(_CHUNK).as_numpy_iterator()):
            writer.write({name: Feature.of_padded(array) for name, array in rows.items()})
            count += len(next(iter(rows.values())))
        append("counts", np.array([count], np.int64))


def register_tasks(
    sources: Mapping[str, seqio.DataSource],
    vocabulary: Vocabulary,
    lengths: Lengths,
) -> dict[tuple[str, str], seqio.Task]:
    """Registers `{dataset}_{task}` for every task; a name registered before is replaced.

    Returns:
      (dataset, task) -> its seqio Task.
    """
    registered = {}
    for dataset, source in sources.items():
        for task in TASKS:
            name = f"{dataset}_{task}"
            built = build_task(name, task, source, vocabulary, lengths)
            registered[dataset, task] = built
            seqio.MixtureRegistry.remove(name)
            seqio.TaskRegistry.remove(name)
            seqio.TaskRegistry.add_provider(name, built)
    return registered


def mixture_name(name: str, task: str) -> str:
    """Names a task's Mixture of the datasets that are called `name` together."""
    return f"{name}_mixture_{task}"


def register_mixtures(name: str, datasets: Sequence[str], rates: Sequence[float]) -> None:
    """Registers `{name}_mixture_{task}`, a seqio Mixture of the datasets' tasks, for every task.

    This is for readers other than InputPipeline, which mixes by row number to keep the order exact.

    Args:
      name: of the mixtures.
      datasets: whose tasks are registered.
      rates: of the datasets; none draws by their numbers of examples.
    """
    for task in TASKS:
        mixture = mixture_name(name, task)
        seqio.MixtureRegistry.remove(mixture)
        each = [f"{dataset}_{task}" for dataset in datasets]
        default = seqio.mixing_rate_num_examples
        pairs = list(zip(each, rates or [default] * len(each), strict=True))
        seqio.MixtureRegistry.add(mixture, pairs)
