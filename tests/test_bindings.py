"""Gin files and flags: what they reach, and what is refused because it would change nothing."""

from __future__ import annotations

import os

import pytest

from pit_jax import bindings
from pit_jax.errors import UserError
from pit_jax.evaluation.suite import EvaluationConfig
from pit_jax.run.config import RunConfig

ROOTS = (RunConfig, EvaluationConfig)
QUICKSTART = "gin/runs/quickstart.gin"
DYNAMIC = "from __gin__ import dynamic_registration\n"
INCLUDE = f"include '{QUICKSTART}'\n"
STAGES = "from pit_jax.run import stages\n"


def configured(*flags, files=(QUICKSTART,), takes_stage=True):
    """The run and evaluation of files and flags."""
    rest, pairs = bindings.take_out(flags)
    assert rest == []
    bindings.parse([str(file) for file in files], "", pairs, ROOTS, takes_stage)
    return tuple(map(bindings.configured, ROOTS))


def refusal(*flags, **arguments):
    with pytest.raises(UserError) as error:
        configured(*flags, **arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def own(tmp_path):
    """Writes a gin file of the user's own and returns its path."""

    def write(content):
        path = tmp_path / "mine.gin"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


# --- what changes nothing -----------------------------------------------------------------------

WINS = (
    "has no effect: pretrain/SupervisedStage.steps=400, sft_pit/SupervisedStage.steps=400, "
    "sft_policy/SupervisedStage.steps=200 win; write "
)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("SupervisedStage.steps=7", WINS + "--gin.pretrain/SupervisedStage.steps=7"),
        ("stages.SupervisedStage.steps=7", WINS + "--gin.pretrain/SupervisedStage.steps=7"),
        (
            "rl_policy/a/Round.steps=3",
            "no effect: 'rl_policy/a' is no scope of it; did you mean rl",
        ),
        ("rl_polcy/Round.steps=3", "'rl_polcy' is no scope of it; did you mean rl_policy/Round.st"),
        ("train/RunConfig.seed=3", "'train' is no scope of it; did you mean RunConfig.seed?"),
        ("rl_pit/SamplingConfig.top_k=2", "did you mean pit/SamplingConfig.top_k?"),
        ("MODEL_DRI='x'", "--gin.MODEL_DRI: no such macro; did you mean MODEL_DIR?"),
        ("seed=3", "--gin.seed: no such macro; did you mean SEED?"),
        ("learning_rate=1e-3", "no such macro; did you mean OptimizerConfig.learning_rate?"),
        (
            "HH_PATH=x",
            "no such macro, expected one of BATCH_SIZE, INITIAL_CHECKPOINT_PATH, MODEL_D",
        ),
        (
            "RunConfig.sede=3",
            "RunConfig.sede: there is no such setting; did you mean RunConfig.see",
        ),
        (
            "RunConfg.seed=3",
            "RunConfg.seed: there is no such setting; did you mean RunConfig.seed?",
        ),
        ("sft_pit.SupervisedStage.steps=7", "setting; did you mean sft_pit/SupervisedStage.steps?"),
        ("RunConfig.batch_size=3", "there is no such setting; did you mean BATCH_SIZE or "),
    ],
)
def test_a_flag_that_changes_nothing_is_refused(flag, message):
    assert message in refusal(f"--gin.{flag}")


def test_a_flag_that_another_flag_replaces_is_refused():
    message = "--gin.SEED=4 has no effect: another setting replaces all that use it"
    assert refusal("--gin.RunConfig.seed=5", "--gin.SEED=4") == message


def test_a_flag_without_a_scope_sets_what_no_scope_sets(own):
    run, _ = configured("--gin.RewardConfig.gap_loss='pointwise'")
    kinds = [stage.reward.gap_loss for stage in run.stages if hasattr(stage, "reward")]
    assert kinds == ["pointwise", "pointwise"]
    run, _ = configured("--gin.sft_pit/SupervisedStage.steps=7", "--gin.SamplingConfig.top_k=3")
    assert [stage.steps for stage in run.stages[1:3]] == [200, 7]
    assert run.improve.sampling.top_k == run.improve.policy_sampling.top_k == 3


