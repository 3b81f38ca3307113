"""The files of a PEFT adapter by hand, and adapters that aren't ours to read."""

import dataclasses
import json
import re

import numpy as np
import pytest
from etils import epath
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pit_jax.errors import UserError
from pit_jax.models.config import LoraConfig
from pit_jax.models.weights import peft
from pit_jax.models.weights.families import FAMILIES
from pit_jax.models.weights.rows import flatten
from tests.models.weights import tiny_adapters
from tests.models.weights.tiny_families import CONFIGS

LAYER = "base_model.model.model.layers.{}."


def abstract(own):
    """The shapes of a tree, whole on one device."""
    import jax

    whole = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), own)


def numbers(*shape):
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)


def test_names_shapes_and_places_of_numbers(tmp_path):
    """One layer, width 2, a query head of 3, a value head of 3; a rank of 1."""
    query = {"lora_a": numbers(1, 2, 1), "lora_b": 10 * numbers(1, 1, 1, 3)}
    out = {"lora_a": numbers(1, 2, 2, 1), "lora_b": 10 * numbers(1, 1, 2)}
    own = {"decoder": {"layers": {"attention": {"query": query, "out": out}}}}
    lora = LoraConfig(rank=1, alpha=2.0, targets="attention/(query|out)")
    folder = epath.Path(tmp_path)
    config = peft.write(folder, own, lora, "llama", "somewhere/tiny")
    found = {name: tensor.tolist() for name, tensor in load_file(folder / peft.WEIGHTS).items()}
    attention = LAYER.format(0) + "self_attn."
    assert found == {
        attention + "q_proj.lora_A.weight": [[1, 2]],
        attention + "q_proj.lora_B.weight": [[10], [20], [30]],
        attention + "o_proj.lora_A.weight": [[1, 2, 3, 4]],  # of two heads, one after the other
        attention + "o_proj.lora_B.weight": [[10], [20]],
    }
    assert config == json.loads((folder / "adapter_config.json").read_text())
    assert config == {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "somewhere/tiny",
        "r": 1,
        "lora_alpha": 2,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": ["o_proj", "q_proj"],
        "modules_to_save": None,
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "use_dora": False,
        "inference_mode": True,
    }


def neox(rslora=False, targets="attention/(query|value|out)"):
    lora = LoraConfig(rank=1, alpha=2.0, targets=targets, rslora=rslora)
    query = {"lora_a": np.float32([[[1], [2]]]), "lora_b": np.float32([[[[3], [4]]]])}
    value = {"lora_a": np.float32([[[5], [6]]]), "lora_b": np.float32([[[[7], [8]]]])}
    out = {"lora_a": numbers(1, 2, 1, 1), "lora_b": numbers(1, 1, 2)}
    attention = {"query": query, "value": value, "out": out}
    attention = {
        name: each for name, each in attention.items() if lora.matches(f"attention/{name}")
    }
    return lora, {"decoder": {"layers": {"attention": attention}}}


def test_adapters_of_query_and_value_become_one_where_a_family_has_one_matrix(tmp_path):
    """Two heads of width 1; its rows are q0, k0, v0, q1, k1, v1."""
    lora, own = neox()
    config = peft.write(epath.Path(tmp_path), own, lora, "gpt_neox", "pythia")
    fused = "base_model.model.gpt_neox.layers.0.attention.query_key_value"
    found = load_file(tmp_path / peft.WEIGHTS)
    assert found[fused + ".lora_A.weight"].tolist() == [[1, 2], [5, 6]]
    rows = [[3, 0], [0, 0], [0, 7], [4, 0], [0, 0], [0, 8]]
    assert found[fused + ".lora_B.weight"].tolist() == rows
    assert (config["r"], config["lora_alpha"]) == (1, 2)
    assert config["rank_pattern"] == {"query_key_value": 2}
    assert config["alpha_pattern"] == {"query_key_value": 4}  # so that the scale is 2 again
    assert config["target_modules"] == ["dense", "query_key_value"]


