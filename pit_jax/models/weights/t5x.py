"""Brings weights of other families under our names, by declarative tables, with NumPy only.

Our parameters are nested and stacked over layers; a family's are flat, with names joined by `/`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from pit_jax.errors import UserError
from pit_jax.models.config import NetworkConfig

# T5X's decoder-only example: its name, `{}` for the layer; ours; and how many of our dims, within a
# layer, are one of its, since its kernels are matrices. All names begin with `decoder/`.
T5X_DECODER: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("token_embedder/embedding", "embed/embedding", (1, 1)),
    ("relpos_bias/rel_embedding", "relative_bias", (1, 1)),
    ("layers_{}/pre_self_attention_layer_norm/scale", "layers/attention_norm/scale", (1,)),
    ("layers_{}/self_attention/query/kernel", "layers/attention/query/kernel", (1, 2)),
    ("layers_{}/self_attention/key/kernel", "layers/attention/key/kernel", (1, 2)),
    ("layers_{}/self_attention/value/kernel", "layers/attention/value/kernel", (1, 2)),
    ("layers_{}/self_attention/out/kernel", "layers/attention/out/kernel", (2, 1)),
    ("layers_{}/pre_mlp_layer_norm/scale", "layers/mlp_norm/scale", (1,)),
    ("layers_{}/mlp/wi_0/kernel", "layers/mlp/gate/kernel", (1, 1)),
    ("layers_{}/mlp/wi_1/kernel", "layers/mlp/up/kernel", (1, 1)),
    ("layers_{}/mlp/wo/kernel", "layers/mlp/down/kernel", (1, 1)),
    ("decoder_norm/scale", "final_norm/scale", (1,)),
    ("logits_dense/kernel", "unembed/kernel", (1, 1)),
)
_ROOT = "decoder/"
_BIAS = "decoder/relative_bias"
_OPTIONAL = "decoder/unembed/kernel"  # embeddings may be tied
# What is expected in place of a name that is left over, by a part of the name.
_INSTEAD = (
    ("/mlp/wi/", "wi_0 and wi_1, gated: mlp_activations ('gelu', 'linear') or ('silu', 'linear')"),
    ("/logits_dense/", "none with tied_embeddings=True"),
    ("/layers_", "none beyond num_layers"),
)


class _Piece(NamedTuple):
    """Names an array of a family, which is a whole parameter of ours or one layer of it."""

    name: str
    ours: str
    layer: int | None
    shape: tuple[int, ...]


def is_t5x_decoder(flat: Mapping[str, Any]) -> bool:
    """Returns whether the names are those of T5X's decoder-only example."""
    return _ROOT + T5X_DECODER[0][0] in flat


def check_t5x_decoder(config: NetworkConfig) -> None:
    """Refuses a network that makes something else of T5X's weights than T5X does.

    Raises:
      UserError: for such a network; it names the field.
    """
    variations = {
        field.name: field.default
        for field in dataclasses.fields(config)
        if field.metadata.get("variation")
    }
    for field, value in (
        *variations.items(),
        ("num_kv_heads", config.num_heads),
        ("scale_embeddings", False),
        ("scale_attention", False),
        ("scale_logits", config.tied_embeddings),
        ("positions", "relative"),
        ("norm_epsilon", 1e-6),
    ):
        if getattr(config, field) != value:
            raise UserError(
                f"T5X weights: got {field}={getattr(config, field)!r} of the network, expected "
                f"{value!r}, as T5X's decoder computes"
            )


def from_t5x_decoder(flat: Mapping[str, np.ndarray], abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Makes parameters of a `LanguageModel` from those of T5X's decoder-only example.

    Args:
      flat: T5X's parameters by name, such as `decoder/layers_0/mlp/wo/kernel`.
      abstract: our parameters, unboxed; only their shapes and types are read.

    Returns:
      Nested dicts of NumPy arrays in the shapes and types of `abstract`.

    Raises:
      UserError: for a name that is left over or missing, or a shape that doesn't fit.
    """
    ours = dict(_flatten(abstract))
    pieces = list(_pieces({name: tuple(leaf.shape) for name, leaf in ours.items()}))
    for name in sorted(set(flat).difference(piece.name for piece in pieces)):
        instead = next((text for part, text in _INSTEAD if part in name), "no such parameter")
        got = f"shape {np.shape(flat[name])}"
        raise UserError(f"T5X weights: {name}: got {got}, expected {instead}")
    arrays: dict[str, list[np.ndarray]] = {name: [] for name in ours}
    for piece in pieces:
        got = f"shape {np.shape(flat[piece.name])}" if piece.name in flat else "none"
        if got != f"shape {piece.shape}":
            raise UserError(f"T5X weights: {piece.name}: got {got}, expected shape {piece.shape}")
        arrays[piece.ours].append(np.asarray(flat[piece.name]))
    params: dict[str, Any] = {}
    for name, leaf in ours.items():
        *folders, last = name.split("/")
        place = params
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = np.stack(arrays[name]).reshape(leaf.shape).astype(leaf.dtype)
    return params


def to_t5x_decoder(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Brings a `LanguageModel`'s parameters under T5X's names; the inverse of `from_t5x_decoder`.

    Args:
      params: our parameters, unboxed.

    Returns:
      NumPy arrays by T5X's names.

    Raises:
      UserError: if T5X's decoder has a parameter that is missing here, or lacks one that is here.
    """
    ours = {name: np.asarray(array) for name, array in _flatten(params)}
    flat = {}
    for piece in _pieces({name: array.shape for name, array in ours.items()}):
        array = ours[piece.ours] if piece.layer is None else ours[piece.ours][piece.layer]
        flat[piece.name] = array.reshape(piece.shape)
    return flat


def _pieces(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[_Piece]:
    """Yields every array that T5X's decoder has for our parameters of these shapes."""
    rows = {_ROOT + ours: (_ROOT + theirs, dims) for theirs, ours, dims in T5X_DECODER}
    for name in sorted(shapes.keys() - rows.keys()):
        raise UserError(f"T5X weights: our {name}: got a parameter that T5X's decoder has not")
    for name in sorted(rows.keys() - shapes.keys() - {_OPTIONAL}):
        instead = "positions='relative'" if name == _BIAS else f"what T5X calls {rows[name][0]}"
        raise UserError(f"T5X weights: our {name}: got none, expected {instead}")
    heads, key_heads = (shapes[f"{_ROOT}layers/attention/{x}/kernel"][2] for x in ("query", "key"))
    if heads != key_heads:
        raise UserError(
            f"T5X weights: got num_kv_heads={key_heads}, expected {heads}, as num_heads"
        )
    for name, shape in shapes.items():
        theirs, dims = rows[name]
        layers = range(shape[0]) if "{}" in theirs else (None,)
        inner = iter(shape[1:] if "{}" in theirs else shape)
        merged = tuple(math.prod(itertools.islice(inner, n)) for n in dims)
        for layer in layers:
            yield _Piece(theirs.format(layer), name, layer, merged)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value
