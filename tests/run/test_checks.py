"""What can be known at the start is refused at the start."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil

import jax
import pytest
from etils import epath

from pit_jax.data.datasets import DatasetConfig, MixtureConfig
from pit_jax.data.layouts import Lengths
from pit_jax.errors import UserError
from pit_jax.evaluation.suite import EvaluationConfig
from pit_jax.method.curriculum import Round
from pit_jax.run import checks, directory, sources
from pit_jax.run import run as runs
from pit_jax.run.config import RoleConfig
from tests import tiny_runs

BASE = tiny_runs.config("unused")


def changed(name, **changes):
    """The tiny run with some fields of one stage changed."""
    stage = next(stage for stage in BASE.stages if stage.name == name)
    return tiny_runs.with_stages(BASE, dataclasses.replace(stage, **changes))


def refusal(config, name, tmp_path):
    run = tiny_runs.on_one_device(dataclasses.replace(config, model_dir=str(tmp_path)))
    with pytest.raises(UserError) as error:
        checks.check(run, name)
    assert list(tmp_path.iterdir()) == []
    return str(error.value)


def test_a_run_that_is_right_is_not_refused(tmp_path):
    run = tiny_runs.on_one_device(dataclasses.replace(BASE, model_dir=str(tmp_path)))
    for stage in BASE.stages:
        checks.check(run, stage.name)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sft_pit", {"initial": "rm_gap"}, "initial is 'rm_gap', which comes after it"),
        ("sft_pit", {"initial": "pretrian"}, "initial is 'pretrian', expected a stage of the run"),
        ("rm_gap", {"initial": "rm_policy"}, "initial 'rm_policy' is of task rm_policy"),
        ("rl_policy", {"initial": "sft_pit"}, "initial 'sft_pit' is of task sft_pit"),
        ("rl_policy", {"reference": "sft_pit"}, "reference 'sft_pit' is of task sft_pit"),
        ("rl_policy", {"reference": "rm_policy"}, "reference 'rm_policy' is of task rm_policy"),
        ("rl_pit", {"reward_model": "rm_policy"}, "reward_model 'rm_policy' is of task rm_policy"),
        (
            "rl_pit",
            {"task": "rl_pit_difference"},
            "reward_model 'rm_gap' is of task rm_gap, .*expected one of task rm_policy",
        ),
        (
            "rl_pit",
            {"rounds": (Round("data", 1), Round("policy", 1, policy="sft_pit"))},
            "policy of round 1 'sft_pit' is of task sft_pit.*pretrain or sft_policy or rl_policy",
        ),
        (
            "rl_pit",
            {"rounds": (Round("policy", 1, policy="rl_pit"),)},
            "policy of round 0 is 'rl_pit', which comes after it",
        ),
    ],
)
def test_a_model_of_another_kind_or_a_later_stage_is_refused(name, changes, message, tmp_path):
    found = refusal(changed(name, **changes), name, tmp_path)
    assert found.startswith(f"stage {name}: ")
    assert re.search(message, found), found


def test_a_critic_is_not_a_reward_model_that_reads_another_vocabulary(tmp_path):
    """Nor does it matter for a stage whose reward model has the vocabulary of its actor."""
    other = RoleConfig(
        dataclasses.replace(BASE.network, vocab_size=300),
        "bytes",
        Lengths(prompt=99, reference=99, response=99),
    )
    config = dataclasses.replace(BASE, gap_reward=other)
    initial = tiny_runs.supervised("pretrain_gap", task="pretrain", role="gap_reward")
    reward = dataclasses.replace(BASE.stages[4], initial="pretrain_gap")
    stages = (*BASE.stages[:4], initial, reward, *BASE.stages[5:])
    config = dataclasses.replace(config, stages=stages)
    assert refusal(config, "rl_pit", tmp_path) == (
        "stage rl_pit: got critic_start='reward', expected 'actor': its reward model has another "
        "vocabulary"
    )
    ppo = dataclasses.replace(tiny_runs.PPO, critic_start="actor")
    right = tiny_runs.with_stages(config, dataclasses.replace(BASE.stages[-1], ppo=ppo))
    run = tiny_runs.on_one_device(dataclasses.replace(right, model_dir=str(tmp_path)))
    for name in ("rl_pit", "rl_policy"):
        checks.check(run, name)


def reflecting(folder, **lengths):
    stage = dataclasses.replace(BASE.stages[2], task="sft_pit_reflection")
    lengths = dataclasses.replace(tiny_runs.LENGTHS, **lengths)
    config = dataclasses.replace(tiny_runs.with_stages(BASE, stage), lengths=lengths)
    return dataclasses.replace(config, model_dir=str(folder))


def test_reflections_need_a_window_and_a_model_of_ppo_has_none(tmp_path):
    found = refusal(reflecting(tmp_path), "sft_pit", tmp_path)
    assert "stage sft_pit: got Lengths.reflection=0, expected the most tokens" in found
    right = reflecting(tmp_path, reflection=8)
    checks.check(tiny_runs.on_one_device(right), "sft_pit")
    assert "initial 'sft_pit' is of task sft_pit_reflection" in refusal(right, "rl_pit", tmp_path)


def test_an_example_without_a_reflection_is_no_example_of_one(tmp_path):
    path = tmp_path.with_suffix(".jsonl")
    pairs = [
        {"prompt": f"from {n % 10} do {n}", "chosen": f"+1 {n % 10}", "rejected": "?"}
        for n in range(90)
    ]
    path.write_text("\n".join(json.dumps({**p, "reflection": "carry on"}) for p in pairs[1:]))
    whole = DatasetConfig("preferences", 0, 0, 0, path=str(path))
    config = dataclasses.replace(reflecting(tmp_path, reflection=8), dataset=whole)
    checks.check(tiny_runs.on_one_device(config), "sft_pit")
    path.write_text("\n".join(map(json.dumps, pairs)))
    found = refusal(config, "sft_pit", tmp_path)
    assert re.search(r"stage sft_pit: (\d+) of the \1 examples .* have no reflection", found)


@pytest.mark.parametrize(
    ("steps", "keep_every", "step", "fine"),
    [
        (4, 2, 2, True),
        (4, 3, 4, True),
        (4, 0, 4, True),
        (4, 2, 3, False),
        (4, 0, 2, False),
        (4, 2, 6, False),
    ],
)
def test_a_checkpoint_that_will_not_be_kept_is_refused(steps, keep_every, step, fine, tmp_path):
    config = changed("rl_policy", rounds=(Round("none", steps),), keep_every=keep_every)
    rounds = (Round("checkpoint", 1, policy_step=step),)
    pit = dataclasses.replace(config.stages[-1], rounds=rounds)
    config = dataclasses.replace(tiny_runs.with_stages(config, pit), model_dir=str(tmp_path))
    run = tiny_runs.on_one_device(config)
    if fine:
        checks.check(run, "rl_pit")
        return
    with pytest.raises(
        UserError, match=f"from step {step} of 'rl_policy'.*keep_every={keep_every}"
    ):
        checks.check(run, "rl_pit")


def test_a_trained_policy_is_asked_for_its_checkpoints(trained, tmp_path):
    for name in ("sft_pit", "rm_gap", "rl_policy"):
        shutil.copytree(trained / name, tmp_path / name)
    for step, fine in ((1, True), (3, False)):
        rounds = (Round("checkpoint", 1, policy_step=step),)
        config = dataclasses.replace(changed("rl_pit", rounds=rounds), model_dir=str(tmp_path))
        run = tiny_runs.on_one_device(config)
        if fine:
            checks.check(run, "rl_pit")
        else:
            with pytest.raises(UserError, match="step 3 of 'rl_policy', which has kept: 1, 2"):
                checks.check(run, "rl_pit")


def test_a_dry_run_refuses_it_too(tmp_path, capsys):
    wrong = "--gin.rl_pit/RLStage.reward_model='rm_policy'"
    assert tiny_runs.command("run", tmp_path / "run", wrong, "--dry_run") == 2
    err = capsys.readouterr().err
    assert "stage rl_pit: reward_model 'rm_policy' is of task rm_policy" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train_size": 12},
            "its fold of the train split has . rows, expected at least batch_size=8",
        ),
        ({"dev_size": 0}, "it is evaluated on split 'dev', which has no examples"),
    ],
)
def test_data_that_does_not_suffice_is_refused(changes, message, tmp_path):
    dataset = dataclasses.replace(tiny_runs.DATASET, **changes)
    found = refusal(dataclasses.replace(BASE, dataset=dataset), "rm_policy", tmp_path)
    assert re.search(message, found), found


def test_a_report_on_no_prompts_is_refused_before_training(tmp_path, capsys):
    arguments = ("run", tmp_path / "run", "--gin.DatasetConfig.test_size=0")
    for dry in ((), ("--dry_run",)):
        assert tiny_runs.command(*arguments, *dry) == 2
        assert "evaluation: got split 'test', which has no examples" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_mixture_that_draws_from_no_rows_is_refused(tmp_path):
    empty = dataclasses.replace(tiny_runs.DATASET, train_size=0, seed=1)
    dataset = MixtureConfig((tiny_runs.DATASET, empty), rates=(1.0, 1.0))
    found = refusal(dataclasses.replace(BASE, dataset=dataset), "pretrain", tmp_path)
    expected = "stage pretrain: the mixture draws from instructions_drafts_2, which has no rows"
    assert found == expected


@pytest.mark.mesh
def test_a_sampling_batch_that_the_mesh_cannot_split_is_refused(tmp_path):
    config = dataclasses.replace(BASE, model_dir=str(tmp_path), sampling_batch=9)
    run = runs.Run(config, devices=jax.devices()[:2])
    with pytest.raises(UserError, match="got sampling_batch=9, expected a multiple of 2: rows are"):
        checks.check(run, "pretrain")


def test_a_stage_on_others_that_saw_other_examples_is_refused(trained, tmp_path):
    """As when a file of data was swapped before `train` of the next stage."""
    shutil.copytree(trained / "pretrain", tmp_path / "pretrain")
    config = dataclasses.replace(BASE, model_dir=str(tmp_path))
    checks.check(tiny_runs.on_one_device(config), "sft_policy")
    dataset = dataclasses.replace(config.dataset, seed=1)
    run = tiny_runs.on_one_device(dataclasses.replace(config, dataset=dataset))
    with pytest.raises(UserError, match="pretrain: was trained on other examples than the data"):
        checks.check(run, "sft_policy")


def test_a_stage_in_anothers_place_is_refused_by_what_only_reads_it(trained, tmp_path):
    """As a whole folder, which would be allowed to have another name elsewhere."""
    for name, place in (("rl_pit", "rl_policy"), ("rl_policy", "rl_pit"), ("rm_gap", "rm_gap")):
        shutil.copytree(trained / name, tmp_path / place)
    run = tiny_runs.on_one_device(tiny_runs.config(tmp_path))
    checks.check_models(run, ["rm_gap", str(tmp_path / "rl_pit")])
    for read in (run.result, run.task_of, lambda name: checks.check_models(run, [name])):
        with pytest.raises(UserError, match="rl_pit/result.json: .* is that of stage rl_policy"):
            read("rl_pit")


def test_a_model_from_elsewhere_is_known_by_its_content(trained, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(trained / "pretrain", tmp_path / name)

    def run_on(name):
        stage = tiny_runs.supervised("sft_policy", initial=str(tmp_path / name))
        run = tiny_runs.on_one_device(tiny_runs.config(tmp_path / "run", stages=(stage,)))
        return run, stage

    run, stage = run_on("one")
    models = sources.of_models(run, stage)
    result = directory.read_json(trained / "pretrain" / "result.json")
    assert models == {"sft_policy.initial": result["digest"]}
    folder = run.folder("sft_policy")
    directory.claim(folder, run.settings(stage), {}, run.data.digest, models)
    (folder / "references").mkdir()
    checks.check(run_on("two")[0], "sft_policy")
    (tmp_path / "two" / "result.json").write_text(json.dumps(result | {"digest": "f" * 32}))
    with pytest.raises(UserError, match=r"the model of sft_policy.initial \(\w{8} -> ffffffff\)"):
        checks.check(run_on("two")[0], "sft_policy")
    # Before results had digests, files were all there was to know a model by.
    del result["digest"]
    for name in ("one", "two"):
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    one, two = (sources.of_model(epath.Path(tmp_path / name)) for name in ("one", "two"))
    assert one == two != "" and one != models["sft_policy.initial"]
    assert sources.of_model(epath.Path(tmp_path / "none")) == ""
    (tmp_path / "two" / "result.json").write_text(json.dumps(result | {"model_step": 9}))
    assert sources.of_model(epath.Path(tmp_path / "two")) == ""


def test_of_a_large_file_pieces_count_and_of_a_small_one_all(tmp_path):
    def found(name, **content):
        folder = epath.Path(tmp_path / name)
        for file, data in content.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(data)
        return sources.of_files([folder])

    small, large = bytes(range(200)), bytes(3 << 20)
    first = found("a", x=small, y=large)
    assert found("b", x=small, y=large) == first
    assert found("c", x=small[:-1] + b"?", y=large) != first
    assert found("d", x=small, y=large + b"\0") != first
    assert found("e", x=small, z=large) != first
    piece = (3 << 20) - 65536
    for place in [piece * n // 7 for n in range(8)] + [(3 << 20) - 1]:
        changed = bytearray(large)
        changed[place] = 1
        assert found("f", x=small, y=bytes(changed)) != first, place


def test_with_a_backbone_both_parts_count(tmp_path):
    def made(digest, below, backbone):
        for name, about in (
            ("own", {"task": "sft_pit", "digest": digest, "backbone": backbone}),
            ("base", {"task": "pretrain", "digest": below}),
        ):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "result.json").write_text(json.dumps(about | {"model_step": 2}))
        return sources.of_model(epath.Path(tmp_path / "own"))

    first = made("a", "b", "base")
    assert first not in ("", "a", "b") and made("a", "b", str(tmp_path / "base")) == first
    assert made("c", "b", "base") != first != made("a", "c", "base")
    assert made("a", "", "base") == ""


@pytest.mark.parametrize(
    ("field", "stage", "task"),
    [
        ("sft", "sft_pit", "pretrain or sft_policy or rl_policy"),
        ("policy", "rm_gap", "pretrain or sft_policy or rl_policy"),
        ("pit", "rl_policy", "pretrain or sft_pit"),
        ("reward_model", "rm_gap", "rm_policy"),
        ("gap_model", "rm_policy", "rm_gap"),
    ],
)
def test_an_evaluation_of_a_stage_with_another_layout_is_refused(field, stage, task, tmp_path):
    run = tiny_runs.on_one_device(dataclasses.replace(BASE, model_dir=str(tmp_path)))
    checks.check_evaluated(run, EvaluationConfig())
    message = f"EvaluationConfig.{field}: got '{stage}', which is of task {stage}, expected a stage"
    with pytest.raises(UserError, match=f"^{message} of task {task}"):
        checks.check_evaluated(run, EvaluationConfig(**{field: stage}))
