"""The `run` command from nothing to a report: on the synthetic family and on dialogues as bytes."""

from __future__ import annotations

import gzip
import html.parser
import json
import re

import pytest

from tests import tiny_runs

pytestmark = pytest.mark.no_cover  # of the tests, not of the fixtures, which train

STAGES = [stage.name for stage in tiny_runs.config("unused").stages]


def read_report(folder):
    return tiny_runs.without_times(json.loads((folder / "report.json").read_text()))


def test_every_stage_leaves_its_folder(trained):
    for name in STAGES:
        folder = trained / name
        files = {path.name for path in folder.iterdir()}
        assert {"stage.json", "metrics.jsonl", "result.json", "checkpoints"} <= files
        records = tiny_runs.records(folder / "metrics.jsonl")
        steps = json.loads((folder / "result.json").read_text())["steps"]
        assert [record["step"] for record in records] == list(range(1, steps + 1))
    assert (trained / "rl_pit" / "references" / "round-1" / "manifest.json").exists()
    assert list(trained.rglob("*.gin")) == [trained / "config.gin"]


def test_the_report_parses_and_holds_the_tables(trained):
    report = json.loads((trained / "report.json").read_text())
    assert report["title"] == "PIT on instructions_drafts" and report["num_prompts"] == 20
    assert [stage["name"] for stage in report["stages"]] == STAGES
    assert all(stage["seconds"] > 0 for stage in report["stages"])
    assert "rl_pit_1/curriculum.Round.steps = 3" in report["config_text"]
    iterations = max(row["iteration"] for row in report["iterations"][0]["rows"])
    at_main = [
        r for r in report["budgets"] if r["temperature"] == report["scores"][0]["temperature"]
    ]
    assert [row["iteration"] for row in at_main] == list(range(1, iterations + 1))
    assert all(row["drawn_tokens"] <= row["pit_tokens"] for row in report["budgets"])
    markdown = (trained / "report.md").read_text()
    page = (trained / "report.html").read_text()
    titles = ("PIT vs Original", "RL vs SFT", "Policy re-sampled vs Original", "R_PIT")
    for title in (*titles, "PIT, best vs", "More draws in place of improvements"):
        assert title.replace("_", r"\_") in markdown and title in page
    for number in (1, 3, 4):
        assert re.search(rf"Table {number}\b", markdown) and re.search(rf"Table {number}\b", page)
    for number in (2, 3, 4):
        assert re.search(rf"Figure {number}\b", markdown) and re.search(rf"Figure {number}\b", page)
    for image in re.findall(r"\]\((figures/[^)]+)\)", markdown):
        assert (trained / image).read_bytes().startswith(b"\x89PNG")
    parser = html.parser.HTMLParser()
    parser.feed(page)
    parser.close()
    assert page.count("<table") == page.count("</table>") > 3


@pytest.mark.slow
def test_one_seed_gives_one_set_of_numbers(trained, tmp_path):
    again = tmp_path / "again"
    assert tiny_runs.command("run", again) == 0
    for name in STAGES:
        one, two = (tiny_runs.records(f / name / "metrics.jsonl") for f in (trained, again))
        assert one == two, name
    one, two = read_report(trained), read_report(again)
    for report in (one, two):
        for name in ("config_text", "command"):  # they name the folder
            report.pop(name)
    assert one == two


def test_the_same_command_skips_what_is_done(trained, capsys):
    before = read_report(trained)
    assert tiny_runs.command("run", trained) == 0
    output = capsys.readouterr().out
    assert re.findall(r"^(\w+): complete, skipped$", output, re.M) == STAGES
    assert "PIT vs Original" in output and f"report: {trained / 'report.html'}" in output
    assert read_report(trained) == before


