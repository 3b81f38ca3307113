"""Measures examples, and finds windows that suit their lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pit_jax.data.datasets import Dataset
from pit_jax.data.examples import Example
from pit_jax.data.layouts import GAP_TREE, Layout, Lengths
from pit_jax.errors import UserError

_KEPT = 0.9  # share of the examples that fit
_STEP = 16  # windows are multiples of it
_MEASURED = 2000  # examples that are measured, a sample of all
_LONGEST_ROW = 4096  # tokens of a row of the gap reward model, in windows found by themselves


def windows_for(
    prompt_N: np.ndarray, response_N: np.ndarray, longest_row: int = 0
) -> dict[str, int]:
    """Returns the narrowest windows, by quantiles that rise together, that keep 90% of examples.

    Args:
      prompt_N: tokens of each prompt with what stands around it.
      response_N: tokens of each example's longer response, without EOS.
      longest_row: most tokens of a prompt and all that a row of R_PIT has after it; where wider
        windows would be needed, the quantiles are lower. 0 sets no limit.

    Returns:
      the fields of Lengths.
    """
    responses = len(GAP_TREE) - 1  # all blocks of a row but x are references or responses
    best: dict[str, int] = {}
    for quantile in np.linspace(0, 1, 101):
        prompt, response = (
            int(np.quantile(tokens, quantile, method="inverted_cdf"))
            for tokens in (prompt_N, response_N)
        )
        fits = np.mean((prompt_N <= prompt) & (response_N <= response))
        window, reference = (max(1, math.ceil(n / _STEP)) * _STEP for n in (prompt, response))
        if best and longest_row and window + responses * reference > longest_row:
            break
        best = {"prompt": window, "reference": reference, "response": reference + 1}
        if fits >= _KEPT:
            break
    return best


def from_data(datasets: Sequence[Dataset], layout: Layout) -> Lengths:
    """Returns the windows that suit the data, for Lengths whose windows are 0.

    Args:
      datasets: all that is read; a sample of the examples is measured.
      layout: of the vocabulary.

    Raises:
      UserError: if there is no example.
    """
    parts = [part for each in datasets for part in each.splits.values()]
    if not any(map(len, parts)):
        dropped = ", ".join(f"{n} {why}" for d in datasets for why, n in d.dropped.items())
        raise UserError(
            f"data: got no pair to learn from, expected some; read {sum(d.read for d in datasets)}"
            + (f", dropped {dropped}" if dropped else "")
        )
    order = np.argsort(np.concatenate([part.hashes("order") for part in parts]), kind="stable")
    starts = np.cumsum([0, *map(len, parts)])
    sizes = []
    for place in order[:_MEASURED]:
        number = int(np.searchsorted(starts, place, side="right")) - 1
        e = parts[number][place - starts[number]]
        sizes.append(layout.sizes(e.prompt, e.chosen, e.rejected))
    prompt_N = np.array([size["prompt"] for size in sizes])
    response_N = np.array([max(size["chosen"], size["rejected"]) for size in sizes])
    return Lengths(**windows_for(prompt_N, response_N, _LONGEST_ROW))


def measured(e: Example, layout: Layout, lengths: Lengths) -> tuple[dict[str, int], int]:
    """Measures an example in the ids of one model.

    Args:
      e: the example.
      layout: of the model's vocabulary.
      lengths: its windows.

    Returns:
      the tokens of each field, and what preprocessors.mark_left_out would mark the example with.
    """
    target = e.reflection if lengths.reflection else None
    chosen, rejected = map(layout.vocabulary.encode, (e.chosen, e.rejected))
    sizes = layout.sizes(e.prompt, chosen, rejected, target)
    return sizes, int(lengths.left_out(sizes, chosen == rejected))
