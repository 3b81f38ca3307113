"""Every family against transformers, on tiny models with the same weights. Needs transformers."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from pit_jax.method.decode import SamplingConfig, generate, row_keys
from pit_jax.models.attention import CausalRows, positions_of
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel
from pit_jax.models.weights import hugging_face
from pit_jax.models.weights.configs import network_of
from tests.models.weights.tiny_families import CONFIGS, abstract, rows

pytestmark = pytest.mark.hf

TOKENS, PADDING = rows()
NEW = 64  # tokens that are decoded


@pytest.fixture(scope="module", params=CONFIGS)
def made(request, tmp_path_factory):
    """A family's model of transformers with random weights, and its folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(CONFIGS[request.param])
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    randomise(model)
    folder = epath.Path(tmp_path_factory.mktemp(request.param))
    model.save_pretrained(folder)
    return model, folder


def randomise(model):
    """Makes every parameter count: norms and biases too."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim == 1:
                parameter.add_(0.2 * noise)
            else:
                embedding = "embed" in name and "out" not in name
                parameter.copy_(noise if embedding else noise / parameter.shape[1] ** 0.5)


def ours(folder, scalar=False):
    """Our model of a folder, with its parameters."""
    network = network_of(json.loads((folder / "config.json").read_text()), "float32", "none")
    params = hugging_face.read(folder, abstract(network, scalar=scalar))
    return network, params


def their_logits(model):
    """Of the padded rows; what a classifier's head says of them, for one."""
    import torch

    tokens = torch.tensor(np.asarray(TOKENS).tolist())
    mask = (tokens != 0).long()
    # Columns of a row count from its first real token, as generate counts them.
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(input_ids=tokens, attention_mask=mask, position_ids=positions)
    return out.logits.numpy()


def our_logits(model, params):
    valid = TOKENS != 0
    inputs = TOKENS, positions_of(valid), CausalRows(valid.astype(jnp.int32))
    return np.asarray(jax.jit(model.apply)({"params": params}, *inputs))


def assert_close(ours, theirs):
    for row, padding in enumerate(PADDING.tolist()):
        np.testing.assert_allclose(ours[row, padding:], theirs[row, padding:], atol=1e-4)


def test_logits(made):
    model, folder = made
    network, params = ours(folder)
    theirs = their_logits(model)
    assert_close(our_logits(LanguageModel(network), params), theirs)
    assert np.abs(theirs).max() > 1


def test_greedy_decoding(made):
    import torch

    model, folder = made
    network, params = ours(folder)
    allowed = np.arange(network.vocab_size) > 1  # neither padding nor the end

    @jax.jit
    def decode(params):
        keys = row_keys(jax.random.key(0), jnp.arange(2))
        greedy = SamplingConfig(temperature=0)
        return generate(LanguageModel(network), params, TOKENS, keys, NEW, greedy, allowed)

    tokens = torch.tensor(np.asarray(TOKENS).tolist())
    theirs = model.generate(
        tokens,
        attention_mask=(tokens != 0).long(),
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        suppress_tokens=[0, 1],
        eos_token_id=None,
        pad_token_id=0,
    )
    assert decode(params).tokens_BR.tolist() == theirs[:, 12:].tolist()


def test_what_is_exported_is_loaded(made, tmp_path):
    from transformers import AutoModelForCausalLM

    model, folder = made
    network, params = ours(folder)
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    out = epath.Path(tmp_path)
    hugging_face.write(out, params, network, model_type, config={"pad_token_id": 0}, shard=10_000)
    assert len(list(out.glob("*.safetensors"))) > 1
    loaded, told = AutoModelForCausalLM.from_pretrained(
        out, attn_implementation="eager", output_loading_info=True
    )
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(loaded) is type(model)
    for name, parameter in model.state_dict().items():
        np.testing.assert_array_equal(loaded.state_dict()[name], parameter, name)
    np.testing.assert_array_equal(their_logits(loaded.eval()), their_logits(model))


def test_a_scalar_model_is_a_classifier_with_one_label(made, tmp_path):
    from transformers import AutoModelForSequenceClassification

    _, folder = made
    network, params = ours(folder)
    decoder = {name: leaf for name, leaf in params["decoder"].items() if name != "unembed"}
    head = jnp.linspace(-1, 1, network.embed_dim)[:, None]
    scalar = {"decoder": decoder, "head": {"kernel": head}}
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    out = epath.Path(tmp_path)
    hugging_face.write(out, scalar, network, model_type, config={"pad_token_id": 0})
    loaded = AutoModelForSequenceClassification.from_pretrained(out, attn_implementation="eager")
    assert loaded.config.num_labels == 1
    scores = our_logits(ScalarModel(network), scalar)[:, -1]
    np.testing.assert_allclose(their_logits(loaded.eval())[:, 0], scores, atol=1e-4)
    again = ours(out, scalar=True)[1]
    jax.tree.map(np.testing.assert_array_equal, again, scalar)
