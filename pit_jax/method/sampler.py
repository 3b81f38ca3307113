"""Samples responses to lists of prompts, for curriculum, improvement and evaluation.

Rows that are done make place for prompts that wait, the shortest first. What is scored goes in
batches of like lengths, the last filled up. There are a few widths, each of which compiles once.
Every process gives the same rows and gets all responses. A row's sample depends on the key and on
the number that names the row, not on its place or its neighbours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from pit_jax.data.vocabularies.base import EOS_ID, PAD_ID
from pit_jax.method.decode import Decoding, Rows, SamplingConfig, is_end, row_keys
from pit_jax.method.forward import response_scores
from pit_jax.method.widths import ladder
from pit_jax.models.config import NetworkConfig
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel
from pit_jax.runtime.partitioning import Partitioner

Tokens = list[int]
_WIDTHS = 4


@dataclasses.dataclass(frozen=True)
class Response:
    """Holds a sampled response.

    Attributes:
      tokens: the ids before the one that ended it.
      ended: whether an end came within the window.
      reflection: the ids of the reflection that was written before it; none without one.
      text: what it says; None where that hasn't been decoded.
    """

    tokens: Tokens
    ended: bool
    reflection: Tokens = dataclasses.field(default_factory=list)
    text: str | None = dataclasses.field(default=None, compare=False)

    @property
    def sampled(self) -> int:
        """How many tokens were sampled for it: its end counts, and a reflection with its mark."""
        marked = bool(self.reflection) and (bool(self.tokens) or self.ended)
        return len(self.reflection) + marked + len(self.tokens) + self.ended


@dataclasses.dataclass(frozen=True)
class Reflecting:
    """Says how a model writes that was trained to reflect first, `{c}<<Improved>>{y}` EOS.

    Attributes:
      window: the most tokens of the whole text, its end included.
      improved: the id of `<<Improved>>`, the one control token that may be sampled.
    """

    window: int
    improved: int


class Sampler:
    """Samples from language models and scores with reward models, all of one architecture.

    Args:
      network: network of the models.
      partitioner: the mesh.
      response_length: R, the most tokens of a response, EOS included.
      batch_size: number of rows decoded at once, over all devices.
      allowed_V: bool, ids that may be sampled; None allows all.
      ends: the ids that end a response; each is scored as EOS.
    """

    def __init__(
        self,
        network: NetworkConfig,
        partitioner: Partitioner,
        response_length: int,
        batch_size: int,
        allowed_V: np.ndarray | None = None,
        ends: tuple[int, ...] = (EOS_ID,),
    ):
        self._language_model = LanguageModel(network)
        self._scalar_model = ScalarModel(network)
        self._partitioner = partitioner
        self._response_length = response_length
        self._batch_size = batch_size
        self._allowed_V = allowed_V
        self._ends = ends
        self._pools: dict[Any, _Programs] = {}
        self._programs: dict[Any, Callable] = {}

    def respond(
        self,
        params: Any,
        prompts: Sequence[Tokens],
        width: int,
        rows: Sequence[int],
        key: jax.Array,
        sampling: SamplingConfig,
        reflecting: Reflecting | None = None,
    ) -> list[Response]:
        """Samples a response to each prompt, or a text that `Improver.read_out` makes one of.

        Args:
          params: parameters of the language model.
          prompts: token ids, at most `width` each.
          width: P, the padded length.
          rows: a number that names each row; equal numbers under one key draw alike.
          key: the key of this sampling.
          sampling: temperature and filters.
          reflecting: how the model reflects; None if it writes its response alone.
        """
        responses: list[Response] = [Response([], False)] * len(prompts)
        if not prompts:
            return responses
        programs, numbers = self._decoding(sampling, reflecting), np.asarray(rows, np.int32)
        params = programs.prepared(params)  # once, and not for each part of the pool
        pool: Rows | None = None
        held: dict[int, int] = {}  # place in the pool -> prompt
        size, few = self._batch_size, self._few()

        def advance(enough: int) -> None:
            """Decodes until that many places are free."""
            nonlocal pool
            pool, found = programs.advance(params, pool, enough)
            tokens_BR, mask_BR, done_B = map(np.asarray, found)
            for place in set(np.flatnonzero(done_B).tolist()) & set(held):
                responses[held.pop(place)] = self._response(tokens_BR[place], mask_BR[place])

        for chosen, fitting in _like([len(prompt) for prompt in prompts], width, few):
            if size - len(held) < few:
                advance(few)
            if pool is None:
                ones_B = self._partitioner.shard_batch(np.ones(size, np.float32))
                pool = programs.empty(fitting, ones_B, key)
            elif fitting > pool.prompt_valid_BP.shape[1]:
                pool = programs.widened(pool, fitting)
            places = [place for place in range(size) if place not in held][: len(chosen)]
            held |= dict(zip(places, chosen.tolist(), strict=True))
            filled = _filled(chosen, few)
            batch = {
                "prompts": pad_left([prompts[i] for i in filled], fitting),
                "rows": numbers[filled],
                "temperatures": np.full(few, sampling.temperature, np.float32),
                "places": np.array(places + [size] * (few - len(places)), np.int32),
            }
            pool = programs.begin(params, pool, self._partitioner.shard_batch(batch), key)
        advance(size)
        return responses

    def score(
        self,
        params: Any,
        prompts: Sequence[Tokens],
        width: int,
        responses: Sequence[Response],
        pooling: str,
    ) -> np.ndarray:
        """Scores responses to prompts in the reward model's layout, float32 [n].

        One of no tokens is scored as if it had ended, since no other token has a score.
        """
        scores = np.zeros(len(prompts), np.float32)
        tokens_NR, mask_NR = self.scored(responses)
        lengths = (mask_NR.sum(axis=1) + [len(prompt) for prompt in prompts]).tolist()
        whole = width + self._response_length
        for chosen, fitting in _like(lengths, whole, self._batch_size):
            run = self.score_program(pooling, fitting if fitting < whole else None)
            filled = _filled(chosen, self._batch_size)
            batch = {
                "prompts": pad_left([prompts[i] for i in filled], width),
                "responses": tokens_NR[filled],
                "mask": mask_NR[filled],
            }
            scores[filled] = np.asarray(run(params, self._partitioner.shard_batch(batch)))
        return scores

    def scored(self, responses: Sequence[Response]) -> tuple[np.ndarray, np.ndarray]:
        """Makes what a reward model reads of responses: int32 tokens [n, R] and their mask."""
        rows = [scored_ids(response) for response in responses]
        lengths = np.array([len(row) for row in rows])
        mask_BR = np.arange(self._response_length)[None] < lengths[:, None]
        return pad_right(rows, self._response_length), mask_BR

    def _few(self) -> int:
        """How many rows are begun at once: a quarter of the pool, where the mesh can split it."""
        size, least = self._batch_size, self._partitioner.row_shards
        return next((size // n for n in (4, 2) if size % (n * least) == 0), size)

    def _decoding(self, sampling: SamplingConfig, reflecting: Reflecting | None) -> _Programs:
        """The programs of a sampling, whose temperature only says whether tokens are drawn."""
        length, allowed_V = self._response_length, self._allowed_V
        if reflecting is not None:
            length = reflecting.window
            if allowed_V is not None:
                allowed_V = allowed_V | (np.arange(len(allowed_V)) == reflecting.improved)
        if sampling.temperature:
            sampling = dataclasses.replace(sampling, temperature=1.0)
        if (sampling, reflecting) not in self._pools:
            decoding = Decoding(self._language_model, length, sampling, allowed_V, self._ends)
            self._pools[sampling, reflecting] = _Programs(decoding, self._partitioner)
        return self._pools[sampling, reflecting]

    def score_program(self, pooling: str, width: int | None = None) -> Callable:
        """Returns the jitted (params, {prompts_BQ, responses_BR, mask_BR}) -> scores_B.

        Its rows are cut to `width` columns, which have to hold all real tokens; None cuts none.
        """

        def score(params, batch):
            return response_scores(
                self._scalar_model,
                params,
                batch["prompts"],
                batch["responses"],
                batch["mask"],
                pooling,
                width,
            )

        return self._program(("score", pooling, width), score)

    def _response(self, tokens_R: np.ndarray, mask_R: np.ndarray) -> Response:
        tokens_R = tokens_R[mask_R]
        ends = np.flatnonzero(is_end(tokens_R, self._ends))
        return Response(tokens_R[: ends[0] if len(ends) else None].tolist(), len(ends) > 0)

    def _program(self, name: Any, function: Callable) -> Callable:
        if name not in self._programs:
            replicated = self._partitioner.replicated
            self._programs[name] = self._partitioner.jit(function, out_shardings=replicated)
        return self._programs[name]


class _Programs:
    """Has the jitted steps of a pool of rows, each compiled once for a width of prompts.

    Args:
      decoding: how rows are decoded.
      partitioner: the mesh.
    """

    def __init__(self, decoding: Decoding, partitioner: Partitioner):
        def begin(params, pool, batch, key):
            keys_N = row_keys(key, batch["rows"])
            new = decoding.begin(params, batch["prompts"], keys_N, batch["temperatures"], True)
            return pool.replaced(batch["places"], new)

        def advance(params, pool, enough):
            pool = decoding.advance(params, pool, enough)
            g = pool.generation
            return pool.placed(), (g.tokens_BR, g.mask_BR, pool.done_B)

        def empty(width, temperature_B, key):
            return decoding.empty(width, temperature_B, key).placed()

        jit, out = partitioner.jit, (None, partitioner.replicated)
        self.prepared = jit(decoding.prepared)
        self.begin = jit(begin, donate_argnums=1)
        self.advance = jit(advance, donate_argnums=1, out_shardings=out)
        self.empty = jit(empty, static_argnums=0)
        self.widened = jit(Rows.widened, static_argnums=1)


def _like(lengths: Sequence[int], width: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields rows of like lengths, the shortest first, and the width that they fit in."""
    order, widths = np.argsort(lengths, kind="stable"), ladder(width, _WIDTHS)
    for start in range(0, len(lengths), size):
        chosen = order[start : start + size]
        yield chosen, next((w for w in widths if lengths[chosen[-1]] <= w), width)


def _filled(chosen: np.ndarray, size: int) -> np.ndarray:
    """Fills up rows with the last of them."""
    return np.pad(chosen, (0, size - len(chosen)), mode="edge")


def scored_ids(response: Response) -> Tokens:
    """The ids of a response that a reward model reads."""
    return response.tokens + [EOS_ID] * (response.ended or not response.tokens)


def pad_left(rows: Sequence[Tokens], width: int) -> np.ndarray:
    """Pads rows on the left, to int32 [n, width].

    Raises:
      ValueError: if a row is longer than `width`.
    """
    padded = np.full((len(rows), width), PAD_ID, np.int32)
    for number, row in enumerate(rows):
        if len(row) > width:
            raise ValueError(f"prompt of {len(row)} tokens, expected at most {width}")
        padded[number, width - len(row) :] = row
    return padded


def pad_right(rows: Sequence[Tokens], width: int) -> np.ndarray:
    """Pads rows on the right, to int32 [n, width]; they must fit."""
    padded = np.full((len(rows), width), PAD_ID, np.int32)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return padded
