"""What a stage is trained on, from what, and how long: what its settings hand on, without training.

The run is a stand-in that records what it is asked for; `test_pipeline` trains real stages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from pit_jax.data.datasets import MixtureConfig
from pit_jax.data.layouts import Layout
from pit_jax.data.reference_store import ReferenceMeta, ReferenceStore, ReferenceWriter
from pit_jax.data.vocabularies.load import load as load_vocabulary
from pit_jax.data.vocabularies.words import ByteVocabulary, WordVocabulary
from pit_jax.errors import UserError
from pit_jax.method.curriculum import Round
from pit_jax.method.environment import Networks
from pit_jax.method.frozen import Frozen
from pit_jax.method.roles import Role
from pit_jax.method.sampler import Sampler
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel
from pit_jax.run import references, stage_training
from pit_jax.run.run import key_for
from pit_jax.runtime.loop import LoopConfig, Progress
from pit_jax.runtime.signals import Signals
from pit_jax.runtime.train_state import TrainState
from tests import tiny_runs
from tests.tiny_models import TINY, random_params

SUPERVISED = tiny_runs.supervised("sft_pit", 5, initial="pretrain")
REWARD = tiny_runs.reward("rm_gap", 5)
ROUNDS = (Round("data", 2), Round("data", 0), Round("policy", 3, policy="M_P"))
RL = tiny_runs.rl("rl_pit", ROUNDS)


class Data:
    """Records what batches are asked of it, and gives no batch."""

    config = tiny_runs.config("unused").dataset

    def __init__(self):
        self.asked = []

    def batches(self, task, split, batch_size, **options):
        self.asked.append({"task": task, "split": split, "batch_size": batch_size, **options})
        return iter(())

    def examples(self, split, fold):
        return [f"example of {split}, {fold}"]


@pytest.fixture
def run(tmp_path):
    """A run whose models are their names and steps."""

    def load(name, step=None, role=""):
        return name if step is None else f"{name}@{step}"

    config, data = tiny_runs.config(tmp_path, seed=3, network=TINY, shard_size=16), Data()
    role = Role(TINY, Layout(load_vocabulary("words:drafts")), config.lengths, None)
    return types.SimpleNamespace(
        config=config,
        data=data,
        data_of=lambda name: data,
        reward_data=lambda stage: None,
        role=lambda name: role,
        role_of=lambda stage: role,
        partitioner=types.SimpleNamespace(jit=lambda function: function),
        profile=None,
        peak=0.0,
        signals=Signals(),
        folder=lambda name: epath.Path(tmp_path) / name,
        key=functools.partial(key_for, 3),
        load=load,
        load_frozen=load,
        result=lambda name: {"model_step": 40},
        pooling=lambda name: "last",
        improver=lambda actor: f"improver with {actor}",
    )


# --- data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "fields"),
    [
        (SUPERVISED, {"task": "sft_policy"}),
        (SUPERVISED, {"batch_size": 24}),
        (REWARD, {"task": "rm_policy"}),
        (REWARD, {"batch_size": 24}),
        (RL, {"task": "rl_policy", "rounds": (Round("none", 1),)}),
        (RL, {"batch_size": 24}),
    ],
)
def test_batches_are_those_of_the_stage(run, stage, fields):
    for each in (stage, dataclasses.replace(stage, **fields)):
        stage_training.train_batches(run, each, 7, 1, "folder")
        stage_training.held_out_batches(run, each, "dev", 10)
    asked = run.data.asked
    for train, held_out, task, size in (
        (*asked[:2], stage.task, 8),
        (*asked[2:], fields.get("task", stage.task), fields.get("batch_size", 8)),
    ):
        del train["seed"]
        own = {"task": task, "batch_size": size}
        options = {"start_batch": 7, "references": "folder", "reward": None}
        assert train == own | {"split": "train"} | options
        options = {"shuffle": False, "num_epochs": 1, "limit": 10}
        assert held_out == own | {"split": "dev", **options}


def test_run_stage_and_round_each_move_the_order_of_the_data(run):
    """The task doesn't: a policy that is trained longer by another stage sees new batches."""

    def seed(stage, number=0, of_run=3):
        run.config = dataclasses.replace(run.config, seed=of_run)
        stage_training.train_batches(run, stage, 5, number)
        return run.data.asked[-1]["seed"]

    longer = dataclasses.replace(RL, name="rl_pit_longer")
    seeds = [seed(RL), seed(RL, 1), seed(RL, 2), seed(longer), seed(RL, of_run=4)]
    assert len(set(seeds)) == 5
    assert seeds == [seed(RL), seed(RL, 1), seed(RL, 2), seed(longer), seed(RL, of_run=4)]
    # How the result is computed moves nothing.
    other = dataclasses.replace(RL, offload_frozen=True, loop=LoopConfig(log_every=3))
    assert seed(other) == seeds[0]


