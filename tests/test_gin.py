"""The configs under gin/: their headers, and every run dry-run through the command line."""

import ast
import dataclasses
import functools
import gzip
import itertools
import json
import pathlib
import re

import jax
import pytest
from etils import epath

import gin
from pit_jax import bindings, cli
from pit_jax.data import datasets
from pit_jax.data.files import build
from pit_jax.evaluation.suite import EvaluationConfig
from pit_jax.method.decode import SamplingConfig
from pit_jax.models.config import LoraConfig
from pit_jax.run import hugging_face
from pit_jax.run import run as runs
from pit_jax.run.config import RunConfig
from tests import tiny_tokenizers
from tests.models.weights.test_presets import PUBLISHED

ROOT = pathlib.Path(__file__).resolve().parents[1]
ROOTS = (RunConfig, EvaluationConfig)
ALL = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "gin").rglob("*.gin"))
FILES = [name for name in ALL if not name.startswith("gin/t5x/")]  # those go into T5X's own
RUNS = [name for name in FILES if name.startswith("gin/runs/")]
ADAPTERS = [name for name in RUNS if name.startswith("gin/runs/lora_")]
LARGE = [name for name in RUNS if name.endswith("b.gin") and name not in ADAPTERS]  # on a pod
# From a base model, such as tests/run/test_hugging_face.py makes; SmolLM2's take a file of tasks.
FROM_BASE = ("gin/runs/from_base.gin", "gin/runs/smollm2.gin", "gin/runs/smollm2_cpu.gin")
SMALL_RUNS = sorted(set(RUNS) - {*LARGE, *ADAPTERS, *FROM_BASE})
TASKS = ("pretrain", "sft_policy", "sft_pit", "rm_policy", "rm_gap", "rl_policy", "rl_pit")
SIZES = {"train": 480, "dev": 16, "test": 16}  # as few as fill the batches of every stage
SMALL = [f"--gin.DatasetConfig.{split}_size={size}" for split, size in SIZES.items()]
SIDES = ("chosen", "rejected")
QUICKSTART = "gin/runs/quickstart.gin"
JUDGES = {f"gin/judge{name}.gin" for name in ("", "_classifier", "_reward_model")}  # of any run
TRANSFER = "gin/tasks/drafts_short.gin"  # a finished run is evaluated on it
LORA = "gin/lora.gin"  # for the training of any run
T5X_BASE = "gin/models/t5x_base.gin"  # for whoever brings weights
PRESETS = [f"gin/models/{name}.gin" for name in PUBLISHED]  # likewise


@functools.cache
def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def header(name: str) -> str:
    lines = []
    for line in text(name).splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def includes(name: str) -> list[str]:
    return re.findall(r"^include '(.*)'$", text(name), re.MULTILINE)


def reached(name: str) -> set[str]:
    """The file and all that it includes."""
    return {name}.union(*(reached(included) for included in includes(name)))


def depth(name: str) -> int:
    """How many includes the farthest file is away."""
    return max((1 + depth(included) for included in includes(name)), default=0)


def assignments(name: str) -> dict[str, str]:
    """What one file gives each macro and binding, `block:` lines taken apart; last wins."""
    found, block = {}, ""
    for line in text(name).splitlines():
        if opened := re.fullmatch(r"([\w/.]+):", line):
            block = opened[1]
        elif given := re.fullmatch(r"( *)([\w/.]+) = (.*)", line):
            found[f"{block}.{given[2]}" if given[1] else given[2]] = given[3]
    return found


def open_names(name: str) -> set[str]:
    """What is left to be set by whoever uses the file: required, or referred to and not set."""
    given: dict[str, str] = {}
    for part in reached(name):
        fresh = assignments(part)
        given |= {k: v for k, v in fresh.items() if v != "%gin.REQUIRED" or k not in given}
    bodies = "".join(text(part) for part in reached(name))
    macros = set(re.findall(r"%([A-Z_]+)\b", bodies)) - set(given)
    return {k for k, value in given.items() if value == "%gin.REQUIRED"} | macros


def resolved(*flags: str, file: str | pathlib.Path) -> tuple[RunConfig, EvaluationConfig]:
    """What a gin file and flags after it configure; no data is read."""
    pairs = [(name, value) for name, _, value in (flag.partition(" = ") for flag in flags)]
    bindings.parse([str(file)], "", pairs, ROOTS)
    return tuple(map(bindings.configured, ROOTS))


