"""The network against a float64 NumPy forward pass, its parameters' axes, packing and types."""

from __future__ import annotations

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.method.losses import sft_loss
from pit_jax.models import kernels
from pit_jax.models.cache import KVCache
from pit_jax.models.config import NetworkConfig
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel, for_decoding
from pit_jax.models.weights.rows import flatten
from pit_jax.runtime.partitioning import DEFAULT_RULES
from tests import reference
from tests.tiny_models import (
    TINY,
    WIDTH,
    abstract_params,
    apply_model,
    inputs_of,
    random_params,
)

T5X_FIELDS = {
    "positions": "relative",
    "scale_attention": False,
    "scale_logits": True,
    "num_kv_heads": 4,
    "activation": "gelu",
}
VARIANTS = {
    "tied_silu": {},
    "untied_gelu": {"tied_embeddings": False, "activation": "gelu"},
    "scaled_one_kv_head": {"scale_embeddings": True, "num_kv_heads": 1},
    "all_kv_heads_deep": {"num_kv_heads": 4, "num_layers": 3, "norm_epsilon": 1e-2},
    "relative": {"positions": "relative", "num_layers": 3},
    "t5x": T5X_FIELDS,
    "biases_and_llama3": {
        "num_layers": 1,
        "qkv_bias": True,
        "out_bias": True,
        "mlp_bias": True,
        "rope_factor": 8.0,
        "rope_original_length": 16,
        "rope_low": 0.2,
    },
    "gemma2": {
        "num_layers": 3,
        "norm_offset": True,
        "norm_place": "both",
        "attention_scalar": 3,
        "attention_cap": 1.5,
        "logit_cap": 3.0,
        "windows": (3, 0),
    },
    "gemma3": {
        "num_layers": 3,
        "norm_offset": True,
        "qk_norm": "head",
        "windows": (3, 2, 0),
        "rope_local_theta": 5.0,
        "rope_factor": 4.0,
    },
    "olmo2": {"norm_place": "after", "qk_norm": "projection", "rotary_layers": (True, False)},
    "neox": {
        "norm": "layer",
        "mlp_bias": True,
        "gated_mlp": False,
        "activation": "gelu_exact",
        "parallel_blocks": True,
        "rotary_dim": 2,
        "tied_embeddings": False,
    },
}
FIELDS = {"rotary": {}, "relative": {"positions": "relative"}, "gemma2": VARIANTS["gemma2"]}


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_match_numpy(name):
    config = dataclasses.replace(TINY, **VARIANTS[name])
    model = LanguageModel(config)
    params = random_params(model)
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    tokens = np.random.default_rng(1).integers(1, 16, (2, WIDTH))
    starts = (0, 3)
    segments = (np.arange(WIDTH)[None] >= np.array(starts)[:, None]).astype(int)  # left-padded
    logits = apply_model(model, params, tokens, segments)
    assert logits.dtype == jnp.float32
    for b, start in enumerate(starts):
        expected = reference.logits(double, config, tokens[b, start:])
        # A few dozen float32 operations in a row, each off by 6e-8 of its size.
        np.testing.assert_allclose(logits[b, start:], expected, atol=3e-6 * np.abs(expected).max())


@pytest.fixture(scope="module", params=FIELDS)
def tiny(request):
    model = LanguageModel(dataclasses.replace(TINY, **FIELDS[request.param]))
    return model, random_params(model)


def test_first_drops_leading_columns_only(tiny):
    model, params = tiny
    tokens = np.tile(np.arange(1, WIDTH + 1), (2, 1))
    segments = np.ones((2, WIDTH), int)
    whole = apply_model(model, params, tokens, segments)
    part = model.apply({"params": params}, tokens, *inputs_of(segments), first=4)
    np.testing.assert_allclose(part, whole[:, 4:], atol=1e-5)


def test_packed_segments_equal_separate_rows(tiny):
    first, second = [3, 4, 5, 6], [7, 8, 9]
    packed = apply_model(*tiny, [[*first, *second]] * 2, [[1, 1, 1, 1, 2, 2, 2]] * 2)
    rows = apply_model(*tiny, [first, [*second, 0]], [[1, 1, 1, 1], [1, 1, 1, 0]])
    np.testing.assert_allclose(packed[0, :4], rows[0, :4], atol=1e-5)
    np.testing.assert_allclose(packed[0, 4:7], rows[1, :3], atol=1e-5)


