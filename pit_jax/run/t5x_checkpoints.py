"""Reads T5X's checkpoints in both of its formats and writes them in one, without T5X.

A `checkpoint_N` folder holds the parameters under `target` in one of two formats: the legacy format
is a msgpack file `checkpoint` whose larger arrays are zarr stores beside it, and orbax's is in the
folder `state`. Parameters of a PPO stage are {'actor', 'critic'}; later stages start from the
actor's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath
from flax import serialization, traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from pit_jax.errors import UserError
from pit_jax.files import absolute, is_local
from pit_jax.method.ppo_step import RLState
from pit_jax.models.config import NetworkConfig
from pit_jax.models.weights import t5x as weights
from pit_jax.runtime import orbax_errors

_DATASET = "train_ds-000-of-001"  # T5X's name for the state of the only process's data
_NAME = re.compile(r"checkpoint_(\d+)")


def step_of(path: epath.Path) -> int:
    """Returns N for a folder `checkpoint_N`, -1 for any other."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def find(folder: epath.Path, step: int | None = None) -> epath.Path | None:
    """Finds the T5X checkpoint that a folder is, or the newest, or that of `step`, inside it."""
    if step_of(folder) >= 0:
        return folder
    found = [f for f in (folder.iterdir() if folder.is_dir() else ()) if step_of(f) >= 0]
    if step is not None:
        found = [f for f in found if step_of(f) == step]
    return max(found, key=step_of, default=None)


def load(
    checkpoint: epath.Path, network: NetworkConfig, language_model: Any, scalar_model: Any
) -> Any:
    """Loads the parameters that a stage starts from.

    Args:
      checkpoint: a folder `checkpoint_N`, of one of our stages or of T5X's decoder-only example.
      network: the network of the models.
      language_model: abstract parameters of a policy or PIT model, with shapes and shardings.
      scalar_model: abstract parameters of a reward model.

    Returns:
      parameters of the model whose names and shapes the checkpoint has.

    Raises:
      UserError: if there is no checkpoint, or if it holds another model.
    """
    read, stored = _open(checkpoint)
    models = language_model, scalar_model
    if weights.is_t5x_decoder(stored):
        weights.check_t5x_decoder(network)
        return _import(read, stored, language_model)
    prefix = "actor/" if any(name.startswith("actor/") for name in stored) else ""
    stored = {name.removeprefix(prefix): shape for name, shape in stored.items()
              if name.startswith(prefix)}  # fmt: skip
    for model in models:
        expected = traverse_util.flatten_dict(model, sep="/")
        if {name: x.shape for name, x in expected.items()} == stored:
            arrays = read({f"{prefix}{name}": x for name, x in expected.items()})
            arrays = {name: arrays[f"{prefix}{name}"] for name in expected}
            return traverse_util.unflatten_dict(arrays, sep="/")
    raise UserError(f"{checkpoint}: {_difference(stored, models)}")


def _import(read: Callable, stored: dict[str, tuple[int, ...]], language_model: Any) -> Any:
    """Reads the parameters of T5X's decoder-only example as ours."""
    mesh = jax.tree.leaves(language_model)[0].sharding.mesh
    whole = NamedSharding(mesh, PartitionSpec())
    arrays = read(
        {n: jax.ShapeDtypeStruct(shape, np.float32, sharding=whole) for n, shape in stored.items()}
    )
    params = weights.from_t5x_decoder(
        {name: np.asarray(array) for name, array in arrays.items()}, language_model
    )
    return jax.tree.map(
        lambda x, like: jax.make_array_from_callback(x.shape, like.sharding, lambda i: x[i]),
        params,
        language_model,
    )


def check_network(network: NetworkConfig) -> None:
    """Refuses a network of which T5X knows only a part.

    Raises:
      UserError: if it has adapters.
    """
    if network.lora:
        raise UserError(
            "NetworkConfig.lora: got adapters, expected None: T5X's checkpoints and its training "
            "have whole models"
        )


