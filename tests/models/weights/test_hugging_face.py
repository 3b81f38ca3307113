"""Folders of safetensors: round trips of every family, on a mesh too, and mistakes."""

from __future__ import annotations

import dataclasses
import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from etils import epath
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pit_jax.errors import UserError
from pit_jax.models.weights import hugging_face
from tests.models.weights.tiny_families import CONFIGS, abstract, network, partitioner

# Tensors of a model, by hand: outside of layers, and of each of its 4.
COUNTS = {
    "llama2": (3, 9),  # embedding, last norm, output; 4 of attention, 3 of the MLP, 2 norms
    "llama3": (3, 9),
    "smollm2": (2, 9),
    "llama_with_biases": (3, 9 + 7),
    "smollm3": (2, 9),
    "mistral": (3, 9),
    "qwen2": (2, 9 + 3),
    "qwen2_with_windows": (3, 9 + 3),
    "qwen3": (3, 9 + 2),
    "gemma": (2, 9),
    "gemma2": (2, 9 + 2),
    "gemma3": (2, 9 + 4),
    "olmo2": (3, 9 + 2),
    "pythia": (4, 4 + 4 + 4),  # attention in one, its output, 2 of the MLP, 2 norms; biases of all
    "neox_in_turn": (4, 4 + 4 + 2),
}


