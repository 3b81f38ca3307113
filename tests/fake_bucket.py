"""A bucket, gs://bucket, whose objects lie in a folder; what buckets can't do fails."""

from __future__ import annotations

import pathlib

import orbax.checkpoint as ocp
import tensorstore
from etils.epath import backend, gpath

from pit_jax.runtime import owner


class Bucket(backend._OsPathBackend):
    """Objects as files under `folder`; there is no renaming and no appending."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def path(self, uri) -> str:
        """Where an object of the bucket lies."""
        scheme, _, rest = str(uri).partition("://")
        assert scheme == "gs" and rest.startswith("bucket"), uri
        return str(self.folder / rest)

    def open(self, path, mode):
        assert mode in ("r", "rb", "w", "wb"), f"{path}: a bucket's objects have no mode {mode}"
        pathlib.Path(self.path(path)).parent.mkdir(parents=True, exist_ok=True)
        return super().open(self.path(path), mode)

    def exists(self, path):
        return super().exists(self.path(path))

    def isdir(self, path):
        return super().isdir(self.path(path))

    def listdir(self, path):
        return super().listdir(self.path(path))

    def makedirs(self, path, *, exist_ok=False, mode=None):
        super().makedirs(self.path(path), exist_ok=exist_ok, mode=mode)

    def remove(self, path):
        super().remove(self.path(path))

    def rmtree(self, path):
        super().rmtree(self.path(path))

    def replace(self, path, dst):
        raise AssertionError(f"{path}: a bucket's objects can't be renamed")

    rename = replace


def install(patch, folder: pathlib.Path) -> Bucket:
    """Makes gs://bucket of `folder` until `patch` is undone; orbax is given the folder itself."""
    bucket = Bucket(folder)
    patch.setattr(gpath, "_is_tf_installed", lambda: False)
    patch.setitem(gpath._PREFIX_TO_BACKEND, "gs", bucket)

    # TensorStore's conditions on generations, with files in the place of objects.
    patch.setattr(
        owner,
        "open_store",
        lambda path: tensorstore.KvStore.open(f"file://{bucket.path(path)}").result(),
    )
    manager = ocp.CheckpointManager
    patch.setattr(
        ocp,
        "CheckpointManager",
        lambda directory, **options: manager(bucket.path(directory), **options),
    )
    return bucket
