"""Damages to every file of a checkpoint, and disks that are full: nothing wrong is ever taken."""

from __future__ import annotations

import errno
import json
import pathlib
import shutil
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from pit_jax.errors import Damaged, UserError
from pit_jax.runtime import digests
from pit_jax.runtime.checkpoints import Checkpoints
from pit_jax.runtime.train_state import OptimizerConfig, TrainState
from tests.runtime import test_loop

# Orbax gives up on other arrays it was reading, and says so when those are collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

OPTIMIZER = OptimizerConfig(learning_rate=0.1).build()


def state_of(step):
    """A state with one array that is large enough for a file of its own."""
    noise = jax.random.normal(jax.random.key(step), (40, 32))
    params = {"b": jnp.arange(3.0) * step, "a": {"kernel": noise}}
    state = TrainState.create(params, OPTIMIZER)
    return state.apply_gradients(jax.tree.map(jnp.ones_like, params), jnp.float32(1))[0]


STATES = {step: state_of(step) for step in (1, 2)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A stage's folder with the checkpoints 1 and 2."""
    folder = tmp_path_factory.mktemp("made") / "stage"
    saved = Checkpoints(folder / "checkpoints")
    for step, state in STATES.items():
        saved.save(step, state, {"step": step, "seconds": 0.25})
    saved.close()
    return folder


@pytest.fixture
def folder(made, tmp_path):
    return pathlib.Path(shutil.copytree(made, tmp_path / "stage")) / "checkpoints"


def same(one, other):
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.array_equal(a, b) for a, b in leaves)


def flipped(path, others, seed):
    data = bytearray(path.read_bytes())
    data[seed % len(data)] ^= 1 << seed // len(data) % 8
    path.write_bytes(data)


def halved(path, others, seed):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path, others, seed):
    path.write_bytes(b"")


def zeroed(path, others, seed):
    path.write_bytes(b"\0" * path.stat().st_size)


def deleted(path, others, seed):
    path.unlink()


def swapped(path, others, seed):
    other = others[(others.index(path) + 1 + seed % (len(others) - 1)) % len(others)]
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)


DAMAGES = (flipped, halved, emptied, zeroed, deleted, swapped)


def outcomes(folder, seeds):
    """What becomes of each damage: the same values, or a line that says so."""
    files = sorted(path for path in (folder / "2").rglob("*") if path.is_file())
    whole = {path: path.read_bytes() for path in files}
    reader = Checkpoints(folder, read_only=True)
    found = {"harmless": 0, "damaged": 0}
    for number, path in enumerate(files):
        for damage in DAMAGES if seeds > 1 else (flipped, DAMAGES[1 + number % 5], swapped):
            for seed in range(seeds if damage in (flipped, swapped) else 1):
                what = f"{damage.__name__} {path.relative_to(folder)} {seed}"
                damage(path, files, zlib.crc32(what.split("/", 1)[0].encode()) + 977 * seed)
                try:
                    state, extra = reader.restore(STATES[2])
                except Damaged as error:
                    assert f"{folder}/2: the checkpoint is damaged; bring it" in str(error), what
                    assert "\n" not in str(error), what
                    found["damaged"] += 1
                else:
                    assert same(state, STATES[2]), what
                    assert extra == {"step": 2, "seconds": 0.25}, what
                    found["harmless"] += 1
                for each, data in whole.items():
                    each.write_bytes(data)
    assert same(reader.restore(STATES[2])[0], STATES[2])
    reader.close()
    return found


def test_no_damage_gives_other_values_or_a_traceback(folder):
    found = outcomes(folder, seeds=1)
    assert sum(found.values()) >= 60 and found["damaged"] >= 30


