"""The stage that T5X works on, and what T5X's macros get from its configuration."""

from __future__ import annotations

import dataclasses

import optax
from etils import epath

from pit_jax.run.config import RunConfig
from pit_jax.run.run import Run
from pit_jax.runtime import partitioning


class Setup(Run):
    """The stage that T5X works on, in its run.

    Attributes:
      trained: the stage.
    """

    def __init__(self, config: RunConfig, stage: str):
        self._model_dir = epath.Path(config.model_dir)
        directory = str(self._model_dir.parent)
        super().__init__(
            dataclasses.replace(config, model_dir=directory, mesh=partitioning.MeshConfig())
        )
        self.trained = self.stage(stage)

    def folder(self, name: str) -> epath.Path:
        """MODEL_DIR for the stage itself; the others of the run are its neighbours."""
        return self._model_dir if name == self.trained.name else super().folder(name)

    @property
    def task(self) -> str:
        """Name of the stage's task in seqio's registry."""
        return self.data.register(self.trained.task)


_SETUPS: dict[str, Setup] = {}


def setup(config: RunConfig, stage: str) -> Setup:
    """The Setup of a stage; the same one for the same arguments.

    Args:
      config: of the run, whose `model_dir` is the MODEL_DIR that T5X is given.
      stage: its name in the run.
    """
    key = repr((config, stage))
    if key not in _SETUPS:
        _SETUPS[key] = Setup(config, stage)
    return _SETUPS[key]


def train_steps(setup: Setup) -> int:
    """Steps of the stage, for TRAIN_STEPS."""
    return setup.trained.steps


def batch_size(setup: Setup) -> int:
    """Rows of a batch of the stage over all devices."""
    return setup.trained.batch_size


def task_name(setup: Setup) -> str:
    """The registered seqio task of the stage, for MIXTURE_OR_TASK_NAME."""
    return setup.task


def task_feature_lengths(setup: Setup) -> dict[str, int]:
    """Lengths of the task's features, for TASK_FEATURE_LENGTHS."""
    return setup.data.feature_lengths(setup.trained.task)


def output_feature(setup: Setup) -> str:
    """A feature of the task whose vocabulary responses are in, for output_vocab_feature_name."""
    features = task_feature_lengths(setup)
    return "targets" if "targets" in features else next(iter(features))


def learning_rate(setup: Setup) -> optax.Schedule:
    """The stage's schedule. T5X only shows it: the optimizer of the stage has its own."""
    return setup.trained.optimizer.schedule()
