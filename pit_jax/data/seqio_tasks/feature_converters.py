"""Has the seqio feature converters, which pad or pack a task's features. Imports TensorFlow.

Prompts are padded on the left and responses on the right, so that a response starts at the same
column in every row. Padding is 0 in every feature, as seqio's packing has it: in tokens PAD_ID.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import seqio
import tensorflow as tf

from pit_jax.data.task_rows import DIFFERENCE_ROWS, PROMPT_ROWS, TREE_ROWS
from pit_jax.data.vocabularies.base import PAD_ID

_TOKENS = seqio.FeatureConverter.FeatureSpec(dtype=tf.int32)


class SFTFeatureConverter(seqio.FeatureConverter):
    """Joins prompt and target to a decoder's sequence, with seqio's names of a decoder's features.

    A column's target is the next token of its own sequence, and no start token is put in front: the
    model sees exactly the tokens it sees when it samples and when its samples are scored.

    Example, not packed, T = 4 + 3:

      {"inputs": [7, 8], "targets": [5, 1]}, lengths {"inputs": 4, "targets": 3} ->
        decoder_input_tokens   [7, 8, 5, 1, 0, 0, 0]
        decoder_target_tokens  [8, 5, 1, 0, 0, 0, 0]
        decoder_loss_weights   [0, 1, 1, 0, 0, 0, 0]   float32
        decoder_segment_ids    [1, 1, 1, 1, 0, 0, 0]
        decoder_positions      [0, 1, 2, 3, 0, 0, 0]

    Example, packed, with a second element {"inputs": [9], "targets": [6, 1]}:

        decoder_input_tokens   [7, 8, 5, 1, 9, 6, 1]
        decoder_target_tokens  [8, 5, 1, 0, 6, 1, 0]
        decoder_loss_weights   [0, 1, 1, 0, 1, 1, 0]
        decoder_segment_ids    [1, 1, 1, 1, 2, 2, 2]
        decoder_positions      [0, 1, 2, 3, 0, 1, 2]
    """

    TASK_FEATURES: ClassVar = {"inputs": _TOKENS, "targets": _TOKENS}
    MODEL_FEATURES: ClassVar = {
        "decoder_target_tokens": _TOKENS,
        "decoder_input_tokens": _TOKENS,
        "decoder_loss_weights": seqio.FeatureConverter.FeatureSpec(dtype=tf.float32),
        "decoder_segment_ids": _TOKENS,
        "decoder_positions": _TOKENS,
    }
    PACKING_FEATURE_DTYPES: Mapping[str, tf.dtypes.DType] = {}
    loss_on_inputs = False
    mark_of_targets = staticmethod(lambda features: 2)

    def __init__(self, pack: bool, use_custom_packing_ops: bool = False):
        # seqio's check of every row costs more than the rest; padding refuses long rows by itself.
        super().__init__(pack, use_custom_packing_ops, apply_length_check=pack)

    def _convert_features(self, ds, task_feature_lengths):
        length = task_feature_lengths["inputs"] + task_feature_lengths["targets"]
        input_mark = 2 if self.loss_on_inputs else 1

        def concatenate(features):
            # Marks are from 1 on, since seqio's packing cuts a feature at its zeros.
            marks = [
                tf.fill([tf.size(features["inputs"])], input_mark),
                tf.fill([tf.size(features["targets"])], self.mark_of_targets(features)),
            ]
            return {
                "tokens": tf.concat([features["inputs"], features["targets"]], axis=0),
                "marks": tf.concat(marks, axis=0),
            }

        def finish(features):
            tokens, marks = features["tokens"], features["marks"]
            segments = features.get("tokens_segment_ids", tf.cast(marks > 0, tf.int32))
            positions = features.get("tokens_positions", tf.range(length) * segments)
            goes_on = tf.pad((segments[1:] == segments[:-1]) & (segments[1:] > 0), [[0, 1]])
            targets = tf.where(goes_on, tf.roll(tokens, -1, axis=0), PAD_ID)
            weights = tf.gather([0.0, 0.0, 1.0, -1.0], tf.roll(marks, -1, axis=0))
            return {
                "decoder_input_tokens": tokens,
                "decoder_target_tokens": targets,
                "decoder_loss_weights": tf.where(goes_on, weights, 0.0),
                "decoder_segment_ids": segments,
                "decoder_positions": positions,
            }

        ds = ds.map(concatenate, num_parallel_calls=tf.data.AUTOTUNE)
        if self.pack:
            ds = self._pack_or_pad(ds, {"tokens": length, "marks": length})
        else:
            ds = ds.map(lambda features: {k: _pad(v, length) for k, v in features.items()})
        return ds.map(finish, num_parallel_calls=tf.data.AUTOTUNE)

    def get_model_feature_lengths(self, task_feature_lengths):
        """Returns T = inputs + targets for every feature."""
        length = task_feature_lengths["inputs"] + task_feature_lengths["targets"]
        return dict.fromkeys(self.MODEL_FEATURES, length)


class PretrainFeatureConverter(SFTFeatureConverter):
    """Converts as SFTFeatureConverter, with the loss on every token but the first of its text.

    Example, lengths {"inputs": 4, "targets": 3}:

      {"inputs": [7, 8], "targets": [5, 1]} ->
        decoder_loss_weights   [1, 1, 1, 0, 0, 0, 0]   the other features as in SFTFeatureConverter
    """

    loss_on_inputs = True


class UnlikelihoodFeatureConverter(SFTFeatureConverter):
    """Converts as SFTFeatureConverter; the weight of a target that is to be unlikely is -1.

    Example, lengths {"inputs": 4, "targets": 3, "unlikely": 1}:

      {"inputs": [7, 8], "targets": [5, 1], "unlikely": [1]} ->
        decoder_loss_weights   [0, -1, -1, 0, 0, 0, 0]
    """

    TASK_FEATURES: ClassVar = {**SFTFeatureConverter.TASK_FEATURES, "unlikely": _TOKENS}
    mark_of_targets = staticmethod(lambda features: 2 + features["unlikely"][0])


class PaddedFeatureConverter(seqio.FeatureConverter):
    """Only pads and renames; LEFT and RIGHT of a subclass map model features to task features."""

    LEFT: ClassVar[Mapping[str, str]]
    RIGHT: ClassVar[Mapping[str, str]]
    PACKING_FEATURE_DTYPES: Mapping[str, tf.dtypes.DType] = {}

    def __init_subclass__(cls):
        cls.SOURCES = {**cls.LEFT, **cls.RIGHT}
        cls.MODEL_FEATURES = dict.fromkeys(cls.SOURCES, _TOKENS)
        cls.TASK_FEATURES = dict.fromkeys(cls.SOURCES.values(), _TOKENS)

    def __init__(self, pack: bool = False, use_custom_packing_ops: bool = False):
        del use_custom_packing_ops
        if pack:
            raise ValueError(f"{type(self).__name__}: got pack=True; only SFT tasks can be packed")
        super().__init__(pack=False, apply_length_check=False)

    def _convert_features(self, ds, task_feature_lengths):
        def pad(features):
            padded = {}
            for names, left in ((self.LEFT, True), (self.RIGHT, False)):
                for name, source in names.items():
                    padded[name] = _pad(features[source], task_feature_lengths[source], left)
            return padded

        return ds.map(pad, num_parallel_calls=tf.data.AUTOTUNE)

    def get_model_feature_lengths(self, task_feature_lengths):
        """Returns the length of the task feature that a model feature is made of."""
        return {name: task_feature_lengths[source] for name, source in self.SOURCES.items()}


def _pad(tokens: tf.Tensor, length: int, left: bool = False) -> tf.Tensor:
    """Pads with zeros up to `length`; more tokens than that are an error of tf.pad."""
    missing = length - tf.size(tokens)
    return tf.ensure_shape(tf.pad(tokens, [[missing, 0] if left else [0, missing]]), [length])


class TreeFeatureConverter(PaddedFeatureConverter):
    """Sequences that share prefixes in one row, for reward models; see layouts.Block.

    Example, with lengths {"tokens": 9, "blocks": 9}, x = [7, 8], y_w = [5, 1], y_l = [6, 6, 1]:

      {"tokens": [7, 8, 5, 1, 6, 6, 1], "blocks": [1, 1, 2, 2, 3, 3, 3]} ->
        tokens  [7, 8, 5, 1, 6, 6, 1, 0, 0]
        blocks  [1, 1, 2, 2, 3, 3, 3, 0, 0]
    """

    LEFT: ClassVar = TREE_ROWS.left
    RIGHT: ClassVar = TREE_ROWS.right


class PromptFeatureConverter(PaddedFeatureConverter):
    """Pads prompts to sample from in reinforcement learning, and as the reward model reads them.

    Example, lengths {"prompt": 3, "reward_prompt": 4, "chosen": 3, "example_index": 1}:

      {"prompt": [7, 8], "reward_prompt": [7, 8, 4], "chosen": [5, 1], "example_index": [12]} ->
        prompt_tokens         [0, 7, 8]
        reward_prompt_tokens  [0, 7, 8, 4]
        chosen_tokens         [5, 1, 0]
        example_index         [12]
    """

    LEFT: ClassVar = PROMPT_ROWS.left
    RIGHT: ClassVar = PROMPT_ROWS.right


class DifferencePromptFeatureConverter(PromptFeatureConverter):
    """Converts as PromptFeatureConverter, and pads what R_P's score is a difference to.

    Example, lengths {"critic_prompt": 4, "reference": 3} beside those above:

      {"critic_prompt": [7, 2, 6], "reference": [6, 1], …} ->
        critic_prompt_tokens  [0, 7, 2, 6]
        reference_tokens      [6, 1, 0]
    """

    LEFT: ClassVar = DIFFERENCE_ROWS.left
    RIGHT: ClassVar = DIFFERENCE_ROWS.right
