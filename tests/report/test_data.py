"""The `data` command: its figures against counts made by hand, its rows, its three outputs."""

import json

import numpy as np
import pytest

from pit_jax.data.batching import BatchingConfig
from pit_jax.data.datasets import DatasetConfig
from pit_jax.data.input_pipeline import InputPipeline
from pit_jax.data.layouts import Layout, Lengths
from pit_jax.data.vocabularies.load import load
from pit_jax.report import data as data_report
from tests import tiny_runs

BYTES = load("bytes")
LENGTHS = Lengths(prompt=40, reference=20, response=21)
STAGES = (
    tiny_runs.supervised("sft_policy", batch_size=4),
    tiny_runs.supervised("sft_pit", batch_size=4),
    tiny_runs.reward("rm_policy", batch_size=4),
    tiny_runs.reward("rm_gap", batch_size=4),
)


def pipeline(folder, batching=BatchingConfig()):
    """48 pairs of different lengths, two of them over a window, and a response left empty."""
    pairs = [
        {"prompt": f"q{i}" + "?" * (i % 7), "chosen": "good " * (1 + i % 3), "rejected": "bad"}
        for i in range(48)
    ]
    pairs[3]["prompt"] = "long " * 10
    pairs[5]["rejected"] = "long " * 10
    pairs[7]["chosen"] = ""
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, pairs)))
    config = DatasetConfig("preferences", 0, 6, 6, path=str(path))
    return InputPipeline(config, BYTES, LENGTHS, batching)


def test_every_example_is_counted_once(tmp_path):
    found = data_report.gather(pipeline(tmp_path), STAGES)
    examples = found["examples"]
    assert examples["read"] == 48
    assert examples["shapes"] == ["pairs: text prompt, text answers"]
    assert sum(examples["dropped"].values()) == 3
    assert examples["dropped"]["prompt too long"] == examples["dropped"]["rejected too long"] == 1
    assert sum(examples["splits"].values()) == 45
    assert (examples["splits"]["dev"], examples["splits"]["test"]) == (6, 6)
    assert sum(examples["folds"].values()) == examples["splits"]["train"]
    assert len(found["overlap"]) == 6 and not any(found["overlap"].values())


def test_lengths_by_hand(tmp_path):
    fields = data_report.gather(pipeline(tmp_path), ())["lengths"]
    # "Human: ", a blank line and "Assistant:" are 19 bytes; the longest prompt has 49 more.
    assert fields["prompt"]["quantiles"]["0"] == 19 + 2
    assert fields["prompt"]["quantiles"]["100"] == 19 + 49
    assert [fields[name]["over"] for name in fields] == [1, 0, 1]
    assert [fields[name]["window"] for name in fields] == [40, 20, 20]
    assert {sum(field["counts"]) for field in fields.values()} == {47}
    assert sum(fields["rejected"]["counts"][:-1]) == 46


@pytest.mark.parametrize("batching", [BatchingConfig(), BatchingConfig(96, 3)])
def test_padding_is_that_of_the_batches(tmp_path, batching):
    data = pipeline(tmp_path, batching)
    layout, widths = Layout(BYTES), Layout(BYTES).widths(LENGTHS)
    by_task = {row["task"]: row for row in data_report.gather(data, STAGES)["batches"]}

    def shares(examples, tokens, width):
        """Real tokens of the examples' rows, and their share at a fixed width."""
        real = sum(map(tokens, examples))
        return real, real / (len(examples) * width)

    sft, rm = data.examples("train", "sft"), data.examples("train", "rm")
    expected = {
        "sft_policy": shares(
            sft,
            lambda e: len(layout.policy_prompt(e.prompt) + layout.response(e.chosen)),
            widths.policy + widths.response,
        ),
        "sft_pit": shares(
            sft,
            lambda e: len(layout.pit_prompt(e.prompt, e.rejected) + layout.response(e.chosen)),
            widths.pit + widths.response,
        ),
        "rm_policy": shares(
            rm,
            lambda e: (
                len(layout.reward_prompt(e.prompt))
                + len(layout.response(e.chosen))
                + len(layout.response(e.rejected))
            ),
            widths.pair_row,
        ),
        "rm_gap": shares(
            rm,
            lambda e: (
                len(layout.policy_prompt(e.prompt))
                + len(layout.gap_reference(e.chosen))
                + len(layout.gap_reference(e.rejected))
                + 2 * len(layout.response(e.chosen))
                + 2 * len(layout.response(e.rejected))
            ),
            widths.gap_row,
        ),
    }
    for task, (real, share) in expected.items():
        row = by_task[task]
        assert row["examples"] == len(sft if task.startswith("sft") else rm)
        assert row["window_share"] == pytest.approx(share)
        batches = list(data.batches(task, "train", 4, num_epochs=1))
        first = "blocks" if "blocks" in batches[0] else "decoder_segment_ids"
        assert row["batches"] == len(batches) == row["rows"] // 4
        assert row["tokens"] == sum(batch[first].size for batch in batches)
        assert row["real_tokens"] <= real
        if row["rows"] % 4 == 0:
            assert row["real_tokens"] == real
        assert row["real_share"] == row["real_tokens"] / row["tokens"]
        if batching.packed_length:
            assert row["real_share"] > row["window_share"]


