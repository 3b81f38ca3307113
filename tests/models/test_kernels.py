"""Fused attention kernels against plain attention in float64."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.models import kernels
from pit_jax.models.attention import CausalRows
from pit_jax.models.network import LanguageModel
from pit_jax.runtime.partitioning import MeshConfig, Partitioner
from tests.tiny_models import TINY, inputs_of, random_params

B, T, H, K, E = 2, 150, 4, 2, 128


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(B, T, heads, E)).astype(np.float32) for heads in (H, K, K))
    segments = np.ones((B, T), np.int32)
    segments[0, 60:] = 2  # two packed examples
    segments[0, 140:] = 0
    segments[1, :20] = 0  # padding on the left
    return q, k, v, segments


def expected(q, k, v, segments, scale=E**-0.5):
    """Attention in float64, a head at a time."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    sees = np.tril(np.ones((T, T), bool)) & (segments[:, :, None] == segments[:, None, :])
    out = np.zeros_like(q)
    for head in range(H):
        key, value = k[:, :, head // (H // K)], v[:, :, head // (H // K)]
        scores = np.einsum("bte,bse->bts", q[:, :, head], key) * scale
        weights = np.exp(scores - scores.max(-1, keepdims=True)) * sees
        out[:, :, head] = np.einsum("bts,bse->bte", weights / weights.sum(-1, keepdims=True), value)
    return out


def padded_splash(q, k, v, segments, scale=None):
    pad = ((0, 0), (0, -T % 128), (0, 0), (0, 0))
    q, k, v = (jnp.pad(x, pad) for x in (q, k, v))
    segments = jnp.pad(segments, pad[:2])
    return kernels._splash(q, k, v, segments, scale, interpret=True)[:, :T]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 2e-6), ("bfloat16", 2e-2)])
def test_splash_in_interpret_mode(arrays, dtype, tolerance):
    q, k, v, segments = arrays
    out = padded_splash(*(jnp.asarray(x, dtype) for x in (q, k, v)), segments)
    assert out.dtype == dtype
    real = segments > 0
    reference = expected(q, k, v, segments)
    error = np.abs(np.asarray(out, np.float64) - reference)[real].max()
    assert error < tolerance * np.abs(reference[real]).max()


def test_splash_takes_a_scale(arrays):
    *_, segments = arrays
    out, reference = padded_splash(*arrays, 0.05), expected(*arrays, 0.05)
    real = segments > 0
    assert np.abs(np.asarray(out) - reference)[real].max() < 2e-6 * np.abs(reference[real]).max()


@pytest.mark.slow
def test_gradients_of_splash_are_those_of_plain_attention(arrays):
    q, k, v, segments = arrays
    real = jnp.asarray(segments > 0)[..., None, None]

    def total(attend):
        return lambda q, k, v: jnp.sum(jnp.sin(attend(q, k, v)) * real)

    from pit_jax.models.attention import attend_causal, causal_mask

    plain = total(lambda q, k, v: attend_causal(q, k, v, causal_mask(segments)))
    fused = total(lambda q, k, v: padded_splash(q, k, v, segments))
    for one, other in zip(
        jax.grad(plain, (0, 1, 2))(q, k, v), jax.grad(fused, (0, 1, 2))(q, k, v), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=2e-6 * np.abs(one).max())


@pytest.mark.mesh
@pytest.mark.parametrize("model", [2, 4])  # of 4 heads and 2 key heads
def test_splash_on_a_mesh_is_split_by_rows_and_heads(arrays, model):
    q, k, v, segments = arrays
    mesh = Partitioner(MeshConfig(data=2, model=model), jax.devices()[: 2 * model])
    whole = jax.jit(padded_splash)(q, k, v, segments)
    split = mesh.jit(padded_splash)(q, k, v, segments)
    real = segments > 0
    np.testing.assert_allclose(np.asarray(split)[real], np.asarray(whole)[real], atol=1e-6)