# --- models -------------------------------------------------------------------------------------


def test_frozen_models_are_those_that_the_stage_names(run):
    stage = dataclasses.replace(RL, reference="sft", reward_model="judge")
    asked = []
    run.load_frozen = lambda name, role="": asked.append((name, role)) or name
    models = stage_training.frozen(run, stage)
    assert models(None) == Frozen({"reference": "sft", "reward": "judge"})
    assert asked == [("sft", "pit"), ("judge", "")]  # by its task a reward model is of its role


def test_frozen_models_may_wait_in_the_hosts_memory(run):
    run.load_frozen = lambda name, role="": {"w": jnp.arange(3.0) + len(name)}
    stays = stage_training.frozen(run, RL)
    waits = stage_training.frozen(run, dataclasses.replace(RL, offload_frozen=True))
    jax.tree.map(np.testing.assert_array_equal, stays(None), waits(None))
    assert stays(None) is stays(None)  # the others are brought anew
    assert waits(None).models["reward"]["w"] is not waits(None).models["reward"]["w"]


def test_each_kind_of_stage_starts_from_the_stage_that_it_names(run):
    language = random_params(LanguageModel(TINY), seed=1)
    scalar = random_params(ScalarModel(TINY), seed=2)
    asked = []
    run.load = lambda name, role: asked.append(role) or {"base": language}[name]
    optimizer = tiny_runs.OPTIMIZER.build()
    state = TrainState.create({"own": jnp.zeros(1)}, optimizer)
    stage = dataclasses.replace(SUPERVISED, initial="base")
    assert stage_training.start_from(run, stage, state).params is language
    assert stage_training.start_from(run, dataclasses.replace(stage, initial=""), state) is state
    state = TrainState.create(scalar, optimizer)
    stage = dataclasses.replace(REWARD, initial="base")
    params = stage_training.start_from(run, stage, state).params
    assert params["decoder"]["embed"] is language["decoder"]["embed"]
    assert params["head"] is scalar["head"]
    assert asked == ["pit", "gap_reward"]


@pytest.mark.parametrize("critic_start", ["reward", "actor"])
def test_ppo_starts_from_its_initial_model_with_the_critic_that_is_asked_for(run, critic_start):
    models = {
        "start": random_params(LanguageModel(TINY), seed=1),
        "judge": random_params(ScalarModel(TINY), seed=2),
    }
    run.load = lambda name, role="": models[name]
    ppo = dataclasses.replace(tiny_runs.PPO, critic_start=critic_start)
    stage = dataclasses.replace(RL, initial="start", reward_model="judge", ppo=ppo)
    own = random_params(ScalarModel(TINY), seed=3)
    train = TrainState.create({"actor": {}, "critic": own}, tiny_runs.OPTIMIZER.build())
    state = stage_training.ppo_step.RLState(train, jnp.float32(0), None)
    params = stage_training.start_from(run, stage, state).train.params
    assert params["actor"] is models["start"]
    embedding = params["critic"]["decoder"]["embed"]["embedding"]
    source = models["judge" if critic_start == "reward" else "start"]
    np.testing.assert_array_equal(embedding, source["decoder"]["embed"]["embedding"])
    assert np.any(params["critic"]["head"]["kernel"]) == (critic_start == "reward")


# --- references ---------------------------------------------------------------------------------


def sampled(run, monkeypatch, number, round_, stage=RL):
    """What `curriculum.sample_references` is given, and the store's manifest."""
    given = {}

    def sample_references(round_, writer, examples, **options):
        given.update(options, round_=round_, examples=examples)
        record = {"reference_tokens": [5], "text": "x", "ended": True}
        writer.add([{"index": index, **record} for index in range(20)])
        writer.close()

    monkeypatch.setattr(references.curriculum, "sample_references", sample_references)
    folder = references.sample_references(run, stage, number, round_, "actor")
    given["key"] = tuple(jax.random.key_data(given["key"]).tolist())
    return given, ReferenceStore(folder).manifest


