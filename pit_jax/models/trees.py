"""Computes attention of sequences that share prefixes, as a tree of blocks in a row.

What each token computes by itself is shared: projections, MLP, keys and values. Attention isn't,
and of a row as a whole most of it would be masked: a response sees its prompt and reference, and
none of the other responses. So each block attends apart, to its own sequence only, together with
the others that come as late in theirs. Dims: see `network.py`; N blocks, S of them with sequences
of W columns, the last Q of which have their own tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

_LEAST = 256  # columns of a row, below which moving them costs more than it saves
_WORTH = 0.85  # of the scores of a whole row, at most, that the parts have together


def take_columns(x_BT: jax.Array, columns_BC: jax.Array) -> jax.Array:
    """Takes columns [B, C, …] of rows [B, T, …], which each row names for itself."""
    index = columns_BC.reshape(*columns_BC.shape, *(1,) * (x_BT.ndim - 2))
    return jnp.take_along_axis(x_BT, index, axis=1)


def tree_mask(blocks_BT: jax.Array, parents: Sequence[int]) -> jax.Array:
    """Returns the mask [B, T, T] of sequences that share prefixes, as a tree of blocks in a row.

    A token sees its block's ancestors and the earlier tokens of its own block. For blocks
    `[1, 2, 2, 3, 0]` with parents `(0, 1, 1)` (a prefix, two branches, padding):

        x . . . .
        x x . . .
        x x x . .
        x . . x .
        . . . . .

    Args:
      blocks_BT: number of each token's block, from 1, ascending along T; 0 for padding.
      parents: for block 1, 2, … the number of the block that it follows, 0 for none.
    """
    lineage_NN = jnp.asarray(_lineage(parents))
    T = blocks_BT.shape[1]
    earlier_TT = jnp.tril(jnp.ones((T, T), bool))
    own_BTN = jax.nn.one_hot(blocks_BT, len(lineage_NN))
    return earlier_TT[None] & (jnp.einsum("BTN,BSN->BTS", lineage_NN[blocks_BT], own_BTN) > 0)


def tree_positions(blocks_BT: jax.Array, parents: Sequence[int]) -> jax.Array:
    """Returns positions [B, T] for a `tree_mask`, counted along each token's own sequence."""
    lineage_NN = jnp.asarray(_lineage(parents))
    own_BTN = jax.nn.one_hot(blocks_BT, len(lineage_NN), dtype=jnp.int32)
    so_far_BTN = jnp.cumsum(own_BTN, axis=1)
    return jnp.maximum(jnp.sum(so_far_BTN * lineage_NN[blocks_BT].astype(jnp.int32), axis=2) - 1, 0)


def _lineage(parents: Sequence[int]) -> np.ndarray:
    """Returns [N, N], 1 where a row's block is the column's or comes below it; 0 for padding."""
    lineage_NN = np.eye(len(parents) + 1, dtype=np.float32)
    lineage_NN[0, 0] = 0
    for block, parent in enumerate(parents, 1):
        lineage_NN[block] += lineage_NN[parent]
    return lineage_NN


@flax.struct.dataclass
class TreeRows:
    """Stands for the `tree_mask` of rows, in a form whose blocks can attend apart.

    Attributes:
      blocks_BT: int32 number of each token's block, from 1, ascending along T; 0 for padding.
      parents: for block 1, 2, … the number of the block that it follows, 0 for none (static).
      sizes: most tokens of block 1, 2, … (static); empty where they aren't known.
    """

    blocks_BT: jax.Array
    parents: tuple[int, ...] = flax.struct.field(pytree_node=False)
    sizes: tuple[int, ...] = flax.struct.field(pytree_node=False, default=())

    def positions(self) -> jax.Array:
        """Returns the tokens' positions, see `tree_positions`."""
        return tree_positions(self.blocks_BT, self.parents)

    def dense(self) -> jax.Array:
        """Returns the mask itself, bool [B, T, T]."""
        return tree_mask(self.blocks_BT, self.parents)

    def apart(self, cost: Callable[[int, int], float]) -> Branches | None:
        """Returns the blocks apart, where that takes less than whole rows; None where it doesn't.

        Args:
          cost: what a number of queries cost, the last ones of a number of keys.
        """
        T = self.blocks_BT.shape[1]
        if not self.sizes or T < _LEAST:
            return None
        lineage_NN, sizes_N = _lineage(self.parents), np.array([0, *self.sizes])
        depths_N, longest_N = lineage_NN.sum(axis=1), lineage_NN @ sizes_N
        shapes = []
        for depth in range(1, int(depths_N.max()) + 1):
            numbers = np.flatnonzero(depths_N == depth)
            Q, W = (min(T, int(each[numbers].max())) for each in (sizes_N, longest_N))
            shapes.append((numbers, Q, W))
        if sum(len(numbers) * cost(Q, W) for numbers, Q, W in shapes) > _WORTH * cost(T, T):
            return None
        return _branches(self.blocks_BT, lineage_NN, shapes)


