"""Files written whole, on a disk and in a bucket."""

import os

import pytest

from pit_jax import files
from pit_jax.errors import UserError
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


def test_a_folder_that_cannot_be_made_is_refused(tmp_path, monkeypatch):
    files.check_folder(tmp_path / "a" / "b", "MODEL_DIR")
    files.check_folder("gs://bucket/x", "MODEL_DIR")
    assert not list(tmp_path.iterdir())
    file = tmp_path / "file"
    file.write_text("")
    for path in (file, file / "a" / "b"):
        message = rf"^MODEL_DIR: can't write {path}, because {file} is not a folder$"
        with pytest.raises(UserError, match=message):
            files.check_folder(path, "MODEL_DIR")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"because .*/link is not a folder$"):
        files.check_folder(tmp_path / "link" / "x", "--output")
    with pytest.raises(UserError, match=r"^--output: can't write .*, whose name is too long$"):
        files.check_folder(tmp_path / ("x" * 256), "--output")
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(UserError, match=rf"because {tmp_path} is read-only$"):
        files.check_folder(tmp_path / "a" / "b", "--output")


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
