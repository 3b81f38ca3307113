"""Does what `peers.py` compares, with tunix: a worker of it, see peers_protocol.py.

The learner is tunix's PPOLearner with four models of its Qwen3 module on a cluster of one device.
An iteration is what `train` does with a batch, called part by part so that each can be timed.
Padding and EOS are ids that the network has no logits for, so every response has full length.
"""

from __future__ import annotations

import functools
import importlib.metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peers_cases as cases
from flax import nnx
from peers_protocol import Prepared, clock, serve
from tunix.models.qwen3 import model as qwen
from tunix.rl import common, rl_cluster
from tunix.rl.ppo import ppo_learner
from tunix.rl.rollout import base_rollout


class Numbers:
    """Is a tokenizer of numbers between spaces."""

    def __init__(self, vocabulary: int):
        self._vocabulary = vocabulary

    def encode(self, text: str) -> list[int]:
        """Returns the numbers."""
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        """Writes them."""
        return " ".join(str(number) for number in ids)

    def bos_id(self) -> int:
        """Returns that there is none."""
        return 0

    def eos_id(self) -> int:
        """Returns an id that is never sampled."""
        return self._vocabulary

    def pad_id(self) -> int:
        """Returns an id that is never sampled."""
        return self._vocabulary + 1


def model_of(case: cases.Case, path: str, scalar: bool) -> qwen.Qwen3:
    """A language model, or one with a head for a scalar, as `create_critic_model` makes it."""
    size, arrays = case.network, np.load(path)
    config = qwen.ModelConfig(
        num_layers=size.layers,
        vocab_size=size.vocabulary,
        embed_dim=size.embed,
        hidden_dim=size.mlp,
        num_heads=size.heads,
        head_dim=size.head,
        num_kv_heads=size.kv_heads,
        rope_theta=1_000_000,  # which its attention takes, whatever stands here
        norm_eps=1e-6,
        use_tied_embedding=not scalar,
    )
    model = qwen.Qwen3(config, rngs=nnx.Rngs(0))
    if scalar:
        model.lm_head = nnx.Linear(size.embed, 1, use_bias=False, rngs=nnx.Rngs(0))
        put(model.lm_head.kernel, arrays["score.weight"].T)
    put(model.embedder.input_embedding, arrays["model.embed_tokens.weight"])
    put(model.final_norm.w, arrays["model.norm.weight"])
    for number, layer in enumerate(model.layers):
        at = f"model.layers.{number}."
        put(layer.input_layernorm.w, arrays[at + "input_layernorm.weight"])
        put(layer.post_attention_layernorm.w, arrays[at + "post_attention_layernorm.weight"])
        attention = at + "self_attn."
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            put(getattr(layer.attn, name).w, arrays[f"{attention}{name}.weight"].T)
        put(layer.attn.q_norm.w, arrays[attention + "q_norm.weight"])
        put(layer.attn.k_norm.w, arrays[attention + "k_norm.weight"])
        for name in ("gate_proj", "up_proj", "down_proj"):
            put(getattr(layer.mlp, name).kernel, arrays[f"{at}mlp.{name}.weight"].T)
    return model


def put(parameter: nnx.Param, array: np.ndarray) -> None:
    """Sets a parameter, whose dims may be more than a matrix has."""
    parameter[...] = jnp.asarray(array).reshape(parameter[...].shape)


