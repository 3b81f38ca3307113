"""Adapters on frozen backbones, against float64 NumPy, autodiff of merged kernels, and by hand."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.errors import UserError
from pit_jax.models import adapters
from pit_jax.models.adapters import Adapted
from pit_jax.models.config import LoraConfig
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel, in_compute_type
from tests import reference
from tests.tiny_models import TINY, apply_model, random_params

# Heads of a dim, kernels with two dims on either side, and an output projection.
BASE = dataclasses.replace(TINY, tied_embeddings=False)
LORA = LoraConfig(rank=3, alpha=6.0, targets="attention/.*|mlp/.*|unembed")
NETWORK = dataclasses.replace(BASE, lora=LORA)
TOKENS = np.random.default_rng(0).integers(1, 16, (2, 7))
ONES = np.ones((2, 7), int)


def drawn(network, model=LanguageModel, seed=1):
    """A model whose adapters aren't at their start: B is random too."""
    tree = random_params(model(network), seed)
    draw = np.random.default_rng(seed + 1)

    def one(path, x):
        if "lora" in path[-1].key:
            return jnp.asarray(draw.normal(0, 0.3, x.shape), jnp.float32)
        return x

    return Adapted(*adapters.split(jax.tree_util.tree_map_with_path(one, tree)))


def logits_of(network, params):
    return np.asarray(apply_model(LanguageModel(network), adapters.whole(params), TOKENS, ONES))


def merged_in_numpy(params, scale):
    """Kernels plus scale A B in float64, layer by layer."""
    double = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def merge(kernel, own, stacked):
        if stacked:
            layers = [merge(k, of, False) for k, *of in zip(kernel, *own)]
            return np.stack(layers)
        return kernel + scale * np.tensordot(own[0], own[1], 1)

    def walk(backbone, own, stacked):
        out = dict(backbone)
        for name, of in own.items():
            if "lora_a" in of:
                pair = of["lora_a"], of["lora_b"]
                kernel = merge(backbone[name]["kernel"], pair, stacked)
                out[name] = {**backbone[name], "kernel": kernel}
            else:
                inside = stacked or name == "layers"
                out[name] = walk(backbone[name], of, inside) if name in backbone else of
        return out

    return walk(double.backbone, double.own, False)


# --- what adapters compute ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "scale", "adapted"),
    [
        ({}, 2.0, 8),
        ({"alpha": 3.0}, 1.0, 8),
        ({"rank": 4, "rslora": True}, 3.0, 8),
        ({"targets": "attention/(query|value)"}, 2.0, 2),
        ({"targets": ".*"}, 2.0, 8),
        ({"targets": "unembed|mlp/gate"}, 2.0, 2),
    ],
)
def test_adapters_add_their_scaled_product_as_in_numpy(changes, scale, adapted):
    lora = dataclasses.replace(LORA, **changes)
    assert lora.scale == scale
    network = dataclasses.replace(BASE, lora=lora)
    params = drawn(network)
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params.own)}
    assert len(names) == 2 * adapted
    expected = merged_in_numpy(params, scale)
    for row, tokens in zip(logits_of(network, params), TOKENS):
        np.testing.assert_allclose(row[:7], reference.logits(expected, BASE, tokens), atol=2e-5)


def test_kernels_with_two_dims_on_either_side_have_adapters_of_these_dims():
    own = drawn(NETWORK).own["decoder"]
    attention, mlp = own["layers"]["attention"], own["layers"]["mlp"]
    L, D, H, E, F, V = 2, 8, 4, 4, 12, 16
    assert attention["query"]["lora_a"].shape == (L, D, 3)
    assert attention["query"]["lora_b"].shape == (L, 3, H, E)
    assert attention["out"]["lora_a"].shape == (L, H, E, 3)
    assert attention["out"]["lora_b"].shape == (L, 3, D)
    assert mlp["down"]["lora_a"].shape == (L, F, 3) and mlp["down"]["lora_b"].shape == (L, 3, D)
    assert own["unembed"]["lora_a"].shape == (D, 3) and own["unembed"]["lora_b"].shape == (3, V)


def test_fresh_adapters_change_nothing_and_draw_as_kernels_do():
    """B starts at 0, and A with the variance of its inputs."""
    key, tokens, mask = jax.random.key(0), jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2, 2), bool)
    wide = {"embed_dim": 64, "mlp_dim": 96, "head_dim": 16}
    network = dataclasses.replace(NETWORK, lora=dataclasses.replace(LORA, rank=16), **wide)
    tree = jax.jit(LanguageModel(network).init)(key, tokens, tokens, mask)["params"]
    params = Adapted(*adapters.split(nn.meta.unbox(tree)))
    for path, x in jax.tree.leaves_with_path(params.own):
        if path[-1].key == "lora_b":
            assert not np.any(x)
        else:
            inputs = x[0].size // 16 if x.ndim > 2 else len(x)
            assert np.std(x) * np.sqrt(inputs) == pytest.approx(1, abs=0.12)
    np.testing.assert_array_equal(logits_of(network, params), logits_of(network, params.backbone))


