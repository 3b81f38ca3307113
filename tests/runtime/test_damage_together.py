"""Two processes with one checkpoint agree on what is damaged, and none waits for the other."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from tests.child_environment import child_environment

pytestmark = [pytest.mark.slow, pytest.mark.no_cover]

PROGRAM = """
import json, pathlib, sys
from pit_jax.runtime import processes
processes.initialize()
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from pit_jax.errors import UserError
from pit_jax.runtime.checkpoints import Checkpoints
from pit_jax.runtime.partitioning import MeshConfig, Partitioner
from pit_jax.runtime.train_state import OptimizerConfig, TrainState

me, folder, told = jax.process_index(), pathlib.Path(sys.argv[1]), []
mesh = Partitioner(MeshConfig(2, 1), jax.devices()).mesh

def state(step):
    whole = np.random.default_rng(step).normal(size=(64, 32)).astype(np.float32)
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    x = jax.make_array_from_callback(whole.shape, rows, lambda place: whole[place])
    optimizer = OptimizerConfig(learning_rate=0.1).build()
    return jax.jit(lambda x: TrainState.create({"w": x}, optimizer))(x)

def is_of(found, step):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(state(step)), strict=True)
    return all(np.array_equal(a.addressable_data(0), b.addressable_data(0)) for a, b in pairs)

def refused(action):
    try:
        action()
    except UserError as error:
        return str(error)

saved = Checkpoints(folder)
for step in (1, 2, 3):
    saved.save(step, state(step), {"step": step})
    saved.wait()
told.append([saved.all_steps(), is_of(saved.restore(state(1))[0], 3)])
processes.wait()
if me == 0:
    for path in (folder / "3" / "model").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-9])
processes.wait()
found, extra, lines = saved.restore_newest(state(1))
told.append([extra, len(lines), is_of(found, 2), saved.all_steps()])
read = saved._item
if me == 1:  # damage that one process alone meets
    saved._item = lambda *_: json.loads("{")
told.append("the checkpoint is damaged" in refused(lambda: saved.restore(state(1), 2)))
saved._item = read

def full():
    if me == 0:
        raise OSError(28, "No space left on device")

saved.save(4, state(4), {"step": 4}, before=full)
told.append("step 4 couldn't be written" in refused(saved.check_saved))
saved.save(5, state(5), {"step": 5})
saved.check_saved()
told.append([saved.all_steps(), is_of(saved.restore(state(1))[0], 5)])
saved.close()
print(json.dumps(told))
"""


def test_processes_agree_on_what_is_damaged_and_what_is_saved(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    named = {"PIT_JAX_COORDINATOR": f"localhost:{port}", "PIT_JAX_PROCESS_COUNT": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "checkpoints")],
            env=child_environment(1, **named, PIT_JAX_PROCESS_INDEX=str(index)),
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    expected = [[[2, 3], True], [{"step": 2}, 1, True, [2]], True, True, [[2, 5], True]]
    for output in outputs:
        assert json.loads(output.splitlines()[-1]) == expected
