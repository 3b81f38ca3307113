"""The choice of an RL stage's checkpoint: what is measured, recorded, used and refused.

The tiny run's policy has a checkpoint of each of its two steps, among which `chosen` chooses.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

from pit_jax.errors import UserError
from pit_jax.method.choice import Choice
from pit_jax.method.curriculum import Round
from pit_jax.method.decode import SamplingConfig
from pit_jax.method.environment import Networks
from pit_jax.method.sampler import Response
from pit_jax.run import choosing, pipeline, stage_training, stages
from pit_jax.runtime.checkpoints import Checkpoints
from tests import reference, tiny_runs

STAGES = ("pretrain", "sft_policy", "sft_pit", "rm_policy", "rm_gap", "rl_policy")
CHOICE = Choice(groups=2, num_prompts=5, samples=2)
GIN = f"""{tiny_runs.GIN}
from pit_jax.method import choice
rl_policy/stages.RLStage.choice = @rl_policy/choice.Choice()
rl_policy/choice.Choice:
    groups = 2
    num_prompts = 5
    samples = 2
rl_pit_0/curriculum.Round.steps = 0
rl_pit_1/curriculum.Round.steps = 1
"""
OVERRIDE = "--gin.rl_policy/Choice.step={}"


def train(folder, stage, *arguments):
    return tiny_runs.command("train", folder, f"--gin.STAGE={stage}", *arguments, gin=GIN)


def configured(folder, choice=CHOICE, **changes):
    """The tiny run in this folder, its policy with a choice."""
    base = tiny_runs.config(folder)
    policy = next(stage for stage in base.stages if stage.name == "rl_policy")
    policy = dataclasses.replace(policy, choice=choice, **changes)
    return tiny_runs.on_one_device(tiny_runs.with_stages(base, policy))


def record_of(folder, stage="rl_policy"):
    found = json.loads((folder / stage / "choice.json").read_text())
    return {name: value for name, value in found.items() if name != "sha256"}


@pytest.fixture(scope="module")
def chosen(trained, tmp_path_factory):
    """A run whose policy was trained before it had a choice, which `train` then made."""

    def make(folder):
        for name in STAGES:
            shutil.copytree(trained / name, folder / name)
        assert train(folder, "rl_policy") == 0

    return tiny_runs.once(tiny_runs.shared_folder(tmp_path_factory) / "chosen", make)


@pytest.fixture
def copy(chosen, tmp_path):
    """A copy of `chosen` to change."""
    return shutil.copytree(chosen, tmp_path / "copy")


# --- what is measured ---------------------------------------------------------------------------


def params_of(run, stage, step):
    checkpoints = Checkpoints(run.folder(stage) / "checkpoints", read_only=True)
    init = "init_scalar_model" if stage.startswith("rm") else "init_language_model"
    empty = stages.abstract_model(getattr(stages, init)(run.config.network), run.partitioner)
    return checkpoints.restore_model(empty, step)


def one_by_one(run, stage, rows, step):
    """Of each row log π − log π_SFT, its reward and its tokens, in float64 without padding."""
    role, is_pit = run.role("policy"), stage.task != "rl_policy"
    config, layout, vocabulary = role.network, role.layout, role.vocabulary
    references = [row.reference and role.reference(row.reference) for row in rows]
    policy = params_of(run, stage.name, step)
    in_numpy = functools.partial(jax.tree.map, lambda x: np.asarray(x, np.float64))
    own, sft, scalar = (
        in_numpy(policy),
        *(
            in_numpy(params_of(run, name, run.result(name)["model_step"]))
            for name in (stage.reference, stage.reward_model)
        ),
    )
    prompts = [
        layout.pit_prompt(row.example.prompt, y_ref)
        if is_pit
        else layout.policy_prompt(row.example.prompt)
        for row, y_ref in zip(rows, references, strict=True)
    ]
    numbers, key = [row.number for row in rows], run.key("choice", stage.name)
    responses = role.sampler.respond(policy, prompts, 40, numbers, key, SamplingConfig())
    eos, refused = vocabulary.eos_id, ~vocabulary.sampled_ids(64)

    def log_prob(params, prompt, y):
        logits = reference.logits(params, config, prompt + y)[len(prompt) - 1 : -1]
        logits[:, refused] = -np.inf
        return reference.log_softmax(logits)[np.arange(len(y)), y].sum()

    def score(before, y):  # pooling is `sum`
        return reference.scalars(scalar, config, before + y)[len(before) :].sum()

    for row, y_ref, prompt, response in zip(rows, references, prompts, responses, strict=True):
        x, y = row.example.prompt, response.tokens + [eos] * response.ended
        zero = run.anchor(stage.reward_model)
        before = layout.reward_prompt(x)
        if stage.task == "rl_pit":
            before = layout.gap_prompt(x, y_ref)
        elif is_pit:
            zero = score(before, [*y_ref, eos])
        yield log_prob(own, prompt, y) - log_prob(sft, prompt, y), score(before, y) - zero, y


def test_kl_and_reward_are_those_of_one_response_after_another(chosen):
    run, record = configured(chosen), record_of(chosen)
    vocabulary = run.role("policy").vocabulary
    stage, examples = run.stage("rl_policy"), run.data.examples("dev")[:5]
    rows = [choosing.Row(example.index, example) for example in examples]
    assert [row["step"] for row in record["checkpoints"]] == [1, 2]
    for place, row in enumerate(record["checkpoints"]):
        kls, rewards, tokens = zip(*one_by_one(run, stage, rows, row["step"]), strict=True)
        for name, values in (("kl", kls), ("reward", rewards)):
            error = np.std(values, ddof=1) / np.sqrt(5)
            found = row[name], row[f"{name}_error"]
            np.testing.assert_allclose(found, (np.mean(values), error), rtol=1e-4, atol=1e-5)
        ended = [vocabulary.eos_id in y for y in tokens]
        assert row["ended"] == np.mean(ended)
        shown = [sample["responses"][place] for sample in record["samples"]]
        assert len(shown) == 2
        for each, y, reward, end in zip(shown, tokens, rewards, ended, strict=False):
            assert (each["step"], each["ended"]) == (row["step"], end)
            assert each["text"] == vocabulary.decode(y[: len(y) - end])
            np.testing.assert_allclose(each["reward"], reward, rtol=1e-4)


@pytest.mark.parametrize(
    ("task", "reward_model"), [("rl_pit", "rm_gap"), ("rl_pit_difference", "rm_policy")]
)
def test_a_gap_is_scored_as_in_training(trained, task, reward_model):
    run = tiny_runs.on_one_device(tiny_runs.config(trained))
    stage = run.stage("rl_pit")
    rows = choosing.rows_of(run, dataclasses.replace(stage, rounds=(Round("data", 1),)), CHOICE)
    stage = dataclasses.replace(stage, task=task, reward_model=reward_model)
    (found,) = choosing._results(run, stage, rows, [4])
    kls, rewards, tokens = zip(*one_by_one(run, stage, rows, 4), strict=True)
    assert len(rows) == 10  # more than a batch
    np.testing.assert_allclose(found["kl"], kls, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found["score"], rewards, rtol=1e-3, atol=1e-4)
    texts = [y[m].tolist() for y, m in zip(found["tokens"], found["mask"], strict=True)]
    assert texts == list(tokens)


def test_a_reward_model_of_another_vocabulary_scores_what_it_reads(trained, monkeypatch):
    """All else is as without; here it reads of each response the text of another row."""
    run = tiny_runs.on_one_device(tiny_runs.config(trained))
    stage, role = run.stage("rl_policy"), run.role("policy_reward")
    rows = choosing.rows_of(run, stage, Choice(num_prompts=8))
    (plain,) = choosing._results(run, stage, rows, [2])

    def translate(generation):
        tokens, mask = (np.roll(x, 1, axis=0) for x in (generation.tokens_BR, generation.mask_BR))
        return {"reward_response_tokens": tokens, "reward_response_mask": mask.astype(np.float32)}

    monkeypatch.setattr(choosing, "translation", lambda run, stage: translate)
    (found,) = choosing._results(run, stage, rows, [2])
    for name in ("kl", "ended", "tokens", "mask"):
        np.testing.assert_array_equal(found[name], plain[name])
    read = []
    for y, real, ended in zip(plain["tokens"], plain["mask"], plain["ended"], strict=True):
        tokens = y[real].tolist()
        read.append(Response(tokens[: len(tokens) - ended], bool(ended)))
    scores = role.sampler.score(
        run.load_frozen("rm_policy"),
        [role.layout.reward_prompt(row.example.prompt) for row in rows],
        role.widths.reward,
        read[-1:] + read[:-1],
        "sum",
    )
    np.testing.assert_allclose(
        found["score"], scores - run.anchor("rm_policy"), rtol=1e-4, atol=1e-5
    )
    assert not np.allclose(found["score"], plain["score"])


def test_references_are_of_the_source_of_the_last_round(trained, monkeypatch):
    """Of one without steps never; y_l and y_w of the data have draws of their own."""
    run, asked = configured(trained, Choice(step=1)), []
    role = run.role("policy")
    encode = role.vocabulary.encode

    def respond(params, prompts, width, rows, key, sampling):
        asked.append((params, prompts, rows, sampling))
        return [Response(encode("wrong back") * 9, True) for _ in prompts]

    monkeypatch.setattr(role.sampler, "respond", respond)
    monkeypatch.setattr(run, "load_frozen", lambda name, step, role: (name, step, role))
    examples, sampling = run.data.examples("dev")[:2], SamplingConfig(temperature=0.5)
    numbers = [e.index for e in examples]

    def rows(*rounds):
        """The rows of the last round, and what M_PIT reads of each reference."""
        stage = dataclasses.replace(run.stage("rl_pit"), rounds=rounds)
        found = choosing.rows_of(run, stage, Choice(num_prompts=2))
        return found, [role.reference(row.reference) for row in found]

    found, references = rows(Round("policy", 1), Round("data", 1), Round("policy", 0))
    assert [(row.example, y_ref) for row, y_ref in zip(found, references, strict=True)] == [
        (e, encode(text)) for e in examples for text in (e.rejected, e.chosen)
    ]
    assert len({row.number for row in found}) == 4 and asked == []
    for round_, step in (
        (Round("policy", 1, sampling=sampling), 1),
        (Round("checkpoint", 1, policy_step=2, sampling=sampling), 2),
        (Round("pit", 1, sampling=sampling), 1),
    ):
        found, references = rows(Round("data", 1), round_)
        assert references == [(encode("wrong back") * 9)[:12]] * 2
        assert [(row.number, row.example) for row in found] == list(
            zip(numbers, examples, strict=True)
        )
        prompts = [role.layout.policy_prompt(e.prompt) for e in examples]
        assert asked.pop() == (("rl_policy", step, "policy"), prompts, numbers, sampling)


@pytest.mark.parametrize(("num_prompts", "rows"), [(3, 3), (0, 20), (99, 20)])
def test_so_many_prompts_of_dev_are_answered(trained, num_prompts, rows):
    run = configured(trained)
    found = choosing.rows_of(run, run.stage("rl_policy"), Choice(num_prompts=num_prompts))
    assert [row.example for row in found] == run.data.examples("dev")[:rows]


# --- what is recorded ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "candidates", "groups"),
    [
        (Choice(groups=1, num_prompts=5, samples=1), 1, {1}),
        (Choice(groups=1, per_group=2, num_prompts=5, samples=3), 2, {1}),
        (Choice(groups=2, num_prompts=5, samples=0), 2, {1, 2}),
    ],
)
def test_groups_candidates_and_samples_are_as_many_as_asked_for(copy, choice, candidates, groups):
    """Another choice than the recorded one is made anew."""
    run = configured(copy, choice)
    pipeline.train(run, "rl_policy")
    record = record_of(copy)
    assert {row["group"] for row in record["checkpoints"]} == groups
    assert sum(row["candidate"] for row in record["checkpoints"]) == candidates
    assert len(record["samples"]) == choice.samples
    assert all(len(sample["responses"]) == candidates for sample in record["samples"])


def test_an_interrupted_choice_is_made_again(copy, chosen, monkeypatch, capsys):
    (copy / "rl_policy" / "choice.json").unlink()
    run = configured(copy)
    with monkeypatch.context() as patch:
        patch.setattr(choosing.run_directory, "write_json", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipeline.train(run, "rl_policy")
    with pytest.raises(UserError, match=r"rl_policy/choice.json: not found.*'rl_policy', makes"):
        run.result("rl_policy")
    assert train(copy, "rl_pit") == 2  # which would begin with its model
    assert "choice.json: not found" in capsys.readouterr().err
    assert not (copy / "rl_pit").exists()
    pipeline.train(run, "rl_policy")
    assert record_of(copy) == record_of(chosen)


def test_a_record_as_a_table():
    record = {
        "chosen": 20,
        "proposed": 10,
        "checkpoints": [
            {"step": 10, "kl": 0.5, "kl_error": 0.25, "reward": 1.0, "reward_error": 0.0}
            | {"ended": 1.0, "group": 1, "candidate": True, "chosen": False},
            {"step": 20, "kl": None, "kl_error": None, "reward": -2.0, "reward_error": 0.125}
            | {"ended": 0.25, "group": None, "candidate": False, "chosen": True},
        ],
    }
    assert choosing.table("rl_policy", record).splitlines() == [
        "rl_policy: step 20 is chosen (proposed: 10)",
        "    step                  KL              reward  ended %  group",
        "      10       0.500 ± 0.250       1.000 ± 0.000    100.0      1  candidate",
        "      20                   -      -2.000 ± 0.125     25.0      -  chosen",
    ]


# --- what uses it -------------------------------------------------------------------------------


def test_the_model_of_a_stage_is_the_chosen_one(copy):
    """By name, by the path of its folder, and for a stage that starts from it."""
    record = record_of(copy)
    assert record["chosen"] == record["proposed"]
    for step in (1, 2):
        run = configured(copy, dataclasses.replace(CHOICE, step=step))
        pipeline.train(run, "rl_policy")
        expected = params_of(run, "rl_policy", step)
        further = dataclasses.replace(run.stage("rl_policy"), initial="rl_policy", choice=None)
        state = stages.create_state(
            further, Networks.same(run.config.network), run.partitioner, jax.random.key(0)
        )
        started = stage_training.start_from(run, further, state).train.params["actor"]
        for found in (run.load("rl_policy"), run.load(str(copy / "rl_policy")), started):
            jax.tree.map(np.testing.assert_array_equal, found, expected)
        (reported,) = choosing.recorded(run)
        assert (reported["stage"], reported["chosen"]) == ("rl_policy", step)
        assert [row["chosen"] for row in reported["checkpoints"]] == [step == 1, step == 2]
        assert record_of(copy) == {k: v for k, v in reported.items() if k != "stage"}
    # Without a choice it is the last one, whatever was chosen before.
    without = tiny_runs.on_one_device(tiny_runs.config(copy))
    assert without.result("rl_policy")["model_step"] == 2 and not choosing.recorded(without)


def test_the_next_stage_goes_by_the_choice_and_refuses_another(copy, capsys):
    """As commands: the choice is overridden, M_PIT is trained on it, and then it is changed."""
    (copy / "config.gin").unlink()
    one, two = OVERRIDE.format(1), OVERRIDE.format(2)
    assert train(copy, "rl_policy", one) == 0
    assert record_of(copy)["chosen"] == 1 and "measuring" not in capsys.readouterr().out
    assert train(copy, "rl_pit", one) == 0
    manifest = json.loads((copy / "rl_pit/references/round-1/manifest.json").read_text())
    assert manifest["checkpoint"] == "rl_policy@1"
    stage = json.loads((copy / "rl_pit" / "stage.json").read_text())
    assert stage["settings"]["chosen step of rl_policy"] == "1"
    capsys.readouterr()

    assert train(copy, "rl_policy", two) == 0  # the stage itself takes it
    assert (record_of(copy)["chosen"], "Choice.step = 2" in (copy / "config.gin").read_text()) == (
        2,
        True,
    )
    assert train(copy, "rl_pit", two, "--dry_run") == 2
    assert "settings: chosen step of rl_policy 1 -> (unset). Go" in capsys.readouterr().err
    assert train(copy, "rl_pit", one) == 0
    assert "rl_pit: complete, skipped" in capsys.readouterr().out


def test_a_choice_that_is_pending_refuses_no_stage_that_was_trained_on_it(copy):
    """Until it is made; `run` checks all stages before it makes one."""
    run = configured(copy, dataclasses.replace(CHOICE, step=1))
    stage = run.stage("rl_pit")
    assert run.settings(stage)["chosen step of rl_policy"] == "1"
    (copy / "rl_pit").mkdir()
    (copy / "rl_pit" / "stage.json").write_text(json.dumps({"settings": run.settings(stage)}))
    pending = configured(copy, dataclasses.replace(CHOICE, groups=3))
    assert pending.settings(stage)["chosen step of rl_policy"] == "1"
    last = configured(copy, dataclasses.replace(CHOICE, step=2))
    assert "chosen step of rl_policy" not in last.settings(stage)
    # A round that names the step of its policy has its own.
    rounds = (Round("checkpoint", 1, policy_step=2), Round("policy", 0))
    other = dataclasses.replace(stage, name="other", rounds=rounds)
    assert "chosen step of rl_policy" not in run.settings(other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gin.rl_policy/RLStage.keep_every=0",), "keep_every=0, expected 1 or more"),
        (("--gin.rl_policy/Choice.step=3",), "Choice.step=3, expected a checkpoint that is kept"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused_before_the_first_step(
    tmp_path, capsys, arguments, message
):
    for command, stage in (("train", ("--gin.STAGE=rl_policy",)), ("run", ())):
        given = (*stage, *arguments, "--dry_run")
        assert tiny_runs.command(command, tmp_path / "new", *given, gin=GIN) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_that_was_deleted_is_not_taken(copy):
    kept = record_of(copy)["chosen"]
    shutil.rmtree(copy / "rl_policy" / "checkpoints" / str(3 - kept))
    run = configured(copy, dataclasses.replace(CHOICE, step=3 - kept))
    with pytest.raises(UserError, match=rf"got Choice.step={3 - kept}, .* is there: {kept}$"):
        pipeline.train(run, "rl_policy")