def for_required(name: str) -> list[str]:
    """Bindings of the paths that a run asks for, to nothing that exists."""
    return [f"{macro} = 'unused'" for macro in sorted(open_names(name))]


def copied(name: str, folder: pathlib.Path, order: dict[str, tuple[str, ...]]) -> pathlib.Path:
    """A copy of a file, and of all it includes, where some files' includes have another order."""
    given = iter(order.get(name, includes(name)))
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    line = re.compile(r"^include '.*'$", re.MULTILINE)
    content = line.sub(lambda _: f"include '{copied(next(given), folder, order)}'", text(name))
    target.write_text(content, encoding="utf-8")
    return target


def other_orders(files: list[str]) -> list[tuple[str, ...]]:
    """All of up to four files; of more, the reverse, and each in turn as the first."""
    if len(files) <= 4:
        return list(itertools.permutations(files))[1:]
    turned = [(*files[start:], *files[:start]) for start in range(1, len(files))]
    return [tuple(reversed(files)), *turned]


def stage_table(output: str) -> list[str]:
    """The lines of a dry run's table of stages, its head included."""
    return output[output.index("stage  ") :].partition("\n\n")[0].splitlines()


def data_for(name: str, folder: pathlib.Path) -> list[str]:
    """Arguments that give a run the files it asks for."""
    dialogues = [
        {side: f"\n\nHuman: question {i}\n\nAssistant: {side} {i}" for side in SIDES}
        for i in range(480)
    ]
    preferences = [
        {"prompt": f"question {i}"} | {side: f"{side} {i}" for side in SIDES} for i in range(480)
    ]
    comparisons = [
        {
            "info": {"post": f"post {i}", "title": "title", "subreddit": "all"},
            "summaries": [{"text": f"{side} {i}"} for side in SIDES],
            "choice": 0,
            "split": "train",
        }
        for i in range(480)
    ]
    files = {"HH_PATH": dialogues, "PREFERENCES_PATH": preferences, "SUMMARIES_PATH": comparisons}
    arguments = []
    for macro in sorted(open_names(name)):
        if macro == "PREPARED":
            path = folder / "manual" / "pairs.jsonl"
            path.parent.mkdir()
            path.write_text("".join(json.dumps(pair) + "\n" for pair in preferences))
            flags = [f"--data_dir={folder}", f"--manual_dir={path.parent}"]
            assert build.main(["preferences", *flags]) == 0
            arguments.append(f"--gin.PREPARED='{folder}/preferences/manual/1.0.0'")
        else:
            path = folder / f"{macro}.jsonl"
            path.write_text("".join(json.dumps(record) + "\n" for record in files[macro]))
            arguments.append(f"--gin.{macro}='{path}'")
    return arguments or SMALL


