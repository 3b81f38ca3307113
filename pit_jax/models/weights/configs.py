"""Makes a NetworkConfig of a Hugging Face `config.json`, and such a file's content of a network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pit_jax.errors import UserError
from pit_jax.models.config import NetworkConfig
from pit_jax.models.weights.families import (
    ABSENT,
    FAMILIES,
    Family,
    Fields,
    llama,
    llama_config,
)
from pit_jax.models.weights.positions import period

# Whatever family: settings that we have no field for, and the values that ask for nothing.
_UNSUPPORTED = {
    "quantization_config": (None,),
    "use_bidirectional_attention": (None, False),
    "use_mrope": (None, False),
    "is_encoder_decoder": (None, False),
}


def family_of(config: Mapping[str, Any]) -> Family:
    """Returns the family of a `config.json`.

    Raises:
      UserError: if it is none that we know.
    """
    name = config.get("model_type")
    if name not in FAMILIES:
        raise UserError(
            f"config.json: got model_type={name!r}, expected one of {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def network_of(
    config: Mapping[str, Any], dtype: str = "bfloat16", remat: str = "full"
) -> NetworkConfig:
    """Makes the network that a `config.json` describes.

    Args:
      config: its content.
      dtype: compute type of the network.
      remat: what the network's backward pass computes again.

    Raises:
      UserError: for a family, or a setting of one, that we don't compute; it names the field.
    """
    family = family_of(config)
    for field, values in _UNSUPPORTED.items():
        if config.get(field) not in values:
            raise UserError(f"config.json: got {field}={config[field]!r}, expected none")
    c = Fields({**family.defaults, **config})
    fields = llama(c) | family.network(c)
    return NetworkConfig(**fields, dtype=dtype, remat=remat)


def config_of(network: NetworkConfig, model_type: str) -> dict[str, Any]:
    """Makes the content of a `config.json` that describes a network.

    Tokens' ids, the longest row and the type of the parameters aren't in it.

    Raises:
      UserError: if the family can't compute what the network does; it names the field.
    """
    family = family_of({"model_type": model_type})
    config = llama_config(network, model_type) | family.config(network)
    config = {name: value for name, value in config.items() if value is not ABSENT}
    again = _described(network_of(config, network.dtype, network.remat))
    for field, value in _described(network).items():
        if again[field] != value:
            raise UserError(
                f"{model_type} weights: got {field}={value!r} of the network, expected "
                f"{again[field]!r}, as that family computes"
            )
    return config


def model_type_of(network: NetworkConfig) -> str:
    """Returns the first family that computes what a network does.

    Raises:
      UserError: if none does.
    """
    for name in FAMILIES:
        try:
            config_of(network, name)
        except UserError:
            continue
        return name
    raise UserError(f"weights: no family of {', '.join(FAMILIES)} computes what this network does")


def _described(network: NetworkConfig) -> dict[str, Any]:
    """The fields that say what is computed; equal networks have equal ones."""
    fields = dataclasses.asdict(network)
    layers = range(network.num_layers)
    fields["windows"] = period(network.window_of(n) for n in layers)
    fields["rotary_layers"] = period(network.has_rotary(n) for n in layers)
    if network.attention_scalar == network.head_dim:
        fields["attention_scalar"] = 0
    if network.rotary_dim == network.head_dim:
        fields["rotary_dim"] = 0
    if not any(fields["windows"]):
        fields["rope_local_theta"] = 0.0
    if not network.rope_original_length:
        del fields["rope_low"], fields["rope_high"]
    del fields["attention"]
    return fields
