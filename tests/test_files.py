"""Files written whole, on a disk and in a bucket."""

import os

import pytest

from pit_jax import files
from tests import fake_bucket


def test_what_is_local():
    assert files.is_local("runs/mine") and files.is_local("/gs/x")
    assert not files.is_local("gs://bucket/x")


def test_text_and_bytes_replace_what_was_there(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    files.write_whole(path, "é\n")
    assert path.read_bytes() == b"\xc3\xa9\n"
    files.write_whole(path, b"\0")
    assert path.read_bytes() == b"\0"
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_a_crash_before_the_end_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_whole(path, "old")

    def crash(descriptor):
        raise OSError("the disk is gone")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(OSError, match="the disk is gone"):
        files.write_whole(path, "new")
    assert path.read_text() == "old"


def test_a_bucket_gets_the_object_itself(tmp_path, monkeypatch):
    fake_bucket.install(monkeypatch, tmp_path)
    files.write_whole("gs://bucket/run/file", "text")
    assert [path.name for path in (tmp_path / "bucket" / "run").iterdir()] == ["file"]
    assert (tmp_path / "bucket" / "run" / "file").read_text() == "text"


def test_an_error_while_a_file_is_written_leaves_what_was_there(tmp_path, monkeypatch):
    fake_bucket.install(monkeypatch, tmp_path)
    for path, there in ((tmp_path / "file", tmp_path), ("gs://bucket/file", tmp_path / "bucket")):
        files.write_whole(path, "old")
        with pytest.raises(ZeroDivisionError), files.whole(path) as file:
            file.write(b"new")
            raise ZeroDivisionError
        assert (there / "file").read_text() == "old"
        with files.whole(path) as file:
            file.writelines([b"new\n", b"lines\n"])
        assert (there / "file").read_text() == "new\nlines\n"
