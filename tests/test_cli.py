"""The command line: help, one clear line for each mistake, and what the commands write."""

from __future__ import annotations

import gzip
import json
import logging
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from pit_jax import bindings, cli, commands, errors
from pit_jax.errors import NotFiniteError
from pit_jax.run import improving
from pit_jax.runtime import compilation, processes
from tests import tiny_reports, tiny_runs
from tests.child_environment import child_environment

ROOT = pathlib.Path(__file__).resolve().parents[1]

COMMANDS = ("run", "data", "plan", "train", "convert", "improve", "evaluate", "sweep")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_parses(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    for example in output.split("example:\n")[1].strip().splitlines():
        words = shlex.split(example)
        assert words[:4] == ["python", "-m", "pit_jax", command]
        arguments, flags = bindings.take_out(words[4:])
        options = cli._parsed([command, *arguments])
        assert options.command == command
        assert all((ROOT / file).exists() for file in options.gin_file)
        assert all(name and value for name, value in flags)
    for flag in ("--gin_file", "--gin.NAME", "--gin_search_paths"):
        assert flag in output
    assert ("--dry_run" in output) == (command != "plan")


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    output = capsys.readouterr().out
    assert all(re.search(rf"^ +{command} +\w", output, re.M) for command in COMMANDS)


def test_help_waits_for_no_library():
    """JAX alone takes more than a second to import."""
    code = "import sys; from pit_jax import cli; cli._parser(); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=child_environment(1),
        check=True,
    )
    slow = {"jax", "numpy", "flax", "orbax", "tensorflow", "seqio", "scipy", "matplotlib"}
    assert "pit_jax.cli" in done.stdout.split() and not slow & set(done.stdout.split())


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert re.fullmatch(r"pit_jax \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_bindings_are_taken_out_of_the_arguments():
    arguments = ["run", "--gin.A.b=1", "--gin_file=x", "--gin.C", "'d = e'", "--gin.F='g=h'"]
    rest, flags = bindings.take_out(arguments)
    assert rest == ["run", "--gin_file=x"]
    assert flags == [("A.b", "1"), ("C", "'d = e'"), ("F", "'g=h'")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["walk"], "invalid choice: 'walk'"),
        (["run", "--gin-file=x"], "unrecognized arguments: --gin-file=x"),
        (["run", "--gin=x"], "unrecognized arguments: --gin=x"),
        (["improve", "--gin_file=x"], "required: --input, --output"),
    ],
)
def test_unknown_flags_exit_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def fails(tmp_path, capsys):
    """Runs a command that must exit with 2, one line on stderr and no traceback."""

    def run(message, name, *arguments, folder=None, gin=None):
        folder = tmp_path / "run" if folder is None else folder
        status = tiny_runs.command(name, folder, *map(str, arguments), gin=gin)
        captured = capsys.readouterr()
        lines = captured.err.splitlines()
        assert status == 2, captured
        assert len(lines) == 1 and lines[0].startswith(f"pit_jax {name}: "), captured.err
        assert re.search(message, lines[0]), lines[0]

    return run


def test_a_missing_gin_file(capsys):
    assert cli.main(["run"]) == 2
    assert "run: expected at least one --gin_file=FILE" in capsys.readouterr().err
    assert cli.main(["run", "--gin_file=gin/runs/none.gin"]) == 2
    assert capsys.readouterr().err == "pit_jax run: --gin_file: gin/runs/none.gin not found\n"


