"""Changes one thing of pit_jax at a time, and says which changes no test notices.

    python -m tests.mutants.run [--jobs N] [--only NAME-OR-FOLDER …] [--out FILE.json]

A mutant is a small wrong change; the lists `of_….py` beside this file name the tests that are
to fail with it. They run on a copy of the checkout, and must pass there without any mutant.

Each worker imports the libraries once. It forks for every run of pytest, before anything has
touched a device, and all its runs share what is compiled.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("method", "data", "run", "runtime", "evaluation")
# tests/conftest.py says what JAX is to find in the environment.
LIBRARIES = ("tests.conftest", "flax.linen", "optax", "orbax.checkpoint", "scipy.stats", "seqio")
MAY_SURVIVE = 0.05
SECONDS = 300


class Mutant(NamedTuple):
    """A wrong change of a file.

    Attributes:
      name: what goes wrong.
      file: path in the checkout.
      old: text that is in the file once.
      new: what it becomes.
      tests: what is to fail, files or names of tests as pytest takes them.
      equivalent: why nothing can notice the change; empty where tests have to.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    equivalent: str = ""

    @property
    def folder(self) -> str:
        return self.file.split("/")[1]


def load() -> list[Mutant]:
    """All mutants of the lists, which have, by file: (name, old, new, tests[, equivalent])."""
    mutants = []
    for path in sorted(pathlib.Path(__file__).parent.glob("of_*.py")):
        listed = importlib.import_module(f"tests.mutants.{path.stem}").MUTANTS
        for file, rows in listed.items():
            for name, old, new, tests, *why in rows:
                paths = tuple(f"tests/{test}" for test in tests.split())
                mutants.append(Mutant(name, f"pit_jax/{file}", old, new, paths, *why))
    return mutants


def mutated(mutant: Mutant, text: str) -> str:
    """The file's text with the change.

    Raises:
      ValueError: unless the text holds what is to be changed exactly once.
    """
    if (count := text.count(mutant.old)) != 1:
        raise ValueError(
            f"mutant {mutant.name!r}: {mutant.file} has {mutant.old!r} {count} times, expected once"
        )
    return text.replace(mutant.old, mutant.new)


def copy_checkout(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies all files that git doesn't ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=source, check=True, capture_output=True).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)


def start_worker(source: pathlib.Path, scratch: pathlib.Path, libraries: Sequence[str]) -> None:
    """Makes this process a worker: gives it a copy of its own, and imports the libraries."""
    # A mutant may be as long as the text before it, and both are written within a second.
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # the tests need none
    copy = pathlib.Path(tempfile.mkdtemp(dir=scratch))
    copy_checkout(source, copy)
    os.chdir(copy)
    sys.path[:] = [str(copy), *(path for path in sys.path if path != str(ROOT))]
    for name in libraries:
        importlib.import_module(name)


def run_tests(tests: Sequence[str], limit: float = SECONDS) -> tuple[int, str, float]:
    """pytest in a child of this process: its status, the end of its output, seconds.

    A child that takes more than `limit` seconds is killed, as a mutant may run for ever.
    """
    started = time.monotonic()
    child = os.fork()
    if not child:
        os.setsid()
        with open("pytest.log", "wb") as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
        import pytest

        status = int(pytest.main(["-xq", "-p", "no:cacheprovider", "--basetemp=pytest", *tests]))
        sys.stdout.flush()
        os._exit(status)
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() - started > limit:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.killpg(child, signal.SIGKILL)
            done = os.waitpid(child, 0)
            break
        time.sleep(0.05)
    output = pathlib.Path("pytest.log").read_text(errors="replace")
    return os.waitstatus_to_exitcode(done[1]), output[-4000:], time.monotonic() - started


def try_one(mutant: Mutant) -> dict[str, Any]:
    """Runs the mutant's tests with it."""
    file = pathlib.Path(mutant.file)
    text = file.read_text()
    file.write_text(mutated(mutant, text))
    try:
        status, output, seconds = run_tests(mutant.tests)
    finally:
        file.write_text(text)
    killers = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    killer = killers[0] if killers else "" if status == 0 else f"status {status}"
    return {**mutant._asdict(), "killed": status != 0, "seconds": seconds, "by": killer}


def try_all(
    mutants: Sequence[Mutant],
    source: pathlib.Path = ROOT,
    jobs: int = 1,
    libraries: Sequence[str] = LIBRARIES,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Tries mutants; returns their results, and the output of tests that fail without any."""
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    with tempfile.TemporaryDirectory(prefix="pit_jax_mutants_") as scratch:
        context = multiprocessing.get_context("spawn")
        arguments = source, pathlib.Path(scratch), libraries
        with context.Pool(jobs, start_worker, arguments) as pool:
            whole = [(0, "", 0.0)] * len(tests)
            if pool.apply(run_tests, (tests, SECONDS * len(tests)))[0]:  # which of them?
                whole = pool.map(run_tests, [(test,) for test in tests], chunksize=1)
            broken = {test: out for test, (status, out, _) in zip(tests, whole) if status}
            tried = [m for m in mutants if not broken.keys() & set(m.tests)]
            results = []
            for result in pool.imap_unordered(try_one, tried):
                results.append(result)
                verdict = "killed" if result["killed"] else "SURVIVED"
                print(f"{verdict:8} {result['seconds']:5.1f}s  {result['name']}", flush=True)
    return results, broken


def table(results: Sequence[dict[str, Any]]) -> str:
    """Counts by folder, as Markdown, then the names of the mutants that survived."""
    lines = ["| folder | tried | killed | equivalent | survived |", "|---|---|---|---|---|"]
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for result in results:
        kind = (
            "killed" if result["killed"] else "equivalent" if result["equivalent"] else "survived"
        )
        for folder in (result["file"].split("/")[1], "all"):
            counts[folder].update((kind, "tried"))
    for folder in (name for name in (*FOLDERS, "all") if name in counts):
        numbers = (counts[folder][kind] for kind in ("tried", "killed", "equivalent", "survived"))
        lines.append(f"| {folder} | {' | '.join(map(str, numbers))} |")
    return "\n".join([*lines, *(f"survived: {r['file']}: {r['name']}" for r in survivors(results))])


def survivors(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [r for r in results if not r["killed"] and not r["equivalent"]]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 1 if more than 5% survive that aren't equivalent, or a test fails without any."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1, help="workers beside each other")
    parser.add_argument("--only", nargs="+", default=[], help="names, folders or files of mutants")
    parser.add_argument("--out", type=pathlib.Path, help="JSON file for every result")
    options = parser.parse_args(argv)
    asked, mutants = set(options.only), load()
    if asked:
        mutants = [m for m in mutants if asked & {m.name, m.folder, m.file}]
    for mutant in mutants:
        mutated(mutant, (ROOT / mutant.file).read_text())
    results, broken = try_all(mutants, jobs=options.jobs)
    for test, output in broken.items():
        print(f"{test} fails without any mutant, which says nothing about one:\n{output}")
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    meant = sum(not result["equivalent"] for result in results)
    return int(bool(broken) or len(survivors(results)) > MAY_SURVIVE * meant)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