def test_too_few_examples_for_a_batch_are_said(tmp_path):
    stages = (tiny_runs.reward("rm_gap", batch_size=400),)
    (row,) = data_report.gather(pipeline(tmp_path), stages)["batches"]
    assert row["error"].endswith("expected at least batch_size=400")
    assert row["error"] in data_report.to_text(data_report.gather(pipeline(tmp_path), stages))


def test_rows_show_what_is_learnt(tmp_path):
    data = pipeline(tmp_path)
    rows = data_report.gather(data, STAGES, num_examples=1)["rows"]
    assert [row["task"] for row in rows] == [stage.task for stage in STAGES]
    sft, rm = data.examples("train", "sft")[0], data.examples("train", "rm")[0]

    def texts(row):
        return [(g["label"], g["loss"], "".join(g["pieces"])) for g in row["groups"]]

    human = f"Human: {sft.prompt}Assistant:".replace("\n", "\\n")
    candidate = f"<<Candidate>> {sft.rejected}<<Improved>>"
    learnt = ("learnt", True, sft.chosen + "<EOS>")
    assert texts(rows[0]) == [("read", False, human), learnt]
    assert texts(rows[1]) == [("read", False, human + candidate), learnt]
    human = f"Human: {rm.prompt}Assistant:".replace("\n", "\\n")
    assert texts(rows[2]) == [
        ("x", False, human + " "),
        ("y_w", True, rm.chosen + "<EOS>"),
        ("y_l", True, rm.rejected + "<EOS>"),
    ]
    groups = texts(rows[3])
    assert groups[:3] == [
        ("x", False, human),
        ("reference y_w", False, f"<<Candidate>> {rm.chosen}<<Improved>> "),
        ("reference y_l", False, f"<<Candidate>> {rm.rejected}<<Improved>> "),
    ]
    better, worse = rm.chosen + "<EOS>", rm.rejected + "<EOS>"
    assert groups[3:] == [
        ("y_w after y_l", True, better),
        ("y_w after y_w", True, better),
        ("y_l after y_l", True, worse),
        ("y_l after y_w", True, worse),
    ]


def test_packed_rows_name_their_segments(tmp_path):
    data = pipeline(tmp_path, BatchingConfig(packed_length=96))
    (row,) = data_report.gather(data, STAGES[:1], num_examples=1)["rows"]
    labels = [group["label"] for group in row["groups"]]
    assert labels[:4] == ["1 read", "1 learnt", "2 read", "2 learnt"]


def test_pieces_are_printable():
    ids = BYTES.encode("a\x1bé\n")
    pieces = [data_report.piece(BYTES, token) for token in ids]
    assert pieces[:2] == ["a", "\\x1b"] and pieces[-1] == "\\n"
    assert pieces[2:4] == [f"<{token}>" for token in ids[2:4]]
    assert data_report.printable("ein Wort\u202e \x1b[31m") == "ein Wort\\u202e \\x1b[31m"


def test_the_command(tmp_path, capsys):
    arguments = ("--examples=1", f"--output={tmp_path / 'shown'}")
    assert tiny_runs.command("data", tmp_path / "run", *arguments) == 0
    text = capsys.readouterr().out
    assert "folds of train" in text and "train and test: 0" in text and "Tokens of chosen" in text
    assert max(map(len, text.splitlines())) <= 110
    assert tiny_runs.command("data", tmp_path / "run", "--json", "--examples=1") == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "shown" / "data.json").read_text())
    assert {row["task"] for row in found["rows"]} == {row["task"] for row in found["batches"]}
    shares = [row["real_share"] for row in found["batches"]]
    assert len(shares) == 7 and 0 < np.min(shares) <= np.max(shares) <= 1
    assert (tmp_path / "shown" / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "run").exists()
