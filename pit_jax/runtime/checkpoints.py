"""Writes and reads orbax checkpoints of all that a stage needs to continue bit for bit.

A checkpoint has three items: `model` (the parameters that later stages start from), `rest`
(optimizer, critic, counters, controller) and `extra` (JSON: position in the data, best-so-far
record, seconds spent). A state's `split` and `join` say which part of it is the model. Checkpoints
are written asynchronously, committed atomically, and restored on any mesh.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies

from pit_jax.errors import UserError
from pit_jax.files import absolute


class Checkpoints:
    """Keeps the checkpoints of one stage: the newest, and others that are asked for.

    Args:
      directory: the stage's `checkpoints` folder.
      best_metric: name of a value in `extra`; the checkpoint where it is highest is kept too.
      keep_every: every checkpoint whose step is a multiple of this is kept too, for curriculum
        rounds that sample from intermediate checkpoints; 0 keeps none of them.
      read_only: whether the folder must not be created.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        best_metric: str | None = None,
        keep_every: int = 0,
        read_only: bool = False,
    ):
        keep: list[Any] = [policies.LatestN(1)]
        if best_metric:
            keep.append(
                policies.BestN(
                    # Of equal ones the first, as the training loop's record of the best has it.
                    get_metric_fn=lambda metrics: (metrics[best_metric], -metrics["step"]),
                    n=1,
                    reverse=False,
                )
            )
        if keep_every:
            keep.append(policies.EveryNSteps(keep_every))
        self._best_metric = best_metric
        self.directory = absolute(epath.Path(directory))
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_names=("model", "rest", "extra"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep),
                create=not read_only,
                read_only=read_only,
                enable_async_checkpointing=True,
            ),
        )

    def latest_step(self) -> int | None:
        """Returns the step of the newest whole checkpoint, None if there is none."""
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """Returns the steps of all whole checkpoints."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, extra: dict[str, Any]) -> None:
        """Starts to write a checkpoint; does nothing if there is one of this step already.

        Args:
          step: number of the last step done.
          state: a TrainState or RLState.
          extra: JSON values to keep with it.
        """
        if step in self._manager.all_steps():
            return
        model, rest = state.split()
        metrics = None
        if self._best_metric:
            metrics = {self._best_metric: extra[self._best_metric], "step": step}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                model=ocp.args.StandardSave(model),
                rest=ocp.args.StandardSave(_arrays(rest)),
                extra=ocp.args.JsonSave(extra),
            ),
            metrics=metrics,
            force=True,
        )

    def restore(self, state: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Reads a checkpoint into the shapes and shardings of `state` (arrays or abstract arrays).

        The newest checkpoint is read if `step` is None.

        Returns:
          the state, and the JSON values that were kept with it.

        Raises:
          UserError: if the checkpoint doesn't fit the state.
        """
        step = self.latest_step() if step is None else step
        model, rest = state.split()
        args = ocp.args.Composite(
            model=ocp.args.StandardRestore(_abstract(model)),
            rest=ocp.args.StandardRestore(_abstract(_arrays(rest))),
            extra=ocp.args.JsonRestore(),
        )
        restored = self._read(step, args)
        return _like(rest, restored.rest).join(restored.model), restored.extra

    def restore_model(self, model: Any, step: int | None = None) -> Any:
        """Reads only the model's parameters, into the shapes and shardings of `model`.

        Raises:
          UserError: if the checkpoint isn't there or doesn't fit the model.
        """
        step = self.latest_step() if step is None else step
        args = ocp.args.Composite(model=ocp.args.StandardRestore(_abstract(model)))
        return self._read(step, args).model

    def wait(self) -> None:
        """Returns when every started checkpoint is committed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until every checkpoint is committed, then lets go of the folder."""
        self._manager.wait_until_finished()
        self._manager.close()

    def check_step(self, step: int | None) -> None:
        """Refuses a step that has no checkpoint.

        Raises:
          UserError: if it has none.
        """
        if step is None or step not in self._manager.all_steps():
            have = ", ".join(map(str, self._manager.all_steps())) or "none"
            raise UserError(f"{self.directory}: no checkpoint of step {step}, there is: {have}")

    def _read(self, step, args):
        self.check_step(step)
        try:
            return self._manager.restore(step, args=args)
        except Exception as error:
            if (refusal := self._refusal(step, error)) is None:
                raise
            _forget_reads()
            raise UserError(refusal) from error

    def _refusal(self, step: int, error: Exception) -> str | None:
        """What to tell of a checkpoint that can't be read; None if it isn't to blame."""
        # orbax raises a plain Exception where TensorStore fails to read an array.
        if type(error) is not Exception and not isinstance(
            error, ValueError | KeyError | FileNotFoundError
        ):
            return None
        if "RESOURCE_EXHAUSTED" in f"{error}{error.__cause__}":
            return None
        reason = re.split(r"\. (?:See full|Truncating)", str(error).splitlines()[0])[0][:200]
        if isinstance(error, ValueError | KeyError) and not (
            isinstance(error, UnicodeDecodeError | json.JSONDecodeError)
            or re.match(r"DATA_LOSS|OUT_OF_RANGE|NOT_FOUND|FAILED_PRECONDITION", reason)
        ):
            return f"{self.directory}/{step}: the checkpoint doesn't fit this network: {reason}"
        return (
            f"{self.directory}/{step}: the checkpoint is damaged; bring it back from a copy, or "
            f"delete {self.directory.parent} to train the stage again ({reason})"
        )


def _forget_reads() -> None:
    """Silences the reads that a failed one leaves waiting: each would print a traceback."""
    hook = sys.unraisablehook

    def quiet(unraisable):
        if "_read_array_index" not in repr(unraisable.object):
            hook(unraisable)

    sys.unraisablehook = quiet


def _arrays(tree: Any) -> dict[str, Any]:
    """Returns a state's arrays as a flat dict, independent of the classes that hold them."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _like(tree: Any, arrays: dict[str, Any]) -> Any:
    # By name: a dict of arrays comes back sorted, not in the order of the state's fields.
    return jax.tree.unflatten(jax.tree.structure(tree), [arrays[name] for name in _arrays(tree)])


def _abstract(tree: Any) -> Any:
    def one(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

    return jax.tree.map(one, tree)
