"""Gives T5X a partitioner with pit_jax's axis rules."""

from __future__ import annotations

import dataclasses
import functools

import t5x.partitioning
from flax import traverse_util
from jax.sharding import PartitionSpec

from pit_jax.runtime import partitioning


class Partitioner(t5x.partitioning.PjitPartitioner):
    """Splits parameters and activations over T5X's mesh by pit_jax's axis rules.

    Args:
      base: the T5X partitioner whose settings of the mesh count.
      config: the mesh configuration whose rules count.
    """

    def __init__(
        self,
        base: t5x.partitioning.PjitPartitioner,
        config: partitioning.MeshConfig = partitioning.MeshConfig(),
    ):
        slices = base._ici_mesh_shape is not None and base._dcn_mesh_shape is not None
        rules, decode_rules = (
            tuple((name, _of_t5x(axes, slices)) for name, axes in table)
            for table in (config.rules, config.decode_rules)
        )
        super().__init__(
            num_partitions=base._num_partitions,
            model_parallel_submesh=base._model_parallel_submesh,
            params_on_devices=base._params_on_devices,
            backend=base._backend,
            ici_mesh_shape=base._ici_mesh_shape,
            dcn_mesh_shape=base._dcn_mesh_shape,
            logical_axis_rules=rules,
        )
        config = dataclasses.replace(config, rules=rules, decode_rules=decode_rules)
        self.pit = partitioning.Partitioner(config, mesh=self.mesh)

    def partition(self, fn, *args, **options):
        """Partitions a function as T5X does, with the rules active while it is traced."""

        @functools.wraps(fn)
        def traced(*arguments):
            with self.pit.activate():
                return fn(*arguments)

        return super().partition(traced, *args, **options)

    def get_mesh_axes(self, train_state):
        """Returns every array's mesh axes; a dim that they don't divide stays whole."""
        logical = train_state.as_logical_axes()
        options = {"keep_empty_nodes": True, "sep": "/"}
        shapes = traverse_util.flatten_dict(train_state.state_dict(), **options)
        names = traverse_util.flatten_dict(logical.state_dict(), **options)

        def axes(path):
            if isinstance(names[path], PartitionSpec):
                return self.pit.spec(names[path], shapes[path].shape)
            return names[path]

        found = traverse_util.unflatten_dict({path: axes(path) for path in names}, sep="/")
        return logical.restore_state(found)


def _of_t5x(axes: str | tuple[str, ...] | None, slices: bool) -> str | tuple[str, ...] | None:
    """Returns mesh axes by T5X's names: slices are replicas, and a single slice has no axis."""
    if axes is None:
        return None
    names = tuple(
        "replica" if axis == "slice" else axis
        for axis in ((axes,) if isinstance(axes, str) else axes)
        if slices or axis != "slice"
    )
    return names[0] if len(names) == 1 else names or None
