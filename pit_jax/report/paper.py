"""The paper's own figures (ICLR 2024, Tables 1 to 4), shown beside ours in a report.

Other models, data and judges: they say what size of effect to expect, not what to reproduce. They
stand in a column for each dataset, and only beside what has their temperature.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pit_jax.report.formatting import NONE

# What the paper's figures are of, for captions.
TABLE_1 = (
    "Paper: Table 1, at temperature 1; its synthetic data is judged by GPT-4, HH-RLHF (HH) and "
    "OpenAI/Summary by DeBERTa."
)
TABLE_2 = (
    "Paper: Table 2, HH-RLHF (HH) at temperature 1, judged by DeBERTa; where the comparison here "
    "is the other way round, with the sign turned."
)
TABLE_3 = (
    "Paper: Table 3, judged by DeBERTa, each method at its best temperature: PIT at 0.4, "
    "Self-Refine at 0.8. On HH-RLHF (HH) its rating pool holds Self-Refine too, as here where "
    "there are rows of it; ratings of different pools can’t be compared."
)
TABLE_4 = "Paper: Table 4, in percent."
FIGURE_4 = (
    "Paper (Figure 4): trained by the second round alone the model stays in Similar; after the "
    "first round it breaks through to Better."
)

# Tables 1 and 2: delta in percent of the first kind of responses against the second; the kinds are
# those of a comparison in the results. 'synthetic' is judged by GPT-4; 'HH' and 'Summary' by
# DeBERTa.
DELTAS: Mapping[tuple[str, str], Mapping[str, float]] = {
    ("original", "chosen"): {"synthetic": -22.66, "HH": 50.20, "Summary": 74.20},
    ("pit", "original"): {"synthetic": 33.59, "HH": 14.00, "Summary": 7.20},
    ("self_refine", "original"): {"synthetic": 16.41, "HH": 8.90},
    ("pit", "self_refine"): {"synthetic": 10.16, "HH": 3.70},
    ("first_only", "original"): {"HH": 4.40},
    ("first_only", "self_refine"): {"HH": -15.70},
    ("first_only", "pit"): {"HH": -30.10},
    ("second_only", "original"): {"HH": 0.20},
    ("second_only", "self_refine"): {"HH": -18.90},
    ("second_only", "pit"): {"HH": -36.70},
}

# The temperature of Tables 1 and 2, and that of PIT in Table 3.
TEMPERATURE, BEST_TEMPERATURE = 1.0, 0.4

# Table 3, by iteration from the first on, and of the original response. Judged by DeBERTa. One
# rating pool holds all of a data set.
ELO: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "pit": {"HH": (1033, 1016, 1018, 1036, 1025), "Summary": (1022, 1049, 1031, 985, 1013)},
    "self_refine": {"HH": (1001, 982, 995, 990, 982)},
}
ORIGINAL_ELO = {"HH": 921, "Summary": 900}

# Table 4: accuracy in percent.
ACCURACY: Mapping[str, Mapping[str, float]] = {
    "R_PIT": {"synthetic": 96.09, "HH": 65.63, "Summary": 72.66},
    "R_P": {"synthetic": 87.50, "HH": 65.63, "Summary": 68.75},
}


def delta(first: str, second: str, temperature: Any = TEMPERATURE) -> Mapping[str, str]:
    """The paper's deltas of one kind of responses against another, by dataset.

    A comparison that the paper's table has the other way round has the sign turned. One at another
    temperature than the paper's has none.
    """
    if temperature != TEMPERATURE:
        return {}
    deltas = DELTAS.get((first, second))
    if deltas is None:
        turned = DELTAS.get((second, first), {})
        deltas = {dataset: -value for dataset, value in turned.items()}
    return {dataset: f"{value:+.2f}" for dataset, value in deltas.items()}


def elo(
    iteration: int, method: str = "pit", temperature: Any = BEST_TEMPERATURE
) -> Mapping[str, str]:
    """The paper's ELO ratings of `pit` or `self_refine` by dataset; none past the fifth iteration.

    There are none at another temperature than the paper's for PIT, which the rating pool is of.
    """
    if temperature != BEST_TEMPERATURE:
        return {}
    ratings = {
        dataset: series[iteration - 1]
        for dataset, series in ELO[method].items()
        if 1 <= iteration <= len(series)
    }
    ratings = ratings if iteration else ORIGINAL_ELO
    return {dataset: str(rating) for dataset, rating in ratings.items()}


def accuracy(reward_model: str) -> Mapping[str, str]:
    """The paper's accuracies of R_PIT or R_P by dataset; none for another model."""
    accuracies = ACCURACY.get(reward_model, {})
    return {dataset: f"{value:.2f}" for dataset, value in accuracies.items()}


def columns(quantity: str, rows: Sequence[Mapping[str, str]]) -> tuple[list[str], list[list[str]]]:
    """Makes a column of each dataset that the paper has a figure of.

    Args:
      quantity: what the figures are, such as `Δ`.
      rows: the paper's figures beside each row, by dataset.

    Returns:
      the names of the columns, and the cells of each row; none where there are no figures.
    """
    datasets = _in_order(dataset for row in rows for dataset in row)
    names = [f"Paper’s {quantity}: {dataset}" for dataset in datasets]
    return names, [[row.get(dataset, NONE) for dataset in datasets] for row in rows]


def _in_order(datasets: Iterable[str]) -> list[str]:
    found = set(datasets)
    return [dataset for dataset in ("synthetic", "HH", "Summary") if dataset in found]
