"""Has the seqio preprocessors: text -> tokens -> a task's sequences. Imports TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import tensorflow as tf

from pit_jax.data.layouts import (
    GAP_PAIR_TREE,
    GAP_TREE,
    IDENTICAL,
    LEFT_OUT,
    PAIR_TREE,
    Layout,
    Lengths,
    Tree,
)
from pit_jax.data.vocabularies.base import Vocabulary

Features = Mapping[str, tf.Tensor]

_PRETOKENIZED = "_pretokenized"


def tensor_layout(vocabulary: Vocabulary) -> Layout:
    """Makes a Layout that joins and measures int32 tensors."""
    return Layout(
        vocabulary,
        join=lambda pieces: tf.concat([tf.convert_to_tensor(p, tf.int32) for p in pieces], axis=0),
        size=tf.size,
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


def count_tokens(dataset: tf.data.Dataset, vocabulary: Vocabulary) -> tf.data.Dataset:
    """Puts sizes in place of tokens, int32 scalars.

    They are {prompt, chosen, rejected, left_out}, and of each field {NAME_unknown}, how many of its
    tokens stand for text that the vocabulary has no other for.
    """
    layout = tensor_layout(vocabulary)
    unknown = -1 if vocabulary.unk_id is None else vocabulary.unk_id

    def count(f: Features) -> Features:
        sizes = layout.sizes(f["prompt"], f["chosen"], f["rejected"])
        unknowns = {
            f"{name}_unknown": tf.reduce_sum(tf.cast(tf.equal(f[name], unknown), tf.int32))
            for name in sizes
        }
        return {**sizes, **unknowns, "left_out": f["left_out"]}

    return dataset.map(count, num_parallel_calls=tf.data.AUTOTUNE)


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


def pretrain(layout: Layout, f: Features) -> list[Features]:
    """Makes plain text that doesn't tell which response is better: {inputs, targets} four times.

    It is each response alone and each response after the other, so that a model knows both layouts.
    """
    parts: list[Features] = []
    for y, other in (("chosen", "rejected"), ("rejected", "chosen")):
        for inputs in (layout.policy_prompt(f["prompt"]), layout.pit_prompt(f["prompt"], f[other])):
            parts.append({"inputs": inputs, "targets": layout.response(f[y])})
    return parts


def sft_policy(layout: Layout, f: Features) -> list[Features]:
    """Makes {inputs, targets} of -log M_P(y_w | x)."""
    return [{"inputs": layout.policy_prompt(f["prompt"]), "targets": layout.response(f["chosen"])}]


def sft_pit(layout: Layout, f: Features) -> list[Features]:
    """Makes {inputs, targets} of -log M_PIT(y_w | x, y_l)."""
    inputs = layout.pit_prompt(f["prompt"], f["rejected"])
    return [{"inputs": inputs, "targets": layout.response(f["chosen"])}]


def sft_pit_reflection(layout: Layout, f: Features) -> list[Features]:
    """Makes {inputs, targets} of -log M_PIT(c, y_w | x, y_l) (Appendix K)."""
    inputs = layout.pit_prompt(f["prompt"], f["rejected"])
    return [{"inputs": inputs, "targets": layout.reflected_response(f["reflection"], f["chosen"])}]


def sft_pit_unlikely(
    layout: Layout, f: Features, pairs: Sequence[tuple[str, str]]
) -> list[Features]:
    """Makes {inputs, targets, unlikely} of unlikelihood (3.2), the likely one of `sft_pit` first.

    Args:
      layout: of tensors.
      f: features of `tokenize`.
      pairs: (response, reference) of M_PIT(y | x, y_ref) that become less likely.
    """
    return [
        {
            "inputs": layout.pit_prompt(f["prompt"], f[reference]),
            "targets": layout.response(f[response]),
            "unlikely": tf.constant([number > 0], tf.int32),
        }
        for number, (response, reference) in enumerate([("chosen", "rejected"), *pairs])
    ]


def rm_policy(layout: Layout, f: Features) -> list[Features]:
    """Makes {tokens, blocks} of layouts.PAIR_TREE: R_P(x, y_w) against R_P(x, y_l), with one x."""
    return _tree(PAIR_TREE, layout, f)


def rm_gap(layout: Layout, f: Features) -> list[Features]:
    """Makes {tokens, blocks} of layouts.GAP_TREE: the sequences of Eq. 2 with shared prefixes."""
    return _tree(GAP_TREE, layout, f)


def rm_gap_pair(layout: Layout, f: Features) -> list[Features]:
    """Makes {tokens, blocks} of layouts.GAP_PAIR_TREE: what the loss of two terms reads."""
    return _tree(GAP_PAIR_TREE, layout, f)


def _tree(tree: Tree, layout: Layout, f: Features) -> list[Features]:
    """Joins blocks one after the other, and numbers each token's block from 1."""
    blocks = [block.piece(layout, f[block.text]) for block in tree]
    numbers = [tf.fill([tf.size(block)], number) for number, block in enumerate(blocks, 1)]
    return [{"tokens": tf.concat(blocks, axis=0), "blocks": tf.concat(numbers, axis=0)}]


def rl_policy(layout: Layout, f: Features) -> list[Features]:
    """Makes prompts for Eq. 3: {prompt, reward_prompt, chosen, example_index}."""
    return [
        {
            "prompt": layout.policy_prompt(f["prompt"]),
            "reward_prompt": layout.reward_prompt(f["prompt"]),
            "chosen": layout.response(f["chosen"]),
            "example_index": f["index"][None],
        }
    ]


def rl_pit(layout: Layout, f: Features) -> list[Features]:
    """Makes prompts for Eqs. 4 and 5; y_ref is `reference` if there is any, else y_l, then y_w."""
    return [
        {
            "prompt": layout.pit_prompt(f["prompt"], reference),
            "reward_prompt": layout.gap_prompt(f["prompt"], reference),
            "chosen": layout.response(f["chosen"]),
            "example_index": f["index"][None],
        }
        for reference in _references(f)
    ]


def rl_pit_difference(layout: Layout, f: Features) -> list[Features]:
    """Makes prompts of `rl_pit` for the gap R_P(x, y) − R_P(x, y_ref), where R_P reads y_ref too.

    The critic reads the whole prompt of the gap, since the return depends on y_ref.
    """
    return [
        {
            **prompts,
            "reward_prompt": layout.reward_prompt(f["prompt"]),
            "critic_prompt": prompts["reward_prompt"],
            "reference": layout.response(reference),
        }
        for prompts, reference in zip(rl_pit(layout, f), _references(f), strict=True)
    ]


def _references(f: Features) -> list[tf.Tensor]:
    return [f["reference"]] if "reference" in f else [f["rejected"], f["chosen"]]