def learner_of(
    case: cases.Case, models: dict[str, qwen.Qwen3], ends: tuple[int, ...]
) -> ppo_learner.PPOLearner:
    """tunix's learner: one epoch of one minibatch, sampling at temperature 1 to one of `ends`."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    adamw = optax.adamw(
        cases.LEARNING_RATE, b1=cases.B1, b2=cases.B2, eps=cases.EPSILON, weight_decay=0.0
    )
    rule = optax.chain(optax.clip_by_global_norm(cases.CLIP), adamw)
    config = rl_cluster.ClusterConfig(
        role_to_mesh=dict.fromkeys(rl_cluster.Role, mesh),
        training_config=rl_cluster.RLTrainingConfig(
            actor_optimizer=rule,
            critic_optimizer=rule,
            eval_every_n_steps=10**9,
            max_steps=10**9,
        ),
        rollout_config=base_rollout.RolloutConfig(
            max_tokens_to_generate=case.response,
            max_prompt_length=case.prompt,
            kv_cache_size=case.prompt + case.response,
            temperature=1.0,
            top_p=1.0,
            top_k=None,
            eos_tokens=list(ends),
        ),
    )
    with mesh:
        cluster = rl_cluster.RLCluster(
            **models, tokenizer=Numbers(case.network.vocabulary), cluster_config=config
        )
        settings = ppo_learner.PPOConfig(num_iterations=1, beta=0.05, kl_method="kl")
        return ppo_learner.PPOLearner(cluster, settings)


def checks_of(case: cases.Case, models: dict[str, qwen.Qwen3]) -> dict[str, float]:
    """What both make of the same episodes, in the mean; by the functions that the cluster calls."""
    rows = {
        "prompt_tokens": jnp.asarray(cases.tokens(case, 0, case.prompt)),
        "completion_tokens": jnp.asarray(cases.tokens(case, 0, case.response, "responses")),
        "pad_id": case.network.vocabulary + 1,
        "eos_id": case.network.vocabulary,
    }

    def log_probability(name: str) -> float:
        found = common.compute_per_token_logps(*nnx.split(models[name]), **rows)
        return float(jnp.mean(found))

    values = common.compute_score(models["critic"], **rows)
    scores = common.compute_score(models["reward"], **rows)
    return {
        "log-probability": log_probability("actor"),
        "log-probability of the reference": log_probability("reference"),
        "value": float(jnp.mean(values[:, -case.response - 1 : -1])),
        "score": float(jnp.mean(scores[:, -1])),
    }


def ppo_iteration(message: dict, paths: dict[str, str], lengths: bool = False) -> Prepared:
    """A PPO iteration of four models to full length, or with HH's lengths."""
    case = cases.Case(**message)
    models = {name: model_of(case, path, name in cases.SCALAR) for name, path in paths.items()}
    checks = {} if lengths else checks_of(case, models)
    ends = cases.ends(case, cases.HH[1]) if lengths else (case.network.vocabulary,)  # or never
    learner = learner_of(case, models, ends)
    # `train` sets these two when it starts.
    learner._rollout_micro_batch_size = learner._compute_logps_micro_batch_size = case.rows
    cluster = learner.rl_cluster
    words = Numbers(case.network.vocabulary)
    of_prompt = np.full(case.rows, case.prompt)
    if lengths:
        of_prompt, _ = cases.lengths(case, case.rows)

    def batch(number: int) -> dict[str, list[str]]:
        rows = cases.tokens(case, number % cases.BATCHES, case.prompt)
        return {"prompts": [words.decode(row[-n:]) for row, n in zip(rows, of_prompt, strict=True)]}

    held: dict[str, Any] = {"rollout": 0.0, "tokens": 0}
    generate = cluster.generate

    def timed(**arguments: Any) -> Any:
        held["rollout"] += clock(lambda: held.update(output=generate(**arguments)))
        return held["output"]

    cluster.generate = timed  # its output is on the host, so this is the time of all of it

    drawn = jax.tree.map(jnp.copy, {n: nnx.state(models[n]) for n in ("actor", "critic")})

    def restore() -> None:
        """Takes back an update, so that lengths stay as drawn; one without a token gives nan."""
        for trainer, name in ((cluster.actor_trainer, "actor"), (cluster.critic_trainer, "critic")):
            nnx.update(trainer.model, jax.tree.map(jnp.copy, drawn[name]))
        if learner.should_sync_weights:
            cluster.sync_weights()

    def gather(number: int) -> None:
        held["example"] = learner._generate_and_compute_advantage(batch(number))
        jax.block_until_ready(held["example"])
        of_response = np.asarray(held["example"].completion_mask).sum(axis=1)
        of_response += of_response < case.response  # the end, which it leaves out
        held["tokens"] += int(of_prompt.sum() + of_response.sum())

    def learn(number: int) -> None:
        del number
        cluster.update_actor([held["example"]], None)
        cluster.update_critic([held["example"]], None)
        if learner.should_sync_weights:
            cluster.sync_weights()
        else:
            cluster.global_steps += 1
        trained = cluster.actor_trainer.model, cluster.critic_trainer.model
        jax.block_until_ready([nnx.state(model) for model in trained])

    compiled = clock(lambda: (gather(0), learn(0)))
    if lengths:
        restore()
    gather(1)  # sampled by the updated parameters, whose layout may be another
    learn(1)
    full = all(len(row) == case.response for row in held["output"].tokens)
    assert lengths or full, "a response ended before its window"

    def go(times: int) -> dict:
        held["tokens"], held["rollout"], gathering, learning = 0, 0.0, 0.0, 0.0
        for number in range(times):
            if lengths:
                restore()
            gathering += clock(functools.partial(gather, number))
            learning += clock(functools.partial(learn, number))
        rollout = held["rollout"]
        phases = {"rollout": rollout, "scoring": gathering - rollout, "update": learning}
        return {"seconds": gathering + learning, "tokens": held["tokens"], "phases": phases}

    return Prepared(go, checks, compile_seconds=compiled)


if __name__ == "__main__":
    named = ("google-tunix", "jax")
    tasks = {"ppo": ppo_iteration, "ppo_lengths": functools.partial(ppo_iteration, lengths=True)}
    serve(tasks, {name: importlib.metadata.version(name) for name in named})
