"""Tests of a stage's records: written, read, cut, changed and gone on without."""

import errno
import hashlib
import json
import math
import pathlib
import re
import resource

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pit_jax.errors import UserError
from pit_jax.runtime import records
from tests import fake_bucket


def test_jsonl_round_trip(tmp_path):
    path = tmp_path / "new" / "metrics.jsonl"
    writer = records.JsonlWriter(path)
    writer.write(1, {"loss": np.float32(0.5), "kl": float("nan")})
    writer.write(2, {"loss": jnp.array(0.25)}, {"sample": 'a\nb "é"'})
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == [
        {"step": 1, "loss": 0.5, "kl": None},
        {"step": 2, "loss": 0.25, "texts": {"sample": 'a\nb "é"'}},
    ]
    writer.close()
    first, second = records.read_jsonl(path)
    assert math.isnan(first["kl"]) and second["texts"] == {"sample": 'a\nb "é"'}


def _write_steps(path, steps, resume_step=None):
    writer = records.JsonlWriter(path, resume_step)
    for step in steps:
        writer.write(step, {"loss": float(step)})
    writer.close()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 12), st.integers(-1, 12), st.integers(0, 20))
def test_resumed_jsonl_has_every_step_once(tmp_path_factory, crashed_at, checkpoint, torn):
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    checkpoint = min(checkpoint, crashed_at)
    _write_steps(path, range(crashed_at + 1))
    whole = (json.dumps({"step": crashed_at + 1, "loss": 1.0}) + "\n").encode()
    with open(path, "ab") as file:
        file.write(whole[: min(torn, len(whole) - 2)])
    _write_steps(path, range(checkpoint + 1, 15), resume_step=checkpoint)
    assert [record["step"] for record in records.read_jsonl(path)] == list(range(15))


