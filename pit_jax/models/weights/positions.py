"""Reads what `config.json` says of rotary positions and windows, and writes it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pit_jax.errors import UserError
from pit_jax.models.config import NetworkConfig

SLIDING, FULL = "sliding_attention", "full_attention"


def rotary_fields(c: Mapping[str, Any], scaling: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of rotary positions.

    Args:
      c: a config.json.
      scaling: its `rope_scaling`, or `rope_parameters` of transformers 5, which has all fields.

    Raises:
      UserError: for positions of another kind.
    """
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    fields = {"rope_theta": float(scaling.get("rope_theta", c.get("rope_theta") or 10_000.0))}
    if kind in ("linear", "llama3"):
        fields["rope_factor"] = float(scaling["factor"])
    elif kind != "default":
        raise UserError(
            f"config.json: got rope_type={kind!r}, expected one of default, linear, llama3"
        )
    if kind == "llama3":
        fields["rope_original_length"] = scaling["original_max_position_embeddings"]
        fields["rope_low"] = float(scaling["low_freq_factor"])
        fields["rope_high"] = float(scaling["high_freq_factor"])
    share = scaling.get("partial_rotary_factor", c.get("partial_rotary_factor", 1.0))
    if share != 1 and c["model_type"] != "gpt_neox":
        raise UserError(f"config.json: got partial_rotary_factor={share}, expected 1")
    return fields


def scaling_of(c: NetworkConfig) -> dict[str, Any] | None:
    """Returns `rope_scaling`, which transformers 4 and 5 read."""
    if c.rope_factor == 1:
        return None
    if not c.rope_original_length:
        return {"rope_type": "linear", "factor": c.rope_factor}
    return {
        "rope_type": "llama3",
        "factor": c.rope_factor,
        "low_freq_factor": c.rope_low,
        "high_freq_factor": c.rope_high,
        "original_max_position_embeddings": c.rope_original_length,
    }


def period(values: Iterable[Any]) -> tuple:
    """Returns the shortest tuple that gives these values over and over."""
    values = tuple(values)
    lengths = range(1, len(values) + 1)
    return next(
        values[:n] for n in lengths if all(v == values[i % n] for i, v in enumerate(values))
    )


def window_fields(types: list[str], window: int | None) -> dict[str, Any]:
    """Returns the field `windows`, of `layer_types` and `sliding_window`.

    Raises:
      UserError: for layers of another type.
    """
    for kind in types:
        if kind not in (SLIDING, FULL):
            raise UserError(
                f"config.json: got {kind!r} in layer_types, expected {SLIDING} or {FULL}"
            )
    windows = period((window or 0) if kind == SLIDING else 0 for kind in types)
    return {"windows": windows if any(windows) else ()}


def types_of(c: NetworkConfig) -> dict[str, Any]:
    """Returns `layer_types` and `sliding_window` of a network."""
    windows = [c.window_of(layer) for layer in range(c.num_layers)]
    return {
        "layer_types": [SLIDING if window else FULL for window in windows],
        "sliding_window": max(windows) or None,
    }


def alternating(c: Mapping[str, Any], pattern: int) -> list[str]:
    """Returns `layer_types`, by default of windows in all but every so many layers."""
    layers = range(c["num_hidden_layers"])
    return c.get("layer_types") or [SLIDING if (layer + 1) % pattern else FULL for layer in layers]
