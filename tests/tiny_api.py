"""A stand-in for an OpenAI-compatible API, in a thread of the test's own process."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

# Status, headers and content of an answer, whose parts come one after the other; a text alone is
# that of a chat completion.
Reply = str | tuple[int, dict[str, str], bytes | list[bytes]]


def completion(text: str | None, reason: str = "stop", **more: Any) -> Reply:
    """A whole answer: 10 tokens were read and 3 written."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
    found = {"choices": [{**choice, "finish_reason": reason}], "usage": usage, **more}
    return 200, {}, json.dumps(found).encode()


class Api(ThreadingHTTPServer):
    """Answers as `reply(what the user said)`; it keeps paths, headers and bodies."""

    daemon_threads = True
    request_queue_size = 64  # with fewer, a connection of many at once waits for a second

    def __init__(self, reply: Callable[[str], Reply]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply = reply
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def said(self) -> list[str]:
        """What the user said in each request."""
        return [body["messages"][-1]["content"] for body in self.bodies]

    def answer(self, path: str, body: dict[str, Any]) -> Reply:
        """What a request is answered."""
        return self.reply(body["messages"][-1]["content"])

    @contextlib.contextmanager
    def counted(self, path, headers, body) -> Iterator[None]:
        with self._lock:
            self.paths.append(path)
            self.headers.append(dict(headers))
            self.bodies.append(body)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            yield
        finally:
            with self._lock:
                self._at_once -= 1


Server = TypeVar("Server", bound=Api)


class _Handler(BaseHTTPRequestHandler):
    server: Api

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.counted(self.path, self.headers, body):
            found = self.server.answer(self.path, body)
        status, headers, content = completion(found) if isinstance(found, str) else found
        self.send_response(status)
        parts = [content] if isinstance(content, bytes) else content
        for name, value in {"Content-Length": str(sum(map(len, parts))), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            for part in parts:
                self.wfile.write(part)
                time.sleep(0.02 * (len(parts) > 1))

    def do_GET(self):  # where a redirection would lead
        self.server.paths.append(f"GET {self.path}")
        self.send_error(404)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def api(reply: Callable[[str], Reply]) -> Iterator[Api]:
    """Serves until the block ends."""
    with served(Api(reply)) as server:
        yield server


@contextlib.contextmanager
def served(server: Server) -> Iterator[Server]:
    """Lets a server serve until the block ends."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
