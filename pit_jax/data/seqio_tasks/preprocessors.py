"""Has the seqio preprocessors: text -> tokens -> a task's sequences. Imports TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import tensorflow as tf

from pit_jax.data.layouts import IDENTICAL, LEFT_OUT, Layout, Lengths
from pit_jax.data.vocabularies.base import Vocabulary

Features = Mapping[str, tf.Tensor]

_PRETOKENIZED = "_pretokenized"


def tensor_layout(vocabulary: Vocabulary) -> Layout:
    """Makes a Layout that joins and measures int32 tensors."""
    return Layout(
        vocabulary,
        join=lambda pieces: tf.concat([tf.convert_to_tensor(p, tf.int32) for p in pieces], axis=0),
        size=tf.size,
        fill=lambda piece, number: tf.fill([tf.size(piece)], number),
    )


def tokenize(dataset: tf.data.Dataset, vocabulary: Vocabulary) -> tf.data.Dataset:
    """Makes int32 ids without EOS of text features; other features pass through.

    `turns`, if it is there, says what the prompt was made of, for a chat template; it is left out.
    The text stays as `NAME_pretokenized`, which seqio's and T5X's tools show; the chosen response,
    the target of every task, as `targets_pretokenized` too.
    """

    def encode(features: Features) -> Features:
        features = dict(features)
        turns = features.pop("turns", tf.constant(""))
        texts = {name: value for name, value in features.items() if value.dtype == tf.string}
        return {
            **features,
            **{name: vocabulary.encode_tf(text) for name, text in texts.items()},
            "prompt": vocabulary.encode_prompt_tf(features["prompt"], turns),
            **{f"{name}{_PRETOKENIZED}": text for name, text in texts.items()},
            f"targets{_PRETOKENIZED}": features["chosen"],
        }

    return dataset.map(encode, num_parallel_calls=tf.data.AUTOTUNE)


def mark_left_out(
    dataset: tf.data.Dataset, vocabulary: Vocabulary, lengths: Lengths
) -> tf.data.Dataset:
    """Adds `left_out`: 0, or the number of the reason for which an example can't be learned from.

    Reasons are numbered from 1 in the order of layouts.LEFT_OUT; the first one counts.

    Args:
      dataset: features of `tokenize`, with or without `reference`.
      vocabulary: what the features were encoded with.
      lengths: the windows.
    """
    layout = tensor_layout(vocabulary)

    def mark(features: Features) -> Features:
        over = layout.too_long(
            lengths,
            features["prompt"],
            features["chosen"],
            features["rejected"],
            features["reflection"] if lengths.reflection else None,
            features.get("reference"),
        )
        reasons = [f"{field} too long" for field in over]
        found = [*over.values(), same_tokens(features["chosen"], features["rejected"])]
        numbers = [LEFT_OUT.index(reason) + 1 for reason in (*reasons, IDENTICAL)]
        first = tf.gather(numbers, tf.argmax(tf.cast(tf.stack(found), tf.int32)))
        return {**features, "left_out": tf.where(tf.reduce_any(found), first, 0)}

    return dataset.map(mark, num_parallel_calls=tf.data.AUTOTUNE)


def same_tokens(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Returns whether two rows of ids, int32 [n] and int32 [m], are equal."""
    return tf.cond(
        tf.equal(tf.size(a), tf.size(b)),
        lambda: tf.reduce_all(tf.equal(a, b)),
        lambda: tf.constant(False),
    )


def drop_left_out(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Leaves out what mark_left_out marked."""
    return dataset.filter(lambda features: features["left_out"] == 0)


def build_sequences(
    dataset: tf.data.Dataset,
    vocabulary: Vocabulary,
    sequences: Callable[[Layout, Features], list[Features]],
) -> tf.data.Dataset:
    """Replaces every element by the elements that `sequences` makes of it, in their order.

    The new elements have the texts of the old.
    """
    layout = tensor_layout(vocabulary)

    def build(features: Features) -> tuple[Features, ...]:
        texts = {name: text for name, text in features.items() if name.endswith(_PRETOKENIZED)}
        features = {**features, "index": features["index"][None]}
        return tuple({**part, **texts} for part in sequences(layout, features))

    dataset = dataset.map(build, num_parallel_calls=tf.data.AUTOTUNE)
    if len(dataset.element_spec) == 1:
        return dataset.map(lambda part: part)

    def in_turn(*parts: Features) -> tf.data.Dataset:
        joined = tf.data.Dataset.from_tensors(parts[0])
        for part in parts[1:]:
            joined = joined.concatenate(tf.data.Dataset.from_tensors(part))
        return joined

    return dataset.flat_map(in_turn)