def failure(capsys, *arguments: str) -> str:
    """The one line on stderr of a command that ends with exit status 2."""
    assert cli.main(["run", "--dry_run", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1, (out, err)
    assert err.startswith("pit_jax run: ")
    return err


# --- headers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_file_opens_with_what_to_set(name):
    first, *_ = header(name).split(": ")
    assert first and "Commonly overridden: " in header(name)
    assert max(map(len, text(name).splitlines())) <= 100
    stated = re.search(r"Required to be set: (.*?) ?Commonly overridden", header(name))
    required = open_names(name)
    macros = {each for each in required if each.isupper()}
    assert set(re.findall(r"\b[A-Z][A-Z_]+\b", stated[1] if stated else "")) == macros
    assert bool(stated) == bool(required)
    for field in {each.rpartition(".")[2] for each in required - macros}:
        assert re.search(rf"\b{field}\b", stated[1]), field


def test_every_file_is_part_of_a_run():
    with_run = ("smollm2_135m", "smollm3_3b", "llama3_1_8b")
    unused = {*JUDGES, LORA, T5X_BASE, TRANSFER, *PRESETS} - {
        f"gin/models/{name}.gin" for name in with_run
    }
    assert set().union(*(reached(run) for run in RUNS)) == set(FILES) - unused


# --- includes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_a_value_is_at_most_three_files_away(name):
    assert depth(name) <= 3


@pytest.mark.parametrize("name", RUNS)
def test_the_order_of_includes_does_not_matter(name, tmp_path):
    """Permutes the includes of each file that the run reaches, one file at a time."""
    expected = resolved(*for_required(name), file=name)
    orders = [(part, order) for part in reached(name) for order in other_orders(includes(part))]
    assert orders
    for number, (part, order) in enumerate(orders):
        file = copied(name, tmp_path / str(number), {part: order})
        assert resolved(*for_required(name), file=file) == expected, (part, order)


def test_a_paper_run_has_the_papers_windows_and_a_tokenizer():
    run, _ = resolved(file="gin/runs/hh_8b.gin")
    windows = run.lengths
    assert (windows.prompt, windows.reference, windows.response) == (512, 512, 513)  # 512 and EOS
    assert run.vocabulary == "tokenizer:base/tokenizer"


def test_a_role_gets_a_base_model_of_its_own(tmp_path):
    """All fields are the role's, also those in which the run's network isn't at its default."""
    run, _ = resolved(file=QUICKSTART)
    family = dataclasses.replace(run.network, norm="layer", vocab_size=300, positions="relative")
    own, file = tmp_path / "gap_reward.gin", tmp_path / "both.gin"
    own.write_text(hugging_face.role_gin(family, epath.Path("base"), "tokenizer", "gap_reward"))
    other = "config.NetworkConfig.qkv_bias = True"
    file.write_text(f"include '{QUICKSTART}'\ninclude '{own}'\n")
    found, _ = resolved(other, file=file)
    assert found.gap_reward.network == family and found.network.qkv_bias
    assert found.of_role("pit").network == found.network
    role = found.of_role("gap_reward")
    assert (role.vocabulary, role.chat_template) == ("tokenizer:base/tokenizer", "tokenizer")
    starts = {stage.name: stage.initial for stage in found.stages}
    assert starts["rm_gap"] == "base/model" != starts["rm_policy"]


def test_epsilon_is_that_of_the_stage():
    """PPO's would cut the steps of fine-tuning a large model, all of whose gradients are small."""
    run, _ = resolved(file="gin/runs/hh_8b.gin")
    found = {stage.task: stage.optimizer.epsilon for stage in run.stages}
    assert found == {task: 1e-5 if task.startswith("rl_") else 1e-8 for task in found}
    assert {"sft_pit", "rm_gap", "rl_policy", "rl_pit"} <= set(found)


@pytest.mark.parametrize("name", RUNS)
def test_the_whole_configuration_alone_is_the_run(name, tmp_path):
    expected = resolved(*for_required(name), file=name)
    whole = tmp_path / "config.gin"
    whole.write_text(bindings.whole(ROOTS))
    assert resolved(file=whole) == expected
    elsewhere, _ = resolved("MODEL_DIR = 'elsewhere'", file=whole)
    assert elsewhere == dataclasses.replace(expected[0], model_dir="elsewhere")


def test_each_role_samples_as_its_flags_say():
    flags = {"policy": "top_k = 3", "pit": "temperature = 0.4", "reference": "top_p = 0.8"}
    run, _ = resolved(
        *(f"{role}/SamplingConfig.{value}" for role, value in flags.items()), file=QUICKSTART
    )
    assert run.improve.policy_sampling == SamplingConfig(top_k=3)
    assert run.improve.sampling == SamplingConfig(temperature=0.4)
    for stage in run.stages[-2:]:
        for round_ in stage.rounds:
            assert round_.sampling == round_.pit_sampling == SamplingConfig(top_p=0.8)


def test_the_whole_configuration_keeps_macros_of_macros_long_texts_and_aliases(tmp_path):
    file = tmp_path / "mine.gin"
    file.write_text(
        "from __gin__ import dynamic_registration\n"
        "from pit_jax.run import config\n"  # elsewhere called run_config, beside models' config
        f"include '{QUICKSTART}'\n"
        "config.RunConfig.sampling_batch = %ROWS\n"
        "ROWS = %SEED\n"
    )
    told = "Improve this, and " + 30 * "please " + "\\n{prompt} {response}"
    flags = (f"RunConfig.wandb_project = '{told}'", "SEED = 64", "STAGE = 'rm_gap'")
    run, evaluation = resolved(*flags, file=file)
    assert run.sampling_batch == 64 and "\n{prompt}" in run.wandb_project
    whole = tmp_path / "config.gin"
    whole.write_text(bindings.whole(ROOTS))
    assert resolved(file=whole) == (run, evaluation) and "STAGE" not in whole.read_text()
    changed, _ = resolved("SEED = 32", file=whole)
    assert (changed.seed, changed.sampling_batch) == (32, 32)


# --- runs -------------------------------------------------------------------------------------


@pytest.mark.mesh
@pytest.mark.parametrize("name", LARGE)
def test_a_run_for_a_pod_is_described(name, tmp_path, capsys):
    """With data, and a tokenizer that has the reserved pieces that the file names."""
    files = [
        flag
        for flag in data_for("gin/runs/hh_and_summaries.gin", tmp_path)
        if re.search(rf"^{flag[6 : flag.index('=')]} = ", text(name), re.MULTILINE)
    ]
    whole = "".join(map(text, reached(name)))
    reserved = ast.literal_eval(re.search(r"control_tokens = (.*)", whole)[1])
    pad = re.search(r"pad_token = '(.*)'", whole)
    tokenizer = tiny_tokenizers.byte_level_bpe()
    tokenizer.add_special_tokens(["<eos>", "<pad>", *reserved, *(pad.groups() if pad else ())])
    config = {"eos_token": "<eos>"} | ({} if pad else {"pad_token": "<pad>"})
    tiny_tokenizers.save(tmp_path / "base", tokenizer, config)
    vocabulary = f"--gin.VOCABULARY='tokenizer:{tmp_path}/base'"
    base = tmp_path / "stages" / "pretrain"
    base.mkdir(parents=True)
    (base / "result.json").write_text('{"task": "pretrain", "model_step": 0}')
    files.append(f"--gin.INITIAL_CHECKPOINT_PATH='{base}'")
    argv = ["run", f"--gin_file={name}", vocabulary, "--dry_run", *files]
    assert cli.main([*argv, *SMALL]) == 0
    out, err = capsys.readouterr()
    assert err == "" and "(nothing is written)" in out
    rows = [line.split() for line in stage_table(out)[1:]]
    assert [row[1] for row in rows] == list(TASKS[1:])
    size = float(re.search(r"_(\d+)b\.gin", name)[1])
    for row in rows:
        models = 2 if row[1].startswith("rl") else 1  # actor and critic
        assert 0.9 * size < int(row[4].replace(",", "")) / 1e9 / models < 1.3 * size


@pytest.mark.parametrize("name", ADAPTERS)
def test_runs_of_adapters_have_the_settings_of_lora(name):
    """Those of gin/lora.gin, beside which the stages' settings can't stand in one file."""
    run, _ = resolved(*for_required(name), file=name)
    assert run.network.lora == LoraConfig(rank=16, alpha=32.0)
    assert assignments(LORA).items() <= assignments("gin/stages/paper_lora.gin").items()
    assert {stage.parts for stage in run.stages} == {32} and run.stages[0].batch_size == 128


def test_the_network_of_t5x_has_its_size(tmp_path, capsys):
    files = [f"--gin_file={name}" for name in (QUICKSTART, T5X_BASE)]
    assert cli.main(["run", *files, "--dry_run", f"--gin.MODEL_DIR='{tmp_path}/run'", *SMALL]) == 0
    matrices = 32_128 * 768 + 12 * (4 * 768 * 768 + 3 * 768 * 2048)
    size = matrices + 25 * 768 + 12 * 32  # norms, buckets
    assert f"{size:,}" in capsys.readouterr().out


@pytest.mark.parametrize("name", SMALL_RUNS)
def test_a_run_is_described_and_writes_nothing(name, tmp_path, capsys, monkeypatch):
    arguments = data_for(name, tmp_path)
    capsys.readouterr()
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)  # configs are found from anywhere
    one_device = functools.partial(runs.Run, devices=jax.devices()[:1])  # their batches are small
    monkeypatch.setattr(runs, "Run", one_device)
    argv = ["run", f"--gin_file={name}", f"--gin.MODEL_DIR='{tmp_path}/run'", "--dry_run"]
    assert cli.main([*argv, *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"{tmp_path}/run (nothing is written)" in out
    table = stage_table(out)
    assert table[0].split() == [
        "stage",
        "task",
        "steps",
        "batch",
        "parameters",
        "state",
        "MB",
        "done",
    ]
    rows = [line.split() for line in table[1:]]
    assert tuple(row[1] for row in rows)[: len(TASKS)] == TASKS  # then controls, if any
    for row in rows:
        steps, batch, parameters = (int(cell.replace(",", "")) for cell in row[2:5])
        assert steps > 0 and batch > 0 and parameters > 10_000
        assert (
            float(row[5].replace(",", "")) > 0.95 * 3 * 4e-6 * parameters
        )  # weights and two moments, float32
        assert row[6] == "no"
    assert sorted(tmp_path.iterdir()) == before


def test_a_binding_of_the_command_line_wins(tmp_path, capsys):
    overridden = "--gin.rm_gap/RewardStage.steps=7"
    argv = ["run", f"--gin_file={QUICKSTART}", f"--gin.MODEL_DIR='{tmp_path}/run'", "--dry_run"]
    assert cli.main([*argv, *SMALL, overridden, "--gin.SEED", "3"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("rm_gap"))
    assert row.split()[:3] == ["rm_gap", "rm_gap", "7"]


# --- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--gin_file"),
        (["--gin_file=gin/runs/absent.gin"], "gin/runs/absent.gin not found"),
        ([f"--gin_file={QUICKSTART}", "--gin.NoSuchConfig.steps=1"], "NoSuchConfig"),
        ([f"--gin_file={QUICKSTART}", "--gin.RunConfig.no_such_field=1"], "no_such_field"),
        (
            [f"--gin_file={QUICKSTART}", "--gin.SED=1"],
            "--gin.SED: no such macro; did you mean SEED?",
        ),
        (
            [f"--gin_file={QUICKSTART}", "--gin.SEED=%NO_SUCH_MACRO"],
            "gin: NO_SUCH_MACRO isn't set, expected --gin.NO_SUCH_MACRO=VALUE\n",
        ),
        (
            [f"--gin_file={QUICKSTART}", "--gin.SEED=1 +"],
            "RunConfig.seed: got '1 +', expected a whole number",
        ),
        ([f"--gin_file={QUICKSTART}", "--gin.MODEL_DIR=''"], "MODEL_DIR is empty"),
        (["--gin_file=gin/runs/hh.gin"], "HH_PATH"),
        (["--gin_file=gin/runs/preferences.gin"], "PREFERENCES_PATH"),
        (["--gin_file=gin/runs/hh.gin", "--gin.HH_PATH='absent.jsonl'"], "absent.jsonl"),
        (
            ["--gin_file=gin/stages/all.gin"],
            "gin: MODEL_DIR isn't set, expected --gin.MODEL_DIR=VALUE\n",
        ),
    ],
)
def test_a_mistake_ends_with_status_2_and_one_line(arguments, named, capsys):
    assert named in failure(capsys, *arguments, *(SMALL if QUICKSTART in str(arguments) else []))


def test_a_config_with_a_mistake_is_named(tmp_path, capsys):
    broken = tmp_path / "broken.gin"
    broken.write_text("include 'gin/runs/quickstart.gin'\nSEED = [1\n")
    assert "broken.gin" in failure(capsys, f"--gin_file={broken}")
    broken.write_text("include 'gin/models/absent.gin'\n")
    assert "gin/models/absent.gin" in failure(capsys, f"--gin_file={broken}")


@pytest.mark.parametrize("size", ["2b", "8b", "27b"])
def test_the_papers_data_are_the_helpful_dialogues(size, tmp_path, monkeypatch):
    """Of a folder with all of HH-RLHF, no harmless pair is read; dialogues go by first turn."""
    subsets = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
    for subset in subsets:
        pair = {
            side: f"\n\nHuman: {subset}\n\nAssistant: {side}" for side in ("chosen", "rejected")
        }
        (tmp_path / "hh-rlhf" / subset).mkdir(parents=True)
        packed = gzip.compress(json.dumps(pair).encode())
        (tmp_path / "hh-rlhf" / subset / "train.jsonl.gz").write_bytes(packed)
    gin.clear_config()
    monkeypatch.chdir(ROOT)
    gin.parse_config_file(f"gin/runs/hh_{size}.gin")
    config = datasets.DatasetConfig(**gin.get_bindings(datasets.DatasetConfig))
    gin.clear_config()
    monkeypatch.chdir(tmp_path)
    (dataset,) = datasets.load(config)
    read = [e.prompt.strip() for examples in dataset.splits.values() for e in examples]
    assert sorted(read) == sorted(subsets[1:])
    assert config.group_by == "first_turn"
