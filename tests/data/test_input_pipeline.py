"""From examples to batches: contents by the layouts, order, restarts, hosts, references, counts."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from pit_jax.data import flat_arrays, task_rows
from pit_jax.data.batching import BatchingConfig
from pit_jax.data.datasets import DatasetConfig, MixtureConfig
from pit_jax.data.examples import Dialogue, prompt_hash
from pit_jax.data.input_pipeline import InputPipeline
from pit_jax.data.layouts import FEATURES, TASK_FOLDS, Layout, Lengths
from pit_jax.data.reference_store import ReferenceMeta, ReferenceWriter
from pit_jax.data.synthetic import drafts
from pit_jax.data.vocabularies.load import load
from pit_jax.errors import UserError
from tests.tree_rows import gap_row, pair_row, tree_row

LENGTHS = Lengths(prompt=12, reference=14, response=15)
WORDS = load("words:drafts")
LEVEL = drafts.DraftsConfig(
    min_steps=5, max_steps=6, max_ahead=3, mistakes=0.25, bluffs=0.15, malformed=0.1
)
CONFIG = DatasetConfig("instructions", 200, 21, 10, family="drafts", level=LEVEL)
FOLD_OF_STAGE = {
    "pretrain": "sft",
    "sft_policy": "sft",
    "sft_pit": "sft",
    "sft_pit_reflection": "sft",
    "sft_pit_unlikely_lw": "sft",
    "sft_pit_unlikely_ll": "sft",
    "sft_pit_unlikely_ww": "sft",
    "sft_pit_unlikely": "sft",
    "rm_policy": "rm",
    "rm_gap": "rm",
    "rm_gap_pair": "rm",
    "rl_policy": "rl",
    "rl_pit": "rl",
    "rl_pit_difference": "rl",
}


@pytest.fixture(scope="module")
def pipeline():
    return InputPipeline(CONFIG, WORDS, LENGTHS)


def whole(pipeline, stage, split="train", **kwargs):
    """All rows of a stage in the order of the dataset, fillers removed."""
    batches = list(pipeline.batches(stage, split, 16, shuffle=False, num_epochs=1, **kwargs))
    weight = np.concatenate([batch["weight"] for batch in batches]).astype(bool)
    return {k: np.concatenate([b[k] for b in batches])[weight] for k in batches[0] if k != "weight"}


def unpadded(row):
    return [int(token) for token in row if token]


def sft_columns(rows):
    names = ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights")
    return [rows[name] for name in names]


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_folds_are_disjoint_and_cover_train(pipeline):
    folds = [pipeline.examples("train", fold) for fold in ("sft", "rm", "rl")]
    indices = sorted(example.index for fold in folds for example in fold)
    assert indices == [example.index for example in pipeline.examples("train")]
    prompts = [{example.prompt for example in fold} for fold in folds]
    assert all(not a & b for a, b in itertools.combinations(prompts, 2))
    assert min(map(len, folds)) > 40


def test_every_stage_holds_its_layouts(pipeline):
    layout = Layout(WORDS)
    folds = {fold: pipeline.examples("train", fold) for fold in ("sft", "rm", "rl")}

    for stage, prompt in (
        ("sft_policy", lambda e: layout.policy_prompt(e.prompt)),
        ("sft_pit", lambda e: layout.pit_prompt(e.prompt, e.rejected)),
    ):
        rows = whole(pipeline, stage)
        for inputs, targets, weights, e in zip(*sft_columns(rows), folds["sft"], strict=True):
            assert unpadded(inputs) == prompt(e) + layout.response(e.chosen)
            assert targets[weights > 0].tolist() == layout.response(e.chosen)

    rows = whole(pipeline, "rm_policy")
    for k, e in enumerate(folds["rm"]):
        pieces = [layout.reward_prompt(e.prompt), *map(layout.response, (e.chosen, e.rejected))]
        tokens, blocks = pair_row(*pieces)
        assert (unpadded(rows["tokens"][k]), unpadded(rows["blocks"][k])) == (tokens, blocks)
    assert len(rows["tokens"]) == len(folds["rm"])

    rows = whole(pipeline, "rm_gap")
    for k, e in enumerate(folds["rm"]):
        both = (e.chosen, e.rejected)
        context = layout.policy_prompt(e.prompt)
        references = [layout.gap_prompt(e.prompt, y)[len(context) :] for y in both]
        tokens, blocks = gap_row(context, references, [layout.response(y) for y in both])
        assert (unpadded(rows["tokens"][k]), unpadded(rows["blocks"][k])) == (tokens, blocks)

    rows = whole(pipeline, "rl_policy")
    for k, e in enumerate(folds["rl"]):
        assert rows["example_index"][k] == e.index
        assert unpadded(rows["prompt_tokens"][k]) == layout.policy_prompt(e.prompt)
        assert unpadded(rows["reward_prompt_tokens"][k]) == layout.reward_prompt(e.prompt)
        assert unpadded(rows["chosen_tokens"][k]) == layout.response(e.chosen)

    rows = whole(pipeline, "rl_pit")
    assert len(rows["example_index"]) == 2 * len(folds["rl"])
    references = itertools.product(folds["rl"], ("rejected", "chosen"))
    for k, (e, name) in enumerate(references):
        y = getattr(e, name)
        assert rows["example_index"][k] == e.index
        assert unpadded(rows["prompt_tokens"][k]) == layout.pit_prompt(e.prompt, y)
        assert unpadded(rows["reward_prompt_tokens"][k]) == layout.gap_prompt(e.prompt, y)


@pytest.mark.parametrize(
    ("task", "unlikely"),
    [
        ("sft_pit_unlikely_lw", [("rejected", "chosen")]),
        ("sft_pit_unlikely_ll", [("rejected", "rejected")]),
        ("sft_pit_unlikely_ww", [("chosen", "chosen")]),
        (
            "sft_pit_unlikely",
            [("rejected", "chosen"), ("rejected", "rejected"), ("chosen", "chosen")],
        ),
    ],
)
@pytest.mark.parametrize("packed_length", [0, 96])
def test_unlikely_responses_follow_the_likely_one(task, unlikely, packed_length):
    data = InputPipeline(CONFIG, WORDS, LENGTHS, BatchingConfig(packed_length=packed_length))
    layout, found = Layout(WORDS), []
    rows = whole(data, task)
    for tokens, segments, weights in zip(
        rows["decoder_input_tokens"],
        rows["decoder_segment_ids"],
        rows["decoder_loss_weights"],
        strict=True,
    ):
        for segment in range(1, segments.max() + 1):
            here = segments == segment
            found.append((tokens[here].tolist(), weights[here].tolist()))
    expected = []
    for e in data.examples("train", "sft"):
        signs = [1.0] + [-1.0] * len(unlikely)
        for (y, reference), sign in zip([("chosen", "rejected"), *unlikely], signs, strict=True):
            prompt = layout.pit_prompt(e.prompt, getattr(e, reference))
            target = layout.response(getattr(e, y))
            weights = [0.0] * (len(prompt) - 1) + [sign] * len(target) + [0.0]
            expected.append((prompt + target, weights))
    if packed_length:  # packing may change the order
        found, expected = sorted(found), sorted(expected)
    assert found == expected


def test_the_loss_of_two_terms_has_rows_for_what_it_reads(pipeline):
    layout, rows = Layout(WORDS), whole(pipeline, "rm_gap_pair")
    for k, e in enumerate(pipeline.examples("train", "rm")):
        context = layout.policy_prompt(e.prompt)
        references = [
            layout.gap_prompt(e.prompt, y)[len(context) :] for y in (e.chosen, e.rejected)
        ]
        responses = [layout.response(e.chosen), layout.response(e.rejected)]
        tokens, blocks = tree_row(context, *references, *responses)
        assert (unpadded(rows["tokens"][k]), unpadded(rows["blocks"][k])) == (tokens, blocks)
    assert pipeline.feature_lengths("rm_gap_pair")["tokens"] == 12 + 2 * 16 + 2 * 15
    assert pipeline.feature_lengths("rm_gap")["tokens"] == 12 + 2 * 16 + 4 * 15


def test_a_gap_as_a_difference_has_both_prompts_and_the_reference(pipeline):
    layout, rows = Layout(WORDS), whole(pipeline, "rl_pit_difference")
    plain = whole(pipeline, "rl_pit")
    for name in ("prompt_tokens", "chosen_tokens", "example_index"):
        np.testing.assert_array_equal(rows[name], plain[name])
    np.testing.assert_array_equal(rows["critic_prompt_tokens"], plain["reward_prompt_tokens"])
    references = itertools.product(pipeline.examples("train", "rl"), ("rejected", "chosen"))
    for k, (e, name) in enumerate(references):
        assert unpadded(rows["reward_prompt_tokens"][k]) == layout.reward_prompt(e.prompt)
        assert unpadded(rows["reference_tokens"][k]) == layout.response(getattr(e, name))


def test_pretrain_reads_each_response_alone_and_after_the_other(pipeline):
    layout = Layout(WORDS)
    rows = whole(pipeline, "pretrain")
    texts = []
    for e in pipeline.examples("train", "sft"):
        for y, other in ((e.chosen, e.rejected), (e.rejected, e.chosen)):
            texts.append(layout.policy_prompt(e.prompt) + layout.response(y))
            texts.append(layout.pit_prompt(e.prompt, other) + layout.response(y))
    assert [unpadded(row) for row in rows["decoder_input_tokens"]] == texts
    np.testing.assert_array_equal(
        rows["decoder_loss_weights"] > 0, rows["decoder_target_tokens"] > 0
    )


def test_shapes_and_types(pipeline):
    batch = next(pipeline.batches("rm_gap", "train", 8))
    longest = max(
        len(gap_tokens) for gap_tokens in map(unpadded, whole(pipeline, "rm_gap")["tokens"])
    )
    width = -(-longest // 8) * 8
    assert {name: array.shape for name, array in batch.items()} == {
        "tokens": (8, width),
        "blocks": (8, width),
    }
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}
    batch = next(pipeline.batches("rl_pit", "train", 8))
    assert batch["prompt_tokens"].shape == (8, 12 + 16)


def test_restart_at_any_batch_is_exact(pipeline):
    run = list(itertools.islice(pipeline.batches("rl_pit", "train", 32, seed=5), 12))
    for start in (1, 3, 4, 11):
        resumed = pipeline.batches("rl_pit", "train", 32, seed=5, start_batch=start)
        for expected, got in zip(run[start:], resumed):
            same(expected, got)
    other_process = InputPipeline(CONFIG, WORDS, LENGTHS)
    same(run[7], next(other_process.batches("rl_pit", "train", 32, seed=5, start_batch=7)))
    with pytest.raises(AssertionError):
        same(run[0], next(pipeline.batches("rl_pit", "train", 32, seed=6)))


def test_evaluation_keeps_every_row_once(pipeline):
    batches = list(pipeline.batches("rl_policy", "dev", 8, shuffle=False, num_epochs=1))
    assert [batch["weight"].tolist() for batch in batches] == [[1] * 8, [1] * 8, [1] * 5 + [0] * 3]
    assert all(batch["weight"].dtype == np.float32 for batch in batches)
    index = np.concatenate([batch["example_index"][:, 0] for batch in batches])
    assert index[:21].tolist() == [example.index for example in pipeline.examples("dev")]
    assert index[21:].tolist() == [16] * 3
    skipped = list(
        pipeline.batches("rl_policy", "dev", 8, shuffle=False, num_epochs=1, start_batch=2)
    )
    same(batches[2], skipped[0])


def test_packed_rows_hold_the_same_examples(pipeline):
    packed = InputPipeline(CONFIG, WORDS, LENGTHS, BatchingConfig(packed_length=96))
    rows, plain = whole(packed, "sft_pit"), whole(pipeline, "sft_pit")
    assert rows["decoder_input_tokens"].shape[1] == 96
    assert len(rows["decoder_input_tokens"]) < len(plain["decoder_input_tokens"])

    def examples(rows):
        """Every feature of every example, without padding, in any order."""
        found = []
        for k, ids in enumerate(rows["decoder_segment_ids"]):
            for segment in range(1, ids.max() + 1):
                features = [rows[name][k][ids == segment].tolist() for name in sorted(rows)]
                del features[sorted(rows).index("decoder_segment_ids")]
                found.append(features)
        return sorted(found)

    assert examples(rows) == examples(plain)
    same(whole(packed, "rm_gap"), whole(pipeline, "rm_gap"))
    short = InputPipeline(CONFIG, WORDS, LENGTHS, BatchingConfig(packed_length=32))
    with pytest.raises(UserError, match=r"sft_pit: got packed_length=32, expected at least \d\d"):
        short.num_rows("sft_pit", "train")
    with pytest.raises(UserError, match="sft_pit: 1 rows of 2000 tokens in split 'dev'"):
        wide = InputPipeline(CONFIG, WORDS, LENGTHS, BatchingConfig(packed_length=2000))
        wide.batches("sft_pit", "dev", 8)


def test_rows_in_files_are_those_in_memory(pipeline, tmp_path, monkeypatch):
    """They are found again by a pipeline of the same data and windows, which makes none."""
    monkeypatch.setattr(flat_arrays, "BIG", 0)
    written = InputPipeline(CONFIG, WORDS, LENGTHS, cache=tmp_path)
    same(whole(written, "rm_gap"), whole(pipeline, "rm_gap"))
    monkeypatch.setattr(task_rows, "write", None)
    found = InputPipeline(CONFIG, WORDS, LENGTHS, cache=tmp_path)
    same(whole(found, "rm_gap"), whole(pipeline, "rm_gap"))
    for other in (
        InputPipeline(CONFIG, WORDS, Lengths(12, 14, 16), cache=tmp_path),
        InputPipeline(dataclasses.replace(CONFIG, seed=1), WORDS, LENGTHS, cache=tmp_path),
        InputPipeline(CONFIG, load("bytes"), LENGTHS, cache=tmp_path),
        InputPipeline(CONFIG, WORDS, LENGTHS, beside=[(WORDS, LENGTHS)], cache=tmp_path),
    ):
        with pytest.raises(TypeError):  # made anew
            other.table("rm_gap", "train")
    for task, fold in (("rm_gap", "sft"), ("rm_policy", None)):
        with pytest.raises(TypeError):
            found.table(task, "train", fold)


def test_buckets_cut_padding_and_nothing_else(pipeline):
    bucketed = InputPipeline(CONFIG, WORDS, LENGTHS, BatchingConfig(length_buckets=4))
    for stage in ("sft_pit", "rm_policy", "rm_gap"):
        plain, cut = (
            list(itertools.islice(each.batches(stage, "train", 8, seed=2), 6))
            for each in (pipeline, bucketed)
        )
        ids = "blocks" if "blocks" in cut[0] else "decoder_segment_ids"
        assert len({batch[ids].shape[1] for batch in cut}) > 1
        assert sum(batch[ids].size for batch in cut) < sum(batch[ids].size for batch in plain)
        known = {tuple(unpadded(row)) for row in whole(pipeline, stage)[next(iter(cut[0]))]}
        for batch in cut:
            assert all(tuple(unpadded(row)) in known for row in batch[next(iter(cut[0]))])


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """Two files that share a prompt, at 3 to 1."""
    folder = tmp_path_factory.mktemp("mixture")
    parts = []
    for name, count in (("a", 60), ("b", 90)):
        pairs = [
            {"prompt": f"{name}{i}", "chosen": f"good {name}", "rejected": f"bad {name}"}
            for i in range(count)
        ]
        pairs.append({"prompt": "both", "chosen": f"yes {name}", "rejected": "no"})
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, pairs)))
        path = str(folder / f"{name}.jsonl")
        parts.append(DatasetConfig("preferences", 0, 9, 9, path=path))
    return MixtureConfig(tuple(parts), rates=(3.0, 1.0))


def test_a_mixture_draws_at_its_rates(mixture):
    bytes_ = load("bytes")
    pipeline = InputPipeline(mixture, bytes_, Lengths(40, 20, 21))
    assert pipeline.report()["splits"]["dev"] >= 17
    run = list(itertools.islice(pipeline.batches("sft_policy", "train", 10, seed=1), 200))
    texts = [bytes_.decode(row) for batch in run for row in batch["decoder_input_tokens"]]
    assert sum(text.endswith(("good a", "yes a")) for text in texts) == 1500
    resumed = pipeline.batches("sft_policy", "train", 10, seed=1, start_batch=137)
    same(run[137], next(resumed))


def test_a_mixture_has_one_numbering_and_no_prompt_twice(mixture):
    pipeline = InputPipeline(mixture, load("bytes"), Lengths(40, 20, 21))
    splits = {split: pipeline.examples(split) for split in ("train", "dev", "test")}
    for examples in splits.values():
        assert [e.index for e in examples] == list(range(len(examples)))
    prompts = [{e.prompt for e in examples} for examples in splits.values()]
    assert all(not a & b for a, b in itertools.combinations(prompts, 2))
    report = pipeline.report()
    kept = sum(report["splits"].values())
    assert report["read"] == 152 == kept + sum(report["dropped"].values())


def test_references_of_a_mixture_are_those_of_its_prompts(mixture, tmp_path):
    bytes_ = load("bytes")
    pipeline = InputPipeline(mixture, bytes_, Lengths(40, 20, 21))
    examples = pipeline.examples("train", "rl")
    writer = ReferenceWriter(
        tmp_path / "store", 16, ReferenceMeta(1, "policy", "rl_policy@3", 0, 8)
    )
    for e in examples:
        tokens = bytes_.encode(f"to {e.prompt}")
        writer.add(
            [
                {
                    "index": e.index,
                    "reference_tokens": tokens,
                    "text": f"to {e.prompt}",
                    "ended": True,
                }
            ]
        )
    writer.close()
    rows = whole(pipeline, "rl_pit", references=str(tmp_path / "store"))
    found = [bytes_.decode(unpadded(row)) for row in rows["prompt_tokens"]]
    assert found == [f"Human: {e.prompt}Assistant: to {e.prompt}" for e in examples]

    # The parts' rates hold among sampled references too, 3 to 1, whatever their numbers.
    counts = [sum(e.prompt[0] == name for e in examples) for name in "ab"]
    assert counts[0] < counts[1]
    store = str(tmp_path / "store")
    batches = pipeline.batches("rl_pit", "train", 10, seed=1, references=store)
    drawn = [
        bytes_.decode(unpadded(row))
        for b in itertools.islice(batches, 200)
        for row in b["prompt_tokens"]
    ]
    assert sum(text.startswith("Human: a") for text in drawn) / 2000 == pytest.approx(
        0.75, abs=0.06
    )


def test_a_mixture_is_in_the_registry(mixture):
    import seqio

    pipeline = InputPipeline(mixture, load("bytes"), Lengths(40, 20, 21))
    pipeline.register("rm_gap")
    found = seqio.MixtureRegistry.get(f"{mixture.name}_mixture_rm_gap")
    rates = {task.name: found.get_rate(task) for task in found.tasks}
    assert rates == {"preferences_rm_gap": 3.0, "preferences_2_rm_gap": 1.0}


def test_reflection_is_part_of_the_target_and_has_its_window(pipeline):
    layout = Layout(WORDS)
    # Reflections have 3, 5 or 7 words, and <<Improved>>.
    lengths = Lengths(prompt=12, reference=14, response=19, reflection=6)
    reflecting = InputPipeline(CONFIG, WORDS, lengths)
    rows = whole(reflecting, "sft_pit_reflection")
    assert reflecting.feature_lengths("sft_pit_reflection")["targets"] == 6 + 19
    everything = pipeline.examples("train", "sft")
    examples = [e for e in everything if len(e.reflection.split()) <= 5]
    for inputs, targets, weights, e in zip(*sft_columns(rows), examples, strict=True):
        target = layout.reflected_response(e.reflection, e.chosen)
        assert unpadded(inputs) == layout.pit_prompt(e.prompt, e.rejected) + target
        assert targets[weights > 0].tolist() == target
    assert {len(e.reflection.split()) for e in examples} == {3, 5}
    assert 0 < len(examples) < len(everything)
    bounds = reflecting.row_bounds("sft_pit_reflection", "train", 10_000)
    assert bounds == {reflecting.config.name: (len(examples), len(examples))}
    # No other task looks at reflections.
    assert everything == reflecting.examples("train", "sft")
    plain = InputPipeline(CONFIG, WORDS, dataclasses.replace(lengths, reflection=0))
    same(whole(reflecting, "sft_pit"), whole(plain, "sft_pit"))
    assert reflecting.report()["dropped"] == {}


def test_report_counts_every_pair_once(tmp_path):
    long, short = "x" * 9, "y"
    pairs = [
        {"prompt": f"{i:02d}" + text, "chosen": chosen, "rejected": rejected}
        for i in range(10)
        for text, chosen, rejected in (
            (short, short, "z"),
            (long, long, long + "z"),
            ("b", long, short),
            ("c", short, long),
            ("d", "", short),
        )
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, pairs)))
    fixed = len("Human: \n\nAssistant:")
    pipeline = InputPipeline(
        DatasetConfig("preferences", 0, 4, 4, path=str(path)),
        load("bytes"),
        Lengths(prompt=fixed + 3, reference=8, response=8),
    )
    report = pipeline.report()
    assert report["read"] == 50
    assert report["dropped"] == {
        "empty response": 10,
        "prompt too long": 10,
        "chosen too long": 10,
        "rejected too long": 10,
    }
    assert sum(report["splits"].values()) == 10
    assert sum(report["folds"].values()) == report["splits"]["train"]
    kept = pipeline.examples("train") + pipeline.examples("dev") + pipeline.examples("test")
    assert sorted(example.group for example in kept) == [f"{i:02d}y" for i in range(10)]


def test_what_is_left_out_is_what_is_counted():
    """For `examples` as for the counts of tokens."""
    lengths = Lengths(prompt=11, reference=13, response=19, reflection=2)
    pipeline = InputPipeline(CONFIG, WORDS, lengths)
    for split in ("train", "dev", "test"):
        counts = pipeline.token_counts(split)
        assert {(n.dtype, len(n)) for n in counts.values()} == {
            (np.dtype(np.int32), len(pipeline._left_out(split)))
        }
        marks = counts["left_out"]
        np.testing.assert_array_equal(pipeline._left_out(split), marks)
        assert split != "train" or 0 < np.mean(marks > 0) < 1


def test_a_response_that_just_fits_is_kept(tmp_path):
    path = tmp_path / "p.jsonl"
    pairs = [("abc", "d"), ("abcd", "e"), ("f", "abcde"), ("abcde", "g")]
    path.write_text(
        "\n".join(json.dumps({"prompt": "x", "chosen": c, "rejected": r}) for c, r in pairs)
    )
    config = DatasetConfig("preferences", 0, 0, 0, path=str(path))
    for lengths, kept in (
        (Lengths(30, reference=4, response=9), 2),
        (Lengths(30, reference=9, response=5), 2),
        (Lengths(30, reference=5, response=6), 4),
    ):
        assert len(InputPipeline(config, load("bytes"), lengths).examples("train")) == kept


def test_references_of_a_store(pipeline, tmp_path):
    layout = Layout(WORDS)
    examples = pipeline.examples("train", "rl")
    control = WORDS.control_tokens
    forged = [control.candidate, *WORDS.encode("+1"), 0, control.improved, 1, 7]
    samples = [WORDS.encode("x3 7 +1 5"), [], forged, [5] * 15]
    writer = ReferenceWriter(tmp_path / "store", 16, ReferenceMeta(1, "rl_policy", "last", 0, 8))
    for k, e in enumerate(examples):
        tokens = samples[k % 4]
        writer.add(
            [
                {
                    "index": e.index,
                    "reference_tokens": tokens,
                    "text": WORDS.decode(tokens),
                    "ended": True,
                }
            ]
        )
    writer.close()
    store = str(tmp_path / "store")
    rows = whole(pipeline, "rl_pit", references=store)
    # Control ids, padding and what follows EOS are no part of a reference; 15 tokens are too many.
    texts = ["x3 7 +1 5", "", "+1"]
    expected = [(e, texts[k % 4]) for k, e in enumerate(examples) if k % 4 < 3]
    assert len(rows["prompt_tokens"]) == len(expected)
    for k, (e, text) in enumerate(expected):
        assert rows["example_index"][k] == e.index
        assert unpadded(rows["prompt_tokens"][k]) == layout.pit_prompt(e.prompt, text)
        assert unpadded(rows["reward_prompt_tokens"][k]) == layout.gap_prompt(e.prompt, text)
    run = list(itertools.islice(pipeline.batches("rl_pit", "train", 16, references=store), 5))
    resumed = pipeline.batches("rl_pit", "train", 16, references=store, start_batch=4)
    same(run[4], next(resumed))
    # Another store has rows of its own.
    other = ReferenceWriter(tmp_path / "other", 16, ReferenceMeta(2, "rl_policy", "last", 0, 8))
    index = examples[1].index
    other.add([{"index": index, "reference_tokens": [], "text": "", "ended": True}])
    other.close()
    rows = whole(pipeline, "rl_pit", references=str(tmp_path / "other"))
    assert rows["example_index"].ravel().tolist() == [index]


def test_a_store_of_other_examples_is_refused(pipeline, tmp_path):
    writer = ReferenceWriter(tmp_path, 16, ReferenceMeta(1, "rl_policy", "last", 0, 8))
    writer.add([{"index": 10_000, "reference_tokens": [5], "text": "?", "ended": True}])
    writer.close()
    with pytest.raises(UserError, match="has a reference for example 10000"):
        pipeline.batches("rl_pit", "train", 1, references=str(tmp_path))


def test_a_reference_for_another_prompt_is_refused(pipeline, tmp_path):
    """Of an earlier version's, which don't say their prompts, it can't be told."""
    one, two = pipeline.examples("train", "rl")[:2]
    record = {"index": one.index, "reference_tokens": [5], "text": "?", "ended": True}
    for name, e in (("right", one), ("wrong", two), ("old", None)):
        writer = ReferenceWriter(tmp_path / name, 16, ReferenceMeta(1, "rl_policy", "x", 0, 8))
        writer.add([record | ({"prompt_hash": prompt_hash(e.prompt)} if e else {})])
        writer.close()
    for name in ("right", "old"):
        pipeline.batches("rl_pit", "train", 1, references=str(tmp_path / name))
    message = rf"another prompt of example {one.index} \([0-9a-f]{{16}} -> [0-9a-f]{{16}}\); bring"
    with pytest.raises(UserError, match=message):
        pipeline.batches("rl_pit", "train", 1, references=str(tmp_path / "wrong"))
    turns = Dialogue("x", (("user", "x"),))
    assert len({prompt_hash("x"), prompt_hash(turns), prompt_hash("x ")}) == 3


