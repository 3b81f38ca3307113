"""Files written whole, on a disk and in a bucket."""

import contextlib
import os
import pathlib
import resource

import pytest

from pit_jax import files
from pit_jax.errors import UserError
from pit_jax.report import data as data_report
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
    for path in ("gs://", "gs:///x", "http://host/x"):
        message = f"^MODEL_DIR: got {path}, expected a folder or gs://BUCKET/FOLDER$"
        with pytest.raises(UserError, match=message):
            files.check_folder(path, "MODEL_DIR")
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


@contextlib.contextmanager
def limited(size):
    """Files of this process may have so many bytes, as on a disk that becomes full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS = {
    "file": lambda folder: files.write_whole(folder / "file", b"x" * 4000),
    "data.json": lambda folder: data_report.write({"x": "x" * 4000}, folder),
}


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_a_file_that_cannot_be_written_is_named(name, tmp_path):
    (tmp_path / name).write_text("old")
    with limited(1000), pytest.raises(OSError, match="File too large") as refusal:
        WRITERS[name](tmp_path)
    assert refusal.value.filename == f"{tmp_path / name}"
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "old"


def test_a_file_is_named_and_not_what_will_take_its_place(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(1, "Operation not permitted", source, None, target)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError) as refusal:
        files.write_whole(tmp_path / "file", b"x")
    assert str(refusal.value) == f"[Errno 1] Operation not permitted: '{tmp_path}/file'"


def test_another_file_that_fails_meanwhile_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError) as refusal, files.whole(tmp_path / "file"):
        pathlib.Path(tmp_path / "other").read_bytes()
    assert refusal.value.filename == str(tmp_path / "other")
