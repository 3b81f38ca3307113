"""What compiled programs move between devices: weights in training, activations in decoding."""

import collections
import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import pytest

from pit_jax.method import decode, supervised_step
from pit_jax.method.environment import Networks
from pit_jax.models import kernels
from pit_jax.models.network import LanguageModel
from pit_jax.plan import chips, hlo, machines
from pit_jax.run import stages
from pit_jax.runtime.partitioning import DECODE_RULES, MeshConfig, Partitioner
from pit_jax.runtime.train_state import OptimizerConfig
from tests.tiny_models import TINY

pytestmark = pytest.mark.mesh


@pytest.fixture(scope="module", autouse=True)
def loops_over_layers():
    """As on accelerators."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_WRITTEN_OUT", math.inf)
        yield


# No two kinds of weights have the same size, and all are larger than a token's activations.
NETWORK = dataclasses.replace(
    TINY,
    vocab_size=512,
    embed_dim=128,
    num_layers=3,
    num_heads=8,
    num_kv_heads=4,
    head_dim=16,
    mlp_dim=384,
    tied_embeddings=False,
)
B, P, R, T = 8, 5, 6, 32
# A layer's seven matrices on one of two devices of the model axis, whole along `data`.
GATHERED = collections.Counter(
    {
        "f32[128,4,16]": 1,  # query
        "f32[128,2,16]": 2,  # key, value
        "f32[4,16,128]": 1,  # out
        "f32[128,192]": 2,  # gate, up
        "f32[192,128]": 1,  # down
    }
)


def rows(partitioner, shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=partitioner.row_sharding(shape))


def decoding(rules, network=NETWORK, devices=None, **mesh) -> str:
    """The compiled text of `generate`."""
    partitioner = Partitioner(MeshConfig(model=2, decode_rules=rules, **mesh), devices)
    model = LanguageModel(network)

    def program(params, prompts, rows):
        keys = decode.row_keys(jax.random.key(0), rows)
        return decode.generate(model, params, prompts, keys, R, decode.SamplingConfig())

    params = stages.abstract_model(stages.init_language_model(network), partitioner)
    prompts = rows(partitioner, (B, P))
    return (
        partitioner.jit(program).lower(params, prompts, rows(partitioner, (B,))).compile().as_text()
    )


@pytest.fixture(scope="module")
def decoder():
    return decoding(DECODE_RULES)


def in_layers(text: str, depth: int) -> list[hlo.Collective]:
    """What moves in each layer, in loops this deep."""
    return [c for c in hlo.Program(text).collectives() if c.depth == depth]


def gathers(found) -> collections.Counter:
    return collections.Counter(s for c in found if c.kind == "all-gather" for s in c.shapes)


def elements(shape: str) -> int:
    return math.prod(map(int, re.findall(r"\d+", shape.partition("[")[2])))


def test_decoding_gathers_no_weights(decoder):
    """Of each token and layer only activations move, none larger than what one token has."""
    moved = in_layers(decoder, 2)
    assert moved and all(c.times == 3 * R for c in moved)
    assert max(elements(shape) for c in moved for shape in c.shapes) == B * 192
    assert not set(gathers(moved)) & set(GATHERED)


def test_between_slices_decoding_moves_nothing_layer_by_layer():
    """Each slice decodes its own rows, with weights of its own."""
    network = dataclasses.replace(NETWORK, num_kv_heads=2)
    moved = in_layers(decoding(DECODE_RULES, network, slices=2, data=2), 2)
    # Four rows a slice; split rows would be two, gathered over slices eight.
    sizes = {elements(shape) for c in moved for shape in c.shapes}
    assert moved and max(sizes) == B // 2 * 192


def test_with_the_rules_of_training_decoding_would_gather_every_layer():
    assert gathers(in_layers(decoding(()), 2)) == GATHERED


def test_prefill_gathers_a_layer_at_a_time(decoder):
    assert gathers(in_layers(decoder, 1)) >= GATHERED


def test_the_cache_is_written_in_place(decoder):
    """Nothing inside a loop makes another whole cache: it is only carried and updated."""
    cache = re.escape(f"f32[3,{B // 4},2,{P + R},16]")
    made = [
        (found[1], depth)
        for line, depth in hlo.Program(decoder).instructions()
        if (found := re.search(rf"= {cache}\S* ([\w-]+)\(", line))
    ]
    assert collections.Counter(made)["dynamic-update-slice", 2] >= 2  # keys and values
    assert not [kind for kind, depth in made if depth and kind in ("copy", "broadcast")]


@pytest.mark.tpu_compiler
def test_the_tpus_compiler_gathers_no_weights_and_copies_no_cache():
    network = dataclasses.replace(
        NETWORK, embed_dim=1024, head_dim=128, mlp_dim=2048, vocab_size=4096, dtype="bfloat16"
    )
    text = decoding(DECODE_RULES, network, machines.devices(chips.parse("v4-8")))
    moved = in_layers(text, 2)
    assert moved and all(c.times == 3 * R for c in moved)
    smallest = 1024 * 2 * 128  # the keys of one of two devices
    assert max(elements(shape) for c in moved for shape in c.shapes) <= B * 1024 < smallest
    cache = rf"= bf16\[3,{B // 2},{P + R},2,128\]\S* ([\w-]+)\("
    made = {
        (found[1], depth)
        for line, depth in hlo.Program(text).instructions()
        if (found := re.search(cache, line))
    }
    assert ("fusion", 2) in made or ("dynamic-update-slice", 2) in made
    assert not [kind for kind, depth in made if depth and kind in ("copy", "broadcast")]
    # With the rules of training it would gather every matrix of every layer.
    other = in_layers(decoding((), network, machines.devices(chips.parse("v4-8"))), 2)
    assert max(elements(shape) for c in other for shape in c.shapes) >= smallest


def training(**mesh) -> str:
    """The compiled text of a step of supervised fine-tuning."""
    partitioner = Partitioner(MeshConfig(data=4, model=2, **mesh))
    stage = stages.SupervisedStage("sft_policy", "sft_policy", 1, B, OptimizerConfig())
    names = ("target_tokens", "input_tokens", "segment_ids", "positions")
    batch = {f"decoder_{name}": rows(partitioner, (B, T)) for name in names}
    batch["decoder_loss_weights"] = rows(partitioner, (B, T), jnp.float32)
    step = supervised_step.make_step(stages.objective(stage, NETWORK), partitioner)
    state = stages.abstract_state(stage, Networks.same(NETWORK), partitioner)
    return step.lower(state, batch).compile().as_text()


def test_training_gathers_each_matrix_once_forwards_and_once_backwards():
    moved = in_layers(training(), 1)
    assert gathers(moved) == GATHERED + GATHERED
    assert all(c.times == 3 for c in moved)
    reduced = [s for c in moved if c.kind == "all-reduce" for s in c.shapes]
    # Over `model`: the sums of attention and MLP forwards; backwards those of their inputs, where
    # this compiler sends one for each of the five matrices that read them.
    residual = f"f32[{B // 4},{T},128]"
    assert reduced.count(residual) == 2 + 5
    # Over `data`: the gradients of the seven matrices, some transposed, and of two norms.
    gradients = [elements(shape) for shape in reduced if shape != residual]
    expected = [elements(shape) for shape, n in GATHERED.items() for _ in range(n)]
    assert sorted(gradients) == sorted([*expected, 128, 128])


def test_sequence_parallelism_gathers_the_inputs_of_attention_and_mlp():
    moved = in_layers(training(sequence_parallel=True), 1)
    found = gathers(moved)
    assert found.pop(f"f32[{B // 4},{T},128]") == 4  # forwards and backwards
    assert found == GATHERED + GATHERED