def test_a_plan_for_an_unknown_slice(fails):
    fails("--topology: got 'v3-8', expected one of v4-8", "plan", "--topology=v3-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gin.RunConfig.sede=1"], "RunConfig.sede: there is no such .* RunConfig.seed\\?"),
        (["--gin.RunConfg.seed=1"], "RunConfg.seed: there is no such .* RunConfig.seed\\?"),
        (["--gin.nothing.Here.seed=1"], "nothing.Here.seed: there is no such setting"),
        (["--gin.SEED=one"], "RunConfig.seed: got 'one', expected a whole number .from SEED."),
        (["--gin.SEED"], "--gin.SEED: got no value"),
        (
            ["--gin.BATCH_SIZE=%gin.REQUIRED"],
            "gin: BATCH_SIZE isn't set, expected --gin.BATCH_SIZE=VALUE",
        ),
        (["--gin.MODEL_DIR=''"], "MODEL_DIR is empty"),
        (["--gin.NetworkConfig.num_heads=3"], "num_heads=3, expected a multiple of num_kv_heads=2"),
        (["--gin.NetworkConfig.vocab_size=8"], "got vocab_size=8, expected at least"),
        (["--gin.NetworkConfig.dtype='int8'"], "got dtype='int8', expected one of"),
        (["--gin.NetworkConfig.positions='none'"], "got positions='none', expected one of"),
        (
            ["--gin.NetworkConfig.scale_logits=True", "--gin.NetworkConfig.tied_embeddings=False"],
            "got scale_logits=True with tied_embeddings=False, expected scale_logits=False",
        ),
        (
            ["--gin.VOCABULARY='words:poems'"],
            "vocabulary: got 'words:poems', expected one of bytes",
        ),
        (["--gin.DatasetConfig.family='poems'"], "got family 'poems', expected one of drafts"),
        (["--gin.DatasetConfig.kind='csv'"], "got kind 'csv', expected one of instructions"),
        (["--gin.DatasetConfig.train_size=99999999"], "about [0-9]+ different prompts"),
        (["--gin.Lengths.prompt=0"], "Lengths: expected positive token counts"),
        (["--gin.MeshConfig.model=3"], "mesh: got slices=1 x data=-1 x model=3, expected a"),
        (["--gin.PPOConfig.critic_start='none'"], "got critic_start='none', expected one of"),
        (["--gin.PPOConfig.minibatches=3"], "got batch_size=8, expected a multiple of minib"),
        (["--gin.rl_pit_0/curriculum.Round.source='web'"], "got source='web', expected one of"),
        (["--gin.EvaluationConfig.split='prod'"], "evaluation: expected a split of"),
        (["--gin.EvaluationConfig.pit='rl_pt'"], "stage: got 'rl_pt', expected one of pretrain"),
        (["--gin.RewardConfig.pooling='max'"], "got pooling='max', expected one of"),
        (
            ["--gin.BATCH_SIZE=4096"],
            "pretrain: its fold of the train split has [0-9]+ rows.*batch_size=4096",
        ),
        (
            [
                "--gin.INITIAL_CHECKPOINT_PATH='base'",
                "--gin.rm_gap/stages.RewardStage.name='pretrain'",
            ],
            "stage names must differ",
        ),
    ],
    ids=lambda value: value[0].removeprefix("--gin.") if isinstance(value, list) else "",
)
def test_mistakes_in_a_configuration(arguments, message, fails, tmp_path):
    fails(message, "run", *arguments)
    assert not list(tmp_path.rglob("checkpoints/[0-9]*"))


def test_mistakes_in_gin_files(fails):
    fails("gin: .*run.gin:2: Unable to parse", "run", gin="SEED = 0\nSEED = = 1\n")
    fails("gin: .*no/such.gin", "run", gin="include 'no/such.gin'\n")
    fails(
        "gin: .*pit_jax.*nothing",
        "run",
        gin="from __gin__ import dynamic_registration\nfrom pit_jax import nothing\n",
    )
    fails(
        "--gin.MODEL_DIR: no such macro; did you mean RunConfig.model_dir",
        "run",
        gin="from __gin__ import dynamic_registration\nfrom pit_jax.run import config\n",
    )


