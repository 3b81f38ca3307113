"""GGUF files, made here with the package `gguf`."""

from __future__ import annotations

import sys

import jax
import numpy as np
import pytest
from etils import epath

from pit_jax.errors import UserError
from pit_jax.models.weights import gguf_files, hugging_face
from pit_jax.models.weights.configs import network_of
from tests.models.weights.test_hugging_face import assert_same, params_of
from tests.models.weights.tiny_families import CONFIGS, abstract, network

# Their names of llama.cpp, by those of transformers.
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def made(path, name, quantised=False, extra=None):
    """A GGUF file of a tiny model, and its parameters."""
    gguf = pytest.importorskip("gguf")
    from safetensors.numpy import load_file

    params, net = params_of(name), network(name)
    folder = epath.Path(path).parent / "safe"
    hugging_face.write(folder, params, net, CONFIGS[name]["model_type"])
    writer = gguf.GGUFWriter(path, CONFIGS[name]["model_type"])
    writer.add_embedding_length(net.embed_dim)
    writer.add_feed_forward_length(net.mlp_dim)
    writer.add_block_count(net.num_layers)
    writer.add_head_count(net.num_heads)
    writer.add_head_count_kv(net.num_kv_heads)
    writer.add_key_length(net.head_dim)
    writer.add_layer_norm_rms_eps(net.norm_epsilon)
    writer.add_rope_freq_base(net.rope_theta)
    for theirs, array in (load_file(folder / "model.safetensors") | (extra or {})).items():
        for old, new in NAMES.items():
            theirs = theirs.replace(old, new)
        turned = "attn_q.w" in theirs or "attn_k.w" in theirs
        if turned and CONFIGS[name]["model_type"] == "llama":  # halves of heads to pairs
            array = array.reshape(-1, 2, net.head_dim // 2, net.embed_dim)
            array = array.swapaxes(1, 2).reshape(-1, net.embed_dim)
        if quantised and array.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(theirs, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(theirs, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return params


@pytest.mark.parametrize("name", ["llama2", "smollm2", "qwen2", "qwen3"])
def test_a_file_is_read_as_its_safetensors_are(name, tmp_path):
    path = epath.Path(tmp_path) / "model.gguf"
    params = made(path, name)
    assert network_of(gguf_files.GGUFFile(path).config(), "float32", "none") == network(name)
    assert_same(gguf_files.read(path, abstract(network(name))), params)


def test_quantised_weights_are_near(tmp_path, monkeypatch):
    """Q8_0 keeps 127 steps of the largest of 32 numbers in a row; rows of 64 have two scales."""
    path = epath.Path(tmp_path) / "model.gguf"
    wide = CONFIGS["llama2"] | {"hidden_size": 64, "intermediate_size": 96}
    monkeypatch.setitem(CONFIGS, "wide", wide)
    params = made(path, "wide", quantised=True)
    found = gguf_files.read(path, abstract(network("wide")))
    error = jax.tree.map(lambda x, y: float(abs(x - y).max()), params, found)
    assert 1e-3 < max(jax.tree.leaves(error)) < 5 / 127
    assert error["decoder"]["final_norm"]["scale"] == 0


def test_mistakes(tmp_path, monkeypatch):
    path = epath.Path(tmp_path) / "model.gguf"
    made(path, "llama2", extra={"rope_freqs.weight": np.ones(2, np.float32)})
    with pytest.raises(UserError, match=r"scaled by rope_freqs.weight, expected none or linear"):
        gguf_files.GGUFFile(path).config()
    with pytest.raises(UserError, match=r"rope_freqs.weight: got shape \(2,\), expected none"):
        gguf_files.read(path, abstract(network("llama2")))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"model.gguf: .*; the file isn't whole, get it again"):
        gguf_files.GGUFFile(path)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"needs the package gguf: pip install '.\[gguf\]'"):
        gguf_files.GGUFFile(path)
