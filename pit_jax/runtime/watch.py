"""Ends the processes of one program when one of them dies, with a line that names it.

Each process keeps a TCP connection to the first one, which tells all others of a death. What
counts:

- A connection that closes without a farewell: the process is dead, since its system closes its
  connections when it ends, however it ends.
- No answer to TCP's keepalive for SILENCE seconds: the machine is gone. The system answers, not the
  process, so one that loads for long, is busy in C++ or is stopped counts as alive.

What JAX itself has for this takes longer, names nobody, and prints a stack; where the first process
dies, it ends the others before they can say anything. So JAX's connection to the first process goes
through a `relay`, which keeps its end from JAX. On a pod there is none, since JAX finds that
process itself; when it dies there, JAX ends the others.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from pit_jax import errors

SILENCE = 20  # seconds without an answer of a machine's system
# Seconds that a process has, to end for a reason of its own, once another has died or has ended
# with an error: it may have had the same signal or error, and be about to say so.
DIED, FAILED = 3.0, 15.0
_HELLO = 30.0  # seconds that a greeting may take
_MOST = 4096  # bytes of a message
KEPT = "what was written stays, the same command goes on"


def sentence(line: str) -> str:
    """Returns what is printed of a process that has died."""
    return f"pit_jax: {line}; {KEPT}"


def end_process(line: str) -> None:
    """Ends this process with status 1 and a line, without waiting for anything."""
    errors.end_process(1, sentence(line))


class Watch:
    """Watches the other processes, in threads, from `listen` or `connect` on.

    Args:
      index: which process this is.
      end: is called with a line, once, when another process has died and this one hasn't ended
        some seconds later.

    Attributes:
      first_ends: is called when the first process comes to its normal end.
    """

    def __init__(self, index: int, end: Callable[[str], None] = end_process):
        self._me = {"index": index, "host": socket.gethostname()}
        self._end = end
        self._lock = threading.Lock()
        self._others: dict[int, socket.socket] = {}
        self._line = ""
        self._found = threading.Event()
        self.first_ends: Callable[[], None] = lambda: None

    def listen(self) -> str:
        """Takes the others' connections, in the first process; returns what `connect` needs."""
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        server = socket.create_server(("", 0), family=family, dualstack_ipv6=both, backlog=1024)
        token = secrets.token_hex(16)
        _start(self._accept, server, token)
        return json.dumps({"port": server.getsockname()[1], "token": token})

    def connect(self, host: str, told: str) -> None:
        """Connects to the first process.

        Args:
          host: its host.
          told: what its `listen` returned.

        Raises:
          OSError: if it can't be reached.
        """
        at = json.loads(told)
        connection = socket.create_connection((host, at["port"]), timeout=_HELLO)
        _send(connection, {**self._me, "token": at["token"]})
        lines = connection.makefile("rb")
        first = _message(lines)
        if first is None:
            raise ConnectionError("it didn't answer")
        self._others[0] = connection
        _keep_alive(connection)
        _start(self._follow, lines, first)

    def farewell(self, status: int) -> None:
        """Tells the others that this process is about to end with an exit status."""
        self._tell({"ended": status})

    def lost(self, seconds: float = 0.0) -> str:
        """Returns the line about the process that has died, "" if none does within `seconds`."""
        self._found.wait(seconds)
        return self._line

    def _accept(self, server: socket.socket, token: str) -> None:
        while True:
            connection, _ = server.accept()
            _start(self._greet, connection, token)

    def _greet(self, connection: socket.socket, token: str) -> None:
        with contextlib.suppress(OSError):
            connection.settimeout(_HELLO)
            lines = connection.makefile("rb")
            who = _message(lines) or {}
            given = str(who.pop("token", "")).encode()
            if not hmac.compare_digest(given, token.encode()):
                connection.close()  # some stranger
                return
            _send(connection, self._me)
            with self._lock:
                self._others[who["index"]] = connection
            _keep_alive(connection)
            self._follow(lines, who)

    def _follow(self, lines: Any, who: dict) -> None:
        """Waits for the end of another process."""
        name, status = f"process {who['index']} on {who['host']}", None
        how = "its connection was closed"
        try:
            while (message := _message(lines)) is not None:
                if "lost" in message:
                    self._lose(message["lost"], message["grace"])
                status = message.get("ended", status)
                if status == 0 and who["index"] == 0:
                    self.first_ends()
        except TimeoutError:
            how = f"its machine hasn't answered for {SILENCE} s"
        except ConnectionError:
            pass
        except OSError as error:
            how = f"its machine can't be reached: {error.strerror}"
        if status is None:
            self._lose(f"{name} has died: {how}", DIED)
        elif status:
            self._lose(f"{name} has ended with exit status {status}", FAILED)

    def _lose(self, line: str, grace: float) -> None:
        with self._lock:
            if self._line:
                return
            self._line = line
        self._found.set()
        if self._me["index"] == 0:
            self._tell({"lost": line, "grace": grace})
        time.sleep(grace)
        self._end(line)

    def _tell(self, message: dict) -> None:
        with self._lock:
            others = list(self._others.values())
        for connection in others:
            with contextlib.suppress(OSError):
                _send(connection, message)


def _start(work: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=work, args=arguments, name="watch", daemon=True).start()


def _keep_alive(connection: socket.socket) -> None:
    """Has the system ask the other machine, also where a message to it is under way."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    every = SILENCE // 4
    options = {"TCP_KEEPIDLE": every, "TCP_KEEPINTVL": every, "TCP_KEEPCNT": 3}
    for name, value in (*options.items(), ("TCP_USER_TIMEOUT", SILENCE * 1000)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _send(connection: socket.socket, message: dict) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _message(lines: Any) -> dict | None:
    """Reads a message; None at the end, and of what isn't one."""
    line = lines.readline(_MOST)
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
