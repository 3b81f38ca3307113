"""Trains by PPO in place of T5X's own training step."""

from __future__ import annotations

import t5x.optimizers
import t5x.trainer
import t5x.utils

from pit_jax.adapters.t5x.models import Batch, averages
from pit_jax.adapters.t5x.states import from_pit, thaw, to_pit
from pit_jax.errors import UserError
from pit_jax.method import curriculum
from pit_jax.run import stage_training
from pit_jax.run.references import sample_references
from pit_jax.runtime.loop import check_finite


class PPOTrainer(t5x.trainer.Trainer):
    """Trains a PPO stage, all of its rounds, for `train.trainer_cls`.

    A step is the package's own: episodes, then epochs of minibatches. Before a round whose
    references are sampled, the trainer samples them into the reference store in MODEL_DIR; the
    batches of `get_dataset` wait for that.
    """

    def __init__(
        self, model, train_state, partitioner, eval_names, summary_dir, train_state_axes, rng
    ):
        super().__init__(
            model,
            train_state,
            partitioner,
            eval_names,
            summary_dir,
            train_state_axes,
            rng,
            learning_rate_fn=model.stage.optimizer.schedule(),
            num_microbatches=None,
        )
        if not isinstance(model.optimizer_def, t5x.optimizers.OptaxWrapper):
            kind = type(model.optimizer_def).__name__
            raise UserError(f"optimizer_def: got {kind}, expected an optax one for PPO")
        self._setup, self._stage = model.setup, model.stage
        self._setup.place(partitioner.pit)
        self._step = stage_training.make_ppo_step(self._setup, self._stage)
        step = int(t5x.utils.get_local_data(train_state.step))
        for number, round_, _, _ in curriculum.locate(self._stage.rounds, step):
            self._sample_references(number, round_)
            break

    @property
    def _partitioned_train_step(self):
        def step(train_state, batch):
            state, metrics, _ = self._step(
                to_pit(train_state, self._stage), batch, train_state.step
            )
            return from_pit(train_state, state, steps=1), averages(metrics)

        return step

    def compile_train(self, batch: Batch) -> None:
        """Does nothing, since the two programs of a step compile when they first run."""

    def train(self, batch_iter, num_steps: int, start_step: int | None = None):
        """Trains `num_steps` steps, as T5X asks for, from round to round.

        Raises:
          UserError: if the rounds have fewer steps.
          NotFiniteError: after ten steps in a row without a finite gradient.
        """
        start = int(self.train_state.step) if start_step is None else start_step
        rounds = list(curriculum.locate(self._stage.rounds, start))
        if start + num_steps > self._stage.steps:
            raise UserError(
                f"stage {self._stage.name}: got TRAIN_STEPS={start + num_steps} or more, expected "
                f"at most {self._stage.steps}, the steps of its rounds"
            )
        for number, round_, first, last in rounds:
            begin, stop = max(start, first), min(start + num_steps, last)
            if begin < stop:
                self._sample_references(number, round_)
                summary = super().train(batch_iter, stop - begin, begin)
        check_finite(to_pit(self.train_state, self._stage), start + num_steps)
        return summary

    def _sample_references(self, number: int, round_: curriculum.Round) -> None:
        if round_.is_sampled:
            actor = thaw(self.train_state.params)["actor"]
            sample_references(self._setup, self._stage, number, round_, actor)
