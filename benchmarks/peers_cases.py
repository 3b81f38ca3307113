"""Says what `peers.py` compares: sizes, cases, and the same weights and tokens for everybody.

Needs NumPy alone, so that the workers of every peer can read it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

OURS = "pit_jax"
BUCKETS = 32  # of T5X's relative positions
LEARNING_RATE = 1e-4
B1, B2, EPSILON, CLIP = 0.9, 0.95, 1e-8, 1.0  # of everybody's AdamW, and its gradients' norm
HH = 0.26, 0.21  # the shares of their windows that prompts and responses fill in the mean
BATCHES = 4  # that the steps go through, over and over
WAITING = 8  # batches of prompts to which responses are sampled to their ends


@dataclasses.dataclass(frozen=True)
class Size:
    """Describes the models of a comparison, which compute in float32 with tied embeddings.

    Attributes:
      layers: number of blocks.
      embed: width.
      heads: query heads.
      kv_heads: key and value heads.
      head: width of a head.
      mlp: width of the gated MLP.
      vocabulary: number of tokens.
      theta: base wavelength of the rotary positions.
    """

    layers: int
    embed: int
    heads: int
    kv_heads: int
    head: int
    mlp: int
    vocabulary: int
    theta: float


SIZES = {
    "small": Size(4, 256, 8, 8, 32, 1024, 384, 10_000.0),
    "wide": Size(4, 512, 8, 8, 64, 2048, 8192, 10_000.0),
    "smollm2_135m": Size(30, 576, 9, 3, 64, 1536, 49152, 100_000.0),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """Describes a comparison of two contestants at the same work.

    Attributes:
      name: a name of its own.
      what: what the table calls it.
      task: what ours does, a name of peers_ours.TASKS.
      peer: whom ours is compared with, a key of peers.WORKERS; OURS for ours done otherwise.
      peer_task: what the peer does, a name of its own worker's TASKS.
      family: whose network both have: `llama`, `qwen3` or `t5x`.
      rows: B, rows of a batch.
      prompt: P, tokens of each prompt.
      response: R, tokens of each response.
      size: a key of SIZES.
    """

    name: str
    what: str
    task: str
    peer: str
    peer_task: str
    family: str
    rows: int
    prompt: int
    response: int
    size: str = "small"

    @property
    def network(self) -> Size:
        """The size by its name."""
        return SIZES[self.size]

    def message(self) -> dict[str, Any]:
        """Returns the case as what `Case(**…)` takes, for a worker."""
        return dataclasses.asdict(self)


def _pair(name, what, task, peer, family, rows, prompt, response, size="small"):
    return Case(name, what, task, peer, task, family, rows, prompt, response, size)


_WIDE, _SMOL = "wide", "smollm2_135m"
CASES = (
    _pair("train_t5x", "training step", "train", "t5x", "t5x", 16, 128, 128),
    _pair("train_transformers", "training step", "train", "transformers", "llama", 16, 128, 128),
    _pair("decode_t5x", "decoding", "decode", "t5x", "t5x", 32, 128, 128),
    _pair("decode_transformers", "decoding", "decode", "transformers", "llama", 32, 128, 128),
    _pair("decode_1_t5x", "decoding", "decode", "t5x", "t5x", 1, 128, 128),
    _pair("decode_1_transformers", "decoding", "decode", "transformers", "llama", 1, 128, 128),
    _pair("ends_transformers", "decoding to ends", "ends", "transformers", "llama", 32, 128, 128),
    _pair("reward_trl", "reward step", "reward", "trl", "llama", 16, 128, 128),
    _pair("ppo_tunix", "PPO iteration", "ppo", "tunix", "qwen3", 32, 64, 64),
    Case("sft_lengths", "SFT, HH's lengths", "sft", OURS, "sft_fixed", "llama", 8, 512, 512),
    Case(
        "ppo_lengths", "PPO, HH's lengths", "ppo_lengths", OURS, "ppo_fixed", "llama", 32, 256, 256
    ),
    _pair("ppo_lengths_tunix", "PPO, HH's lengths", "ppo_lengths", "tunix", "qwen3", 32, 128, 128),
    Case(
        "improve_lengths",
        "improve, HH's lengths",
        "improve",
        OURS,
        "improve_fixed",
        "llama",
        32,
        512,
        256,
    ),
    Case("gap_passes", "gap reward step", "gap", OURS, "gap_passes", "llama", 2, 512, 512),
    _pair("wide_train", "training step", "train", "transformers", "llama", 16, 128, 128, _WIDE),
    _pair("smol_train", "training step", "train", "transformers", "llama", 4, 128, 128, _SMOL),
    _pair("smol_decode", "decoding", "decode", "transformers", "llama", 16, 128, 128, _SMOL),
    _pair("smol_decode_1", "decoding", "decode", "transformers", "llama", 1, 128, 128, _SMOL),
)
# The models of a task, each of which has weights of its own; a scalar model has a head.
_FOUR = "actor", "reference", "critic", "reward"
MODELS = {"ppo": _FOUR, "ppo_lengths": _FOUR, "reward": ("reward",), "gap": ("reward",)}
SCALAR = ("critic", "reward")


def models(case: Case) -> tuple[str, ...]:
    """Returns the names of the models that a case has."""
    return MODELS.get(case.task, ("actor",))


def weights(size: Size, family: str, seed: int, scalar: bool) -> dict[str, np.ndarray]:
    """Draws a model's weights, float32, under the names that transformers has for them.

    Args:
      size: of the model.
      family: `llama`; `qwen3`, whose queries and keys have norms; or `t5x`, which has a bias
        [buckets, heads] for relative positions, under T5's name for it.
      seed: of the draws.
      scalar: whether there is a head for one number, `score.weight` [1, embed].
    """
    rng = np.random.default_rng(seed)

    def matrix(out: int, into: int, std: float = 0.0) -> np.ndarray:
        scale = np.float32(std or into**-0.5)
        return scale * rng.standard_normal((out, into), dtype=np.float32)

    def norm(width: int) -> np.ndarray:
        return np.float32(1) + np.float32(0.1) * rng.standard_normal(width, dtype=np.float32)

    c, queries, keys = size, size.heads * size.head, size.kv_heads * size.head
    # T5X divides the logits of tied embeddings by the root of the width, and has no scale within
    # attention, but smaller queries.
    t5x = family == "t5x"
    found = {"model.embed_tokens.weight": matrix(c.vocabulary, c.embed, 1.0 if t5x else 0.1)}
    if t5x:
        found["model.relative_attention_bias.weight"] = matrix(BUCKETS, c.heads, 0.5)
    for layer in range(c.layers):
        at = f"model.layers.{layer}."
        found[at + "input_layernorm.weight"] = norm(c.embed)
        found[at + "self_attn.q_proj.weight"] = matrix(queries, c.embed) * np.float32(
            c.head**-0.5 if t5x else 1
        )
        found[at + "self_attn.k_proj.weight"] = matrix(keys, c.embed)
        found[at + "self_attn.v_proj.weight"] = matrix(keys, c.embed)
        found[at + "self_attn.o_proj.weight"] = matrix(c.embed, queries)
        if family == "qwen3":
            found[at + "self_attn.q_norm.weight"] = norm(c.head)
            found[at + "self_attn.k_norm.weight"] = norm(c.head)
        found[at + "post_attention_layernorm.weight"] = norm(c.embed)
        found[at + "mlp.gate_proj.weight"] = matrix(c.mlp, c.embed)
        found[at + "mlp.up_proj.weight"] = matrix(c.mlp, c.embed)
        found[at + "mlp.down_proj.weight"] = matrix(c.embed, c.mlp)
    found["model.norm.weight"] = norm(c.embed)
    if scalar:
        found["score.weight"] = matrix(1, c.embed)
    return found


def tokens(case: Case, batch: int, columns: int, name: str = "rows") -> np.ndarray:
    """Draws int32 tokens [B, columns]; none is padding or EOS, ids 0 and 1.

    Args:
      case: the comparison.
      batch: number of the batch.
      columns: number of tokens of a row.
      name: what the tokens are, so that a batch can have several kinds.
    """
    rng = np.random.default_rng([batch, *name.encode()])
    return rng.integers(2, case.network.vocabulary, (case.rows, columns)).astype(np.int32)


def training_rows(case: Case, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Makes rows of P + R tokens, what follows each, and weights: 1 on the R last, the response.

    Returns:
      inputs and targets, int32, and weights, float32, all [B, P + R].
    """
    width = case.prompt + case.response
    rows = tokens(case, batch, width + 1)
    weight = np.broadcast_to(np.arange(width) >= case.prompt, (case.rows, width))
    return rows[:, :-1], rows[:, 1:], weight.astype(np.float32)


def ends(case: Case, share: float) -> tuple[int, ...]:
    """Returns ids that end sampled responses after a share of the window on average.

    They are as many as make the mean of min(length, R) nearest to share * R if all ids are as
    likely as each other.
    """
    vocabulary, R = case.network.vocabulary, case.response

    def apart(count: int) -> float:
        alive = 1 - count / vocabulary
        return abs(sum(alive**n for n in range(R)) - share * R)

    count = min(range(1, vocabulary), key=apart)
    return tuple(range(vocabulary - count, vocabulary))


def lengths(case: Case, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws lengths of prompts and responses [rows], whose shares of their windows are HH's."""
    rng = np.random.default_rng(0)

    def draw(window: int, share: float) -> np.ndarray:
        drawn = rng.lognormal(np.log(share * window) - 0.32, 0.8, rows)
        return np.clip(drawn, 4, window).astype(int)

    return draw(case.prompt, HH[0]), draw(case.response, HH[1])