def test_only_train_and_convert_take_a_stage(own):
    assert "STAGE=rm_gap has no effect" in refusal("--gin.STAGE=rm_gap", takes_stage=False)
    configured(files=[own(INCLUDE + "STAGE = 'rm_gap'\n")], takes_stage=False)
    configured("--gin.STAGE=rm_gap")
    assert bindings.stage(["rm_gap"]) == "rm_gap"
    configured("--gin.STAGE=3")
    with pytest.raises(UserError, match=r"^STAGE: got 3, expected one of rm_gap$"):
        bindings.stage(["rm_gap"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (INCLUDE + "\nMODEL_DRI = 'x'\n", ":3: MODEL_DRI: no such macro; did you mean MODEL_DIR?"),
        (
            DYNAMIC + INCLUDE + STAGES + "stages.SupervisedStage.steps = 7\n",
            f":4: SupervisedStage.steps {WINS}pretrain/SupervisedStage.steps",
        ),
        (
            DYNAMIC + INCLUDE + STAGES + "sft_pt/stages.SupervisedStage:\n  steps = 7\n",
            ":5: sft_pt/SupervisedStage.steps has no effect: 'sft_pt' is no scope of it; did you m",
        ),
        (
            DYNAMIC + INCLUDE + STAGES + "sft_pit/stages.SupervisedStage.stps = 7\n",
            ":4: Configurable 'stages.SupervisedStage' doesn't have a parameter named 'stps'.; did",
        ),
        (
            DYNAMIC + INCLUDE + STAGES + "stages.SupervisdStage.steps = 7\n",
            ":4: stages.SupervisdSt",
        ),
        (INCLUDE + "from pit_jax.run import stges\n", ":2: No module named 'pit_jax.run.stges'"),
        (
            DYNAMIC + INCLUDE + "stages.RLStage.steps = 7\n",
            ":3: 'stages' was not provided by an im",
        ),
        (INCLUDE + "MODEL_DIR = runs/x\n", ":2: got runs, expected a value; text stands in quotes"),
        (
            INCLUDE + "A = %B\nB = %A\nSEED = %A\n",
            "gin: a macro or an include leads back to itself",
        ),
        (
            "SEED = 7\n" + INCLUDE,
            ":1: SEED = 7 has no effect: a file that is included after it sets 0; includes come fi",
        ),
        (
            DYNAMIC + "from pit_jax.run import config\n"
            "config.RunConfig:\n  shard_size = 4\n  seed = 8\n" + INCLUDE,
            ":5: RunConfig.seed = 8 has no effect: a file that is included after it sets %SEED; in",
        ),
        (INCLUDE.encode("utf-16"), "mine.gin: can't be read, expected UTF-8 text"),
        ("", "gin: RunConfig has no value for 'model_dir', 'seed', "),
    ],
)
def test_a_mistake_in_a_file_is_told_with_its_line(content, message, own):
    told = refusal(files=[own(content)])
    assert message in told and ("mine.gin" in told or told.startswith("gin: "))


def test_a_file_that_includes_itself_is_refused(own):
    path = own("")
    path.write_text(f"include '{path}'\n")
    assert "leads back to itself" in refusal(files=[path])


def test_what_a_flag_or_a_later_file_replaces_is_no_mistake_of_a_file(own):
    path = own(INCLUDE + "SEED = 3\n")
    assert configured("--gin.RunConfig.seed=4", files=[path])[0].seed == 4
    other = own(DYNAMIC + INCLUDE + "from pit_jax.run import config\nconfig.RunConfig.seed = 5\n")
    assert configured(files=[QUICKSTART, other])[0].seed == 5


def test_of_two_lines_of_a_file_the_later_one_counts(own):
    assert configured(files=[own(INCLUDE + "SEED = 1\nSEED = 2\n")])[0].seed == 2


def test_what_is_set_of_a_stage_that_the_run_leaves_out_is_no_mistake_of_a_file(own):
    """The list of stages is often the first thing that is changed; flags are for what there is."""
    content = DYNAMIC + INCLUDE + "from pit_jax.run import config\n" + STAGES
    content += "from pit_jax.method import curriculum\n"
    content += "config.RunConfig.stages = (@sft_pit/stages.SupervisedStage(),)\n"
    content += "pretrain/stages.SupervisedStage.steps = 3\nrl_pit_1/curriculum.Round.steps = 3\n"
    path = own(content)
    assert [stage.name for stage in configured(files=[path])[0].stages] == ["sft_pit"]
    told = refusal("--gin.pretrain/SupervisedStage.steps=4", files=[path])
    assert "'pretrain' is no scope of it; did you mean sft_pit/SupervisedStage.steps?" in told
    told = refusal(files=[own(content + "rl_pit_2/curriculum.Round.steps = 3\n")])
    assert "rl_pit_2/Round.steps has no effect: nothing in this run is made of Round" in told


def test_what_an_included_file_binds_in_vain_is_no_mistake(own):
    content = DYNAMIC + INCLUDE + "from pit_jax.run import config\n" + STAGES
    content += "config.RunConfig.stages = (@sft_pit/stages.SupervisedStage(),)\n"
    run, _ = configured(files=[own(content)])
    assert [stage.name for stage in run.stages] == ["sft_pit"]
    assert "rl_policy" not in bindings.whole(ROOTS)


@pytest.mark.parametrize("start", [b"\xef\xbb\xbf", b""])
def test_a_mark_of_utf8_and_the_line_ends_of_windows_are_no_mistake(start, own):
    content = start + (INCLUDE + "SEED = 4\n").replace("\n", "\r\n").encode()
    assert configured(files=[own(content)])[0].seed == 4


