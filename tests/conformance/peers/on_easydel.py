"""EasyDeL: its PPO trainer on a tiny Llama model, from a batch of prompts to a gradient step."""

from __future__ import annotations

import importlib.metadata
import re
import tempfile

import easydel
import jax
import jax.numpy as jnp
import numpy as np
import transformers
from datasets import Dataset
from easydel.trainers.proximal_policy_optimization_trainer import _fn as ppo_functions
from flax import nnx
from properties import Failed, NotRun, exactly_one, frequencies, last_token, same
from words import EOS, PAD, VOCAB, B, P, R, tokenizer

SEED = 2


def version() -> str:
    """Of the installed package."""
    return importlib.metadata.version("easydel")


def language_model():
    config = easydel.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
        initializer_range=0.5,
        tie_word_embeddings=False,
    )
    made = easydel.LlamaForCausalLM(
        config, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(SEED)
    )
    made.generation_config = transformers.GenerationConfig(pad_token_id=PAD, eos_token_id=EOS)
    return made


def text_scores(prompts, completions, **_):
    """A score of each text, a number that is no integer and isn't 0."""
    return [0.37 + sum(map(int, re.findall(r"w(\d+)", text))) / 30 for text in completions]


def prompts(rows=B, padding=0):
    tokens = np.random.default_rng(0).integers(2, VOCAB, size=(B, P))
    tokens[::2, :2] = PAD
    tokens = np.pad(tokens[:rows], ((0, 0), (padding, 0)), constant_values=PAD)
    return {"input_ids": tokens, "attention_mask": (tokens != PAD).astype(np.int32)}


def make_trainer(batch, reward=text_scores, response=R, moved=True, **settings):
    """A trainer; `moved`: from parameters that aren't the reference's, and values that aren't 0."""
    rows, width = batch["input_ids"].shape
    options = {
        "save_directory": tempfile.mkdtemp(),
        "total_batch_size": rows,
        "max_prompt_length": width,
        "max_completion_length": response,
        "temperature": 0.5,
        "top_p": 1.0,
        "top_k": VOCAB,
        "learning_rate": 1e-3,
        "num_train_epochs": 1,
        "use_wandb": False,
        "use_esurge_generation": False,
        "kl_coef": 0.1,
        "missing_eos_penalty": 1.0,
        "whiten_advantages": False,
    } | settings
    trainer = easydel.PPOTrainer(
        arguments=easydel.PPOConfig(**options),
        model=language_model(),
        reward_funcs=reward,
        train_dataset=Dataset.from_dict({name: x.tolist() for name, x in batch.items()}),
        processing_class=tokenizer(),
    )
    rng = np.random.default_rng(7)

    def move(x):
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        return x + 0.1 * jnp.asarray(rng.normal(size=x.shape), x.dtype) if is_float else x

    if moved:
        state = jax.tree.map(move, trainer.model_state.graphstate)
        trainer.model_state = trainer.model_state.replace(graphstate=state)
    return trainer


def collect(batch=None, tokens=None, constant=0.0, **settings):
    """Episodes of one batch, with these tokens as responses if given.

    `constant` is added to the critic's values, whose head has no offset of its own.
    """
    batch = batch or prompts()
    trainer = make_trainer(batch, **settings)
    if tokens is not None:
        real = trainer.generate_unified

        def given(**arguments):
            found = real(**arguments)
            texts = tokenizer().batch_decode([row[row != PAD] for row in tokens])
            return found._replace(
                completion_ids=jnp.asarray(tokens),
                sequences=jnp.concatenate([found.prompt_ids, jnp.asarray(tokens)], axis=1),
                text=texts,
                raw_text=texts,
            )

        trainer.generate_unified = given
    compute = trainer.compute_rollout_logps_values

    def shifted(*arguments):
        log_probs, values = compute(*arguments)
        return log_probs, values + constant

    trainer.compute_rollout_logps_values = shifted
    estimate, rewards = trainer._compute_gae, []

    def watch(*arguments):
        rewards.append(np.asarray(arguments[0]))
        return estimate(*arguments)

    trainer._compute_gae = watch
    arrays = {name: jnp.asarray(x) for name, x in batch.items()}
    experience, _ = trainer._preprocess_batch_input(trainer.model_state, arrays, True)
    mask = np.asarray(experience["completion_mask"])
    return {
        "tokens": np.asarray(experience["input_ids"])[:, -mask.shape[1] :],
        "mask": mask,
        "log_probs": np.asarray(experience["old_logps"]) * mask,
        "values": np.asarray(experience["old_values"]) * mask,
        "rewards": rewards[0],
        "advantages": np.asarray(experience["advantages"]) * mask,
    }, (trainer, experience)


