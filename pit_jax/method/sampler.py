"""Samples responses to lists of prompts, for curriculum, improvement and evaluation.

Rows are cut into batches of a fixed size (the last is filled up), so that each width compiles once.
Every process gives the same rows and gets all responses. A row's sample depends on the key and on
the number that names the row, not on its batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from pit_jax.data.vocabularies.base import EOS_ID, PAD_ID
from pit_jax.method.decode import SamplingConfig, generate, is_end, row_keys
from pit_jax.method.forward import response_scores
from pit_jax.models.config import NetworkConfig
from pit_jax.models.heads import ScalarModel
from pit_jax.models.network import LanguageModel
from pit_jax.runtime.partitioning import Partitioner

Tokens = list[int]


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
        run = self.respond_program(sampling, reflecting)
        responses: list[Response] = []
        numbers = np.asarray(rows, np.int32)
        for start in range(0, len(prompts), self._batch_size):
            chosen = self._fill(start, len(prompts))
            batch = {
                "prompts": pad_left([prompts[i] for i in chosen], width),
                "rows": numbers[chosen],
            }
            generation = run(params, self._partitioner.shard_batch(batch), key)
            tokens_BR = np.asarray(generation.tokens_BR)
            mask_BR = np.asarray(generation.mask_BR)
            count = min(self._batch_size, len(prompts) - start)
            responses += [
                self._response(t, m)
                for t, m in zip(tokens_BR[:count], mask_BR[:count], strict=True)
            ]
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
        run = self.score_program(pooling)
        scores = []
        for start in range(0, len(prompts), self._batch_size):
            chosen = self._fill(start, len(prompts))
            tokens_BR, mask_BR = self.scored([responses[i] for i in chosen])
            batch = {
                "prompts": pad_left([prompts[i] for i in chosen], width),
                "responses": tokens_BR,
                "mask": mask_BR,
            }
            scores.append(np.asarray(run(params, self._partitioner.shard_batch(batch))))
        return np.concatenate(scores)[: len(prompts)] if scores else np.zeros(0, np.float32)

    def scored(self, responses: Sequence[Response]) -> tuple[np.ndarray, np.ndarray]:
        """Makes what a reward model reads of responses: int32 tokens [n, R] and their mask."""
        rows = [scored_ids(response) for response in responses]
        lengths = np.array([len(row) for row in rows])
        mask_BR = np.arange(self._response_length)[None] < lengths[:, None]
        return pad_right(rows, self._response_length), mask_BR

    def respond_program(
        self, sampling: SamplingConfig, reflecting: Reflecting | None = None
    ) -> Callable:
        """Returns the jitted program (params, {prompts [B, P], rows [B]}, key) -> Generation."""
        length, allowed_V = self._response_length, self._allowed_V
        if reflecting is not None:
            length = reflecting.window
            if allowed_V is not None:
                allowed_V = allowed_V | (np.arange(len(allowed_V)) == reflecting.improved)

        def respond(params, batch, key):
            return generate(
                self._language_model,
                params,
                batch["prompts"],
                row_keys(key, batch["rows"]),
                length,
                sampling,
                allowed_V,
                self._ends,
            )

        return self._program(("respond", sampling, reflecting), respond)

    def score_program(self, pooling: str) -> Callable:
        """Returns the jitted (params, {prompts_BQ, responses_BR, mask_BR}) -> scores_B."""

        def score(params, batch):
            return response_scores(
                self._scalar_model,
                params,
                batch["prompts"],
                batch["responses"],
                batch["mask"],
                pooling,
            )

        return self._program(("score", pooling), score)

    def _response(self, tokens_R: np.ndarray, mask_R: np.ndarray) -> Response:
        tokens_R = tokens_R[mask_R]
        ends = np.flatnonzero(is_end(tokens_R, self._ends))
        return Response(tokens_R[: ends[0] if len(ends) else None].tolist(), len(ends) > 0)

    def _fill(self, start: int, total: int) -> np.ndarray:
        """Returns the indices of a batch; past the end it repeats the last row."""
        return np.minimum(np.arange(start, start + self._batch_size), total - 1)

    def _program(self, name: Any, function: Callable) -> Callable:
        if name not in self._programs:
            replicated = self._partitioner.replicated
            self._programs[name] = self._partitioner.jit(function, out_shardings=replicated)
        return self._programs[name]


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