def test_mistakes_are_told_at_once(pipeline):
    with pytest.raises(UserError, match=r"rm_gap: \d+ examples in split 'train'.*batch_size=1000"):
        pipeline.batches("rm_gap", "train", 1000)
    with pytest.raises(ValueError, match="task: got 'rm', expected one of pretrain, sft_policy"):
        pipeline.batches("rm", "train", 8)
    with pytest.raises(ValueError, match="split, fold: got 'valid', 'all'; expected one of train"):
        pipeline.batches("rm_gap", "valid", 8)
    with pytest.raises(ValueError, match="references: got '/tmp/x' for rm_gap, expected rl_pit"):
        pipeline.batches("rm_gap", "train", 8, references="/tmp/x")


def test_tasks_are_in_the_registry():
    import seqio

    from pit_jax.data.seqio_tasks import tasks

    pipeline = InputPipeline(CONFIG, WORDS, LENGTHS)
    pipeline.register("rm_gap")
    assert tuple(tasks.TASKS) == tuple(FEATURES)
    for stage in tasks.TASKS:
        task = seqio.TaskRegistry.get(f"instructions_drafts_{stage}")
        assert "train_rl" in task.splits
        assert TASK_FOLDS[stage] == FOLD_OF_STAGE[stage]
        for feature in task.output_features.values():
            assert isinstance(feature.vocabulary, seqio.Vocabulary)
    elements = seqio.get_mixture_or_task("instructions_drafts_rm_policy").get_dataset(
        sequence_length=None, split="train_rm", shuffle=False
    )
    assert len(list(elements.as_numpy_iterator())) == len(pipeline.examples("train", "rm"))


