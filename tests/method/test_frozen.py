"""What a PPO step reads and doesn't change: each backbone stands there once."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from pit_jax.method.curriculum import Round
from pit_jax.method.frozen import Frozen
from pit_jax.models.adapters import Adapted
from pit_jax.models.config import LoraConfig
from pit_jax.plan.programs import programs, size_on_a_chip
from pit_jax.runtime.partitioning import MeshConfig, Partitioner
from tests import tiny_runs

BASE, OTHER = {"w": jnp.ones(3)}, {"w": jnp.zeros(3)}
OWN = {"reference": {"a": 1}, "reward": {"a": 2}}


def test_models_on_one_backbone_share_it():
    models = {name: Adapted(BASE, own) for name, own in OWN.items()}
    frozen = Frozen.share(models, {"actor": BASE, "critic": BASE})
    assert frozen.models == OWN and list(frozen.backbones) == ["actor"]
    assert len(jax.tree.leaves(frozen.backbones)) == 1
    for role, own in OWN.items():
        assert frozen.model(role) == Adapted(BASE, own)
    assert frozen.model("critic", "mine").backbone is BASE
    assert frozen.model("critic", "mine").own == "mine"
    assert frozen.of_own("actor", lambda params, x: (params.own, x))("mine", 5) == ("mine", 5)


def test_each_role_has_the_backbone_that_is_its_own():
    """Here the reward model and the critic are of another network, and the update reads both."""
    models = {"reference": Adapted(BASE, "a"), "reward": Adapted(OTHER, "b")}
    frozen = Frozen.share(models, {"actor": BASE, "critic": OTHER})
    assert dict(frozen.backbone_of) == {
        "actor": "actor",
        "critic": "critic",
        "reference": "actor",
        "reward": "critic",
    }
    assert frozen.of_trained.backbones == {"actor": BASE, "critic": OTHER}
    from_actor = Frozen.share(models, {"actor": BASE, "critic": BASE})
    assert from_actor.backbones == {"actor": BASE, "reward": OTHER}
    assert from_actor.of_trained == Frozen(
        {}, {"actor": BASE}, (("actor", "actor"), ("critic", "actor"))
    )


def test_whole_models_stay_whole():
    models = {"reference": BASE, "reward": OTHER}
    frozen = Frozen.share(models, {"actor": None, "critic": None})
    assert frozen == Frozen(models) and frozen.of_trained == Frozen({})
    assert frozen.model("reward") is OTHER and frozen.model("actor", BASE) is BASE


def test_a_whole_model_that_others_have_adapters_on_stands_once():
    """Adapters are trained on the supervised model, which is the KL reference too."""
    frozen = Frozen.share({"reference": BASE, "reward": OTHER}, {"actor": BASE, "critic": OTHER})
    assert frozen.models == {"reference": {}, "reward": {}}
    assert len(jax.tree.leaves(frozen)) == 2
    assert frozen.model("reference") == Adapted(BASE, {})
    assert frozen.model("reward") == Adapted(OTHER, {})


def test_the_programs_of_ppo_have_one_backbone_among_their_arguments():
    """By XLA's own count: a few percent more than one copy of the base model."""
    network = dataclasses.replace(
        tiny_runs.NETWORK,
        vocab_size=4096,
        embed_dim=64,
        mlp_dim=128,
        lora=LoraConfig(1, 1.0, "attention/query"),
    )
    stage = tiny_runs.rl("rl_pit", (Round("data", 1),))
    config = tiny_runs.config("unused", network=network, stages=(stage,))
    partitioner = Partitioner(MeshConfig(), jax.devices()[:1])
    base = 4 * (4096 * 64 + 4 * 64 * 16 + 3 * 64 * 128 + 3 * 64)
    found = [each for each in programs(config, partitioner) if each.name.startswith("PPO")]
    for program in found:
        used = program.function.lower(*program.arguments).compile().memory_analysis()
        assert base < used.argument_size_in_bytes < base * 1.05
        assert size_on_a_chip(program.roles["backbone"]) == base
    collect, update = found
    assert list(collect.roles) == ["parameters", "optimizer", "backbone", "frozen models"]
    assert list(update.roles) == ["parameters", "optimizer", "backbone"]
    assert 0 < size_on_a_chip(update.beside["frozen models"]) < base * 0.01
