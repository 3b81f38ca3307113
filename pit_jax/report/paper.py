"""The paper's own figures (ICLR 2024, Tables 1 to 4), shown beside ours in a report.

Other models, data and judges: they say what size of effect to expect, not what to reproduce.
"""

from __future__ import annotations

from collections.abc import Mapping

from pit_jax.report.formatting import NO_BREAK

# What the paper's figures are of, for captions.
TABLE_1 = (
    "Paper: Table 1, temperature 1; synthetic data judged by GPT-4, HH-RLHF (HH) and "
    "OpenAI/Summary by DeBERTa."
)
TABLE_2 = (
    "Paper: Table 2, HH-RLHF, judged by DeBERTa; where the comparison here is the other way round, "
    "with the sign turned."
)
TABLE_3 = (
    "Paper: Table 3, judged by DeBERTa, each method at its best temperature; on HH-RLHF its rating "
    "pool holds Self-Refine too, as here where there are rows of it."
)
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


def delta(first: str, second: str) -> str:
    """The paper's deltas of one kind of responses against another; '' where it has none.

    A comparison that the paper's table has the other way round has the sign turned.
    """
    deltas = DELTAS.get((first, second))
    if deltas is None:
        turned = DELTAS.get((second, first), {})
        deltas = {dataset: -value for dataset, value in turned.items()}
    return ", ".join(f"{value:+.2f}{NO_BREAK}{dataset}" for dataset, value in deltas.items())


def elo(iteration: int, method: str = "pit") -> str:
    """Writes the paper's ELO ratings of `pit` or `self_refine`; '' past the fifth iteration."""
    ratings = {
        dataset: series[iteration - 1]
        for dataset, series in ELO[method].items()
        if 1 <= iteration <= len(series)
    }
    ratings = ratings if iteration else ORIGINAL_ELO
    return ", ".join(f"{rating}{NO_BREAK}{dataset}" for dataset, rating in ratings.items())


def accuracy(reward_model: str) -> str:
    """The paper's accuracies of R_PIT or R_P; '' for another model."""
    accuracies = ACCURACY.get(reward_model, {})
    return ", ".join(f"{value:.2f}{NO_BREAK}{dataset}" for dataset, value in accuracies.items())