def test_a_merged_model_computes_what_its_adapters_do():
    for network, model in ((NETWORK, LanguageModel), (NETWORK, ScalarModel)):
        params = drawn(network, model)
        one = adapters.merged(params, LORA)
        assert not [p for p, _ in jax.tree.leaves_with_path(one) if "lora" in p[-1].key]
        outputs = [
            apply_model(model(each), tree, TOKENS, ONES)
            for each, tree in ((network, adapters.whole(params)), (BASE, one))
        ]
        np.testing.assert_allclose(*outputs, atol=1e-5)
    expected = merged_in_numpy(params, 2.0)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), one, expected)


def test_products_are_in_the_compute_type_and_parameters_in_float32():
    network = dataclasses.replace(NETWORK, dtype="bfloat16")
    params = drawn(network)
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    found = logits_of(network, params)
    assert found.dtype == np.float32
    exact = logits_of(NETWORK, params)
    assert 1e-4 < np.abs(found - exact).mean() < 0.05
    np.testing.assert_array_equal(found, logits_of(network, in_compute_type(params, network)))


# --- two parts ----------------------------------------------------------------------------------


def test_a_tree_falls_into_its_parts_and_comes_together_again():
    for model in (LanguageModel, ScalarModel):
        tree = random_params(model(NETWORK), 3)
        params = Adapted(*adapters.split(tree))
        jax.tree.map(np.testing.assert_array_equal, adapters.whole(params), tree)
        trained = {path[-1].key for path, _ in jax.tree.leaves_with_path(params.own)}
        assert trained == {"lora_a", "lora_b"} | ({"kernel"} if model is ScalarModel else set())
        assert adapters.count(params) == sum(x.size for x in jax.tree.leaves(tree))
        assert adapters.whole(tree) is tree and adapters.on(None, tree) is tree


def test_a_scalar_model_takes_a_language_models_backbone():
    """What that has more of, the output projection, is unused."""
    scalar, language = drawn(NETWORK, ScalarModel), drawn(NETWORK, seed=5)
    both = Adapted(language.backbone, scalar.own)
    outputs = apply_model(ScalarModel(NETWORK), adapters.whole(both), TOKENS, ONES)
    decoder = dict(language.backbone["decoder"])
    decoder.pop("unembed")
    alone = Adapted({"decoder": decoder}, scalar.own)
    np.testing.assert_array_equal(
        outputs, apply_model(ScalarModel(NETWORK), adapters.whole(alone), TOKENS, ONES)
    )


def test_gradients_are_those_through_merged_kernels():
    params = drawn(NETWORK)

    @jax.jit
    def gradients(own):
        def loss(tree, network):
            return jnp.sum(apply_model(LanguageModel(network), tree, TOKENS, ONES)[:, :7] ** 2) / 99

        def direct(own):
            return loss(adapters.whole(Adapted(params.backbone, own)), NETWORK)

        def through(own):
            return loss(adapters.merged(Adapted(params.backbone, own), LORA), BASE)

        return jax.grad(direct)(own), jax.grad(through)(own)

    one, other = gradients(params.own)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.abs(x).max() > 1e-3
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


# --- int8 ---------------------------------------------------------------------------------------


