"""Asks a language model over an OpenAI-compatible HTTP API, such as a vendor's or vLLM's.

The key stands in an environment variable. It goes into the header of requests and nowhere else:
redirections, which could take it to another host, are refused, and what the API says is shown and
kept without it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import email.message
import email.utils
import http.client
import json
import os
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

from pit_jax.checked import UserPath, at_least, checked
from pit_jax.data.files.json_values import printable
from pit_jax.errors import UserError

Body = dict[str, Any]

# Seconds before a request is sent again: the first wait, which then doubles, and the longest.
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 300.0
# Timeout, too early, too many requests; those of 500 and more are tried again too.
_TRANSIENT = (408, 425, 429)
# What the API says beside them may have a part of the key.
_ABOUT_KEYS = (401, 403)


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
      timeout: seconds without an answer after which a request is given up.
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
    temperature: float | None = 0.0
    max_tokens: int = 1024

    def __post_init__(self):
        at_least(self, 1, "concurrency")
        at_least(self, 0, "retries", "max_tokens")
        if self.timeout <= 0:
            raise UserError(f"EndpointConfig.timeout: got {self.timeout}, expected more than 0")
        if self.temperature is not None:
            at_least(self, 0, "temperature")
        if not self.model:
            raise UserError("EndpointConfig.model: got '', expected the name of a model")
        # Neither message shows what it refuses: it may be a key.
        if self.key_variable and not re.fullmatch("[A-Z_][A-Z0-9_]*", self.key_variable):
            raise UserError(
                "EndpointConfig.key_variable: expected the name of an environment variable in "
                "capital letters, such as OPENAI_API_KEY, and never the key itself"
            )
        if "@" in self.url:
            raise UserError("EndpointConfig.url: expected a URL without a user or a password")
        if not _is_url(self.url):
            raise UserError(
                f"EndpointConfig.url: got {self.url!r}, expected a URL such as "
                "http://localhost:8000/v1"
            )


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


class Endpoint:
    """Sends requests; several threads may do so at once.

    Args:
      config: how.

    Raises:
      UserError: if the key isn't there, or is none.
    """

    def __init__(self, config: EndpointConfig):
        self._config = config
        self._key = _key(config.key_variable)
        self._opener = urllib.request.build_opener(_NoRedirection)
        self._stopped = threading.Event()
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
          UserError: if the API refuses the request, or there is no answer after all retries.
        """
        data, problem = json.dumps(body).encode(), ""
        for attempt in range(self._config.retries + 1):
            try:
                return _answer(self._send(data))
            except _TransientError as error:
                problem, wait = str(error), max(error.wait, _FIRST_WAIT * 2**attempt)
            if self._stopped.is_set() or attempt == self._config.retries:
                break
            self._pause(min(wait, _LONGEST_WAIT))
        raise UserError(f"{self.url}: no answer after {attempt + 1} requests: {problem}")

    def stop(self) -> None:
        """Ends all waits: requests under way are not sent again."""
        self._stopped.set()

    def _pause(self, seconds: float) -> None:
        self._stopped.wait(seconds)

    def _send(self, data: bytes) -> str:
        headers = {"Content-Type": "application/json", "User-Agent": "pit_jax"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, data, headers)
        try:
            with self._opener.open(request, timeout=self._config.timeout) as response:
                return self._without_key(response.read())
        except urllib.error.HTTPError as error:
            status = f"{error.code} {printable(self._without_key(error.reason))}".strip()
            if error.code not in _ABOUT_KEYS:
                status += self._said(error)
            if error.code in _TRANSIENT or error.code >= 500:
                raise _TransientError(status, _retry_after(error.headers)) from None
            raise UserError(f"{self.url} answers {status}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            text = self._without_key(str(reason) or type(reason).__name__)
            raise _TransientError(printable(text)) from None

    def _said(self, error: urllib.error.HTTPError) -> str:
        """What the API says of an error, in short."""
        try:
            text = self._without_key(error.read())
        except (OSError, http.client.HTTPException):
            return ""
        with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
            text = json.loads(text)["error"]["message"]
        text = printable(" ".join(str(text).split()))
        return f": {text[:200]}" if text else ""

    def _without_key(self, text: str | bytes) -> str:
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        return text.replace(self._key, "(key)") if self._key else text


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class _TransientError(Exception):
    """Says what may pass, with the seconds that the API asks to wait."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


def _is_url(text: str) -> bool:
    try:
        found = urllib.parse.urlsplit(text)
        return found.scheme in ("http", "https") and bool(found.hostname) and text.isprintable()
    except ValueError:
        return False


def _key(variable: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"EndpointConfig.key_variable: the environment variable {variable} isn't set, expected "
            "the key of the API in it, or key_variable = '' for an API that takes none"
        )
    if not re.fullmatch("[!-~]+", key):
        raise UserError(
            f"EndpointConfig.key_variable: {variable} has white space or other characters that no "
            "header can have, expected the key of the API"
        )
    return key


def _answer(content: str) -> Answer:
    try:
        found = json.loads(content)
        choice = found["choices"][0]
        text, cut = choice["message"]["content"], choice.get("finish_reason") == "length"
        used = found.get("usage") or {}
        counts = [_count(used.get(name)) for name in ("prompt_tokens", "completion_tokens")]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise _TransientError("it answers what is no chat completion") from None
    return Answer(text if isinstance(text, str) else "", cut, *counts)


def _count(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _retry_after(headers: email.message.Message | None) -> float:
    """The seconds that a response asks to wait; it says a number of them, or until when."""
    text = (headers and headers.get("Retry-After")) or ""
    if re.fullmatch(r"\d{1,9}(\.\d+)?", text.strip()):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0