@pytest.mark.slow
def test_no_damage_of_many_gives_other_values_or_a_traceback(folder):
    found = outcomes(folder, seeds=12)
    assert sum(found.values()) >= 500 and found["damaged"] >= 250


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(folder):
    for path in (folder / "2" / "model").rglob("d/*"):
        halved(path, [], 0)
    again = Checkpoints(folder)
    state, extra, (line,) = again.restore_newest(STATES[1])
    assert same(state, STATES[1]) and extra["step"] == 1
    assert line.startswith("the checkpoint of step 2 is damaged, now 2.damaged: ")
    assert again.all_steps() == [1] and (folder / "2.damaged" / "model").is_dir()
    again.save(2, STATES[2], {"step": 2})
    again.wait()
    assert same(again.restore(STATES[1])[0], STATES[2])
    again.close()
    emptied(folder / "2" / "extra" / "metadata", [], 0)
    again = Checkpoints(folder)
    assert "now 2.damaged2: extra: expected a JSON object" in again.restore_newest(STATES[1])[2][0]
    again.close()


def test_if_all_are_damaged_none_is_set_aside(folder):
    for step in (1, 2):
        (folder / f"{step}" / "model" / "manifest.ocdbt").unlink()
    again = Checkpoints(folder)
    with pytest.raises(
        Damaged, match="2: the checkpoint is damaged; .* or delete .*stage to train"
    ):
        again.restore_newest(STATES[1])
    assert again.all_steps() == [1, 2] and not list(folder.glob("*.damaged*"))
    again.close()


def test_of_a_complete_stage_the_one_before_the_damaged_is_offered(folder):
    (folder.parent / "result.json").write_text("{}")
    (folder / "2" / "model" / "manifest.ocdbt").unlink()
    reader = Checkpoints(folder, read_only=True)
    told = f"delete {folder.parent}/result.json to train on from the one of step 1"
    with pytest.raises(Damaged, match=told):
        reader.restore_model(STATES[1].params, 2)
    reader.close()


def test_what_does_not_fit_is_not_damaged(folder):
    again = Checkpoints(folder)
    for change, told in (
        ({"b": jnp.zeros(5)}, r"model\['b'\]: got float32\[3\], expected float32\[5\]"),
        ({"b": jnp.zeros(3, jnp.int32)}, r"model\['b'\]: got float32\[3\], expected int32\[3\]"),
        ({"c": jnp.zeros(3)}, r"model\['c'\]: got nothing, expected float32\[3\]"),
    ):
        params = STATES[1].params | change
        for read in (
            again.restore_model,
            lambda x: again.restore_newest(STATES[1].replace(params=x)),
        ):
            with pytest.raises(UserError, match=f"2: the checkpoint doesn't fit this.*: {told}"):
                read(params)
    assert again.all_steps() == [1, 2]
    again.close()


def test_trouble_that_is_no_damage_sets_nothing_aside(folder, monkeypatch):
    again = Checkpoints(folder)
    for error, kind in (
        (PermissionError(errno.EACCES, "Permission denied"), UserError),
        (ValueError("UNAVAILABLE: the bucket is away"), UserError),
        (ValueError("RESOURCE_EXHAUSTED: out of memory"), ValueError),
    ):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(again, "_item", fail)
        with pytest.raises(kind) as told:
            again.restore_newest(STATES[1])
        assert not isinstance(told.value, Damaged)
        if kind is UserError:
            assert f"{folder}/2: the checkpoint can't be read: " in str(told.value)
    assert again.all_steps() == [1, 2]
    again.close()


def test_another_file_in_the_place_of_the_values_is_no_earlier_version(folder):
    """Each is a JSON object without digests, as earlier versions wrote."""
    values, reader = folder / "2" / "extra" / "metadata", Checkpoints(folder, read_only=True)
    for other in ("_CHECKPOINT_METADATA", "model/_METADATA", "model/_sharding"):
        values.write_bytes((folder / "2" / other).read_bytes())
        with pytest.raises(Damaged, match="extra: got step None, expected 2"):
            reader.restore(STATES[2])
    values.write_bytes((folder / "1" / "extra" / "metadata").read_bytes())
    with pytest.raises(Damaged, match="extra: its content isn't what its sha256 says"):
        reader.restore(STATES[2])
    reader.close()


