"""tunix: its PPO learner on a cluster of tiny Llama models, all roles on one device."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from properties import Failed, NotRun, exactly_one, frequencies, last_token, same, schedule
from tunix.models.llama3 import model as llama
from tunix.rl import algo_core, common, rl_cluster
from tunix.rl.ppo import ppo_learner
from tunix.rl.rollout import base_rollout
from words import EOS, PAD, VOCAB, B, P, R, tokenizer

SEED = 0


def version() -> str:
    """Of the installed package."""
    return importlib.metadata.version("google-tunix")


class LanguageModel(llama.Llama3):
    """One that never samples padding."""

    def __call__(self, input_tokens, positions, cache, attention_mask):
        logits, cache = super().__call__(input_tokens, positions, cache, attention_mask)
        return logits.at[..., PAD].add(-1e4), cache


def language_model(seed, kind=LanguageModel):
    config = llama.ModelConfig(
        num_layers=2,
        vocab_size=VOCAB,
        embed_dim=16,
        hidden_dim=32,
        num_heads=4,
        head_dim=4,
        num_kv_heads=2,
        rope_theta=100,
        norm_eps=1e-6,
    )
    made = kind(config, rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        size = leaf.shape
        values = 1 + 0.2 * rng.normal(size=size) if len(size) == 1 else rng.normal(0, 0.5, size)
        return jnp.asarray(values, jnp.float32)

    nnx.update(made, jax.tree_util.tree_map_with_path(draw, nnx.state(made, nnx.Param)))
    return made


class ScalarModel(nnx.Module):
    """A scalar at each token, as reward model and critic."""

    def __init__(self, seed, constant=0.0):
        self.body = language_model(seed, llama.Llama3)
        self.config = self.body.config
        self.head = nnx.Linear(VOCAB, 1, rngs=nnx.Rngs(seed))
        self.head.bias[...] = jnp.full((1,), constant, jnp.float32)

    def __call__(self, tokens, positions, cache, attention_mask, **_):
        logits, _ = self.body(tokens, positions, cache, attention_mask)
        return self.head(logits)


def prompts(rows=B):
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{n}" for n in rng.integers(2, VOCAB, size=P - b % 3)) for b in range(B)]
    return {"prompts": np.array(texts[:rows])}


def make_learner(
    constant=0.0, reward=None, window=8, response=R, iterations=1, folder=None, steps=100, **sizes
):
    """A learner; `reward` is a function of texts in place of a reward model."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))
    config = rl_cluster.ClusterConfig(
        role_to_mesh=dict.fromkeys(rl_cluster.Role, mesh),
        training_config=rl_cluster.RLTrainingConfig(
            actor_optimizer=optax.adamw(1e-3),
            critic_optimizer=optax.adamw(1e-3),
            eval_every_n_steps=1000,
            max_steps=steps,
            checkpoint_root_directory=folder,
            **sizes,
        ),
        rollout_config=base_rollout.RolloutConfig(
            max_tokens_to_generate=response,
            max_prompt_length=window,
            kv_cache_size=64,
            temperature=0.5,
            top_p=1.0,
            seed=SEED,
        ),
    )
    with mesh:
        cluster = rl_cluster.RLCluster(
            actor=language_model(1),
            critic=ScalarModel(2, constant),
            reference=language_model(3),
            reward=None if reward else ScalarModel(4, constant),
            tokenizer=tokenizer(),
            cluster_config=config,
        )
        settings = ppo_learner.PPOConfig(
            num_iterations=iterations,
            beta=0.0 if reward else 0.1,
            kl_method="kl",
            advantage_estimator="watched",
        )
        return ppo_learner.PPOLearner(cluster, settings, reward_fns=reward)


SEEN: dict[str, np.ndarray] = {}


@ppo_learner.registry.register("advantage_estimator", "watched")
def watched(**arguments):
    """tunix's estimator; keeps its arguments."""
    SEEN.update({name: np.asarray(value) for name, value in arguments.items()})
    return algo_core.compute_gae_advantages(**arguments)


def collect(batch=None, tokens=None, **settings):
    """Episodes of one batch of prompts, with these tokens as responses if given."""
    learner = make_learner(**settings)
    if tokens is not None:
        real = learner.rl_cluster.generate

        def given(**arguments):
            return dataclasses.replace(real(**arguments), tokens=tokens)

        learner.rl_cluster.generate = given
    example = learner._generate_and_compute_advantage(batch or prompts())
    mask = np.asarray(example.completion_mask)
    return {
        "tokens": np.asarray(example.completion_ids),
        "mask": mask,
        "log_probs": np.asarray(example.old_per_token_logps) * mask,
        "values": np.asarray(example.old_values) * mask,
        "rewards": SEEN["rewards"] * mask,
        "all_rewards": SEEN["rewards"],
        "advantages": np.asarray(example.returns - example.old_values) * mask,
    }


