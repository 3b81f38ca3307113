"""What a run makes of its configuration: which field reaches what, and keys of its seed."""

from __future__ import annotations

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from pit_jax.data import flat_arrays
from pit_jax.data.batching import BatchingConfig
from pit_jax.data.datasets import DatasetConfig
from pit_jax.data.input_pipeline import InputPipeline
from pit_jax.data.layouts import Lengths
from pit_jax.data.vocabularies.load import load
from pit_jax.errors import UserError
from pit_jax.method.environment import Networks
from pit_jax.method.improve import ImproveConfig
from pit_jax.method.prompt_files import Step
from pit_jax.method.roles import ROLES
from pit_jax.run import loading, pipeline
from pit_jax.run import run as runs
from pit_jax.run.config import RoleConfig
from pit_jax.run.stages import role_of
from pit_jax.runtime.partitioning import MeshConfig
from tests import tiny_runs

BASE = tiny_runs.config("base")


@pytest.fixture
def made(monkeypatch):
    """Makes a run of a configuration; returns what its parts were made of."""
    seen = {}
    vocabulary = load("words:drafts")

    def load_vocabulary(spec, extra, control_tokens, eos_token, pad_token, chat_template):
        seen["vocabulary"] = {
            "vocabulary": spec,
            "words": extra,
            "control_tokens": control_tokens,
            "eos_token": eos_token,
            "pad_token": pad_token,
            "chat_template": chat_template,
        }
        return vocabulary

    def pipeline(dataset, vocabulary, lengths, batching, beside, cache):
        assert beside == []  # nobody else's windows
        seen["data"] = {"dataset": dataset, "lengths": lengths, "batching": batching}
        return types.SimpleNamespace(beside=beside)

    def sampler(network, partitioner, response_length, batch_size, allowed_V, ends):
        seen["sampler"] = {
            "network": network,
            "response": response_length,
            "sampling_batch": batch_size,
            "allowed": allowed_V.shape,
            "ends": ends,
        }

    monkeypatch.setattr(loading, "load_vocabulary", load_vocabulary)
    monkeypatch.setattr(runs, "InputPipeline", pipeline)
    monkeypatch.setattr(runs, "Sampler", sampler)
    monkeypatch.setattr(runs.flops, "peak", lambda kinds: 0.0)

    class Mesh:
        def __init__(self, mesh, devices):
            seen["mesh"] = mesh
            self.mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))

    monkeypatch.setattr(runs, "Partitioner", Mesh)

    def make(**fields):
        seen.clear()
        run = runs.Run(dataclasses.replace(BASE, **fields))
        assert run.data is run.data  # made once, when it is asked for
        found = {**seen.pop("vocabulary"), **seen.pop("data"), **seen.pop("sampler"), **seen}
        found["directory"] = str(run.directory)
        found["key"] = jax.random.key_data(run.key("x")).tolist()
        found["stages"] = tuple(run.stage(stage.name) for stage in run.config.stages)
        return found

    return make


@pytest.mark.parametrize(
    ("fields", "moves"),
    [
        ({"model_dir": "other"}, {"directory"}),
        ({"seed": 5}, {"key"}),
        (
            {"network": dataclasses.replace(BASE.network, vocab_size=128)},
            {"network", "allowed"},
        ),
        ({"vocabulary": "bytes"}, {"vocabulary"}),
        ({"dataset": dataclasses.replace(BASE.dataset, seed=1)}, {"dataset"}),
        ({"lengths": dataclasses.replace(BASE.lengths, response=9)}, {"lengths", "response"}),
        ({"stages": BASE.stages[:2]}, {"stages"}),
        ({"control_tokens": ("<a>", "<b>")}, {"control_tokens"}),
        ({"eos_token": "</s>"}, {"eos_token"}),
        ({"pad_token": "<pad>"}, {"pad_token"}),
        ({"chat_template": "tokenizer"}, {"chat_template"}),
        ({"batching": BatchingConfig(length_buckets=3)}, {"batching"}),
        ({"mesh": MeshConfig(model=2)}, {"mesh"}),
        ({"sampling_batch": 24}, {"sampling_batch"}),
        ({"improve": ImproveConfig(self_refine="dialogue")}, {"words"}),
        # What only stages or commands ask for.
        ({"improve": ImproveConfig(iterations=7)}, set()),
        ({"shard_size": 5}, set()),
        ({"tensorboard": True}, set()),
        ({"wandb_project": "mine"}, set()),
    ],
    ids=lambda names: ",".join(sorted(names)),
)
def test_each_field_reaches_what_it_is_of(made, fields, moves):
    before, after = made(), made(**fields)
    assert {name for name in before if before[name] != after[name]} == moves
    for name in set(fields) & set(after):
        assert after[name] == fields[name]


