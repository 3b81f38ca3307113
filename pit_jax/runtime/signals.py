"""Catches SIGTERM, which a machine sends before it is taken away, and SIGINT, which ^C sends.

While a stage trains, either makes it finish its step, write a checkpoint and end. At any other time
(loading, compiling between stages, sampling references, evaluating) the process ends at once: all
that a run writes is written whole or not at all, so nothing is left half done.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import threading
from collections.abc import Iterator

import jax

from pit_jax.errors import end_process
from pit_jax.runtime import processes
from pit_jax.runtime.watch import KEPT

_CAUGHT = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Catches the signals from `with signals:` on, in the main thread; before that, none arrives.

    A second SIGINT ends the process at once, also while a stage trains.

    Attributes:
      kept: what the process says of what it has done when a signal ends it at once.
    """

    kept = KEPT

    def __init__(self) -> None:
        self._received = 0
        self._training = False
        self._lock = threading.Lock()
        self._in_flight: jax.Array | None = None

    def __enter__(self) -> Signals:
        # A thread reads the numbers, as the main thread may be inside of a long call into XLA.
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self._fd_before = signal.set_wakeup_fd(self._theirs.fileno(), warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, lambda *_: None) for number in _CAUGHT}
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        self._theirs.close()
        self._thread.join()
        self._ours.close()

    def _listen(self) -> None:
        while number := int.from_bytes(self._ours.recv(1)):
            if number not in _CAUGHT:
                continue
            with self._lock:
                again = number == signal.SIGINT and self._received
                if self._training and not again:
                    self._received = number
                    continue
            self._end(number)

    def _end(self, number: int) -> None:
        processes.leave(128 + number)
        end_process(128 + number, f"interrupted; {self.kept}")

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Keeps a signal for `asked`, while this is open, instead of ending the process."""
        with self._lock:
            self._training = True
        self._in_flight = None
        try:
            yield
        finally:
            with self._lock:
                self._training = False
            if self._received and sys.exc_info()[0] is None:
                self._end(self._received)

    def asked(self, wait: bool = False) -> int:
        """Returns the number of the signal to stop for, 0 if there was none; all processes agree.

        With several processes, each must call this once a step. It tells what they had received by
        the last call, so that no process waits for the step it has just begun; with `wait`, by this
        one.
        """
        if jax.process_count() == 1:
            return self._received
        before, self._in_flight = self._in_flight, processes.largest(self._received)
        return int(self._in_flight if wait else before if before is not None else 0)
