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
from pit_jax.models.attention import CausalRows, positions_of
from pit_jax.models.cache import KVCache
from pit_jax.models.network import LanguageModel, for_decoding
from pit_jax.runtime import partitioning
from pit_jax.runtime.partitioning import constrain


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


@flax.struct.dataclass
class Rows:
    """Holds rows in the midst of decoding.

    Attributes:
      generation: what has been sampled.
      drawn: int32, the number of tokens that were: one of all rows, or [B] of each row.
      done_B: bool, rows that have met an end or filled the window.
      token_B: the last token of each row, which the network hasn't read yet.
      prompt_valid_BP: bool, the real tokens of the prompts.
      keys_B: the key of each row.
      temperature_B: as for `sample`.
      cache: keys and values, P + R columns: the prompt, then the response.
    """

    generation: Generation
    drawn: jax.Array
    done_B: jax.Array
    token_B: jax.Array
    prompt_valid_BP: jax.Array
    keys_B: jax.Array
    temperature_B: jax.Array | None
    cache: KVCache

    def replaced(self, places_N: jax.Array, new: Rows) -> Rows:
        """Puts N new rows in the places of others; a place of B or more drops its row.

        In both each row counts its own tokens, and prompts are of one width.
        """

        def put(old, new):
            if isinstance(old, KVCache):
                return old.put(places_N, new)
            return old.at[places_N].set(new, mode="drop")

        return jax.tree.map(put, self, new, is_leaf=_is_cache).placed()

    def widened(self, width: int) -> Rows:
        """Makes room for prompts of that width."""
        more = width - self.prompt_valid_BP.shape[1]
        valid_BP = jnp.pad(self.prompt_valid_BP, ((0, 0), (more, 0)))
        return dataclasses.replace(
            self, prompt_valid_BP=valid_BP, cache=self.cache.widened(more)
        ).placed()

    def placed(self) -> Rows:
        """Fixes how rows are split over devices."""

        def one(x):
            if isinstance(x, KVCache):
                return x.placed()
            return constrain(x, "batch", *(x.ndim - 1) * (None,)) if x.ndim else x

        return jax.tree.map(one, self, is_leaf=_is_cache)