def test_references_of_a_pit_round_are_of_the_model_that_it_begins_with(run, monkeypatch):
    """As after an explosion, where steps before the round are done again at a lower rate."""
    round_ = Round(steps=1, source="pit", policy="M_P")
    one, other = {"w": jnp.ones(3)}, {"w": jnp.full(3, 2.0)}
    sample = functools.partial(references.sample_references, run, RL, 1, round_)
    monkeypatch.setattr(
        references.curriculum, "sample_references", lambda _, writer, *more, **o: writer.close()
    )
    for _ in range(2):
        folder = sample(one, begins=True)
    assert len(ReferenceStore(folder).manifest["model"]) == 32
    with pytest.raises(
        UserError, match="holds a reference store with model='.* to sample the refe"
    ):
        sample(other, begins=True)
    assert sample(other) == folder  # later in the round the model has learned
    before = references.sample_references(run, RL, 3, round_, one)  # by whom isn't known
    assert references.sample_references(run, RL, 3, round_, other, True) == before
    assert references.sample_references(run, RL, 2, Round("policy", 1), one, True) != folder


@pytest.mark.parametrize(
    ("fields", "policy", "checkpoint"),
    [
        ({"source": "policy"}, "rl_policy@40", "rl_policy@40"),
        ({"source": "pit", "policy": "M_P"}, "M_P@40", "M_P@40"),
        ({"source": "checkpoint", "policy_step": 7}, "rl_policy@7", "rl_policy@7"),
    ],
)
def test_references_come_from_the_policy_and_the_step_that_the_round_names(
    run, monkeypatch, fields, policy, checkpoint
):
    round_ = Round(steps=1, **fields)
    given, manifest = sampled(run, monkeypatch, 1, round_)
    assert given["round_"] is round_ and given["policy"] == policy
    assert given["improver"] == "improver with actor"
    assert given["examples"] == ["example of train, rl"] and given["shard_size"] == 16
    told = {name: manifest[name] for name in ("round", "source", "checkpoint", "seed")}
    expected = {"round": 1, "source": round_.source, "checkpoint": checkpoint, "seed": 3}
    assert told == expected
    assert [shard["count"] for shard in manifest["shards"]] == [16, 4]


@pytest.mark.parametrize("mixed", [False, True])
def test_a_round_samples_for_as_many_prompts_as_its_steps_use(run, monkeypatch, mixed):
    """A mixture's rates may ask for all of a small dataset again and again."""
    fold = [f"example {number}" for number in range(100)]
    monkeypatch.setattr(run.data, "examples", lambda *_: fold)
    if mixed:
        monkeypatch.setattr(run.data, "config", MixtureConfig((Data.config,) * 2, (1.0, 2.0)))
    given, manifest = sampled(run, monkeypatch, 1, Round("policy", steps=3))
    count = 100 if mixed else 3 * RL.batch_size
    assert manifest["prompts"] == len(given["examples"]) == count
    assert [each for each in fold if each in given["examples"]] == given["examples"]


def test_run_stage_and_round_each_move_the_references(run, monkeypatch):
    round_, keys = Round("policy", 1), []
    for number, (name, seed) in enumerate((("a", 3), ("a", 3), ("b", 3), ("b", 4))):
        run.key = functools.partial(key_for, seed)
        stage = dataclasses.replace(RL, name=name)
        keys.append(sampled(run, monkeypatch, number, round_, stage)[0]["key"])
    assert len(set(keys)) == 4
    expected = jax.random.key_data(key_for(3, "references", "a", 0)).tolist()
    assert keys[0] == tuple(expected)


# --- the loop -----------------------------------------------------------------------------------


