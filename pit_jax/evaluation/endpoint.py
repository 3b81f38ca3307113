"""Asks a language model over an OpenAI-compatible chat API, such as a vendor's or vLLM's."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from pit_jax.checked import UserPath, at_least, checked
from pit_jax.errors import UserError
from pit_jax.run.client import Body, Client, TransientError, check_key_variable, check_url, key_of


@dataclasses.dataclass(frozen=True)
@checked
class EndpointConfig:
    """Says which language model judges, and how it is asked.

    Attributes:
      url: of an OpenAI-compatible API, such as `http://localhost:8000/v1`; requests go to
        `chat/completions` below it.
      model: the model's name there.
      prompts: what it is asked: `dialogue`, `summary` or `instructions`, or the path of a file as
        `evaluation/language_judge.py` describes it.
      key_variable: name of the environment variable that holds the API's key; empty for an API
        that takes none. The key itself stands in no configuration.
      concurrency: how many requests are under way at once.
      retries: how often a request is sent again after a timeout, a broken connection, or a status
        of 429 or of 500 and more; the waits double from a second on, or are what the API asks for.
        A status of 429 doesn't count while other requests are answered.
      timeout: seconds after which a request is given up that isn't answered whole.
      max_unanswered: how many requests may stay without an answer, because the API refuses them or
        all retries failed; their comparisons are reported as unjudged. One more ends the command.
      prices: of a million tokens that are read and that are written; of them the report makes the
        cost.
      temperature: of the answers; None leaves it to the API.
      max_tokens: the most tokens of an answer; 0 leaves it to the API.
    """

    url: str
    model: str
    prompts: UserPath
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 8
    retries: int = 6
    timeout: float = 120.0
    max_unanswered: int = 10
    prices: tuple[float, float] = (0.0, 0.0)
    temperature: float | None = 0.0
    max_tokens: int = 1024

    def __post_init__(self):
        at_least(self, 1, "concurrency")
        at_least(self, 0, "retries", "max_unanswered", "max_tokens")
        if min(self.prices) < 0:
            raise UserError(f"EndpointConfig.prices: got {self.prices}, expected 0 or more")
        if self.timeout <= 0:
            raise UserError(f"EndpointConfig.timeout: got {self.timeout}, expected more than 0")
        if self.temperature is not None:
            at_least(self, 0, "temperature")
        if not self.model:
            raise UserError("EndpointConfig.model: got '', expected the name of a model")
        check_key_variable("EndpointConfig.key_variable", self.key_variable)
        check_url("EndpointConfig.url", self.url)


@dataclasses.dataclass(frozen=True)
class Answer:
    """Holds what a model answered.

    Attributes:
      text: the answer.
      cut: whether it was cut at the most tokens that it could have.
      prompt_tokens, completion_tokens: what the API counted for it; 0 where it didn't.
    """

    text: str
    cut: bool = False
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Endpoint(Client):
    """Sends requests; several threads may do so at once.

    Args:
      config: how.

    Raises:
      UserError: if the key isn't there, or is none.
    """

    def __init__(self, config: EndpointConfig):
        key = key_of("EndpointConfig.key_variable", config.key_variable)
        super().__init__(key, config.timeout, config.retries)
        self._config = config
        self.url = f"{config.url.rstrip('/')}/chat/completions"

    def body(self, system: str, user: str) -> Body:
        """Makes a request of what the system and the user say; no system turn if that is empty."""
        config = self._config
        messages = [{"role": "system", "content": system}] if system else []
        body: Body = {
            "model": config.model,
            "messages": [*messages, {"role": "user", "content": user}],
        }
        if config.temperature is not None:
            body["temperature"] = config.temperature
        if config.max_tokens:
            body["max_tokens"] = config.max_tokens
        return body

    def ask(self, body: Body) -> Answer:
        """Sends a request, again after what may pass, and returns its answer.

        Raises:
          Unanswered: if the API refuses this request, or there is no answer after all retries.
          UserError: if the API refuses all requests.
        """
        return self.post(self.url, body, _answer)


def _answer(content: str) -> Answer:
    try:
        found = json.loads(content)
        choice = found["choices"][0]
        text, cut = choice["message"]["content"], choice.get("finish_reason") == "length"
        used = found.get("usage")
        used = used if isinstance(used, dict) else {}
        counts = [_count(used.get(name)) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise TransientError("it answers what is no chat completion") from None
    return Answer(text if isinstance(text, str) else "", cut, *counts)


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0