@flax.struct.dataclass
class Branches:
    """Says where the columns of a row go for its blocks to attend apart, computed once a pass.

    Attributes:
      groups: blocks that come as late in their sequences.
      out: how what came out of all queries becomes columns of the row.
    """

    groups: tuple[Group, ...]
    out: Move


@flax.struct.dataclass
class Group:
    """Says where the columns of a row go for some blocks of it.

    Sequences are right-aligned: a block's last token is in the last of W columns, and its queries
    are in the last Q. Wherever an index says which column comes to a place, -1 says that none does.

    Attributes:
      mask_NQW: bool, which columns each query sees, of all N = B * S sequences.
      keys: how columns of the row become those of all sequences, and back.
      queries: how columns of the row become the queries of all blocks, and back.
    """

    mask_NQW: jax.Array
    keys: Move
    queries: Move


@flax.struct.dataclass
class Move:
    """Moves columns, and their gradients back, by looking each of them up.

    Attributes:
      there_BC: int32, for each new column the old one that it is.
      back_BXT: int32, for each old column up to X new ones that it has become.
    """

    there_BC: jax.Array
    back_BXT: jax.Array

    def __call__(self, x_BT: jax.Array) -> jax.Array:
        """Returns the new columns [B, C, …] of [B, T, …], zeros where none comes."""
        return _moved(x_BT, self.there_BC, self.back_BXT)


@jax.custom_vjp
def _moved(x_BT, there_BC, back_BXT):
    return _look_up(x_BT, there_BC)


def _look_up(x_BT, index_BC):
    found = take_columns(x_BT, jnp.maximum(index_BC, 0))
    is_there = (index_BC >= 0).reshape(*index_BC.shape, *(1,) * (x_BT.ndim - 2))
    return jnp.where(is_there, found, jnp.zeros((), x_BT.dtype))


def _forward(x_BT, there_BC, back_BXT):
    return _look_up(x_BT, there_BC), back_BXT


def _backward(back_BXT, gradient_BC):
    # A sum of look-ups: scattered additions are slow everywhere.
    parts = [_look_up(gradient_BC, back_BXT[:, n]) for n in range(back_BXT.shape[1])]
    return sum(parts[1:], parts[0]), None, None


_moved.defvjp(_forward, _backward)


def _branches(blocks_BT, lineage_NN, shapes) -> Branches:
    """Makes groups of these numbers of blocks, with so many queries and columns each."""
    groups, source_BT, taken, before = [], jnp.full_like(blocks_BT, -1), [], 0
    for numbers, Q, W in shapes:
        group = _group(blocks_BT, lineage_NN, numbers, Q, W)
        query_BT = group.queries.back_BXT[:, 0]
        source_BT = jnp.where(query_BT >= 0, query_BT + before, source_BT)
        groups.append(group)
        taken.append(group.queries.there_BC)
        before += len(numbers) * Q
    return Branches(tuple(groups), Move(source_BT, jnp.concatenate(taken, axis=1)[:, None]))


def _group(blocks_BT, lineage_NN, numbers, Q: int, W: int) -> Group:
    (B, T), S = blocks_BT.shape, len(numbers)
    member_BST = jnp.moveaxis(jnp.asarray(lineage_NN[numbers].T > 0)[blocks_BT], 2, 1)
    own_BST = blocks_BT[:, None] == jnp.asarray(numbers, jnp.int32)[None, :, None]
    # The column of a sequence that each of its tokens is in, and the token that is in each column.
    so_far_BST = jnp.cumsum(member_BST, axis=2)
    free_BS1 = W - so_far_BST[..., -1:]
    column_BST = free_BS1 + so_far_BST - 1
    order_BST = jnp.argsort(~member_BST, axis=2, stable=True)
    rank_BSW = jnp.arange(W)[None, None] - free_BS1
    token_BSW = jnp.take_along_axis(order_BST, jnp.clip(rank_BSW, 0, T - 1), axis=2)
    token_BSW = jnp.where(rank_BSW >= 0, token_BSW, -1)
    last_BSQ = token_BSW[..., W - Q :]
    own_BSQ = jnp.take_along_axis(own_BST, jnp.maximum(last_BSQ, 0), axis=2) & (last_BSQ >= 0)
    token_BSQ = jnp.where(own_BSQ, last_BSQ, -1)
    number_1S1 = jnp.arange(S)[None, :, None]
    key_BST = jnp.where(member_BST, column_BST + number_1S1 * W, -1)
    query_BST = jnp.where(own_BST, column_BST - (W - Q) + number_1S1 * Q, -1)
    earlier_QW = jnp.tril(jnp.ones((W, W), bool))[W - Q :]
    mask_BSQW = (token_BSW >= 0)[:, :, None] & earlier_QW[None, None]
    return Group(
        mask_NQW=mask_BSQW.reshape(B * S, Q, W),
        keys=Move(token_BSW.reshape(B, S * W), key_BST),
        queries=Move(token_BSQ.reshape(B, S * Q), jnp.max(query_BST, axis=1)[:, None]),
    )
