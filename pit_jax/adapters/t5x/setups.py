"""Sets up the stage that T5X works on, and gives T5X's macros their values."""

from __future__ import annotations

import dataclasses

import optax
from etils import epath

from pit_jax.errors import UserError
from pit_jax.method.roles import ROLES
from pit_jax.run.config import RunConfig
from pit_jax.run.run import Run
from pit_jax.run.stages import rows_of
from pit_jax.run.t5x_checkpoints import check_network
from pit_jax.runtime import partitioning


class Setup(Run):
    """This is the run of the stage that T5X works on.

    Attributes:
      trained: the stage.
    """

    def __init__(self, config: RunConfig, stage: str):
        if own := [role for role in ROLES if getattr(config, role) is not None]:
            raise UserError(f"T5X: got RunConfig.{own[0]}, expected one network for all roles")
        check_network(config.network)
        self._model_dir = epath.Path(config.model_dir)
        directory = str(self._model_dir.parent)
        super().__init__(
            dataclasses.replace(config, model_dir=directory, mesh=partitioning.MeshConfig())
        )
        self.trained = self.stage(stage)

    def folder(self, name: str) -> epath.Path:
        """Returns MODEL_DIR for the stage itself; the run's other stages are its neighbours."""
        return self._model_dir if name == self.trained.name else super().folder(name)

    @property
    def task(self) -> str:
        """The name of the stage's task in seqio's registry."""
        return self.data.register(rows_of(self.trained))


_SETUPS: dict[str, Setup] = {}


def setup(config: RunConfig, stage: str) -> Setup:
    """Makes the Setup of a stage, once for the same arguments.

    Args:
      config: configuration of the run, with the MODEL_DIR that T5X is given as `model_dir`.
      stage: the stage's name in the run.
    """
    key = repr((config, stage))
    if key not in _SETUPS:
        _SETUPS[key] = Setup(config, stage)
    return _SETUPS[key]


def train_steps(setup: Setup) -> int:
    """Returns the number of steps of the stage, for TRAIN_STEPS."""
    return setup.trained.steps


def batch_size(setup: Setup) -> int:
    """Returns the number of rows of a batch of the stage, over all devices."""
    return setup.trained.batch_size


def task_name(setup: Setup) -> str:
    """Returns the name of the stage's seqio task, for MIXTURE_OR_TASK_NAME."""
    return setup.task


def task_feature_lengths(setup: Setup) -> dict[str, int]:
    """Returns the lengths of the task's features, for TASK_FEATURE_LENGTHS."""
    return setup.data.feature_lengths(rows_of(setup.trained))


def output_feature(setup: Setup) -> str:
    """Names a feature that has the vocabulary of responses, for output_vocab_feature_name."""
    features = task_feature_lengths(setup)
    return "targets" if "targets" in features else next(iter(features))


def learning_rate(setup: Setup) -> optax.Schedule:
    """Returns the stage's schedule, for T5X to show; the stage's optimizer has it already."""
    return setup.trained.optimizer.schedule()
