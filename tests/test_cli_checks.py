"""What a command refuses before it does anything, and what its dry run says."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from pit_jax import cli
from pit_jax.data import flat_arrays
from tests import tiny_runs


@pytest.fixture
def refused(capsys, tmp_path):
    """Runs a command that must exit with 2 and one line, and returns this line."""

    def run(name, *arguments, folder=None, gin=None):
        folder = tmp_path / "run" if folder is None else folder
        assert tiny_runs.command(name, folder, *map(str, arguments), gin=gin) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"pit_jax {name}: ")
        return line.removeprefix(f"pit_jax {name}: ")

    return run


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the trained run, to be damaged."""
    return tiny_runs.copy(trained, tmp_path / "copy")


def dry(capsys, name, folder, *arguments):
    assert tiny_runs.command(name, folder, *map(str, arguments), "--dry_run") == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "--gin-file=x"],
            "run: unrecognized arguments: --gin-file=x; did you mean --gin_f",
        ),
        (["run", "-gin_file=x"], "unrecognized arguments: -gin_file=x; did you mean --gin_file?"),
        (["run", "--gin_bindings=SEED=3"], "--gin_bindings=SEED=3; write --gin.NAME=VALUE; see"),
        (["improve", "--input=a", "--output=b", "--dryrun"], "--dryrun; did you mean --dry_run?"),
        (["run", "--input=a"], "unrecognized arguments: --input=a; see --help"),
        (["walk"], "pit_jax: argument COMMAND: invalid choice: 'walk'"),
    ],
)
def test_a_flag_that_is_not_there_is_one_line_with_the_nearest(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and message in line


@pytest.mark.parametrize(("name", "flag"), [("run", "MODEL_DIR"), ("train", "MODEL_DIR")])
def test_a_run_directory_that_cannot_be_is_refused_before_any_work(name, flag, refused, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    stage = ["--gin.STAGE=pretrain"] * (name == "train")
    for more in ([], ["--dry_run"]):
        told = refused(name, f"--gin.MODEL_DIR={file}/x", *stage, *more)
        assert told == f"MODEL_DIR: can't write {file}/x, because {file} is not a folder"


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("data", ["--output"]),
        ("plan", ["--topology=v4-8", "--save"]),
        ("convert", ["--to=hf", "--gin.STAGE=sft_pit", "--output"]),
        ("evaluate", ["--output"]),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_any_work(name, flags, refused, tmp_path):
    (tmp_path / "file").write_text("")
    *flags, output = flags
    told = refused(name, *flags, f"{output}={tmp_path}/file/x")
    assert (
        told == f"{output}: can't write {tmp_path}/file/x, because {tmp_path}/file is not a folder"
    )


def test_paths_of_flags_begin_at_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    options = cli._parsed(["improve", "--input=~/in.jsonl", "--output", "~/out.jsonl"])
    assert (options.input, options.output) == ("/home/me/in.jsonl", "/home/me/out.jsonl")


def test_memory_that_is_not_there_is_one_line(monkeypatch, refused):
    def fill(*_):
        raise MemoryError("Unable to allocate 1.46 TiB")

    monkeypatch.setattr("pit_jax.commands.run", fill)
    assert refused("run") == "out of memory: Unable to allocate 1.46 TiB"


@pytest.mark.parametrize(
    ("name", "arguments", "flag"),
    [
        ("data", ["--output="], "--output"),
        ("data", ["--output", ""], "--output"),
        ("data", ["--gin_file="], "--gin_file"),
        ("sweep", ["--seeds=", "--dry_run"], "--seeds"),
        ("evaluate", ["--transfer", ""], "--transfer"),
    ],
)
def test_a_flag_without_a_value_is_refused(name, arguments, flag, refused):
    """As of a variable of the shell that isn't set; without it this is another command."""
    assert refused(name, *arguments) == f"{flag}: got no value, expected {flag}=VALUE"


def test_a_number_of_rows_below_0_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "--gin_file=x", "--examples=-1"])
    assert stop.value.code == 2
    assert "--examples: got '-1', expected a whole number of 0 or more" in capsys.readouterr().err