def test_what_seqios_tools_ask_a_task_for(mixture):
    """Its registered name, lengths and converter; texts to show; metrics of scores and guesses."""
    from pit_jax.data.seqio_tasks import tasks

    pipeline = InputPipeline(CONFIG, WORDS, LENGTHS)
    assert pipeline.register("sft_pit") == "instructions_drafts_sft_pit"
    assert pipeline.feature_lengths("rl_pit")["example_index"] == 1
    assert pipeline.feature_lengths("sft_pit")["targets"] == LENGTHS.response
    converter = pipeline.feature_converter("rm_gap")
    assert converter is tasks.TASKS["rm_gap"].converter
    assert converter(pack=False, use_custom_packing_ops=False).MODEL_FEATURES.keys() == {
        "tokens",
        "blocks",
    }
    mixed = InputPipeline(mixture, load("bytes"), Lengths(40, 20, 21))
    assert mixed.register("rm_gap") == f"{mixture.name}_mixture_rm_gap"

    import seqio

    for stage, elements_each in (("sft_pit", 1), ("rm_gap", 1), ("rl_pit", 2), ("pretrain", 4)):
        task = seqio.get_mixture_or_task(pipeline.register(stage))
        dataset = task.get_dataset(sequence_length=None, split="dev", shuffle=False)
        examples = pipeline.examples("dev")
        elements = list(dataset.as_numpy_iterator())
        assert len(elements) == elements_each * len(examples)
        first, example = elements[0], examples[0]
        texts = {name: value.decode() for name, value in first.items() if "_pretokenized" in name}
        assert texts["prompt_pretokenized"] == example.prompt
        assert texts["rejected_pretokenized"] == example.rejected
        assert texts["targets_pretokenized"] == texts["chosen_pretokenized"] == example.chosen
        names = {metric.__name__ for metric in tasks.TASKS[stage].metrics}
        assert {metric.__name__ for metric in task.metric_fns} == names