OTHER = RoleConfig(
    network=dataclasses.replace(BASE.network, vocab_size=300, num_layers=3),
    vocabulary="mine",
    lengths=dataclasses.replace(BASE.lengths, response=40),
    control_tokens=("<a>", "<b>"),
    eos_token="</s>",
    pad_token="<pad>",
    chat_template="tokenizer",
)


@pytest.mark.parametrize("name", ROLES)
def test_each_field_of_a_role_reaches_its_models_alone(name, monkeypatch):
    loaded = []

    def load_vocabulary(spec, words, *others):
        loaded.append((spec, *others))
        return load("bytes") if spec == "mine" else load("words:drafts")

    monkeypatch.setattr(loading, "load_vocabulary", load_vocabulary)
    monkeypatch.setattr(runs, "Sampler", lambda *given: given)
    run = tiny_runs.on_one_device(dataclasses.replace(BASE, **{name: OTHER}))
    mine = ("mine", ("<a>", "<b>"), "</s>", "<pad>", "tokenizer")
    assert sorted(loaded) == [mine, ("words:drafts", (), "", "", "none")]
    others = {role: run.role(role) for role in ROLES if role != name}
    (theirs,) = set(others.values())
    own = run.role(name)
    assert (own.network, own.lengths) == (OTHER.network, OTHER.lengths)
    assert (theirs.network, theirs.lengths) == (BASE.network, BASE.lengths)
    assert own.vocabulary == load("bytes") and theirs.vocabulary == load("words:drafts")
    for role, response, size in ((own, 40, 300), (theirs, 13, 64)):
        assert role.sampler[0] is role.network
        assert role.sampler[2:4] == (response, BASE.sampling_batch)
        np.testing.assert_array_equal(role.sampler[4], role.vocabulary.sampled_ids(size))
    # Stages of its tasks are of it, and windows that it doesn't say are the run's.
    for stage in BASE.stages:
        assert run.role_of(stage) is run.role_of(stage.name) is run.role(role_of(stage))
    plain = dataclasses.replace(BASE, **{name: dataclasses.replace(OTHER, lengths=None)})
    assert plain.of_role(name).windows == BASE.lengths


def test_without_roles_of_their_own_all_models_are_of_one():
    run = tiny_runs.on_one_device(BASE)
    assert len({run.role(name) for name in ROLES}) == 1 and run.data_of("pit") is run.data
    assert all(run.reward_data(stage) is None for stage in BASE.stages)
    with pytest.raises(KeyError):
        run.role("network")


def test_networks_of_ppo_are_those_of_its_roles():
    """The critic has that of what it starts from."""
    config = dataclasses.replace(BASE, gap_reward=OTHER)
    stages = {stage.name: stage for stage in BASE.stages}
    from_actor = dataclasses.replace(tiny_runs.PPO, critic_start="actor")
    of_actor = dataclasses.replace(stages["rl_pit"], ppo=from_actor)
    small, large = BASE.network, OTHER.network
    assert config.networks(stages["rl_pit"]) == Networks(small, large, large)
    assert config.networks(of_actor) == Networks(small, small, large)
    assert config.networks(stages["rl_policy"]) == Networks.same(small)
    assert config.networks(stages["rm_gap"]) == Networks.same(large)
    difference = dataclasses.replace(of_actor, task="rl_pit_difference", reward_model="rm_policy")
    assert config.networks(difference) == Networks.same(small)


def test_the_data_of_a_role_fits_the_windows_of_all(monkeypatch):
    """The pipelines of both vocabularies know each other's; roles of one share it."""
    made = []

    def pipeline(dataset, vocabulary, lengths, batching, beside, cache):
        made.append((vocabulary, lengths, beside))
        return types.SimpleNamespace(beside=beside)

    monkeypatch.setattr(runs, "InputPipeline", pipeline)
    other = RoleConfig(OTHER.network, "bytes", OTHER.lengths)
    run = tiny_runs.on_one_device(dataclasses.replace(BASE, gap_reward=other))
    stages = {stage.name: stage for stage in BASE.stages}
    words = (run.role("policy").vocabulary, BASE.lengths)
    letters = (load("bytes"), OTHER.lengths)
    assert run.data is run.data_of("pit") is run.data_of("policy_reward")
    assert run.reward_data(stages["rl_pit"]) is run.data_of("gap_reward")
    assert made == [(*words, [letters]), (*letters, [words])]
    for name in ("rl_policy", "rm_gap", "sft_pit"):
        assert run.reward_data(stages[name]) is None