def test_dry_run_shows_the_run_and_writes_nothing(tmp_path, capsys):
    folder = tmp_path / "run"
    assert tiny_runs.command("run", folder, "--dry_run") == 0
    output = capsys.readouterr().out
    assert not folder.exists()
    assert f"run directory  {folder} (nothing is written)" in output
    assert re.search(r"^data +190 read; dropped: none|dropped: [0-9]+ ", output, re.M)
    assert re.search(r"'sft': \d+, 'rm': \d+, 'rl': \d+", output)
    rows = re.findall(r"^(\w+) +(\w+) +(\d+) +(\d+) +([\d,]+) +[\d.]+ +(yes|no)$", output, re.M)
    assert [row[0] for row in rows] == [s.name for s in tiny_runs.config(folder).stages]
    pretrain, rl_pit = rows[0], rows[-1]
    assert pretrain[1:] == ("pretrain", "4", "8", "2,864", "no")
    # An actor and a critic: one has an output projection tied to its embedding, one a scalar head.
    assert rl_pit[1:] == ("rl_pit", "4", "8", "5,744", "no")
    operative = output.partition("\noperative configuration\n")[2].splitlines()
    assert f"MODEL_DIR = '{folder}'" in " ".join(operative).replace("\\     ", "")
    assert "rl_pit_1/curriculum.Round.steps = 3" in operative  # as in its file
    assert "rl_pit/ppo.PPOConfig.clip = 0.2" in operative  # by default


def test_dry_run_of_a_trained_run_says_so(trained, capsys):
    assert tiny_runs.command("run", trained, "--dry_run") == 0
    assert len(re.findall(r"  yes$", capsys.readouterr().out, re.M)) == 7


def test_a_profile_has_the_steps_and_their_programs(trained, tmp_path, capsys):
    folder = tmp_path / "run"
    for stage in ("pretrain", "sft_policy", "rm_policy"):
        shutil.copytree(trained / stage, folder / stage)
    settings = ("--gin.STAGE='rl_policy'", "--gin.rl_policy/curriculum.Round.steps=3")
    assert tiny_runs.command("train", folder, *settings, "--profile=2:3") == 0
    traces = folder / "rl_policy" / "profile"
    assert f"profile: {traces}" in capsys.readouterr().out
    (trace,) = traces.rglob("perfetto_trace.json.gz")
    assert len(list(traces.rglob("*.xplane.pb"))) == 1
    with gzip.open(trace) as file:
        events = json.load(file)["traceEvents"]
    steps = [e["args"]["step_num"] for e in events if e.get("name") == "train"]
    assert sorted(steps) == ["2", "3"]
    names = " ".join(e.get("name", "") for e in events)
    assert "collect_episodes" in names and "update_state" in names
    # A stage that is shorter than the default window has its last steps traced.
    assert tiny_runs.command("train", folder, "--gin.STAGE='sft_pit'", "--profile") == 0
    assert len(list((folder / "sft_pit" / "profile").rglob("*.xplane.pb"))) == 1


def test_mistakes_in_a_window_of_steps(fails):
    for name, text in (("train", "3"), ("run", "9:8")):
        fails(f"--profile: got '{text}', expected FIRST:LAST", name, f"--profile={text}")


@pytest.mark.parametrize("arguments", [["train"], ["convert", "--to=t5x", "--output=unused"]])
def test_no_stage_is_trained_or_converted_unasked(arguments, fails):
    names = ", ".join(stage.name for stage in tiny_runs.config("unused").stages)
    message = f"no stage given, expected --gin.STAGE=NAME with one of {names}$"
    fails(message, *arguments)
    fails(message, *arguments, "--dry_run")


def rl_policy(field="", value=""):
    """Arguments that train rl_policy with a field changed."""
    stage = "--gin.STAGE='rl_policy'"
    return [stage, f"--gin.rl_policy/stages.RLStage.{field}='{value}'"] if field else [stage]


def test_mistakes_in_train(fails):
    fails("stage: got 'sft', expected one of pretrain, sft_policy", "train", "--gin.STAGE='sft'")
    fails("rl_policy: initial is '', expected a stage", "train", *rl_policy("initial", ""))
    fails("reference 'rm_gap' is of task rm_gap", "train", *rl_policy("reference", "rm_gap"))
    fails("sft_policy.*not found; train stage 'sft_policy' first", "train", *rl_policy())


