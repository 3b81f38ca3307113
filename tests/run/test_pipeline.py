"""A run stage by stage: interruption and continuation, references, refusals, skipping."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shutil

import jax
import numpy as np
import pytest

from pit_jax.data.reference_store import ReferenceStore, ReferenceWriter
from pit_jax.errors import UserError
from pit_jax.method import flops
from pit_jax.method.curriculum import Round
from pit_jax.method.decode import SamplingConfig
from pit_jax.method.environment import Networks
from pit_jax.run import pipeline, stage_training, stages
from pit_jax.run.run import key_for
from pit_jax.runtime import loop, metrics
from pit_jax.runtime.checkpoints import Checkpoints
from tests import tiny_runs


class Stopped(Exception):
    """Stands for a crash."""


def start_from(trained, folder, *names):
    """A run directory that holds these stages already; returns its config."""
    for name in names:
        shutil.copytree(trained / name, folder / name)
    return tiny_runs.config(folder)


def stop_after_record(monkeypatch, step):
    """The process dies once the metrics of this step are written, before anything that follows."""
    write = metrics.JsonlWriter.write

    def write_and_stop(self, number, *args):
        write(self, number, *args)
        if number == step:
            raise Stopped

    monkeypatch.setattr(metrics.JsonlWriter, "write", write_and_stop)


def train(config, name):
    """One stage by a new process, as it were."""
    run = tiny_runs.on_one_device(config)
    pipeline.train(run, name)
    return run


def interrupted(config, name):
    with pytest.raises(Stopped):
        train(config, name)


def whole_state(run, name):
    """Everything in the last checkpoint of a stage, as arrays by name, and its progress."""
    stage = run.stage(name)
    empty = stages.abstract_state(stage, Networks.same(run.config.network), run.partitioner)
    checkpoints = Checkpoints(run.directory / name / "checkpoints", read_only=True)
    state, extra = checkpoints.restore(empty)
    checkpoints.close()
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return arrays, tiny_runs.without_times(extra)


def assert_same_stage(run, trained, name):
    """Bit for bit the parameters, optimizer, counters, records and result of the whole run."""
    uninterrupted = tiny_runs.on_one_device(tiny_runs.config(trained))
    (arrays, extra), (expected, expected_extra) = (
        whole_state(each, name) for each in (run, uninterrupted)
    )
    assert extra == expected_extra
    assert set(arrays) == set(expected)
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, expected[key], err_msg=key)
    records, expected_records = (
        tiny_runs.records(folder / name / "metrics.jsonl") for folder in (run.directory, trained)
    )
    assert records == expected_records
    result, expected_result = (
        tiny_runs.without_times(each.result(name)) for each in (run, uninterrupted)
    )
    assert result == expected_result


@pytest.mark.parametrize("step", [1, 3], ids=["before a checkpoint", "after a checkpoint"])
def test_an_interrupted_supervised_stage_continues(trained, tmp_path, monkeypatch, capsys, step):
    config = tiny_runs.config(tmp_path)
    with monkeypatch.context() as patch:
        stop_after_record(patch, step)
        interrupted(config, "pretrain")
    run = train(config, "pretrain")
    assert ("pretrain: continues at step 2" in capsys.readouterr().out) == (step == 3)
    assert_same_stage(run, trained, "pretrain")


def test_an_interrupted_reward_stage_continues_and_keeps_its_best(trained, tmp_path, monkeypatch):
    config = start_from(trained, tmp_path, "pretrain")
    for step in (3, 5):
        with monkeypatch.context() as patch:
            stop_after_record(patch, step)
            interrupted(config, "rm_policy")
    run = train(config, "rm_policy")
    assert_same_stage(run, trained, "rm_policy")
    held_out = {
        record["step"]: record["held_out_accuracy"]
        for record in tiny_runs.records(tmp_path / "rm_policy" / "metrics.jsonl")
        if "held_out_accuracy" in record
    }
    assert set(held_out) == {2, 4, 6}
    result = run.result("rm_policy")
    best = min(held_out, key=lambda step: (-held_out[step], step))
    assert result["model_step"] == best and result["pooling"] == "sum"
    run.load_frozen("rm_policy")


def test_a_damaged_checkpoint_costs_no_more_than_its_own_steps(trained, tmp_path, capsys):
    """Of a complete stage, as its refusal says: without `result.json` it trains on from before."""
    config = start_from(trained, tmp_path, "pretrain", "rm_policy")
    for name, steps in (("pretrain", (2, 4)), ("rm_policy", (4, 6))):
        (tmp_path / name / "result.json").unlink()
        checkpoints = tmp_path / name / "checkpoints"
        kept = sorted(int(path.name) for path in checkpoints.iterdir())
        assert kept[-2:] == [*steps]
        (checkpoints / str(steps[1]) / "model" / "manifest.ocdbt").write_bytes(b"")
        run = train(config, name)
        told = capsys.readouterr().out
        line = f"{name}: the checkpoint of step {steps[1]} is damaged, now {steps[1]}.damaged: "
        assert line in told and f"{name}: continues at step {steps[0]}" in told
        assert_same_stage(run, trained, name)
        assert {path.name for path in checkpoints.iterdir()} == {
            *map(str, kept),
            f"{steps[1]}.damaged",
        }


def test_a_reward_model_is_chosen_on_exactly_its_held_out_pairs(tmp_path):
    """10 of them in batches of 8: as if each were evaluated alone, and no eleventh."""
    stage = tiny_runs.reward("rm_gap", initial="", held_out=10)
    run = tiny_runs.on_one_device(tiny_runs.with_stages(tiny_runs.config(tmp_path), stage))
    state = stages.create_state(
        stage, Networks.same(run.config.network), run.partitioner, jax.random.key(3)
    )
    found = {}

    def fit(state, step, batches, stop, held_out):
        found.update(held_out(state))
        return state

    stage_training._train_supervised(run, stage, state, fit, loop.Progress())
    loss = run.partitioner.jit(stages.objective(stage, run.config.network))
    alone = []
    one_by_one = run.data.batches("rm_gap", "dev", 1, shuffle=False, num_epochs=1)
    for batch in itertools.islice(one_by_one, 11):
        _, totals = loss(state.params, run.partitioner.shard_batch(batch))
        alone.append({name: float(value / weight) for name, (value, weight) in totals.items()})
    for name in ("accuracy", "mean_ww", "mean_ll"):
        expected = np.mean([each[name] for each in alone[:10]])
        assert found[name] == pytest.approx(expected, rel=1e-4, abs=1e-6), name
    assert found["mean_ww"] != pytest.approx(np.mean([e["mean_ww"] for e in alone]), rel=1e-4)


def test_interrupted_rounds_of_ppo_continue(trained, tmp_path, monkeypatch, capsys):
    """While the second round's references are sampled, and in the middle of that round."""
    names = ("pretrain", "sft_policy", "sft_pit", "rm_policy", "rm_gap", "rl_policy")
    config = start_from(trained, tmp_path, *names)
    add, added = ReferenceWriter.add, []

    def add_once(self, records):
        if added:
            raise Stopped
        added.append(add(self, records))

    with monkeypatch.context() as patch:
        patch.setattr(ReferenceWriter, "add", add_once)
        interrupted(config, "rl_pit")
    manifest = tmp_path / "rl_pit" / "references" / "round-1" / "manifest.json"
    assert not json.loads(manifest.read_text())["closed"]
    assert len(json.loads(manifest.read_text())["shards"]) == 1
    with monkeypatch.context() as patch:
        stop_after_record(patch, 3)
        interrupted(config, "rl_pit")
    assert "rl_pit: continues at step 1" in capsys.readouterr().out
    run = train(config, "rl_pit")
    output = capsys.readouterr().out
    assert "rl_pit: continues at step 2" in output and "sampling" not in output
    assert_same_stage(run, trained, "rl_pit")
    stores = [
        ReferenceStore(folder / "rl_pit" / "references" / "round-1")
        for folder in (tmp_path, trained)
    ]
    assert [*stores[0]] == [*stores[1]] and stores[0].fingerprint == stores[1].fingerprint


