"""Lets several processes, usually one on each host, run one program together.

Every process makes the same calls in the same order. The first one alone prints and writes files;
where the others read what it wrote, `wait` makes them wait. A process that dies ends the others,
see `watch`.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import itertools
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pit_jax.errors import UserError, end_process, last_words
from pit_jax.runtime import relay, watch

COORDINATOR = "PIT_JAX_COORDINATOR"
COUNT = "PIT_JAX_PROCESS_COUNT"
INDEX = "PIT_JAX_PROCESS_INDEX"

# Seconds without a sign of life of JAX's own after which it ends all processes, with a stack.
# `watch` is faster; this is for a process that is stopped for long.
FROZEN = 300
# Seconds that all processes have to join, of which the first ones pass without a word. JAX's own
# limit, which is later, ends a process with a stack.
JOIN, _SILENT = 300.0, 30.0
_LIMITS: Any = {
    "initialization_timeout": int(2 * JOIN),
    "heartbeat_timeout_seconds": FROZEN,
    "shutdown_timeout_seconds": 3600,  # the first process may have a report to write
}
_KEY = "pit_jax/watch"
_SECONDS = 2.0  # that an error of a computation together may be ahead of the news of a death
_watch: watch.Watch | None = None


def initialize(environment: Mapping[str, str] = os.environ) -> None:
    """Joins the processes; it has to be called before anything else touches a device.

    From then on, a process that dies ends the others within 30 seconds, with exit status 1 and a
    line that names it; only on a pod, where the first one dies, JAX ends them with a stack. If not
    all join in time, this process ends with exit status 1 and a line.

    Raises:
      UserError: if the environment doesn't say how, or the coordinator can't be reached.
    """
    global _watch
    names = (COORDINATOR, COUNT, INDEX)
    given = {name: environment[name] for name in names if environment.get(name)}
    # JAX's own handler of SIGTERM would take the place of signals.Signals.
    jax.config.update("jax_enable_preemption_service", False)
    if given:
        _check(given)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        if given:
            address, count, index = given[COORDINATOR], int(given[COUNT]), int(given[INDEX])
            mine, near = watch.Watch(index), address
            if index:
                near, mine.first_ends = relay.start(address)
            with _in_time():
                jax.distributed.initialize(near, count, index, **_LIMITS)
        else:  # without a relay: if the first process dies, JAX ends the others
            with _in_time():
                jax.distributed.initialize(**_LIMITS)
            address, count, index = _joined()
            mine = watch.Watch(index)
        if count > 1:
            _watch = mine
            _begin(address)
    except (ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [repr(error)])[0][:300]
        hint = "" if given else f"; outside of a TPU pod, set {', '.join(names)}"
        raise UserError(f"--distributed: the processes can't be joined: {reason}{hint}") from error
    wait()


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    """Tells of a wait for other processes while this is open, and ends this one if it is long."""
    done = threading.Event()

    def wait_for_them() -> None:
        if done.wait(_SILENT):
            return
        last_words(f"note: waits for the other processes to join, for {JOIN:.0f} s at most")
        if not done.wait(JOIN - _SILENT):
            end_process(
                1,
                f"pit_jax: --distributed: not all processes have joined within {JOIN:.0f} s; what "
                "the others printed says why",
            )

    threading.Thread(target=wait_for_them, name="join", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _joined() -> tuple[str, int, int]:
    """What JAX has found out by itself: address, number of processes, index."""
    from jax._src.distributed import global_state

    return (
        str(global_state.coordinator_address),
        global_state.num_processes,
        global_state.process_id,
    )


def _begin(address: str) -> None:
    """Starts to watch the other processes."""
    from jax._src import distributed

    client, me = distributed.global_state.client, _watch
    assert client is not None and me is not None
    atexit.register(me.farewell, 0)
    if distributed.global_state.process_id == 0:
        client.key_value_set(_KEY, me.listen())
        return
    host, _ = relay.split(address)
    try:
        me.connect(host, client.blocking_key_value_get(_KEY, 60_000))
    except OSError as error:
        print(
            f"note: can't connect to the first process on {host}: {error}; if a process dies, this "
            f"one may notice it only after {FROZEN} s",
            file=sys.stderr,
        )


def leave(status: int) -> None:
    """Tells the other processes that this one ends with an exit status that isn't 0."""
    if _watch is not None:
        _watch.farewell(status)


def lost() -> str:
    """Returns what to say of a process that has died, or does in two seconds; "" if none has."""
    line = _watch.lost(_SECONDS) if _watch is not None else ""
    return watch.sentence(line) if line else ""


def _check(given: Mapping[str, str]) -> None:
    if missing := [name for name in (COORDINATOR, COUNT, INDEX) if name not in given]:
        raise UserError(f"--distributed: {', '.join(given)} set, expected {missing[0]} too")
    if not re.fullmatch(r"\S+:\d+", given[COORDINATOR]):
        raise UserError(f"{COORDINATOR}: got {given[COORDINATOR]!r}, expected HOST:PORT")
    for name in (COUNT, INDEX):
        if not given[name].isdecimal():
            raise UserError(f"{name}: got {given[name]!r}, expected a number")
    count, index = int(given[COUNT]), int(given[INDEX])
    if index >= count:
        raise UserError(f"{INDEX}: got {index}, expected less than {COUNT}={count}")


def is_first() -> bool:
    """Returns whether this process prints and writes for all."""
    return jax.process_index() == 0


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """Lets only the first process print while this is open."""
    with contextlib.ExitStack() as stack:
        if not is_first():
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
        yield


def wait() -> None:
    """Returns when all processes have called it."""
    any_process()


@functools.cache
def meet(mesh: Mesh) -> None:
    """Lets all devices of a mesh that compute together along some of its axes do so once.

    CPUs that do so for the first time have 30 s to find each other (gloo); after that, they wait
    for one that is late. All processes have to call this, at any time.
    """
    if jax.process_count() == 1 or mesh.devices.flat[0].platform != "cpu":
        return
    axes = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    groups = [g for n in range(1, len(axes) + 1) for g in itertools.combinations(axes, n)]

    def sums(x: jax.Array) -> list[jax.Array]:
        return [jax.lax.psum(x, group) for group in groups]

    everywhere = PartitionSpec(mesh.axis_names)
    program = jax.jit(
        jax.shard_map(sums, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False)
    )
    shape = (mesh.size,)
    ones = jax.make_array_from_callback(
        shape, NamedSharding(mesh, everywhere), lambda place: np.ones(shape, np.float32)[place]
    )
    wait()
    jax.block_until_ready(program(ones))


def any_process(flag: bool = False) -> bool:
    """Returns whether any process calls this with True, once all of them have called it."""
    if jax.process_count() == 1:
        return flag
    return bool(largest(int(flag)))


def largest(value: int) -> jax.Array:
    """Starts to compute the largest value of all processes, int32 [], and doesn't wait for it."""
    rows, program = _maximum()
    mine = np.full(jax.local_device_count(), value, np.int32)
    return program(jax.make_array_from_process_local_data(rows, mine, (jax.device_count(),)))


@functools.cache
def _maximum():
    mesh = Mesh(np.asarray(jax.devices()), ("all",))
    program = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return NamedSharding(mesh, PartitionSpec("all")), program
