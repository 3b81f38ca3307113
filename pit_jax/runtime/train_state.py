"""Holds the state that a gradient step changes, and makes its optimizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from pit_jax.checked import at_least, checked

OPTIMIZERS = ("adamw", "adafactor")


@dataclasses.dataclass(frozen=True)
@checked
class OptimizerConfig:
    """Sets AdamW or Adafactor, with global-norm clipping, linear warm-up and decay.

    Attributes:
      kind: `adamw`, or `adafactor` (Shazeer and Stern, 2018) with T5X's settings: factored second
        moments, no first ones, steps in proportion to each parameter's size; clipping and size are
        those of all layers of a parameter together. It takes no b1, b2, epsilon or weight decay.
      learning_rate: the peak of the schedule.
      warmup_steps: gradient steps from `learning_rate / warmup_steps` to the peak.
      decay_steps: gradient steps of the whole schedule; 0 keeps the peak.
      final_fraction: share of the peak that the decay ends at.
      b1, b2: AdamW's moment decays.
      epsilon: AdamW's epsilon. PPO's stages set 1e-5, which damps the steps of small gradients. In
        fine-tuning a large model all gradients are small, and it would cut every step.
      weight_decay: AdamW's decoupled weight decay.
      clip_norm: largest global norm of a gradient; PPO clips actor and critic apart.
    """

    learning_rate: float = dataclasses.field(default=1e-5, metadata={"may_be_lowered": True})
    warmup_steps: int = 0
    decay_steps: int = 0
    final_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = dataclasses.field(default=1.0, metadata={"may_be_lowered": True})
    kind: str = "adamw"

    def __post_init__(self):
        if self.kind not in OPTIMIZERS:
            raise ValueError(
                f"OptimizerConfig: got kind={self.kind!r}, expected one of {OPTIMIZERS}"
            )
        if self.kind == "adafactor" and self.weight_decay:
            raise ValueError(
                f"OptimizerConfig: got weight_decay={self.weight_decay}, expected 0 with adafactor"
            )
        counts = ("warmup_steps", "decay_steps")
        at_least(self, 0, "learning_rate", "weight_decay", "clip_norm", *counts)
        at_least(self, 0, "final_fraction", "b1", "b2", "epsilon")
        for field in ("b1", "b2"):
            if getattr(self, field) >= 1:
                raise ValueError(
                    f"OptimizerConfig: got {field}={getattr(self, field)}, expected below 1"
                )

    def schedule(self) -> optax.Schedule:
        """Returns the learning rate as a function of the gradient step."""
        peak = self.learning_rate
        if self.decay_steps:
            after: optax.Schedule = optax.linear_schedule(
                peak, peak * self.final_fraction, max(self.decay_steps - self.warmup_steps, 1)
            )
        else:
            after = optax.constant_schedule(peak)
        if not self.warmup_steps:
            return after
        warmup = optax.linear_schedule(peak / self.warmup_steps, peak, self.warmup_steps)
        return optax.join_schedules([warmup, after], [self.warmup_steps])

    def build(self, clip_apart: bool = False) -> optax.GradientTransformation:
        """Returns the optax chain: clipping, then AdamW or Adafactor.

        Args:
          clip_apart: whether each entry of the parameters' dict is clipped by its own norm.
        """
        if self.kind == "adafactor":
            rule = optax.adafactor(self.schedule())
        else:
            rule = optax.adamw(
                self.schedule(),
                b1=self.b1,
                b2=self.b2,
                eps=self.epsilon,
                weight_decay=self.weight_decay,
            )
        clip = optax.clip_by_global_norm(self.clip_norm)
        if clip_apart:
            clip = clip_each(self.clip_norm)
        return optax.chain(clip, rule)


def clip_each(norm: float) -> optax.GradientTransformation:
    """Clips each entry of a dict of gradients by its own global norm."""
    clip = optax.clip_by_global_norm(norm)

    def update(updates, state, params=None):
        clipped = {name: clip.update(part, state, params)[0] for name, part in updates.items()}
        return clipped, state

    return optax.GradientTransformation(clip.init, update)


class TrainState(flax.struct.PyTreeNode):
    """Holds parameters with their optimizer.

    Attributes:
      step: int32, gradient steps taken or skipped.
      params: the parameters.
      opt_state: the optimizer's state.
      skipped: int32, steps skipped because loss or gradient wasn't finite.
      skipped_in_row: int32, steps skipped since the last step that wasn't.
      optimizer: the optax chain (static).
    """

    step: jax.Array
    params: Any
    opt_state: Any
    skipped: jax.Array
    skipped_in_row: jax.Array
    optimizer: optax.GradientTransformation = flax.struct.field(pytree_node=False)

    @classmethod
    def create(cls, params: Any, optimizer: optax.GradientTransformation) -> TrainState:
        """Makes a fresh state; the optimizer's moments get the parameters' logical-axis boxes."""
        counters = (jnp.zeros((), jnp.int32) for _ in range(3))
        step, skipped, in_row = counters
        return cls(step, params, optimizer.init(params), skipped, in_row, optimizer)

    @property
    def train(self) -> TrainState:
        """Itself: PPO's state has one within, and both are asked for it alike."""
        return self

    def split(self) -> tuple[Any, TrainState]:
        """Returns the parameters, which later stages start from, and the state without them."""
        return self.params, self.replace(params={})

    def join(self, model: Any) -> TrainState:
        """Puts parameters into a state that `split` left without; the inverse of `split`."""
        return self.replace(params=model)

    def apply_gradients(self, grads: Any, loss: jax.Array) -> tuple[TrainState, dict[str, Any]]:
        """Takes one optimizer step; if loss or gradient isn't finite, only counters change.

        Returns:
          the new state, and the metrics `grad_norm` (free of nan) and `skipped_steps`, each as a
          pair (sum, weight).
        """
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(loss)
        grads = jax.tree.map(lambda g: jnp.where(finite, g, 0), grads)
        updates, opt_state = self.optimizer.update(grads, self.opt_state, self.params)
        params = optax.apply_updates(self.params, updates)
        keep: Callable = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
        bad = 1 - finite.astype(jnp.int32)
        state = self.replace(
            step=self.step + 1,
            params=jax.tree.map(keep, params, self.params),
            opt_state=jax.tree.map(keep, opt_state, self.opt_state),
            skipped=self.skipped + bad,
            skipped_in_row=(self.skipped_in_row + 1) * bad,
        )
        weight = finite.astype(jnp.float32)
        metrics = {
            "grad_norm": (jnp.where(finite, norm, 0), weight),
            "skipped_steps": (bad.astype(jnp.float32), jnp.float32(1)),
        }
        return state, metrics