def save(folder: epath.Path, step: int, state: Any) -> epath.Path:
    """Writes a TrainState or RLState into `folder/checkpoint_N`, in T5X's orbax format.

    T5X restores it by `t5x.utils.RestoreCheckpointConfig`, with its optimizer and, in one process,
    its place in the data. A stage then continues where it was.

    Returns:
      the checkpoint's folder.

    Raises:
      UserError: if this folder is there already, or can't be written.
    """
    path = folder / f"checkpoint_{step}"
    if path.exists():
        raise UserError(f"{path}: is there already, expected a new folder")
    train = state.train
    moments = traverse_util.flatten_dict(serialization.to_state_dict(train.opt_state), sep="/")
    tree = {
        "target": train.params,
        "state": {
            "step": np.asarray(step, np.int32),
            "param_states": traverse_util.unflatten_dict(moments, sep="/"),
        },
    }
    if isinstance(state, RLState):
        tree["flax_mutables"] = {"ppo": ppo_part(state)}
    items = {"state": ocp.PyTreeCheckpointHandler(), "dataset": ocp.JsonCheckpointHandler(_DATASET)}
    options = ocp.CheckpointManagerOptions(step_prefix="checkpoint", create=True)
    orbax_errors.quieten()
    args = {"state": ocp.args.PyTreeSave(tree), "dataset": ocp.args.JsonSave({"batches": step})}
    try:
        with ocp.CheckpointManager(
            absolute(folder), options=options, item_handlers=items
        ) as manager:
            manager.save(step, args=ocp.args.Composite(**args))
    except Exception as error:
        if reason := orbax_errors.reason(error, path):
            raise UserError(f"{path}: can't be written: {reason}") from error
        raise
    return path


def ppo_part(state: Any) -> dict[str, Any]:
    """Returns what an RLState holds beside parameters and their optimizer, as nested dicts."""
    train = state.train
    return {
        "gradient_steps": train.step,
        "skipped": train.skipped,
        "skipped_in_row": train.skipped_in_row,
        "beta": state.beta,
        "moments": serialization.to_state_dict(state.moments),
    }


def _difference(stored: dict[str, tuple[int, ...]], models: tuple[Any, ...]) -> str:
    """Says how the checkpoint differs from the model that it is closest to."""
    tables = [
        {name: x.shape for name, x in traverse_util.flatten_dict(model, sep="/").items()}
        for model in models
    ]
    expected = max(tables, key=lambda table: len(table.items() & stored.items()))
    name = min(n for n in {*expected, *stored} if expected.get(n) != stored.get(n))
    return (
        f"doesn't fit this network: got {name} {stored.get(name, 'missing')}, "
        f"expected {expected.get(name, 'no such parameter')}"
    )


def _open(checkpoint: epath.Path):
    """Returns a function that reads parameters into abstract arrays by name, and all shapes."""
    if (checkpoint / "state").is_dir():
        return _open_orbax(checkpoint / "state")
    if (checkpoint / "checkpoint").exists():
        return _open_legacy(checkpoint)
    raise UserError(
        f"{checkpoint}: expected a T5X checkpoint, a file `checkpoint` or folder `state`"
    )


def _open_orbax(folder: epath.Path):
    folder = absolute(folder)
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    tree = checkpointer.metadata(folder).item_metadata.tree["target"]
    shapes = {n: tuple(x.shape) for n, x in traverse_util.flatten_dict(tree, sep="/").items()}

    def read(wanted):
        item = {"target": traverse_util.unflatten_dict(wanted, sep="/")}
        args = ocp.checkpoint_utils.construct_restore_args(item)
        restored = checkpointer.restore(
            folder, args=ocp.args.PyTreeRestore(item, restore_args=args, partial_restore=True)
        )
        return traverse_util.flatten_dict(restored["target"], sep="/")

    return read, shapes


def _open_legacy(folder: epath.Path):
    folder = absolute(folder)
    tree = serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    target = traverse_util.flatten_dict(tree["optimizer"]["target"], is_leaf=_is_store, sep="/")
    stored = {n: _store(folder, x) if isinstance(x, dict) else x for n, x in target.items()}

    def one(source, wanted):
        def part(index):
            return np.asarray(source[index], wanted.dtype)

        if isinstance(source, tensorstore.TensorStore):

            def part(index):  # only what this process needs
                return np.asarray(source[index].read().result(), wanted.dtype)

        return jax.make_array_from_callback(wanted.shape, wanted.sharding, part)

    def read(wanted):
        return {name: one(stored[name], abstract) for name, abstract in wanted.items()}

    return read, {name: tuple(x.shape) for name, x in stored.items()}


def _is_store(path: Any, leaf: Any) -> bool:
    del path
    return "kvstore" in leaf


def _store(folder: epath.Path, spec: dict[str, Any]) -> tensorstore.TensorStore:
    """Opens an array beside the msgpack file, which has the array's relative path."""
    name = spec["kvstore"]["path"]
    kvstore: dict[str, str] = {"driver": "file", "path": str(folder / name)}
    if not is_local(folder):
        bucket, _, path = str(folder / name).removeprefix("gs://").partition("/")
        kvstore = {"driver": "gcs", "bucket": bucket, "path": path}
    return tensorstore.open({"driver": spec["driver"], "kvstore": kvstore}).result()
