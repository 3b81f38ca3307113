"""Chooses among the checkpoints of an RL stage: what is measured of each, and which is taken.

Appendix F divides all checkpoints into groups by their KL divergence to their SFT counterpart,
selects the one or two of each group with the highest reward on validation data, and leaves the last
word to a person who reads samples of them. `decide` does the first two and proposes one; the person
overrides it by `Choice.step`.

Reward rises with KL for as long as a policy learns to please its reward model, also where that does
it no good. So the highest reward alone isn't what is proposed, see `decide`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.checked import at_least, checked
from pit_jax.data.vocabularies.base import PAD_ID
from pit_jax.errors import UserError
from pit_jax.method.environment import Environment, Networks
from pit_jax.method.forward import response_scores
from pit_jax.method.parts import in_parts
from pit_jax.method.ppo import Experience, PPOConfig
from pit_jax.method.ppo_step import make_passes
from pit_jax.method.rollouts import make_answer, read_of
from pit_jax.models.heads import ScalarModel

# The least share of ended responses that counts, of the largest among the checkpoints.
_ENDED = 0.9


@dataclasses.dataclass(frozen=True)
@checked
class Choice:
    """Says how the checkpoint of an RL stage is chosen (Appendix F).

    Attributes:
      groups: into how many groups checkpoints are divided by their KL to the SFT model.
      per_group: how many of each group are candidates, 1 or 2: those of the highest reward.
      num_prompts: how many prompts of the dev split are answered by each checkpoint; 0 takes all.
        They are the first of the split, which is in the order of a hash.
      samples: how many responses of each candidate are kept to be read (10 to 20 in the paper).
      step: the step of the checkpoint to take, once the samples are read; 0 takes the one that is
        proposed.
    """

    groups: int = 4
    per_group: int = 1
    num_prompts: int = 128
    samples: int = 10
    step: int = 0

    def __post_init__(self):
        at_least(self, 1, "groups")
        at_least(self, 0, "num_prompts", "samples", "step")
        if self.per_group not in (1, 2):
            raise UserError(f"Choice.per_group: got {self.per_group}, expected 1 or 2")


@dataclasses.dataclass(frozen=True)
class Measured:
    """Says what was measured of a checkpoint on validation prompts.

    Attributes:
      step: its step.
      kl: mean over responses of the sum over tokens of `log π − log π_SFT`, at temperature 1.
      kl_error: standard error of that mean.
      reward: mean score of the responses, in the reward model's unit.
      reward_error: standard error of that mean.
      ended: share of the responses that ended within their window.
    """

    step: int
    kl: float
    kl_error: float
    reward: float
    reward_error: float
    ended: float


@dataclasses.dataclass(frozen=True)
class Decision:
    """Says what became of each checkpoint, in the order in which they were given.

    Attributes:
      groups: the group of each by KL, counted from 1; None for one that can't be chosen.
      candidates: the steps of the candidates, in the order of their KL.
      step: the step of the one that is proposed.
    """

    groups: tuple[int | None, ...]
    candidates: tuple[int, ...]
    step: int


def decide(
    measured: Sequence[Measured], scores_MN: np.ndarray, prompts: Sequence[str], choice: Choice
) -> Decision:
    """Divides checkpoints into groups by KL, finds the candidates, and proposes one of them.

    1. A checkpoint is left out if its KL or reward isn't finite, or if fewer of its responses end
       than 0.9 of the most that any checkpoint's do: what never ends has no score that means much.
       If none is left there are no candidates, and the last one is proposed, as without a choice.
    2. The groups are intervals of KL of equal width between the least and the largest of those that
       are left, since KL says how far a model has moved; groups of equal size would say when it
       was saved. A KL on a border belongs to the group above. Groups may stay empty.
    3. The candidates are the `per_group` of each group with the highest reward; of equal ones those
       of lower KL.
    4. Proposed is the candidate of the least KL whose reward is below the highest one's by no more
       than a standard error of this difference, response by response. So a model moves no farther
       from its SFT counterpart than what is measured can justify.

    What is equal in KL goes by reward, and what is equal in both to the earlier step.

    Args:
      measured: the checkpoints.
      scores_MN: float, each one's scores of its responses to the same N prompts.
      prompts: what scores of one group share, as `mean_and_error` takes it.
      choice: the groups, and how many candidates each has.
    """
    finite = [math.isfinite(m.kl) and math.isfinite(m.reward) for m in measured]
    most = max((m.ended for m, good in zip(measured, finite, strict=True) if good), default=0.0)
    left = [good and m.ended >= _ENDED * most for m, good in zip(measured, finite, strict=True)]
    if not any(left):
        return Decision((None,) * len(measured), (), measured[-1].step)
    kls = [m.kl for m, good in zip(measured, left, strict=True) if good]
    low, width = min(kls), (max(kls) - min(kls)) / choice.groups
    groups = tuple(
        (1 + min(int((m.kl - low) / width), choice.groups - 1) if width else 1) if good else None
        for m, good in zip(measured, left, strict=True)
    )
    candidates: list[Measured] = []
    for number in range(1, choice.groups + 1):
        group = [m for m, own in zip(measured, groups, strict=True) if own == number]
        candidates += sorted(group, key=lambda m: (-m.reward, m.kl, m.step))[: choice.per_group]
    candidates.sort(key=lambda m: (m.kl, m.step))
    best = min(candidates, key=lambda m: (-m.reward, m.kl, m.step))
    of_step = {m.step: scores_N for m, scores_N in zip(measured, scores_MN, strict=True)}
    enough = []
    for m in candidates:
        below, error = mean_and_error(of_step[best.step] - of_step[m.step], prompts)
        if below <= error:
            enough.append(m)
    proposed = min(enough, key=lambda m: (m.kl, -m.reward, m.step))
    return Decision(groups, tuple(m.step for m in candidates), proposed.step)


def mean_and_error(values: np.ndarray, groups: Sequence[str]) -> tuple[float, float]:
    """Computes a mean and its standard error, where values of one group count as one draw.

    The error is `sqrt(G/(G−1) Σ_g (Σ_{i in g} (x_i − mean))²) / n` for n values in G groups, which
    for groups of one value each is the usual one; 0 for a single group.

    Args:
      values: float [n], one or more.
      groups: what each value shares with others, such as its prompt.
    """
    values = np.asarray(values, np.float64)
    mean = values.mean()
    _, of_group = np.unique(np.asarray(groups), return_inverse=True)
    sums = np.bincount(of_group, values - mean)
    if len(sums) == 1:
        return float(mean), 0.0
    error = np.sqrt(len(sums) / (len(sums) - 1) * np.sum(sums**2)) / len(values)
    return float(mean), float(error)


def make_sample(networks: Networks, environment: Environment) -> Callable:
    """Makes what samples a response to each row: (parameters, batch, key) -> Generation."""
    answer = make_answer(networks.actor, environment)
    return lambda params, batch, key: answer(params, batch["prompts"], batch["rows"], key)


def make_measure(
    networks: Networks, config: PPOConfig, environment: Environment
) -> Callable[[dict[str, Any], dict[str, jax.Array], jax.Array], dict[str, jax.Array]]:
    """Makes what samples and measures responses as a PPO step does, but all at temperature 1.

    Args:
      networks: the networks of the models.
      config: PPO's settings; of them the size of the parts counts in which rows pass.
      environment: how a response ends and is scored.

    Returns:
      measure(models, batch, key). `models` holds the parameters of `policy`, `reference` and
      `reward`; `batch` has prompts [B, P] of the policy and reward_prompts [B, Q] of the reward
      model, padded on the left, rows [B], numbers that name the rows for their draws, and for a
      difference references [B, F], which end with EOS; where the reward model's vocabulary isn't
      the policy's, also what `rollouts.Translated` adds. It returns kl [B], `log π(y|x) −
      log π_ref(y|x)`, and score [B], above the anchor or that of y_ref, both float32; ended [B],
      tokens [B, R] and their mask [B, R].
    """
    at_one = dataclasses.replace(config, temperature=1.0)
    log_probs, _ = make_passes(networks, at_one, environment)
    sample, reward_model = make_sample(networks, environment), ScalarModel(networks.reward)

    def score(params, batch, response_BR, mask_BR):
        prompt_BQ, pooling = batch["reward_prompts"], environment.pooling
        return response_scores(reward_model, params, prompt_BQ, response_BR, mask_BR, pooling)

    def zero(params, batch):
        if not environment.difference:
            return environment.anchor
        return score(params, batch, batch["references"], batch["references"] != PAD_ID)

    def measure(models, batch, key):
        prompt_BP, reward = batch["prompts"], models["reward"]
        generation = batch.get("generation")
        if generation is None:
            generation = sample(models["policy"], batch, key)
        tokens_BR, mask_BR = generation.tokens_BR, generation.mask_BR.astype(jnp.float32)
        prompts = prompt_BP, batch["reward_prompts"]
        episodes = Experience(*prompts, tokens_BR, mask_BR, *([mask_BR] * 3))
        own_BR, reference_BR = (
            in_parts(lambda part, of=models[name]: log_probs(of, part)[0], episodes, config)
            for name in ("policy", "reference")
        )
        read, ends_BR = read_of(batch, generation, environment)
        score_B = score(reward, batch, *read)
        return {
            "kl": jnp.sum(own_BR - reference_BR, axis=1),
            "score": score_B - zero(reward, batch),
            "ended": jnp.any(ends_BR, axis=1),
            "tokens": tokens_BR,
            "mask": generation.mask_BR,
        }

    return measure