@pytest.fixture
def trained(run, monkeypatch):
    """Trains a stage with a loop that takes no step; returns all that was recorded of it."""
    found = {"fits": []}

    class Checkpoints:
        def __init__(self, folder, keep_every, stage):
            assert folder.parent.name == stage
            found.update(folder=folder, keep_every=keep_every)

        def latest_step(self):
            return None

        def check_saved(self):
            found["checked"] = found["fits"][-1]["stop"]

        def close(self):
            pass

    def create_state(stage, networks, partitioner, key):
        found["key"] = tuple(jax.random.key_data(key).tolist())
        return types.SimpleNamespace(train=types.SimpleNamespace(params={"actor": "actor"}))

    def fit(state, step, batches, progress, stop, loop, **options):
        found["fits"].append({"step": step, "stop": stop, "loop": loop, **options})
        progress.step = stop
        return state

    def make_step(loss, partitioner, microbatches):
        found["microbatches"] = microbatches
        return "step"

    for name, value in (
        ("Checkpoints", Checkpoints),
        ("start_from", lambda run, stage, state: state),
        ("make_ppo_step", lambda run, stage: "ppo step"),
        ("sample_references", lambda run, stage, number, *rest: f"store of round {number}"),
        ("_writer", lambda *arguments: contextlib.nullcontext()),
        ("_finish", lambda run, stage, state, progress: found.update(steps=progress.step)),
    ):
        monkeypatch.setattr(stage_training, name, value)
    monkeypatch.setattr(stage_training.stages, "create_state", create_state)
    monkeypatch.setattr(stage_training.loop, "fit", fit)
    monkeypatch.setattr(stage_training.supervised_step, "make_step", make_step)

    def train(stage):
        found["fits"].clear()
        stage_training.train(run, stage)
        return dict(found, fits=list(found["fits"]))

    return train


@pytest.mark.parametrize("stage", [SUPERVISED, REWARD, RL], ids=lambda stage: stage.name)
def test_a_stage_goes_on_with_its_loop_in_its_folder(run, trained, stage):
    for name, every in (("mine", 3), ("another", 4)):
        loop = LoopConfig(log_every=every, checkpoint_every=5, eval_every=7)
        found = trained(dataclasses.replace(stage, name=name, loop=loop))
        assert all(fit["loop"] == loop for fit in found["fits"])
        assert found["folder"] == run.folder(name) / "checkpoints"


@pytest.mark.parametrize("stage", [SUPERVISED, REWARD], ids=lambda stage: stage.name)
def test_a_stage_goes_on_for_its_steps_in_its_parts(trained, stage):
    for steps, parts in ((11, 4), (12, 2)):
        found = trained(dataclasses.replace(stage, steps=steps, microbatches=parts))
        (fit,) = found["fits"]
        assert (fit["stop"], found["steps"], found["microbatches"]) == (steps, steps, parts)
        assert (found["keep_every"], fit["keep_every"]) == (0, 0)
        assert (fit["held_out"] is None) == (stage is SUPERVISED)
        assert found["checked"] == steps


def test_the_random_start_follows_the_seed_and_the_task(run, trained):
    """Stages of one task, as ablations are, start alike."""
    keys = [trained(stage)["key"] for stage in (SUPERVISED, REWARD, SUPERVISED)]
    again = dataclasses.replace(SUPERVISED, name="again", steps=2)
    assert trained(again)["key"] == keys[0] == keys[2] != keys[1]
    run.key = functools.partial(key_for, 4)
    assert trained(SUPERVISED)["key"] not in keys


def test_a_reward_model_is_evaluated_on_as_many_pairs_as_are_held_out(run, trained, monkeypatch):
    monkeypatch.setattr(
        stage_training.supervised_step, "evaluate", lambda loss, params, batches, _: batches
    )
    found = trained(dataclasses.replace(REWARD, held_out=10))
    (fit,) = found["fits"]
    fit["held_out"](types.SimpleNamespace(params=None))
    assert (run.data.asked[-1]["split"], run.data.asked[-1]["limit"]) == ("dev", 10)


def test_each_round_has_its_steps_its_batches_and_its_references(run, trained):
    found = trained(dataclasses.replace(RL, keep_every=6))
    assert [fit["stop"] for fit in found["fits"]] == [2, 5]
    assert (found["keep_every"], found["fits"][0]["keep_every"]) == (6, 6)
    assert {fit["step"] for fit in found["fits"]} == {"ppo step"}
    asked = run.data.asked
    assert [each["references"] for each in asked] == ["data", "store of round 2"]
    assert [each["start_batch"] for each in asked] == [0, 0]
    assert asked[0]["seed"] != asked[1]["seed"]


def test_a_round_that_was_interrupted_goes_on_at_its_own_batch(run, trained):
    progress = Progress(step=3)
    fits = []

    def fit(state, step, batches, stop):
        fits.append(stop)
        progress.step = stop
        return state

    state = types.SimpleNamespace(train=types.SimpleNamespace(params={"actor": "actor"}))
    stage_training._train_rl(run, RL, state, fit, progress)
    assert fits == [5] and [each["start_batch"] for each in run.data.asked] == [1]


