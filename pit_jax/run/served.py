"""Samples and scores with exported models that a server has, by OpenAI's completions protocol.

A request holds token ids, so that a prompt is that of training whatever the server makes of text:

    POST URL/completions {model, prompt: [ids], max_tokens, temperature, seed, stop_token_ids, …}
    POST ROOT/classify   {model, input: [ids], use_activation: false}      R_PIT's score, as of vLLM

The ids are those of the exported tokenizer. Each row is a request with a seed of its own.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from pit_jax.data.layouts import Layout
from pit_jax.errors import UserError
from pit_jax.method.decode import SamplingConfig, is_end, row_keys
from pit_jax.method.roles import POLICY, Role
from pit_jax.method.sampler import Reflecting, Response, Tokens, scored_ids
from pit_jax.run.client import Body, Client, TransientError
from pit_jax.run.config import RoleConfig
from pit_jax.run.exported import ExportedRun
from pit_jax.run.improver import GAP_MODEL, PIT

T = TypeVar("T")

# Makes an id impossible to sample, as far as the protocol goes.
_NEVER = -100
_FLAGS = {PIT: "--model", POLICY: "--policy_model", GAP_MODEL: "--gap_model"}


class Served(NamedTuple):
    """Says where a model is served.

    Attributes:
      name: the model's name there.
      url: of the API, such as `http://localhost:8000/v1`.
    """

    name: str
    url: str


class ServedSampler:
    """Does what `method.sampler.Sampler` does, with models that are `Served`.

    Args:
      client: sends the requests.
      layout: of the models' prompts; its vocabulary is made of the exported tokenizer.
      size: rows of the models' embedding.
      response_length: R, the most tokens of a response, EOS included.
      concurrency: how many requests are under way at once.
    """

    def __init__(
        self, client: Client, layout: Layout, size: int, response_length: int, concurrency: int
    ):
        vocabulary: Any = layout.vocabulary
        self._client = client
        self._vocabulary = vocabulary
        self._improved = layout.control.improved
        self._response_length = response_length
        self._concurrency = concurrency
        # Ids beyond the vocabulary are the same in both orders.
        self._theirs = np.arange(size)
        self._theirs[: vocabulary.vocab_size] = vocabulary.tokenizer_ids
        self._ours = np.argsort(self._theirs)
        self._never = np.flatnonzero(~vocabulary.sampled_ids(size))

    def respond(
        self,
        model: Served,
        prompts: Sequence[Tokens],
        width: int,
        rows: Sequence[int],
        key: jax.Array,
        sampling: SamplingConfig,
        reflecting: Reflecting | None = None,
    ) -> list[Response]:
        """Samples a response to each prompt; takes what `Sampler.respond` takes.

        Raises:
          UserError: if the server refuses a request, or doesn't answer.
        """
        words = jax.random.key_data(row_keys(key, jnp.asarray(rows, jnp.int32)))
        seeds = np.asarray(words)[:, -1].astype(np.uint32) >> 1  # some servers take 31 bits
        window = reflecting.window if reflecting else self._response_length
        never = [id_ for id_ in self._never if not (reflecting and id_ == reflecting.improved)]
        fixed: Body = {
            "model": model.name,
            "max_tokens": window,
            "temperature": sampling.temperature,
            "stop_token_ids": [int(self._theirs[end]) for end in self._vocabulary.ends],
            "logit_bias": {str(self._theirs[id_]): _NEVER for id_ in never},
            "return_token_ids": True,
        }
        if sampling.top_k:
            fixed["top_k"] = sampling.top_k
        if sampling.top_p < 1:
            fixed["top_p"] = sampling.top_p

        def ask(number: int) -> Response:
            _check_width(prompts[number], width)
            own = {"prompt": self._theirs[prompts[number]].tolist(), "seed": int(seeds[number])}
            url = f"{model.url}/completions"
            return self._client.post(url, fixed | own, lambda text: self._read(text, reflecting))

        return self._each(ask, len(prompts))

    def score(
        self,
        model: Served,
        prompts: Sequence[Tokens],
        width: int,
        responses: Sequence[Response],
        pooling: str,
    ) -> np.ndarray:
        """Scores responses to prompts at their last token, float32 [n]; see `Sampler.score`.

        Raises:
          UserError: if the server refuses a request, or doesn't answer.
        """
        assert pooling == "last", "another score isn't exported"

        def ask(number: int) -> float:
            _check_width(prompts[number], width)
            ids = [*prompts[number], *scored_ids(responses[number])]
            body = {"model": model.name, "input": self._theirs[ids].tolist()}
            url = f"{model.url.removesuffix('/v1')}/classify"
            return self._client.post(url, body | {"use_activation": False}, _score)

        return np.array(self._each(ask, len(prompts)), np.float32)

    def _read(self, content: str, reflecting: Reflecting | None) -> Response:
        """Makes a response of an answer."""
        try:
            choice = json.loads(content)["choices"][0]
            text, reason, ids = choice["text"], choice["finish_reason"], choice.get("token_ids")
            if not isinstance(text, str) or reason not in ("stop", "length"):
                raise ValueError
            tokens = self._tokens(ids) if ids is not None else self._vocabulary.encode(text)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise TransientError("it answers what is no completion") from None
        if ids is None and reflecting:
            raise UserError(
                f"got no token_ids from the server, expected them: the response follows "
                f"{self._vocabulary.names[self._improved]}, which is no text"
            )
        ends = np.flatnonzero(is_end(np.array(tokens, np.int64), self._vocabulary.ends))
        cut = tokens[: ends[0]] if len(ends) else tokens
        ended = len(ends) > 0 or reason == "stop"
        window = reflecting.window if reflecting else self._response_length
        # A text may be more tokens than those that were sampled.
        return Response(cut[:window], ended and len(cut) < window)

    def _tokens(self, ids: Sequence[int]) -> Tokens:
        theirs = np.array(ids, np.int64)
        if theirs.ndim != 1 or (theirs < 0).any() or (theirs >= len(self._ours)).any():
            raise ValueError
        return self._ours[theirs].tolist()

    def _each(self, ask: Callable[[int], T], count: int) -> list[T]:
        """Asks for so many rows, several at once, and returns what is answered in their order."""
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
        for number in range(count):
            todo.put(number)
        failed = threading.Event()

        def work() -> None:
            while not failed.is_set():
                try:
                    number = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    done.put((number, ask(number)))
                except Exception as error:
                    failed.set()
                    self._client.stop()
                    done.put((number, error))

        # Daemons: an interrupted process doesn't wait for answers.
        for _ in range(min(self._concurrency, count)):
            threading.Thread(target=work, daemon=True).start()
        found: dict[int, Any] = {}
        try:
            while len(found) < count:
                number, answer = done.get()
                if isinstance(answer, Exception):
                    raise answer
                found[number] = answer
        finally:
            failed.set()
        return [found[number] for number in range(count)]


class ServedRun(ExportedRun):
    """Is a run whose trained models are served: those of an exported directory.

    Of the directory it reads no weights.
    """

    def __init__(
        self,
        folder: epath.Path,
        served: Mapping[str, Served],
        client: Client,
        concurrency: int,
        changes: Mapping[str, Any] | None = None,
    ):
        """Reads the directory and finds out whether there are servers.

        Args:
          folder: what `exported.take_out` has written.
          served: where the model of each role of `improver.ROLES` is; of some it may be nowhere.
          client: sends the requests.
          concurrency: how many of them are under way at once.
          changes: fields of the RunConfig that are other ones.

        Raises:
          UserError: if the directory can't be read, or a server doesn't answer.
        """
        self._served, self._client, self._concurrency = dict(served), client, concurrency
        super().__init__(folder, changes=changes)
        if GAP_MODEL not in served:
            self.stages.pop(GAP_MODEL, None)
            if self.config.improve.min_gap is not None:
                raise UserError("ImproveConfig.min_gap: needs gaps, expected --gap_model too")
        elif GAP_MODEL not in self.stages:
            raise UserError(f"--gap_model: {folder} has no gap model")
        for url in dict.fromkeys(each.url for each in served.values()):
            client.reach(f"{url}/models")

    def result(self, name: str, role: str = POLICY) -> dict[str, Any]:
        """Returns what `ExportedRun.result` does, with the name that the model is served by.

        Raises:
          UserError: if it isn't served.
        """
        return super().result(name, role) | {"served": self.load_frozen(name).name}

    def load_frozen(self, name: str, step: int | None = None, role: str = "") -> Any:
        """Returns where a stage's model is served."""
        del step, role
        of_stage = self._role(name)
        if of_stage not in self._served:
            raise UserError(
                f"{_FLAGS[of_stage]}: got none, expected the name of the model that the server has "
                f"of {self.folder(name)}"
            )
        return self._served[of_stage]

    def _make_role(self, model: RoleConfig, layout: Layout) -> Role:
        response = layout.widths(model.windows).response
        size = model.network.vocab_size
        sampler: Any = ServedSampler(self._client, layout, size, response, self._concurrency)
        return Role(model.network, layout, model.windows, sampler)


def served_of(models: Mapping[str, str | None], url: str) -> dict[str, Served]:
    """Reads `NAME` or `NAME@URL` of each role that has one.

    Args:
      models: what was given of each role of `improver.ROLES`.
      url: where a model without a URL is.
    """
    found = {}
    for role, text in models.items():
        if text:
            name, at, rest = text.partition("@http")
            found[role] = Served(name, (f"http{rest}" if at else url).rstrip("/"))
    return found


def _score(content: str) -> float:
    try:
        (number,) = json.loads(content)["data"][0]["probs"]
        return float(number)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise TransientError("it answers what is no score of one label") from None


def _check_width(prompt: Tokens, width: int) -> None:
    if len(prompt) > width:
        raise ValueError(f"prompt of {len(prompt)} tokens, expected at most {width}")
