"""Arithmetic by hand and by the compiler's count; peaks by the names JAX gives devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.method import flops, ppo_step, supervised_step
from pit_jax.method.curriculum import Round
from pit_jax.method.environment import Environment, Networks
from pit_jax.method.flops import Work, matrix_parameters
from pit_jax.method.frozen import Frozen
from pit_jax.method.ppo import PPOConfig
from pit_jax.models.config import LoraConfig
from pit_jax.models.network import LanguageModel
from pit_jax.run import shapes, stages
from pit_jax.runtime.partitioning import MeshConfig, Partitioner
from tests import tiny_runs
from tests.tiny_models import random_params

NETWORK = tiny_runs.NETWORK  # D 16, L 1, H = K 2, E 8, F 16, V 64


def test_arithmetic_by_hand():
    # Query, key, value, out: 4 of 16 x 16; gate, up, down: 3 of 16 x 16.
    assert matrix_parameters(NETWORK) == 7 * 256
    # 8 tokens: 2 x 1792 and, over 4 keys by halves, 2 x 16 x 4; logits 2 x 16 x 64.
    forward = 8 * (3584 + 128) + 8 * 2048
    assert Work(2, 4, 4).flops(NETWORK) == forward
    assert Work(2, 4, 4, backward=True, times=5).flops(NETWORK) == 5 * 3 * forward
    # 6 tokens one at a time, each looking at 4 to 7 keys: 5.5.
    assert Work(2, 4, steps=3).flops(NETWORK) == 6 * (3584 + 4 * 16 * 5.5 + 2048)
    assert Work(2, 4, steps=0).flops(NETWORK) == 0


def test_windows_and_gates_by_hand():
    network = dataclasses.replace(NETWORK, num_layers=3, windows=(2, 0), gated_mlp=False)
    assert matrix_parameters(network) == 3 * 6 * 256
    # Half of a square of 8 tokens, 32 keys, in layer 1. In layers 0 and 2 the triangle of 6 x 6
    # beyond a window of 2 is missing, 18 keys. A key costs 4 x 16.
    keys = 32 + 2 * 14
    assert Work(1, 8).flops(network) == 8 * 2 * 3 * 6 * 256 + 64 * keys
    # 3 tokens after 4: 5.5 keys each on average, or 2 in a window.
    decoded = Work(1, 4, steps=3).flops(network)
    assert decoded == 3 * (2 * 3 * 6 * 256 + 2048) + 64 * (3 * 5.5 + 2 * 3 * 2)
    traced = jax.jit(lambda steps: Work(1, 4, steps=steps).flops(network))(jnp.int32(3))
    np.testing.assert_allclose(traced, decoded, rtol=1e-6)


@pytest.mark.parametrize(
    ("remat", "again"), [("none", 0), ("dots", 8 * 128), ("full", 8 * (3584 + 128))]
)
def test_arithmetic_that_is_done_twice(remat, again):
    network = dataclasses.replace(NETWORK, remat=remat)
    forward = 8 * (3584 + 128) + 8 * 2048
    for checkpointed in (False, True):
        work = Work(2, 4, 4, backward=True, checkpointed=checkpointed)
        assert work.flops(network) == 3 * forward
        assert work.flops(network, rematerialised=True) == (3 + checkpointed) * forward + again


def test_arithmetic_is_the_compilers():
    network = dataclasses.replace(NETWORK, embed_dim=128, mlp_dim=512, vocab_size=256)
    model = LanguageModel(network)
    tokens = jnp.zeros((4, 64), jnp.int32)
    mask = jnp.tril(jnp.ones((64, 64), bool))[None].repeat(4, axis=0)
    params = random_params(model)
    compiled = jax.jit(model.apply).lower({"params": params}, tokens, tokens, mask).compile()
    counted = compiled.cost_analysis()["flops"]
    assert Work(4, 64, 64).flops(network) == pytest.approx(counted, rel=0.1)


def test_gradients_of_frozen_matrices_are_neither_computed_nor_counted():
    """By the compiler's count of a whole training step, with its optimizer."""
    counted = {}
    for lora in (None, LoraConfig(2, 4.0)):
        network = dataclasses.replace(
            NETWORK, embed_dim=128, mlp_dim=512, vocab_size=256, lora=lora
        )
        partitioner = Partitioner(MeshConfig(), jax.devices()[:1])
        stage = tiny_runs.supervised("sft_pit")
        state = stages.abstract_state(stage, Networks.same(network), partitioner)
        backbone = shapes.abstract_backbone(network, partitioner) if lora else None
        rows = jax.ShapeDtypeStruct((4, 64), jnp.int32)
        names = ("target_tokens", "input_tokens", "segment_ids", "positions")
        batch = {f"decoder_{name}": rows for name in names}
        batch["decoder_loss_weights"] = jax.ShapeDtypeStruct((4, 64), jnp.float32)
        step = supervised_step.make_step(stages.objective(stage, network), partitioner)
        compiled = step.lower(state, batch, backbone).compile()
        found = compiled.cost_analysis()["flops"]
        work = flops.training_step(4, 64, True)
        assert flops.total(work, network) == pytest.approx(found, rel=0.1)
        counted[lora] = found
    whole, adapted = counted.values()
    assert 0.6 < adapted / whole < 0.75


