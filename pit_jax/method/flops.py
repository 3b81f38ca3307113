"""Counts the model FLOPs of training and decoding, and knows the peaks of devices.

The plan and the training loop count with the same functions. Padding counts, because a device
computes it; what is computed twice to save memory doesn't.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pit_jax.models.config import NetworkConfig

if TYPE_CHECKING:
    from pit_jax.method.ppo import PPOConfig

# Peak bfloat16 operations a second of one device, without sparsity, by the start of what JAX calls
# its kind. TPUs: Google Cloud's pages on TPU versions; GPUs: NVIDIA's data sheets of A100, H100,
# H200, HGX B200, L4, L40 and L40S, which give most of them with sparsity, twice as high, and its
# paper on the Ada architecture for the RTX 4090, with sums in float32.
PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 4090": 165.2e12,
}


def peak(kinds: Iterable[str]) -> float:
    """Adds up the operations a second of devices of these kinds; 0 if any isn't in PEAKS."""
    found = [max((n for n in PEAKS if kind.startswith(n)), key=len, default="") for kind in kinds]
    return sum(PEAKS[name] for name in found) if all(found) else 0.0


@dataclasses.dataclass(frozen=True)
class Work:
    """Describes passes of a network over rows of tokens, forwards and backwards.

    Attributes:
      rows: number of rows, of all chips together.
      tokens: number of tokens of a row.
      logits: number of columns of a row that logits are computed for.
      backward: whether gradients follow.
      checkpointed: whether the whole forward pass is done again for the gradients, whatever the
        network's `remat` is.
      steps: None for a pass over whole rows; for decoding, how many tokens are read singly, after
        `tokens`.
      cache: for decoding, how many further columns the cache has.
      times: how often the pass is done.
    """

    rows: int
    tokens: int
    logits: int = 0
    backward: bool = False
    checkpointed: bool = False
    steps: Any = None
    cache: int = 0
    times: int = 1

    def flops(self, network: NetworkConfig, rematerialised: bool = False) -> float:
        """Counts floating-point operations, with `rematerialised` those that are repeated too."""
        c = network
        # As floating-point numbers: integers would overflow under jit.
        matrices, frozen_unembed = 2.0 * matrix_parameters(c), 2.0 * c.embed_dim * c.vocab_size
        of_unembed = adapter_parameters(c, "unembed")
        products = matrices + 2.0 * (adapter_parameters(c) - of_unembed)
        unembed = frozen_unembed + 2.0 * of_unembed
        if self.steps is not None:
            seen = _keys_seen(c, self.tokens, self.steps)
            token = products + unembed
            one = self.rows * (self.steps * token + 4 * c.num_heads * c.head_dim * seen)
            return self.times * one
        # Without windows, attention looks at half of a row's square.
        seen = _keys_seen(c, 0, self.tokens)
        attention = 4 * c.num_heads * c.head_dim * seen / self.tokens
        tokens = self.rows * self.tokens
        blocks = tokens * (products + attention)
        logits = self.rows * self.logits * unembed
        total = (3 if self.backward else 1) * (blocks + logits)
        if self.backward and c.lora:  # matrices that are frozen have no gradients
            total -= tokens * matrices + self.rows * self.logits * frozen_unembed
        if rematerialised and self.backward:
            total += {"none": 0, "dots": tokens * attention, "full": blocks}[c.remat]
            total += (blocks + logits) if self.checkpointed else 0
        return self.times * total


def matrix_parameters(network: NetworkConfig) -> int:
    """Counts the parameters that a token is multiplied with, without embedding and logits."""
    c = network
    attention = c.embed_dim * c.head_dim * (2 * c.num_heads + 2 * c.num_kv_heads)
    return c.num_layers * (attention + (3 if c.gated_mlp else 2) * c.embed_dim * c.mlp_dim)


