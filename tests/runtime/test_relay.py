"""What a relay hands on, and what it keeps from the side that it was started for."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading

import pytest

from pit_jax.runtime import relay
from tests.child_environment import child_environment


@pytest.fixture
def served():
    """A server that answers with what it gets, and the connections it has taken."""
    server = socket.create_server(("127.0.0.1", 0))
    taken = []

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                taken.append(connection)
                connection.sendall(connection.recv(100))

    threading.Thread(target=serve, daemon=True).start()
    yield f"127.0.0.1:{server.getsockname()[1]}", taken
    server.close()


@contextlib.contextmanager
def asked(at):
    """A connection to a relay, by which the server has answered once."""
    with socket.create_connection(at, timeout=5) as near:
        near.sendall(b"asked")
        assert near.recv(100) == b"asked"
        yield near


def test_what_the_other_side_closes_stays_open_until_it_is_over(served):
    address, taken = served
    at, over = relay.start(address)
    with asked(relay.split(at)) as near:
        taken[0].close()
        near.settimeout(0.3)
        with pytest.raises(TimeoutError):
            near.recv(100)
        near.settimeout(5)
        over()
        assert near.recv(100) == b""


def test_what_this_side_closes_is_closed_and_what_nobody_takes(served):
    address, taken = served
    at, _over = relay.start(address)
    with asked(relay.split(at)):
        pass
    taken[0].settimeout(5)
    assert taken[0].recv(100) == b""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody, _other = relay.start(f"127.0.0.1:{free.getsockname()[1]}")
    with socket.create_connection(relay.split(nobody), timeout=5) as near:
        assert near.recv(100) == b""


PROGRAM = """
import ctypes, sys
from pit_jax.runtime import relay
print(relay.start(sys.argv[1])[0], flush=True)
ctypes.PyDLL(None).sleep(60)  # no other thread of the interpreter runs meanwhile
"""


def test_it_works_while_the_interpreter_is_locked_and_ends_with_its_process(served):
    address, taken = served
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, address],
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(1),
    ) as process:
        at = relay.split(process.stdout.readline().strip())
        with asked(at) as near:
            process.kill()
            with contextlib.suppress(ConnectionResetError):
                assert near.recv(100) == b""
    taken[0].settimeout(5)
    with contextlib.suppress(ConnectionResetError):
        assert taken[0].recv(100) == b""


def test_an_address_has_a_host_and_a_port():
    assert relay.split("host-a:8476") == ("host-a", 8476)
    assert relay.split("[fd00::1]:8476") == ("fd00::1", 8476)
