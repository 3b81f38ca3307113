"""Writes LoRA adapters as the library PEFT loads them, and reads what it has saved.

To a matrix of theirs, [outputs, inputs], PEFT adds scale * lora_B lora_A, of shapes [outputs, rank]
and [rank, inputs]. Ours are `lora_b` and `lora_a`, whose dims a family's table turns as it turns
those of the matrix itself. Where a family has query, key and value in one matrix:

    written   the adapters of those that have one stand side by side in one of the summed rank, so
              lora_A is theirs one below the other, and lora_B [outputs, 2 * rank] of two is

                  [ B_query    0    ]
                  [    0       0    ]   (key, which has none)
                  [    0    B_value ]

    read      each of the three gets the whole of lora_A and its own outputs' rows of lora_B
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from pit_jax.errors import UserError
from pit_jax.files import write_whole
from pit_jax.models.config import LoraConfig
from pit_jax.models.weights import hugging_face
from pit_jax.models.weights.families import FAMILIES, Family
from pit_jax.models.weights.rows import Row, flatten, grouped, pieces
from pit_jax.runtime import processes

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # before the names of a model's tensors
_SCORE = "score"
_A, _B = ".lora_A.weight", ".lora_B.weight"
# Modules whose names in memory, by which PEFT goes, change between versions of transformers.
_RENAMED = ("embed_out.weight",)
_NOTES = "pit_jax"  # our entry of the metadata of the file

# Fields of an adapter's configuration that leave what it computes as it is, or that the tensors say
# again. Of all others a value that asks for nothing is needed, or one of these.
_IDLE = (
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"),
    *("ensure_weight_tying", "exclude_modules", "layers_pattern", "lora_alpha", "lora_dropout"),
    *("megatron_core", "qalora_group_size", "r", "runtime_config", "target_modules", "use_rslora"),
    *("corda_config", "eva_config", "loftq_config", "lora_ga_config"),
)
_ACCEPTED: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", "SEQ_CLS", None),
    "bias": ("none",),
    # Other ways to begin change the base model too.
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva"),
}
_NOTHING: tuple[Any, ...] = (None, False, 0, [], {}, "")


class Adapter(NamedTuple):
    """Is what a folder says of its adapter.

    Attributes:
      lora: its rank, scale and targets.
      is_scalar: whether it belongs to a model with one label, whose head it brings.
      notes: what `write` was given, empty for an adapter that it hasn't written.
    """

    lora: LoraConfig
    is_scalar: bool
    notes: dict[str, Any]


def rows_of(family: Family) -> tuple[Row, ...]:
    """Returns a family's table of adapters, with the head of a model with one label."""
    found = []
    for row in family.rows:
        if row.ours == "head/kernel":
            found.append(row._replace(theirs=_PREFIX + row.theirs))
        elif row.ours.endswith("/kernel") and row.theirs not in _RENAMED:
            theirs = _PREFIX + row.theirs.removesuffix(".weight")
            ours = row.ours.removesuffix("kernel")
            left, right = row.dims.split(" -> ")
            outputs, inputs = left.split()
            first = " ".join(x for x in right.split() if x[0] in inputs)
            last = " ".join(x for x in right.split() if x[0] in outputs)
            found += [
                Row(theirs + _A, ours + "lora_a", f"R {inputs} -> {first} R"),
                Row(theirs + _B, ours + "lora_b", f"{outputs} R -> R {last}", row.part),
            ]
    return tuple(found)