def test_references_come_from_checkpoints_and_from_pit(trained, tmp_path):
    """A round from M_P's first checkpoint, then one from M_PIT applied twice to M_P's samples."""
    names = ("pretrain", "sft_policy", "sft_pit", "rm_policy", "rm_gap", "rl_policy")
    rounds = (
        Round("checkpoint", 1, policy_step=1, sampling=SamplingConfig(0.9)),
        Round("pit", 1, improvements=2),
    )
    config = start_from(trained, tmp_path, *names)
    config = tiny_runs.with_stages(config, tiny_runs.rl("rl_pit", rounds, keep_every=1))
    run = train(config, "rl_pit")
    assert run.result("rl_pit")["steps"] == 2
    folder = tmp_path / "rl_pit" / "references"
    stores = [ReferenceStore(folder / f"round-{number}") for number in (0, 1)]
    origins = [(store.manifest["source"], store.manifest["checkpoint"]) for store in stores]
    assert origins == [("checkpoint", "rl_policy@1"), ("pit", "rl_policy@2")]

    fold, role = run.data.examples("train", "rl"), run.role("policy")
    layout, width = role.layout, role.widths
    batch_size = config.stages[-1].batch_size
    drawn = [[e for e in fold if e.index in set(store.example_indices)] for store in stores]
    assert [len(examples) for examples in drawn] == [batch_size] * 2 and len(fold) > batch_size

    def respond(model, examples, prompts, width, key, temperature):
        rows = [example.index for example in examples]
        sampling = SamplingConfig(temperature=temperature)
        responses = role.sampler.respond(model, prompts, width, rows, key, sampling)
        cut = config.lengths.reference  # what is used of a response without end
        return [role.vocabulary.text_ids(response.tokens)[:cut] for response in responses]

    examples = drawn[0]
    first = respond(
        run.load_frozen("rl_policy", 1),
        examples,
        [layout.policy_prompt(example.prompt) for example in examples],
        width.policy,
        run.key("references", "rl_pit", 0),
        0.9,
    )
    assert stores[0].example_indices == [example.index for example in examples]
    assert [record["reference_tokens"] for record in stores[0]] == first
    assert [record["text"] for record in stores[0]] == [role.vocabulary.decode(r) for r in first]

    key = run.key("references", "rl_pit", 1)
    examples = drawn[1]
    drafts = respond(
        run.load_frozen("rl_policy"),
        examples,
        [layout.policy_prompt(example.prompt) for example in examples],
        width.policy,
        key,
        1.0,
    )
    for improvement in range(2):
        drafts = respond(
            run.load_frozen("rl_pit", 1),
            examples,
            [layout.pit_prompt(e.prompt, draft) for e, draft in zip(examples, drafts)],
            width.pit,
            jax.random.fold_in(jax.random.fold_in(key, 1), improvement),
            1.0,
        )
    assert [record["reference_tokens"] for record in stores[1]] == drafts