def write_lines(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def prompts_of(trained, count):
    run = tiny_runs.on_one_device(tiny_runs.config(trained))
    return [example.prompt for example in run.data.examples("dev")[:count]]


@pytest.fixture(scope="module")
def improved(trained, tmp_path_factory):
    """What `improve` makes of five prompts, the first two with responses."""
    folder = tmp_path_factory.mktemp("improve")
    prompts = prompts_of(trained, 5)
    lines = [{"prompt": prompt} for prompt in prompts]
    lines[0]["response"] = "+1 ? from 4"
    lines[1]["response"] = ""
    given = write_lines(folder / "in.jsonl", *map(json.dumps, lines), "")
    out = folder / "out.jsonl"
    arguments = (f"--input={given}", f"--output={out}", "--gin.ImproveConfig.iterations=2")
    assert tiny_runs.command("improve", trained, *arguments) == 0
    return prompts, out, arguments


def test_improve_writes_every_iteration(improved):
    prompts, out, _ = improved
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == prompts
    for line in lines:
        assert len(line["responses"]) == 3 and len(line["gaps"]) == 2
        assert line["stop_reason"] == "iterations" and len(line["ended"]) == 3
        assert line["response"] == line["responses"][line["best"]]
        # The first improvement is compared with the draft alone.
        assert (line["best"] > 0) == (line["gaps"][0] > 0) or line["best"] == 2
    assert [line["responses"][0] for line in lines[:2]] == ["+1 ? from 4", ""]


def test_improve_draws_alike_again(improved, trained, capsys):
    _, out, arguments = improved
    before = out.read_text()
    assert tiny_runs.command("improve", trained, *arguments) == 0
    assert out.read_text() == before
    lines = [json.loads(line) for line in before.splitlines()]
    changed = sum(line["response"] != line["responses"][0] for line in lines)
    cut = sum(line["truncated"] for line in lines)
    gaps = [gap for line in lines for gap in line["gaps"]]
    better, worse = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    assert (
        f"5 prompts, each with the best response by gap: {changed} changed; of 10 steps {better} "
        f"better and {worse} worse by gap; stopped: 5 by iterations; {cut} truncated -> {out}"
    ) in capsys.readouterr().out


def test_the_help_of_improve_names_what_its_lines_have(capsys):
    with pytest.raises(SystemExit):
        cli.main(["improve", "--help"])
    shown = capsys.readouterr().out
    example = json.loads(
        shown.partition('\n  {"id"')[2].partition("\n\nsampling")[0].join(['{"id"', ""])
    )
    assert list(example) == ["id", "prompt", *improving.FIELDS]
    for field in improving.FIELDS:
        assert re.search(rf"^  {field}  ", shown, re.M), field


def test_a_dry_run_of_improve_reads_its_input_and_needs_no_data(improved, trained, capsys):
    _, out, arguments = improved
    before = out.stat().st_mtime_ns
    data = "--gin.DatasetConfig.kind='preferences'", "--gin.DatasetConfig.path='none.jsonl'"
    assert tiny_runs.command("improve", trained, *arguments, *data, "--dry_run") == 0
    expected = (
        "improve        5 rows in 1 shards: 5 to improve, of which 3 need a response; 0 to skip"
    )
    assert expected in capsys.readouterr().out and out.stat().st_mtime_ns == before


def test_improve_stops_by_the_gap(improved, trained, tmp_path):
    prompts, _, _ = improved
    given = write_lines(tmp_path / "in.jsonl", *(json.dumps({"prompt": p}) for p in prompts))
    out = tmp_path / "out.jsonl"
    arguments = [f"--input={given}", f"--output={out}", "--gin.ImproveConfig.min_gap=1e9"]
    arguments.append("--gin.ImproveConfig.keep='last'")
    assert tiny_runs.command("improve", trained, *arguments) == 0
    for line in map(json.loads, out.read_text().splitlines()):
        assert line["stop_reason"] == "gap" and len(line["responses"]) == 2
        assert line["response"] == line["responses"][0]


def test_evaluate_judges_saved_generations(improved, trained, tmp_path, capsys):
    _, out, _ = improved
    folder = tmp_path / "judged"
    arguments = (f"--generations={out}", f"--output={folder}")
    assert tiny_runs.command("evaluate", trained, *arguments) == 0
    output = capsys.readouterr().out
    assert "Iteration 2 vs Original" in output
    assert "Best-of-n at equal tokens is left out: a file has no further draws" in output
    results = json.loads((folder / "report.json").read_text())
    assert results["num_prompts"] == 5
    names = [row["name"] for row in results["comparisons"]]
    assert names == ["Iteration 1 vs Original", "Iteration 2 vs Original"]
    assert all(row["win"] + row["lose"] + row["tie"] == 100 for row in results["comparisons"])


def test_evaluate_judges_by_the_checker(trained, tmp_path, capsys):
    """Right and wrong sheets of one prompt, with known scores."""
    lines = [
        {"prompt": "from 4 do +3 x7", "responses": ["x7 ? +3 ? from 4", "x7 9 +3 7 from 4"]},
        {"prompt": "from 4 do +3 x7", "responses": ["x7 9 +3 7 from 4", "x7 1 +3 7 from 4"]},
        {"prompt": "from 4 do +3 x7", "responses": ["x7 9 +3 7 from 4"]},
    ]
    path = write_lines(tmp_path / "given.jsonl", *map(json.dumps, lines))
    folder = tmp_path / "judged"
    arguments = (f"--generations={path}", f"--output={folder}")
    assert tiny_runs.command("evaluate", trained, *arguments) == 0
    (row,) = json.loads((folder / "report.json").read_text())["comparisons"]
    assert row["judge"] == "checker" and row["n"] == 3
    third = pytest.approx(100 / 3)
    assert (row["win"], row["lose"], row["tie"]) == (third, third, third)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"prompt": "a"}', "{"], r"given.jsonl:2: got '{' .*, expected a JSON object"),
        (["", '["prompt"]'], r"given.jsonl:2: got .*, expected a JSON object"),
        (['{"prompt": 3}'], r"given.jsonl:1: got 3, expected text under 'prompt'"),
        (
            ['{"text": "a"}'],
            r"given.jsonl:1: got the keys .*text.*, expected text .*under 'prompt'",
        ),
        (['{"prompt": "a", "response": 3}'], r":1: got 3, expected text under 'response'"),
        (['{"prompt": "a b c d e f g h"}'], r":1: got a prompt of 10 tokens, .* at most 8"),
        ([], r"given.jsonl: is empty, expected at least one JSON object"),
    ],
)
def test_mistakes_in_the_input_of_improve(lines, message, fails, trained, tmp_path):
    path = write_lines(tmp_path / "given.jsonl", *lines)
    out = tmp_path / "out.jsonl"
    fails(message, "improve", f"--input={path}", f"--output={out}", folder=trained)
    assert not out.exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"prompt": "a"}'], r"given.jsonl:1: got .*, expected a list of one text or"),
        (
            ['{"prompt": "a", "responses": []}'],
            r"given.jsonl:1: got .*, expected a list of one text or",
        ),
        (
            ['{"prompt": "a", "responses": [3]}'],
            r"given.jsonl:1: got .*, expected a list of one text or",
        ),
        (
            ['{"prompt": "hello", "responses": ["a"]}'],
            r"given.jsonl:1: drafts: got the prompt 'hello', expected",
        ),
    ],
)
def test_mistakes_in_saved_generations(lines, message, fails, trained, tmp_path):
    path = write_lines(tmp_path / "given.jsonl", *lines)
    fails(message, "evaluate", f"--generations={path}", folder=trained)


