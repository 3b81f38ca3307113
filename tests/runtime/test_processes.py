"""How processes are told of each other; what they do together is in end_to_end/."""

import threading
import time

import jax
import numpy as np
import pytest

from pit_jax.errors import UserError
from pit_jax.runtime import processes, relay
from tests import tiny_runs

GOOD = {
    "PIT_JAX_COORDINATOR": "10.0.0.1:1234",
    "PIT_JAX_PROCESS_COUNT": "4",
    "PIT_JAX_PROCESS_INDEX": "3",
}


@pytest.fixture
def joined(monkeypatch):
    """What jax.distributed.initialize is called with."""
    calls = []
    monkeypatch.setattr(
        jax.distributed, "initialize", lambda *arguments, **_: calls.append(arguments)
    )
    monkeypatch.setattr(relay, "start", lambda address: (f"relay to {address}", None))
    monkeypatch.setattr(processes, "_begin", lambda address: calls.append(("watch", address)))
    monkeypatch.setattr(jax.config, "update", lambda name, value: calls.append((name, value)))
    return calls


def test_processes_started_by_hand_are_named_by_the_environment(joined):
    processes.initialize(GOOD)
    assert ("relay to 10.0.0.1:1234", 4, 3) in joined
    assert joined[-1] == ("watch", "10.0.0.1:1234")
    assert ("jax_cpu_collectives_implementation", "gloo") in joined
    assert ("jax_enable_preemption_service", False) in joined


def test_on_a_pod_they_find_each_other(joined, monkeypatch):
    monkeypatch.setattr(processes, "_joined", lambda: ("host-a:8476", 2, 1))
    processes.initialize({"PIT_JAX_COORDINATOR": ""})
    assert joined[-2:] == [(), ("watch", "host-a:8476")]  # as JAX does it, without a relay


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"PIT_JAX_COORDINATOR": ""}, "_INDEX set, expected PIT_JAX_COORDINATOR too"),
        ({"PIT_JAX_PROCESS_INDEX": ""}, "set, expected PIT_JAX_PROCESS_INDEX too"),
        ({"PIT_JAX_COORDINATOR": "10.0.0.1"}, "got '10.0.0.1', expected HOST:PORT"),
        ({"PIT_JAX_PROCESS_COUNT": "four"}, "PIT_JAX_PROCESS_COUNT: got 'four', expected a number"),
        ({"PIT_JAX_PROCESS_INDEX": "-1"}, "PIT_JAX_PROCESS_INDEX: got '-1', expected a number"),
        ({"PIT_JAX_PROCESS_INDEX": "4"}, "got 4, expected less than PIT_JAX_PROCESS_COUNT=4"),
    ],
)
def test_mistakes_in_the_environment(change, message, joined):
    with pytest.raises(UserError, match=message):
        processes.initialize(GOOD | change)
    assert not [call for call in joined if len(call) == 3]


def test_a_machine_that_is_no_pod_is_told_what_to_set(tmp_path, monkeypatch, capsys):
    def refuse(**_):
        raise ValueError("coordinator_address should be defined.\nmore")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    assert tiny_runs.command("run", tmp_path / "run", "--distributed") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "pit_jax run: --distributed: the processes can't be joined: coordinator_address should be "
        "defined.; outside of a TPU pod, set PIT_JAX_COORDINATOR, PIT_JAX_PROCESS_COUNT, "
        "PIT_JAX_PROCESS_INDEX"
    )


def test_processes_that_do_not_come_are_told_of(joined, monkeypatch, capfd):
    """JAX would wait longer, and then print a stack."""
    ends, ended = [], threading.Event()

    def end_process(*told):
        ends.append(told)
        ended.set()

    monkeypatch.setattr(processes, "end_process", end_process)
    monkeypatch.setattr(processes, "JOIN", 0.2)
    monkeypatch.setattr(processes, "_SILENT", 0.1)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: ended.wait(5))
    processes.initialize(GOOD)
    ((status, line),) = ends
    assert status == 1 and "not all processes have joined within 0 s" in line
    assert (
        capfd.readouterr().err == "note: waits for the other processes to join, for 0 s at most\n"
    )
    assert processes._LIMITS["initialization_timeout"] > 300 == int(processes.FROZEN)


def test_processes_that_join_are_not_told_of(joined, monkeypatch, capfd):
    monkeypatch.setattr(processes, "_SILENT", 0.1)
    processes.initialize(GOOD)
    time.sleep(0.2)
    assert capfd.readouterr().err == ""


def test_the_largest_value_of_one_process_is_its_own():
    assert processes.is_first()
    assert int(processes.largest(0)) == 0 and int(processes.largest(15)) == 15
    assert processes.any_process(True) is True and processes.any_process() is False


@pytest.mark.mesh
def test_of_several_values_the_largest_is_told():
    """As if each simulated device were another process's."""
    rows, program = processes._maximum()
    assert int(program(jax.device_put(np.array([0, 0, 15, 0, 2, 0, 0, 0], np.int32), rows))) == 15
