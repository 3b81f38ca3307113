"""What a stage is trained with: its batches, its models, its keys, its score that counts as 0."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import optax
import pytest
from etils import epath

from pit_jax.data.input_pipeline import DATA_REFERENCES
from pit_jax.method import curriculum, ppo, ppo_step
from pit_jax.method.curriculum import Round
from pit_jax.method.ppo_step import RLState
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel
from pit_jax.run import stage_training
from pit_jax.runtime import loop
from pit_jax.runtime.train_state import TrainState
from tests import tiny_runs
from tests.tiny_models import TINY, random_params

ROUNDS = (Round("data", 2), Round("policy", 3, policy="other", policy_step=0))
PIT = tiny_runs.rl("rl_pit", ROUNDS, initial="longer", reference="sft", reward_model="rm")


def fake_run(folder="unused", **given):
    """A run that gives names and purposes in place of models and keys."""
    fields = {
        "config": dataclasses.replace(tiny_runs.config("unused"), seed=3),
        "folder": lambda name: epath.Path(folder) / name,
        "load_frozen": lambda *model: model,
        "key": lambda *purposes: purposes,
        "pooling": lambda stage: f"pooling of {stage}",
        "anchor": lambda stage: f"anchor of {stage}",
        "result": lambda name: {"model_step": 40},
        "peak": 0.0,
        "partitioner": "mesh",
        "vocabulary": types.SimpleNamespace(sampled_ids=lambda size: f"{size} ids", decode=str),
        "layout": types.SimpleNamespace(widths=lambda lengths: types.SimpleNamespace(response=13)),
        "signals": types.SimpleNamespace(training=contextlib.nullcontext),
        "improver": lambda actor: f"improver with {actor}",
        "data": types.SimpleNamespace(examples=lambda *part: part),
    }
    return types.SimpleNamespace(**(fields | given))


def asked(seed=3, stage=PIT, start_batch=5, round_number=1):
    """The settings of a stage's batches."""
    found = []
    data = types.SimpleNamespace(batches=lambda *names, **options: found.append((names, options)))
    run = fake_run(config=dataclasses.replace(tiny_runs.config("unused"), seed=seed), data=data)
    stage_training.train_batches(run, stage, start_batch, round_number, "store")
    return found[0]


def test_batches_are_those_of_the_task_from_where_the_stage_is():
    names, options = asked()
    assert names == ("rl_pit", "train", 8)
    assert {**options, "seed": 0} == {"seed": 0, "start_batch": 5, "references": "store"}


def test_seed_stage_and_round_each_move_the_order_of_batches():
    """A policy that is trained longer, the control, is to see others than the policy saw."""
    longer = dataclasses.replace(PIT, name="rl_pit_longer")
    calls = (asked(), asked(seed=4), asked(stage=longer), asked(round_number=0), asked())
    seeds = [options["seed"] for _, options in calls]
    assert len(set(seeds)) == 4 and seeds[0] == seeds[4]


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, [(0, 0, DATA_REFERENCES, 2), (0, 1, "store 1", 5)]),
        (1, [(1, 0, DATA_REFERENCES, 2), (0, 1, "store 1", 5)]),
        (3, [(1, 1, "store 1", 5)]),
    ],
)
def test_a_round_goes_on_at_its_own_batch_with_its_own_references(step, expected, monkeypatch):
    def batches(run, stage, start, number=0, references=DATA_REFERENCES):
        return start, number, references

    monkeypatch.setattr(stage_training, "make_ppo_step", lambda run, stage: "step")
    monkeypatch.setattr(stage_training, "train_batches", batches)
    monkeypatch.setattr(
        stage_training, "sample_references", lambda run, stage, number, *_: f"store {number}"
    )
    progress, found = loop.Progress(step=step), []

    def fit(state, step, batches, stop):
        found.append((*batches, stop))
        progress.step = stop
        return state

    state = types.SimpleNamespace(train=types.SimpleNamespace(params={"actor": "M_PIT"}))
    stage_training._train_rl(fake_run(), PIT, state, fit, progress)
    assert found == expected