def write(
    folder: epath.Path,
    own: Any,
    lora: LoraConfig,
    model_type: str,
    base: str,
    dtype: str = "float32",
    notes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes adapters into a folder that PEFT loads; only the first process writes.

    Args:
      folder: a folder, made if missing.
      own: the tree of `lora_a` and `lora_b`, and for a model with one label its `head`.
      lora: their rank and scale.
      model_type: the family of the base model.
      base: its folder or its name on the hub.
      dtype: of the tensors, one of hugging_face.DTYPES.
      notes: what `describe` returns of the folder.

    Returns:
      the content of `adapter_config.json`.

    Raises:
      UserError: for an adapter of a matrix that the family lacks.
    """
    leaves = dict(flatten(own))
    shapes = {name: x.shape for name, x in leaves.items()}
    found = pieces(rows_of(FAMILIES[model_type]), shapes, model_type)
    tensors: dict[str, np.ndarray] = {}
    for name, parts in grouped(found):
        arrays = []
        for piece in parts:
            ours = hugging_face.on_host(leaves[piece.ours], piece.layer).astype(dtype)
            whole = None if piece.row.part is None else np.zeros(piece.shape, dtype)
            arrays.append(piece.theirs_of(ours, whole))
        tensors[name] = np.concatenate(arrays, axis=1 if name.endswith(_B) else 0)
    content = _config(tensors, lora) | {"base_model_name_or_path": base}
    if processes.is_first():
        metadata = {_NOTES: json.dumps(notes)} if notes else {}
        hugging_face.write_tensors(folder / WEIGHTS, tensors, metadata)
        write_whole(folder / CONFIG, json.dumps(content, indent=2) + "\n")
    return content


def _config(tensors: Mapping[str, np.ndarray], lora: LoraConfig) -> dict[str, Any]:
    """What `adapter_config.json` says of the tensors; the least rank is that of all but a few."""
    ranks = {
        name.removesuffix(_A).rpartition(".")[2]: len(tensor)
        for name, tensor in tensors.items()
        if name.endswith(_A)
    }
    rank = min(ranks.values())
    others = {name: each for name, each in sorted(ranks.items()) if each != rank}
    scalar = f"{_PREFIX}{_SCORE}.weight" in tensors
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if scalar else "CAUSAL_LM",
        "r": rank,
        "lora_alpha": _alpha(lora, rank),
        "use_rslora": lora.rslora,
        "rank_pattern": others,
        "alpha_pattern": {name: _alpha(lora, each) for name, each in others.items()},
        "target_modules": sorted(ranks),
        "modules_to_save": [_SCORE] if scalar else None,
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "use_dora": False,
        "inference_mode": True,
    }


def _alpha(lora: LoraConfig, rank: int) -> float:
    """The alpha by which adapters of this rank have the scale of ours."""
    times = rank / lora.rank
    alpha = lora.alpha * (math.sqrt(times) if lora.rslora else times)
    return int(alpha) if alpha == int(alpha) else alpha


# --- reading ------------------------------------------------------------------------------------


def config_of(folder: epath.Path) -> dict[str, Any]:
    """Reads `adapter_config.json`.

    Raises:
      UserError: if there is none, or it asks for something else than LoRA as we have it; it names
        the field.
    """
    path = folder / CONFIG
    if not path.exists():
        raise UserError(f"{path}: not found; the folder of a PEFT adapter has one")
    config = hugging_face.json_of(path)
    for field, value in config.items():
        accepted = _ACCEPTED.get(field, _NOTHING)
        if field == "modules_to_save" and config.get("task_type") == "SEQ_CLS":
            value = [name for name in value or () if name not in (_SCORE, "classifier")]
        if field not in _IDLE and value not in accepted:
            expected = accepted[0] if field in _ACCEPTED else "none"
            raise UserError(f"{path}: got {field}={value!r}, expected {expected}")
    for field in ("r", "lora_alpha"):
        value = config.get(field)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise UserError(f"{path}: got {field}={value!r}, expected a number above 0")
    return config


def describe(folder: epath.Path, family: Family) -> Adapter:
    """Reads what an adapter is; of its tensors only the names.

    Args:
      folder: has `adapter_config.json` and `adapter_model.safetensors`.
      family: the base model's.

    Raises:
      UserError: if it isn't LoRA as we have it, or adapts something else than our matrices.
    """
    config = config_of(folder)
    tensors = hugging_face.SafetensorsFolder(folder, WEIGHTS)
    rows = rows_of(family)
    ours = _targets(tensors.where, tensors.shapes, rows)
    # The names of our modules need no escaping.
    lora = LoraConfig(
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        targets="|".join(ours),
        rslora=bool(config.get("use_rslora")),
    )
    notes = json.loads(tensors.metadata.get(_NOTES, "{}"))
    return Adapter(lora, f"{_PREFIX}{_SCORE}.weight" in tensors.shapes, notes)


def _targets(where: str, names: Iterable[str], rows: tuple[Row, ...]) -> list[str]:
    """Our modules that have adapters, such as `attention/query`."""
    known, there = {row.theirs for row in rows}, set()
    for name in sorted(names):
        layerless = ".".join("{}" if part.isdigit() else part for part in name.split("."))
        if layerless not in known:
            raise UserError(
                f"{where}: {name}: got something else than lora_A and lora_B of a matrix in "
                "attention or MLP, expected only these"
            )
        there.add(layerless)
    modules = [
        row.ours.removeprefix("layers/").rpartition("/")[0]
        for row in rows
        if row.theirs in there and not row.ours.startswith("head/")
    ]
    found = list(dict.fromkeys(modules))
    if not found:
        raise UserError(f"{where}: got no lora_A and lora_B")
    return found


def read(folder: epath.Path, family: Family, abstract: Any) -> Any:
    """Reads an adapter's tensors onto the mesh.

    Args:
      folder: has `adapter_model.safetensors`.
      family: the base model's.
      abstract: the tree of `lora_a` and `lora_b`, and of a `head` if it has one, with shapes,
        types and shardings.

    Returns:
      the arrays in the structure of `abstract`.

    Raises:
      UserError: for a tensor that is missing, too many or of another shape.
    """
    tensors, rows = hugging_face.SafetensorsFolder(folder, WEIGHTS), rows_of(family)
    hugging_face.check(tensors, rows, abstract)
    return hugging_face.fill(tensors, rows, abstract)
