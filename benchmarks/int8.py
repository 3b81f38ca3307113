"""Measures what keeping a base model's matrices, or keys and values, in int8 changes.

    python benchmarks/int8.py --gin_file gin/runs/smollm2_cpu.gin \\
        --binding "INITIAL_CHECKPOINT_PATH = 'SmolLM2-135M-Instruct/'" \\
        --binding "VOCABULARY = 'tokenizer:SmolLM2-135M-Instruct'"

Loads the model that INITIAL_CHECKPOINT_PATH names, rounds it as `LoraConfig.backbone = 'int8'`
does, and reads dev's chosen responses with both. Prints the relative error of the matrices, and of
the responses' tokens: the loss with each, how far the logits are apart, the mean KL divergence, and
how often the likeliest token is the same; then the bytes of each. Then samples responses with keys
and values in the compute type and in int8, and prints how far the log-probabilities of what was
drawn are from those of a whole pass.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

import gin
from pit_jax.method.decode import SamplingConfig, generate, row_keys
from pit_jax.method.forward import join
from pit_jax.method.losses import token_log_probs
from pit_jax.method.sampler import pad_left, pad_right
from pit_jax.models import adapters
from pit_jax.models.cache import KVCache
from pit_jax.models.network import LanguageModel
from pit_jax.run.config import RunConfig
from pit_jax.run.run import Run

ROOT = pathlib.Path(__file__).resolve().parents[1]
ROWS = 8


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gin_file", action="append", required=True, help="repeatable")
    parser.add_argument("--binding", action="append", default=[], help="such as SEED = 1")
    parser.add_argument("--examples", type=int, default=64)
    options = parser.parse_args()
    gin.add_config_file_search_path(str(ROOT))
    for file in options.gin_file:
        gin.parse_config_file(file)
    gin.parse_config([*options.binding, f"MODEL_DIR = '{tempfile.mkdtemp()}'"])
    run = Run(gin.get_configurable(RunConfig)(), jax.devices()[:1])
    initial = next(stage.initial for stage in run.config.stages if stage.initial)
    whole = run.load(initial, role="policy")
    rounded = adapters.quantised(whole)
    role = run.role("policy")
    model, window = LanguageModel(role.network), role.lengths.response

    @jax.jit
    def logits(params, prompt_BP, response_BR):
        rows = join(prompt_BP, response_BR[:, :-1], (response_BR > 0)[:, :-1].astype(jnp.float32))
        return model.apply({"params": params}, *rows, first=prompt_BP.shape[1] - 1)

    totals = np.zeros(6)
    largest = 0.0
    examples = run.data.examples("dev")[: options.examples]
    for start in range(0, len(examples) - len(examples) % ROWS, ROWS):
        part = examples[start : start + ROWS]
        prompts = pad_left([role.layout.policy_prompt(e.prompt) for e in part], role.widths.policy)
        responses = pad_right([role.layout.response(e.chosen) for e in part], window)
        mask = responses > 0
        found = [np.asarray(logits(p, prompts, responses))[mask] for p in (whole, rounded)]
        log_probs = [np.asarray(jax.nn.log_softmax(x, axis=-1)) for x in found]
        labels = responses[mask]
        own = [x[np.arange(len(labels)), labels] for x in log_probs]
        kl = np.sum(np.exp(log_probs[0]) * (log_probs[0] - log_probs[1]), axis=-1)
        apart = np.abs(found[0] - found[1])
        same = found[0].argmax(-1) == found[1].argmax(-1)
        largest = max(largest, float(apart.max()))
        parts = (-own[0], -own[1], kl, apart.mean(-1), same, np.ones(len(labels)))
        totals += [float(x.sum()) for x in parts]
    tokens = int(totals[5])
    means = totals[:5] / tokens
    sizes = [sum(x.nbytes for x in jax.tree.leaves(tree)) / 1e6 for tree in (whole, rounded)]
    print(f"matrices       relative error {adapters.quantisation_error(whole, rounded):.2%}")
    print(
        f"loss           {means[0]:.4f}, in int8 {means[1]:.4f}, over {tokens} tokens of responses"
    )
    print(f"logits         apart by {means[3]:.3f} on average, {largest:.2f} at most")
    print(f"distributions  KL {means[2]:.4f} a token; the likeliest is the same for {means[4]:.1%}")
    print(f"memory         {sizes[0]:,.0f} MB in float32, {sizes[1]:,.0f} MB in int8")
    prompts = [role.layout.policy_prompt(e.prompt) for e in examples[: 2 * ROWS]]
    prompt_BP = pad_left(prompts, role.widths.policy)
    for kept in ("compute", "int8"):
        network = dataclasses.replace(role.network, cache=kept)
        cache(network, whole, jnp.asarray(prompt_BP), window, logits)


def cache(network, params, prompt_BP, window: int, logits) -> None:
    """Prints how far what is sampled with this cache is from the model itself."""
    rows = prompt_BP.shape[0]
    keys_B = row_keys(jax.random.key(0), jnp.arange(rows))

    @jax.jit
    def sample(params, prompt_BP):
        return generate(LanguageModel(network), params, prompt_BP, keys_B, window, SamplingConfig())

    found = sample(params, prompt_BP)
    whole = token_log_probs(logits(params, prompt_BP, found.tokens_BR), found.tokens_BR)
    off = np.asarray(found.log_probs_BR - whole)[np.asarray(found.mask_BR)]
    empty = jax.eval_shape(lambda: KVCache.zeros(network, 1, 1))
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(empty)) / 1e3
    print(
        f"cache          {network.cache}, {size:.1f} KB a token: log-probabilities of {off.size} "
        f"sampled tokens off by {np.abs(off).mean():.4f} on average, {np.abs(off).max():.2f} at "
        f"most, KL {off.mean():.4f} a token"
    )


if __name__ == "__main__":
    main()
