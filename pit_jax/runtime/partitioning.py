"""Makes meshes, and gives whole state trees their shardings by a table of logical axes.

Every parameter and activation names its dimensions with *logical* axes (T5X's vocabulary of names);
a table of rules maps those to the axes of the device mesh, `('slice', 'data', 'model')`. The same
table places parameters, optimizer state, KV cache, Experience and batches, so there is one source
for shardings.

Parameters and optimizer state are split over `data` (along `embed`) and `model`, and are whole on
every slice: only gradients cross the slow network between slices. Rows are split over `slice` and
`data`. A slice of this mesh may be a part of a TPU's slice.
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

from pit_jax.checked import checked
from pit_jax.errors import UserError
from pit_jax.runtime import processes

Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

AXES = ("slice", "data", "model")

# The residual stream names its dims `activation_batch`, `activation_length`, `activation_embed`.
DEFAULT_RULES: Rules = (
    ("batch", ("slice", "data")),
    ("vocab", "model"),
    ("embed", "data"),
    ("heads", "model"),
    ("kv_heads", "model"),
    ("kv", None),
    ("mlp", "model"),
    ("layers", None),
    ("length", None),
    ("activation_batch", ("slice", "data")),
    ("activation_length", None),
    ("activation_embed", None),
    ("norm", None),
    ("relpos_buckets", None),
    ("scalar", None),
    ("lora_rank", None),
)
# One token at a time, a row's activations are far smaller than a layer's weights: these stay where
# they are, and activations, split along `embed` as the weights are, go to them. The KV cache and
# attention stay split by rows.
DECODE_RULES: Rules = (
    ("activation_batch", "slice"),
    ("activation_embed", "data"),
)


@dataclasses.dataclass(frozen=True)
@checked
class MeshConfig:
    """Says how the device mesh is shaped, and which dimensions are split over which of its axes.

    Attributes:
      data: size of the data axis; -1 takes the devices that the other axes leave.
      model: size of the model axis (heads, mlp and vocabulary are split over it).
      slices: size of the slice axis: how many groups of devices have all parameters each. A slice
        of a TPU is one group or several, so this is a multiple of the number of slices.
      rules: pairs of a logical axis and the mesh axis, or axes, that it is split over; the first
        pair of a name counts.
      decode_rules: pairs that go before `rules` where one token is decoded at a time.
      sequence_parallel: whether the residual stream is split along its length over the model axis;
        else each device of that axis has a copy of it.
    """

    data: int = -1
    model: int = 1
    slices: int = 1
    rules: Rules = DEFAULT_RULES
    decode_rules: Rules = DECODE_RULES
    sequence_parallel: bool = False


class Partitioner:
    """Turns logical axis names into shardings on a mesh.

    Args:
      config: the mesh's shape and rules.
      devices: the devices to use; all of `jax.devices()` by default.
      mesh: a mesh to take as it is; the config's shape is then unused. An axis that this mesh
        lacks counts as an axis of size 1.

    Raises:
      UserError: if the devices don't fill the mesh.
    """

    def __init__(
        self,
        config: MeshConfig,
        devices: Sequence[jax.Device] | None = None,
        mesh: Mesh | None = None,
    ):
        rules = config.rules
        if config.sequence_parallel:
            rules = (("activation_length", "model"), *rules)
        self._table = dict(reversed(rules))
        self._decode_table = dict(reversed((*config.decode_rules, *rules)))
        self.mesh = mesh if mesh is not None else _make_mesh(config, devices)
        if mesh is None and devices is None:
            processes.meet(self.mesh)

    def _size(self, axis: str) -> int:
        return self.mesh.shape.get(axis, 1)

    @property
    def row_shards(self) -> int:
        """The number of parts that the rows of a batch are split into."""
        return self._size("slice") * self._size("data")

    @property
    def platform(self) -> str:
        """The platform of the devices: `cpu`, `gpu` or `tpu`."""
        return self.mesh.devices.flat[0].platform

    def spec(
        self, names: Sequence[str | None], shape: Sequence[int], decoding: bool = False
    ) -> PartitionSpec:
        """Returns the mesh axes of an array's dimensions, by their logical names.

        A dimension that the devices of its axes don't divide stays whole.

        Args:
          names: logical name of each dimension, None for a whole one.
          shape: size of each dimension.
          decoding: whether the rules of decoding one token at a time hold.

        Raises:
          ValueError: for a logical name that has no rule.
        """
        table = self._decode_table if decoding else self._table
        axes: list[str | tuple[str, ...] | None] = []
        taken: set[str] = set()
        for name, size in zip(names, shape, strict=True):
            if name is not None and name not in table:
                raise ValueError(
                    f"no rule for the logical axis {name!r}, expected one of {sorted(table)}"
                )
            rule = None if name is None else table[name]
            wanted = (rule,) if isinstance(rule, str) else rule or ()
            free = tuple(axis for axis in wanted if axis not in taken and self._size(axis) > 1)
            if size % math.prod(map(self._size, free)):
                free = ()
            taken.update(free)
            axes.append(free[0] if len(free) == 1 else free or None)
        return PartitionSpec(*axes)

    def sharding(
        self, names: Sequence[str | None], shape: Sequence[int], decoding: bool = False
    ) -> NamedSharding:
        """Returns `spec` as a NamedSharding on this mesh."""
        return NamedSharding(self.mesh, self.spec(names, shape, decoding))

    def row_sharding(self, shape: Sequence[int]) -> NamedSharding:
        """Returns the sharding that splits rows (dim 0) over slices and `data`, as batches are."""
        return self.sharding(("batch", *[None] * (len(shape) - 1)), shape)

    @property
    def replicated(self) -> NamedSharding:
        """The sharding that keeps a whole copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def tree_shardings(self, boxed: Any) -> Any:
        """Returns shardings for (abstract) arrays, some in `nn.LogicallyPartitioned` boxes.

        Arrays without a box (step counters, optimizer scalars) are replicated, and so are those
        whose box names other dims than they have (Adafactor's factored moments, which are small).
        The result has the structure of the unboxed tree.
        """

        def one(leaf):
            boxed = isinstance(leaf, nn.LogicallyPartitioned)
            if boxed and len(leaf.names) == leaf.value.ndim:
                return self.sharding(leaf.names, leaf.value.shape)
            return self.replicated

        return jax.tree.map(one, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))

    def shard_batch(self, batch: Any) -> Any:
        """Puts a batch on the mesh and splits its rows (dim 0) over slices and `data`.

        Every process holds the batch whole, and its devices take the rows that are theirs. Arrays
        that are on devices already stay as they are.
        """

        def put(array):
            if isinstance(array, jax.Array):
                return array
            array = np.asarray(array)
            sharding = self.row_sharding(array.shape)
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
        """Calls `jax.jit`, with this partitioner active while the function is traced."""

        def traced(*args, **kwargs):
            with self.activate():
                return function(*args, **kwargs)

        traced.__name__ = getattr(function, "__name__", "program")
        return jax.jit(traced, **options)


