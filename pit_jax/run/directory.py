"""Records what a stage's folder was made with, and refuses to mix two runs in one directory.

`stage.json` holds the settings that determine the stage's result, its own and those of every stage
it builds on, and what gives its parameters their meaning.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from typing import Any

from etils import epath

from pit_jax import files
from pit_jax.data.vocabularies.base import Vocabulary
from pit_jax.errors import UserError
from pit_jax.run.config import RunConfig
from pit_jax.run.stages import Stage
from pit_jax.runtime import processes


def settings(config: RunConfig, stage: Stage, vocabulary: Vocabulary) -> dict[str, str]:
    """Returns what determines a stage's result: its own settings and those it builds on."""
    names = ("seed", "network", "dataset", "lengths", "batching")
    found = {name: _that_counts(repr(getattr(config, name))) for name in names}
    found["vocabulary"] = vocabulary.fingerprint
    table = {each.name: each for each in config.stages}
    todo, seen = [stage.name], set()
    while todo:
        name = todo.pop()
        if name in seen or name not in table:
            continue
        seen.add(name)
        each = table[name]
        found[name] = _that_counts(repr(each))
        todo += [getattr(each, field, "") for field in ("initial", "reference", "reward_model")]
        todo += [r.policy for r in getattr(each, "rounds", ()) if r.is_sampled]
    return found


def identity(config: RunConfig, vocabulary: Vocabulary) -> dict[str, str]:
    """Returns what gives a model's parameters their meaning: ids of words, and architecture."""
    network = dataclasses.replace(config.network, dtype="float32", remat="none")
    return {
        "vocabulary": vocabulary.fingerprint,
        "network": re.sub(", attention='\\w+'", "", repr(network)),
    }


def _that_counts(text: str) -> str:
    """A configuration's text without what says how and not what is computed, or logged."""
    fields = r"loop=LoopConfig\([^)]*\)|(remat|attention)='\w+'|microbatches=\d+|offload_frozen=\w+"
    return re.sub(f", ({fields})", "", text)


def claim(folder: epath.Path, settings: dict[str, str], identity: dict[str, str]) -> None:
    """Writes `stage.json` into a stage's folder, unless it holds the same stage already.

    Raises:
      UserError: if the folder holds a stage that was trained with other settings, or not every
        process sees what the first one writes.
    """
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    path, checkpoints = folder / "stage.json", folder / "checkpoints"
    trained = checkpoints.is_dir() and any(c.name.isdigit() for c in checkpoints.iterdir())
    if path.exists() and (trained or (folder / "references").exists()):
        before = json.loads(path.read_text())
        if before["fingerprint"] != fingerprint:
            changed = [key for key in settings if before["settings"].get(key) != settings[key]]
            raise UserError(
                f"{folder}: was started with other settings ({', '.join(changed)} changed); "
                "use another MODEL_DIR, or delete the folder to train the stage again"
            )
    else:
        write_json(path, {"fingerprint": fingerprint, "settings": settings, "model": identity})
    processes.wait()  # the first one has written
    if processes.any_process(not path.exists()):
        raise UserError(
            f"{folder}: not every process sees the first one's files; hosts that share no disk "
            "need a MODEL_DIR in a bucket, gs://BUCKET/FOLDER"
        )


def check_identity(folder: epath.Path, identity: dict[str, str]) -> None:
    """Refuses a model whose parameters mean something else here than where they were trained.

    Raises:
      UserError: if vocabulary or architecture differ.
    """
    path = folder / "stage.json"
    trained = json.loads(path.read_text()).get("model", {}) if path.exists() else {}
    for what, expected in trained.items():
        if identity[what] != expected:
            hint = " (the words of improve's prompts are part of it)" if "words" in expected else ""
            raise UserError(
                f"{folder}: was trained with another {what}: got {identity[what]}, expected "
                f"{expected}{hint}"
            )


def write_json(path: epath.Path, value: Any) -> None:
    """Writes a JSON file whole or not at all; only the first process writes."""
    if processes.is_first():
        files.write_whole(path, json.dumps(value, indent=1, sort_keys=True) + "\n")
