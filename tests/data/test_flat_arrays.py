"""Arrays in memory and in files: equal, shared, made once, and made anew where they are damaged."""

import multiprocessing
import os
import pathlib

import numpy as np
import pytest

from pit_jax.data import flat_arrays
from pit_jax.data.flat_arrays import BIG, Cache
from pit_jax.errors import UserError

PIECES = [("ids", [1, 2]), ("weights", [0.5]), ("ids", []), ("ids", [3]), ("none", [])]
TYPES = {"ids": np.int32, "weights": np.float32, "none": np.int64}


class Filling:
    """Appends PIECES, and counts how often it does."""

    def __init__(self):
        self.calls = 0

    def __call__(self, append):
        self.calls += 1
        for name, values in PIECES:
            append(name, np.array(values, TYPES[name]))


def check(arrays):
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "ids": [1, 2, 3],
        "weights": [0.5],
        "none": [],
    }
    assert {name: array.dtype for name, array in arrays.items()} == TYPES


def made(folder, fill, size=BIG, key="key"):
    return Cache(folder).arrays(fill, size, "rm_gap", lambda: key)


def test_small_arrays_are_in_memory_and_leave_nothing(tmp_path):
    check(made(tmp_path / "cache", Filling(), BIG - 1))
    assert list(tmp_path.iterdir()) == []


def test_big_ones_are_made_once_for_each_key(tmp_path):
    fill = Filling()
    for _ in range(2):
        check(made(tmp_path / "run" / "cache", fill))
    assert fill.calls == 1
    made(tmp_path / "run" / "cache", fill, key="another")
    assert fill.calls == 2
    names = sorted(path.name for path in (tmp_path / "run" / "cache").iterdir())
    assert len(names) == 4 and all(name.startswith("rm_gap-") for name in names)
    assert sum(name.endswith(".lock") for name in names) == 2


@pytest.mark.parametrize("folder", ["", "gs://bucket/run/data_cache", __file__])
def test_without_a_folder_the_files_are_gone_at_once(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(flat_arrays.tempfile, "tempdir", str(tmp_path))
    arrays = made(folder, Filling())
    check(arrays)
    assert isinstance(arrays["ids"], np.memmap)
    assert list(tmp_path.iterdir()) == []


def remove(path):
    path.unlink()


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\0")


def change(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [remove, cut, lengthen, change, empty])
@pytest.mark.parametrize("name", ["ids.bin", "weights.bin", "manifest"])
def test_what_is_damaged_is_made_anew(tmp_path, name, damage):
    fill = Filling()
    made(tmp_path, fill)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    damage(folder / name)
    for _ in range(2):
        check(made(tmp_path, fill))
    assert fill.calls == 2


def test_what_was_left_half_is_replaced(tmp_path):
    def breaks_off(append):
        append("ids", np.array([1], np.int32))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        made(tmp_path, breaks_off)
    (lock,) = tmp_path.iterdir()
    half = lock.with_name(f"{lock.stem}.abc.tmp")  # as a process leaves it that is killed
    half.mkdir()
    (half / "ids.bin").write_bytes(b"\1")
    check(made(tmp_path, Filling()))
    assert not half.exists()


def _slow(folder, queue):
    fill = Filling()
    check(made(folder, fill))
    queue.put(fill.calls)


def test_processes_make_them_once(tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_slow, args=(tmp_path, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    calls = [queue.get(timeout=20) for _ in processes]
    for process in processes:
        process.join(20)
    assert sorted(calls) == [0, 0, 1]


def test_a_full_disk_is_told_in_a_line(tmp_path, monkeypatch):
    def full(folder, name, fill):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(flat_arrays, "_write", full)
    with pytest.raises(UserError, match=r"rm_gap-\w+: can't keep the data: No space left"):
        made(tmp_path, Filling())
    assert [path.suffix for path in pathlib.Path(tmp_path).iterdir()] == [".lock"]


def test_two_folders_in_each_other_s_places_are_made_anew(tmp_path):
    """Rows of one task and split look like those of another, but for the numbers."""
    for key, number in (("a", 1), ("b", 2)):
        made(tmp_path, lambda append, n=number: append("ids", np.full(3, n)), key=key)
    first, second = sorted(path for path in tmp_path.iterdir() if path.is_dir())
    first.rename(tmp_path / "x")
    second.rename(first)
    (tmp_path / "x").rename(second)
    for key, number in (("a", 1), ("b", 2)):
        fill = lambda append, n=number: append("ids", np.full(3, n))  # noqa: E731
        assert made(tmp_path, fill, key=key)["ids"].tolist() == [number] * 3


@pytest.mark.parametrize("damage", ["file", "link", "link to a folder", "[]", "null", '{"x": 1}'])
def test_whatever_is_in_the_place_of_arrays_they_are_made_anew(tmp_path, damage):
    check(made(tmp_path / "cache", Filling()))
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    own = tmp_path / "own"
    if damage.startswith(("file", "link")):
        folder.rename(own)
        if damage == "file":
            folder.write_text("")
        else:
            folder.symlink_to(own if "folder" in damage else tmp_path / "nowhere")
            (own / "ids.bin").write_text("")
    else:
        digest = flat_arrays._digest(folder.name, damage.encode())
        (folder / "manifest").write_bytes(digest + b"\n" + damage.encode())
    fill = Filling()
    check(made(tmp_path / "cache", fill))
    assert fill.calls == 1 and folder.is_dir() and not folder.is_symlink()
    assert own.exists() == damage.startswith(("file", "link"))


def test_what_a_killed_process_has_left_of_other_arrays_goes(tmp_path):
    """Not what one that is alive is writing."""
    for name in ("rows-1.abc.tmp", "rows-2.def.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ids.bin").write_text("1")
    with flat_arrays._locked(tmp_path / "rows-2"):
        check(made(tmp_path, Filling()))
        assert not (tmp_path / "rows-1.abc.tmp").exists()
        assert (tmp_path / "rows-2.def.tmp" / "ids.bin").exists()
