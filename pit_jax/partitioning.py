"""Meshes, logical-axis rules as plain data, and shardings of whole state trees.

Every parameter and activation names its dimensions with *logical* axes (T5X's vocabulary of names);
a table of rules maps those to the axes of the device mesh, `('data', 'model')`. The same table
places parameters, optimizer state, KV cache, Experience and batches, so there is one source for
shardings.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from pit_jax.errors import UserError

Rules = tuple[tuple[str, str | None], ...]

# Parameters are fully sharded over `data` along `embed`; activations name their width
# `activation_embed`, which stays whole.
DEFAULT_RULES: Rules = (
    ("batch", "data"),
    ("vocab", "model"),
    ("embed", "data"),
    ("heads", "model"),
    ("kv_heads", "model"),
    ("kv", None),
    ("mlp", "model"),
    ("layers", None),
    ("length", None),
    ("activation_embed", None),
    ("scalar", None),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Shape of the device mesh.

    Attributes:
      data: size of the data axis; -1 takes the devices the model axis leaves.
      model: size of the model axis (heads, mlp and vocabulary are split over it).
      rules: logical axis -> mesh axis; the first match counts.
    """

    data: int = -1
    model: int = 1
    rules: Rules = DEFAULT_RULES


class Partitioner:
    """A mesh with its rules: turns logical axis names into shardings.

    Args:
      config: mesh shape and rules.
      devices: the devices to use; all of `jax.devices()` by default.

    Raises:
      UserError: if the devices don't fill the mesh.
    """

    def __init__(self, config: MeshConfig, devices: Sequence[jax.Device] | None = None):
        devices = list(jax.devices() if devices is None else devices)
        if config.model < 1:
            raise UserError(f"mesh: got model={config.model}, expected 1 or more")
        data = len(devices) // config.model if config.data == -1 else config.data
        if data * config.model != len(devices) or data < 1:
            raise UserError(
                f"mesh: got data={config.data} x model={config.model}, expected a product of "
                f"{len(devices)}, the number of devices"
            )
        self.rules = config.rules
        self.mesh = Mesh(
            np.asarray(devices).reshape(data, config.model),
            ("data", "model"),
            axis_types=(AxisType.Auto, AxisType.Auto),
        )

    def spec(self, names: Sequence[str | None], shape: Sequence[int]) -> PartitionSpec:
        """Mesh axes for dimensions of these logical names; one that doesn't divide stays whole.

        Raises:
          ValueError: for a logical name that has no rule.
        """
        table = dict(reversed(self.rules))
        axes: list[str | None] = []
        for name, size in zip(names, shape, strict=True):
            if name is not None and name not in table:
                raise ValueError(
                    f"no rule for the logical axis {name!r}, expected one of {sorted(table)}"
                )
            axis = None if name is None else table[name]
            used = axis is not None and axis in axes
            fits = axis is not None and size % self.mesh.shape[axis] == 0
            axes.append(axis if fits and not used else None)
        return PartitionSpec(*axes)

    def sharding(self, names: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
        """NamedSharding for dimensions of these logical names."""
        return NamedSharding(self.mesh, self.spec(names, shape))

    @property
    def replicated(self) -> NamedSharding:
        """The sharding that keeps a whole copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def tree_shardings(self, boxed: Any) -> Any:
        """Shardings of a tree of (abstract) arrays, some in `nn.LogicallyPartitioned` boxes.

        Arrays without a box (step counters, optimizer scalars) are replicated. The result has the
        structure of the unboxed tree.
        """

        def one(leaf):
            if isinstance(leaf, nn.LogicallyPartitioned):
                return self.sharding(leaf.names, leaf.value.shape)
            return self.replicated

        return jax.tree.map(one, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))

    def shard_batch(self, batch: Any) -> Any:
        """Puts a batch on the mesh, its rows (dim 0) split over `data`.

        Every process holds the batch whole, and its devices take the rows that are theirs.
        """

        def put(array):
            array = np.asarray(array)
            sharding = self.sharding(("batch", *([None] * (array.ndim - 1))), array.shape)
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        return jax.tree.map(put, batch)

    @contextlib.contextmanager
    def activate(self):
        """Makes `constrain` use this partitioner while a program is traced."""
        token = _ACTIVE.set(self)
        try:
            yield self
        finally:
            _ACTIVE.reset(token)

    def jit(self, function: Callable, **options: Any) -> Callable:
        """`jax.jit` whose trace sees this partitioner."""

        def traced(*args, **kwargs):
            with self.activate():
                return function(*args, **kwargs)

        traced.__name__ = getattr(function, "__name__", "program")
        return jax.jit(traced, **options)


_ACTIVE: contextvars.ContextVar[Partitioner | None] = contextvars.ContextVar("active", default=None)


def constrain(array: jax.Array, *names: str | None) -> jax.Array:
    """Fixes the sharding of an intermediate by logical names; nothing outside a partitioner."""
    partitioner = _ACTIVE.get()
    if partitioner is None or math.prod(partitioner.mesh.shape.values()) == 1:
        return array
    return jax.lax.with_sharding_constraint(array, partitioner.sharding(names, array.shape))