def test_microbatches_give_the_same_training(trained, tmp_path):
    config = tiny_runs.with_stages(
        tiny_runs.config(tmp_path), tiny_runs.supervised("pretrain", 2, microbatches=2)
    )
    train(config, "pretrain")
    parts = tiny_runs.records(tmp_path / "pretrain" / "metrics.jsonl")
    whole = tiny_runs.records(trained / "pretrain" / "metrics.jsonl")
    for step in (0, 1):
        for name in ("loss", "grad_norm"):
            np.testing.assert_allclose(parts[step][name], whole[step][name], rtol=1e-5)


def test_complete_stages_are_skipped(trained, capsys):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    run = tiny_runs.on_one_device(tiny_runs.config(trained))
    pipeline.train_all(run)
    names = [stage.name for stage in run.config.stages]
    assert capsys.readouterr().out == "".join(f"{name}: complete, skipped\n" for name in names)
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def changed_pretrain(**changes):
    return lambda config: tiny_runs.with_stages(
        config, dataclasses.replace(config.stages[0], **changes)
    )


@pytest.mark.parametrize(
    ("change", "stage", "named"),
    [
        (lambda config: dataclasses.replace(config, seed=1), "rm_gap", "seed 0 -> 1"),
        (changed_pretrain(steps=5), "pretrain", "pretrain.steps 4 -> 5"),
        (changed_pretrain(steps=5), "rl_pit", "pretrain.steps 4 -> 5"),
        (
            lambda config: dataclasses.replace(
                config,
                lengths=dataclasses.replace(config.lengths, prompt=9),
                network=dataclasses.replace(config.network, rope_theta=50.0),
            ),
            "sft_pit",
            "network.rope_theta 100.0 -> 50.0; lengths.prompt 8 -> 9",
        ),
        (
            lambda config: tiny_runs.with_stages(
                config, tiny_runs.rl("rl_pit", (Round("data", 1), Round("policy", 4)))
            ),
            "rl_pit",
            "rl_pit.rounds[1].steps 3 -> 4",
        ),
    ],
    ids=["seed", "own settings", "settings it builds on", "several", "rounds"],
)
def test_changed_settings_are_refused_by_name(trained, change, stage, named):
    run = tiny_runs.on_one_device(change(tiny_runs.config(trained)))
    message = f"{trained / stage}: was started with other settings: {named}. Go back"
    with pytest.raises(UserError, match=re.escape(message)):
        pipeline.train(run, stage)


