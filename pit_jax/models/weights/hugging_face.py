"""Reads a Hugging Face folder of safetensors onto the mesh, and writes one that transformers loads.

Both go tensor by tensor, so the host holds little beside what stays on its devices.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from safetensors import SafetensorError, safe_open
from safetensors import numpy as safetensors_numpy

from pit_jax.errors import UserError
from pit_jax.files import on_disk, write_whole
from pit_jax.models.config import NetworkConfig
from pit_jax.models.weights import configs
from pit_jax.models.weights.arrays import Filling
from pit_jax.models.weights.rows import Piece, Row, flatten, grouped, nest, pieces
from pit_jax.models.weights.tables import IDLE, REPEATED
from pit_jax.runtime import processes

_INDEX = "model.safetensors.index.json"
_ONE = "model.safetensors"
_ANY = "*.safetensors"
_CHUNK = 2**24  # numbers of a tensor that are read at once
_SHARD = 2**30  # bytes of a file that is written, if no tensor is larger
_TYPES = ("F64", "F32", "F16", "BF16")
DTYPES = ("float32", "bfloat16")


class Tensors(Protocol):
    """Is where tensors are read from.

    Attributes:
      where: what it is, for messages.
      shapes: the shape of each tensor.
    """

    where: str
    shapes: Mapping[str, tuple[int, ...]]

    def read(self, name: str, part: slice) -> np.ndarray:
        """Returns a slice of a tensor's first dim."""


class SafetensorsFolder:
    """Has the tensors of a folder's safetensors, in one file or in several with an index.

    Args:
      folder: the folder.
      one: the name of the one file; an index is looked for if it is a model's.

    Attributes:
      metadata: the texts that stand beside the tensors.

    Raises:
      UserError: if there are none, or a file is missing or damaged.
    """

    def __init__(self, folder: epath.Path, one: str = _ONE):
        self.where = str(folder)
        self.metadata: dict[str, str] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        self._files: dict[str, epath.Path] = {}
        here = on_disk(folder, (_ANY,))
        for path in (here / name for name in _files_of(folder, one)):
            with _opened(path) as file:
                self.metadata |= file.metadata() or {}
                for name in file.keys():  # noqa: SIM118  # it isn't a dict
                    tensor = file.get_slice(name)
                    if tensor.get_dtype() not in _TYPES:
                        raise UserError(
                            f"{path}: {name}: got type {tensor.get_dtype()}, expected one of "
                            f"{', '.join(_TYPES)}; quantised weights aren't read"
                        )
                    shapes[name] = tuple(tensor.get_shape())
                    self._files[name] = path
        self.shapes: Mapping[str, tuple[int, ...]] = shapes

    def read(self, name: str, part: slice) -> np.ndarray:
        """Returns a slice of a tensor's first dim."""
        # A file is closed at once, or all its pages that were read would stay in memory.
        with _opened(self._files[name]) as file:
            return file.get_slice(name)[part]


def _opened(path: epath.Path):
    try:
        return safe_open(path, framework="numpy")
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found, though {_INDEX} names it") from error
    except SafetensorError as error:
        raise UserError(f"{path}: {error}; the file isn't whole, get it again") from error


def _files_of(folder: epath.Path, one: str) -> list[str]:
    if one == _ONE and (folder / _INDEX).exists():
        names = json_of(folder / _INDEX).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            raise UserError(f"{folder / _INDEX}: expected a weight_map of names to files")
        return sorted(set(names.values()))
    if (folder / one).exists():
        return [one]
    if any(folder.glob("*.bin")):
        auto = "transformers, `AutoModel" if one == _ONE else "peft, `AutoPeftModel"
        how = f"with {auto}ForCausalLM.from_pretrained('{folder}')"
        raise UserError(
            f"{folder}: got weights in .bin files, which may run code when they are read, expected "
            f"{one}; {how}.save_pretrained('safe')` writes that"
        )
    raise UserError(f"{folder}: expected {one}" + (f" or {_INDEX}" if one == _ONE else ""))


