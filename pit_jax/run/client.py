"""Sends requests to an HTTP API of JSON, again after what may pass.

The key stands in an environment variable. It goes into the header of requests and nowhere else:
redirections, which could take it to another host, are refused, and what the API says is shown and
kept without it.
"""

from __future__ import annotations

import contextlib
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
from collections.abc import Callable
from typing import Any, TypeVar

from pit_jax.data.files.json_values import printable
from pit_jax.errors import UserError

T = TypeVar("T")
Body = dict[str, Any]

# Seconds before a request is sent again: the first wait, which then doubles, and the longest.
_FIRST_WAIT = 1.0
_LONGEST_WAIT = 300.0
# Timeout, too early, too many requests; those of 500 and more are tried again too.
_TRANSIENT = (408, 425, 429)
# What the API says beside them may have a part of the key.
_ABOUT_KEYS = (401, 403)


class TransientError(Exception):
    """Says what may pass.

    Attributes:
      wait: the seconds that the API asks to wait.
    """

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


class Client:
    """Sends requests; several threads may do so at once.

    Args:
      key: the API's key, empty for none.
      timeout: seconds without an answer after which a request is given up.
      retries: how often a request is sent again after a timeout, a broken connection, or a status
        of 429 or of 500 and more; the waits double from a second on, or are what the API asks for.
    """

    def __init__(self, key: str, timeout: float, retries: int):
        self._key, self._timeout, self._retries = key, timeout, retries
        self._opener = urllib.request.build_opener(_NoRedirection)
        self._stopped = threading.Event()

    def post(self, url: str, body: Body, read: Callable[[str], T]) -> T:
        """Sends a request, again after what may pass, and returns what `read` makes of its answer.

        Args:
          url: where to.
          body: the request.
          read: raises TransientError for an answer that is none.

        Raises:
          UserError: if the API refuses the request, or there is no answer after all retries.
        """
        data, problem = json.dumps(body).encode(), ""
        for attempt in range(self._retries + 1):
            try:
                return read(self._send(url, data))
            except TransientError as error:
                problem, wait = str(error), max(error.wait, _FIRST_WAIT * 2**attempt)
            if self._stopped.is_set() or attempt == self._retries:
                break
            self._pause(min(wait, _LONGEST_WAIT))
        raise UserError(f"{url}: no answer after {attempt + 1} requests: {problem}")

    def reach(self, url: str) -> None:
        """Asks once for a page, whatever it is, to find out whether there is an API.

        Raises:
          UserError: if nothing answers.
        """
        try:
            self._send(url, None)
        except TransientError as error:
            raise UserError(f"{url}: no answer: {error}") from None
        except UserError:
            return

    def stop(self) -> None:
        """Ends all waits: requests under way are not sent again."""
        self._stopped.set()

    def _pause(self, seconds: float) -> None:
        self._stopped.wait(seconds)

    def _send(self, url: str, data: bytes | None) -> str:
        headers = {"Content-Type": "application/json", "User-Agent": "pit_jax"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(url, data, headers)
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                return self._without_key(response.read())
        except urllib.error.HTTPError as error:
            status = f"{error.code} {printable(self._without_key(error.reason))}".strip()
            if error.code not in _ABOUT_KEYS:
                status += self._said(error)
            if error.code in _TRANSIENT or error.code >= 500:
                raise TransientError(status, _retry_after(error.headers)) from None
            raise UserError(f"{url} answers {status}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            text = self._without_key(str(reason) or type(reason).__name__)
            raise TransientError(printable(text)) from None

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


def check_url(setting: str, url: str) -> None:
    """Refuses what is no URL of an API; its message doesn't show what may be a password.

    Raises:
      UserError: it names the setting.
    """
    if "@" in url:
        raise UserError(f"{setting}: expected a URL without a user or a password")
    if not _is_url(url):
        raise UserError(f"{setting}: got {url!r}, expected a URL such as http://localhost:8000/v1")


def check_key_variable(setting: str, variable: str) -> None:
    """Refuses what is no name of an environment variable, and doesn't show it: it may be a key.

    Raises:
      UserError: it names the setting.
    """
    if variable and not re.fullmatch("[A-Z_][A-Z0-9_]*", variable):
        raise UserError(
            f"{setting}: expected the name of an environment variable in "
            "capital letters, such as OPENAI_API_KEY, and never the key itself"
        )


def key_of(setting: str, variable: str) -> str:
    """Returns the key that an environment variable holds; empty if none is named.

    Raises:
      UserError: if the variable isn't set, or holds what can be no key; it names the setting.
    """
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"{setting}: the environment variable {variable} isn't set, expected the key of the "
            "API in it, or '' here for an API that takes none"
        )
    if not re.fullmatch("[!-~]+", key):
        raise UserError(
            f"{setting}: {variable} has white space or other characters that no "
            "header can have, expected the key of the API"
        )
    return key


def _is_url(text: str) -> bool:
    try:
        found = urllib.parse.urlsplit(text)
        return found.scheme in ("http", "https") and bool(found.hostname) and text.isprintable()
    except ValueError:
        return False


def _retry_after(headers: email.message.Message | None) -> float:
    """The seconds that a response asks to wait; it says a number of them, or until when."""
    text = (headers and headers.get("Retry-After")) or ""
    if re.fullmatch(r"\d{1,9}(\.\d+)?", text.strip()):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return 0.0
