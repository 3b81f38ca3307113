"""What counts as the death of a process, and what the others are told; the whole: end_to_end/."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time

import pytest

from pit_jax import errors
from pit_jax.runtime import watch
from tests.child_environment import child_environment

HOST = socket.gethostname()
# Another process: it greets, does what it is told, and is killed or ends.
PROCESS = """
import sys, time
from pit_jax.runtime import watch
mine = watch.Watch(int(sys.argv[1]))
mine.connect("localhost", sys.argv[2])
print("watches", flush=True)
for line in sys.stdin:
    exec(line)
"""


@pytest.fixture
def first(monkeypatch):
    """The first process's watch: it, how to connect to it, and the lines it would end with."""
    monkeypatch.setattr(watch, "DIED", 0.05)
    monkeypatch.setattr(watch, "FAILED", 0.1)
    ends: queue.Queue[str] = queue.Queue()
    mine = watch.Watch(0, ends.put)
    return mine, mine.listen(), ends


def other(index, told):
    ends: queue.Queue[str] = queue.Queue()
    mine = watch.Watch(index, ends.put)
    mine.connect("localhost", told)
    return mine, ends


def cut(mine, index=0):
    """What the system does of a process that has ended."""
    mine._others[index].shutdown(socket.SHUT_RDWR)


def until(what):
    for _ in range(500):
        if what():
            return
        time.sleep(0.01)
    raise AssertionError


@pytest.fixture
def process(first):
    """A process of index 3, on this machine."""
    with subprocess.Popen(
        [sys.executable, "-c", PROCESS, "3", first[1]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(1),
    ) as started:
        assert started.stdout.readline() == "watches\n"
        yield started
        started.kill()


def test_a_process_that_is_killed_is_named_at_once(first, process):
    assert first[0].lost() == ""
    process.kill()
    line = f"process 3 on {HOST} has died: its connection was closed"
    assert first[0].lost(5) == line
    assert first[2].get(timeout=5) == line


def test_a_process_that_ends_with_another_gives_its_locks_back(first, process, tmp_path):
    """As `improve` has one for its output, and `run` one for its directory."""
    lock = tmp_path / "out.jsonl.lock"
    made = f"owner.Owner('out.jsonl', 'improve', {str(lock)!r}).__enter__()"
    process.stdin.write(f"from pit_jax.runtime import owner; {made}; print('has it', flush=True)\n")
    process.stdin.flush()
    assert process.stdout.readline() == "has it\n" and lock.exists()
    cut(first[0], 3)
    assert process.wait(timeout=20) == 1 and not lock.exists()


def test_the_first_process_s_death_ends_another_with_a_line(first, process):
    cut(first[0], 3)
    assert process.wait(timeout=20) == 1
    assert process.stderr.read() == (
        f"pit_jax: process 0 on {HOST} has died: its connection was closed; what was written "
        "stays, the same command goes on\n"
    )


def test_last_words_are_heard_while_libraries_are_silent(capfd):
    with errors.quiet_stderr():
        os.write(2, b"chatter\n")
        errors.last_words("a line")
    errors.last_words("another")
    assert capfd.readouterr().err == "a line\nanother\n"


def test_a_process_whose_interpreter_is_busy_is_alive(first, process):
    """For a second in C, without letting other threads run."""
    process.stdin.write("import ctypes; ctypes.PyDLL(None).sleep(1); print('woken', flush=True)\n")
    process.stdin.flush()
    assert process.stdout.readline() == "woken\n"
    assert first[0].lost() == ""


def test_all_others_are_told_of_a_death(first):
    mine, told, ends = first
    (one, one_ends), (_, two_ends) = other(1, told), other(2, told)
    cut(one)
    line = f"process 1 on {HOST} has died: its connection was closed"
    assert ends.get(timeout=5) == line and two_ends.get(timeout=5) == line
    assert mine.lost() == line and one_ends.get(timeout=5).startswith("process 0 on")
    assert ends.empty() and two_ends.empty()


def test_an_end_with_an_error_is_told_with_its_status(first):
    _, told, ends = first
    one, _ = other(1, told)
    one.farewell(2)
    cut(one)
    assert ends.get(timeout=5) == f"process 1 on {HOST} has ended with exit status 2"


def test_a_normal_end_is_no_death(first):
    mine, told, ends = first
    (one, _), (two, two_ends) = other(1, told), other(2, told)
    one.farewell(0)
    cut(one)
    ended = threading.Event()
    two.first_ends = ended.set
    assert not mine.lost(0.3) and not ended.is_set()
    mine.farewell(0)
    assert ended.wait(5)
    cut(mine, 2)
    assert not two.lost(0.3) and two_ends.empty()
    # Until all have come to their normal end, a death counts.
    assert ends.get(timeout=5) == f"process 2 on {HOST} has died: its connection was closed"


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (TimeoutError(errno.ETIMEDOUT, "timed out"), "its machine hasn't answered for 20 s"),
        (ConnectionResetError(), "its connection was closed"),
        (OSError(errno.EHOSTUNREACH, "no route"), "its machine can't be reached: no route"),
    ],
)
def test_a_machine_that_is_gone_has_another_line(error, how, monkeypatch):
    """The system says so of a connection, which `_keep_alive` asks it to."""
    monkeypatch.setattr(watch, "DIED", 0.0)
    ends = []

    class Lines:
        def readline(self, most):
            raise error

    mine = watch.Watch(0, ends.append)
    mine._follow(Lines(), {"index": 5, "host": "host-f"})
    assert ends == [f"process 5 on host-f has died: {how}"]


@pytest.mark.skipif(sys.platform != "linux", reason="the names of the options are Linux's")
def test_the_system_asks_a_machine_that_is_silent(first):
    mine, told, _ = first
    one, _ = other(1, told)
    until(lambda: mine._others)
    for connection in (one._others[0], mine._others[1]):
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle, every, count, pending = (
            connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
            for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        )
        assert idle + every * count == 20 and pending == 20_000
        assert connection.gettimeout() is None


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n", b'{"index": 1, "host": "x"}\n', b"[]\n"])
def test_a_stranger_is_neither_told_nor_missed(first, sent):
    mine, told, ends = first
    with socket.create_connection(("localhost", json.loads(told)["port"])) as stranger:
        stranger.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(100) == b""
    assert not mine._others and not mine.lost() and ends.empty()


def test_who_cannot_connect_is_told():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        told = json.dumps({"port": free.getsockname()[1], "token": ""})
    with pytest.raises(OSError, match="refused"):
        watch.Watch(1).connect("localhost", told)
