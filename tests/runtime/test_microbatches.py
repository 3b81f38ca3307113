"""Parts of a batch: which rows each has, and that sums over them are sums over the batch."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.runtime.microbatches import accumulate, split

ROWS = {"x": jnp.arange(6.0), "y": jnp.arange(12).reshape(6, 2)}


def test_each_part_has_rows_that_follow_each_other():
    """So that joining the parts again, as PPO does with what it computes in parts, is the batch."""
    parts = split(ROWS, 3)
    np.testing.assert_array_equal(parts["x"], [[0, 1], [2, 3], [4, 5]])
    np.testing.assert_array_equal(parts["y"][1], [[4, 5], [6, 7]])


@pytest.mark.parametrize("count", [1, 2, 3])
def test_sums_are_added_up_and_the_rest_is_kept(count):
    total, kept = accumulate(
        lambda part: (jnp.sum(part["x"] ** 2), jnp.max(part["x"])), ROWS, count
    )
    assert float(total) == 0 + 1 + 4 + 9 + 16 + 25
    assert kept.tolist() == {1: [5], 2: [2, 5], 3: [1, 3, 5]}[count]
