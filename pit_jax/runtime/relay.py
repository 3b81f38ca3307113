"""Hands connections on, in a process of its own: `start` is for others, the rest runs there.

JAX asks the other end for signs of life itself. A process whose interpreter is locked, as by a long
call into C, couldn't hand them on, so another one does. It imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

_TIMEOUT = 30.0  # seconds to reach the other side


def start(address: str) -> tuple[str, Callable[[], None]]:
    """Starts to hand connections on to an address, for as long as this process lives.

    A connection that the other side closes stays open on this side.

    Args:
      address: HOST:PORT, where an IPv6 HOST has brackets.

    Returns:
      HOST:PORT of this machine to connect to instead, and what to call before an end in order, from
      which on a connection that the other side closes is closed.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # signals of the terminal are not for it
    )
    ours, told = process.stdin, process.stdout
    assert ours is not None and told is not None
    port = told.readline().decode().strip()
    if not port:
        raise RuntimeError("can't start a process that hands connections on")

    def over() -> None:
        with contextlib.suppress(OSError):
            ours.write(b"over\n")
            ours.flush()

    return f"127.0.0.1:{port}", over


def split(address: str) -> tuple[str, int]:
    """Splits HOST:PORT, where an IPv6 HOST has brackets."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _main(address: str) -> None:
    server = socket.create_server(("127.0.0.1", 0), backlog=64)
    over = threading.Event()
    threading.Thread(target=_accept, args=(server, address, over), daemon=True).start()
    print(server.getsockname()[1], flush=True)
    for _ in sys.stdin:
        over.set()
    os._exit(0)  # the process that started this one has ended


def _accept(server: socket.socket, address: str, over: threading.Event) -> None:
    always = threading.Event()
    always.set()
    while True:
        near, _ = server.accept()
        try:
            far = socket.create_connection(split(address), timeout=_TIMEOUT)
        except OSError:  # it isn't there yet; JAX tries again
            near.close()
            continue
        for source, target, closes in ((near, far, always), (far, near, over)):
            source.settimeout(None)
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_pump, args=(source, target, closes), daemon=True).start()


def _pump(source: socket.socket, target: socket.socket, closes: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    closes.wait()
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    _main(sys.argv[1])
