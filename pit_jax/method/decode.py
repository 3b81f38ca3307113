"""Samples from a language model: a prefill, then a `while_loop` until every row has met an end.

Prompts are left-padded, so all rows write the same column of the KV cache, and a single
`dynamic_update_slice` puts the tokens in place. Each row draws with its own key, so its sample
doesn't depend on its neighbours or its place in the batch.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.checked import checked
from pit_jax.data.vocabularies.base import EOS_ID, PAD_ID
from pit_jax.method.losses import allow, token_log_probs
from pit_jax.models.adapters import whole
from pit_jax.models.attention import CausalRows, KVCache, positions_of
from pit_jax.models.network import LanguageModel, for_decoding
from pit_jax.runtime import partitioning


@dataclasses.dataclass(frozen=True)
@checked
class SamplingConfig:
    """Says how tokens are drawn (static under jit).

    Attributes:
      temperature: what the logits are divided by; 0 takes the likeliest token.
      top_k: how many of the likeliest tokens are kept; 0 keeps all.
      top_p: the smallest set of likeliest tokens whose probability reaches this is kept; 1 keeps
        all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(
                f"sampling: got {self}, expected temperature >= 0, top_k >= 0 and 0 < top_p <= 1"
            )


@flax.struct.dataclass
class Generation:
    """Holds sampled responses.

    Attributes:
      tokens_BR: int32, the end included where it was met, padding after it.
      log_probs_BR: float32, each token's log-probability under the tempered, unfiltered
        distribution; 0 on padding.
      mask_BR: bool, True on real tokens, the end included.
    """

    tokens_BR: jax.Array
    log_probs_BR: jax.Array
    mask_BR: jax.Array


def is_end(tokens: Any, ends: tuple[int, ...]) -> Any:
    """Returns where tokens, an array of any shape, are one of the ids that end a response."""
    return functools.reduce(operator.or_, [tokens == end for end in ends])