def adapter_parameters(network: NetworkConfig, pattern: str = ".*") -> int:
    """Counts the parameters of the adapters of modules whose names match; 0 without adapters."""
    c = network
    D, heads, kv_heads = c.embed_dim, c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    sizes = {"query": heads, "key": kv_heads, "value": kv_heads, "out": heads}
    sizes |= {"unembed": c.vocab_size} | dict.fromkeys(("gate", "up", "down"), c.mlp_dim)
    return sum(
        lora.rank * (D + sizes[name.split("/")[-1]]) * (1 if name == "unembed" else c.num_layers)
        for name in c.modules
        if (lora := c.adapter(name)) and re.fullmatch(pattern, name)
    )


def _keys_seen(network: NetworkConfig, before: int, tokens: Any) -> Any:
    """Counts keys that `tokens` tokens after `before` others look at, in all layers together."""
    windows = collections.Counter(map(network.window_of, range(network.num_layers)))
    return sum(
        layers * (_triangle(before + tokens, window) - _triangle(before, window))
        for window, layers in windows.items()
    )


def _triangle(tokens: Any, window: int) -> Any:
    """The keys that the first tokens of a row look at, each at those before it in its window."""
    beyond = tokens - window
    beyond = beyond * (beyond > 0) if window else 0.0
    return tokens * tokens / 2 - beyond * beyond / 2


def total(works: Iterable[Work], network: NetworkConfig, rematerialised: bool = False) -> float:
    """Adds up the floating-point operations of several passes."""
    return sum(work.flops(network, rematerialised) for work in works)


def training_step(rows: int, width: int, logits: bool, microbatches: int = 1) -> tuple[Work, ...]:
    """Lists the passes of a supervised step, of a language model (`logits`) or a reward model."""
    columns = width if logits else 0
    return (Work(rows // microbatches, width, columns, backward=True, times=microbatches),)


def sampling(rows: int, P: int, R: int, written: Any = None) -> tuple[Work, ...]:
    """Lists the passes of `decode.generate`: a prefill for the first token, a loop for the others.

    Args:
      rows: number of rows decoded at once.
      P: tokens of a prompt.
      R: tokens that there is room for.
      written: tokens of the longest response, where the loop ends; a number, which may be traced,
        or None for R.
    """
    steps = (R if written is None else written) - 1
    return (Work(rows, P, 1), Work(rows, P, steps=steps, cache=R))


def ppo_collect(
    rows: int,
    P: int,
    Q: int,
    R: int,
    config: PPOConfig,
    written: Any = None,
    difference: bool = False,
    widths: tuple[Any, Any, Any] | None = None,
) -> tuple[Work, ...]:
    """Lists the passes for a PPO step's episodes: sampling, two log-probabilities, values, scores.

    Args:
      rows: number of episodes.
      P: tokens of a prompt.
      Q: tokens of a prompt in the critic's layout, at least as many as in the reward model's.
      R: tokens of a response.
      config: PPO's settings.
      written: as for `sampling`.
      difference: whether y_ref is scored too.
      widths: of the rows of actor, critic and reward model on average; their windows by default.
    """
    parts, (actor, critic, reward) = config.parts, widths or (P + R, Q + R, Q + R)
    return (
        *sampling(rows, P, R, written),
        Work(rows // parts, actor, R, times=2 * parts),
        Work(rows // parts, critic, times=parts),
        Work(rows // parts, reward, times=parts * (1 + config.subtract_chosen + difference)),
    )


def ppo_update(
    rows: int, P: int, Q: int, R: int, config: PPOConfig, widths: Any = None
) -> tuple[Work, ...]:
    """Lists the passes of PPO's epochs, for actor and critic; takes what `ppo_collect` takes."""
    part, updates = rows // config.parts, config.parts * config.epochs
    actor, critic, _ = widths or (P + R, Q + R, None)
    return (
        Work(part, actor, R, backward=True, checkpointed=True, times=updates),
        Work(part, critic, backward=True, times=updates),
    )