def test_later_tokens_never_reach_earlier_logits(tiny):
    a, b = apply_model(*tiny, [[3, 4, 5, 6, 7], [3, 4, 5, 9, 2]], np.ones((2, 5), int))
    np.testing.assert_array_equal(a[:3], b[:3])
    assert np.abs(np.asarray(a[3:5] - b[3:5])).max() > 0.1


@pytest.mark.parametrize("written_out", [False, True])
def test_cached_steps_equal_one_pass(tiny, written_out, monkeypatch):
    model, params = tiny
    monkeypatch.setattr(kernels, "_WRITTEN_OUT", model.config.embed_dim + (not written_out))
    tokens = np.array([[3, 4, 5, 6], [9, 8, 7, 6]], np.int32)
    whole = apply_model(*tiny, tokens, np.ones((2, 4), int))

    @jax.jit
    def step(cache, token, t):
        seen = jnp.broadcast_to(jnp.arange(4) <= t, (2, 1, 4))
        inputs = (token, jnp.full((2, 1), t), seen, cache, t)
        return model.apply({"params": prepared}, *inputs, method=LanguageModel.step)

    prepared, cache = for_decoding(params, model.config), KVCache.zeros(model.config, 2, 4)
    assert ("0" in prepared["decoder"]["layers"]) == written_out
    for t in range(4):
        logits, cache = step(cache, tokens[:, t : t + 1], t)
        np.testing.assert_allclose(logits, whole[:, t], atol=1e-5)


def test_rematerialisation_changes_neither_loss_nor_gradient():
    tokens = np.random.default_rng(2).integers(1, 16, (2, 6))
    inputs = inputs_of(np.ones((2, 6), int))
    results = {}
    for remat in ("none", "full", "dots"):
        model = LanguageModel(dataclasses.replace(TINY, remat=remat))
        params = random_params(model)

        def loss(params, model=model):
            logits = model.apply({"params": params}, tokens, *inputs)
            return sft_loss(logits[:, :-1], jnp.asarray(tokens[:, 1:]), jnp.ones((2, 5)))[0]

        results[remat] = jax.jit(jax.value_and_grad(loss))(params)
    for remat in ("full", "dots"):
        # The same operations, fused differently: rounding only.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5),
            results["none"],
            results[remat],
        )


def test_scales_by_hand():
    """Where nothing else is done, a network with and without a scale differ by just this factor."""
    config = dataclasses.replace(TINY, num_layers=1)
    params = random_params(LanguageModel(config))
    tokens, segments = np.tile(np.arange(1, 9), (2, 1)), np.ones((2, 8), int)

    def logits(params=params, **fields):
        model = LanguageModel(dataclasses.replace(config, **fields))
        return np.asarray(apply_model(model, params, tokens, segments))

    np.testing.assert_allclose(logits(scale_logits=True) * 8**0.5, logits(), rtol=1e-6)
    # Scores of queries that are half as long: E = 4.
    halved = jax.tree.map(lambda x: x, params)
    halved["decoder"]["layers"]["attention"]["query"]["kernel"] /= 2
    np.testing.assert_array_equal(logits(halved, scale_attention=False), logits())
    assert np.abs(logits(scale_attention=False) - logits()).max() > 0.1


