"""Who may write to a run directory: one at a time, and the dead keep nothing."""

from __future__ import annotations

import concurrent.futures
import errno
import functools
import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest
import tensorstore

from pit_jax import cli, commands, files
from pit_jax.errors import UserError
from pit_jax.runtime import owner
from pit_jax.runtime.owner import InBucket, OnDisk, Owner
from tests import fake_bucket, tiny_runs
from tests.child_environment import child_environment

# Keeps a directory until it is killed.
HOLDER = """
import sys, time
from pit_jax.runtime.owner import Owner
with Owner(sys.argv[1], "run"):
    print("mine", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(owner, "_POLL", 0.02)
    monkeypatch.setattr(owner, "BEAT", 0.05)
    monkeypatch.setattr(owner, "LEASE", 0.5)


@pytest.fixture(params=["disk", "bucket"])
def place(request, tmp_path, monkeypatch):
    """The place of a lock, and the directory that it is of."""
    if request.param == "disk":
        return OnDisk(tmp_path / "owner.lock"), str(tmp_path)
    fake_bucket.install(monkeypatch, tmp_path)
    return InBucket("gs://bucket/run/owner.lock"), "gs://bucket/run"


def record(**changes):
    """That of another machine's process."""
    who = {"command": "train", "host": "far", "machine": "far 1", "pid": 7, "started": "1"}
    return json.dumps(who | {"since": "2026-11-27 06:00:00 UTC", "token": "x"} | changes).encode()


def test_one_has_it_and_is_named(place):
    where, directory = place
    with Owner(directory, "run"):
        with pytest.raises(UserError) as refused, Owner(directory, "train"):
            pass
        expected = (
            rf"{directory}: `run` of process {os.getpid()} on \S+, started 20\d\d-\S+ \S+ UTC, "
            "writes to it; end that or wait for it, or use another MODEL_DIR"
        )
        assert re.fullmatch(expected, str(refused.value))
    assert where.read() is None
    with Owner(directory, "train"):
        assert b'"command": "train"' in where.read().record
    assert where.read() is None


def test_only_what_was_read_is_replaced(place):
    where, _ = place
    assert where.swap(None, b"one") and not where.swap(None, b"two")
    held = where.read()
    assert held.record == b"one"
    where.touch(held)
    alive = where.read()
    assert alive.record == b"one" and alive.sign != held.sign
    assert where.swap(alive, b"two") and not where.swap(alive, b"three")
    assert not where.swap(alive, None) and where.read().record == b"two"
    assert where.swap(where.read(), None) and where.read() is None
    assert not where.swap(alive, b"three")


def test_of_many_that_take_over_one_does(tmp_path):
    where = OnDisk(tmp_path / "owner.lock")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for turn in range(3):
            held = where.read()
            records = [b"%d %d" % (turn, n) for n in range(8)]
            tried = list(pool.map(functools.partial(where.swap, held), records))
            assert sum(tried) == 1
            assert where.read().record == records[tried.index(True)]
    assert [each.name for each in tmp_path.iterdir()] == ["owner.lock"]


def test_the_dead_of_this_machine_keep_nothing(tmp_path, capsys):
    """Also where another process has the number now, or nobody has asked yet how it ended."""
    where = OnDisk(tmp_path / "owner.lock")
    me = owner._this_process()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 60
    while owner._started(ended.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    for who in ({"pid": ended.pid, "started": "1"}, {"started": "1"}, {"pid": 2**30}):
        assert where.swap(None, record(**(me | who)))
        with Owner(tmp_path, "run"):
            assert f'"pid": {os.getpid()},'.encode() in where.read().record
        assert "taken over from `train` of process" in capsys.readouterr().out
    ended.wait()


def test_another_machines_lock_is_watched(place, quick, capsys):
    where, directory = place
    for left in (record(), b'{"half'):
        assert where.swap(None, left)
        with Owner(directory, "run"):
            pass
        said = capsys.readouterr()
        assert "has it; waiting up to" in said.err and "taken over from" in said.out
    assert where.swap(None, record())
    stop = threading.Event()

    def live():
        while not stop.wait(0.1):
            where.touch(where.read())

    thread = threading.Thread(target=live)
    thread.start()
    try:
        with (
            pytest.raises(UserError, match="`train` of process 7 on far, .* writes to it"),
            Owner(directory, "run"),
        ):
            pass
    finally:
        stop.set()
        thread.join()


def test_whose_lock_is_taken_ends_at_once(tmp_path, quick, monkeypatch, capsys):
    ended = threading.Event()
    monkeypatch.setattr(owner.os, "_exit", lambda status: ended.set())
    where = OnDisk(tmp_path / "owner.lock")
    with Owner(tmp_path, "run"):
        first = where.read()
        time.sleep(0.3)
        assert where.read().sign > first.sign and not ended.is_set()
        assert where.swap(where.read(), record())
        assert ended.wait(30)
    assert "process 7 on far, started 2026-11-27 06:00:00 UTC, has taken it over; ended" in (
        capsys.readouterr().err
    )
    assert where.read().record == record()  # not ours to delete


def test_who_is_patient_waits(tmp_path, quick):
    with Owner(tmp_path, "run") as first:
        threading.Timer(0.2, first.release).start()
        with Owner(tmp_path, "evaluate", patience=60):
            pass


def test_a_refused_command_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match="no"), Owner(tmp_path / "a" / "b", "run"):
        raise UserError("no")
    assert list(tmp_path.iterdir()) == []