@pytest.mark.parametrize(("rslora", "alpha"), [(False, 4), (True, 2 * 2**0.5)])
def test_one_rank_of_all_needs_no_pattern(rslora, alpha, tmp_path):
    lora, own = neox(rslora, "attention/(query|value)")
    config = peft.write(epath.Path(tmp_path), own, lora, "gpt_neox", "pythia")
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (2, alpha, rslora)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    adapter = peft.describe(epath.Path(tmp_path), FAMILIES["gpt_neox"])
    assert adapter.lora.scale == pytest.approx(lora.scale)
    modules = ("attention/query", "attention/key", "attention/value")
    assert all(map(adapter.lora.matches, modules)) and not adapter.lora.matches("attention/out")
    like = tiny_adapters.nest(
        {
            f"decoder/layers/{module}/{name}": np.zeros(shape, np.float32)
            for module in modules
            for name, shape in (("lora_a", (1, 2, 2)), ("lora_b", (1, 2, 2, 1)))
        }
    )
    again = peft.read(epath.Path(tmp_path), FAMILIES["gpt_neox"], abstract(like))
    for module in modules:
        name = module.removeprefix("attention/")
        each = again["decoder"]["layers"]["attention"][name]
        product = np.einsum("DR,RHE->DHE", each["lora_a"][0], each["lora_b"][0])
        before = own["decoder"]["layers"]["attention"].get(name)
        expected = np.zeros((2, 2, 1))
        if before:
            expected = np.einsum("DR,RHE->DHE", before["lora_a"][0], before["lora_b"][0])
        np.testing.assert_array_equal(product, expected, module)


SEPARATE = [name for name in CONFIGS if CONFIGS[name]["model_type"] != "gpt_neox"]


@pytest.mark.parametrize("name", SEPARATE)
def test_what_is_written_comes_in_again_bit_for_bit(name, tmp_path):
    lora = LoraConfig(rank=3, alpha=5.5, targets="attention/.*|mlp/(up|down)|unembed", rslora=True)
    network = tiny_adapters.network(name, lora)
    own = tiny_adapters.own(network, scalar=True)
    family = CONFIGS[name]["model_type"]
    notes = {"task": "rm_gap", "anchor": 0.5}
    config = peft.write(epath.Path(tmp_path), own, lora, family, "tiny", notes=notes)
    assert (config["task_type"], config["modules_to_save"]) == ("SEQ_CLS", ["score"])
    adapter = peft.describe(epath.Path(tmp_path), FAMILIES[family])
    assert adapter.is_scalar and adapter.notes == notes
    assert dataclasses.replace(adapter.lora, targets=lora.targets) == lora
    matched = [module for module in network.modules if adapter.lora.matches(module)]
    assert matched == [module for module in network.modules if lora.matches(module)]
    again = peft.read(epath.Path(tmp_path), FAMILIES[family], abstract(own))
    before = dict(flatten(own))
    assert before.keys() == dict(flatten(again)).keys()
    for leaf, array in flatten(again):
        np.testing.assert_array_equal(array, before[leaf], leaf)


def test_half_precision(tmp_path):
    network = tiny_adapters.network("llama2")
    own = tiny_adapters.own(network)
    peft.write(epath.Path(tmp_path), own, network.lora, "llama", "tiny", "bfloat16")
    with safe_open(tmp_path / peft.WEIGHTS, "numpy") as file:
        types = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        assert types == {"BF16"} and file.metadata() == {"format": "pt"}
    again = peft.read(epath.Path(tmp_path), FAMILIES["llama"], abstract(own))
    one, other = (tree["decoder"]["layers"]["mlp"]["up"]["lora_a"] for tree in (own, again))
    assert other.dtype == np.float32
    np.testing.assert_allclose(one, other, rtol=2**-8)


@pytest.mark.parametrize("module", ["layers/mlp/gate", "unembed"])
def test_a_family_without_the_matrix_is_named(module, tmp_path):
    own = tiny_adapters.nest({f"decoder/{module}/lora_a": numbers(1, 2, 1)})
    with pytest.raises(UserError, match=f"gpt_neox weights: our decoder/{module}/lora_a: got"):
        peft.write(epath.Path(tmp_path), own, LoraConfig(1, 1.0), "gpt_neox", "tiny")


