"""Describes what a PPO step is done with: the networks, and how an episode ends and scores."""

from __future__ import annotations

import dataclasses

import numpy as np

from pit_jax.data.vocabularies.base import EOS_ID
from pit_jax.models.config import NetworkConfig


@dataclasses.dataclass(frozen=True, eq=False)
class Environment:
    """How an episode ends and what it scores.

    Attributes:
      response_length: R, the most tokens of a response, EOS included.
      pooling: how the reward model's score is read.
      anchor: the reward model's score that counts as 0: its losses leave that open, so a constant
        added to the model adds to both and changes nothing.
      difference: whether the gap is the score less that of y_ref (Appendix C); `anchor` is then 0.
      allowed_V: bool, ids that may be sampled; None allows all.
      ends: the ids that end a response; the reward model reads each as EOS, which it has learned.
    """

    response_length: int
    pooling: str
    anchor: float = 0.0
    difference: bool = False
    allowed_V: np.ndarray | None = None
    ends: tuple[int, ...] = (EOS_ID,)


@dataclasses.dataclass(frozen=True)
class Networks:
    """The networks of a PPO step; those of the KL reference are the actor's.

    Attributes:
      actor: of M_P or M_PIT.
      critic: of what the critic starts from.
      reward: of the reward model.
    """

    actor: NetworkConfig
    critic: NetworkConfig
    reward: NetworkConfig

    @classmethod
    def same(cls, network: NetworkConfig) -> Networks:
        """Makes those of one network for all."""
        return cls(network, network, network)