def test_ppo_has_the_stages_settings_and_a_key_of_its_own(run, monkeypatch):
    found = []
    monkeypatch.setattr(stage_training.ppo_step, "make_step", lambda *given: found.append(given))
    monkeypatch.setattr(stage_training, "frozen", lambda run, stage: "frozen")
    vocabulary = types.SimpleNamespace(
        sampled_ids=lambda size: f"{size} ids", readable="readable", ends=(1, 7)
    )
    role = types.SimpleNamespace(widths=tiny_runs.LENGTHS, vocabulary=vocabulary, network=TINY)
    run.role_of = run.role = lambda each: role
    run.pooling, run.anchor = {"judge": "sum"}.get, {"judge": 2.5}.get
    ppo = dataclasses.replace(tiny_runs.PPO, gamma=0.5)
    for name, seed in (("a", 3), ("b", 3), ("a", 4), ("a", 3)):
        run.key = functools.partial(key_for, seed)
        stage = dataclasses.replace(RL, name=name, ppo=ppo, reward_model="judge")
        stage_training.make_ppo_step(run, stage)
    for networks, config, environment, partitioner, frozen, _, decode, translate in found:
        assert (networks, config, frozen) == (Networks.same(TINY), ppo, "frozen")
        assert (decode, translate) == ("readable", None)
        assert partitioner is run.partitioner
        assert dataclasses.astuple(environment) == (13, "sum", 2.5, False, "16 ids", (1, 7))
    keys = [tuple(jax.random.key_data(given[5]).tolist()) for given in found]
    assert len(set(keys)) == 3 and keys[3] == keys[0]
    # A difference of two scores has its zero at 0, wherever the scores have theirs.
    stage_training.make_ppo_step(run, dataclasses.replace(stage, task="rl_pit_difference"))
    assert (found[-1][2].anchor, found[-1][2].difference) == (0, True)


def test_a_reward_model_of_another_vocabulary_reads_what_the_actor_said(run):
    """Nine bytes hold eight and the end; two of the actor's ids end a response."""
    words, letters = WordVocabulary(["abc", "c", "d"]), ByteVocabulary()
    words.ends = (1, 4)
    actor = Role(TINY, Layout(words), tiny_runs.LENGTHS, None)
    lengths = dataclasses.replace(tiny_runs.LENGTHS, response=9)
    reward = Role(TINY, Layout(letters), lengths, Sampler(TINY, None, 9, 8))
    run.role_of = lambda stage: actor
    run.role = {"gap_reward": reward}.get
    tokens = np.array(
        [
            [3, 5, 1, 0],  # abc d, ended
            [3, 5, 4, 0],  # the same, by another end
            [3, 5, 3, 5],  # eleven bytes, not ended and cut
            [3, 3, 3, 1],  # eleven, ended and cut
            [5, 5, 5, 5],  # seven, not ended
            [1, 0, 0, 0],  # nothing
        ]
    )
    mask = np.array([[1, 1, 1, 0]] * 2 + [[1] * 4] * 3 + [[1, 0, 0, 0]], bool)
    generation = types.SimpleNamespace(tokens_BR=tokens, mask_BR=mask)
    found = stage_training.translation(run, RL)(generation)
    expected = np.zeros((6, 9), int)
    texts = ("abc d", "abc d", "abc d abc", "abc abc a", "d d d d", "")
    for row, text in enumerate(texts):
        read = [byte + 3 for byte in text.encode()] + [1] * (row in (0, 1, 5))
        expected[row, : len(read)] = read
    np.testing.assert_array_equal(found["reward_response_tokens"], expected)
    np.testing.assert_array_equal(found["reward_response_mask"], expected > 0)
    assert found["reward_response_mask"].dtype == np.float32
    # With its own vocabulary it reads the ids themselves.
    run.role = {"gap_reward": actor}.get
    assert stage_training.translation(run, RL) is None


def test_batches_have_what_the_reward_model_reads_where_that_is_other_ids(run):
    run.reward_data = lambda stage: f"data of the reward model of {stage.name}"
    stage_training.train_batches(run, RL, 0)
    assert run.data.asked[-1]["reward"] == "data of the reward model of rl_pit"


