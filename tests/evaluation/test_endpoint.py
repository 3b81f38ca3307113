"""The HTTP side of a judge, against a server in a thread."""

from __future__ import annotations

import dataclasses
import email.utils
import json
import re
import time

import pytest

from pit_jax.errors import UserError
from pit_jax.evaluation.endpoint import Answer, Endpoint, EndpointConfig
from pit_jax.run import client
from tests import tiny_api

KEY = "sk-Very-Secret-0123456789"
CONFIG = EndpointConfig("http://127.0.0.1:1/v1", "judge-1", "dialogue")


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def ask(monkeypatch):
    """Asks once what replies, given in order, answer; returns the answer, the API, the waits."""

    def ask(*replies, **fields):
        left, waits = list(replies), []
        with tiny_api.api(lambda said: left.pop(0)) as server:
            config = dataclasses.replace(CONFIG, url=server.url, **fields)
            made = Endpoint(config)
            monkeypatch.setattr(made, "_pause", waits.append)
            try:
                found = made.ask(made.body("Be fair.", "Which?"))
            except UserError as error:
                found = error
        return found, server, waits

    return ask


def failed(status, text="", **headers):
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, text.encode()


def test_a_request_and_its_answer(ask):
    answer, server, waits = ask("A is. [[A]]")
    assert answer == Answer("A is. [[A]]", False, 10, 3) and waits == []
    assert server.paths == ["/v1/chat/completions"]
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert server.bodies == [
        {
            "model": "judge-1",
            "messages": [
                {"role": "system", "content": "Be fair."},
                {"role": "user", "content": "Which?"},
            ],
            "temperature": 0.0,
            "max_tokens": 1024,
        }
    ]


def test_what_is_left_to_the_api_is_not_sent(ask):
    """Model, temperature, most tokens and key are as the configuration says."""
    fields = {"temperature": None, "max_tokens": 0, "key_variable": "", "model": "other"}
    _, server, _ = ask("[[A]]", **fields)
    assert set(server.bodies[0]) == {"model", "messages"} and server.bodies[0]["model"] == "other"
    assert "Authorization" not in server.headers[0]
    _, server, _ = ask("[[A]]", temperature=0.5, max_tokens=7)
    assert (server.bodies[0]["temperature"], server.bodies[0]["max_tokens"]) == (0.5, 7)
    with tiny_api.api(lambda said: "") as server:
        made = Endpoint(dataclasses.replace(CONFIG, url=f"{server.url}/"))
        made.ask(made.body("", "Which?"))
    assert server.paths == ["/v1/chat/completions"]
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "Which?"}]


def test_an_answer_may_be_cut_empty_or_uncounted(ask):
    assert ask(tiny_api.completion("A is", "length"))[0] == Answer("A is", True, 10, 3)
    assert ask(tiny_api.completion(None, usage=None))[0] == Answer("")
    assert ask(tiny_api.completion("x", usage={"prompt_tokens": "?"}))[0] == Answer("x")


def test_what_may_pass_is_asked_again_after_waits_that_double(ask):
    answer, server, waits = ask(failed(429, "slow down"), failed(500), failed(503, "<html>"), "x")
    assert answer.text == "x" and len(server.bodies) == 4 and waits == [1, 2, 4]
    answer, server, waits = ask((200, {}, b"{"), (200, {}, b'{"error": 1}'), (200, {}, b"[]"), "x")
    assert answer.text == "x" and waits == [1, 2, 4]
    # More bytes are said to come than do, and the connection ends.
    short = (200, {"Content-Length": "99", "Connection": "close"}, b"{}")
    answer, server, waits = ask(short, "x")
    assert answer.text == "x" and waits == [1]


def test_the_api_may_say_how_long_to_wait(ask):
    at = email.utils.formatdate(time.time() + 60, usegmt=True)
    _, _, waits = ask(
        failed(429, Retry_After="7.5"),
        failed(503, Retry_After="0"),
        failed(429, Retry_After=at),
        failed(429, Retry_After="soon"),
        failed(429, Retry_After="86400"),
        "x",
    )
    assert waits[:2] == [7.5, 2] and 55 < waits[2] <= 60 and waits[3:] == [8, 300]


@pytest.mark.parametrize("retries", [0, 2])
def test_so_many_retries_and_no_more(ask, retries):
    error, server, waits = ask(*[failed(529, "busy\n\x1b[1m")] * 4, retries=retries)
    assert len(server.bodies) == retries + 1 and len(waits) == retries
    assert str(error) == (
        f"{server.url}/chat/completions: no answer after {retries + 1} requests: 529: busy \\x1b[1m"
    )


