"""Turns T5X's training state into pit_jax's and back, and makes what T5X starts from."""

from __future__ import annotations

from typing import Any

import flax.core
import jax
import jax.numpy as jnp
import t5x.optimizers
import t5x.train_state
import t5x.utils
from flax import traverse_util

from pit_jax.method.ppo import Moments
from pit_jax.method.ppo_step import RLState
from pit_jax.run import stage_training, stages
from pit_jax.run.stages import RLStage, Stage
from pit_jax.run.t5x_checkpoints import ppo_part
from pit_jax.runtime.train_state import TrainState


class Optimizer(t5x.optimizers.OptaxWrapper):
    """Wraps any optax optimizer for T5X, even if T5X has no rule for its state.

    An array that has a parameter's name and dims is split as the parameter is; all others are
    whole on every device.
    """

    def derive_logical_axes(self, optimizer, param_logical_axes):
        """Returns the optimizer with logical names in place of arrays, None for whole arrays."""
        names = traverse_util.flatten_dict(flax.core.unfreeze(param_logical_axes))
        params = traverse_util.flatten_dict(flax.core.unfreeze(optimizer.target))

        def axes(path, array):
            name = next((path[i:] for i in range(len(path)) if path[i:] in names), None)
            return names[name] if name and array.ndim == params[name].ndim else None

        state = traverse_util.flatten_dict(optimizer.state_dict()["state"])
        step = ("step",)  # a number until it is traced
        found = {path: None if path == step else axes(path, x) for path, x in state.items()}
        return optimizer.restore_state(
            {
                "target": flax.core.unfreeze(param_logical_axes),
                "state": traverse_util.unflatten_dict(found),
            }
        )


class TrainStateInitializer(t5x.utils.TrainStateInitializer):
    """Starts a stage as pit_jax does, from the run's seed and from the stages that it builds on.

    Those are the run's other stages, in folders beside MODEL_DIR, or what the stage names by path.
    Their checkpoints may be T5X's or pit_jax's.
    """

    def __init__(self, optimizer_def, init_fn, input_shapes, partitioner, input_types=None):
        super().__init__(optimizer_def, init_fn, input_shapes, partitioner, input_types)
        self._model = init_fn.__self__
        network = self._model.setup.config.network
        stages.check_mesh(self._model.stage, network, partitioner.pit)

    def from_scratch(self, init_rng):
        """Makes the state of step 0; it ignores `init_rng` and takes SEED."""
        del init_rng
        setup, stage = self._model.setup, self._model.stage
        setup.place(self._partitioner.pit)
        state = super().from_scratch(setup.key("init", stage.task))
        started = stage_training.start_from(setup, stage, to_pit(state, stage))
        return from_pit(state, started)


def to_pit(state: t5x.train_state.FlaxOptimTrainState, stage: Stage) -> Any:
    """Turns T5X's state into pit_jax's: a TrainState, or an RLState for a PPO stage."""
    rl = isinstance(stage, RLStage)
    zero = jnp.zeros((), jnp.int32)
    counts = ("gradient_steps", "skipped", "skipped_in_row")
    ppo: Any = state.flax_mutables["ppo"] if rl else dict.fromkeys(counts, zero)
    train = TrainState(
        step=ppo["gradient_steps"],
        params=thaw(state.params),
        opt_state=thaw(state.param_states),
        skipped=ppo["skipped"],
        skipped_in_row=ppo["skipped_in_row"],
        # One object for all steps: each new one would compile them again.
        optimizer=getattr(state._optimizer.optimizer_def, "optax_optimizer", None),
    )
    if not rl:
        return train
    return RLState(train, ppo["beta"], Moments(**ppo["moments"]))


def from_pit(
    old: t5x.train_state.FlaxOptimTrainState, state: Any, steps: int = 0
) -> t5x.train_state.FlaxOptimTrainState:
    """Turns pit_jax's state into T5X's, `steps` after the state that `to_pit` was given."""
    rl = isinstance(state, RLState)
    train = state.train if rl else state
    optimizer = old._optimizer.replace(
        target=_like(old.params, train.params),
        state=t5x.optimizers.OptimizerState(
            step=old.step + steps, param_states=_like(old.param_states, train.opt_state)
        ),
    )
    if not rl:
        return old.replace(_optimizer=optimizer)
    return old.replace(
        _optimizer=optimizer, flax_mutables=_like(old.flax_mutables, {"ppo": ppo_part(state)})
    )


def _like(old: Any, new: Any) -> Any:
    """Puts the arrays of `new` into the structure of `old`, whose dicts may be frozen."""
    return jax.tree.unflatten(jax.tree.structure(old), jax.tree.leaves(new))


def thaw(tree: Any) -> Any:
    """Replaces the frozen dicts of a tree by plain dicts."""

    def one(x):
        return flax.core.unfreeze(x) if isinstance(x, flax.core.FrozenDict) else x

    return jax.tree.map(one, tree, is_leaf=lambda x: isinstance(x, flax.core.FrozenDict))