def test_ppo_has_the_models_and_settings_of_its_stage(monkeypatch):
    monkeypatch.setattr(ppo_step, "make_step", lambda *given: given)
    network, config, environment, mesh, frozen, key, _ = stage_training.make_ppo_step(
        fake_run(), PIT
    )
    assert (network, config, mesh) == (tiny_runs.NETWORK, PIT.ppo, "mesh")
    assert dataclasses.asdict(environment) == {
        "response_length": 13,
        "pooling": "pooling of rm",
        "anchor": "anchor of rm",
        "allowed_V": "64 ids",
    }
    assert frozen(None) == {"reference": ("sft",), "reward": ("rm",)}
    assert key == ("ppo", "rl_pit")
    *_, other, _ = stage_training.make_ppo_step(fake_run(), dataclasses.replace(PIT, name="again"))
    assert other != key


def test_references_are_sampled_from_the_rounds_checkpoint_with_its_key(tmp_path, monkeypatch):
    found = []

    def sample_references(round_, writer, examples, **given):
        found.append((examples, given))
        writer.close()

    monkeypatch.setattr(curriculum, "sample_references", sample_references)
    run = fake_run(tmp_path)
    for number, round_ in enumerate((ROUNDS[1], Round("checkpoint", 1, "other", policy_step=7))):
        stage_training.sample_references(run, PIT, number, round_, "M_PIT")
    for number, (examples, given) in enumerate(found):
        assert examples == ("train", "rl")
        assert given == {
            "policy": ("other", (40, 7)[number]),
            "improver": "improver with M_PIT",
            "key": ("references", "rl_pit", number),
            "shard_size": 16,
        }
    assert len(found) == 2


def test_what_counts_as_0_by_hand():
    """Of R_P the mean score of y_w; of R_PIT that of a response which is its own reference."""
    held_out = {"mean_score": 2.0, "margin": 1.0, "mean_ww": -1.0, "mean_ll": 4.0}
    assert stage_training.anchor(tiny_runs.reward("rm_policy"), held_out) == 2.5
    assert stage_training.anchor(tiny_runs.reward("rm_gap"), held_out) == 1.5


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (tiny_runs.supervised("sft_pit"), (None, 0)),
        (tiny_runs.reward("rm_gap"), ("accuracy", 0)),
        (tiny_runs.rl("rl_pit", ROUNDS, keep_every=3), (None, 3)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_checkpoints_that_are_kept(stage, expected, monkeypatch):
    found = []

    def checkpoints(folder, best, keep_every):
        found.append((best, keep_every))
        return types.SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(stage_training, "Checkpoints", checkpoints)
    monkeypatch.setattr(stage_training, "_fit", lambda *_: (None, None))
    monkeypatch.setattr(stage_training, "_finish", lambda *_: None)
    stage_training.train(fake_run(), stage)
    assert found == [expected]


def test_the_result_of_a_reward_model_is_that_of_its_best_step(tmp_path):
    (tmp_path / "rm_gap").mkdir()
    record = {"step": 6, "loss": 1.5, "held_out_mean_ww": 9.0}
    (tmp_path / "rm_gap" / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    best = {"accuracy": 0.75, "mean_ww": 1.0, "mean_ll": 2.0, "step": 4}
    progress = loop.Progress(step=6, seconds=2.0, tokens=8.0, best=best)
    state = types.SimpleNamespace(params={"w": jnp.zeros((2, 3))})
    stage_training._finish(fake_run(tmp_path), tiny_runs.reward("rm_gap"), state, progress)
    result = json.loads((tmp_path / "rm_gap" / "result.json").read_text())
    assert (result["steps"], result["model_step"], result["anchor"]) == (6, 4, 1.5)
    assert (result["pooling"], result["parameters"]) == ("sum", 6)


def test_a_critic_that_starts_as_the_actor_has_buffers_of_its_own():
    """A step donates its state, and what is donated must not be there twice."""
    actor = random_params(LanguageModel(TINY), seed=1)
    params = {"actor": actor, "critic": random_params(ScalarModel(TINY), seed=2)}
    train = TrainState.create(params, optax.identity())
    state = RLState(train, jnp.float32(0), ppo.Moments.zero())
    stage = dataclasses.replace(PIT, ppo=ppo.PPOConfig(critic_start="actor"))
    started = stage_training.start_from(fake_run(load=lambda name: actor), stage, state)
    leaves = jax.tree.leaves(started.train.params)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