def config_of_folder(folder: epath.Path) -> dict[str, Any]:
    """Reads `config.json`.

    Raises:
      UserError: if there is none, or it isn't a JSON object.
    """
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{path}: not found; a Hugging Face folder has one")
    return json_of(path)


def json_of(path: epath.Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
      UserError: if the file holds something else.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: expected a JSON object; {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, got a {type(content).__name__}")
    return content


def read(folder: epath.Path, abstract: Any) -> Any:
    """Reads a folder's weights onto the mesh.

    Args:
      folder: has `config.json` and safetensors.
      abstract: parameters of a LanguageModel or, for a model with one label, of a ScalarModel, with
        shapes, types and shardings.

    Returns:
      parameters in the structure of `abstract`.

    Raises:
      UserError: for a family that we don't know, or weights that don't fit `abstract`.
    """
    return fill(*checked(folder, abstract), abstract)


def checked(folder: epath.Path, abstract: Any) -> tuple[Tensors, Iterable[Row]]:
    """Returns a folder's tensors and the family's table, once names and shapes are checked.

    Raises:
      UserError: for a family that we don't know, a file that isn't whole, or weights that don't
        fit `abstract`.
    """
    family = configs.family_of(config_of_folder(folder))
    tensors = SafetensorsFolder(folder)
    check(tensors, family.rows, abstract)
    return tensors, family.rows


def check(tensors: Tensors, rows: Iterable[Row], abstract: Any) -> None:
    """Refuses tensors that don't fit our parameters; nothing is read but their names and shapes.

    Raises:
      UserError: for a tensor that is missing, too many or of another shape.
    """
    found = _pieces(rows, abstract, tensors.where)
    expected = {piece.theirs: piece.shape for piece in found}
    for name, shape in expected.items():
        if name not in tensors.shapes:
            raise UserError(f"{tensors.where}: {name}: got none, expected shape {shape}")
        if tensors.shapes[name] != shape:
            raise UserError(
                f"{tensors.where}: {name}: got shape {tensors.shapes[name]}, expected {shape}"
            )
    idle = [re.escape(pattern).replace(r"\{\}", r"\d+") for pattern in IDLE]
    for name in sorted(tensors.shapes.keys() - expected.keys() - {*REPEATED}):
        if not any(re.fullmatch(pattern, name) for pattern in idle):
            got = f"shape {tensors.shapes[name]}"
            raise UserError(f"{tensors.where}: {name}: got {got}, expected none of that name")
    _check_repeated(tensors, expected)


def _check_repeated(tensors: Tensors, expected: Mapping[str, tuple[int, ...]]) -> None:
    """An output projection is left aside only where it can be the embedding again."""
    for name in tensors.shapes.keys() & {*REPEATED} - expected.keys():
        if tensors.shapes[name] not in expected.values():
            raise UserError(
                f"{tensors.where}: {name}: got shape {tensors.shapes[name]}, expected none or that "
                "of the embedding, as embeddings are tied"
            )


def fill(tensors: Tensors, rows: Iterable[Row], abstract: Any) -> Any:
    """Reads tensors that were checked onto the mesh, one after the other.

    Args:
      tensors: where they are.
      rows: the family's table.
      abstract: parameters with shapes, types and shardings.

    Returns:
      parameters in the structure of `abstract`.
    """
    leaves = dict(flatten(abstract))
    mine: dict[str, list[Piece]] = {name: [] for name in leaves}
    for piece in _pieces(rows, abstract, tensors.where):
        mine[piece.ours].append(piece)
    arrays = {}
    for name, leaf in leaves.items():
        filling = Filling(leaf)
        for piece in mine[name]:
            for part, place in piece.chunks(_CHUNK):
                filling.put(piece.ours_of(tensors.read(piece.theirs, part)), place)
        arrays[name] = filling.array()
    return nest(arrays)


def _pieces(rows: Iterable[Row], abstract: Any, where: str) -> list[Piece]:
    return pieces(rows, {name: tuple(x.shape) for name, x in flatten(abstract)}, where)


def write(
    folder: epath.Path,
    params: Any,
    network: NetworkConfig,
    model_type: str | None = None,
    dtype: str = "float32",
    config: Mapping[str, Any] | None = None,
    shard: int = _SHARD,
) -> dict[str, Any]:
    """Writes parameters into a folder that transformers loads; only the first process writes.

    Args:
      folder: a folder, made if missing.
      params: of a LanguageModel, for `AutoModelForCausalLM`; or of a ScalarModel, for
        `AutoModelForSequenceClassification` with one label.
      network: their network.
      model_type: the family; None for the first that computes what the network does.
      dtype: of the tensors, one of DTYPES.
      config: fields of `config.json` beside those that describe the network, such as ids of tokens.
      shard: most bytes of a file.

    Returns:
      the content of `config.json`.

    Raises:
      UserError: if the family can't compute what the network does, or `dtype` isn't one of DTYPES.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype: got {dtype!r}, expected one of {', '.join(DTYPES)}")
    model_type = model_type or configs.model_type_of(network)
    family = configs.family_of({"model_type": model_type})
    scalar = "head" in params
    content = {
        "architectures": [family.scalar_model if scalar else family.language_model],
        **configs.config_of(network, model_type),
        **({"id2label": {"0": "score"}, "label2id": {"score": 0}} if scalar else {}),
        "torch_dtype": dtype,
        **(config or {}),
    }
    leaves = dict(flatten(params))
    found = pieces(family.rows, {name: x.shape for name, x in leaves.items()}, model_type)
    _write_shards(folder, found, leaves, dtype, shard)
    if processes.is_first():
        write_whole(folder / "config.json", json.dumps(content, indent=2) + "\n")
    return content


def _write_shards(
    folder: epath.Path, found: list[Piece], leaves: Mapping[str, Any], dtype: str, limit: int
) -> None:
    """Writes safetensors, and their index if there are several."""
    width = jnp.dtype(dtype).itemsize
    shards = _shards(list(grouped(found)), width, limit)
    places, size = {}, 0
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors" if shards[1:] else _ONE
        tensors: dict[str, np.ndarray] = {}
        for theirs, parts in shard:
            for piece in parts:
                ours = on_host(leaves[piece.ours], piece.layer).astype(dtype)
                tensors[theirs] = piece.theirs_of(ours, tensors.get(theirs))
            places[theirs] = name
            size += tensors[theirs].nbytes
        if processes.is_first():
            write_tensors(folder / name, tensors)
    if shards[1:] and processes.is_first():
        index = {"metadata": {"total_size": size}, "weight_map": places}
        write_whole(folder / _INDEX, json.dumps(index, indent=2) + "\n")


def _shards(
    tensors: list[tuple[str, list[Piece]]], width: int, limit: int
) -> list[list[tuple[str, list[Piece]]]]:
    shards: list[list[tuple[str, list[Piece]]]] = [[]]
    filled = 0
    for name, parts in tensors:
        size = math.prod(parts[0].shape) * width
        if filled and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append((name, parts))
        filled += size
    return shards


def write_tensors(
    path: epath.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] = {}
) -> None:
    """Writes one file of safetensors, with texts beside the tensors."""
    content = safetensors_numpy.save(dict(tensors), metadata={"format": "pt", **metadata})
    write_whole(path, content)


def on_host(array: jax.Array, layer: int | None) -> np.ndarray:
    """Brings an array, or one layer of it, to the host; every process gets all of it."""
    part = array if layer is None else array[layer]
    if getattr(part, "is_fully_addressable", True):
        return np.asarray(part)
    return np.asarray(multihost_utils.process_allgather(part, tiled=True))