def test_a_checkpoint_without_digests_is_read_as_before(folder):
    for step in (1, 2):
        path = folder / f"{step}" / "extra" / "metadata"
        path.write_text(json.dumps(json.loads(path.read_text())["extra"]))
    again = Checkpoints(folder)
    state, extra, lines = again.restore_newest(STATES[1])
    assert same(state, STATES[2]) and extra == {"step": 2, "seconds": 0.25} and not lines
    with pytest.raises(UserError, match="2: the checkpoint doesn't fit this network: "):
        again.restore_model(STATES[1].params | {"b": jnp.zeros(5)})
    (folder / "2" / "model" / "manifest.ocdbt").write_bytes(b"")
    assert again.restore_newest(STATES[1])[1]["step"] == 1
    again.close()


# --- full disks -----------------------------------------------------------------------------------


class Disk:
    """Stands in for a disk: it is full while `full` is a part of the path that is written."""

    def __init__(self, monkeypatch):
        self.full = ""
        kind = type(epath.Path())
        write = kind.write_text

        def write_text(path, *args, **options):
            if self.full and self.full in str(path):
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(path, *args, **options)

        monkeypatch.setattr(kind, "write_text", write_text)


def test_a_full_disk_costs_a_checkpoint_and_nothing_else(tmp_path, monkeypatch, capfd):
    expected = test_loop.Loop(tmp_path / "a").run(test_loop.batches(), 8)
    disk, loop = Disk(monkeypatch), test_loop.Loop(tmp_path / "b")

    def batches():
        for number, batch in enumerate(test_loop.batches()):
            loop.checkpoints.wait()
            disk.full = "orbax-checkpoint-tmp" if 2 < number < 6 else ""
            yield batch

    state = loop.run(batches(), 8)
    assert same(state, expected)
    told = capfd.readouterr().err.splitlines()
    assert told == [
        f"{tmp_path}/b: the checkpoint of step {step} couldn't be written, the one of step 2 is "
        "kept: No space left on device"
        for step in (4, 6)
    ]
    # Those that are kept are as if nothing had been, and nothing else is left.
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["2", "8"]
    reader = Checkpoints(tmp_path / "b", read_only=True)
    assert same(reader.restore(state)[0], expected)
    reader.close()


def test_a_disk_that_stays_full_ends_the_stage_with_a_line(tmp_path, monkeypatch):
    saved = Checkpoints(tmp_path)
    saved.save(1, STATES[1], {"step": 1})
    saved.check_saved()
    disk = Disk(monkeypatch)
    disk.full = "orbax-checkpoint-tmp"
    saved.save(2, STATES[2], {"step": 2})
    told = "step 2 couldn't be written, the one of step 1 is kept: No space left on device"
    with pytest.raises(UserError, match=told):
        saved.check_saved()
    assert same(saved.restore(STATES[2])[0], STATES[1])
    disk.full = ""
    saved.save(2, STATES[2], {"step": 2})
    saved.check_saved()
    assert same(saved.restore(STATES[1])[0], STATES[2])
    saved.close()


def test_a_checkpoint_is_not_written_before_what_has_to_be_there(tmp_path):
    def fail():
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    saved = Checkpoints(tmp_path)
    saved.save(1, STATES[1], {"step": 1}, before=fail)
    with pytest.raises(UserError, match="there is none before it: Disk quota exceeded"):
        saved.check_saved()
    assert saved.all_steps() == []
    saved.close()


def test_another_error_of_a_save_is_raised(tmp_path):
    saved = Checkpoints(tmp_path)
    with pytest.raises(TypeError):
        saved.save(1, STATES[1], {"step": {1, 2}})
    saved.close()


def test_what_a_crash_left_of_a_checkpoint_goes(tmp_path):
    torn = tmp_path / "7.orbax-checkpoint-tmp"
    (torn / "model").mkdir(parents=True)
    saved = Checkpoints(tmp_path)
    saved.save(8, STATES[1], {})
    saved.close()
    assert [path.name for path in tmp_path.iterdir()] == ["8"]
    assert digests.kind_of(STATES[1].params["b"]) == "float32[3]"
