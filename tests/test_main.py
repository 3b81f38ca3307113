"""`python -m pit_jax` before its libraries are there; what comes after is in other tests."""

import signal
import subprocess
import sys

import pytest

from tests.child_environment import child_environment

# What a module that is imported does where a signal comes, as C extensions do.
MODULE = """
import os, time
try:
    os.kill(os.getpid(), {number})
    time.sleep(20)
except KeyboardInterrupt:
    raise ImportError("initialization failed") from None
"""


def ended(tmp_path, name, number, **options):
    """How `run` ends that gets a signal while it imports a module of this name."""
    (tmp_path / f"{name}.py").write_text(MODULE.format(number=int(number)))
    (tmp_path / "a.gin").write_text("")
    environment = child_environment(1)
    environment["PYTHONPATH"] = f"{tmp_path}:{environment['PYTHONPATH']}"
    command = [sys.executable, "-m", "pit_jax", "run", f"--gin_file={tmp_path}/a.gin"]
    found = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        # What runs the tests may itself ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )
    return found.returncode, found.stdout + found.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("name", ["etils", "jax"])  # one of the first modules; one of the slow ones
def test_a_signal_while_libraries_load_ends_with_a_line(name, number, status, tmp_path):
    assert ended(tmp_path, name, number) == (status, "interrupted\n")


def test_a_signal_that_is_ignored_stays_so(tmp_path):
    """As a shell has it for what a script runs in the background."""
    module = MODULE.format(number=int(signal.SIGINT)).replace("time.sleep(20)", "os._exit(7)")
    (tmp_path / "etils.py").write_text(module)
    environment = child_environment(1)
    environment["PYTHONPATH"] = f"{tmp_path}:{environment['PYTHONPATH']}"
    command = f"trap '' INT; exec {sys.executable} -m pit_jax --version"
    assert subprocess.run(["sh", "-c", command], env=environment).returncode == 7
