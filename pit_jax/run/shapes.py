"""Gives the shapes and shardings of what stages hold beside their state; nothing is computed."""

from __future__ import annotations

import functools
from typing import Any

import jax

from pit_jax.method.environment import Networks
from pit_jax.method.frozen import Frozen
from pit_jax.method.ppo_step import RLState
from pit_jax.models import adapters
from pit_jax.models.config import NetworkConfig
from pit_jax.run import stages
from pit_jax.run.stages import RLStage, Stage
from pit_jax.runtime.partitioning import Partitioner
from pit_jax.runtime.train_state import TrainState


def abstract_backbone(network: NetworkConfig, partitioner: Partitioner) -> Any:
    """Returns those of the backbone of models with adapters, as LoraConfig.backbone keeps it."""
    init = stages.init_language_model(network.without_adapters)
    if network.lora and network.lora.backbone == "int8":
        return quantised_like(stages.abstract_model(init, partitioner))
    return stages.abstract_frozen(init, network, partitioner)


def quantised_like(abstract: Any) -> Any:
    """Returns the shapes and shardings of adapters.quantised, from those of a backbone."""

    def placed(path, x):
        *where, name = (key.key for key in path)
        leaf = functools.reduce(lambda tree, key: tree[key], where, abstract)
        if name in leaf:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=leaf[name].sharding)
        of = name.removesuffix("_scale")
        sharding, dims = leaf[of].sharding, adapters.input_dims(tuple(where), of)
        spec = (*sharding.spec, *(leaf[of].ndim - len(sharding.spec)) * (None,))
        kept = (axis for dim, axis in enumerate(spec) if dim not in dims)
        sharding = sharding.update(spec=jax.sharding.PartitionSpec(*kept))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree_util.tree_map_with_path(placed, jax.eval_shape(adapters.quantised, abstract))


def shardings(abstract: Any) -> Any:
    """Returns the shardings alone."""
    return jax.tree.map(lambda x: x.sharding, abstract)


def abstract_models(networks: Networks, partitioner: Partitioner) -> Frozen:
    """Returns those of a PPO stage's models that aren't trained; equal networks share a backbone.

    Args:
      networks: the networks of its models.
      partitioner: the mesh.
    """
    backbones: dict[NetworkConfig, Any] = {}

    def backbone(network):
        if not network.lora:
            return None
        if network not in backbones:
            backbones[network] = abstract_backbone(network, partitioner)
        return backbones[network]

    def model(init, network):
        make = stages.trained_part(init, network)
        return adapters.on(backbone(network), stages.abstract_frozen(make, network, partitioner))

    return Frozen.share(
        {
            "reference": model(stages.init_language_model, networks.actor),
            "reward": model(stages.init_scalar_model, networks.reward),
        },
        {"actor": backbone(networks.actor), "critic": backbone(networks.critic)},
    )


def least_memory(
    stage: Stage, state: TrainState | RLState, networks: Networks, partitioner: Partitioner
) -> int:
    """Returns the bytes over all devices of a stage's state, gradients and frozen models.

    Args:
      stage: the stage.
      state: its state, or the shapes of it.
      networks: the networks of its models.
      partitioner: the mesh.
    """
    held: list[Any] = [state, state.train.params]
    if isinstance(stage, RLStage):
        held.append(abstract_models(networks, partitioner))
    elif networks.actor.lora:
        held.append(abstract_backbone(networks.actor, partitioner))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(held))