def ended(episodes):
    """Of tunix's responses EOS is no part, so those with room left have ended."""
    rows = episodes["mask"].sum(axis=1) < R
    if rows.all() or not rows.any():
        raise NotRun("the seed should give rows with and without EOS")
    return rows


def same_rows(one, other, rows=slice(None)):
    for name in ("tokens", "log_probs", "values", "rewards", "advantages"):
        same(name, one[name][rows], other[name][rows, :R])


def first_ratio():
    learner, new = make_learner(), []
    example = learner._generate_and_compute_advantage(prompts())
    real = common.compute_per_token_logps

    def watch(*arguments, **options):
        found = real(*arguments, **options)
        if options.get("return_logits"):
            jax.debug.callback(lambda x: new.append(np.asarray(x)), found[0])
        return found

    common.compute_per_token_logps = watch
    try:
        learner.rl_cluster.update_actor([example], None)
        jax.effects_barrier()
    finally:
        common.compute_per_token_logps = real
    mask = np.asarray(example.completion_mask)
    return exactly_one(np.exp((new[0] - np.asarray(example.old_per_token_logps)) * mask))


def temperature():
    found = collect({"prompts": np.repeat(prompts()["prompts"][:1], 4096)}, response=1)
    kept = found["mask"][:, 0] > 0  # without those that are EOS
    return frequencies(found["tokens"][kept, 0], found["log_probs"][kept, 0], 4096)


def rewards_unrounded():
    found = collect(reward=lambda prompts, completions, **_: [0.3] * len(completions))
    same("a reward of 0.3", found["rewards"].sum(axis=1), [0.3] * B)
    return "exactly"


def reward_on_last_token():
    found = collect(reward=lambda prompts, completions, **_: [3.0] * len(completions))
    lengths, rows = found["mask"].sum(axis=1), ended(found)
    said = last_token(found["all_rewards"][lengths > 0], lengths[lengths > 0])
    if not (found["tokens"][rows] == EOS).any():
        raise Failed(
            "EOS is left out of the responses: the reward is on the token before it, and on "
            f"padding in the {(lengths == 0).sum()} of {B} responses that are EOS alone"
        )
    return said


def constant_in_reward():
    one, other = collect(), collect(constant=8.0)
    same("an advantage", one["advantages"], other["advantages"], 1e-4)
    return f"of {B} responses, {B - ended(one).sum()} of which don't end"


def padding():
    one = collect()
    given = [row[mask] for row, mask in zip(one["tokens"], one["mask"])]
    same_rows(one, collect(tokens=given, window=16))
    same_rows(one, collect(tokens=given, response=R + 3), ended(one))
    try:
        same_rows(one, collect(window=16))
        same_rows(one, collect(response=R + 3), ended(one))
    except Failed as failure:
        raise Failed(f"{failure}; for the same tokens nothing changes") from failure
    return "8 columns of the prompt, 3 of the response"


def batch_size():
    half, whole = collect(prompts(B // 2)), collect()
    same_rows(half, {name: x[: B // 2] for name, x in whole.items()})
    return "8 and 16 rows"


def neighbours():
    others = {"prompts": np.tile(prompts(B // 2)["prompts"], 2)}
    same_rows(collect(), collect(others), slice(B // 2))
    return "half of the rows exchanged"


def epochs():
    learner = make_learner(iterations=3, mini_batch_size=B // 2, train_micro_batch_size=B // 2)
    update, minibatches = learner.rl_cluster.update_actor, []
    ids = {tuple(tokenizer().encode(text)): row for row, text in enumerate(prompts()["prompts"])}

    def watch(examples, *rest):
        for example in examples:
            rows = [tuple(token for token in row.tolist() if token) for row in example.prompt_ids]
            minibatches.append([ids[row] for row in rows])
        return update(examples, *rest)

    learner.rl_cluster.update_actor = watch
    learner.train([prompts()])
    steps = int(learner.rl_cluster.actor_trainer.optimizer.step[...])
    return schedule(steps, [minibatches[i : i + 2] for i in range(0, 6, 2)], 2, B)


def resume():
    def trained(folder, batches):
        learner = make_learner(folder=folder)
        learner.train([prompts()] * batches)
        cluster = learner.rl_cluster
        kept = [cluster.actor_trainer.model, cluster.critic_trainer.model]
        return [np.asarray(x) for model in kept for x in jax.tree.leaves(nnx.state(model))]

    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        whole, half, resumed = trained(one, 4), trained(two, 2), trained(two, 4)
    assert any(not np.array_equal(x, y) for x, y in zip(half, resumed)), "nothing was learned"
    for x, y in zip(whole, resumed):
        if not np.array_equal(x, y):
            raise Failed(f"a parameter differs by {np.abs(x - y).max():.2g} after 2 + 2 steps")
    return "2 + 2 steps"


CHECKS = (
    first_ratio,
    temperature,
    rewards_unrounded,
    reward_on_last_token,
    constant_in_reward,
    padding,
    batch_size,
    neighbours,
    epochs,
    resume,
)