def cuda_text(function, *arguments) -> str:
    return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@pytest.fixture
def a_hopper(monkeypatch):
    """Lets cuDNN's calls be written down where no GPU is."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(cudnn, "is_cuda_compute_capability_equal", lambda capability: False)


def test_cudnn_is_called_forwards_and_backwards(arrays, a_hopper):
    *given, segments = arrays
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in given)
    fused = lambda q, k, v: kernels.fused("cudnn", q, k, v, segments)  # noqa: E731
    assert "cudnn$fmha" in cuda_text(fused, q, k, v)
    gradient = jax.grad(lambda *x: fused(*x).astype(jnp.float32).sum(), (0, 1, 2))
    assert "Backward" in cuda_text(gradient, q, k, v)


@pytest.mark.parametrize(("scale", "written"), [(None, 128**-0.5), (1.0, 1.0)])
def test_cudnn_is_given_the_scale(arrays, a_hopper, scale, written):
    *given, segments = arrays
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in given)
    text = cuda_text(lambda q, k, v: kernels.fused("cudnn", q, k, v, segments, scale), q, k, v)
    found = re.findall(r"fmha_scale\\22: ([0-9.e-]+)", text)
    assert [float(x) for x in found] == [pytest.approx(written)]


@pytest.mark.gpu
def test_cudnn_on_a_gpu(arrays):
    q, k, v, segments = arrays
    given = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    out = jax.jit(kernels.fused, static_argnums=0)("cudnn", *given, segments)
    reference, real = expected(q, k, v, segments), segments > 0
    error = np.abs(np.asarray(out, np.float64) - reference)[real].max()
    assert error < 2e-2 * np.abs(reference[real]).max()


@pytest.mark.parametrize(
    ("fields", "platform", "kernel"),
    [
        ({}, "cpu", "xla"),
        ({}, "tpu", "splash"),
        ({"head_dim": 64}, "tpu", "xla"),
        ({"dtype": "bfloat16"}, "gpu", "cudnn"),
        ({}, "gpu", "xla"),  # float32
        ({"dtype": "bfloat16", "head_dim": 256}, "gpu", "xla"),
        ({"attention": "xla"}, "tpu", "xla"),
        ({"positions": "relative"}, "tpu", "xla"),
        ({"positions": "relative", "dtype": "bfloat16"}, "gpu", "xla"),
        ({"windows": (0, 4)}, "tpu", "xla"),
        ({"windows": (0, 0)}, "tpu", "splash"),
        ({"attention_cap": 50.0, "dtype": "bfloat16"}, "gpu", "xla"),
        ({"logit_cap": 30.0, "qk_norm": "head", "qkv_bias": True}, "tpu", "splash"),
    ],
)
def test_the_platform_chooses(fields, platform, kernel, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert kernels.choose(dataclasses.replace(TINY, **{"head_dim": 128} | fields)) == kernel


@pytest.mark.parametrize("scaled", [True, False])
def test_a_network_takes_the_kernel_that_is_chosen(scaled, monkeypatch):
    """Through all layers, in interpret mode, against the network's plain attention."""
    config = dataclasses.replace(TINY, head_dim=128, scale_attention=scaled)
    rows = np.array([[0, 1, 1, 1, 2, 2]])
    params, tokens = random_params(LanguageModel(config)), np.arange(2, 8)[None]
    positions, _ = inputs_of(rows)

    def logits(config):
        apply = jax.jit(LanguageModel(config).apply)
        return apply({"params": params}, tokens, positions, CausalRows(jnp.asarray(rows)))

    plain = logits(config)
    splash = kernels._splash
    monkeypatch.setattr(kernels, "_splash", lambda *x: splash(*x, interpret=True))
    other = logits(dataclasses.replace(config, attention="splash"))
    np.testing.assert_allclose(other[:, 1:], plain[:, 1:], atol=1e-5)
    assert not np.array_equal(other[:, 1:], plain[:, 1:])  # another kernel did run
