"""Starts of the command line that can be ended anywhere: forks of this process, and real ones.

A fork is cheap, as the libraries are imported once. It is safe as long as this process has started
neither a backend of JAX nor a thread, which `import_all` checks. A fork can also be ended at an
exact place: before its n-th change of a file in the run directory.
"""

from __future__ import annotations

import functools
import importlib
import os
import pathlib
import pkgutil
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pit_jax import errors
from tests.child_environment import ROOT, child_environment

# Programs are compiled for longer than they run: this takes a sixth of XLA's usual time.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "OPENBLAS_NUM_THREADS": "1",  # so that the parent of forks has no threads
    "PJRT_NPROC": "32",  # eight devices wait for each other
}
LIMIT = 900.0  # seconds after which a start hangs
_CHANGES = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.truncate")
_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Plan(NamedTuple):
    """How a start is made.

    Attributes:
      argv: the command and its flags.
      folder: the run directory, in which changes are counted.
      real: whether it is a process of its own; else a fork, which alone can do what follows.
      devices: how many devices it simulates.
      first: how many of these the run gets; 0 for all.
      end_at: the change of a file before which `signal` is sent; 0 for none.
      signal: the signal.
      limit: bytes that a file may have; 0 for any.
      cache: a folder for compiled programs in the place of the run directory's own.
      lease: seconds without a sign of life after which a holder is dead; 0 for as ever.
    """

    argv: Sequence[str]
    folder: pathlib.Path
    real: bool = False
    devices: int = 1
    first: int = 0
    end_at: int = 0
    signal: int = signal.SIGKILL
    limit: int = 0
    cache: str = ""
    lease: float = 0.0


def import_all() -> None:
    """Imports all that a run needs, once for all forks."""
    packages = importlib.import_module("pit_jax")
    for found in pkgutil.walk_packages(packages.__path__, "pit_jax."):
        if "adapters" not in found.name and not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    for name in ("seqio", "tensorstore", "matplotlib.pyplot", "scipy.stats", "tests.tiny_runs"):
        importlib.import_module(name)
    # What is left is the pool of NumPy's, which is made again after a fork.
    threads = [pathlib.Path(f"/proc/self/task/{n}/comm") for n in os.listdir("/proc/self/task")]
    names = {path.read_text().strip() for path in threads}
    ours = ("tf_", "grpc", "default-exec", "pjrt")
    assert not any(name.startswith(ours) for name in names), names
    import jax._src.xla_bridge as bridge

    assert not bridge._backends, "a backend of JAX was started before the first fork"


class Start:
    """One start of the command line, under way or ended.

    Attributes:
      plan: how it was made.
      status: its exit status, -9 for SIGKILL; None while it runs.
      seconds: how long it has run.
      hung: whether it was killed because it took too long.
      since: when it began, as files have it.
    """

    def __init__(self, plan: Plan, logs: pathlib.Path):
        self.plan, self.status, self.seconds, self.hung = plan, None, 0.0, False
        self._logs = [logs.with_suffix(f".{name}") for name in ("out", "err", "places")]
        for path in self._logs:
            path.write_bytes(b"")
        self._began, self.since = time.monotonic(), time.time()
        self.pid = self._spawn() if plan.real else self._fork()

    def _spawn(self) -> int:
        plan, changes = self.plan, dict(ENVIRONMENT)
        if plan.cache:
            changes["JAX_COMPILATION_CACHE_DIR"] = plan.cache
            changes["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
            changes["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
        with open(self._logs[0], "wb") as out, open(self._logs[1], "wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pit_jax", *plan.argv],
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=child_environment(plan.devices, **changes),
                start_new_session=True,
            )
        return self._process.pid

    def _fork(self) -> int:
        if pid := os.fork():
            return pid
        status = 99
        try:
            status = _in_fork(self.plan, self._logs)
        except SystemExit as error:
            status = int(error.code or 0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            status = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.status is None:
            pid, status, _ = os.wait4(self.pid, os.WNOHANG)
            self.seconds = time.monotonic() - self._began
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
                if self.plan.real:
                    self._process.returncode = self.status
            elif self.seconds > LIMIT:
                self.hung = True
                os.kill(self.pid, signal.SIGKILL)
        return self.status is not None

    def wait(self, seconds: float = float("inf")) -> bool:
        """Waits until it has ended, or for some seconds; whether it has ended."""
        until = time.monotonic() + seconds
        while not self.poll() and time.monotonic() < until:
            time.sleep(0.005)
        return self.status is not None

    def send(self, number: int) -> None:
        """Sends a signal; one that is caught, once `main` of pit_jax has begun to."""
        while not self.poll() and number != signal.SIGKILL and not _catches(self.pid):
            time.sleep(0.005)
        if not self.poll():
            os.kill(self.pid, number)

    @property
    def out(self) -> str:
        return self._logs[0].read_text(errors="replace")

    @property
    def err(self) -> str:
        return self._logs[1].read_text(errors="replace")

    @property
    def places(self) -> list[str]:
        """The changes of files that a fork was about to make, in order."""
        return self._logs[2].read_text(errors="replace").splitlines()


def _catches(pid: int) -> bool:
    """Whether a process catches SIGTERM."""
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in text.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def _in_fork(plan: Plan, logs: Sequence[pathlib.Path]) -> int:
    """What a fork does in the place of `python -m pit_jax`."""
    os.setsid()
    for number, path in enumerate(logs[:2], start=1):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, number)
        os.close(descriptor)
    errors.end_at_signals()
    os.chdir(ROOT)
    os.environ.update(child_environment(plan.devices))
    import jax

    from pit_jax import cli
    from pit_jax.data import flat_arrays
    from pit_jax.run import run as runs
    from pit_jax.runtime import owner

    if plan.first:
        whole = runs.Run
        runs.Run = lambda config: whole(config, jax.devices()[: plan.first])
    if plan.cache:
        jax.config.update("jax_compilation_cache_dir", plan.cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if plan.lease:
        owner.LEASE = plan.lease
    flat_arrays.BIG = 1  # so that data is kept in files
    sys.addaudithook(functools.partial(_hook, _Places(plan, logs[2])))
    if plan.limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan.limit, plan.limit))
    return cli.main(list(plan.argv))


class _Places:
    def __init__(self, plan: Plan, log: pathlib.Path):
        self.folder, self.count = f"{plan.folder}/", 0
        self.end_at, self.signal = plan.end_at, plan.signal
        self.log = os.open(log, os.O_WRONLY | os.O_APPEND)


def _hook(places: _Places, event: str, args: tuple) -> None:
    """Counts what changes a file of the run directory, and ends the process before the n-th."""
    if event == "open":
        if not isinstance(args[2], int) or not args[2] & _TO_WRITE:
            return
    elif event not in _CHANGES:
        return
    path = args[0]
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    if not isinstance(path, str) or not path.startswith(places.folder):
        return
    places.count += 1
    os.write(places.log, f"{event} {path[len(places.folder) :]}\n".encode())
    if places.count == places.end_at:
        os.kill(os.getpid(), places.signal)


def overridden(given: Mapping[str, str]) -> dict[str, str]:
    """The environment that the driver itself has to be started with."""
    return {**given, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
