"""Makes the rows of a task of many examples at once, without TensorFlow.

They are the rows that the task's seqio Task and its feature converter make one by one: the
sequences are the same functions of module sequences, over Ragged columns in place of tensors.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pit_jax.data import ragged
from pit_jax.data.flat_arrays import Append
from pit_jax.data.layouts import FEATURES, Layout, Lengths
from pit_jax.data.progress import chunks
from pit_jax.data.ragged import Ragged
from pit_jax.data.rows import Feature, RowWriter
from pit_jax.data.sequences import SEQUENCES
from pit_jax.data.texts import Examples
from pit_jax.data.vocabularies.base import Vocabulary

Columns = dict[str, Ragged]


@dataclasses.dataclass(frozen=True)
class Padded:
    """Says what is padded on which side: name of a feature of the rows -> of the sequences."""

    left: Mapping[str, str]
    right: Mapping[str, str]


TREE_ROWS = Padded({}, {"tokens": "tokens", "blocks": "blocks"})
PROMPT_ROWS = Padded(
    {"prompt_tokens": "prompt", "reward_prompt_tokens": "reward_prompt"},
    {"chosen_tokens": "chosen", "example_index": "example_index"},
)
DIFFERENCE_ROWS = Padded(
    {**PROMPT_ROWS.left, "critic_prompt_tokens": "critic_prompt"},
    {**PROMPT_ROWS.right, "reference_tokens": "reference"},
)
_SFT = (
    *("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights"),
    *("decoder_segment_ids", "decoder_positions"),
)


def ragged_layout(vocabulary: Vocabulary) -> Layout:
    """Makes a Layout that joins and measures Ragged columns."""
    return Layout(vocabulary, join=ragged.join, size=Ragged.lengths, fill=Ragged.filled)


def encoded(examples: Examples, vocabulary: Vocabulary) -> Columns:
    """Encodes all texts of examples, without EOS; `index` has their numbers."""
    texts = examples.strings()
    prompts = vocabulary.encode_prompts(texts.pop("prompt"), texts.pop("turns"))
    found = {name: vocabulary.encode_batch(column) for name, column in texts.items()}
    return {"prompt": prompts, **found, "index": Ragged.of_numbers(examples.indices)}


def columns_of(examples: Examples, vocabulary: Vocabulary, what: str) -> Iterator[Columns]:
    """Yields the columns of examples, chunk by chunk, those of none too, and tells how far it is.

    Args:
      examples: the examples.
      vocabulary: what encodes them.
      what: what is told, such as `pairs measured`.
    """
    for some in chunks(len(examples), what):
        yield encoded(examples.select(some), vocabulary)


def left_out(examples: Examples, models: Sequence[tuple[Layout, Lengths]]) -> np.ndarray:
    """Says why each example isn't learned from, by the first model that it doesn't fit.

    Args:
      examples: the examples.
      models: layouts of Ragged columns, and windows.

    Returns:
      numbers of layouts.LEFT_OUT from 1, or 0; int8 [n].
    """
    marks = np.zeros(len(examples), np.int8)
    for layout, lengths in models:
        parts = columns_of(examples, layout.vocabulary, "pairs measured")
        found = np.concatenate([measured(part, layout, lengths)[1] for part in parts])
        marks = np.where(marks, marks, found)
    return marks


def token_counts(examples: Examples, layout: Layout, lengths: Lengths) -> dict[str, np.ndarray]:
    """Counts tokens: InputPipeline.token_counts says what."""
    unknown = -1 if layout.vocabulary.unk_id is None else layout.vocabulary.unk_id
    found = collections.defaultdict(list)
    for columns in columns_of(examples, layout.vocabulary, "pairs measured"):
        sizes, marks = measured(columns, layout, lengths)
        unknowns = {f"{name}_unknown": columns[name].count(unknown) for name in sizes}
        for name, numbers in {**sizes, **unknowns, "left_out": marks}.items():
            found[name].append(numbers.astype(np.int32))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def measured(
    columns: Columns, layout: Layout, lengths: Lengths
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Measures examples in the ids of one model.

    Args:
      columns: what `encoded` gives.
      layout: of Ragged columns.
      lengths: the windows.

    Returns:
      the tokens of each field, each [n]; and why each example isn't learned from, a number of
      layouts.LEFT_OUT from 1, or 0 if it is, int8 [n].
    """
    reflection = columns["reflection"] if lengths.reflection else None
    chosen, rejected = columns["chosen"], columns["rejected"]
    sizes = layout.sizes(columns["prompt"], chosen, rejected, reflection)
    return sizes, lengths.left_out(sizes, ragged.same(chosen, rejected))