def test_a_full_disk_is_one_line(monkeypatch, refused):
    def fill(*_):
        raise OSError(28, "No space left on device", "/x/y")

    monkeypatch.setattr("pit_jax.commands.run", fill)
    assert refused("run") == "No space left on device: /x/y"


# --- data -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "told"),
    [
        ("dev", "stage rm_policy: it is evaluated on split 'dev', which has no examples; of 170 "),
        ("test", "evaluation: got split 'test', which has no examples; of 170 pairs read: "),
    ],
)
def test_an_empty_split_is_refused_before_training(split, told, refused, tmp_path):
    assert told in refused("run", f"--gin.DatasetConfig.{split}_size=0", "--dry_run")


@pytest.mark.parametrize("name", ["data", "run"])
def test_an_empty_file_is_refused(name, refused, tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    file = "include 'gin/runs/preferences.gin'\n"
    assert refused(name, f"--gin.PREFERENCES_PATH={path}", gin=file)


# --- dry runs ------------------------------------------------------------------------------------


def test_a_dry_run_makes_no_run_directory(capsys, tmp_path, monkeypatch):
    """Though what is read of big files is kept there by a run."""
    monkeypatch.setattr(flat_arrays, "BIG", 0)
    pairs = [{"prompt": f"Say {n}.", "chosen": f"{n}!", "rejected": "No."} for n in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    words = f"--gin.PREFERENCES_PATH={tmp_path}/pairs.jsonl", "--dry_run"
    gin = "include 'gin/runs/preferences.gin'\n"
    assert tiny_runs.command("run", tmp_path / "run", *words, gin=gin) == 0
    assert "(nothing is written)" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_improve_looks_at_its_input_and_models(refused, trained, capsys, tmp_path):
    given, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    flags = (f"--input={given}", f"--output={out}")
    assert f"{given}: no such file" in refused("improve", *flags, "--dry_run", folder=trained)
    given.write_text('{"prompt": "from 4 do +3"}\n')
    assert "(nothing is written)" in dry(capsys, "improve", trained, *flags)
    assert not out.exists()
    prompts = tmp_path / "prompts.json"
    prompts.write_text('{"feedback": {"user": "{promt} {response}"}, "refine": {}}')
    told = refused(
        "improve", *flags, f"--gin.ImproveConfig.self_refine={prompts}", "--dry_run", folder=trained
    )
    assert told == (
        f"{prompts}: feedback.user: got {{promt}}, expected the fields {{prompt}}, {{response}}, "
        "and other braces doubled"
    )
    other = ("--gin.EvaluationConfig.gap_model=/no/rm_gap", "--dry_run")
    told = refused("improve", *flags, *other, folder=trained)
    assert told == "/no/rm_gap/result.json: not found; train stage '/no/rm_gap' first"


def test_a_dry_run_says_what_is_done_and_what_is_held(trained, copy, capsys):
    (copy / "rl_pit" / "result.json").unlink()
    output = dry(capsys, "run", copy)
    done = dict(re.findall(r"^(\w+) .* (yes|no|step \d+)$", output, re.M))
    assert done["rl_pit"] == "step 4" and done["sft_pit"] == "yes"
    # Of PPO: parameters of actor and critic, two moments and the gradient of each, 4 bytes each,
    # and what is frozen: a policy and a reward model.
    least = float(re.search(r"at least ([\d.]+) MB over all devices, in rl_p", output)[1])
    assert least == pytest.approx(4e-6 * (4 * 5744 + 2864 + 2880), abs=0.1)
    assert "windows        prompt 8, reference 12, response 13 tokens" in output


def test_a_dry_run_refuses_what_the_run_would(refused, trained):
    told = refused("run", "--gin.SEED=5", "--dry_run", folder=trained)
    assert "pretrain: was started with other settings: seed 0 -> 5" in told
    flags = ("--gin.STAGE=rl_pit", "--gin.rl_pit/PPOConfig.beta=0.5", "--dry_run")
    assert "rl_pit: was started with other settings" in refused("train", *flags, folder=trained)


def test_a_dry_run_of_train_is_of_its_stage_alone(trained, capsys):
    """PPO has changed, which is no matter of supervised fine-tuning."""
    flags = ("--gin.STAGE=sft_pit", "--gin.rl_pit/PPOConfig.beta=0.5")
    assert "(nothing is written)" in dry(capsys, "train", trained, *flags)


def test_a_run_that_is_not_there_is_told_with_those_beside_it(refused, trained, tmp_path):
    (tmp_path / "runs" / "first" / "sft").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "sft" / "stage.json").write_text("{}")
    (tmp_path / "runs" / "other").mkdir()
    flags = ("--to=hf", f"--output={tmp_path}/out", "--gin.STAGE=sft_pit")
    for wanted, hint in (
        ("frist", f"; did you mean {tmp_path}/runs/first?"),
        ("x", "there are first"),
    ):
        told = refused("convert", *flags, folder=tmp_path / "runs" / wanted)
        assert told.startswith(f"no such run: {tmp_path}/runs/{wanted}; ") and told.endswith(hint)


# --- damaged runs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{", b"\0" * 40, b"[1]", b"\xff\xfe"])
@pytest.mark.parametrize("name", ["result.json", "stage.json"])
def test_a_damaged_file_of_a_stage_is_named(name, content, refused, copy):
    (copy / "rm_gap" / name).write_bytes(content)
    told = refused("evaluate", "--dry_run", folder=copy)
    assert told == (
        f"{copy}/rm_gap/{name}: is damaged, expected a JSON object; bring it back from a copy, or "
        f"delete {copy}/rm_gap to train the stage again"
    )


def test_damaged_metrics_are_told_before_the_evaluation(refused, copy):
    path = copy / "rm_gap" / "metrics.jsonl"
    path.write_bytes(b"\0\0\n" + path.read_bytes())
    assert refused("evaluate", folder=copy).startswith(f"{path}:1: is damaged, expected a JSON obj")
    path.unlink()
    assert refused("evaluate", folder=copy).startswith(f"{path}: not found, expected what the st")


def test_records_that_are_cut_off_are_told_before_the_evaluation(refused, copy, trained):
    path = copy / "rm_gap" / "metrics.jsonl"
    whole = (trained / "rm_gap" / "metrics.jsonl").read_bytes()
    count = whole.count(b"\n")
    remedy = (
        "bring it back from a copy, or rename it to metrics.jsonl.damaged to go on with the "
        "records that can be read, which only the curves have"
    )
    for left, reason in (
        (whole[: whole.rindex(b"\n", 0, -1) + 1], f"got {count - 1} records, expected {count}"),
        (b"", f"got 0 records, expected {count}"),
        (whole.replace(b'"loss": ', b'"loss": 1', 1), "other values than were written"),
    ):
        path.write_bytes(left)
        assert refused("evaluate", folder=copy) == f"{path}: is damaged, {reason}; {remedy}"


@pytest.mark.parametrize("name", ["result.json", "stage.json"])
def test_the_file_of_another_stage_is_named(name, refused, copy):
    paths = [copy / stage / name for stage in ("rm_gap", "rm_policy")]
    data = [path.read_bytes() for path in paths]
    for path, other in zip(paths, reversed(data), strict=True):
        path.write_bytes(other)
    told = refused("evaluate", "--dry_run", folder=copy)
    assert re.fullmatch(
        rf"{copy}/(rm_gap|rm_policy)/{name}: is damaged, it is that of stage (?!\1)rm_\w+; "
        rf"bring it back from a copy, or delete {copy}/\1 to train the stage again",
        told,
    )


def test_a_missing_checkpoint_is_told_by_the_dry_run(refused, copy):
    step = json.loads((copy / "rl_pit" / "result.json").read_text())["model_step"]
    shutil.rmtree(copy / "rl_pit" / "checkpoints" / str(step))
    told = refused("evaluate", "--dry_run", folder=copy)
    assert f"rl_pit/checkpoints: no checkpoint of step {step}, there is: {step - 2}" in told
