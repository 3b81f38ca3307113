"""The worked examples of the converters' docstrings."""

import numpy as np
import pytest
import tensorflow as tf

from pit_jax.data.seqio_tasks import feature_converters as fc


def convert(converter, elements, lengths):
    signature = {
        name: tf.TensorSpec(np.shape(value)[:0] if np.ndim(value) == 0 else [None], tf.int32)
        for name, value in elements[0].items()
    }
    dataset = tf.data.Dataset.from_generator(lambda: elements, output_signature=signature)
    return list(converter(dataset, lengths).as_numpy_iterator())


def check(got, expected):
    assert {name: value.tolist() for name, value in got.items()} == expected


SFT_LENGTHS = {"inputs": 4, "targets": 3}
FIRST = {"inputs": [7, 8], "targets": [5, 1]}
SECOND = {"inputs": [9], "targets": [6, 1]}


def test_sft():
    (row,) = convert(fc.SFTFeatureConverter(pack=False), [FIRST], SFT_LENGTHS)
    check(
        row,
        {
            "decoder_input_tokens": [7, 8, 5, 1, 0, 0, 0],
            "decoder_target_tokens": [8, 5, 1, 0, 0, 0, 0],
            "decoder_loss_weights": [0, 1, 1, 0, 0, 0, 0],
            "decoder_segment_ids": [1, 1, 1, 1, 0, 0, 0],
            "decoder_positions": [0, 1, 2, 3, 0, 0, 0],
        },
    )
    assert row["decoder_loss_weights"].dtype == np.float32
    assert row["decoder_target_tokens"].dtype == np.int32


def test_sft_packed():
    rows = convert(fc.SFTFeatureConverter(pack=True), [FIRST, SECOND, SECOND], SFT_LENGTHS)
    check(
        rows[0],
        {
            "decoder_input_tokens": [7, 8, 5, 1, 9, 6, 1],
            "decoder_target_tokens": [8, 5, 1, 0, 6, 1, 0],
            "decoder_loss_weights": [0, 1, 1, 0, 1, 1, 0],
            "decoder_segment_ids": [1, 1, 1, 1, 2, 2, 2],
            "decoder_positions": [0, 1, 2, 3, 0, 1, 2],
        },
    )
    check(
        rows[1],
        {
            "decoder_input_tokens": [9, 6, 1, 0, 0, 0, 0],
            "decoder_target_tokens": [6, 1, 0, 0, 0, 0, 0],
            "decoder_loss_weights": [1, 1, 0, 0, 0, 0, 0],
            "decoder_segment_ids": [1, 1, 1, 0, 0, 0, 0],
            "decoder_positions": [0, 1, 2, 0, 0, 0, 0],
        },
    )
    assert len(rows) == 2


def test_pretrain_puts_the_loss_on_every_token():
    for pack, weights in ((False, [1, 1, 1, 0, 0, 0, 0]), (True, [1, 1, 1, 0, 1, 1, 0])):
        row = convert(fc.PretrainFeatureConverter(pack=pack), [FIRST, SECOND], SFT_LENGTHS)[0]
        assert row["decoder_loss_weights"].tolist() == weights


def test_targets_that_are_to_be_unlikely():
    elements = [{**FIRST, "unlikely": [1]}, {**SECOND, "unlikely": [0]}]
    for pack, weights in ((False, [0, -1, -1, 0, 0, 0, 0]), (True, [0, -1, -1, 0, 1, 1, 0])):
        converter = fc.UnlikelihoodFeatureConverter(pack=pack)
        row = convert(converter, elements, SFT_LENGTHS | {"unlikely": 1})[0]
        assert row["decoder_loss_weights"].tolist() == weights
        same = convert(fc.SFTFeatureConverter(pack=pack), [FIRST, SECOND], SFT_LENGTHS)[0]
        same = {name: value.tolist() for name, value in same.items()}
        check(row, same | {"decoder_loss_weights": weights})


def test_tree():
    (row,) = convert(
        fc.TreeFeatureConverter(),
        [{"tokens": [7, 8, 5, 1, 6, 6, 1], "blocks": [1, 1, 2, 2, 3, 3, 3]}],
        {"tokens": 9, "blocks": 9},
    )
    check(row, {"tokens": [7, 8, 5, 1, 6, 6, 1, 0, 0], "blocks": [1, 1, 2, 2, 3, 3, 3, 0, 0]})


def test_prompt():
    element = {
        "prompt": [7, 8],
        "reward_prompt": [7, 8, 4],
        "chosen": [5, 1],
        "example_index": [12],
    }
    lengths = {"prompt": 3, "reward_prompt": 4, "chosen": 3, "example_index": 1}
    (row,) = convert(fc.PromptFeatureConverter(), [element], lengths)
    check(
        row,
        {
            "prompt_tokens": [0, 7, 8],
            "reward_prompt_tokens": [0, 7, 8, 4],
            "chosen_tokens": [5, 1, 0],
            "example_index": [12],
        },
    )


def test_prompt_of_a_difference():
    element = {"prompt": [7], "reward_prompt": [7], "chosen": [5, 1], "example_index": [12]}
    element |= {"critic_prompt": [7, 2, 6], "reference": [6, 1]}
    lengths = dict.fromkeys(element, 4) | {"reference": 3, "example_index": 1}
    (row,) = convert(fc.DifferencePromptFeatureConverter(), [element], lengths)
    assert row["critic_prompt_tokens"].tolist() == [0, 7, 2, 6]
    assert row["reference_tokens"].tolist() == [6, 1, 0]
    assert row["prompt_tokens"].tolist() == [0, 0, 0, 7] and len(row) == 6


@pytest.mark.parametrize("pack", [False, True])
def test_nothing_is_cut_silently(pack):
    with pytest.raises(tf.errors.InvalidArgumentError):
        convert(fc.SFTFeatureConverter(pack=pack), [{**FIRST, "targets": [5] * 6}], SFT_LENGTHS)


def test_padding_refuses_what_is_too_long():
    element = {"tokens": [7, 8], "blocks": [1, 2]}
    with pytest.raises(tf.errors.InvalidArgumentError):
        convert(fc.TreeFeatureConverter(), [element], {"tokens": 1, "blocks": 2})


def test_only_sft_packs():
    with pytest.raises(ValueError, match="TreeFeatureConverter: got pack=True"):
        fc.TreeFeatureConverter(pack=True)