BYTES = """
from __gin__ import dynamic_registration
include 'gin/runs/hh.gin'
"""
# The run of gin/runs/hh.gin on a smaller network and window, a few steps a stage.
SMALL = {
    "HH_PATH": "'{path}'",
    "BATCH_SIZE": "4",
    "NetworkConfig.embed_dim": "16",
    "NetworkConfig.num_layers": "1",
    "NetworkConfig.num_heads": "2",
    "NetworkConfig.num_kv_heads": "2",
    "NetworkConfig.head_dim": "8",
    "NetworkConfig.mlp_dim": "16",
    "BatchingConfig.packed_length": "96",
    "BatchingConfig.length_buckets": "2",
    "DatasetConfig.dev_size": "6",
    "DatasetConfig.test_size": "6",
    "Lengths.prompt": "48",
    "Lengths.reference": "16",
    "Lengths.response": "17",
    "RunConfig.sampling_batch": "6",
    "LoopConfig.log_every": "1",
    "pretrain/stages.SupervisedStage.steps": "12",
    "sft_policy/stages.SupervisedStage.steps": "12",
    "sft_pit/stages.SupervisedStage.steps": "12",
    "rm_policy/stages.RewardStage.steps": "2",
    "rm_gap/stages.RewardStage.steps": "2",
    "rl_policy/curriculum.Round.steps": "1",
    "rl_pit_0/curriculum.Round.steps": "1",
    "rl_pit_1/curriculum.Round.steps": "1",
    "EvaluationConfig.iterations": "1",
    "EvaluationConfig.self_refine": "False",
}


def write_dialogues(path):
    """Sixty short pairs, one too long for the windows, one whose contexts differ."""
    names = ["tea", "rain", "cats", "bread", "chess", "trains"]
    pairs = [
        (f"\n\nHuman: {name} {n}?\n\nAssistant: ", f"{name} yes {n}", f"no {n}")
        for name in names
        for n in range(10)
    ]
    pairs.append(("\n\nHuman: " + "long " * 40 + "\n\nAssistant: ", "yes", "no"))
    lines = [{"chosen": x + w, "rejected": x + l} for x, w, l in pairs]  # noqa: E741
    other = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in [*lines, other])


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory):
    def make(folder):
        path = folder.with_name("dialogues.jsonl.gz")
        write_dialogues(path)
        bindings = [f"--gin.{name}={value.format(path=path)}" for name, value in SMALL.items()]
        assert tiny_runs.command("run", folder, *bindings, gin=BYTES) == 0

    return tiny_runs.once(tiny_runs.shared_folder(tmp_path_factory) / "dialogues", make)


def test_dialogues_go_through_every_stage(dialogues):
    for name in STAGES:
        assert json.loads((dialogues / name / "result.json").read_text())["steps"] > 0
    for name in ("pretrain", "sft_policy", "sft_pit"):
        losses = [r["loss"] for r in tiny_runs.records(dialogues / name / "metrics.jsonl")]
        assert losses[-1] < losses[0]


def test_dropped_dialogues_are_counted(dialogues):
    report = read_report(dialogues)
    rows = dict(map(tuple, report["data"]["rows"]))
    assert rows["examples read"] == 62
    assert rows["dropped: prompt too long"] == 1
    dropped = {name: n for name, n in rows.items() if name.startswith("dropped")}
    assert sum(dropped.values()) == 2, dropped
    assert sum(rows[f"{split} split"] for split in ("train", "dev", "test")) == 60


def test_dialogues_are_judged_by_the_reward_model(dialogues):
    report = read_report(dialogues)
    assert "judged by R_P (rm_policy)" in report["description"]
    assert {row["judge"] for row in report["comparisons"]} == {"R_P (rm_policy)"}
    assert not any("Self-Refine" in row["name"] for row in report["comparisons"])
    assert "circular, and in its favour" in (dialogues / "report.md").read_text()
    prompts = [sample["prompt"] for sample in report["samples"]]
    assert all(re.search(r"[a-z]+ \d\?", prompt) for prompt in prompts)


def test_a_run_whose_stages_t5x_wrote_is_evaluated_alike(trained, tmp_path):
    folder = tmp_path / "t5x"
    for name in STAGES:
        arguments = (f"--gin.STAGE='{name}'", "--to=t5x", f"--output={folder / name}")
        assert tiny_runs.command("convert", trained, *arguments) == 0
    assert not list(folder.rglob("result.json"))
    assert tiny_runs.command("evaluate", folder) == 0
    found, expected = read_report(folder), read_report(trained)
    for report in (found, expected):  # from an anchor, which T5X's checkpoints don't have
        assert all(each.pop("stops") for each in report["iterations"])
    for part in ("comparisons", "scores", "iterations", "reward_models", "figure2", "figure3"):
        assert found[part] == expected[part], part
    assert found["figure4"] == [] and expected["figure4"]
    assert "Figure 3" in (folder / "report.md").read_text()
