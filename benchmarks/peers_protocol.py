"""How `peers.py` talks to its workers: a line of JSON each way, over their stdin and stdout.

A worker says `hello` with its versions, and then answers each message. `prepare` makes a case
ready, compiled, and answers with `checks`, which have to equal the other contestant's, and what it
knows of the work. `go` does the case `times` times and answers with seconds. The parent asks one
worker at a time, so only one works. Needs no package, since every peer's interpreter reads it.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any


class Absent(Exception):
    """A peer that can't be imported; its text says what is missing."""


class Failed(Exception):
    """A worker that ended, or that answered with an error."""


class Prepared:
    """Is a case that is ready to go.

    Args:
      go: (times) -> a dict of `seconds`; of `tokens`, how many tokens were done in them; and of
        `phases`, seconds by name, if the peer lets one look.
      checks: what has to equal the other contestant's: numbers, or lists of whole numbers.
      about: further facts, such as `compile_seconds`.
    """

    def __init__(self, go: Callable[[int], dict], checks: dict[str, Any], **about: Any):
        self.go = go
        self.answer = {"checks": checks, **about}


def serve(tasks: Mapping[str, Callable[..., Prepared]], versions: Mapping[str, str]) -> None:
    """Answers the parent's messages until it closes the pipe. What libraries print goes to stderr.

    Args:
      tasks: by name, functions (case message, {model: path of its weights}) -> Prepared.
      versions: of the peer and what it runs on.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(content: Mapping[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    answer({"hello": dict(versions)})
    prepared: Prepared | None = None
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if message["do"] == "prepare":
                prepared = tasks[message["task"]](message["case"], message["weights"])
                answer(prepared.answer)
            else:
                assert prepared is not None
                answer(prepared.go(message["times"]))
        except Exception as error:
            traceback.print_exc()
            answer({"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"})


def clock(function: Callable[[], Any]) -> float:
    """Returns the seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class Worker:
    """Is a worker's process, as the parent sees it.

    Args:
      name: of the contestant, for messages.
      command: what starts it.
      environment: its environment variables.
      log: the file that its stderr goes to.

    Raises:
      Absent: if it ends at once because of a module that isn't there.
      Failed: if it ends at once for another reason.
    """

    def __init__(
        self,
        name: str,
        command: list[str],
        environment: Mapping[str, str],
        log: pathlib.Path,
    ):
        self.name, self._log = name, log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=dict(environment),
                text=True,
            )
        try:
            self.versions: dict[str, str] = self._read()["hello"]
        except Failed as failure:
            last = self._last_line()
            kind = Absent if last.startswith(("ModuleNotFoundError", "ImportError")) else Failed
            raise kind(f"{name}: {last}") from failure

    def ask(self, **message: Any) -> dict[str, Any]:
        """Sends a message and waits for its answer.

        Raises:
          Failed: if the worker answers with an error, or has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, which reading says
        answer = self._read()
        if "error" in answer:
            raise Failed(f"{self.name}: {answer['error']}; see {self._log}")
        return answer

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise Failed(f"{self.name}: ended: {self._last_line()}; see {self._log}")
        return json.loads(line)

    def _last_line(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit status {self._process.returncode}"

    def close(self) -> None:
        """Ends the worker."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
