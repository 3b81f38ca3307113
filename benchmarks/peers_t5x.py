"""Does what `peers.py` compares, with T5X: a worker of it, see peers_protocol.py.

The network is T5X's decoder-only example, the step that of its trainer, decoding its model's
`predict_batch` with `decoding.temperature_sample`.
"""

from __future__ import annotations

import functools
import time
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import peers_cases as cases
import seqio
import t5x.decoding
import t5x.models
import t5x.optimizers
import t5x.train_state
import t5x.trainer
from peers_protocol import Prepared, clock, serve
from t5x.examples.decoder_only import network


def model_of(case: cases.Case) -> t5x.models.DecoderOnlyModel:
    """T5X's model, with AdamW behind clipped gradients."""
    size = case.network
    config = network.TransformerConfig(
        vocab_size=size.vocabulary,
        dtype=jnp.float32,
        emb_dim=size.embed,
        num_heads=size.heads,
        num_layers=size.layers,
        head_dim=size.head,
        mlp_dim=size.mlp,
        mlp_activations=("gelu", "linear"),
        dropout_rate=0.0,
        logits_via_embedding=True,
    )
    clip = optax.clip_by_global_norm(cases.CLIP)
    adamw = optax.adamw(
        cases.LEARNING_RATE, b1=cases.B1, b2=cases.B2, eps=cases.EPSILON, weight_decay=0.0
    )
    return t5x.models.DecoderOnlyModel(
        module=network.DecoderWrapper(config),
        vocabulary=seqio.PassThroughVocabulary(size.vocabulary, eos_id=size.vocabulary),
        optimizer_def=t5x.optimizers.chain([clip, adamw]),
        decode_fn=t5x.decoding.temperature_sample,
        loss_normalizing_factor=float(case.rows * case.response),
    )


def load(case: cases.Case, path: str) -> dict[str, Any]:
    """A file's weights as T5X's parameters."""
    arrays = np.load(path)
    found: dict[tuple[str, ...], np.ndarray] = {
        ("token_embedder", "embedding"): arrays["model.embed_tokens.weight"],
        ("relpos_bias", "rel_embedding"): arrays["model.relative_attention_bias.weight"].T,
        ("decoder_norm", "scale"): arrays["model.norm.weight"],
    }
    for number in range(case.network.layers):
        at, to = f"model.layers.{number}.", f"layers_{number}"
        for theirs, ours in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "o")):
            matrix = arrays[f"{at}self_attn.{ours}_proj.weight"].T
            found[to, "self_attention", theirs, "kernel"] = matrix
        for theirs, ours in (("wi_0", "gate"), ("wi_1", "up"), ("wo", "down")):
            found[to, "mlp", theirs, "kernel"] = arrays[f"{at}mlp.{ours}_proj.weight"].T
        for theirs, ours in (
            ("pre_self_attention_layer_norm", "input_layernorm"),
            ("pre_mlp_layer_norm", "post_attention_layernorm"),
        ):
            found[to, theirs, "scale"] = arrays[f"{at}{ours}.weight"]
    nested = flax.traverse_util.unflatten_dict({("decoder", *k): v for k, v in found.items()})
    return jax.tree.map(jnp.asarray, nested)


def train(message: dict, paths: dict[str, str]) -> Prepared:
    """A step of T5X's trainer."""
    case = cases.Case(**message)
    model, params = model_of(case), load(case, paths["actor"])
    shape = (case.rows, case.prompt + case.response)
    variables = jax.eval_shape(
        lambda: model.get_initial_variables(
            jax.random.PRNGKey(0),
            {"decoder_input_tokens": shape},
            {"decoder_input_tokens": "int32"},
        )
    )
    expected = jax.tree.map(jnp.shape, nn.unbox(flax.core.unfreeze(variables["params"])))
    assert expected == jax.tree.map(jnp.shape, params), expected
    step = jax.jit(
        functools.partial(t5x.trainer.train_with_lr, model=model, num_microbatches=None),
        donate_argnums=0,
    )
    variables = flax.core.freeze({**flax.core.unfreeze(variables), "params": params})
    state = t5x.train_state.FlaxOptimTrainState.create(model.optimizer_def, variables)
    held: dict[str, Any] = {"state": state, "number": 0}
    rate, key = jnp.float32(cases.LEARNING_RATE), jax.random.PRNGKey(0)
    rows = [cases.training_rows(case, n) for n in range(cases.BATCHES)]
    names = "decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights"

    def place() -> None:
        batch = dict(zip(names, rows[held["number"] % len(rows)]))
        held["batch"] = jax.device_put(batch)

    def one() -> Any:
        held["state"], metrics = step(held["state"], held["batch"], rate, key)
        held["number"] += 1
        return metrics

    def loss() -> float:
        place()
        return float(one()["loss"].total)

    losses: list[float] = []
    compiled = clock(lambda: losses.append(loss()))
    losses += [loss(), loss()]
    tokens = case.rows * (case.prompt + case.response)

    def go(times: int) -> dict:
        start, placing = time.perf_counter(), 0.0
        for _ in range(times):
            placing += clock(place)
            one()
        jax.block_until_ready(held["state"].params)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": times * tokens, "phases": {"input": placing}}

    checks = {"loss": losses[0], "loss after 2 steps": losses[2]}
    return Prepared(go, checks, compile_seconds=compiled)


def decode(message: dict, paths: dict[str, str]) -> Prepared:
    """Greedy decoding to full length."""
    case = cases.Case(**message)
    model, params = model_of(case), load(case, paths["actor"])
    width = case.prompt + case.response - 1  # the last token isn't read
    causal = np.broadcast_to(np.int32(np.arange(width) < case.prompt), (case.rows, width))
    prompts = [cases.tokens(case, n, case.prompt) for n in range(cases.BATCHES)]
    how = {"temperature": 0.0, "topk": 1, "eos_id": case.network.vocabulary}

    @jax.jit
    def program(params, inputs, causal):
        batch = {"decoder_input_tokens": inputs, "decoder_causal_attention": causal}
        return model.predict_batch_with_aux(params, batch, decoder_params=dict(how))[0]

    def one(number: int) -> np.ndarray:
        prompt = prompts[number % len(prompts)]
        inputs = np.pad(prompt, ((0, 0), (0, width - case.prompt)))
        return np.asarray(program(params, inputs, causal))[:, : case.response]

    found: list[np.ndarray] = []
    compiled = clock(lambda: found.append(one(0)))

    def go(times: int) -> dict:
        seconds = clock(lambda: [one(number) for number in range(times)])
        return {"seconds": seconds, "tokens": times * case.rows * case.response}

    return Prepared(go, {"tokens": found[0].tolist()}, compile_seconds=compiled)


TASKS = {"train": train, "decode": decode}

if __name__ == "__main__":
    serve(TASKS, {"t5x": t5x.__version__, "jax": jax.__version__})
