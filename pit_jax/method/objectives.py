"""Makes the functions that supervised stages minimise, from a batch to a loss and metrics.

Each function made has the signature `(params, batch) -> ((sum, weight), metrics)`, and its metrics
are (sum, weight) pairs too. `run.stages.objective` says which stage minimises which function.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from pit_jax.checked import checked
from pit_jax.data.layouts import GAP_INEQUALITIES, GAP_TREE, PAIR_TREE, Tree, Widths
from pit_jax.method import losses
from pit_jax.method.forward import tree_scores
from pit_jax.method.targets import add_up, columns_of
from pit_jax.models.adapters import whole
from pit_jax.models.attention import CausalRows
from pit_jax.models.config import NetworkConfig
from pit_jax.models.heads import POOLINGS, ScalarModel
from pit_jax.models.network import LanguageModel, head_of


@dataclasses.dataclass(frozen=True)
@checked
class RewardConfig:
    """Says how a reward model is read and trained.

    Attributes:
      pooling: `last` reads the score at EOS (the paper); `sum` adds over the response's tokens,
        which was measured to help small models.
      centring: weight of the mean squared score; 0 in the paper.
      gap_loss: `eq2`, or an ablation of Appendix C, as in `losses.gap_loss`.
    """

    pooling: str = "last"
    centring: float = 0.0
    gap_loss: str = "eq2"

    def __post_init__(self):
        for name, value, choices in (
            ("pooling", self.pooling, POOLINGS),
            ("gap_loss", self.gap_loss, losses.GAP_LOSSES),
        ):
            if value not in choices:
                raise ValueError(f"RewardConfig: got {name}={value!r}, expected one of {choices}")


def supervised(network: NetworkConfig, unlikelihood: bool = False) -> Callable:
    """Makes `L_SFT` of 3.2, for policy, PIT and the warm-up; rows may be packed.

    Args:
      network: network of the model.
      unlikelihood: whether weights may be below 0, see losses.sft_loss.
    """
    model = LanguageModel(network)

    def part(head, hidden_BTD, data):
        targets_BT, weights_BT = data
        logits_BTV = model.apply({"params": head}, hidden_BTD, method=LanguageModel.logits)
        total, weight = losses.sft_loss(logits_BTV, targets_BT, weights_BT, unlikelihood)
        own_BT1 = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)
        right_BT = (own_BT1[..., 0] >= jnp.max(logits_BTV, axis=-1)) & (weights_BT > 0)
        return total, (weight, _number(right_BT))

    def loss(params, batch):
        tree = whole(params)
        hidden_BTD = model.apply(
            {"params": tree},
            batch["decoder_input_tokens"],
            batch["decoder_positions"],
            CausalRows(batch["decoder_segment_ids"]),
            method=LanguageModel.hidden,
        )
        weights_BT = batch["decoder_loss_weights"]
        data = batch["decoder_target_tokens"], weights_BT
        B, T = weights_BT.shape
        columns = columns_of(B, T, network.vocab_size)
        head = head_of(tree, network)
        total, (weight, right) = add_up(part, columns, head, hidden_BTD, data, weights_BT != 0)
        return (total, weight), {
            "loss": (total, weight),
            "token_accuracy": (right, _number(weights_BT > 0)),
            **_token_counts(batch["decoder_segment_ids"]),
        }

    return loss


def reward(network: NetworkConfig, config: RewardConfig, widths: Widths | None = None) -> Callable:
    """Makes the pairwise reward loss of 3.3 for R_P.

    Args:
      network: network of the model.
      config: how it is read and trained.
      widths: of its windows, see `forward.tree_scores`.
    """
    model = ScalarModel(network)

    def loss(params, batch):
        scores = tree_scores(model, params, batch, PAIR_TREE, config.pooling, widths)
        weight_B = _row_weight(batch)
        chosen_B, rejected_B = scores["chosen"], scores["rejected"]
        total, weight = losses.pairwise_loss(chosen_B, rejected_B, weight_B)
        metrics = {
            "loss": (total, weight),
            "accuracy": (_count(chosen_B > rejected_B, weight_B), weight),
            "margin": (jnp.sum((chosen_B - rejected_B) * weight_B), weight),
            "mean_score": (jnp.sum((chosen_B + rejected_B) * weight_B) / 2, weight),
            **_token_counts(batch["blocks"]),
        }
        return _centred(total, weight, jnp.stack([chosen_B, rejected_B]), weight_B, config), metrics

    return loss


def gap_reward(
    network: NetworkConfig,
    config: RewardConfig,
    tree: Tree = GAP_TREE,
    widths: Widths | None = None,
) -> Callable:
    """Makes Eq. 2 for R_PIT, with the accuracy of each inequality and the degeneration check.

    Args:
      network: network of the model.
      config: how it is read and trained.
      tree: the rows' blocks. Of GAP_PAIR_TREE there are the two scores that the loss of two terms
        reads, and only what these tell is measured.
      widths: of the model's windows, see `forward.tree_scores`.
    """
    model = ScalarModel(network)

    def loss(params, batch):
        scores = tree_scores(model, params, batch, tree, config.pooling, widths)
        weight_B = _row_weight(batch)
        total, weight = losses.gap_loss(scores, weight_B, config.gap_loss)
        metrics = {
            "loss": (total, weight),
            # Table 4's accuracy: r_gap(x, y_w, y_l) > r_gap(x, y_l, y_w).
            "accuracy": (_count(scores["wl"] > scores["lw"], weight_B), weight),
            **_token_counts(batch["blocks"]),
        }
        for a, b in GAP_INEQUALITIES:
            if a in scores and b in scores:
                metrics[f"accuracy_{a}>{b}"] = (_count(scores[a] > scores[b], weight_B), weight)
        for name, score_B in scores.items():
            metrics[f"mean_{name}"] = (jnp.sum(score_B * weight_B), weight)
        if tree == GAP_TREE:
            metrics["reference_moves_score"] = losses.reference_moves_score(scores, weight_B)
        stacked_NB = jnp.stack(list(scores.values()))
        return _centred(total, weight, stacked_NB, weight_B, config), metrics

    return loss


def _centred(total, weight, scores_NB, weight_B, config: RewardConfig):
    if not config.centring:
        return total, weight
    squares, count = losses.centring_penalty(scores_NB, weight_B)
    return total + config.centring * squares * weight / jnp.maximum(count, 1), weight


def _row_weight(batch):
    return batch.get("weight", jnp.ones(len(batch["tokens"]), jnp.float32))


def _count(condition_B, weight_B):
    return jnp.sum(condition_B.astype(jnp.float32) * weight_B)


def _number(condition):
    return jnp.sum(condition.astype(jnp.float32))


def _token_counts(ids_BT):
    """Counts real tokens and their share of the batch, as metrics; ids are 0 on padding."""
    real = _number(ids_BT > 0)
    return {"tokens": (real, 1.0), "real_token_share": (real, jnp.float32(ids_BT.size))}
