"""Commands on a mixture of dialogues and summaries, with a tokenizer of one's own."""

from __future__ import annotations

import json

import pytest

from tests import tiny_runs, tiny_tokenizers
from tests.end_to_end.test_run import SMALL, write_dialogues

pytestmark = pytest.mark.no_cover

MIXTURE = """
from __gin__ import dynamic_registration
include 'gin/runs/hh_and_summaries.gin'
"""


def write_comparisons(path):
    records = [
        {
            "info": {"post": f"a post about {n}", "title": "t", "subreddit": "all"},
            "summaries": [{"text": f"sum {n}"}, {"text": f"{n}"}],
            "choice": n % 2,
            "split": "train",
        }
        for n in range(60)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.mark.slow
def test_stages_learn_from_both(tmp_path, capsys):
    write_dialogues(tmp_path / "dialogues.jsonl.gz")
    write_comparisons(tmp_path / "comparisons.json")
    root = tmp_path / "tokenizers"
    root.mkdir()
    case = tiny_tokenizers.make_cases(root)["bytes"]
    bindings = SMALL | {
        "HH_PATH": f"'{tmp_path / 'dialogues.jsonl.gz'}'",
        "SUMMARIES_PATH": f"'{tmp_path / 'comparisons.json'}'",
        "VOCABULARY": f"'{case.spec}'",
        "RunConfig.control_tokens": repr(tuple(case.names["control_tokens"])),
        "RunConfig.pad_token": f"'{case.names['pad_token']}'",
        "NetworkConfig.vocab_size": "304",
        "Lengths.prompt": "128",
        "rm_gap/stages.RewardStage.steps": "6",
        "BatchingConfig.length_buckets": "1",
    }
    arguments = [f"--gin.{name}={value}" for name, value in bindings.items()]
    assert tiny_runs.command("data", tmp_path / "run", "--json", *arguments, gin=MIXTURE) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["examples"]["read"] == 62 + 60
    assert not any(found["overlap"].values())
    assert all("error" not in row for row in found["batches"])

    for stage in ("pretrain", "rm_gap"):
        train = ("train", tmp_path / "run", f"--gin.STAGE='{stage}'", *arguments)
        assert tiny_runs.command(*train, gin=MIXTURE) == 0
        records = tiny_runs.records(tmp_path / "run" / stage / "metrics.jsonl")
        assert records[-1]["loss"] < records[0]["loss"]
    # The parameters of another tokenizer's model mean something else.
    swapped = [a for a in arguments if "control_tokens" not in a]
    swapped.append(f"--gin.RunConfig.control_tokens={tuple(case.names['control_tokens'])[::-1]!r}")
    assert tiny_runs.command(*train[:3], *swapped, gin=MIXTURE) == 2
    assert "started with other settings: vocabulary " in capsys.readouterr().err
