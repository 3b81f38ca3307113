"""Checkpoints: everything comes back, on any mesh; what doesn't fit is refused in one line."""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.errors import UserError
from pit_jax.method import ppo
from pit_jax.method.curriculum import Round
from pit_jax.method.environment import Networks
from pit_jax.method.ppo_step import RLState
from pit_jax.run import stages
from pit_jax.runtime import orbax_errors
from pit_jax.runtime.checkpoints import Checkpoints
from pit_jax.runtime.partitioning import MeshConfig, Partitioner
from pit_jax.runtime.train_state import OptimizerConfig, TrainState
from tests import tiny_runs

OPTIMIZER = OptimizerConfig(learning_rate=0.1).build()


def train_state(scale=1.0):
    """A state in which no two leaves are alike."""
    params = {"b": jnp.arange(3.0) * scale, "a": {"kernel": jnp.ones((2, 2)) * scale}}
    state = TrainState.create(params, OPTIMIZER)
    for step in range(1, 4):
        grads = jax.tree.map(lambda x, step=step: x / step, params)
        state, _ = state.apply_gradients(grads, jnp.float32(1))
    return state.replace(skipped=jnp.int32(7), skipped_in_row=jnp.int32(2))


def rl_state(scale=1.0):
    """A PPO state with its controller and moments."""
    params = {"critic": {"w": jnp.ones(2) * scale}, "actor": {"w": jnp.full(3, 5.0 * scale)}}
    moments = ppo.Moments.zero().add(jnp.arange(4.0) * scale, jnp.ones(4))
    return RLState(TrainState.create(params, OPTIMIZER), jnp.float32(0.25), moments)


@pytest.mark.parametrize("make", [train_state, rl_state])
def test_a_state_comes_back_bit_for_bit(tmp_path, make):
    saved = Checkpoints(tmp_path)
    saved.save(3, make(), {"step": 3, "best": {"accuracy": 0.5}})
    saved.close()
    again = Checkpoints(tmp_path)
    assert again.latest_step() == 3
    state, extra = again.restore(jax.tree.map(jnp.zeros_like, make()))
    assert extra == {"step": 3, "best": {"accuracy": 0.5}}
    assert jax.tree.structure(state) == jax.tree.structure(make())
    for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(make())):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)
    model, _ = make().split()
    restored = again.restore_model(jax.tree.map(jnp.zeros_like, model))
    for one, two in zip(jax.tree.leaves(restored), jax.tree.leaves(model)):
        np.testing.assert_array_equal(one, two)
    again.close()


def test_another_stages_checkpoint_in_its_place_is_set_aside(tmp_path):
    """Though it fits the network, and is as it was written."""
    for stage, scale in (("sft_policy", 1.0), ("sft_pit", 2.0)):
        saved = Checkpoints(tmp_path / stage / "checkpoints")
        for step in (2, 4):
            saved.save(step, train_state(scale), {"step": step})
        saved.close()
    ours = tmp_path / "sft_policy" / "checkpoints"
    shutil.rmtree(ours / "4")
    shutil.copytree(tmp_path / "sft_pit" / "checkpoints" / "4", ours / "4")
    zeros = jax.tree.map(jnp.zeros_like, train_state())
    reading = Checkpoints(ours, read_only=True, stage="sft_policy")
    with pytest.raises(
        UserError, match=r"checkpoints/4: the checkpoint is damaged.*of stage sft_pit"
    ):
        reading.restore_model(zeros.split()[0])
    again = Checkpoints(ours, stage="sft_policy")
    state, extra, lines = again.restore_newest(zeros)
    assert extra == {"step": 2} and (ours / "4.damaged").is_dir()
    assert lines == [
        "the checkpoint of step 4 is damaged, now 4.damaged: extra: it is that of stage sft_pit"
    ]
    np.testing.assert_array_equal(state.params["b"], train_state().params["b"])
    again.close()
    # Who reads a folder that was renamed, with all that is in it, says the stage's name.
    (tmp_path / "sft_pit").rename(tmp_path / "copy")
    renamed = Checkpoints(tmp_path / "copy" / "checkpoints", read_only=True, stage="sft_pit")
    assert renamed.restore(zeros)[1] == {"step": 4}


