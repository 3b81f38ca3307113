"""What a run makes of its configuration: which field reaches what, and keys of its seed."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from pit_jax.data.batching import BatchingConfig
from pit_jax.data.vocabularies.load import load
from pit_jax.method.improve import ImproveConfig
from pit_jax.run import run as runs
from pit_jax.runtime.partitioning import MeshConfig
from tests import tiny_runs

BASE = tiny_runs.config("base")


@pytest.fixture
def made(monkeypatch):
    """Makes a run of a configuration; returns what its parts were made of."""
    seen = {}
    vocabulary = load("words:drafts")

    def load_vocabulary(spec, extra, control_tokens, eos_token, pad_token):
        seen["vocabulary"] = {
            "vocabulary": spec,
            "words": extra,
            "control_tokens": control_tokens,
            "eos_token": eos_token,
            "pad_token": pad_token,
        }
        return vocabulary

    def pipeline(dataset, vocabulary, lengths, batching):
        seen["data"] = {"dataset": dataset, "lengths": lengths, "batching": batching}

    def sampler(network, partitioner, response_length, batch_size, allowed_V):
        seen["sampler"] = {
            "network": network,
            "response": response_length,
            "sampling_batch": batch_size,
            "allowed": allowed_V.shape,
        }

    monkeypatch.setattr(runs, "load_vocabulary", load_vocabulary)
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
        ({"batching": BatchingConfig(length_buckets=3)}, {"batching"}),
        ({"mesh": MeshConfig(model=2)}, {"mesh"}),
        ({"sampling_batch": 24}, {"sampling_batch"}),
        ({"improve": ImproveConfig(feedback_prompt="{prompt} why")}, {"words"}),
        ({"improve": ImproveConfig(refine_prompt="{prompt} again")}, {"words"}),
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


def test_words_of_both_prompts_of_self_refine_are_part_of_a_word_vocabulary(made):
    improve = ImproveConfig(feedback_prompt="{prompt} why", refine_prompt="{response} anew")
    assert made(improve=improve)["words"] == ("why", "anew")


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
