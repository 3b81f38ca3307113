"""Does the teacher-forced passes over a left-padded prompt and a right-padded response.

There is a function for log-probabilities (policy, PIT, their references), one for scores (reward
models), one for values (critic), and one for the scores of sequences that share prefixes, which
reward models learn from. Sampling of episodes, update and evaluation all call these, so a quantity
means the same thing everywhere.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pit_jax.data.layouts import Tree, Widths
from pit_jax.data.vocabularies.base import PAD_ID
from pit_jax.method.losses import allow, token_entropy, token_log_probs
from pit_jax.models.adapters import whole
from pit_jax.models.attention import CausalRows, positions_of
from pit_jax.models.heads import ScalarModel, pool
from pit_jax.models.network import LanguageModel
from pit_jax.models.trees import TreeRows, take_columns


def join(
    prompt_BP: jax.Array, response_BR: jax.Array, mask_BR: jax.Array, width: int | None = None
):
    """Joins prompts and responses to rows: tokens_BT, positions_BT and their mask.

    T is P + R; or `width`, if that is less: then rows begin with their first real token.
    """
    tokens_BT = jnp.concatenate([prompt_BP, response_BR], axis=1)
    valid_BT = jnp.concatenate([prompt_BP != PAD_ID, mask_BR > 0], axis=1)
    T = tokens_BT.shape[1]
    if width is not None and width < T:
        columns_BT = jnp.argmax(valid_BT, axis=1)[:, None] + jnp.arange(width)[None]
        inside_BT = columns_BT < T
        columns_BT = jnp.minimum(columns_BT, T - 1)
        tokens_BT = take_columns(tokens_BT, columns_BT)
        valid_BT = take_columns(valid_BT, columns_BT) & inside_BT
    return tokens_BT, positions_of(valid_BT), CausalRows(valid_BT.astype(jnp.int32))


def _of_response(x_BT, prompt_BP, before: int, R: int):
    """Takes R columns of `join`'s, from `before` columns before the response's first token on."""
    P, T = prompt_BP.shape[1], x_BT.shape[1]
    if P - before + R <= T:
        return x_BT[:, P - before : P - before + R]
    first_B = jnp.sum(prompt_BP != PAD_ID, axis=1) - before
    return take_columns(x_BT, jnp.clip(first_B[:, None] + jnp.arange(R)[None], 0, T - 1))


def response_log_probs(
    model: LanguageModel,
    params,
    prompt_BP: jax.Array,
    response_BR: jax.Array,
    mask_BR: jax.Array,
    temperature: float = 1.0,
    allowed_V: np.ndarray | None = None,
    width: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Computes `log M(y_t | prompt, y_<t)` and the entropy of each distribution.

    Args:
      model: policy or PIT model.
      params: its parameters, a tree or an adapters.Adapted.
      prompt_BP: int32, padding on the left.
      response_BR: int32, EOS included.
      mask_BR: above 0 on real tokens.
      temperature: divides the logits.
      allowed_V: bool, ids that may be sampled; None allows all.
      width: columns that the rows are cut to, which have to hold all real tokens but the last.

    Returns:
      log_probs_BR and entropy_BR, float32, 0 on padding; the entropy has no gradient.
    """
    tree, R = whole(params), response_BR.shape[1]
    rows = join(prompt_BP, response_BR[:, :-1], mask_BR[:, :-1], width)
    hidden_BTD = model.apply({"params": tree}, *rows, method=LanguageModel.hidden)
    hidden_BRD = _of_response(hidden_BTD, prompt_BP, 1, R)
    logits_BRV = model.apply({"params": tree}, hidden_BRD, method=LanguageModel.logits)
    logits_BRV = allow(logits_BRV, allowed_V)
    log_probs_BR = token_log_probs(logits_BRV, response_BR, temperature)
    entropy_BR = token_entropy(jax.lax.stop_gradient(logits_BRV), temperature)
    return jnp.where(mask_BR > 0, log_probs_BR, 0.0), jnp.where(mask_BR > 0, entropy_BR, 0.0)


def response_scores(
    model: ScalarModel, params, prompt_BP, response_BR, mask_BR, pooling: str, width=None
) -> jax.Array:
    """Computes R_P(x, y) or R_PIT(x, y, y_ref), float32 [B].

    Which of the two it is, the prompt's layout says (Appendix A).
    """
    rows = join(prompt_BP, response_BR, mask_BR, width)
    scalars_BT = model.apply({"params": whole(params)}, *rows)
    scalars_BR = _of_response(scalars_BT, prompt_BP, 0, response_BR.shape[1])
    return pool(scalars_BR, mask_BR, pooling)


def response_values(
    model: ScalarModel, params, prompt_BP, response_BR, mask_BR, width=None
) -> jax.Array:
    """Computes V(state before each token of the response), float32 [B, R], 0 on padding."""
    rows = join(prompt_BP, response_BR[:, :-1], mask_BR[:, :-1], width)
    scalars_BT = model.apply({"params": whole(params)}, *rows)
    scalars_BR = _of_response(scalars_BT, prompt_BP, 1, response_BR.shape[1])
    return jnp.where(mask_BR > 0, scalars_BR, 0.0)


def tree_scores(
    model: ScalarModel, params, batch, tree: Tree, pooling: str, widths: Widths | None = None
) -> dict[str, jax.Array]:
    """Scores all responses of a row in one pass that shares their prefixes.

    GAP_TREE gives the four r_ab = R_PIT(x, y_a, y_b) of Eq. 2, from 7 pieces in place of the 12
    that four whole sequences have. PAIR_TREE gives R_P(x, y_w) and R_P(x, y_l), from 3 pieces in
    place of 4. The scores equal those of separate passes (`response_scores`).

    Args:
      model: the reward model.
      params: its parameters.
      batch: tokens and blocks, int32 [B, T]; a token's block is 0 on padding.
      tree: what the blocks are: GAP_TREE or PAIR_TREE of data.layouts.
      pooling: how a score is read, see `heads.pool`.
      widths: of the model's windows, by which a response attends to its own sequence only where
        that takes less than masking the others.

    Returns:
      float32 [B] under the names of the scores in `tree`.
    """
    tokens_BT, blocks_BT = batch["tokens"], batch["blocks"]
    parents = tuple(block.after for block in tree)
    rows = TreeRows(blocks_BT, parents, widths.of_blocks(tree) if widths else ())
    scalars_BT = model.apply({"params": whole(params)}, tokens_BT, rows.positions(), rows)
    return {
        block.score: pool(scalars_BT, blocks_BT == number, pooling)
        for number, block in enumerate(tree, 1)
        if block.score
    }