def test_what_is_not_scaled_begins_smaller_or_larger():
    """Training begins at the same function, whether scales are in the computation or not."""
    config = dataclasses.replace(TINY, head_dim=16, vocab_size=512)
    other = dataclasses.replace(config, scale_attention=False, scale_logits=True)
    inputs = (jnp.zeros((1, 2), jnp.int32), jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2, 2), bool))
    ours, theirs = (
        nn.unbox(jax.jit(LanguageModel(c).init)(jax.random.key(0), *inputs))["params"]["decoder"]
        for c in (config, other)
    )
    query = [x["layers"]["attention"].pop("query")["kernel"] for x in (ours, theirs)]
    np.testing.assert_allclose(query[0], 4 * query[1], rtol=1e-6)
    embedding = [x.pop("embed")["embedding"] for x in (ours, theirs)]
    np.testing.assert_allclose(embedding[0] * 8**0.5, embedding[1], rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("tied", [True, False])
def test_bfloat16_stays_near_float32_and_logits_are_not_rounded(tied):
    config = dataclasses.replace(TINY, tied_embeddings=tied)
    params = random_params(LanguageModel(config))
    tokens, segments = np.tile(np.arange(1, 9), (2, 1)), np.ones((2, 8), int)
    full = apply_model(LanguageModel(config), params, tokens, segments)
    half = LanguageModel(dataclasses.replace(config, dtype="bfloat16"))
    half = apply_model(half, params, tokens, segments)
    assert half.dtype == jnp.float32
    # Some twenty roundings of 2^-9 relative in a row, against the size of the logits.
    error = np.abs(np.asarray(half - full)).max() / np.abs(np.asarray(full)).max()
    assert 0 < error < 20 * 2**-9
    # Log-probabilities are differences of logits: those must keep float32's digits.
    assert not np.array_equal(half, half.astype(jnp.bfloat16).astype(jnp.float32))


@pytest.mark.parametrize("model_type", [LanguageModel, ScalarModel])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["relative", "biases_and_llama3", "gemma3", "olmo2", "neox"])
def test_every_parameter_names_its_axes(model_type, tied, name):
    config = dataclasses.replace(TINY, **{**VARIANTS[name], "tied_embeddings": tied})
    boxed = abstract_params(model_type(config))
    table = {name for name, _ in DEFAULT_RULES}
    leaves = jax.tree_util.tree_leaves_with_path(
        boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
    )
    assert len(leaves) >= 11
    for path, leaf in leaves:
        where = jax.tree_util.keystr(path)
        assert isinstance(leaf, nn.LogicallyPartitioned), f"{where} has no logical axes"
        assert len(leaf.names) == leaf.value.ndim, f"{where}: {leaf.names} of {leaf.value.shape}"
        assert set(leaf.names) <= table, f"{where}: {leaf.names}"
        assert leaf.value.dtype == jnp.float32, where
        assert (leaf.names[0] == "layers") == ("layers" in where), where


def test_a_seven_billion_model_has_its_known_size():
    """Llama 2 7B's shape: 6,738,415,616 parameters."""
    config = NetworkConfig(
        vocab_size=32_000,
        embed_dim=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        mlp_dim=11_008,
        activation="silu",
        tied_embeddings=False,
        scale_embeddings=False,
        scale_attention=True,
        scale_logits=False,
        positions="rotary",
        rope_theta=10_000.0,
        norm_epsilon=1e-5,
        dtype="bfloat16",
        remat="full",
    )
    leaves = jax.tree.leaves(nn.unbox(abstract_params(LanguageModel(config))))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == 6_738_415_616


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(
            ({field: 0}, f"got {field}=0, expected 1 or more")
            for field in ("vocab_size", "embed_dim", "num_layers", "num_heads", "num_kv_heads")
        ),
        ({"head_dim": 0}, "got head_dim=0, expected 1 or more"),
        ({"mlp_dim": -1}, "got mlp_dim=-1, expected 1 or more"),
        ({"num_kv_heads": 3}, r"got num_heads=4, expected a multiple of num_kv_heads=3"),
        ({"head_dim": 5}, r"got head_dim=5, expected an even number"),
        ({"activation": "relu"}, r"got activation='relu', expected one of \('silu', 'gelu', "),
        ({"dtype": "float16"}, r"got dtype='float16', expected one of \('float32', 'bfloat16'\)"),
        ({"remat": "some"}, r"got remat='some', expected one of \('none', 'full', 'dots'\)"),
        ({"positions": "learned"}, r"got positions='learned', expected one of \('rotary', 'rel"),
        (
            {"scale_logits": True, "tied_embeddings": False},
            r"got scale_logits=True with tied_embeddings=False, expected scale_logits=False",
        ),
        (
            {"positions": "relative", "attention": "cudnn"},
            r"got attention='cudnn' with positions='relative', expected 'auto' or 'xla'",
        ),
        (
            {"windows": (0, 8), "attention": "splash"},
            r"got attention='splash' with windows=\(0, 8\), expected 'auto' or 'xla': fused",
        ),
        (
            {"attention_cap": 50.0, "attention": "cudnn"},
            r"got attention='cudnn' with attention_cap=50.0, expected 'auto' or 'xla'",
        ),
        (
            {"windows": (4,), "positions": "relative"},
            r"got windows=\(4,\) with positions",
        ),
        ({"windows": (-1,)}, r"got windows=\(-1,\), expected tokens, or 0 for all"),
        ({"rotary_dim": 3}, r"got rotary_dim=3, expected an even number up to head_dim=4"),
        ({"rope_factor": 0.0}, r"got rope_factor=0.0, .* expected numbers above 0"),
        ({"rope_low": 4.0}, r"got rope_factor=1.0, rope_low=4.0, rope_high=4.0, expected"),
        ({"norm": "batch"}, r"got norm='batch', expected one of \('rms', 'layer'\)"),
        (
            {"norm_place": "in"},
            r"got norm_place='in', expected one of \('before', 'after', ",
        ),
        (
            {"qk_norm": "all"},
            r"got qk_norm='all', expected one of \('none', 'head', ",
        ),
    ],
)
def test_config_rejects(change, message):
    with pytest.raises(ValueError, match=f"NetworkConfig: {message}"):
        dataclasses.replace(TINY, **change)