def test_splitting_off_the_model_and_joining_it_again():
    for state in (train_state(), rl_state()):
        model, rest = state.split()
        joined = rest.join(model)
        assert jax.tree.structure(joined) == jax.tree.structure(state)
    actor, rest = rl_state().split()
    np.testing.assert_array_equal(actor["w"], [5, 5, 5])
    assert set(rest.train.params) == {"critic"}


def test_a_step_is_saved_once(tmp_path):
    saved = Checkpoints(tmp_path)
    saved.save(1, train_state(), {"step": 1})
    saved.wait()
    saved.save(1, train_state(2.0), {"step": 2})
    state, extra = saved.restore(train_state())
    assert extra == {"step": 1}
    np.testing.assert_array_equal(state.params["b"], train_state().params["b"])
    saved.close()


def test_the_model_of_a_certain_step_is_read(tmp_path):
    saved = Checkpoints(tmp_path, keep_every=1)
    for step in (1, 2):
        saved.save(step, rl_state(step), {})
    saved.wait()
    model, _ = rl_state().split()
    for step, scale in ((1, 1), (2, 2), (None, 2)):
        np.testing.assert_array_equal(saved.restore_model(model, step)["w"], [5 * scale] * 3)
    saved.close()


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir())


def test_the_latest_the_best_and_multiples_are_kept(tmp_path):
    """By what is on disk: it doesn't matter how often the stage was started again."""
    for restarts in (False, True):
        folder = tmp_path / f"restarts {restarts}"
        saved = Checkpoints(folder, keep_every=4)
        for step, best in enumerate([1, 1, 3, 3, 3, 3, 3, 8, 3], 1):
            if restarts:
                saved.close()
                saved = Checkpoints(folder, keep_every=4)
            saved.save(step, train_state(), {"best": {"accuracy": 0.5, "step": best}})
            saved.wait()
        saved.close()
        # 3: the best as of 9; 4 and 8: multiples; 9 and 8: the newest.
        assert steps_in(folder) == [3, 4, 8, 9]


def test_an_unfinished_checkpoint_does_not_count(tmp_path):
    saved = Checkpoints(tmp_path)
    saved.save(1, train_state(), {"step": 1})
    saved.close()
    whole = tmp_path / "1"
    torn = tmp_path / "2.orbax-checkpoint-tmp"
    (torn / "model").mkdir(parents=True)
    (torn / "model" / "part").write_bytes(b"torn")
    again = Checkpoints(tmp_path)
    assert again.latest_step() == 1 and whole.exists()
    again.save(2, train_state(2.0), {"step": 2})
    again.wait()
    assert again.restore(train_state())[1] == {"step": 2}
    again.close()


def test_nothing_is_made_when_reading_only(tmp_path):
    saved = Checkpoints(tmp_path)
    saved.save(1, train_state(), {"step": 1})
    saved.close()
    before = sorted(tmp_path.rglob("*"))
    reader = Checkpoints(tmp_path, read_only=True)
    reader.restore(train_state())
    reader.close()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_step_is_named_with_those_there_are(tmp_path):
    saved = Checkpoints(tmp_path, keep_every=1)
    message = f"{tmp_path}: no checkpoint of step None, there is: none"
    with pytest.raises(UserError, match=re.escape(message)):
        saved.restore(train_state())
    for step in (2, 4):
        saved.save(step, train_state(), {})
    saved.wait()
    with pytest.raises(UserError, match="no checkpoint of step 3, there is: 2, 4"):
        saved.restore_model(train_state().params, 3)
    saved.close()