def test_mistakes_in_paths_and_models(fails, trained, tmp_path):
    given = write_lines(tmp_path / "in.jsonl", '{"prompt": "from 4 do +3"}')
    out = tmp_path / "out.jsonl"
    missing = tmp_path / "none.jsonl"
    arguments = ("improve", f"--output={out}")
    fails("none.jsonl: no such file", *arguments, f"--input={missing}", folder=trained)
    fails("got a folder, expected files", *arguments, f"--input={tmp_path}", folder=trained)
    fails(
        "--output: can't write .*nowhere/out.jsonl",
        "improve",
        f"--input={given}",
        f"--output={tmp_path}/nowhere/out.jsonl",
        folder=trained,
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    fails(
        "rl_policy.*not found; train stage 'rl_policy' first",
        "improve",
        f"--input={given}",
        f"--output={out}",
        folder=empty,
    )
    fails("not found; train stage", "evaluate", folder=empty)
    for name in (["improve", f"--input={given}", f"--output={out}"], ["evaluate"]):
        nearest = trained.with_name(f"{trained.name}s")
        fails(f"no such run: .*s; did you mean {trained}\\?$", *name, folder=nearest)
    fails(
        "got method='magic'",
        "improve",
        f"--input={given}",
        f"--output={out}",
        "--gin.ImproveConfig.method='magic'",
    )
    asked = {"user": "{prompt} {response} {feedback} criticise"}
    steps = {"feedback": {"user": "{prompt} {response}"}, "refine": asked}
    prompts = write_lines(tmp_path / "prompts.json", json.dumps(steps))
    fails(
        "trained with another vocabulary",
        "improve",
        f"--input={given}",
        f"--output={out}",
        f"--gin.ImproveConfig.self_refine={prompts}",
        folder=trained,
    )
    config = (trained / "config.gin").read_text()
    fails("started with other settings: seed 0 -> 5", "run", "--gin.SEED=5", folder=trained)
    assert (trained / "config.gin").read_text() == config


def test_training_that_breaks_off_exits_with_1(monkeypatch, tmp_path, capsys):
    def break_off(*_):
        raise NotFiniteError("step 13: loss or gradient was not finite")

    monkeypatch.setattr(commands, "run", break_off)
    assert tiny_runs.command("run", tmp_path / "run") == 1
    expected = "pit_jax run: step 13: loss or gradient was not finite\n"
    assert capsys.readouterr().err == expected


def test_an_interrupt_is_one_line(monkeypatch, tmp_path, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "run", interrupt)
    assert tiny_runs.command("run", tmp_path / "run") == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("command", ["run", "train", "improve", "evaluate"])
def test_compiled_programs_are_kept_in_the_run_directory(command, trained, monkeypatch):
    kept, flags = [], {"train": ("--gin.STAGE='pretrain'",), "improve": ("--input=a", "--output=b")}
    monkeypatch.setattr(compilation, "keep", kept.append)
    monkeypatch.setattr(commands, command, lambda *_: None)
    assert tiny_runs.command(command, trained, *flags.get(command, ())) == 0
    assert kept == [str(trained)]
    off = (*flags.get(command, ()), "--gin.RunConfig.compilation_cache=False")
    assert tiny_runs.command(command, trained, *off) == 0
    assert kept == [str(trained)]


def test_metrics_of_a_stage_go_to_weights_and_biases(tmp_path, monkeypatch, fails):
    monkeypatch.setitem(sys.modules, "wandb", None)
    arguments = ("--gin.STAGE='pretrain'", "--gin.RunConfig.wandb_project='pit'")
    fails("wandb_project: wandb isn't installed", "train", *arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_that_compute_on_devices_join_several_hosts(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    output = capsys.readouterr().out
    for word in ("--distributed", processes.COORDINATOR, processes.COUNT, processes.INDEX):
        assert (word in output) == (command not in ("data", "plan"))


def test_a_mistake_in_joining_hosts_is_one_line(trained, monkeypatch, fails):
    monkeypatch.setenv("PIT_JAX_PROCESS_COUNT", "2")
    message = "--distributed: PIT_JAX_PROCESS_COUNT set, expected PIT_JAX_COORDINATOR too"
    fails(message, "evaluate", "--distributed", folder=trained)


def test_a_reader_that_has_seen_enough_is_no_mistake(tmp_path):
    """As `head` has; here it is gone before the first line."""
    gin = tmp_path / "run.gin"
    gin.write_text(tiny_runs.GIN)
    arguments = f"run --gin_file={gin} --gin.MODEL_DIR=\"'{tmp_path}/run'\" --dry_run"
    pipe = f"{sys.executable} -m pit_jax {arguments} | true"
    command = ["bash", "-o", "pipefail", "-c", pipe]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=child_environment(1)
    )
    assert (done.returncode, done.stderr) == (141, "")


# --- several seeds -----------------------------------------------------------------------------


def test_seeds_are_compared_and_written(tmp_path, capsys):
    folders = tiny_reports.write(tmp_path, report=tiny_reports.brief)
    compare = f"--compare={', '.join(folders)}"
    assert cli.main(["evaluate", compare, f"--output={tmp_path / 'all'}"]) == 0
    output = capsys.readouterr().out
    assert "PIT on made-up data: 3 seeds" in output and "over seeds and prompts" in output
    assert f"report: {tmp_path / 'all' / 'report.html'}" in output
    saved = json.loads((tmp_path / "all" / "report.json").read_text())
    assert saved["comparisons"][0]["delta"]["mean"] == 33.0
    assert saved["command"].startswith("python -m pit_jax evaluate \\\n  --compare='")
    assert saved["warnings"] == []
    # With spaces between the directories, as a shell's runs/seed* gives them.
    assert cli.main(["evaluate", "--compare", *folders]) == 0
    assert capsys.readouterr().out == output.rpartition("report: ")[0]
    # Into its own directory again, but not into that of a run, whose report stays.
    commands.check_combined(str(tmp_path / "all"))
    before = (tmp_path / "seed1" / "report.json").read_bytes()
    assert cli.main(["evaluate", compare, f"--output={tmp_path / 'seed1'}"]) == 2
    path = tmp_path / "seed1" / "report.json"
    assert capsys.readouterr().err == (
        f"pit_jax evaluate: --output: {path} is the report of a run, expected another folder\n"
    )
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare="], "--compare: got no value, expected --compare=VALUE"),
        (["--compare=none"], "--compare: none has no report.json"),
        (["--compare=a", "--gin_file=gin/runs/quickstart.gin"], "--compare takes no gin file"),
        (["--compare=a", "--gin.SEED=1"], "--compare takes no gin file, binding"),
        (["--compare=a", "--generations=x"], "binding, --generations"),
        (["--compare=a", "--dry_run"], "--dry_run or --distributed"),
        (["--compare=a", "--transfer=gin/tasks/hh.gin"], "--generations, --transfer"),
        (["--compare=a", "--responses", "x", "y"], "--transfer, --responses"),
        (["--compare=a", "--distributed"], "--dry_run or --distributed"),
        (["--compare=a", "--output=/dev/null/x"], "--output: can't write /dev/null/x"),
    ],
)
def test_a_comparison_that_is_refused(arguments, message, capsys):
    assert cli.main(["evaluate", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("pit_jax evaluate: ") and error.count("\n") == 1
    assert message in error


def test_comparing_needs_neither_devices_nor_gin(tmp_path, monkeypatch):
    def fail(*_):
        raise AssertionError("asked for")

    for name in ("devices", "device_count", "process_index", "process_count"):
        monkeypatch.setattr(f"jax.{name}", fail)
    for name in ("parse", "configured", "operative"):
        monkeypatch.setattr(bindings, name, fail)
    folders = tiny_reports.write(tmp_path, report=tiny_reports.brief)
    output = f"--output={tmp_path / 'all'}"
    monkeypatch.setattr("pit_jax.report.write.write_report", lambda *_: {"html": "page"})
    assert cli.main(["evaluate", f"--compare={','.join(folders)}", output]) == 0


def test_what_libraries_warn_of_stays_out_of_the_terminal():
    """TensorFlow warns of its own temporary files where a file can't be as long as it wants."""
    loggers = [logging.getLogger(name) for name in ("absl", "orbax", "tensorflow")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        errors.quieten()
        for logger in loggers:
            assert not logger.isEnabledFor(logging.WARNING) and logger.isEnabledFor(logging.ERROR)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
