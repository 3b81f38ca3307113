"""Defines the seqio Task of every stage in a table, and registers it. Imports TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from pit_jax.data.layouts import Layout, Lengths
from pit_jax.data.seqio_tasks import feature_converters, preprocessors
from pit_jax.data.vocabularies.base import Vocabulary

# Our vocabularies have seqio's methods without importing it; this makes isinstance agree.
seqio.Vocabulary.register(Vocabulary)


@dataclasses.dataclass(frozen=True)
class Stage:
    """Describes a row of STAGES.

    Attributes:
      fold: fold of the train split that the stage learns from; None for all of it.
      sequences: makes the task's features from token pieces (preprocessors.py).
      features: task feature -> name of its width in layouts.Widths; None for a number.
      converter: makes the model's features from the task's.
      metrics: what seqio's Evaluator computes of a model's scores or predictions.
    """

    fold: str | None
    sequences: Callable
    features: Mapping[str, str | None]
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
_RL = {"chosen": "response", "example_index": None}

STAGES = {
    "pretrain": Stage(
        "sft",
        preprocessors.pretrain,
        {"inputs": "pit", "targets": "response"},
        feature_converters.PretrainFeatureConverter,
        _SUPERVISED,
    ),
    "sft_policy": Stage(
        "sft",
        preprocessors.sft_policy,
        {"inputs": "policy", "targets": "response"},
        feature_converters.SFTFeatureConverter,
        _SUPERVISED,
    ),
    "sft_pit": Stage(
        "sft",
        preprocessors.sft_pit,
        {"inputs": "pit", "targets": "response"},
        feature_converters.SFTFeatureConverter,
        _SUPERVISED,
    ),
    "rm_policy": Stage(
        "rm",
        preprocessors.rm_policy,
        {"tokens": "pair_row", "blocks": "pair_row"},
        feature_converters.TreeFeatureConverter,
        (pair_accuracy,),
    ),
    "rm_gap": Stage(
        "rm",
        preprocessors.rm_gap,
        {"tokens": "gap_row", "blocks": "gap_row"},
        feature_converters.TreeFeatureConverter,
        (pair_accuracy,),
    ),
    "rl_policy": Stage(
        "rl",
        preprocessors.rl_policy,
        {"prompt": "policy", "reward_prompt": "reward", **_RL},
        feature_converters.PromptFeatureConverter,
        (log_likelihood,),
    ),
    "rl_pit": Stage(
        "rl",
        preprocessors.rl_pit,
        {"prompt": "pit", "reward_prompt": "gap", **_RL},
        feature_converters.PromptFeatureConverter,
        (log_likelihood,),
    ),
}


def feature_lengths(stage: str, vocabulary: Vocabulary, lengths: Lengths) -> dict[str, int]:
    """Returns the length of every task feature of a stage, in tokens; 1 for a number."""
    widths = Layout(vocabulary).widths(lengths)
    return {
        name: 1 if width is None else getattr(widths, width)
        for name, width in STAGES[stage].features.items()
    }


def build_task(
    name: str,
    stage: str,
    source: seqio.DataSource,
    vocabulary: Vocabulary,
    lengths: Lengths,
    reflection: bool = False,
) -> seqio.Task:
    """Makes a stage's Task over `source`: tokenize, drop what is too long, build the sequences.

    Args:
      name: name of the task, letters, digits, `_`, `.`, `:` only.
      stage: a key of STAGES.
      source: an ExampleSource, or a ReferenceSource for `rl_pit`.
      vocabulary: the vocabulary of every feature.
      lengths: the windows.
      reflection: whether `sft_pit` writes the reflection before the response (Appendix K).

    Raises:
      ValueError: if the stage is unknown.
    """
    if stage not in STAGES:
        raise ValueError(f"stage: got {stage!r}, expected one of {', '.join(STAGES)}")
    row = STAGES[stage]
    sequences = row.sequences
    if reflection and stage == "sft_pit":
        sequences = preprocessors.sft_pit_reflection
    steps = [
        functools.partial(preprocessors.tokenize, vocabulary=vocabulary),
        functools.partial(
            preprocessors.mark_too_long,
            vocabulary=vocabulary,
            lengths=lengths,
            reflection=reflection,
        ),
        preprocessors.drop_too_long,
        functools.partial(
            preprocessors.build_sequences, vocabulary=vocabulary, sequences=sequences
        ),
    ]
    features = {
        feature: seqio.Feature(vocabulary, add_eos=False, dtype=tf.int32)
        for feature in row.features
    }
    return seqio.Task(
        name,
        source=source,
        output_features=features,
        preprocessors=steps,
        metric_fns=list(row.metrics),
        shuffle_buffer_size=None,
    )


def register_tasks(
    sources: Mapping[str, seqio.DataSource],
    vocabulary: Vocabulary,
    lengths: Lengths,
    reflection: bool = False,
) -> dict[tuple[str, str], seqio.Task]:
    """Registers `{dataset}_{stage}` for every stage; a name registered before is replaced.

    Returns:
      (dataset, stage) -> its Task.
    """
    tasks = {}
    for dataset, source in sources.items():
        for stage in STAGES:
            name = f"{dataset}_{stage}"
            task = build_task(name, stage, source, vocabulary, lengths, reflection)
            tasks[dataset, stage] = task
            seqio.MixtureRegistry.remove(name)
            seqio.TaskRegistry.remove(name)
            seqio.TaskRegistry.add_provider(name, task)
    return tasks


def mixture_name(name: str, stage: str) -> str:
    """Names a stage's Mixture of the datasets that are called `name` together."""
    return f"{name}_mixture_{stage}"


def register_mixtures(name: str, datasets: Sequence[str], rates: Sequence[float]) -> None:
    """Registers `{name}_mixture_{stage}`, a seqio Mixture of the datasets' tasks, for every stage.

    This is for readers other than InputPipeline, which mixes by row number to keep the order exact.

    Args:
      name: name of the datasets together.
      datasets: names of datasets whose tasks are registered.
      rates: rates of the datasets; without any, they are drawn by their numbers of examples.
    """
    for stage in STAGES:
        mixture = mixture_name(name, stage)
        seqio.MixtureRegistry.remove(mixture)
        each = [f"{dataset}_{stage}" for dataset in datasets]
        default = seqio.mixing_rate_num_examples
        pairs = list(zip(each, rates or [default] * len(each), strict=True))
        seqio.MixtureRegistry.add(mixture, pairs)
