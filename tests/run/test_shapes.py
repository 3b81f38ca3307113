"""Shapes of what stages of a network with adapters hold, nothing of which is computed."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import PartitionSpec

from pit_jax.method.curriculum import Round
from pit_jax.method.environment import Networks
from pit_jax.models import adapters
from pit_jax.models.config import LoraConfig
from pit_jax.run import shapes, stages
from pit_jax.runtime.partitioning import MeshConfig, Partitioner
from tests import tiny_runs

# Of width 16 with 64 ids: an embedding, 7 kernels of 16 x 16, and 3 norms.
BASE = 64 * 16 + 7 * 256 + 3 * 16
LORA = LoraConfig(rank=2, alpha=2.0, targets="attention/query|mlp/up")
OWN = 2 * 2 * (16 + 16)
NETWORK = dataclasses.replace(tiny_runs.NETWORK, lora=LORA)
STAGES = {
    "pretrain": tiny_runs.supervised("pretrain"),
    "sft_pit": tiny_runs.supervised("sft_pit"),
    "rl_pit": tiny_runs.rl("rl_pit", (Round("data", 1),)),
}


def one_device():
    return Partitioner(MeshConfig(), jax.devices()[:1])


def networks(stage, network=NETWORK):
    return Networks.same(stages.network_of(stage, network))


def size(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_states_have_what_is_trained_alone():
    found = {
        name: stages.abstract_state(stage, networks(stage), one_device())
        for name, stage in STAGES.items()
    }
    assert size(found["pretrain"].params) == BASE  # a warm-up trains the network itself
    assert size(found["sft_pit"].params) == OWN
    trained = found["rl_pit"].train.params
    assert {role: size(own) for role, own in trained.items()} == {"actor": OWN, "critic": OWN + 16}
    moments = [x.size for x in jax.tree.leaves(found["rl_pit"].train.opt_state) if x.ndim]
    assert sum(moments) == 2 * (2 * OWN + 16)


def test_a_starting_state_makes_no_backbone():
    """Its matrices would be drawn on the devices, only to be thrown away."""
    stage = STAGES["sft_pit"]
    wide = dataclasses.replace(NETWORK, vocab_size=4096, mlp_dim=4096)
    create = stages.starting_state(stage, networks(stage, wide))
    program = one_device().jit(lambda key: nn.meta.unbox(create(key)))
    used = program.lower(jax.random.key(0)).compile().memory_analysis()
    own = 3 * 4 * 2 * (16 + 16 + 16 + 4096)
    assert used.output_size_in_bytes < own * 1.1
    assert used.temp_size_in_bytes < 4 * 16 * 4096  # any one of the matrices


def test_the_models_of_ppo_share_a_backbone_where_their_networks_are_equal():
    frozen = shapes.abstract_models(networks(STAGES["rl_pit"]), one_device())
    assert list(frozen.backbones) == ["actor"] and size(frozen.backbones) == BASE
    assert size(frozen.models["reference"]) == OWN and size(frozen.models["reward"]) == OWN + 16
    small = dataclasses.replace(NETWORK, num_layers=2)
    others = shapes.abstract_models(Networks(NETWORK, small, small), one_device())
    assert list(others.backbones) == ["actor", "critic"]
    whole = shapes.abstract_models(Networks.same(tiny_runs.NETWORK), one_device())
    assert not whole.backbones and size(whole) == 2 * BASE + 16


def test_the_least_memory_of_stages_by_hand():
    """State and gradients of 4 bytes each; a backbone of 4, or of 1 as int8 with its scales."""
    int8 = dataclasses.replace(NETWORK, lora=dataclasses.replace(LORA, backbone="int8"))
    matrices = BASE - 3 * 16
    scales = 64 + 7 * 16
    for network, base in ((NETWORK, 4 * BASE), (int8, matrices + 4 * (3 * 16 + scales))):
        counters = 4 * 4  # of the step, skipped steps twice, and Adam
        stage = STAGES["sft_pit"]
        state = stages.abstract_state(stage, networks(stage, network), one_device())
        found = shapes.least_memory(stage, state, networks(stage, network), one_device())
        assert found - base - 4 * 4 * OWN in (counters, counters + 4)  # and the schedule's
        stage = STAGES["rl_pit"]
        state = stages.abstract_state(stage, networks(stage, network), one_device())
        found = shapes.least_memory(stage, state, networks(stage, network), one_device())
        own = 4 * 4 * (2 * OWN + 16) + 4 * (2 * OWN + 16)
        assert 0 < found - base - own < 100  # counters, beta and moments of scores


def test_int8_backbones_are_split_as_their_matrices_are():
    partitioner = Partitioner(MeshConfig(data=4, model=2))
    init = stages.init_language_model(tiny_runs.NETWORK)
    abstract = stages.abstract_model(init, partitioner)
    like = shapes.quantised_like(abstract)
    arrays = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
    found = adapters.quantised(arrays)
    for (path, x), y in zip(jax.tree.leaves_with_path(like), jax.tree.leaves(found), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype), path
    attention = like["decoder"]["layers"]["attention"]
    assert attention["query"]["kernel"].sharding.spec == PartitionSpec(None, "data", "model", None)
    assert attention["query"]["kernel_scale"].sharding.spec == PartitionSpec(None, "model", None)
    assert attention["out"]["kernel"].sharding.spec == PartitionSpec(None, "model", None, "data")
    assert attention["out"]["kernel_scale"].sharding.spec == PartitionSpec(None, "data")
    assert like["decoder"]["embed"]["embedding_scale"].sharding.spec == PartitionSpec("model")
    shardings = shapes.shardings(like)
    assert (
        shardings["decoder"]["embed"]["embedding"] is like["decoder"]["embed"]["embedding"].sharding
    )
