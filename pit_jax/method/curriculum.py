"""Defines the rounds of curriculum reinforcement learning, and samples their references.

A round names the source of y_ref (3.4.1): the data (Eq. 4), M_P^RL (Eq. 5), M_PIT applied to M_P^RL
samples (from a third round on), or an intermediate checkpoint of M_P's RL run. Sampled references
go through a reference store; a round trains only once its store is closed. Each round continues
with the weights of the round before it, and the KL reference stays M_PIT^SFT.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from pit_jax.checked import UserPath, checked
from pit_jax.data.examples import Example, prompt_hash
from pit_jax.data.reference_store import ReferenceWriter
from pit_jax.method.decode import SamplingConfig
from pit_jax.method.improve import ImproveConfig, Improver
from pit_jax.method.roles import Role

SOURCES = ("none", "data", "policy", "checkpoint", "pit")


@dataclasses.dataclass(frozen=True)
@checked
class Round:
    """Configures a round of PPO.

    Attributes:
      source: where y_ref comes from: `none` (M_P itself has no reference), `data` (y_l and y_w),
        `policy` (M_P^RL), `checkpoint` (M_P after `policy_step` steps of its RL run) or `pit`
        (M_PIT as it is when the round begins, applied to an M_P^RL sample).
      steps: number of PPO steps.
      policy: the stage that trained M_P.
      policy_step: for `checkpoint`, the step of its RL run.
      improvements: for `pit`, how often M_PIT is applied.
      sampling: how M_P samples references.
      pit_sampling: for `pit`, how M_PIT does.
    """

    source: str
    steps: int
    policy: UserPath = "rl_policy"
    policy_step: int = 0
    improvements: int = 1
    sampling: SamplingConfig = SamplingConfig()
    pit_sampling: SamplingConfig = SamplingConfig()

    def __post_init__(self):
        if self.source not in SOURCES:
            raise ValueError(f"Round: got source={self.source!r}, expected one of {SOURCES}")
        if (self.source == "checkpoint") != (self.policy_step > 0):
            raise ValueError("Round: policy_step goes with source='checkpoint', and only with it")
        if self.steps < 0 or self.improvements < 1:
            raise ValueError("Round: expected steps >= 0 and improvements >= 1")

    @property
    def is_sampled(self) -> bool:
        """Whether references are sampled into a reference store before the round."""
        return self.source in ("policy", "checkpoint", "pit")


def locate(rounds: tuple[Round, ...], step: int) -> Iterator[tuple[int, Round, int, int]]:
    """Yields the rounds still to do at `step`: (number, round, its first step, its last step)."""
    first = 0
    for number, round_ in enumerate(rounds):
        last = first + round_.steps
        if max(step, first) < last:
            yield number, round_, first, last
        first = last


def to_sample(
    examples: Sequence[Example], round_: Round, batch_size: int, seed: int
) -> Sequence[Example]:
    """Chooses the examples that a round samples references for: no more than its steps use.

    They are drawn at random and keep their order.

    Args:
      examples: those of the RL fold.
      round_: the round.
      batch_size: prompts of a step.
      seed: of the draw.
    """
    needed = round_.steps * batch_size
    if needed >= len(examples):
        return examples
    drawn = np.random.default_rng(seed).choice(len(examples), needed, replace=False)
    return [examples[i] for i in sorted(drawn)]


def sample_references(
    round_: Round,
    writer: ReferenceWriter,
    examples: Sequence[Example],
    policy: Any,
    policy_role: Role,
    improver: Improver,
    key: jax.Array,
    shard_size: int,
) -> None:
    """Fills and closes the reference store of a round, from where a crash left it.

    A response that didn't end within its window is used as it is cut, as at inference, and says so.

    Args:
      round_: a round whose references are sampled.
      writer: what writes the round's store.
      examples: what `to_sample` returns; for each prompt of theirs a reference is sampled.
      policy: parameters of M_P.
      policy_role: how M_P reads and writes.
      improver: Algorithm 2 with M_PIT as it is when the round begins.
      key: the round's key.
      shard_size: number of references sampled between two writes.
    """
    for start in range(writer.next_record, len(examples), shard_size):
        part = examples[start : start + shard_size]
        rows = [example.index for example in part]
        prompts = [example.prompt for example in part]
        responses = policy_role.answers(policy, prompts, rows, key, round_.sampling)
        if round_.source == "pit":
            config = ImproveConfig(iterations=round_.improvements, sampling=round_.pit_sampling)
            improve_key = jax.random.fold_in(key, 1)
            traces = improver(prompts, responses, rows, improve_key, config)
            responses = [trace.responses[-1] for trace in traces]
        writer.add(
            {
                "index": example.index,
                "prompt_hash": prompt_hash(example.prompt),
                "reference_tokens": (reference := improver.role.reference(response)),
                "text": improver.role.vocabulary.decode(reference),
                "ended": response.ended,
            }
            for example, response in zip(part, responses, strict=True)
        )
    writer.close()