def test_a_timeout_and_a_broken_connection_are_tried_again():
    def slow(said):
        time.sleep(0.4)
        return "late"

    with tiny_api.api(slow) as server:
        made = Endpoint(dataclasses.replace(CONFIG, url=server.url, timeout=0.05, retries=1))
        made._pause = lambda seconds: setattr(server, "reply", lambda said: "in time")
        assert made.ask(made.body("", "x")).text == "in time"
        assert len(server.bodies) == 2
    made = Endpoint(dataclasses.replace(CONFIG, url=server.url, retries=1))
    made._pause = lambda seconds: None
    with pytest.raises(UserError, match="no answer after 2 requests: .*refused"):
        made.ask(made.body("", "x"))


def test_a_stopped_endpoint_waits_no_more():
    made = Endpoint(dataclasses.replace(CONFIG, url="http://127.0.0.1:9"))
    made.stop()
    with pytest.raises(UserError, match="no answer after 1 requests"):
        made.ask(made.body("", "x"))


@pytest.mark.parametrize(
    ("status", "said", "shown"),
    [
        (400, json.dumps({"error": {"message": "max_tokens:\ntoo many"}}), "400 Bad Request: max_"),
        (404, "<html>\n no such model", "404 Not Found: <html> no such model"),
        (401, json.dumps({"error": {"message": "wrong key sk-Very"}}), "401 Unauthorized"),
        (403, "sk-Very is not allowed", "403 Forbidden"),
        (422, f"got the header Bearer {KEY}", "422 Unprocessable.*: got the header Bearer .key."),
        (400, "x" * 999, "400 Bad Request: x{200}$"),
    ],
)
def test_a_refused_request_is_one_line_without_the_key(ask, status, said, shown):
    error, server, waits = ask(failed(status, said))
    assert isinstance(error, UserError) and waits == [] and len(server.bodies) == 1
    (line,) = str(error).splitlines()
    assert line.startswith(f"{server.url}/chat/completions answers {status}")
    assert "sk-" not in line and re.search(shown, line)


def test_the_key_goes_nowhere_else(ask):
    """A redirection would take the header along; an answer that repeats the key loses it."""
    error, server, _ = ask(failed(302, Location="http://localhost:9/elsewhere"))
    assert "answers 302 Found" in str(error)
    error, server, _ = ask(failed(307, Location="/v1/elsewhere"))
    assert "answers 307" in str(error) and server.paths == ["/v1/chat/completions"]
    answer, _, _ = ask(f"[[A]] {KEY}")
    assert answer.text == "[[A]] (key)"


@pytest.mark.parametrize(
    ("value", "message"),
    [(None, "OPENAI_API_KEY isn't set"), (" \n", "isn't set"), ("sk-a b", "has white space")],
)
def test_a_key_that_is_none(monkeypatch, value, message):
    monkeypatch.delenv("OPENAI_API_KEY")
    if value is not None:
        monkeypatch.setenv("OPENAI_API_KEY", value)
    with pytest.raises(UserError, match=message) as error:
        Endpoint(CONFIG)
    assert "sk-" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"key_variable": KEY}, "key_variable: expected the name of an environment variable"),
        ({"key_variable": "hf_abcSecret"}, "and never the key itself"),
        ({"url": f"http://me:{KEY}@host/v1"}, "url: expected a URL without a user or a password"),
        ({"url": "localhost:8000"}, "url: got 'localhost:8000', expected a URL such as"),
        ({"url": "file:///etc/passwd"}, "url: got "),
        ({"url": "http://[::1/v1"}, "url: got "),
        ({"model": ""}, "model: got ''"),
        ({"concurrency": 0}, "concurrency: got 0, expected 1 or more"),
        ({"retries": -1}, "retries: got -1, expected 0 or more"),
        ({"max_tokens": -1}, "max_tokens: got -1"),
        ({"temperature": -0.1}, "temperature: got -0.1"),
        ({"timeout": 0}, "timeout: got 0, expected more than 0"),
    ],
)
def test_mistakes_in_a_configuration_are_named_without_a_key(fields, message):
    with pytest.raises(UserError) as error:
        dataclasses.replace(CONFIG, **fields)
    assert message in str(error.value)
    assert KEY not in str(error.value) and "Secret" not in str(error.value)


def test_the_longest_wait_bounds_all(ask):
    _, _, waits = ask(*[failed(500)] * 11, "x", retries=11)
    assert waits == [*(2.0**n for n in range(9)), 300, 300] and client._LONGEST_WAIT == 300