def test_jsonl_opened_without_a_step_keeps_whole_records(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert [record["step"] for record in records.read_jsonl(path)] == [1, 2]
    _write_steps(path, [3])
    assert [record["step"] for record in records.read_jsonl(path)] == [1, 2, 3]
    assert not list(tmp_path.glob("*.tmp"))


def test_jsonl_broken_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics.jsonl:2: is damaged, expected a JSON object"):
        records.read_jsonl(path)


@pytest.mark.parametrize("line", ['{"step": 3, "los', '{"step": "3"}', '{"step": null}'])
def test_a_damaged_last_line_is_not_a_torn_one(tmp_path, line):
    """What has its end was written whole."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + "\n")
    with pytest.raises(UserError, match=r"metrics.jsonl:2: is damaged, expected a JSON object"):
        records.read_jsonl(path)


def test_a_full_disk_delays_records(tmp_path):
    """Some bytes of a line may have been written before the disk was full."""
    path = tmp_path / "metrics.jsonl"
    writer = records.JsonlWriter(path)
    file, room = writer._file, [1000]

    class Full:
        def write(self, data):
            if not room[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            taken = file.write(data[: room[0]])
            room[0] -= taken
            return taken

        def fileno(self):
            return file.fileno()

        def close(self):
            file.close()

    writer._file = Full()
    writer.write(1, {"loss": 1.0})
    writer.flush()
    room[0] = 7
    for step in (2, 3):
        writer.write(step, {"loss": 1.0})
        with pytest.raises(OSError, match="No space left"):
            writer.flush()
    assert [record["step"] for record in records.read_jsonl(path)] == [1]
    room[0] = 1000
    writer.write(4, {"loss": 1.0})
    writer.close()
    assert [record["step"] for record in records.read_jsonl(path)] == [1, 2, 3, 4]


def test_jsonl_rejects_reserved_names(tmp_path):
    writer = records.JsonlWriter(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="may not be named 'step'"):
        writer.write(1, {"step": 2.0})
    writer.close()


def test_a_file_in_a_bucket_is_written_by_flush_close_and_after_a_minute(tmp_path, monkeypatch):
    fake_bucket.install(monkeypatch, tmp_path)
    file = tmp_path / "bucket" / "run" / "metrics.jsonl"
    now = [100.0]
    monkeypatch.setattr(records.time, "monotonic", lambda: now[0])

    def steps():
        return [json.loads(line)["step"] for line in file.read_text().splitlines()]

    writer = records.JsonlWriter("gs://bucket/run/metrics.jsonl")
    writer.write(1, {"loss": 1.0})
    assert steps() == []
    writer.flush()
    assert steps() == [1]
    writer.write(2, {"loss": 1.0})
    now[0] += 59
    writer.write(3, {"loss": 1.0})
    assert steps() == [1]
    now[0] += 2
    writer.write(4, {"loss": 1.0})
    assert steps() == [1, 2, 3, 4]
    writer.write(5, {"loss": 1.0})
    writer.close()
    assert steps() == [1, 2, 3, 4, 5]
    writer = records.JsonlWriter("gs://bucket/run/metrics.jsonl", resume_step=3)
    writer.write(4, {"loss": 2.0})
    writer.close()
    assert steps() == [1, 2, 3, 4]


def test_jsonl_of_anything_but_objects_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n[2]\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r":2: is damaged, expected a JSON object, got b'\[2\]'"):
        records.read_jsonl(path)


STEPS = 6


def _write(writer: records.JsonlWriter, step: int) -> None:
    texts = {"sample": "é\u2028"} if step == 3 else None
    writer.write(step, {"loss": math.nan if step == 2 else step / 3}, texts)


def _made(folder: pathlib.Path, steps: int = STEPS) -> tuple[pathlib.Path, list[dict]]:
    """A file of records, and what was written at each step."""
    path = folder / "metrics.jsonl"
    writer = records.JsonlWriter(path)
    written = [writer.written()]
    for step in range(1, steps + 1):
        _write(writer, step)
        written.append(writer.written())
    writer.close()
    return path, written


def test_what_was_written_by_hand(tmp_path):
    path, written = _made(tmp_path, 2)
    line = b'{"step": 1, "loss": 0.3333333333333333}\n'
    assert written[1] == {"count": 1, "sha256": hashlib.sha256(line).hexdigest()}
    whole = line + b'{"step": 2, "loss": null}\n'
    assert path.read_bytes() == whole
    assert written[2] == {"count": 2, "sha256": hashlib.sha256(whole).hexdigest()}
    assert records.summary(records.read_jsonl(path)) == written[2]


# Until which step a start comes, at which steps it has saved, how much of the rest is on disk.
STARTS = st.tuples(st.integers(1, STEPS), st.sets(st.integers(1, STEPS)), st.floats(0, 1))


@settings(max_examples=25, deadline=None)
@given(st.lists(STARTS, max_size=4))
def test_a_stage_that_goes_on_knows_its_records_however_often_it_is_ended(tmp_path_factory, starts):
    """Killed anywhere, it has the records of a run that wasn't."""
    _, expected = _made(tmp_path_factory.mktemp("whole"))
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    saved, written, size = 0, {}, 0
    for end, saves, share in [*starts, (STEPS, {STEPS}, 1.0)]:
        writer = records.JsonlWriter(path, saved, written)
        for step in range(saved + 1, end + 1):
            _write(writer, step)
            if step in saves:
                saved, written, size = step, writer.written(), path.stat().st_size
                assert written == expected[step]
        with open(path, "rb+") as file:
            file.truncate(size + int(share * (path.stat().st_size - size)))
    assert records.summary(records.read_jsonl(path, written)) == expected[STEPS]


def test_of_damaged_records_those_in_order_are_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [b'{"step": 1}', b'{"step": 9}', b"[2]", b'{"step": 2, "x": "\\uD800"}', b'{"step": 2}']
    lines += [b"\xff", b'{"step": 2}', b'{"step": 1}', b'{"step": 4}', b'{"st']
    (tmp_path / "metrics.jsonl.damaged").write_bytes(b"\n".join(lines))
    assert records.read_jsonl(path, last=4) == [{"step": 1}, {"step": 2}, {"step": 4}]
    path.write_bytes(lines[3] + b"\n")
    with pytest.raises(UserError, match=r"metrics.jsonl:1: is damaged, expected a JSON object"):
        records.read_jsonl(path)


DAMAGES = {
    "cut": lambda data, at: data[:at],
    "a line gone": lambda data, at: (
        data[: data.rfind(b"\n", 0, at) + 1] + data[data.index(b"\n", at) + 1 :]
    ),
    "a line twice": lambda data, at: (
        data[: data.index(b"\n", at) + 1] + data[data.rfind(b"\n", 0, at) + 1 :]
    ),
    "flipped": lambda data, at: data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :],
    "zeroed": lambda data, at: bytes(len(data)),
    "emptied": lambda data, at: b"",
    "deleted": lambda data, at: None,
}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(DAMAGES)), st.floats(0, 0.999), st.integers(1, STEPS))
def test_no_damage_goes_unnoticed_and_what_can_be_read_is_kept(tmp_path_factory, how, at, step):
    """Of the records up to a checkpoint; the later ones are written again."""
    path, written = _made(tmp_path_factory.mktemp("run"))
    whole, before = path.read_bytes(), records.read_jsonl(path, last=step)
    damaged = DAMAGES[how](whole, int(at * len(whole)))
    path.unlink() if damaged is None else path.write_bytes(damaged)
    try:
        assert records.summary(records.read_jsonl(path, written[step], step)) == written[step]
        return  # none of these records was touched, nor what they say
    except UserError as error:
        told = str(error)
    assert path.read_bytes() == damaged if damaged is not None else not path.exists()
    pattern = r"metrics.jsonl(:\d+)?: (is damaged|not found), .*; bring it back from a copy, or "
    assert re.search(pattern + "(rename it to|make an empty file) metrics.jsonl.damaged", told)
    with pytest.raises(UserError):
        records.JsonlWriter(path, step, written[step])
    aside = path.with_name("metrics.jsonl.damaged")
    path.rename(aside) if path.exists() else aside.touch()
    writer = records.JsonlWriter(path, step, written[step])
    left, now = records.read_jsonl(path), writer.written()
    assert now["count"] == len(left) <= step and now == records.summary(left)
    if how != "flipped":
        assert all(repr(record) in map(repr, before) for record in left)
    # It may end before the next checkpoint, and goes on from the one that it had.
    writer = records.JsonlWriter(path, step, written[step])
    assert writer.written() == now
    writer.write(step + 1, {"loss": 1.0})
    end = writer.written()
    writer.close()
    assert len(records.read_jsonl(path, end)) == now["count"] + 1
    aside.unlink()
    assert len(records.read_jsonl(path, end)) == now["count"] + 1


def test_a_file_that_cannot_grow_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = records.JsonlWriter(path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        writer.write(1, {"loss": 1.0})
        with pytest.raises(OSError, match="File too large") as refusal:
            writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert refusal.value.filename == str(path)
