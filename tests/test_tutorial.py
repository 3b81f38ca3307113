"""docs/tutorial.md: its configurations and commands work, and its figures are right."""

import dataclasses
import functools
import json
import pathlib
import re
import shlex

import jax
import pytest

from pit_jax import cli, commands, people
from pit_jax.run import exported  # noqa: F401  its class is one of the Run that tests replace
from pit_jax.run import run as runs
from tests import tiny_tokenizers

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
CONFIGS = {body.split(maxsplit=2)[1]: body for language, body in BLOCKS if language == "gin"}
COMMANDS = [
    line.removeprefix("python -m pit_jax ")
    for language, body in BLOCKS
    if not language
    for line in body.replace("\\\n", " ").splitlines()
    if line.startswith("python -m pit_jax ")
]
RUNS = sorted({line for line in COMMANDS if line.startswith("run ") and "--dry_run" not in line})
OTHERS = sorted({line for line in COMMANDS if not line.startswith("run ")})
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What somebody has who has done all that the page says, but whose runs are empty."""
    place = tmp_path_factory.mktemp("tutorial")
    for name, body in CONFIGS.items():
        (place / name).write_text(body)
        for directory in re.findall(r"^MODEL_DIR = '(.*)'$", body, re.MULTILINE):
            (place / directory).mkdir(parents=True)
    languages = dict(BLOCKS)
    (place / "prompts.jsonl").write_text(languages["json"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        exec(languages["python"], {})
    # In the place of what `convert --from=hf` writes.
    tokenizer = tiny_tokenizers.byte_level_bpe()
    tokenizer.add_special_tokens(["<eos>"])
    (place / "base" / "model").mkdir(parents=True)
    settings = {"eos_token": "<eos>", "pad_token": "<eos>", "chat_template": TEMPLATE}
    tiny_tokenizers.save(place / "base" / "tokenizer", tokenizer, settings)
    (place / "base" / "model.gin").write_text((ROOT / "gin/models/smollm2_135m.gin").read_text())
    (place / "base" / "model" / "result.json").write_text('{"task": "pretrain", "model_step": 0}')
    return place


@pytest.fixture
def given(folder, monkeypatch):
    """Runs a command up to where its work would begin; returns what the work is given."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(runs, "Run", functools.partial(runs.Run, devices=jax.devices()[:1]))

    def ask(line):
        asked = []
        name = "bring_in" if "--from=hf" in line else line.partition(" ")[0]
        name = "compare" if "--compare=" in line else name
        for step in ("ask", "_ask_of_files", "_report"):
            monkeypatch.setattr(people, step, lambda *arguments: asked.append(arguments))
        monkeypatch.setattr(commands, name, lambda *arguments: asked.append(arguments))
        assert cli.main(shlex.split(line)) == 0
        return asked[0]

    return ask


def test_the_page_has_what_the_others_look_at():
    assert len(RUNS) == len(CONFIGS) >= 6
    assert {line.partition(" ")[0] for line in COMMANDS} >= {
        *("data", "run", "improve", "evaluate", "convert")
    }
    for line in BLOCKS:
        assert line[0] in ("", "gin", "json", "python", "text"), line[0]


@pytest.mark.parametrize("line", RUNS)
def test_a_run_would_start(line, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(runs, "Run", functools.partial(runs.Run, devices=jax.devices()[:1]))
    before = sorted(folder.rglob("*"))
    status = cli.main([*shlex.split(line), "--dry_run"])
    out, err = capsys.readouterr()
    assert (status, err) == (0, "")
    assert "(nothing is written)" in out and sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("line", OTHERS)
def test_another_command_takes_its_flags(line, given):
    *_, options = given(line)
    assert line.startswith(options.command)


def test_the_figures_of_the_pairs(given):
    run, *_ = given("data --gin_file=mine.gin")
    report, lengths = run.data.report(), run.data.lengths
    splits, folds = (", ".join(f"{k} {n}" for k, n in report[key].items()) for key in PARTS)
    assert splits.replace(", test", " and test") in " ".join(TEXT.split())
    counts = re.findall(r"\d+", folds)
    assert f"{counts[0]}, {counts[1]} and {counts[2]}" in " ".join(TEXT.split())
    assert f"Tokens of prompt: window {lengths.prompt}, over it 0" in TEXT
    assert report["dropped"] == {} and f"makes {report['read']:,} pairs" in TEXT


PARTS = ("splits", "folds")


def test_the_variations_vary_what_they_say(given):
    mine, *_ = given("data --gin_file=mine.gin")
    steps = mine.stage("rl_pit").steps
    two_term, *_ = given("data --gin_file=two_term.gin")
    assert two_term.stage("rm_gap").reward.gap_loss == "two_term"
    assert two_term.stage("rm_policy") == mine.stage("rm_policy")
    three, *_ = given("data --gin_file=three_rounds.gin")
    assert [r.source for r in three.stage("rl_pit").rounds] == ["data", "policy", "pit"]
    first, *_ = given("data --gin_file=first_round.gin")
    alone, (data, _) = first.stage("rl_pit_first_only"), mine.stage("rl_pit").rounds
    assert alone.rounds == (dataclasses.replace(data, steps=steps),)
    changed = {"name": alone.name, "rounds": alone.rounds}
    assert alone == dataclasses.replace(mine.stage("rl_pit"), **changed)
    assert first.config.model_dir == mine.config.model_dir
    assert first.config.stages[:-1] == mine.config.stages


def test_the_prompts_are_json_lines(folder):
    lines = (folder / "prompts.jsonl").read_text().splitlines()
    assert ["prompt" in json.loads(line) for line in lines] == [True, True]


def test_flags_of_the_pages_are_settings():
    """Each `--gin.stage/Class.field` is in the table of its class; macros are in gin/."""
    pages = ("tutorial", "expect", "faq")
    text = "".join((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8") for page in pages)
    settings = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    macros = "STAGE\n" + "".join(path.read_text() for path in (ROOT / "gin").rglob("*.gin"))
    names = set(re.findall(r"--gin\.([\w/]+(?:\.\w+)?)=", text))
    assert len(names) > 20
    for name in names:
        owner, _, field = name.rpartition(".")
        if owner:
            table = settings.partition(f"## {owner.rpartition('/')[2]}\n")[2].partition("\n## ")[0]
            assert f"| `{field}` |" in table, name
        else:
            assert re.search(rf"^{name}\b", macros, re.MULTILINE), name


def test_links_of_the_pages_lead_somewhere():
    for page in ("docs/tutorial.md", "docs/expect.md", "docs/faq.md", "README.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        links = re.findall(r"\]\(([^)#]+)\)", text)
        missing = [each for each in links if "://" not in each]
        missing = [each for each in missing if not (ROOT / page).parent.joinpath(each).exists()]
        assert links and not missing, page
