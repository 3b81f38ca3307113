"""Adapters of every family against the library PEFT, on tiny models. Needs peft."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from etils import epath

from pit_jax.models import adapters
from pit_jax.models.config import LoraConfig
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel
from pit_jax.models.weights import hugging_face, peft
from pit_jax.models.weights.families import FAMILIES
from tests.models.weights import tiny_adapters
from tests.models.weights.test_peft import abstract
from tests.models.weights.test_transformers import (
    assert_close,
    our_logits,
    ours,
    randomise,
    their_logits,
)
from tests.models.weights.tiny_families import CONFIGS

pytestmark = pytest.mark.hf

NAMES = ("llama2", "smollm2", "llama_with_biases", "qwen3", "gemma2", "olmo2", "pythia")


@pytest.fixture(scope="module", params=NAMES)
def base(request, tmp_path_factory):
    """The folder of a family's model with random weights, and the family."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = dict(CONFIGS[request.param])
    model_type = fields.pop("model_type")
    config = AutoConfig.for_model(model_type, **fields)
    config.pad_token_id = 0
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    randomise(model)
    folder = epath.Path(tmp_path_factory.mktemp(request.param))
    model.save_pretrained(folder)
    return folder, model_type


def loaded(kind, folder):
    import transformers

    auto = getattr(transformers, f"AutoModelFor{kind}")
    labels = {"num_labels": 1} if kind == "SequenceClassification" else {}
    return auto.from_pretrained(folder, attn_implementation="eager", **labels).eval()


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_computes_with_our_adapter_what_we_compute(base, rslora, tmp_path):
    from peft import PeftModel

    folder, model_type = base
    network, params = ours(folder)
    targets = "attention/.*|mlp/.*|unembed" if rslora else "attention/(query|value)|mlp/down"
    if model_type == "gpt_neox":
        targets = targets.removesuffix("|unembed")
    lora = LoraConfig(rank=3, alpha=7.0, targets=targets, rslora=rslora)
    own = tiny_adapters.own(dataclasses.replace(network, lora=lora))
    peft.write(epath.Path(tmp_path), own, lora, model_type, str(folder))
    model = loaded("CausalLM", folder)
    plain = their_logits(model)
    theirs = their_logits(PeftModel.from_pretrained(model, tmp_path).eval())
    adapted = adapters.whole(adapters.Adapted(params, own))
    network = dataclasses.replace(network, lora=lora)
    assert_close(our_logits(LanguageModel(network), adapted), theirs)
    assert np.abs(theirs - plain).max() > 0.1


def test_peft_scores_with_our_adapter_as_we_score(base, tmp_path):
    from peft import PeftModel

    folder, model_type = base
    network, params = ours(folder)
    lora = LoraConfig(rank=2, alpha=4.0)
    own = tiny_adapters.own(dataclasses.replace(network, lora=lora), scalar=True)
    peft.write(epath.Path(tmp_path), own, lora, model_type, str(folder))
    model = PeftModel.from_pretrained(loaded("SequenceClassification", folder), tmp_path).eval()
    decoder = {name: leaf for name, leaf in params["decoder"].items() if name != "unembed"}
    whole = tiny_adapters.merged({"decoder": decoder}, own, lora)
    scores = our_logits(ScalarModel(network), whole)[:, -1]
    np.testing.assert_allclose(their_logits(model)[:, 0], scores, atol=1e-4)


@pytest.mark.parametrize("scalar", [False, True])
def test_we_compute_with_an_adapter_of_peft_what_it_computes(base, scalar, tmp_path):
    import torch
    from peft import LoraConfig as Theirs
    from peft import get_peft_model

    folder, model_type = base
    kind = "SequenceClassification" if scalar else "CausalLM"
    task = "SEQ_CLS" if scalar else "CAUSAL_LM"
    config = Theirs(task_type=task, r=3, lora_alpha=5, target_modules="all-linear")
    model = get_peft_model(loaded(kind, folder), config).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) / 5)
    model.save_pretrained(tmp_path)
    adapter = peft.describe(epath.Path(tmp_path), FAMILIES[model_type])
    assert adapter.is_scalar == scalar
    assert (adapter.lora.rank, adapter.lora.alpha, adapter.lora.rslora) == (3, 5, False)
    network, params = ours(folder)
    like = abstract(tiny_adapters.own(dataclasses.replace(network, lora=adapter.lora), scalar))
    own = peft.read(epath.Path(tmp_path), FAMILIES[model_type], like)
    if scalar:
        params["decoder"].pop("unembed", None)
    whole = tiny_adapters.merged(params, own, adapter.lora)
    found = our_logits((ScalarModel if scalar else LanguageModel)(network), whole)
    theirs = their_logits(model)
    if scalar:
        np.testing.assert_allclose(theirs[:, 0], found[:, -1], atol=1e-4)
    else:
        assert_close(found, theirs)
        # What is exported merged is the same model without any adapter.
        hugging_face.write(
            epath.Path(tmp_path / "merged"), whole, network, model_type, config={"pad_token_id": 0}
        )
        assert_close(their_logits(loaded("CausalLM", tmp_path / "merged")), theirs)