def test_int8_matrices_by_hand():
    """One scale an output channel of kernels, a row of the embedding; zeros stay zeros."""
    rows = jnp.array([[12.7, 0.04, -1.0], [0.0, 0.0, 0.0]])
    kernel = jnp.array([[[1.0, -25.4], [0.0, 0.0]], [[0.5, 0.26], [0.0, 12.7]]])  # in, out, out
    out = kernel[None]  # a layer of it, with two input dims
    tree = {
        "decoder": {
            "embed": {"embedding": rows},
            "layers": {"attention": {"query": {"kernel": kernel[None]}, "out": {"kernel": out}}},
        },
        "head": {"kernel": rows},
    }
    found = adapters.quantised(tree)
    embed, attention = found["decoder"]["embed"], found["decoder"]["layers"]["attention"]
    np.testing.assert_allclose(embed["embedding_scale"], [0.1, 0.0], rtol=1e-6)
    np.testing.assert_array_equal(embed["embedding"], [[127, 0, -10], [0, 0, 0]])
    scales = [[[1 / 127, 0.2], [0.0, 0.1]]]
    np.testing.assert_allclose(attention["query"]["kernel_scale"], scales, rtol=1e-6)
    integers = [[[[127, -127], [0, 0]], [[64, 1], [0, 127]]]]
    np.testing.assert_array_equal(attention["query"]["kernel"], integers)
    np.testing.assert_allclose(attention["out"]["kernel_scale"], [[1 / 127, 0.2]], rtol=1e-6)
    assert {x.dtype for x in (embed["embedding"], attention["out"]["kernel"])} == {
        jnp.dtype("int8")
    }
    assert found["head"]["kernel"] is rows
    error = adapters.quantisation_error(tree, found)
    again = adapters.dequantised(found)
    differences = [
        np.ravel(x - y) for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(again), strict=True)
    ]
    size = np.sqrt(sum(np.sum(x**2) for x in (rows, kernel, kernel)))  # the head isn't quantised
    assert error == pytest.approx(np.linalg.norm(np.concatenate(differences)) / size, rel=1e-4)
    assert 0 < error < 0.01


@pytest.mark.parametrize("tied", [False, True])
def test_an_int8_backbone_is_off_by_half_a_step_of_each_channel_and_computes_so(tied):
    network = dataclasses.replace(NETWORK, tied_embeddings=tied, lora=dataclasses.replace(LORA))
    params = drawn(network)
    small = adapters.quantised(params.backbone)
    again = adapters.dequantised(small)
    assert jax.tree.structure(again) == jax.tree.structure(params.backbone)

    def bounded(path, x, y):
        where, name = tuple(key.key for key in path[:-1]), path[-1].key
        if name not in ("kernel", "embedding"):
            return np.testing.assert_array_equal(x, y)
        dims = (1,) if name == "embedding" else tuple(range(x.ndim)[1 : 2 + (where[-1] == "out")])
        dims = (0,) if where[-1] == "unembed" else dims
        largest = np.abs(x).max(axis=dims, keepdims=True)
        assert np.all(np.abs(x - y) <= largest / 127 / 2 * 1.001)
        assert np.any(x != y)

    jax.tree_util.tree_map_with_path(bounded, params.backbone, again)
    found, expected = (
        logits_of(network, Adapted(backbone, params.own)) for backbone in (small, again)
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert not np.allclose(found, logits_of(network, params), atol=1e-3)


@pytest.mark.parametrize(("dtype", "close"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_gradients_go_through_int8_matrices(dtype, close):
    """Those of adapters, as through the same numbers in float32; no copy of a matrix is kept."""
    params = drawn(NETWORK)
    small = adapters.quantised(params.backbone)

    def loss(own, backbone, network):
        tree = adapters.whole(Adapted(backbone, own))
        return jnp.sum(apply_model(LanguageModel(network), tree, TOKENS, ONES)[:, :7] ** 2) / 99

    network = dataclasses.replace(NETWORK, dtype=dtype)
    found = jax.jit(jax.grad(lambda own: loss(own, small, network)))(params.own)
    again = adapters.dequantised(small)
    expected = jax.jit(jax.grad(lambda own: loss(own, again, NETWORK)))(params.own)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == jnp.float32
        assert np.linalg.norm(x - y) < close * np.linalg.norm(y)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 0}, r"LoraConfig.rank: got 0, expected 1 or more"),
        ({"alpha": 0.0}, r"LoraConfig.alpha: got 0.0, expected a number above 0"),
        ({"targets": "("}, r"LoraConfig.targets: got '\(', expected a regular expression: .*"),
        ({"backbone": "int4"}, r"LoraConfig.backbone: got 'int4', expected one of .*int8"),
        ({"rslora": 1}, r"LoraConfig.rslora: got 1, expected True or False"),
    ],
)
def test_settings_of_adapters_are_checked(changes, message):
    with pytest.raises(UserError, match=f"^{message}"):
        dataclasses.replace(LORA, **changes)


@pytest.mark.parametrize("targets", ["query", "attention", "unembed"])
def test_targets_that_match_no_module_are_refused(targets):
    message = (
        rf"LoraConfig.targets: got '{targets}', expected a regular expression that matches one or "
        "more of attention/query, attention/key, attention/value, attention/out, mlp/up, mlp/down"
    )
    with pytest.raises(UserError, match=f"^{message}$"):
        lora = LoraConfig(rank=1, alpha=1.0, targets=targets)
        dataclasses.replace(TINY, gated_mlp=False, lora=lora)