def test_what_every_network_has_has_no_default():
    for field in dataclasses.fields(NetworkConfig):
        if field.name == "attention" or field.metadata.get("variation"):
            continue  # a kernel: the same results on another platform; what few networks have
        assert field.default is dataclasses.MISSING, field.name
        assert field.default_factory is dataclasses.MISSING, field.name


# --- each field ---------------------------------------------------------------------------------


def parameter_shapes(**fields):
    model = LanguageModel(dataclasses.replace(TINY, **fields))
    leaves = jax.tree_util.tree_leaves_with_path(nn.unbox(abstract_params(model))["decoder"])
    names = ("/".join(key.key for key in path[:-1] or path) for path, _ in leaves)
    return dict(zip(names, (leaf.shape for _, leaf in leaves)))


LAYER = {
    f"layers/{name}"
    for name in (
        "attention/key",
        "attention/out",
        "attention/query",
        "attention/value",
        "attention_norm",
        "mlp/down",
        "mlp/gate",
        "mlp/up",
        "mlp_norm",
    )
}


@pytest.mark.parametrize(
    ("fields", "moves"),
    [
        ({"vocab_size": 20}, {"embed"}),
        ({"embed_dim": 10}, {"embed", "final_norm", *LAYER}),
        ({"num_layers": 3}, LAYER),
        ({"num_heads": 6}, {"layers/attention/query", "layers/attention/out"}),
        ({"num_kv_heads": 4}, {"layers/attention/key", "layers/attention/value"}),
        ({"head_dim": 6}, {f"layers/attention/{x}" for x in ("query", "key", "value", "out")}),
        ({"mlp_dim": 16}, {"layers/mlp/gate", "layers/mlp/up", "layers/mlp/down"}),
        ({"tied_embeddings": False}, {"unembed"}),
        ({"positions": "relative"}, {"relative_bias"}),
        ({"activation": "gelu"}, set()),
        ({"scale_embeddings": True}, set()),
        ({"scale_attention": False}, set()),
        ({"scale_logits": True}, set()),
        ({"rope_theta": 10.0}, set()),
        ({"norm_epsilon": 0.1}, set()),
        ({"dtype": "bfloat16"}, set()),
        ({"remat": "full"}, set()),
        ({"attention": "xla"}, set()),
    ],
    ids=lambda names: ",".join(sorted(names)),
)
def test_each_field_moves_the_shapes_of_its_own_parameters(fields, moves):
    before, after = parameter_shapes(), parameter_shapes(**fields)
    assert set(before) <= set(after)
    assert {name for name in after if before.get(name) != after[name]} == moves
    for field, name, dim in (
        ("vocab_size", "embed", 0),
        ("embed_dim", "embed", 1),
        ("num_layers", "layers/mlp/up", 0),
        ("num_heads", "layers/attention/query", 2),
        ("num_kv_heads", "layers/attention/key", 2),
        ("head_dim", "layers/attention/query", 3),
        ("mlp_dim", "layers/mlp/up", 2),
    ):
        assert after[name][dim] == getattr(dataclasses.replace(TINY, **fields), field)


ATTENTION = "layers/attention"
NORMS = ("layers/attention_norm", "layers/mlp_norm")
POST = ("layers/attention_post_norm", "layers/mlp_post_norm")