_ACTIVE: contextvars.ContextVar[Partitioner | None] = contextvars.ContextVar("active", default=None)
_DECODING: contextvars.ContextVar[bool] = contextvars.ContextVar("decoding", default=False)


def active() -> Partitioner | None:
    """Returns the partitioner of the program that is traced, None if it has but one device."""
    partitioner = _ACTIVE.get()
    return partitioner if partitioner is not None and partitioner.mesh.size > 1 else None


def platform() -> str:
    """Returns the platform of the program that is traced: `cpu`, `gpu` or `tpu`."""
    partitioner = _ACTIVE.get()
    return partitioner.platform if partitioner is not None else jax.default_backend()


@contextlib.contextmanager
def decoding():
    """Makes `constrain` follow the rules of decoding one token at a time."""
    token = _DECODING.set(True)
    try:
        yield
    finally:
        _DECODING.reset(token)


def constrain(array: jax.Array, *names: str | None) -> jax.Array:
    """Fixes an intermediate's sharding by logical names; without a partitioner it does nothing."""
    partitioner = active()
    if partitioner is None:
        return array
    sharding = partitioner.sharding(names, array.shape, _DECODING.get())
    return jax.lax.with_sharding_constraint(array, sharding)


def constrain_rows(tree: Any) -> Any:
    """Splits the rows (dim 0) of every array in a tree over the mesh, as those of batches."""
    partitioner = active()
    if partitioner is None:
        return tree
    shardings = jax.tree.map(lambda x: partitioner.row_sharding(x.shape), tree)
    return jax.lax.with_sharding_constraint(tree, shardings)


class OnHost:
    """Keeps a tree of arrays in the hosts' memory, and brings a copy to the devices when called."""

    def __init__(self, tree: Any):
        self._shardings = jax.tree.map(lambda x: x.sharding, tree)
        host = jax.tree.map(lambda s: s.with_memory_kind("pinned_host"), self._shardings)
        self._tree = jax.device_put(tree, host)

    def __call__(self, after: Any = None) -> Any:
        """Returns a copy on the devices, which goes when the caller drops it.

        Args:
          after: arrays to wait for first, since what computes them may need the memory.
        """
        jax.block_until_ready(after)
        return jax.device_put(self._tree, self._shardings)


def _make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None) -> Mesh:
    devices = list(jax.devices() if devices is None else devices)
    for field in ("model", "slices"):
        if getattr(config, field) < 1:
            raise UserError(f"mesh: got {field}={getattr(config, field)}, expected 1 or more")
    others = config.slices * config.model
    data = len(devices) // others if config.data == -1 else config.data
    if data * others != len(devices) or data < 1:
        raise UserError(
            f"mesh: got slices={config.slices} x data={config.data} x model={config.model}, "
            f"expected a product of {len(devices)}, the number of devices (`plan` and `data` "
            "need none)"
        )
    return Mesh(
        _arranged(devices, (config.slices, data, config.model)),
        AXES,
        axis_types=(AxisType.Auto,) * len(AXES),
    )


def _arranged(devices: list[jax.Device], shape: tuple[int, int, int]) -> np.ndarray:
    """Arranges devices: neighbours along an axis are neighbours on a TPU's interconnect."""
    if devices[0].platform != "tpu":
        return np.asarray(devices).reshape(shape)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if shape[0] % slices:
        raise UserError(
            f"mesh: got slices={shape[0]}, expected {slices}, the slices there are, or a multiple"
        )
    from jax.experimental import mesh_utils

    try:
        if slices == 1:
            return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        own = (shape[0] // slices, *shape[1:])
        return mesh_utils.create_hybrid_device_mesh(
            own, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    except ValueError as error:
        raise UserError(f"mesh: {shape} doesn't suit these slices: {error}") from error
