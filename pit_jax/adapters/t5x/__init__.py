"""Lets T5X train, infer and evaluate every stage: `python -m t5x.train` and its like.

Network, losses, tasks, feature converters, axis rules, decoding and PPO are the package's own;
here they get the shapes that T5X expects. `gin/t5x/` binds them, and `docs/t5x.md` tells which
command is for which need. No other folder imports t5x.
"""

try:
    import t5x.trainer  # noqa: F401 - to see whether it can be
except ImportError as missing:  # T5X is on no package registry
    raise ImportError(
        f"pit_jax.adapters.t5x: {missing}; expected T5X from its repository and the extra `t5x` of "
        "pit_jax, see docs/t5x.md"
    ) from missing

from pit_jax.adapters.t5x.batches import get_dataset, get_eval_datasets
from pit_jax.adapters.t5x.models import (
    GapRewardModel,
    PairwiseRewardModel,
    PPOModel,
    SupervisedModel,
    model,
)
from pit_jax.adapters.t5x.partitioner import Partitioner
from pit_jax.adapters.t5x.setups import (
    Setup,
    batch_size,
    learning_rate,
    output_feature,
    setup,
    task_feature_lengths,
    task_name,
    train_steps,
)
from pit_jax.adapters.t5x.states import TrainStateInitializer
from pit_jax.adapters.t5x.trainer import PPOTrainer

__all__ = [
    "GapRewardModel",
    "PPOModel",
    "PPOTrainer",
    "PairwiseRewardModel",
    "Partitioner",
    "Setup",
    "SupervisedModel",
    "TrainStateInitializer",
    "batch_size",
    "get_dataset",
    "get_eval_datasets",
    "learning_rate",
    "model",
    "output_feature",
    "setup",
    "task_feature_lengths",
    "task_name",
    "train_steps",
]