def widths(task: str, lengths: Mapping[str, int]) -> dict[str, int]:
    """Returns the columns of each feature of a task's rows.

    Args:
      task: a key of layouts.FEATURES.
      lengths: the most tokens of each feature of its sequences.
    """
    if (padded := _padded(task)) is None:
        return dict.fromkeys(_SFT, lengths["inputs"] + lengths["targets"])
    return {name: lengths[of] for name, of in {**padded.left, **padded.right}.items()}


def of_task(
    task: str, columns: Columns, layout: Layout, lengths: Mapping[str, int]
) -> dict[str, Feature]:
    """Makes the rows of a task, those of an example one after another.

    Args:
      task: a key of layouts.FEATURES.
      columns: what `encoded` gives of examples that fit the windows.
      layout: of Ragged columns.
      lengths: the most tokens of each feature of the task's sequences.
    """
    parts = SEQUENCES[task](layout, columns)
    f = {name: ragged.interleave([part[name] for part in parts]) for name in FEATURES[task]}
    width = widths(task, lengths)
    if (padded := _padded(task)) is None:
        found = _decoder(f, loss_on_inputs=task == "pretrain")
        return {name: Feature.of(found[name], width[name]) for name in _SFT}
    left = {name: Feature.of(f[of], width[name], True) for name, of in padded.left.items()}
    return left | {name: Feature.of(f[of], width[name]) for name, of in padded.right.items()}


def write(
    append: Append,
    task: str,
    sources: Iterable[Iterable[Columns]],
    layout: Layout,
    windows: Lengths,
    lengths: Mapping[str, int],
) -> None:
    """Appends the rows of all examples that fit the windows, and how many each source has.

    Args:
      append: adds to the flat arrays.
      task: a key of layouts.FEATURES.
      sources: the columns of each source, chunk by chunk.
      layout: of Ragged columns.
      windows: the windows.
      lengths: the most tokens of each feature of the task's sequences.
    """
    writer = RowWriter(append)
    for source in sources:
        count = 0
        for columns in source:
            fits = measured(columns, layout, windows.of_task(task))[1] == 0
            kept = {name: column.select(fits) for name, column in columns.items()}
            rows = of_task(task, kept, layout, lengths)
            writer.write(rows)
            count += len(next(iter(rows.values())))
        append("counts", np.array([count], np.int64))


def _padded(task: str) -> Padded | None:
    """What is padded of a task's sequences; None where they are joined to a decoder's."""
    if "inputs" in FEATURES[task]:
        return None
    if "tokens" in FEATURES[task]:
        return TREE_ROWS
    return DIFFERENCE_ROWS if "critic_prompt" in FEATURES[task] else PROMPT_ROWS


def _decoder(f: Columns, loss_on_inputs: bool) -> Columns:
    """Joins inputs and targets, as feature_converters.SFTFeatureConverter shows it."""
    tokens = ragged.join([f["inputs"], f["targets"]])
    weights = np.ones(len(tokens), np.float32)
    if "unlikely" in f:
        weights[f["unlikely"].values > 0] = -1
    of_targets = np.repeat(weights, f["targets"].lengths())
    of_inputs = np.full(len(f["inputs"].values), float(loss_on_inputs), np.float32)
    learned = ragged.join(
        [Ragged(of_inputs, f["inputs"].offsets), Ragged(of_targets, f["targets"].offsets)]
    )
    starts = np.repeat(tokens.offsets[:-1], tokens.lengths())
    positions = (np.arange(len(starts)) - starts).astype(np.int32)
    made: dict[str, Any] = {
        "decoder_input_tokens": tokens.values,
        "decoder_target_tokens": _next(tokens),
        "decoder_loss_weights": _next(learned),
        "decoder_segment_ids": np.ones_like(tokens.values),
        "decoder_positions": positions,
    }
    return {name: Ragged(values, tokens.offsets) for name, values in made.items()}


def _next(rows: Ragged) -> np.ndarray:
    """Returns for each number of a row the one after it, and 0 for the last."""
    found = np.zeros_like(rows.values)
    found[:-1] = rows.values[1:]
    found[rows.offsets[1:][rows.lengths() > 0] - 1] = 0
    return found
