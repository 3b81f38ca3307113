"""Writes and reads orbax checkpoints of all that a stage needs to continue bit for bit.

A checkpoint has three items: `model` (the parameters that later stages start from), `rest`
(optimizer, critic, counters, controller) and `extra` (JSON: position in the data, best-so-far
record, seconds spent). A state's `split` and `join` say which part of it is the model. Checkpoints
are written asynchronously, committed atomically, and restored on any mesh.

Beside its values `extra` holds a digest of every array (digests.py) and of itself. What is read is
compared with them, on the devices, so no damage to the files is ever taken for other parameters.
Checkpoints of versions that wrote no digests are read with the checks that orbax has.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from pit_jax import files
from pit_jax.errors import Damaged, UserError
from pit_jax.runtime import digests, orbax_errors, processes

_NEWEST = 2  # checkpoints that are kept, so that there is one before a damaged one
_ARRAYS = "arrays"
# What is wrong with a checkpoint on some process, the worst last.
_WHOLE, _DAMAGED, _UNREADABLE, _UNFIT = range(4)
_TOLD = {
    _DAMAGED: "another process found it so, and says why",
    _UNREADABLE: "another process can't read it, and says why",
    _UNFIT: "another process found it so, and says why",
}
# What other trouble than damage looks like: of memory, of rights, of the way to a bucket.
_ELSEWHERE = re.compile(
    r"RESOURCE_EXHAUSTED|UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|ABORTED|"
    r"CANCELLED|timed out|Too many open files|Permission denied"
)


class Checkpoints:
    """Keeps the checkpoints of one stage: the two newest, and others that are asked for.

    Which are kept is decided from what is on disk: the two newest ones, the best one as each of
    these has it, and multiples of `keep_every`. The others go once a new one is whole.

    Args:
      directory: the stage's `checkpoints` folder.
      keep_every: every checkpoint whose step is a multiple of this is kept too, for curriculum
        rounds that sample from intermediate checkpoints; 0 keeps none of them.
      read_only: whether the folder must not be created.
      stage: the stage whose checkpoints are read, where that is known: those of another are damage.
        They are written as those of the folder's own.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        keep_every: int = 0,
        read_only: bool = False,
        stage: str = "",
    ):
        self.directory = files.absolute(epath.Path(directory))
        self._keep_every, self._stage = keep_every, stage
        self._best: dict[int, int | None] = {}  # step -> the best one as its checkpoint has it
        self._saving: int | None = None
        self._missed = ""  # why the newest one couldn't be written
        orbax_errors.quieten()
        self._manager = self._opened(read_only)

    def _opened(self, read_only: bool = False) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self.directory,
            item_names=("model", "rest", "extra"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_Preserve(self._kept),
                create=not read_only,
                read_only=read_only,
                cleanup_tmp_directories=not read_only,
                enable_async_checkpointing=True,
                lightweight_initialize=True,
            ),
        )

    def latest_step(self) -> int | None:
        """Returns the step of the newest whole checkpoint, None if there is none."""
        return self._manager.latest_step()

    def all_steps(self) -> list[int]:
        """Returns the steps of all whole checkpoints."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: Any,
        extra: dict[str, Any],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """Starts to write a checkpoint; does nothing if there is one of this step already.

        If it can't be written, as on a full disk, a line says so. The checkpoints before it stay
        as they are, and the next one is tried as if nothing had happened; see `check_saved`.

        Args:
          step: number of the last step done.
          state: a TrainState or RLState.
          extra: JSON values to keep with it. If there is a step in `extra["best"]`, its checkpoint
            is kept as long as this one.
          before: brings to disk what has to be there before; its OSErrors count as the save's.
        """
        self._settle()
        if step in self._manager.all_steps():
            return
        model, rest = state.split()
        rest = digests.names_of(rest)
        arrays = {"model": digests.of(model), "rest": digests.of(rest)}
        self._saving = step
        self._best[step] = _best_step(extra)
        content = {"extra": extra, _ARRAYS: arrays, "stage": self.directory.parent.name}
        args = ocp.args.Composite(
            model=ocp.args.StandardSave(model),
            rest=ocp.args.StandardSave(rest),
            extra=ocp.args.JsonSave(files.sealed(content, str(step))),
        )
        self._attempt(before)
        if self._saving is not None:
            self._attempt(lambda: self._manager.save(step, args=args, force=True))

    def restore(self, state: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Reads a checkpoint into the shapes and shardings of `state` (arrays or abstract arrays).

        The newest checkpoint is read if `step` is None.

        Returns:
          the state, and the JSON values that were kept with it.

        Raises:
          Damaged: if the checkpoint isn't what was saved.
          UserError: if it isn't there, can't be read, or doesn't fit the state.
        """
        step = self.latest_step() if step is None else step
        model, rest = state.split()
        found, extra = self._read(step, {"model": model, "rest": digests.names_of(rest)})
        return _like(rest, found["rest"]).join(found["model"]), extra

    def restore_newest(self, state: Any) -> tuple[Any, dict[str, Any], list[str]]:
        """Reads the newest checkpoint that isn't damaged, as `restore` does.

        Those after it are set aside: they are renamed to STEP.damaged, and never deleted.

        Returns:
          the state, the JSON values that were kept with it, and a line for each that is set aside.

        Raises:
          Damaged: if all are damaged, none of which is renamed then.
          UserError: as `restore`.
        """
        damaged: dict[int, Damaged] = {}
        for step in reversed(self.all_steps()):
            try:
                state, extra = self.restore(state, step)
            except Damaged as error:
                damaged[step] = error
                continue
            lines = [self._set_aside(*each) for each in damaged.items()]
            if lines:
                self._manager.reload()
            return state, extra, lines
        if damaged:
            raise next(iter(damaged.values()))
        self.check_step(None)
        raise AssertionError

    def restore_model(self, model: Any, step: int | None = None) -> Any:
        """Reads only the model's parameters, into the shapes and shardings of `model`.

        Raises:
          Damaged: if the checkpoint isn't what was saved.
          UserError: if it isn't there, can't be read, or doesn't fit the model.
        """
        step = self.latest_step() if step is None else step
        return self._read(step, {"model": model})[0]["model"]

    def wait(self) -> None:
        """Returns when every started checkpoint is committed, or a line says why it isn't."""
        self._settle()

    def check_saved(self) -> None:
        """Waits as `wait`, and refuses to go on if the newest checkpoint couldn't be written.

        Raises:
          UserError: why it couldn't.
        """
        self._settle()
        if self._missed:
            raise UserError(self._missed)

    def close(self) -> None:
        """Waits as `wait`, then lets go of the folder."""
        self._settle()
        self._manager.close()

    def check_step(self, step: int | None) -> None:
        """Refuses a step that has no checkpoint.

        Raises:
          UserError: if it has none.
        """
        if step is None or step not in self._manager.all_steps():
            have = ", ".join(map(str, self.all_steps())) or "none"
            raise UserError(f"{self.directory}: no checkpoint of step {step}, there is: {have}")

    # --- writing ----------------------------------------------------------------------------------

    def _kept(self, steps: Sequence[int]) -> set[int]:
        """Which of these checkpoints are kept."""
        newest = sorted(steps)[-_NEWEST:]
        best = {self._best_as_of(step) for step in newest}
        multiples = {s for s in steps if self._keep_every and s % self._keep_every == 0}
        return {step for step in steps if step in {*newest, *best, *multiples}}

    def _best_as_of(self, step: int) -> int | None:
        if step not in self._best:
            try:
                self._best[step] = _best_step(self._record(step)[0])
            except (OSError, ValueError):
                self._best[step] = None
        return self._best[step]

    def _settle(self) -> None:
        """Waits for the checkpoint that is being written."""
        if self._saving is not None:
            self._attempt(self._manager.wait_until_finished)
        if self._saving is not None:
            self._saving, self._missed = None, ""

    def _attempt(self, action: Callable[[], Any]) -> None:
        """Does a part of a save; if that fails on any process, the save is given up on all."""
        reason = ""
        try:
            action()
        except Exception as error:
            found = orbax_errors.reason(error, self.directory)
            if found is None:
                raise
            reason = found
        if not processes.any_process(bool(reason)):
            return
        step, self._saving = self._saving, None
        assert step is not None
        self._best.pop(step, None)
        with contextlib.suppress(Exception):  # it may wait for what has failed, and raise it again
            self._manager.close()
        if processes.is_first():
            orbax_errors.remove_unfinished(self._manager.directory, step)
        self._manager = self._opened()
        kept = self.latest_step()
        left = "there is none before it" if kept is None else f"the one of step {kept} is kept"
        self._missed = (
            f"{self.directory}: the checkpoint of step {step} couldn't be written, {left}: "
            f"{reason or 'another process says why'}"
        )
        if reason:
            print(self._missed, file=sys.stderr, flush=True)

    def _set_aside(self, step: int, error: Damaged) -> str:
        """Renames a damaged checkpoint; returns a line about it."""
        source = self._manager.directory / str(step)
        targets = [source.with_name(f"{step}.damaged{n}") for n in ("", *map(str, range(2, 100)))]
        target = next(each for each in targets if not each.exists())
        processes.wait()  # all have chosen the name
        if processes.is_first():
            files.move(source, target)
        processes.wait()
        self._best.pop(step, None)
        return f"the checkpoint of step {step} is damaged, now {target.name}: {error.reason}"

    # --- reading ----------------------------------------------------------------------------------

    def _record(self, step: int) -> tuple[Any, dict[str, dict[str, str]]]:
        """A checkpoint's JSON values and digests; no digests if it was written without.

        Raises:
          ValueError: if the file is damaged.
          OSError: if it can't be read.
        """
        text = (self._manager.directory / str(step) / "extra" / "metadata").read_bytes()
        try:
            found, is_sealed = files.unsealed(text, str(step))
        except files.NotSealed as error:
            raise files.NotSealed(f"extra: {error}") from None
        if (_ARRAYS in found) != is_sealed:  # one of the two names is damaged
            raise files.NotSealed("extra: has digests of arrays or of itself, not both")
        if self._stage and (stage := found.get("stage", self._stage)) != self._stage:
            raise files.NotSealed(f"extra: it is that of stage {stage}")
        if is_sealed:
            return found["extra"], found[_ARRAYS]
        if found.get("step") != step:  # another JSON file in its place
            raise files.NotSealed(f"extra: got step {found.get('step')!r}, expected {step}")
        return found, {}

    def _read(self, step: int | None, wanted: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        """Reads items into the shapes of `wanted`; returns them and the JSON values.

        All processes find the same: none goes on to a computation of all when another can't.
        """
        self.check_step(step)
        assert step is not None
        kind, reason, found, extra = _WHOLE, "", {}, None
        arrays: dict[str, dict[str, str]] = {}
        try:
            extra, arrays = self._record(step)
            misfits = _misfits(wanted, arrays)
            kind, reason = (_UNFIT, misfits) if misfits else (_WHOLE, "")
            if not misfits:
                found = {name: self._item(step, name, tree) for name, tree in wanted.items()}
        except Exception as error:
            kind, reason = _kind_of(error, bool(arrays))
            if kind == _WHOLE:
                raise
        if (worst := int(processes.largest(kind)) if jax.process_count() > 1 else kind) != _WHOLE:
            raise self._refusal(step, worst, reason if kind == worst else _TOLD[worst])
        for name in wanted if arrays else ():
            now, saved = digests.of(found[name]), arrays[name]
            if changed := [array for array in saved if now[array] != saved[array]]:
                reason = f"other values of {name}{changed[0]} than were saved"
                raise self._refusal(step, _DAMAGED, reason)
        return found, extra

    def _item(self, step: int, name: str, tree: Any) -> Any:
        # Not by the manager, in which a process waits for those that have failed.
        handler = ocp.StandardCheckpointHandler()
        args = ocp.args.StandardRestore(_abstract(tree))
        return handler.restore(self._manager.directory / str(step) / name, args=args)

    def _refusal(self, step: int, kind: int, reason: str) -> UserError:
        where, stage = f"{self.directory}/{step}", self.directory.parent
        if kind == _UNFIT:
            return UserError(f"{where}: the checkpoint doesn't fit this network: {reason}")
        if kind == _UNREADABLE:
            return UserError(f"{where}: the checkpoint can't be read: {reason}")
        steps = self.all_steps()
        remedy = f"delete {stage} to train the stage again"
        if step == steps[-1] and len(steps) > 1 and (stage / "result.json").exists():
            remedy = f"delete {stage}/result.json to train on from the one of step {steps[-2]}"
        return Damaged(
            f"{where}: the checkpoint is damaged; bring it back from a copy, or {remedy} "
            f"({reason})",
            reason,
        )


class _Preserve:
    """Orbax's way to ask which checkpoints are kept."""

    def __init__(self, kept: Callable[[Sequence[int]], set[int]]):
        self._kept = kept

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        kept = self._kept([each.step for each in checkpoints])
        return [each.step in kept for each in checkpoints]


def _best_step(extra: Any) -> int | None:
    best = extra.get("best") if isinstance(extra, dict) else None
    step = best.get("step") if isinstance(best, dict) else None
    return int(step) if isinstance(step, int | float) else None


def _misfits(wanted: dict[str, Any], arrays: dict[str, dict[str, str]]) -> str:
    """What of a checkpoint with these digests has another name, type or shape; "" if nothing."""
    for item, tree in wanted.items() if arrays else ():
        here = {name: digests.kind_of(x) for name, x in digests.names_of(tree).items()}
        saved = {name: text.split()[0] for name, text in arrays[item].items()}
        for name in dict.fromkeys([*here, *saved]):
            if here.get(name) != saved.get(name):
                got, expected = saved.get(name, "nothing"), here.get(name, "nothing")
                return f"{item}{name}: got {got}, expected {expected}"
    return ""


def _kind_of(error: Exception, fits: bool) -> tuple[int, str]:
    """What a failed read tells of a checkpoint, and why; _WHOLE if it isn't to blame.

    Args:
      error: what was raised.
      fits: whether names, types and shapes are known to be right.
    """
    text = f"{error}{error.__cause__ or ''}"
    lines = str(error).splitlines() or [repr(error)]
    reason = re.split(r"\. (?:See full|Truncating)| \[tensorstore_spec", lines[0])[0][:200]
    if "RESOURCE_EXHAUSTED" in text or isinstance(error, MemoryError):
        return _WHOLE, ""
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return _DAMAGED, reason
    if isinstance(error, OSError) or _ELSEWHERE.search(text):
        return _UNREADABLE, reason
    if fits or not isinstance(error, ValueError | KeyError):
        return _DAMAGED, reason
    # Without digests, what orbax says is all that is known.
    damaged = isinstance(error, UnicodeDecodeError | files.NotSealed) or re.match(
        r"DATA_LOSS|OUT_OF_RANGE|NOT_FOUND|FAILED_PRECONDITION|Expecting|Extra data", reason
    )
    return (_DAMAGED if damaged else _UNFIT), reason


def _like(tree: Any, arrays: dict[str, Any]) -> Any:
    # By name: a dict of arrays comes back sorted, not in the order of the state's fields.
    names = digests.names_of(tree)
    return jax.tree.unflatten(jax.tree.structure(tree), [arrays[name] for name in names])


def _abstract(tree: Any) -> Any:
    def one(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)

    return jax.tree.map(one, tree)
