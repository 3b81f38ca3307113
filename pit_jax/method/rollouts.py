"""Samples episodes, and says what the reward model reads of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.data.vocabularies.base import EOS_ID
from pit_jax.method.decode import Generation, SamplingConfig, generate, is_end, row_keys
from pit_jax.method.environment import Environment
from pit_jax.models.config import NetworkConfig
from pit_jax.models.network import LanguageModel
from pit_jax.runtime.partitioning import Partitioner


def make_answer(
    network: NetworkConfig, environment: Environment, temperature: float = 1.0
) -> Callable[..., Generation]:
    """Makes what samples episodes: (parameters, prompt_BP, rows_B, key) -> Generation.

    `rows_B` are the numbers that name the rows for their draws.
    """
    actor = LanguageModel(network)

    def answer(params, prompt_BP, rows_B, key):
        return generate(
            actor,
            params,
            prompt_BP,
            row_keys(key, rows_B),
            environment.response_length,
            SamplingConfig(temperature=temperature),
            environment.allowed_V,
            environment.ends,
        )

    return answer


def read_of(batch: Any, generation: Generation, environment: Environment):
    """Returns the rows that the reward model reads, tokens and their mask, and where responses end.

    They are the sampled ids, every end as EOS; or what `Translated` has added to the batch.
    """
    tokens_BR = generation.tokens_BR
    ends_BR = is_end(tokens_BR, environment.ends) & generation.mask_BR
    rows = jnp.where(ends_BR, EOS_ID, tokens_BR), generation.mask_BR.astype(jnp.float32)
    if "reward_response_tokens" in batch:
        rows = batch["reward_response_tokens"], batch["reward_response_mask"]
    return rows, ends_BR


class Translated:
    """Adds to a batch its episodes, and what a reward model of another vocabulary reads of them.

    Args:
      sample: (parameters, batch, key) -> Generation, not jitted.
      translate: makes of a Generation on the host `reward_response_tokens` and
        `reward_response_mask`; None where the vocabulary is the actor's, and nothing is added.
      partitioner: what puts the program on devices.
    """

    def __init__(
        self,
        sample: Callable[..., Generation],
        translate: Callable[[Generation], dict[str, np.ndarray]] | None,
        partitioner: Partitioner,
    ):
        self._sample = partitioner.jit(sample, out_shardings=partitioner.replicated)
        self._translate = translate
        self._partitioner = partitioner

    def __call__(self, params: Any, batch: Any, key: jax.Array) -> Any:
        """Returns the batch, on the devices, with `generation` and what is read of it."""
        if self._translate is None:
            return batch
        generation = self._sample(params, batch, key)
        read = self._partitioner.shard_batch(self._translate(jax.device_get(generation)))
        return batch | read | {"generation": generation}