def test_what_adapters_add_by_hand():
    """Rank 2 on queries, of 16 and 16, and the output projection, of 16 and 64; 1 layer."""
    lora = LoraConfig(2, 4.0, "attention/query|unembed")
    plain = dataclasses.replace(NETWORK, tied_embeddings=False)
    network = dataclasses.replace(plain, lora=lora)
    query, unembed = 2 * 2 * (16 + 16), 2 * 2 * (16 + 64)
    assert flops.adapter_parameters(network) == (query + unembed) / 2
    assert flops.adapter_parameters(plain) == 0
    added = 8 * query + 2 * 3 * unembed  # 2 rows of 4 tokens, with 3 logits
    assert Work(2, 4, 3).flops(network) == Work(2, 4, 3).flops(plain) + added
    matrices = 8 * 3584 + 2 * 3 * 2048  # without attention's own products
    trained = Work(2, 4, 3, backward=True)
    assert trained.flops(network) == trained.flops(plain) + 3 * added - matrices
    decoded = Work(2, 4, steps=3)
    assert decoded.flops(network) == decoded.flops(plain) + 2 * 3 * (query + unembed)


def test_steps_by_hand():
    # The first of 3 tokens comes from the prompts' logits.
    assert flops.sampling(2, 4, 3) == (Work(2, 4, 1), Work(2, 4, steps=2, cache=3))
    assert flops.sampling(2, 4, 3, written=2)[1] == Work(2, 4, steps=1, cache=3)
    language, reward = (flops.training_step(8, 4, logits, 2) for logits in (True, False))
    assert flops.total(language, NETWORK) == 3 * 8 * 4 * (3584 + 128 + 2048)
    assert flops.total(reward, NETWORK) == 3 * 8 * 4 * (3584 + 128)
    # Rows of 4 + 3 tokens for the actor, with 3 logits, and of 5 + 3 for reward model and critic.
    actor = 8 * (7 * (3584 + 32 * 7) + 3 * 2048)
    scalar = 8 * 8 * (3584 + 32 * 8)
    sampled = flops.total(flops.sampling(8, 4, 3), NETWORK)
    for subtract, scores in ((False, 1), (True, 2)):
        config = PPOConfig(epochs=3, minibatches=4, subtract_chosen=subtract)
        collected = flops.total(flops.ppo_collect(8, 4, 5, 3, config), NETWORK)
        assert collected == sampled + 2 * actor + scalar + scores * scalar
        update = flops.ppo_update(8, 4, 5, 3, config)
        assert flops.total(update, NETWORK) == 3 * 3 * (actor + scalar)


@pytest.mark.parametrize("eos", [True, False])
def test_a_ppo_step_counts_the_tokens_it_wrote(eos):
    """A policy that ends at once, and one that fills its window."""
    partitioner = Partitioner(MeshConfig(), jax.devices()[:1])
    stage = tiny_runs.rl("rl_policy", (Round("none", 1),))
    networks = Networks.same(NETWORK)
    state = stages.create_state(stage, networks, partitioner, jax.random.key(0))
    if eos:
        decoder = state.train.params["actor"]["decoder"]
        ones = jnp.ones_like(decoder["embed"]["embedding"])
        decoder["embed"]["embedding"] = ones.at[1].set(2.0)
    B, P, Q, R = 8, 5, 6, 4
    collect, _ = ppo_step.make_programs(networks, stage.ppo, Environment(R, "last"), partitioner)
    rows = np.full((B, Q), 3, np.int32)
    batch = {
        "prompt_tokens": rows[:, :P],
        "reward_prompt_tokens": rows,
        "chosen_tokens": rows[:, :R],
    }
    params = state.train.params
    frozen = Frozen({"reference": params["actor"], "reward": params["critic"]})
    _, _, _, metrics, generation = collect(state, frozen, batch, *[jax.random.key(1)] * 2)
    written = int(np.asarray(generation.mask_BR).any(axis=0).sum())
    assert written == (1 if eos else R)
    works = (
        *flops.ppo_collect(B, P, Q, R, stage.ppo, written),
        *flops.ppo_update(B, P, Q, R, stage.ppo),
    )
    np.testing.assert_allclose(metrics["model_flops"][0], flops.total(works, NETWORK), rtol=1e-6)


def test_counts_of_large_networks_can_be_traced():
    large = dataclasses.replace(NETWORK, embed_dim=4608, num_layers=46, mlp_dim=36864)

    def count(written):
        works = flops.ppo_collect(512, 512, 1024, 512, PPOConfig(), written)
        return flops.total((*works, *flops.training_step(512, 4096, True)), large)

    np.testing.assert_allclose(jax.jit(count)(jnp.float32(500)), count(500), rtol=1e-5)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["TPU v4"] * 4, 4 * 275e12),
        (["TPU v5 lite"], 197e12),
        (["TPU v5"], 459e12),
        (["TPU v5p"], 459e12),
        (["TPU v6 lite"], 918e12),
        (["NVIDIA A100-SXM4-80GB"], 312e12),
        (["NVIDIA H100 80GB HBM3"], 989e12),
        (["NVIDIA H100 PCIe"], 756e12),
        (["cpu"], 0.0),
        (["TPU v4", "TPU v7"], 0.0),
    ],
)
def test_peaks(kinds, expected):
    assert flops.peak(kinds) == expected
