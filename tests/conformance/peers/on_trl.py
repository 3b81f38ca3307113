"""trl: its whole trainer, driven for a step or two on tiny Llama models."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
import tempfile

import numpy as np
import torch
import transformers
from datasets import Dataset
from properties import Failed, NotRun, exactly_one, frequencies, last_token, same, schedule
from trl.experimental import ppo
from trl.experimental.ppo import ppo_trainer
from words import EOS, PAD, VOCAB, B, P, R, tokenizer

WATCHED = ("batch_generation", "masked_mean", "masked_whiten", "forward")
SEED = 4


def version() -> str:
    """Of the installed package."""
    return importlib.metadata.version("trl")


def model(kind, seed, constant=0.0, scale=1.0):
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
        num_labels=1,
        initializer_range=0.5,
    )
    made = kind(config)
    head = "score" if hasattr(made, "score") else "lm_head"
    weight = getattr(made, head).weight.data
    biased = torch.nn.Linear(16, len(weight), bias=True)
    biased.weight.data, biased.bias.data[:] = weight * scale, constant
    if head == "lm_head":
        biased.bias.data[PAD] = -1e4  # padding is never sampled
    setattr(made, head, biased)
    return made


def prompts(rows=B, padding=0):
    tokens = np.random.default_rng(0).integers(2, VOCAB, size=(B, P))
    tokens[::2, :2] = PAD
    return np.pad(tokens[:rows], ((0, 0), (padding, 0)), constant_values=PAD)


@dataclasses.dataclass
class Seen:
    """Of the first PPO step: its variables when advantages are whitened, and each gradient step."""

    step: dict = dataclasses.field(default_factory=dict)
    generation: tuple = ()
    ratio: np.ndarray | None = None
    minibatches: list = dataclasses.field(default_factory=list)
    gradient_steps: int = 0


def train(tokens=None, constant=0.0, scale=1.0, generation=None, **settings):
    """One PPO step on all prompts at once, in the order given; `generation` is used if given.

    `train` of trl hands nothing out, so its variables are read where it calls functions of its
    module.
    """
    tokens, seen = prompts() if tokens is None else tokens, Seen()
    real = {name: getattr(ppo_trainer, name) for name in WATCHED}

    def watch_generation(*arguments, **options):
        seen.generation = generation or real["batch_generation"](*arguments, **options)
        return seen.generation

    def watch_mean(*arguments, **options):
        ratio = sys._getframe(1).f_locals.get("ratio")
        if seen.ratio is None and ratio is not None:
            seen.ratio = ratio.detach().numpy()
        return real["masked_mean"](*arguments, **options)

    def watch_whiten(*arguments, **options):
        if not seen.step:
            for name, value in sys._getframe(1).f_locals.items():
                if isinstance(value, torch.Tensor):
                    seen.step[name] = value.detach().clone().numpy()
        return real["masked_whiten"](*arguments, **options)

    def watch_forward(*arguments, **options):
        variables = sys._getframe(1).f_locals
        if torch.is_grad_enabled():
            rows = variables["micro_batch_inds"].tolist()
            seen.minibatches.append((variables["ppo_epoch_idx"], variables["minibatch_idx"], rows))
        return real["forward"](*arguments, **options)

    with tempfile.TemporaryDirectory() as folder:
        options = {
            "output_dir": folder,
            "per_device_train_batch_size": len(tokens),
            "total_episodes": len(tokens),
            "num_ppo_epochs": 1,
            "num_mini_batches": 1,
            "local_rollout_forward_batch_size": len(tokens),
            "response_length": R,
            "temperature": 0.5,
            "stop_token": "eos",
            "missing_eos_penalty": 1.0,
            "kl_coef": 0.1,
            "num_sample_generations": 0,
            "report_to": [],
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "disable_tqdm": True,
        } | settings
        causal, scalar = transformers.LlamaForCausalLM, transformers.LlamaForSequenceClassification
        trainer = ppo.PPOTrainer(
            ppo.PPOConfig(**options),
            tokenizer(),
            model(causal, 1),
            model(causal, 3),
            model(scalar, 4, constant, scale),
            Dataset.from_dict({"input_ids": tokens.tolist()}),
            model(scalar, 2, constant),
        )
        # The given order, and the same draws for all.
        trainer.dataloader = [{"input_ids": torch.tensor(tokens)}]
        trainer.log = lambda metrics: None
        step = trainer.optimizer.optimizer.step

        def count(*arguments, **options):
            seen.gradient_steps += 1
            return step(*arguments, **options)

        trainer.optimizer.optimizer.step = count
        watches = watch_generation, watch_mean, watch_whiten, watch_forward
        for name, watch in zip(WATCHED, watches):
            setattr(ppo_trainer, name, watch)
        torch.manual_seed(SEED)
        try:
            trainer.train()
        finally:
            for name, function in real.items():
                setattr(ppo_trainer, name, function)
    return seen


def lengths(step):
    return step["sequence_lengths"] + 1


def ended(step):
    rows = step["contain_eos_token"]
    if rows.all() or not (rows & (lengths(step) == R)).any():
        raise NotRun("the seed should give rows without EOS, and rows that end at the last token")
    return rows


def same_rows(one, other, rows=slice(None)):
    same(
        "the sampled tokens",
        one["postprocessed_responses"][rows],
        other["postprocessed_responses"][rows, :R],
    )
    for name in ("logprobs", "values", "rewards", "advantages"):
        real = np.arange(R) < lengths(one)[rows, None]
        same(name, one[name][rows] * real, other[name][rows, :R] * real)


def first_ratio():
    return exactly_one(train().ratio)


def temperature():
    step = train(np.repeat(prompts()[:1], 4096, axis=0), response_length=1).step
    return frequencies(step["responses"][:, 0], step["logprobs"][:, 0], 4096)


def rewards_unrounded():
    step = train(constant=0.3, scale=0.0, kl_coef=0.0).step
    same("a reward of 0.3", step["rewards"].sum(axis=1)[ended(step)], [0.3] * ended(step).sum())
    return "exactly"


def reward_on_last_token():
    step = train(kl_coef=0.0).step
    ended(step)
    return last_token(step["rewards"], lengths(step))


def constant_in_reward():
    one, other = train().step, train(constant=8.0).step
    same("an advantage", one["advantages"], other["advantages"], 1e-4)
    return f"of {B} responses, {B - ended(one).sum()} of which don't end"


def padding():
    one = train().step
    same_rows(one, train(prompts(padding=3)).step)
    try:
        same_rows(one, train(response_length=R + 3).step, ended(one))
    except Failed as failure:
        full = ended(one) & (lengths(one) == R)
        same_rows(one, train(response_length=R + 3).step, ended(one) & ~full)
        raise Failed(
            f"of a response that ends at the window's last token: {failure} with 3 more columns"
        ) from failure
    return "3 columns of each"


def batch_size():
    whole, rows = train(), slice(B // 2)
    first = {name: x[rows] for name, x in whole.step.items() if x.ndim}
    again = tuple(x[rows] for x in whole.generation)
    same_rows(train(prompts(B // 2), generation=again).step, first)
    try:
        same_rows(train(prompts(B // 2)).step, first)
    except Failed as failure:
        raise Failed(f"{failure}; for the same tokens nothing changes") from failure
    return "8 and 16 rows"


def neighbours():
    tokens = prompts()
    tokens[B // 2 :] = tokens[: B // 2]
    same_rows(train().step, train(tokens).step, slice(B // 2))
    return "half of the rows exchanged"


def epochs():
    seen = train(num_ppo_epochs=3, num_mini_batches=2)
    accumulated = train(
        num_ppo_epochs=3,
        num_mini_batches=2,
        per_device_train_batch_size=B // 2,
        gradient_accumulation_steps=2,
    )
    by_epoch = [[rows for e, _, rows in seen.minibatches if e == epoch] for epoch in range(3)]
    found = schedule(seen.gradient_steps, by_epoch, 2, B)
    if accumulated.gradient_steps != 6:
        found["gradient_steps"] = (
            "fail",
            f"{seen.gradient_steps} of 6, but {accumulated.gradient_steps} of 6 when the batch is "
            "gathered by gradient_accumulation_steps=2",
        )
    return found


def resume():
    try:
        ppo.PPOTrainer.train(None, resume_from_checkpoint="folder")
    except TypeError as error:
        raise Failed(f"no way to resume: {error}") from error
    return ""


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