def test_an_included_file_is_read_as_one_that_is_given(own, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    theirs = tmp_path / "theirs.gin"
    theirs.write_bytes(b"\xef\xbb\xbfSEED = 4\r\n")
    path = own(INCLUDE.replace("quickstart", "preferences") + "include '~/theirs.gin'\n")
    flag = "--gin.PREFERENCES_PATH=x"
    assert configured(flag, files=[path])[0].seed == 4
    theirs.write_bytes(b"# caf\xe9\nSEED = 4\n")
    assert "~/theirs.gin: can't be read, expected UTF-8 text" in refusal(flag, files=[path])


def test_a_gin_file_is_found_at_home_and_in_the_search_paths(own, monkeypatch, tmp_path):
    own(INCLUDE + "SEED = 4\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert configured(files=["~/mine.gin"])[0].seed == 4
    bindings.parse(["mine.gin"], f"/nowhere,{tmp_path}", [], ROOTS)
    message = "--gin_file: gin/runs/quikstart.gin not found; did you mean gin/runs/quickstart.gin?"
    assert refusal(files=["gin/runs/quikstart.gin"]) == message
    assert "Is a directory" in refusal(files=["gin/runs"])


# --- values ---------------------------------------------------------------------------------------


def test_a_text_needs_no_quotes_within_those_of_the_shell():
    run, _ = configured("--gin.MODEL_DIR=runs/x", "--gin.RunConfig.wandb_project=my project")
    assert (run.model_dir, run.wandb_project) == ("runs/x", "my project")
    run, _ = configured("--gin.MODEL_DIR", "'runs/x'", "--gin.VOCABULARY=words:drafts")
    assert (run.model_dir, run.vocabulary) == ("runs/x", "words:drafts")
    run, _ = configured("--gin.MODEL_DIR=~/x", '--gin.RunConfig.wandb_project="a"')
    assert run.model_dir == os.path.expanduser("~/x") and run.wandb_project == "a"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gin.MODEL_DIR='runs/x"], "gin: --gin.MODEL_DIR='runs/x: Unable to parse value."),
        (
            ["--gin.MODEL_DIR=2024"],
            "RunConfig.model_dir: got 2024, expected text, '2024' in quotes",
        ),
        (["--gin.MODEL_DIR="], "--gin.MODEL_DIR: got no value, expected --gin.MODEL_DIR=VALUE"),
        (["--gin.SEED"], "--gin.SEED: got no value, expected --gin.SEED=VALUE"),
        (["--gin.=3"], "--gin.: got the name '', expected --gin.NAME=VALUE"),
        (
            ["--gin.SEED=3\nBATCH_SIZE=4"],
            "RunConfig.seed: got '3\\nBATCH_SIZE=4', expected a whole",
        ),
        (
            ["--gin.SEED=10**20"],
            "RunConfig.seed: got '10**20', expected a whole number (from SEED)",
        ),
        (["--gin.SEED=1.5"], "RunConfig.seed: got 1.5, expected a whole number (from SEED)"),
        (
            ["--gin.BATCH_SIZE=4.0"],
            "sft_policy/SupervisedStage.batch_size: got 4.0, expected a whole number, such as 4 "
            "(from BATCH_SIZE)",
        ),
        (
            ["--gin.sft_pit/OptimizerConfig.learning_rate='1e-3'"],
            "sft_pit/OptimizerConfig.learning_rate: got '1e-3', expected a number, without quotes",
        ),
        (["--gin.DatasetConfig.train_size=1e1"], "train_size: got 10.0, expected a whole number,"),
        (["--gin.EvaluationConfig.temperatures=1.0"], "got 1.0, expected a tuple, such as (1.0,)"),
        (["--gin.sft_pit/SupervisedStage.steps=1.5"], "sft_pit/SupervisedStage.steps: got 1.5, ex"),
        (["--gin.RewardConfig.gap_loss='max'"], "'pointwise') (in rm_policy)"),
        (["--gin.EvaluationConfig.self_refine=true"], "got 'true', expected True or False"),
    ],
)
def test_a_value_of_the_wrong_kind_is_told_with_what_was_typed(flags, message):
    assert message in refusal(*flags)


def test_a_missing_value_takes_no_other_flag():
    rest, flags = bindings.take_out(["--gin.SEED", "--dry_run", "--gin.A", "-2.0"])
    assert (rest, flags) == (["--dry_run"], [("SEED", ""), ("A", "-2.0")])


def test_what_is_written_names_modules_as_files_do():
    """Not by another name that a later text has for them, which one, a hash would draw."""
    modules = ("method.curriculum", "run.stages", "runtime.loop", "method.ppo", "data.layouts")
    lines = [
        f"from pit_jax.{folder} import {name} as of_{name}"
        for folder, name in (module.split(".") for module in modules)
    ]
    more = "\n".join([DYNAMIC, *lines, "of_layouts.Lengths.prompt = 9\n"])
    bindings.parse([QUICKSTART], "", (), ROOTS, more=more)
    assert bindings.configured(RunConfig).lengths.prompt == 9
    for text in (bindings.operative(), bindings.whole(ROOTS)):
        assert " as of_" not in text and "\nlayouts.Lengths.prompt = 9" in text
        assert "from pit_jax.method import curriculum\n" in text