def row_keys(key: jax.Array, rows_B: jax.Array) -> jax.Array:
    """Makes a key for each row, from a number that names the row wherever it stands."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows_B)


def filter_logits(logits_BV: jax.Array, config: SamplingConfig) -> jax.Array:
    """Sets logits that top-k and top-p exclude to -inf; ties with the last kept logit are kept.

    Args:
      logits_BV: logits, already divided by the temperature.
      config: top_k and top_p; top-p counts probability after top-k.
    """
    if 0 < config.top_k < logits_BV.shape[-1]:
        kth_B1 = jax.lax.top_k(logits_BV, config.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < kth_B1, -jnp.inf, logits_BV)
    if config.top_p < 1:
        sorted_BV = jnp.sort(logits_BV, axis=-1, descending=True)
        probability_BV = jax.nn.softmax(sorted_BV, axis=-1)
        before_BV = jnp.cumsum(probability_BV, axis=-1) - probability_BV
        kept_BV = jnp.where(before_BV < config.top_p, sorted_BV, jnp.inf)
        logits_BV = jnp.where(
            logits_BV < jnp.min(kept_BV, axis=-1, keepdims=True), -jnp.inf, logits_BV
        )
    return logits_BV


def sample(
    logits_BV: jax.Array,
    keys_B: jax.Array,
    config: SamplingConfig,
    temperature_B: jax.Array | None = None,
):
    """Draws a token for each row.

    Args:
      logits_BV: float32 logits.
      keys_B: one key for each row.
      config: temperature and filters.
      temperature_B: each row's own temperature in place of the config's, if that isn't 0.

    Returns:
      tokens_B and their log-probabilities [B] under the tempered, unfiltered distribution.
    """
    if config.temperature == 0:
        tokens_B = jnp.argmax(logits_BV, axis=-1)
    else:
        own = config.temperature if temperature_B is None else temperature_B[:, None]
        logits_BV = logits_BV / own
        tokens_B = jax.vmap(jax.random.categorical)(keys_B, filter_logits(logits_BV, config))
    tokens_B = tokens_B.astype(jnp.int32)
    log_probs_B1 = token_log_probs(logits_BV[:, None], tokens_B[:, None])
    return tokens_B, log_probs_B1[:, 0]


def prefill(model: LanguageModel, params, prompt_BP: jax.Array, response_length: int):
    """Runs the prompts once.

    Returns:
      next-token logits [B, V] and a cache of P + R columns holding the prompts.
    """
    valid_BP = prompt_BP != PAD_ID
    cache = KVCache.zeros(model.config, prompt_BP.shape[0], prompt_BP.shape[1] + response_length)
    return model.apply(
        {"params": whole(params)},
        prompt_BP,
        positions_of(valid_BP),
        CausalRows(valid_BP.astype(jnp.int32)),
        cache,
        0,
        method=LanguageModel.step,
    )


def generate(
    model: LanguageModel,
    params,
    prompt_BP: jax.Array,
    keys_B: jax.Array,
    response_length: int,
    config: SamplingConfig,
    allowed_V: np.ndarray | None = None,
    ends: tuple[int, ...] = (EOS_ID,),
    temperature_B: jax.Array | None = None,
) -> Generation:
    """Samples a response to each left-padded prompt.

    Args:
      model: the language model.
      params: its parameters.
      prompt_BP: int32 prompts, padding on the left.
      keys_B: one key for each row, see `row_keys`.
      response_length: R, the most tokens of a response, its end included.
      config: temperature and filters.
      allowed_V: bool, ids that may be sampled; None allows all.
      ends: the ids that end a response.
      temperature_B: as for `sample`.
    """
    B, P = prompt_BP.shape
    R = response_length
    params = for_decoding(whole(params), model.config)
    logits_BV, cache = prefill(model, params, prompt_BP, R)
    prompt_valid_BP = prompt_BP != PAD_ID
    count_B = jnp.sum(prompt_valid_BP, axis=1)
    columns_S = jnp.arange(P + R)
    prompt_valid_BS = jnp.pad(prompt_valid_BP, ((0, 0), (0, R)))

    def write(array_BR, column_B, t):
        return jax.lax.dynamic_update_slice(array_BR, column_B[:, None], (0, t))

    def draw(t, logits_BV, generation, done_B):
        """Samples column t; rows that are done get padding."""
        keys = jax.vmap(jax.random.fold_in, (0, None))(keys_B, t)
        token_B, log_prob_B = sample(allow(logits_BV, allowed_V), keys, config, temperature_B)
        token_B = jnp.where(done_B, PAD_ID, token_B)
        generation = Generation(
            write(generation.tokens_BR, token_B, t),
            write(generation.log_probs_BR, jnp.where(done_B, 0.0, log_prob_B), t),
            write(generation.mask_BR, ~done_B, t),
        )
        return generation, done_B | is_end(token_B, ends), token_B

    def unfinished(carry):
        t, _, done_B, _, _ = carry
        return (t < R) & ~jnp.all(done_B)

    def step(carry):
        """Feeds column t - 1, samples column t."""
        t, generation, done_B, token_B, cache = carry
        sees_BS = prompt_valid_BS | ((columns_S >= P) & (columns_S < P + t))[None]
        with partitioning.decoding():
            logits_BV, cache = model.apply(
                {"params": params},
                token_B[:, None],
                (count_B + t - 1)[:, None],
                sees_BS[:, None],
                cache,
                P + t - 1,
                method=LanguageModel.step,
            )
        generation, done_B, token_B = draw(t, logits_BV, generation, done_B)
        return t + 1, generation, done_B, token_B, cache

    empty = Generation(
        jnp.full((B, R), PAD_ID, jnp.int32), jnp.zeros((B, R), jnp.float32), jnp.zeros((B, R), bool)
    )
    generation, done_B, token_B = draw(jnp.int32(0), logits_BV, empty, jnp.zeros((B,), bool))
    start = (jnp.int32(1), generation, done_B, token_B, cache)
    return jax.lax.while_loop(unfinished, step, start)[1]