def ended(episodes):
    rows = (episodes["tokens"] * episodes["mask"] == EOS).any(axis=1)
    last = episodes["mask"].sum(axis=1) == R
    if rows.all() or not (rows & last).any():
        lengths = episodes["mask"].sum(axis=1).tolist()
        raise NotRun(f"the seed gives {rows.sum()} rows with EOS, lengths {lengths}")
    return rows


def same_rows(one, other, rows=slice(None)):
    for name in ("tokens", "log_probs", "values", "rewards", "advantages"):
        mask = one["mask"][rows]
        same(name, one[name][rows] * mask, other[name][rows, :R] * mask)


def first_ratio():
    real, new = ppo_functions.get_per_token_logps_values_entropies, []

    def watch(*arguments):
        found = real(*arguments)
        jax.debug.callback(lambda x: new.append(np.asarray(x)), found[0])
        return found

    ppo_functions.get_per_token_logps_values_entropies = watch
    try:
        episodes, (trainer, experience) = collect()
        with trainer.mesh:
            trainer.sharded_training_step_function(
                trainer.model_state, experience, *trainer._train_shared_fn_static_args
            )
        jax.effects_barrier()
    finally:
        ppo_functions.get_per_token_logps_values_entropies = real
    return exactly_one(np.exp((new[0] - np.asarray(experience["old_logps"])) * episodes["mask"]))


def temperature():
    batch = {name: np.repeat(x[:1], 4096, axis=0) for name, x in prompts().items()}
    found, _ = collect(batch, response=1)
    return frequencies(found["tokens"][:, 0], found["log_probs"][:, 0], 4096)


def rewards_unrounded():
    found, _ = collect(
        reward=lambda prompts, completions, **_: [0.3] * len(completions), kl_coef=0.0
    )
    rows = ended(found)
    same("a reward of 0.3", found["rewards"].sum(axis=1)[rows], [0.3] * rows.sum())
    return "exactly"


def reward_on_last_token():
    found, _ = collect(kl_coef=0.0)
    ended(found)
    return last_token(found["rewards"], found["mask"].sum(axis=1))


def constant_in_reward():
    one, _ = collect()
    other, _ = collect(
        constant=8.0, reward=lambda **texts: [score + 8 for score in text_scores(**texts)]
    )
    same("an advantage", one["advantages"], other["advantages"], 1e-4)
    return f"of {B} responses, {B - ended(one).sum()} of which don't end"


def padding():
    one, _ = collect()
    longer = np.pad(one["tokens"], ((0, 0), (0, 3)), constant_values=PAD)
    rows = ended(one)
    same_rows(one, collect(prompts(padding=3), one["tokens"])[0])
    same_rows(one, collect(tokens=longer, response=R + 3)[0], rows)
    try:
        same_rows(one, collect(prompts(padding=3))[0])
        same_rows(one, collect(response=R + 3)[0], rows)
    except Failed as failure:
        raise Failed(f"{failure}; for the same tokens nothing changes") from failure
    return "3 columns of each"


def batch_size():
    whole, _ = collect()
    first = {name: x[: B // 2] for name, x in whole.items()}
    same_rows(collect(prompts(B // 2), first["tokens"])[0], first)
    try:
        same_rows(collect(prompts(B // 2))[0], first)
    except Failed as failure:
        raise Failed(f"{failure}; for the same tokens nothing changes") from failure
    return "8 and 16 rows"


def neighbours():
    others = {name: np.tile(x, (2, 1)) for name, x in prompts(B // 2).items()}
    same_rows(collect()[0], collect(others)[0], slice(B // 2))
    return "half of the rows exchanged"


def gradient_steps():
    trainer = make_trainer(prompts(), num_ppo_epochs=3)
    steps = int(trainer.train().state.step)
    if steps != 3:
        raise Failed(f"{steps} of 3 epochs, of the whole batch each: there are no minibatches")
    return "3 epochs"


def every_episode_once():
    raise NotRun("there are no minibatches: each step is of the whole batch")


def reshuffled():
    raise NotRun("there are no minibatches: each step is of the whole batch")


def resume():
    def trained(folder, steps):
        trainer = make_trainer(
            {name: np.tile(x, (4, 1)) for name, x in prompts().items()},
            moved=False,
            save_directory=folder,
            total_batch_size=B,
            max_training_steps=steps,
            save_steps=2,
            resume_if_possible=True,
        )
        state = trainer.train().state
        return int(state.step), [np.asarray(x) for x in jax.tree.leaves(state.graphstate)]

    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        steps, whole = trained(one, 4)
        first, half = trained(two, 2)
        last, resumed = trained(two, 4)
    assert any(not np.array_equal(x, y) for x, y in zip(half, resumed)), "nothing was learned"
    if (steps, first, last) != (4, 2, 4):
        raise NotRun(f"runs of 4, 2 and 2 + 2 steps came to {steps}, {first} and {last}")
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
    gradient_steps,
    every_episode_once,
    reshuffled,
    resume,
)