@pytest.mark.parametrize(
    "other",
    [
        {"b": jnp.zeros(5), "a": {"kernel": jnp.zeros((2, 2))}},
        {"b": jnp.zeros(3), "c": {"kernel": jnp.zeros((2, 2))}},
    ],
    ids=["shape", "name"],
)
# Orbax gives up on other arrays it was reading, and says so when those are collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_another_network_is_refused(tmp_path, other):
    saved = Checkpoints(tmp_path)
    saved.save(1, train_state(), {})
    saved.wait()
    with pytest.raises(UserError, match="1: the checkpoint doesn't fit this network: .+") as error:
        saved.restore_model(other)
    assert "\n" not in str(error.value)
    saved.close()


def emptied(path):
    path.write_bytes(b"")


def halved(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("model/ocdbt.process_0/d/*", halved),  # the arrays
        ("model/d/*", halved),
        ("model/manifest.ocdbt", emptied),
        ("model/_METADATA", halved),
        ("rest/manifest.ocdbt", emptied),
        ("extra/metadata", halved),
        ("extra/metadata", lambda path: path.unlink()),
    ],
)
def test_a_damaged_checkpoint_is_told_from_one_of_another_network(tmp_path, pattern, damage):
    folder = tmp_path / "stage" / "checkpoints"
    saved = Checkpoints(folder)
    large = {"b": jnp.arange(3.0), "a": {"kernel": jax.random.normal(jax.random.key(0), (64, 64))}}
    saved.save(1, TrainState.create(large, OPTIMIZER), {"step": 1})
    saved.close()
    paths = list((folder / "1").glob(pattern))
    assert paths
    for path in paths:
        damage(path)
    again = Checkpoints(folder, read_only=True)
    told = f"^{folder}/1: the checkpoint is damaged; bring it back from a copy, or delete "
    with pytest.raises(UserError, match=f"{told}{folder.parent} to train .*") as error:
        again.restore(TrainState.create(large, OPTIMIZER))
    assert "\n" not in str(error.value)
    again.close()


@pytest.mark.mesh
def test_a_checkpoint_comes_back_on_another_mesh(tmp_path):
    """PPO's whole state from 4 x 2 devices to one and to 1 x 2, value for value."""
    stage = tiny_runs.rl("rl_policy", (Round("none", 2),))
    mesh, *other_meshes = (
        Partitioner(MeshConfig(data, model), jax.devices()[: data * model])
        for data, model in ((4, 2), (1, 1), (1, 2))
    )
    first = stages.create_state(stage, Networks.same(tiny_runs.NETWORK), mesh, jax.random.key(0))
    saved = Checkpoints(tmp_path)
    saved.save(1, first, {})
    saved.wait()
    embedding = first.train.params["actor"]["decoder"]["embed"]["embedding"]
    assert len(embedding.sharding.device_set) == 8 and not embedding.is_fully_replicated
    for mesh in other_meshes:
        other = stages.abstract_state(stage, Networks.same(tiny_runs.NETWORK), mesh)
        restored, _ = saved.restore(other)
        for new, old, place in zip(*map(jax.tree.leaves, (restored, first, other))):
            np.testing.assert_array_equal(new, old)
            assert new.sharding == place.sharding
    saved.close()


def test_what_orbax_raises_in_a_thread_is_not_printed_whoever_logs_it():
    """The logger may not know its caller: `pathname` is then absl's own."""

    def record(file):
        try:
            exec(compile("raise RuntimeError('no threads any more')", file, "exec"))
        except RuntimeError:
            info = sys.exc_info()
        return logging.LogRecord("absl", logging.ERROR, "absl/__init__.py", 1, "x", (), info)

    orbax_errors.quieten()
    absl = logging.getLogger("absl")
    assert not absl.filter(record(os.path.join("lib", "orbax", "future.py")))
    assert absl.filter(record(os.path.join("lib", "other", "future.py")))
