"""Digests of the models that a stage is made of, by which it knows them wherever they are.

Of a stage that is complete it is what its `result.json` says of its parameters after the last step
(runtime/digests.py), of its backbone too; which of its steps is used is among the settings. It is
read and not computed, so other files in the place of a checkpoint aren't noticed by it. Of a model
of Hugging Face's or T5X's, and of a stage that was trained before there were digests, it is one of
its files: their names, sizes, and of each of them eight pieces of 64 KiB at equal distances, all
of it if it is small. That takes no time worth mentioning on files of any size, and two models
differ everywhere; a file that is damaged in one place is not noticed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from pit_jax.run import directory as run_directory
from pit_jax.run import hugging_face, t5x_checkpoints
from pit_jax.run.run import Run
from pit_jax.run.stages import Stage

_PIECE = 1 << 16
_PIECES = 8


def of_models(run: Run, stage: Stage) -> dict[str, str]:
    """Returns the digests of the models that a stage builds on, as `directory.claim` asks.

    Those that the run doesn't train are looked at once.
    """
    found = {}
    names = {each.name for each in run.config.stages}
    for field, name in run_directory.taken(run.config, stage).items():
        if name in names:
            found[field] = of_model(run.folder(name))
            continue
        if name not in run.digests:
            run.digests[name] = of_model(run.folder(name))
        found[field] = run.digests[name]
    return found


def of_model(folder: epath.Path) -> str:
    """Returns the digest of a stage's or another model; empty if there is none yet.

    Args:
      folder: the stage's, a Hugging Face model's or what T5X has written.

    Raises:
      UserError: for a damaged `result.json`.
    """
    if (folder / "result.json").exists():
        return _of_stage(folder, run_directory.read_json(folder / "result.json"))
    if folder.suffix == ".gguf":
        return of_files([folder]) if folder.exists() else ""
    if hugging_face.is_model(folder):
        files = [f for f in folder.iterdir() if f.suffix == ".safetensors"]
        return of_files([folder / "config.json", *files])
    checkpoint = t5x_checkpoints.find(folder)
    return of_files([checkpoint]) if checkpoint is not None else ""


def _of_stage(folder: epath.Path, result: Mapping[str, Any]) -> str:
    own = result.get("digest", "")
    if not own:
        checkpoint = folder / "checkpoints" / str(result.get("model_step")) / "model"
        own = of_files([checkpoint]) if checkpoint.exists() else ""
    backbone = result.get("backbone")
    if not (own and backbone):
        return own
    below = of_model(epath.Path(backbone) if "/" in backbone else folder.parent / backbone)
    return below and hashlib.sha256(f"{own} {below}".encode()).hexdigest()[:32]


def of_files(paths: Iterable[epath.Path]) -> str:
    """Returns the digest of files, and of all that folders hold, as this module says.

    It is the same wherever they are: of names only those in the folders count.
    """
    found = hashlib.sha256()
    for path in sorted(paths, key=lambda each: each.name):
        each = sorted(_below(path)) if path.is_dir() else [path]
        for file in each:
            name = os.path.relpath(file, path) if path.is_dir() else ""
            found.update(f"{name} {_of_file(file)}\n".encode())
    return found.hexdigest()[:32]


def _below(folder: epath.Path) -> Iterable[epath.Path]:
    for each in folder.iterdir():
        yield from _below(each) if each.is_dir() else (each,)


def _of_file(path: epath.Path) -> str:
    size = path.stat().length
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= _PIECE * _PIECES:
            found.update(file.read())
        else:
            for piece in range(_PIECES):
                file.seek((size - _PIECE) * piece // (_PIECES - 1))
                found.update(file.read(_PIECE))
    return found.hexdigest()