# --- metrics ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "more"),
    [
        ({}, []),
        ({"tensorboard": True}, ["tensorboard at 4"]),
        ({"wandb_project": "mine"}, ["wandb in mine"]),
    ],
)
def test_metrics_go_where_the_run_says(run, monkeypatch, fields, more):
    lib = stage_training.metrics_lib
    monkeypatch.setattr(lib, "MetricWriter", lambda *writers: list(writers))
    monkeypatch.setattr(
        stage_training.records,
        "open_together",
        lambda path, *_: types.SimpleNamespace(name=path.name, written=lambda: {"count": 0}),
    )
    monkeypatch.setattr(lib, "Console", lambda name, steps, shown, step: f"{name}, {steps} steps")
    monkeypatch.setattr(lib, "TensorBoardWriter", lambda folder, step: f"{folder.name} at {step}")
    monkeypatch.setattr(lib, "WandbWriter", lambda project, *rest: f"wandb in {project}")
    run.config = dataclasses.replace(run.config, **fields)
    jsonl, *found = stage_training._writer(run, SUPERVISED, Progress(step=4))
    assert jsonl.name == "metrics.jsonl" and found == ["sft_pit, 5 steps", *more]


# --- results ------------------------------------------------------------------------------------


def test_what_counts_as_0_by_hand():
    """Of R_P the mean score of y_w; of R_PIT that of a response which is its own reference."""
    held_out = {"mean_score": 2.0, "margin": 1.0, "mean_ww": -1.0, "mean_ll": 4.0}
    assert stage_training.anchor(tiny_runs.reward("rm_policy"), held_out) == 2.5
    assert stage_training.anchor(tiny_runs.reward("rm_gap"), held_out) == 1.5


def test_the_result_of_a_reward_model_is_that_of_its_best_step(run):
    folder = run.folder("rm_gap")
    folder.mkdir()
    record = {"step": 6, "loss": 1.5, "held_out_mean_ww": 9.0}
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    best = {"accuracy": 0.75, "mean_ww": 1.0, "mean_ll": 2.0, "step": 4}
    progress = Progress(step=6, seconds=2.0, tokens=8.0, best=best)
    state = types.SimpleNamespace(params={"w": jnp.zeros((2, 3))})
    stage_training._finish(run, tiny_runs.reward("rm_gap"), state, progress)
    result = json.loads((folder / "result.json").read_text())
    assert (result["steps"], result["model_step"], result["anchor"]) == (6, 4, 1.5)
    assert (result["pooling"], result["parameters"]) == ("sum", 6)
    line = hashlib.sha256(json.dumps(record).encode() + b"\n").hexdigest()
    assert result["records"] == {"count": 1, "sha256": line} and result["final"]["loss"] == 1.5


def test_a_critic_that_starts_as_the_actor_has_buffers_of_its_own(run):
    """A step donates its state, and what is donated must not be there twice."""
    actor = random_params(LanguageModel(TINY), seed=1)
    params = {"actor": actor, "critic": random_params(ScalarModel(TINY), seed=2)}
    train = TrainState.create(params, optax.identity())
    state = stage_training.ppo_step.RLState(train, jnp.float32(0), None)
    ppo = dataclasses.replace(tiny_runs.PPO, critic_start="actor")
    run.load = lambda name, role: actor
    started = stage_training.start_from(run, dataclasses.replace(RL, ppo=ppo), state)
    leaves = jax.tree.leaves(started.train.params)
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


def test_references_that_a_model_has_learnt_from_are_not_sampled_anew(tmp_path):
    run = types.SimpleNamespace(folder=lambda name: epath.Path(tmp_path) / name)
    folder = tmp_path / "rl_pit" / "references" / "round-2"
    told = (
        f"{folder}: isn't whole any more, .* or delete {tmp_path}/rl_pit to train the stage again"
    )
    with pytest.raises(UserError, match=told):
        references.check_sampled(run, RL, 2)
    writer = ReferenceWriter(folder, 2, ReferenceMeta(2, "pit", "rl_pit@0", 0, 1))
    writer.add([{"index": 0, "reference_tokens": [5], "text": "a", "ended": True}])
    with pytest.raises(UserError, match=told):
        references.check_sampled(run, RL, 2)
    writer.close()
    references.check_sampled(run, RL, 2)