# --- what is refused ----------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path):
    network = tiny_adapters.network("llama2")
    own = tiny_adapters.own(network)
    peft.write(epath.Path(tmp_path), own, network.lora, "llama", "tiny")
    return epath.Path(tmp_path), own


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "got peft_type='IA3', expected LORA"),
        ({"task_type": "TOKEN_CLS"}, "got task_type='TOKEN_CLS', expected CAUSAL_LM"),
        ({"use_dora": True}, "got use_dora=True, expected none"),
        ({"bias": "lora_only"}, "got bias='lora_only', expected none"),
        ({"lora_bias": True}, "got lora_bias=True, expected none"),
        ({"rank_pattern": {"q_proj": 4}}, "got rank_pattern={'q_proj': 4}, expected none"),
        ({"alpha_pattern": {"q_proj": 4}}, "got alpha_pattern={'q_proj': 4}, expected none"),
        ({"layers_to_transform": [0]}, "got layers_to_transform=[0], expected none"),
        ({"modules_to_save": ["lm_head"]}, "got modules_to_save=['lm_head'], expected none"),
        (
            {"task_type": "SEQ_CLS", "modules_to_save": ["score", "embed_tokens"]},
            "got modules_to_save=['embed_tokens'], expected none",
        ),
        ({"init_lora_weights": "pissa"}, "got init_lora_weights='pissa', expected True"),
        ({"of_tomorrow": 3}, "got of_tomorrow=3, expected none"),
        ({"r": 0}, "got r=0, expected a number above 0"),
        ({"lora_alpha": None}, "got lora_alpha=None, expected a number above 0"),
    ],
)
def test_another_kind_of_adapter_is_refused_by_field(change, message, written):
    folder, _ = written
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError) as raised:
        peft.describe(folder, FAMILIES["llama"])
    assert str(raised.value) == f"{folder}/adapter_config.json: {message}"


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("base_model.model.model.embed_tokens.weight", (40, 16), "got something else than lora_A"),
        ("base_model.model.model.embed_tokens.lora_embedding_A", (2, 40), "got something else"),
        (LAYER.format(0) + "mlp.up_proj.lora_magnitude_vector", (24,), "got something else than"),
        (LAYER.format(4) + "mlp.up_proj.lora_A.weight", (2, 16), "expected none of that name"),
        (LAYER.format(0) + "mlp.up_proj.lora_A.weight", (3, 16), "shape (3, 16), expected (2, 16)"),
        (LAYER.format(0) + "mlp.up_proj.lora_A.weight", None, "got none, expected shape (2, 16)"),
    ],
)
def test_other_tensors_are_refused_by_name(name, shape, message, written):
    folder, own = written
    tensors = load_file(folder / peft.WEIGHTS)
    if shape:
        tensors[name] = np.zeros(shape, np.float32)
    else:
        del tensors[name]
    save_file(tensors, folder / peft.WEIGHTS)
    with pytest.raises(UserError, match=re.escape(f"{folder}: {name}: ")) as raised:
        peft.describe(folder, FAMILIES["llama"])
        peft.read(folder, FAMILIES["llama"], abstract(own))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_folder_that_is_no_adapter(tmp_path, written):
    folder, _ = written
    with pytest.raises(UserError, match=r"adapter_config.json: not found; the folder of a PEFT"):
        peft.describe(epath.Path(tmp_path / "none"), FAMILIES["llama"])
    (folder / peft.WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match=r"in .bin files, which may run code .* expected adapter_"):
        peft.describe(folder, FAMILIES["llama"])
    (folder / "adapter_model.bin").unlink()
    with pytest.raises(UserError, match=r"expected adapter_model.safetensors$"):
        peft.describe(folder, FAMILIES["llama"])
    save_file({}, folder / peft.WEIGHTS)
    with pytest.raises(UserError, match=r": got no lora_A and lora_B$"):
        peft.describe(folder, FAMILIES["llama"])