def test_each_role_may_find_windows_of_its_own(tmp_path):
    """Of the same texts, in words and in bytes: a text has at least as many of these."""
    lengths = Lengths(prompt=0, reference=0, response=0)
    other = RoleConfig(OTHER.network, "bytes")
    config = tiny_runs.config(tmp_path, lengths=lengths, pit=other)
    run = tiny_runs.on_one_device(config)
    assert run.finds_windows
    words, letters = run.role("policy").lengths, run.role("pit").lengths
    assert run.config.lengths == words and run.config.pit.lengths == letters
    for vocabulary, windows in (("words:drafts", words), ("bytes", letters)):
        assert InputPipeline(config.dataset, load(vocabulary), lengths).lengths == windows
    assert letters.reference > words.reference


def test_words_of_both_prompts_of_self_refine_are_part_of_a_word_vocabulary(made, tmp_path):
    improve = ImproveConfig(self_refine=write_prompts(tmp_path))
    assert made(improve=improve)["words"] == ("fair", "why", "anew")


def test_self_refine_names_what_a_run_asks_its_policy(tmp_path):
    """And a response of Self-Refine has the window of responses, 13 tokens with its end."""
    improve = ImproveConfig(self_refine=write_prompts(tmp_path))
    run = tiny_runs.on_one_device(tiny_runs.config(tmp_path, improve=improve))
    refine = run.improver("model").refine
    assert refine.prompts.feedback == Step("{prompt} why {response}", "fair")
    assert refine._window == 13
    message = f"ImproveConfig.self_refine: got '{tmp_path}/none', expected one of dialogue, "
    with pytest.raises(UserError, match=message):
        config = ImproveConfig(self_refine=f"{tmp_path}/none")
        tiny_runs.on_one_device(tiny_runs.config(tmp_path, improve=config))


def write_prompts(folder):
    """A file of prompts with three words of its own."""
    steps = {
        "feedback": {"system": "fair", "user": "{prompt} why {response}"},
        "refine": {"user": "{prompt} {response} anew {feedback}"},
    }
    (folder / "prompts.json").write_text(json.dumps(steps))
    return str(folder / "prompts.json")


def test_seed_and_each_purpose_move_a_key():
    """A number and a word are different purposes too, and their order counts."""
    purposes = ((), ("a",), ("b",), ("a", 0), ("a", 1), ("a", "b"), ("b", "a"))
    found = [
        tuple(jax.random.key_data(runs.key_for(seed, *each)).tolist())
        for seed in (0, 1, 0)
        for each in purposes
    ]
    n = len(purposes)
    assert len(set(found)) == 2 * n and found[:n] == found[2 * n :]


