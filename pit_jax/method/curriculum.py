"""PPO stages: the rounds of curriculum reinforcement learning and where their references come from.

A round names the source of y_ref (3.4.1): the data (Eq. 4), M_P^RL (Eq. 5), M_PIT applied to M_P^RL
samples (a third round and on), or an intermediate checkpoint of M_P's RL run. Sampled references go
through a reference store; a round trains only once its store is closed. Each round goes on from the
last one's weights, and the KL reference stays M_PIT^SFT.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pit_jax.data.examples import Example
from pit_jax.data.reference_store import ReferenceWriter
from pit_jax.method import flops
from pit_jax.method.decode import SamplingConfig
from pit_jax.method.improve import ImproveConfig, Improver
from pit_jax.method.ppo import PPOConfig
from pit_jax.method.rollout import RLState, make_ppo_step
from pit_jax.models.config import NetworkConfig
from pit_jax.runtime import metrics as metrics_lib
from pit_jax.runtime.partitioning import Partitioner, constrain_rows

SOURCES = ("none", "data", "policy", "checkpoint", "pit")


@dataclasses.dataclass(frozen=True)
class Round:
    """One round of PPO.

    Attributes:
      source: of y_ref: `none` (M_P itself has no reference), `data` (y_l and y_w), `policy`
        (M_P^RL), `checkpoint` (M_P after `policy_step` steps of its RL run) or `pit` (M_PIT as it
        is when the round begins, applied to an M_P^RL sample).
      steps: PPO steps.
      policy: the stage that trained M_P.
      policy_step: for `checkpoint`, which of its steps.
      improvements: for `pit`, how often M_PIT is applied.
      temperature: of the sampled references.
    """

    source: str
    steps: int
    policy: str = "rl_policy"
    policy_step: int = 0
    improvements: int = 1
    temperature: float = 1.0

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
    """The rounds still to do at `step`: (number, round, its first step, its last step)."""
    first = 0
    for number, round_ in enumerate(rounds):
        last = first + round_.steps
        if max(step, first) < last:
            yield number, round_, first, last
        first = last


def sample_references(
    round_: Round,
    writer: ReferenceWriter,
    examples: Sequence[Example],
    policy: Any,
    improver: Improver,
    key: jax.Array,
    shard_size: int,
) -> None:
    """Fills and closes the reference store of a round, from where a crash left it.

    Args:
      round_: a sampled one.
      writer: of its store.
      examples: one reference is sampled for each of their prompts.
      policy: parameters of M_P.
      improver: Algorithm 2 with M_PIT as it is when the round begins.
      key: of the round.
      shard_size: references sampled between two writes.
    """
    layout, sampling = improver.layout, SamplingConfig(temperature=round_.temperature)
    width = layout.widths(improver.lengths).policy
    for start in range(writer.next_record, len(examples), shard_size):
        part = examples[start : start + shard_size]
        rows = [example.index for example in part]
        prompts = [example.prompt for example in part]
        built = [layout.policy_prompt(prompt) for prompt in prompts]
        responses = improver.sampler.respond(policy, built, width, rows, key, sampling)
        if round_.source == "pit":
            config = ImproveConfig(iterations=round_.improvements, sampling=sampling)
            improve_key = jax.random.fold_in(key, 1)
            traces = improver(prompts, responses, rows, improve_key, config)
            responses = [trace.responses[-1] for trace in traces]
        writer.add(
            {
                "index": example.index,
                "reference_tokens": improver.clean(response.tokens),
                "text": improver.decode(response.tokens),
            }
            for example, response in zip(part, responses, strict=True)
        )
    writer.close()


def make_programs(
    network: NetworkConfig,
    config: PPOConfig,
    pooling: str,
    response_length: int,
    partitioner: Partitioner,
) -> tuple[Callable, Callable]:
    """The jitted programs of a PPO step on a mesh; see rollout.make_ppo_step.

    Returns:
      collect(state, frozen, batch, key) -> Experience, beta, moments, metrics, Generation; and
      improve(state, experience, key) -> new state, metrics, which donates the state. The metric
      `model_flops` counts both.
    """
    collect, improve = make_ppo_step(network, network, config, pooling, response_length)

    @partitioner.jit
    def collect_episodes(state, frozen, batch, key):
        # Without the parameters among the results, which would be a copy of them.
        experience, state, metrics, generation = collect(state, frozen, batch, key)
        generation = constrain_rows(generation)
        B, R = generation.mask_BR.shape
        P, Q = batch["prompt_tokens"].shape[1], batch["reward_prompt_tokens"].shape[1]
        # Decoding ends with the longest response.
        written = jnp.sum(jnp.any(generation.mask_BR, axis=0).astype(jnp.float32))
        works = flops.ppo_collect(B, P, Q, R, config, written), flops.ppo_update(B, P, Q, R, config)
        metrics["model_flops"] = (sum(flops.total(work, network) for work in works), 1.0)
        return experience, state.beta, state.moments, metrics, generation

    return collect_episodes, partitioner.jit(improve, donate_argnums=0)


def make_step(
    network: NetworkConfig,
    config: PPOConfig,
    pooling: str,
    response_length: int,
    partitioner: Partitioner,
    frozen: Callable[[jax.Array], dict[str, Any]],
    key: jax.Array,
    decode: Callable[[Any], str],
) -> Callable[
    [RLState, Any, int], tuple[RLState, metrics_lib.Metrics, Callable[[], dict[str, str]]]
]:
    """A PPO step for `trainer.fit`: collect episodes, then one update.

    Args:
      network: of all roles.
      config: PPO's settings.
      pooling: of the reward model.
      response_length: R.
      partitioner: places the programs.
      frozen: gives the parameters of `reference` and `reward`; its argument is ready once the
        update before is done with the memory.
      key: base key of the stage; step i uses fold_in(key, i).
      decode: ids to text, for the samples that are logged.
    """
    collect_episodes, improve = make_programs(
        network, config, pooling, response_length, partitioner
    )

    def step(state: RLState, batch, number: int):
        rollout_key, update_key = jax.random.split(jax.random.fold_in(key, number))
        prompts = batch["prompt_tokens"]
        batch = partitioner.shard_batch(batch)
        experience, beta, moments, metrics, generation = collect_episodes(
            state, frozen(state.train.step), batch, rollout_key
        )
        state = state.replace(beta=beta, moments=moments)
        state, update_metrics = improve(state, experience, update_key)

        def texts():
            shard = generation.tokens_BR.addressable_shards[0]
            first, responses = shard.index[0].start or 0, jax.device_get(shard.data)
            return {
                f"sample_{i}": f"{decode(prompts[first + i])} → {decode(responses[i])}"
                for i in range(min(3, len(responses)))
            }

        return state, {**metrics, **update_metrics}, texts

    return step
