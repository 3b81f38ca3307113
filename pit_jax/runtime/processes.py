"""Lets several processes, usually one on each host, run one program together.

Every process makes the same calls in the same order. The first one alone prints and writes files;
where the others read what it wrote, `wait` makes them wait.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pit_jax.errors import UserError

COORDINATOR = "PIT_JAX_COORDINATOR"
COUNT = "PIT_JAX_PROCESS_COUNT"
INDEX = "PIT_JAX_PROCESS_INDEX"


def initialize(environment: Mapping[str, str] = os.environ) -> None:
    """Joins the processes; it has to be called before anything else touches a device.

    Raises:
      UserError: if the environment doesn't say how, or the coordinator can't be reached.
    """
    names = (COORDINATOR, COUNT, INDEX)
    given = {name: environment[name] for name in names if environment.get(name)}
    # JAX's own handler of SIGTERM would take the place of signals.Signals.
    jax.config.update("jax_enable_preemption_service", False)
    if given:
        _check(given)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        if given:
            jax.distributed.initialize(given[COORDINATOR], int(given[COUNT]), int(given[INDEX]))
        else:
            jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or [repr(error)])[0][:300]
        hint = "" if given else f"; outside of a TPU pod, set {', '.join(names)}"
        raise UserError(f"--distributed: the processes can't be joined: {reason}{hint}") from error


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


def wait() -> None:
    """Returns when all processes have called it."""
    any_process()


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