@pytest.mark.parametrize(
    ("fields", "added", "taken"),
    [
        ({"norm": "layer"}, {f"{name}/bias" for name in ("final_norm", *NORMS)}, set()),
        (
            {"norm_place": "after"},
            {f"{name}/scale" for name in POST},
            {f"{n}/scale" for n in NORMS},
        ),
        ({"norm_place": "both"}, {f"{name}/scale" for name in POST}, set()),
        ({"qk_norm": "head"}, {f"{ATTENTION}/{n}_norm/scale" for n in ("query", "key")}, set()),
        ({"qkv_bias": True}, {f"{ATTENTION}/{n}/bias" for n in ("query", "key", "value")}, set()),
        ({"out_bias": True}, {f"{ATTENTION}/out/bias"}, set()),
        ({"mlp_bias": True}, {f"layers/mlp/{n}/bias" for n in ("gate", "up", "down")}, set()),
        ({"gated_mlp": False}, set(), {"layers/mlp/gate/kernel"}),
    ],
    ids=lambda given: ",".join(given) if isinstance(given, dict) else "",
)
def test_each_variation_adds_or_takes_its_own_parameters(fields, added, taken):
    def names(**fields):
        model = LanguageModel(dataclasses.replace(TINY, **fields))
        return {name for name, _ in flatten(nn.unbox(abstract_params(model))["decoder"])}

    before, after = names(), names(**fields)
    assert (after - before, before - after) == (added, taken)


LLAMA3 = {"rope_factor": 8.0, "rope_original_length": 8, "rope_low": 0.1, "rope_high": 1.0}


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({}, {"activation": "gelu"}),
        ({}, {"scale_embeddings": True}),
        ({}, {"scale_attention": False}),
        ({}, {"scale_logits": True}),
        ({}, {"rope_theta": 10.0}),
        ({}, {"norm_epsilon": 0.1}),
        ({}, {"norm_offset": True}),
        ({}, {"parallel_blocks": True}),
        ({}, {"attention_scalar": 9}),
        ({}, {"attention_cap": 1.0}),
        ({}, {"logit_cap": 2.0}),
        ({}, {"windows": (3,)}),
        ({}, {"rotary_layers": (False,)}),
        ({}, {"rotary_dim": 2}),
        ({"windows": (3,)}, {"rope_local_theta": 2.0}),
        ({}, {"rope_factor": 4.0}),
        (LLAMA3, {"rope_original_length": 0}),
        (LLAMA3, {"rope_low": 0.9}),
        (LLAMA3, {"rope_high": 3.0}),
    ],
    ids=lambda fields: next(iter(fields), ""),
)
def test_each_field_that_has_no_parameter_moves_the_logits_as_in_numpy(given, fields):
    config = dataclasses.replace(TINY, num_layers=1, **given)
    params = random_params(LanguageModel(config))
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    tokens = np.random.default_rng(1).integers(1, 16, (1, WIDTH))
    found = []
    for each in (config, dataclasses.replace(config, **fields)):
        logits = apply_model(LanguageModel(each), params, tokens, np.ones((1, WIDTH), int))[0]
        expected = reference.logits(double, each, tokens[0])
        np.testing.assert_allclose(logits, expected, atol=3e-6 * np.abs(expected).max())
        found.append(np.asarray(logits))
    assert np.abs(found[0] - found[1]).max() > 1e-2


def test_rematerialisation_keeps_what_it_says():
    """Of a layer's forward pass: everything, nothing but its input, or the matrix products."""
    kept = {}
    for remat in ("none", "full", "dots"):
        model = LanguageModel(dataclasses.replace(TINY, remat=remat, num_layers=1))
        params, tokens = random_params(model), np.arange(1, 9)[None]
        inputs = inputs_of(np.ones((1, 8), int))

        def loss(params, model=model, tokens=tokens, inputs=inputs):
            return model.apply({"params": params}, tokens, *inputs).sum()

        _, backward = jax.vjp(loss, params)
        kept[remat] = sum(x.size for x in jax.tree.leaves(backward))
    assert kept["full"] < kept["dots"] < kept["none"]


@pytest.mark.parametrize("remat", ["none", "full", "dots"])
def test_layers_written_out_compute_what_a_loop_over_them_does(remat, monkeypatch):
    config = dataclasses.replace(TINY, num_layers=3, remat=remat)
    params, tokens = random_params(LanguageModel(config)), np.arange(1, 9)[None]
    found = []
    for least in (config.embed_dim + 1, config.embed_dim):
        monkeypatch.setattr(kernels, "_WRITTEN_OUT", least)

        def loss(params):
            logits = LanguageModel(config).apply({"params": params}, tokens, *inputs_of(tokens))
            return jnp.mean(jnp.square(logits))

        program = jax.jit(jax.value_and_grad(loss))
        found.append((program(params), program.lower(params).as_text().count("while")))
    (looped, loops), (written_out, none) = found
    assert loops == 2 and none == 0  # forwards and backwards
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), looped, written_out
    )
