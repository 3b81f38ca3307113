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
_PART = 1 << 16
# Timeout, too early, too many requests; those of 500 and more are tried again too.
_TRANSIENT = (408, 425, 429)
# Bad request, too large, unprocessable: another request may well be taken.
_ABOUT_ONE = (400, 413, 422)
# What the API says beside them may have a part of the key.
_ABOUT_KEYS = (401, 403)


class TransientError(Exception):
    """Says what may pass.

    Attributes:
      wait: the seconds that the API asks to wait.
      limited: whether there were too many requests.
    """

    def __init__(self, reason: str, wait: float = 0.0, limited: bool = False):
        super().__init__(reason)
        self.wait, self.limited = wait, limited


class Unanswered(UserError):
    """Says that one request has no answer, while others may have one."""


class Client:
    """Sends requests; several threads may do so at once.

    Args:
      key: the API's key, empty for none.
      timeout: seconds after which a request is given up that isn't answered whole.
      retries: how often a request is sent again after a timeout, a broken connection, or a status
        of 429 or of 500 and more; the waits double from a second on, or are what the API asks for.
        A status of 429 doesn't count while other requests are answered.
    """

    def __init__(self, key: str, timeout: float, retries: int):
        self._key, self._timeout, self._retries = key, timeout, retries
        self._opener = urllib.request.build_opener(_NoRedirection)
        self._stopped = threading.Event()
        self._answered = 0

    def post(self, url: str, body: Body, read: Callable[[str], T]) -> T:
        """Sends a request, again after what may pass, and returns what `read` makes of its answer.

        Args:
          url: where to.
          body: the request.
          read: raises TransientError for an answer that is none.

        Raises:
          Unanswered: if the API refuses this request, or there is no answer after all retries.
          UserError: if the API refuses all requests.
        """
        data, before = json.dumps(body).encode(), self._answered
        attempt = sent = 0
        while True:
            sent += 1
            try:
                found = read(self._send(url, data))
                self._answered += 1
                return found
            except TransientError as error:
                problem = error
            # Where few are let in at once, the others take turns however long that is.
            turn = problem.limited and self._answered != before
            before = self._answered
            if self._stopped.is_set() or (attempt == self._retries and not turn):
                raise Unanswered(f"{url}: no answer after {sent} requests: {problem}")
            self._pause(min(max(problem.wait, _FIRST_WAIT * 2**attempt), _LONGEST_WAIT))
            attempt += not turn

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
        ends = time.monotonic() + self._timeout
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                return self._without_key(_content(response, ends))
        except urllib.error.HTTPError as error:
            status = f"{error.code} {printable(self._without_key(error.reason))}".strip()
            if error.code not in _ABOUT_KEYS:
                status += self._said(error, ends)
            if error.code in _TRANSIENT or error.code >= 500:
                wait, limited = _retry_after(error.headers), error.code == 429
                raise TransientError(status, wait, limited) from None
            refusal = Unanswered if error.code in _ABOUT_ONE else UserError
            raise refusal(f"{url} answers {status}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            text = self._without_key(str(reason) or type(reason).__name__)
            raise TransientError(printable(text)) from None

    def _said(self, error: urllib.error.HTTPError, ends: float) -> str:
        """What the API says of an error, in short."""
        try:
            text = self._without_key(_content(error, ends))
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


def _content(response: Any, ends: float) -> bytes:
    """Reads an answer to its end; a server may also be slow by sending it byte by byte."""
    parts = []
    while part := response.read1(_PART):
        parts.append(part)
        if time.monotonic() > ends:
            raise TimeoutError("timed out in the middle of the answer")
    if getattr(response, "length", None):
        raise http.client.IncompleteRead(b"", response.length)
    return b"".join(parts)


def _retry_after(headers: email.message.Message | None) -> float:
    """The seconds that a response asks to wait; it says a number of them, or until when."""
    text = (headers and headers.get("Retry-After")) or ""
    if re.fullmatch(r"\d{1,9}(\.\d+)?", text.strip()):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError, TypeError):
        return 0.0