def test_how_often_to_log_may_change(trained, capsys):
    loop = dataclasses.replace(tiny_runs.LOOP, log_every=7, checkpoint_every=3)
    run = tiny_runs.on_one_device(changed_pretrain(loop=loop)(tiny_runs.config(trained)))
    pipeline.train(run, "pretrain")
    assert "skipped" in capsys.readouterr().out


def test_a_stage_that_never_began_takes_new_settings(tmp_path):
    too_large = changed_pretrain(batch_size=4096)(tiny_runs.config(tmp_path))
    with pytest.raises(UserError, match="expected at least batch_size=4096"):
        train(too_large, "pretrain")
    config = tiny_runs.with_stages(tiny_runs.config(tmp_path), tiny_runs.supervised("pretrain", 1))
    assert train(config, "pretrain").result("pretrain")["steps"] == 1


def test_a_model_is_not_read_with_another_meaning(trained, tmp_path):
    network = dataclasses.replace(tiny_runs.NETWORK, rope_theta=50.0)
    run = tiny_runs.on_one_device(tiny_runs.config(trained, network=network))
    with pytest.raises(UserError, match="pretrain: was trained with another network: got .*50.0"):
        run.load_frozen("pretrain")
    run = tiny_runs.on_one_device(tiny_runs.config(trained))
    step = {"user": "{prompt} criticise {response} {feedback}"}
    steps = {"feedback": {"user": "{prompt} {response}"}, "refine": step}
    (tmp_path / "prompts.json").write_text(json.dumps(steps))
    improve = dataclasses.replace(run.config.improve, self_refine=str(tmp_path / "prompts.json"))
    run = tiny_runs.on_one_device(tiny_runs.config(trained, improve=improve))
    with pytest.raises(UserError, match="pretrain: was trained with another vocabulary"):
        run.load_frozen("pretrain")
    bfloat16 = dataclasses.replace(tiny_runs.NETWORK, dtype="bfloat16")
    tiny_runs.on_one_device(tiny_runs.config(trained, network=bfloat16)).load_frozen("pretrain")


def test_a_stage_starts_from_one_of_another_run(trained, tmp_path):
    initial = str(trained / "pretrain")
    stage = tiny_runs.supervised("sft_policy", initial=initial)
    run = train(tiny_runs.config(tmp_path, stages=(stage,)), "sft_policy")
    records = tiny_runs.records(tmp_path / "sft_policy" / "metrics.jsonl")
    assert records == tiny_runs.records(trained / "sft_policy" / "metrics.jsonl")
    assert run.result("sft_policy")["parameters"] == run.result(initial)["parameters"]


def test_results_say_what_was_done(trained):
    run = tiny_runs.on_one_device(tiny_runs.config(trained))
    result = run.result("rl_pit")
    assert {key: result[key] for key in ("name", "task", "steps", "model_step")} == {
        "name": "rl_pit",
        "task": "rl_pit",
        "steps": 4,
        "model_step": 4,
    }
    model = run.load_frozen("rl_pit")
    assert result["parameters"] == sum(x.size for x in jax.tree.leaves(model))
    assert result["seconds"] > 0 and result["tokens"] > 0
    np.testing.assert_allclose(
        result["tokens_per_second"], result["tokens"] / result["seconds"], rtol=1e-6
    )
    for stage in run.config.stages:
        for record in map(json.loads, (trained / stage.name / "metrics.jsonl").open()):
            assert record["model_tflops_per_second"] > 0 and "mfu" not in record
    last = tiny_runs.records(trained / "rl_pit" / "metrics.jsonl")[-1]
    assert result["final"]["score"] == last["score"]
    assert any("→" in text for text in last["texts"].values())


def test_the_share_of_the_peak_is_recorded_where_the_peak_is_known(tmp_path, monkeypatch):
    monkeypatch.setitem(flops.PEAKS, "cpu", 1e9)
    both = (tiny_runs.supervised("pretrain"), tiny_runs.reward("rm_policy"))
    run = tiny_runs.on_one_device(tiny_runs.config(tmp_path, stages=both))
    pipeline.train_all(run)
    for stage, logits in zip(both, (True, False), strict=True):
        result = run.result(stage.name)
        widths = [
            jax.tree.leaves(batch)[0].shape[1]
            for batch in itertools.islice(stage_training.train_batches(run, stage, 0), stage.steps)
        ]
        done = sum(
            flops.total(flops.training_step(8, width, logits), run.config.network)
            for width in widths
        )
        seconds = result["seconds"]
        np.testing.assert_allclose(result["model_tflops_per_second"], done / seconds / 1e12)
        np.testing.assert_allclose(result["mfu"], done / seconds / 1e9)
        for record in map(json.loads, (tmp_path / stage.name / "metrics.jsonl").open()):
            assert record["mfu"] == pytest.approx(record["model_tflops_per_second"] * 1e3)