def _is_cache(x: Any) -> bool:
    return isinstance(x, KVCache)


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Decodes rows token by token, all of which may be at different tokens of their responses.

    Attributes:
      model: the language model.
      response_length: R, the most tokens of a response, its end included.
      config: temperature and filters.
      allowed_V: bool, ids that may be sampled; None allows all.
      ends: the ids that end a response.
    """

    model: LanguageModel
    response_length: int
    config: SamplingConfig
    allowed_V: np.ndarray | None = None
    ends: tuple[int, ...] = (EOS_ID,)

    def prepared(self, params):
        """Makes of parameters what the other methods take."""
        return for_decoding(whole(params), self.model.config)

    def begin(
        self,
        params,
        prompt_BP: jax.Array,
        keys_B: jax.Array,
        temperature_B: jax.Array | None = None,
        apart: bool = False,
    ) -> Rows:
        """Reads left-padded prompts and draws a first token of each; arguments as for `generate`.

        With `apart` each row counts its own tokens, as rows do that others are to replace.
        """
        valid_BP = prompt_BP != PAD_ID
        logits_BV, cache = prefill(self.model, params, prompt_BP, self.response_length)
        rows = self._fresh(valid_BP, keys_B, temperature_B, cache, done=False)
        if not apart:
            rows = dataclasses.replace(rows, drawn=jnp.int32(0))
        return self._draw(rows, logits_BV)

    def empty(self, width: int, temperature_B: jax.Array, key: jax.Array) -> Rows:
        """Makes B places of prompts of that width. All are done, so rows can be put in them."""
        B = temperature_B.shape[0]
        valid_BP, keys_B = jnp.zeros((B, width), bool), row_keys(key, jnp.arange(B))
        cache = KVCache.zeros(self.model.config, B, width + self.response_length)
        return self._fresh(valid_BP, keys_B, temperature_B, cache, done=True)

    def _fresh(self, valid_BP, keys_B, temperature_B, cache: KVCache, done: bool) -> Rows:
        """Rows of which nothing has been sampled, each of which counts its own tokens."""
        B, R = valid_BP.shape[0], self.response_length
        nothing = Generation(
            jnp.full((B, R), PAD_ID, jnp.int32),
            jnp.zeros((B, R), jnp.float32),
            jnp.zeros((B, R), bool),
        )
        return Rows(
            generation=nothing,
            drawn=jnp.zeros((B,), jnp.int32),
            done_B=jnp.full((B,), done),
            token_B=jnp.zeros((B,), jnp.int32),
            prompt_valid_BP=valid_BP,
            keys_B=keys_B,
            temperature_B=temperature_B,
            cache=cache,
        )

    def advance(self, params, rows: Rows, enough: int | jax.Array | None = None) -> Rows:
        """Decodes until that many rows are done; None stands for all."""

        # No row takes more steps than the window has columns; a compiler can read off this bound.
        def unfinished(carry):
            step, rows = carry
            done_B = rows.done_B
            more = ~jnp.all(done_B) if enough is None else jnp.sum(done_B) < enough
            return (step < self.response_length) & more

        def step(carry):
            step, rows = carry
            return step + 1, self._draw(*self._read(params, rows))

        return jax.lax.while_loop(unfinished, step, (jnp.int32(1), rows))[1]

    def _read(self, params, rows: Rows) -> tuple[Rows, jax.Array]:
        """Feeds the last token of each row; the next one's logits [B, V]."""
        P = rows.prompt_valid_BP.shape[1]
        responses_S = jnp.arange(P + self.response_length) - P
        drawn_B1 = jnp.reshape(rows.drawn, (-1, 1))
        sees_BS = jnp.pad(rows.prompt_valid_BP, ((0, 0), (0, self.response_length)))
        sees_BS |= (responses_S[None] >= 0) & (responses_S[None] < drawn_B1)
        count_B = jnp.sum(rows.prompt_valid_BP, axis=1)
        with partitioning.decoding():
            logits_BV, cache = self.model.apply(
                {"params": params},
                rows.token_B[:, None],
                (count_B + rows.drawn - 1)[:, None],
                sees_BS[:, None],
                rows.cache,
                P + rows.drawn - 1,
                method=LanguageModel.step,
            )
        return dataclasses.replace(rows, cache=cache), logits_BV

    def _draw(self, rows: Rows, logits_BV: jax.Array) -> Rows:
        """Samples a token of each row; rows that are done get padding."""
        drawn_B = jnp.broadcast_to(rows.drawn, rows.done_B.shape)
        keys_B = jax.vmap(jax.random.fold_in)(rows.keys_B, drawn_B)
        allowed_BV = allow(logits_BV, self.allowed_V)
        token_B, log_prob_B = sample(allowed_BV, keys_B, self.config, rows.temperature_B)
        token_B = jnp.where(rows.done_B, PAD_ID, token_B)
        # A done row's column is one that stays padding: its own next one, or beyond the window.
        here_BR = jnp.arange(self.response_length)[None] == drawn_B[:, None]
        here_BR &= ~rows.done_B[:, None]
        last_B = drawn_B + 1 == self.response_length
        g = rows.generation
        return dataclasses.replace(
            rows,
            generation=Generation(
                jnp.where(here_BR, token_B[:, None], g.tokens_BR),
                jnp.where(here_BR, log_prob_B[:, None], g.log_probs_BR),
                g.mask_BR | here_BR,
            ),
            drawn=rows.drawn + (~rows.done_B if rows.drawn.ndim else 1),
            done_B=rows.done_B | is_end(token_B, self.ends) | last_B,
            token_B=token_B,
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
    decoding = Decoding(model, response_length, config, allowed_V, ends)
    params = decoding.prepared(params)
    rows = decoding.begin(params, prompt_BP, keys_B, temperature_B)
    return decoding.advance(params, rows).generation