def params_of(name, mesh=None, scalar=False, seed=0):
    """Random parameters of a tiny model on a mesh."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        values = rng.normal(size=leaf.shape).astype(np.float32)
        return jax.device_put(values, leaf.sharding)

    return jax.tree.map(draw, abstract(network(name), mesh, scalar))


def written(folder, name, **options):
    """A folder with a tiny model, and its parameters."""
    folder, params = epath.Path(folder), params_of(name)
    hugging_face.write(folder, params, network(name), CONFIGS[name]["model_type"], **options)
    return folder, params


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_is_read_bit_for_bit(name, tmp_path):
    folder, params = written(tmp_path, name)
    tensors = load_file(folder / "model.safetensors")
    once, each = COUNTS[name]
    assert len(tensors) == once + 4 * each
    assert_same(hugging_face.read(folder, abstract(network(name))), params)


@pytest.mark.mesh
def test_a_mesh_gets_its_parts(tmp_path, monkeypatch):
    """2 x 2 devices, several files, and tensors that are read in several chunks."""
    name = "llama3"
    folder, params = written(tmp_path, name, shard=8_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files and len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    sizes = [sum(x.nbytes for x in load_file(folder / file).values()) for file in files]
    assert max(sizes) <= 8_000 and index["metadata"]["total_size"] == sum(sizes)
    monkeypatch.setattr(hugging_face, "_CHUNK", 100)
    mesh = abstract(network(name), partitioner(model=2, devices=4))
    again = hugging_face.read(folder, mesh)
    assert_same(again, params)
    same = jax.tree.map(lambda x, y: x.sharding.is_equivalent_to(y.sharding, x.ndim), again, mesh)
    assert all(jax.tree.leaves(same))
    # What is on a mesh is written as well.
    hugging_face.write(folder / "again", again, network(name), CONFIGS[name]["model_type"])
    for file in files:
        for tensor, array in load_file(folder / file).items():
            with safe_open(folder / "again" / "model.safetensors", "numpy") as whole:
                np.testing.assert_array_equal(whole.get_tensor(tensor), array)


def test_types(tmp_path):
    folder, params = written(tmp_path, "smollm2", dtype="bfloat16")
    tensors = load_file(folder / "model.safetensors")
    assert {array.dtype for array in tensors.values()} == {np.dtype(ml_dtypes.bfloat16)}
    rounded = jax.tree.map(lambda x: np.asarray(x).astype(ml_dtypes.bfloat16), params)
    again = hugging_face.read(folder, abstract(network("smollm2")))
    assert {x.dtype for x in jax.tree.leaves(again)} == {np.dtype(np.float32)}
    assert_same(again, jax.tree.map(lambda x: x.astype(np.float32), rounded))
    with pytest.raises(UserError, match="dtype: got 'float16', expected one of float32, bfloat16"):
        written(tmp_path, "smollm2", dtype="float16")


def test_what_config_json_says(tmp_path):
    told = {"eos_token_id": [2, 3]}
    folder, _ = written(tmp_path, "llama3", dtype="bfloat16", config=told)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["torch_dtype"], config["eos_token_id"]) == ("bfloat16", [2, 3])
    assert config["rope_scaling"] == CONFIGS["llama3"]["rope_scaling"]
    assert (config["hidden_size"], config["num_key_value_heads"]) == (16, 2)
    with safe_open(folder / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_scalar_model_has_a_score(tmp_path):
    folder, params = epath.Path(tmp_path), params_of("gemma3", scalar=True)
    config = hugging_face.write(folder, params, network("gemma3"), "gemma3_text")
    assert config["architectures"] == ["Gemma3TextForSequenceClassification"]
    assert list(config["id2label"]) == ["0"]
    score = load_file(folder / "model.safetensors")["score.weight"]
    np.testing.assert_array_equal(score, np.asarray(params["head"]["kernel"]).T)
    assert_same(hugging_face.read(folder, abstract(network("gemma3"), scalar=True)), params)
    with pytest.raises(UserError, match=r"score.weight: got shape \(1, 16\), expected none"):
        hugging_face.read(folder, abstract(network("gemma3")))


# --- mistakes -----------------------------------------------------------------------------------

LAYER = "model.layers.1."


def changed(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop(LAYER + "mlp.up_proj.weight"),
            "model.layers.1.mlp.up_proj.weight: got none, expected shape (24, 16)",
        ),
        (
            lambda t: t.update({LAYER + "self_attn.q_proj.bias": np.ones(3)}),
            "model.layers.1.self_attn.q_proj.bias: got shape (3,), expected none of that name",
        ),
        (
            lambda t: t.update({"model.layers.4.mlp.up_proj.weight": np.ones((24, 16))}),
            "model.layers.4.mlp.up_proj.weight: got shape (24, 16), expected none of that name",
        ),
        (
            lambda t: t.update({LAYER + "self_attn.k_proj.weight": np.ones((16, 16))}),
            "model.layers.1.self_attn.k_proj.weight: got shape (16, 16), expected (8, 16)",
        ),
        (
            lambda t: t.update({"lm_head.weight": np.ones((41, 16))}),
            "lm_head.weight: got shape (41, 16), expected none or that of the embedding, as "
            "embeddings are tied",
        ),
    ],
)
def test_tensors_that_do_not_fit(change, message, tmp_path):
    folder, _ = written(tmp_path, "smollm2")
    changed(folder, change)
    with pytest.raises(UserError) as raised:
        hugging_face.read(folder, abstract(network("smollm2")))
    assert str(raised.value) == f"{folder}: {message}"


def test_what_repeats_or_follows_from_the_rest_is_left_aside(tmp_path):
    folder, params = written(tmp_path, "smollm2")
    extra = {
        "lm_head.weight": np.ones((40, 16), np.float32),
        "model.layers.3.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32),
    }
    changed(folder, lambda tensors: tensors.update(extra))
    assert_same(hugging_face.read(folder, abstract(network("smollm2"))), params)


def test_files_that_are_damaged_or_missing(tmp_path):
    folder, _ = written(tmp_path, "llama2", shard=8_000)
    last = sorted(folder.glob("*.safetensors"))[-1]
    content = last.read_bytes()

    def message():
        with pytest.raises(UserError) as raised:
            hugging_face.SafetensorsFolder(folder)
        return str(raised.value)

    last.write_bytes(content[:-5])
    assert re.fullmatch(rf"{last}: .*; the file isn't whole, get it again", message())
    last.unlink()
    named = f"{last}: not found, though model.safetensors.index.json names it"
    assert message() == named
    for path in folder.glob("model*"):
        path.unlink()
    assert message() == f"{folder}: expected model.safetensors or model.safetensors.index.json"
    (folder / "pytorch_model-00001-of-00002.bin").write_bytes(b"")
    assert f"{folder}: got weights in .bin files, which may run code" in message()
    assert f"AutoModelForCausalLM.from_pretrained('{folder}').save_pretrained" in message()
    with pytest.raises(UserError, match=r"absent/config.json: not found; a Hugging Face folder"):
        hugging_face.read(folder / "absent", abstract(network("llama2")))


def test_quantised_weights_are_refused(tmp_path):
    folder, _ = written(tmp_path, "smollm2")
    changed(folder, lambda tensors: tensors.update({"model.norm.weight": np.ones(16, np.int8)}))
    with pytest.raises(UserError, match=r"model.norm.weight: got type I8, expected one of F64"):
        hugging_face.SafetensorsFolder(folder)


def test_a_family_is_found_for_a_network(tmp_path):
    folder, params = epath.Path(tmp_path), params_of("mistral")
    assert hugging_face.write(folder, params, network("mistral"))["model_type"] == "mistral"
    other = dataclasses.replace(network("mistral"), attention_cap=5.0)
    with pytest.raises(UserError, match="no family of llama, "):
        hugging_face.write(folder, params, other)