def test_ppo_starts_each_update_at_a_ratio_of_exactly_1(trained):
    for stage in ("rl_policy", "rl_pit"):
        for record in tiny_runs.records(trained / stage / "metrics.jsonl"):
            assert record["first_ratio_error"] == 0.0


def test_each_program_is_compiled_once_a_stage(trained):
    """All but what JAX does outside of programs, such as to add two numbers."""
    found = json.loads(trained.with_name("trained.compilations.json").read_text())
    assert list(found) == [stage.name for stage in tiny_runs.config("x").stages]
    supervised, reward, ppo = (
        ("step",),
        ("evaluation", "step"),
        ("collect_episodes", "update_state"),
    )
    once = {
        **dict.fromkeys(("pretrain", "sft_policy", "sft_pit"), supervised),
        **dict.fromkeys(("rm_policy", "rm_gap"), reward),
        "rl_policy": ppo,
        "rl_pit": ("advance", "begin", ppo[0], "empty", "prepared", ppo[1]),  # and references
    }
    programs = {f"jit({name})" for names in once.values() for name in names}
    assert {
        stage: sorted(name for name in names if name in programs) for stage, names in found.items()
    } == {stage: [f"jit({name})" for name in names] for stage, names in once.items()}


def test_mistakes_in_a_run_are_named(trained, tmp_path):
    run = tiny_runs.on_one_device(tiny_runs.config(tmp_path))
    with pytest.raises(UserError, match="stage: got 'sft', expected one of pretrain, sft_policy"):
        pipeline.train(run, "sft")
    with pytest.raises(UserError, match="sft_policy.*not found; train stage 'sft_policy' first"):
        pipeline.train(run, "rl_policy")
    (tmp_path / "sft_policy").mkdir()
    (tmp_path / "sft_policy" / "base.Q8_0.gguf").touch()
    with pytest.raises(UserError, match="sft_policy: has no config.json; .* name .*base.Q8_0.gguf"):
        pipeline.train(run, "rl_policy")
    with pytest.raises(UserError, match="got vocab_size=16, expected at least [0-9]+, the size of"):
        small = dataclasses.replace(tiny_runs.NETWORK, vocab_size=16)
        tiny_runs.on_one_device(tiny_runs.config(tmp_path, network=small))
    with pytest.raises(UserError, match="stage names must differ, got pretrain twice"):
        stage = tiny_runs.supervised("pretrain")
        tiny_runs.config(tmp_path, stages=(stage, stage))
    with pytest.raises(UserError, match="MODEL_DIR is empty"):
        tiny_runs.config("")
    run = tiny_runs.on_one_device(tiny_runs.config(trained))
    with pytest.raises(UserError, match="no checkpoint of step 7, there is: 1, 2"):
        run.load_frozen("rl_policy", 7)


def test_a_reward_model_of_the_other_layout_is_refused(trained, tmp_path):
    config = start_from(trained, tmp_path, "pretrain", "sft_pit", "rm_policy")
    stage = tiny_runs.rl("rl_pit", (Round("data", 1),), reward_model="rm_policy")
    message = "reward_model 'rm_policy' is of task rm_policy.*expected one of task rm_gap"
    with pytest.raises(UserError, match=message):
        train(tiny_runs.with_stages(config, stage), "rl_pit")


def test_all_stages_are_checked_before_the_first_is_trained(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(stage_training, "train", lambda run, stage: begun.append(stage.name))
    stage = tiny_runs.rl("rl_pit", (Round("data", 1),), reward_model="rm_policy")
    config = tiny_runs.with_stages(tiny_runs.config(tmp_path), stage)
    with pytest.raises(UserError, match="stage rl_pit: reward_model 'rm_policy' is of task"):
        pipeline.train_all(tiny_runs.on_one_device(config))
    assert begun == []


def test_keys_of_different_purposes_differ():
    keys = [
        jax.random.key_data(key_for(0, *purposes)).tolist()
        for purposes in ((), ("a",), ("b",), ("a", 0), ("a", 1), ("a", "b"))
    ]
    assert len({tuple(key) for key in keys}) == len(keys)
    assert jax.random.key_data(key_for(1, "a")).tolist() not in keys