# --- trained models -----------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    """A run in which both reward models are trained, as their folders say."""
    for name, result in (
        ("rm_policy", {"task": "rm_policy", "model_step": 4, "pooling": "sum", "anchor": 1.5}),
        ("rm_gap", {"task": "rm_gap", "model_step": 2, "pooling": "sum", "anchor": -0.5}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    return tiny_runs.on_one_device(tiny_runs.config(tmp_path))


@pytest.fixture
def restored(monkeypatch):
    """Checkpoints whose models are the names of their folders and their steps."""

    def checkpoints(folder, read_only, stage):
        return types.SimpleNamespace(
            restore_model=lambda model, step: (folder.parent.name, step), close=lambda: None
        )

    monkeypatch.setattr(loading, "Checkpoints", checkpoints)


def test_a_model_is_that_of_its_result_or_of_the_step_asked_for(run, restored):
    assert run.load("rm_policy") == ("rm_policy", 4)
    assert run.load("rm_policy", 6) == ("rm_policy", 6)


@pytest.mark.parametrize("what", ["vocabulary", "network"])
def test_a_model_with_another_meaning_is_not_read(run, restored, what):
    identity = loading.identity(run, "gap_reward", None) | {what: "another"}
    (run.folder("rm_gap") / "stage.json").write_text(
        json.dumps({"model": identity, "settings": {}})
    )
    with pytest.raises(UserError, match=f"rm_gap: was trained with another {what}: .*another"):
        run.load("rm_gap")


def test_gaps_are_read_as_their_model_was_trained(run):
    with_gaps, without = run.improver("M_PIT", "R_PIT", "rm_gap"), run.improver("M_PIT")
    assert (with_gaps.gap_model, with_gaps.pooling, with_gaps.anchor) == ("R_PIT", "sum", -0.5)
    assert (without.gap_model, without.pooling, without.anchor) == (None, "last", 0.0)


def test_a_stage_reflects_by_its_task(run):
    for name, task in (("plain", "sft_pit"), ("thinking", "sft_pit_reflection")):
        run.folder(name).mkdir()
        (run.folder(name) / "result.json").write_text(json.dumps({"task": task, "model_step": 2}))
    assert not run.reflects("plain")
    message = "thinking: writes a reflection before its response; got reflection=0 of Lengths"
    with pytest.raises(UserError, match=message):
        run.reflects("thinking")
    lengths = dataclasses.replace(run.config.lengths, reflection=9)
    run.config = dataclasses.replace(run.config, lengths=lengths)
    run.place(run.partitioner)
    assert run.reflects("thinking") and not run.reflects("plain")
    assert run.improver("M_PIT", reflects=True).reflects and not run.improver("M_PIT").reflects


def test_a_run_samples_ids_of_text_and_eos_only(run, monkeypatch):
    found = []
    monkeypatch.setattr(runs, "Sampler", lambda *given: found.append(given))
    run.place(run.partitioner)
    ((network, _, response, batch, allowed, ends),) = found
    assert ends == (1,)
    assert (network, response, batch) == (tiny_runs.NETWORK, 13, 16)
    size = run.role("policy").vocabulary.vocab_size
    expected = np.isin(range(64), [1, *range(2, size - 2)])
    np.testing.assert_array_equal(allowed, expected)


def test_stages_that_saw_other_examples_are_not_judged(trained):
    """Of the same description as well: what counts is what was read."""
    config = tiny_runs.config(trained)
    same, other = tiny_runs.on_one_device(config), tiny_runs.on_one_device(config)
    same.check_data()
    splits = other.data._datasets[0].splits
    splits["test"] = splits["test"][1:]
    with pytest.raises(UserError, match="pretrain: was trained on other examples than the data"):
        other.check_data()
    with pytest.raises(UserError, match=r"settings: the examples of the data \([0-9a-f]{8} -> "):
        pipeline.train(other, "sft_pit")
    # What isn't there can't have changed, if it isn't needed.
    gone = DatasetConfig("preferences", 0, 0, 0, path=str(trained / "gone.jsonl"))
    without = tiny_runs.on_one_device(dataclasses.replace(config, dataset=gone))
    without.check_data(needed=False)
    with pytest.raises(UserError, match="gone.jsonl: no such file"):
        without.check_data()


def test_rows_of_big_data_are_kept_in_the_run_directory(tmp_path, monkeypatch):
    run = tiny_runs.on_one_device(tiny_runs.config(tmp_path / "run"))
    assert run.data.num_rows("rm_gap", "dev") > 0
    assert not (tmp_path / "run" / "data_cache").exists()
    monkeypatch.setattr(flat_arrays, "BIG", 0)
    run = tiny_runs.on_one_device(tiny_runs.config(tmp_path / "run"))
    assert run.data.num_rows("rm_gap", "dev") > 0
    (folder,) = (path for path in (tmp_path / "run" / "data_cache").iterdir() if path.is_dir())
    assert folder.name.startswith("rm_gap-")


def test_a_run_that_is_not_to_keep_data_makes_no_folder(tmp_path, monkeypatch):
    """As with --dry_run; where there is one already it is used."""
    monkeypatch.setattr(flat_arrays, "BIG", 0)
    config, folder = tiny_runs.config(tmp_path / "run"), tmp_path / "run" / "data_cache"
    for there in (False, True):
        run = runs.Run(config, devices=jax.devices()[:1], keep=False)
        assert run.data.num_rows("rm_gap", "dev") > 0
        assert folder.exists() == there
        folder.mkdir(parents=True, exist_ok=True)