def test_without_hard_links_it_is_made_alone(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with Owner(tmp_path, "run"), pytest.raises(UserError, match="writes to it"):
        Owner(tmp_path, "run").__enter__()


def test_what_killed_processes_left_is_deleted_and_nothing_else(tmp_path):
    """Files of ours alone, whose names nobody else gives, and in a run directory alone."""
    name = "x.0123456789abcdef.tmp"
    assert len(files.scratch_of("x").name) == len(name)
    kept = [tmp_path / ("now" + name[1:]), tmp_path / "old.txt", tmp_path / "thesis.tmp"]
    kept += [tmp_path / "a" / "notes.tmp", tmp_path / "a" / "checkpoints" / name]
    left = [tmp_path / name, tmp_path / "a" / name, tmp_path / "a" / "references" / "r" / name]
    for path in (*kept, *left):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        if path is not kept[0]:
            os.utime(path, (0, 0))
    (tmp_path / "folder.tmp").mkdir()
    with Owner(tmp_path / "out.jsonl", "improve", tmp_path / "out.jsonl.lock"):
        assert all(path.exists() for path in (*kept, *left))
    with Owner(tmp_path, "run"):
        assert all(path.exists() for path in kept) and not any(path.exists() for path in left)
    assert (tmp_path / "folder.tmp").is_dir()


def test_a_lock_that_is_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path / "owner.lock").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="owner.lock: is a link to nothing, expected a lock; dele"):
        Owner(tmp_path, "run").__enter__()


@pytest.mark.parametrize("damage", [b"[" * 100_000, None])
def test_a_damaged_lock_of_a_dead_process_is_taken_over(tmp_path, monkeypatch, damage):
    """One that can't be read is watched; of the other only the start of its process is gone."""
    monkeypatch.setattr(owner, "LEASE", 0.5)
    record = {**owner._this_process(), "pid": 2**22 + 1, "command": "run"}
    del record["started"]
    (tmp_path / "owner.lock").write_bytes(damage or json.dumps(record).encode())
    with Owner(tmp_path, "run"):
        assert json.loads((tmp_path / "owner.lock").read_bytes())["pid"] == os.getpid()


def test_a_second_command_is_refused_and_readers_are_not(tmp_path, monkeypatch, capsys):
    """Two processes; then the first is killed, and the second goes on without it."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
        env=child_environment(1),
    )
    try:
        assert holder.stdout.readline() == "mine\n"
        called = []
        monkeypatch.setattr(commands, "train", lambda *_: called.append("train"))
        monkeypatch.setattr(commands, "evaluate", lambda *_: called.append("evaluate"))
        arguments = ["--gin.STAGE='pretrain'"]
        assert tiny_runs.command("train", tmp_path / "run", *arguments) == 2
        refusal = capsys.readouterr().err
        assert f"`run` of process {holder.pid} on" in refusal and refusal.count("\n") == 1
        assert [each.name for each in (tmp_path / "run").iterdir()] == ["owner.lock"]
        monkeypatch.setattr(cli, "_check_paths", lambda *_: None)
        assert tiny_runs.command("evaluate", tmp_path / "run") == 0
        assert called == ["evaluate"]
    finally:
        holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # dead, and nobody's child yet
    assert tiny_runs.command("train", tmp_path / "run", *arguments) == 0
    assert called == ["evaluate", "train"]
    assert f"taken over from `run` of process {holder.pid}" in capsys.readouterr().out
    holder.wait()
    holder.stdout.close()


@pytest.mark.slow
def test_of_two_that_train_at_once_one_does(tmp_path):
    """In processes of their own, begun together."""
    (tmp_path / "tiny.gin").write_text(tiny_runs.GIN)
    command = [sys.executable, "-m", "pit_jax", "train", f"--gin_file={tmp_path}/tiny.gin"]
    command += [f"--gin.MODEL_DIR='{tmp_path}/run'", "--gin.STAGE='pretrain'"]
    pair = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=child_environment(1),
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [each.communicate(timeout=600) for each in pair]
    # A very slow machine may begin the second when the first has ended.
    refused = [err for each, (_, err) in zip(pair, said, strict=True) if each.returncode]
    assert sorted(each.returncode for each in pair) in ([0, 2], [0, 0]), said
    assert all("writes to it" in err for err in refused)
    records = tiny_runs.records(tmp_path / "run" / "pretrain" / "metrics.jsonl")
    assert [each["step"] for each in records] == [1, 2, 3, 4]
    assert not (tmp_path / "run" / "owner.lock").exists()


def test_a_place_in_a_bucket_is_asked_by_generation(monkeypatch):
    store = tensorstore.KvStore.open("memory://").result()
    monkeypatch.setattr(owner, "open_store", lambda folder: store)
    where = InBucket("gs://bucket/owner.lock")
    assert where.swap(None, b"one")
    assert store.read("owner.lock").result().value == b"one"
    held = where.read()
    store["owner.lock"] = b"one"  # the same content by somebody else
    assert not where.swap(held, b"two")


def test_a_link_in_the_place_of_a_file_of_ours_is_not_followed(tmp_path):
    """The old names were foreseeable: FILE.tmp."""
    victim = tmp_path / "victim"
    victim.write_text("safe")
    for name in ("file.tmp", "lock"):
        (tmp_path / name).symlink_to(victim)
    files.write_whole(tmp_path / "file", "new")
    assert victim.read_text() == "safe" and (tmp_path / "file").read_text() == "new"
    with pytest.raises(OSError, match="Too many levels|File exists"):
        files.new(tmp_path / "lock")
    with pytest.raises(OSError, match="Too many levels"):
        files.new(tmp_path / "lock", os.O_WRONLY)
    names = {files.scratch_of(tmp_path / ("x" * 255)).name for _ in range(100)}
    assert len(names) == 100 and all(len(name) < 255 for name in names)


def test_a_file_that_fails_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), files.whole(tmp_path / "file") as file:
        file.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    files.write_whole(tmp_path / "file", "x")
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask
