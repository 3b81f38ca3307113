"""SIGTERM and SIGINT: a stage in training is asked to stop, anything else ends at once."""

import os
import signal
import subprocess
import sys
import time

import pytest

from pit_jax.runtime.signals import Signals
from tests import tiny_runs

# Its main thread waits for itself, in C, where no Python handler of a signal would run.
SCRIPT = """
import ctypes
from pit_jax.runtime.signals import Signals

with Signals() as signals:
    training = signals.training()
    {enter}
    print("ready", flush=True)
    mutex, c = ctypes.create_string_buffer(64), ctypes.CDLL(None)
    c.pthread_mutex_lock(mutex)
    c.pthread_mutex_lock(mutex)
"""


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def start(enter=""):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(enter=enter)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_outside_of_training_the_process_ends_at_once(number, status):
    process = start()
    process.send_signal(number)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == status
    assert errors == "interrupted; what was written stays, the same command goes on\n"


def test_what_is_kept_may_be_said_otherwise():
    process = start("signals.kept = '3 of 4 rows are done'")
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[1] == "interrupted; 3 of 4 rows are done\n"


def test_a_second_sigint_ends_a_stage_that_trains():
    process = start("training.__enter__()")
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130


def test_a_stage_that_trains_is_asked_to_stop():
    before = signal.getsignal(signal.SIGTERM)
    with Signals() as signals, pytest.raises(RuntimeError), signals.training():
        assert signals.asked() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        wait_for(signals.asked)
        assert signals.asked() == signals.asked(wait=True) == 15
        raise RuntimeError("the stage ends by an exception of its own")
    assert signal.getsignal(signal.SIGTERM) is before


def test_signals_that_are_not_caught_ask_for_nothing():
    signals = Signals()
    with signals.training():
        assert signals.asked() == 0


PRETRAIN = (
    "--gin.STAGE='pretrain'",
    "--gin.LoopConfig.checkpoint_every=0",
    "--gin.LoopConfig.log_every=2",
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A stage that is logged at its second and fourth step, the last."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert tiny_runs.command("train", folder, *PRETRAIN) == 0
    return folder


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_stage_goes_on_at_its_step(
    number, status, uninterrupted, tmp_path, monkeypatch, capsys
):
    """`train` with a signal during the third of four steps, then the same command again.

    Nothing that is recorded tells of it.
    """
    from pit_jax.method import supervised_step

    make_step = supervised_step.make_step

    def interrupting(*arguments):
        step, calls = make_step(*arguments), []

        def run(*given):
            calls.append(1)
            if len(calls) == 3:
                os.kill(os.getpid(), number)
                time.sleep(0.3)  # the thread that listens notes it
            return step(*given)

        return run

    folder = tmp_path / "run"
    arguments = ("train", folder, *PRETRAIN)
    with monkeypatch.context() as patch:
        patch.setattr(supervised_step, "make_step", interrupting)
        assert tiny_runs.command(*arguments) == status
    errors = capsys.readouterr().err
    assert errors == "interrupted; the same command continues at step 3\n"
    assert [each.name for each in (folder / "pretrain" / "checkpoints").iterdir()] == ["3"]
    assert tiny_runs.command(*arguments) == 0
    assert "pretrain: continues at step 3\n" in capsys.readouterr().out
    folders = uninterrupted / "pretrain", folder / "pretrain"
    one, two = (tiny_runs.records(each / "metrics.jsonl") for each in folders)
    assert [record["step"] for record in one] == [2, 4] and one == two
    one, two = (tiny_runs.result(each) for each in folders)
    assert one == two and two["tokens"] > 0