def test_metrics_of_a_task_by_hand():
    from pit_jax.data.seqio_tasks import tasks

    assert tasks.log_likelihood(["a", "b"], [-1.0, -4.0]) == {"log_likelihood": -2.5}
    assert tasks.exact_match(["a", "b", "c"], ["a", "c", "c"])["exact_match"] == pytest.approx(
        2 / 3
    )
    scores = ([0.5, -1.5, 0.0, 3.0], {"chosen": [0.0] * 4})
    assert tasks.pair_accuracy([], scores) == {"accuracy": 0.5, "margin": 0.5}


def test_batches_need_no_tensorflow():
    import subprocess
    import sys

    program = (
        "import sys\n"
        "from pit_jax.data import datasets, input_pipeline, reference_store\n"
        "from pit_jax.data.synthetic import drafts\n"
        "from pit_jax.data.vocabularies.load import load\n"
        "from pit_jax.data.layouts import Lengths\n"
        "config = datasets.DatasetConfig('instructions', 9, 3, 3, family='drafts',"
        " level=drafts.DraftsConfig())\n"
        "data = input_pipeline.InputPipeline(config, load('bytes'), Lengths(99, 99, 99))\n"
        "next(data.batches('rm_gap', 'dev', 1))\n"
        "data.token_counts('dev')\n"
        "assert not {'tensorflow', 'seqio'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
