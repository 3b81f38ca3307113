"""Whether freed memory stays with the process: by the pages that the system has to clear."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pit_jax.runtime import host_memory
from tests.child_environment import ROOT

PROGRAM = """
import resource, sys, threading
import numpy as np
from pit_jax.runtime.host_memory import keep_freed

done = keep_freed() if sys.argv[1] == "kept" else False

def work():
    np.ones(64 << 20, np.uint8)

def go():  # as XLA does, in a thread that isn't the first one
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()

for _ in range(2):
    go()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    go()
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str, **environment: str) -> tuple[bool, int]:
    kept = {n: x for n, x in os.environ.items() if not n.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    settings = kept | {"NUMPY_MADVISE_HUGEPAGE": "0"} | environment
    found = subprocess.run(command, env=settings, cwd=ROOT, capture_output=True, text=True)
    done, count = found.stdout.split()
    return done == "True", int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is of Linux")
def test_freed_memory_needs_no_new_pages():
    assert faults("as_ever")[1] > 5 * (64 << 20) / 4096 / 2
    done, count = faults("kept")
    if not done:
        pytest.skip("no glibc, or an accelerator")
    assert count < 500


def test_a_user_or_an_accelerator_has_its_own_way(monkeypatch):
    monkeypatch.setattr(host_memory.ctypes, "CDLL", lambda name: pytest.fail("was called"))
    for name in ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_ARENA_MAX"):
        monkeypatch.setenv(name, "x")
        assert host_memory.keep_freed() is False
        monkeypatch.delenv(name)
    monkeypatch.setattr(host_memory.glob, "glob", lambda pattern: ["/dev/nvidia0"])
    assert host_memory.keep_freed() is False
