"""Tests of a stage's records: written, read, cut, changed and gone on without."""

import errno
import json
import math

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
