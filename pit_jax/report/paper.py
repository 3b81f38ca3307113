"""The paper's own figures (ICLR 2024, Tables 1 to 4), shown beside ours in a report.

Other models, data and judges: they say what size of effect to expect, not what to reproduce.
"""

from __future__ import annotations

from collections.abc import Mapping

from pit_jax.report.formatting import NO_BREAK

# Tables 1 and 2: delta in percent. 'synthetic' is judged by GPT-4; 'HH' and 'Summary' by DeBERTa.
DELTAS: Mapping[str, Mapping[str, float]] = {
    "original vs chosen": {"synthetic": -22.66, "HH": 50.20, "Summary": 74.20},
    "pit vs original": {"synthetic": 33.59, "HH": 14.00, "Summary": 7.20},
    "self-refine vs original": {"synthetic": 16.41, "HH": 8.90},
    "pit vs self-refine": {"synthetic": 10.16, "HH": 3.70},
    "first rl only vs original": {"HH": 4.40},
    "first rl only vs self-refine": {"HH": -15.70},
    "first rl only vs pit": {"HH": -30.10},
    "second rl only vs original": {"HH": 0.20},
    "second rl only vs self-refine": {"HH": -18.90},
    "second rl only vs pit": {"HH": -36.70},
}

# Table 3, by iteration; iteration 0 is the original response. Judged by DeBERTa.
ELO: Mapping[str, tuple[int, ...]] = {
    "HH": (921, 1033, 1016, 1018, 1036, 1025),
    "Summary": (900, 1022, 1049, 1031, 985, 1013),
}

# Table 4: accuracy in percent.
ACCURACY: Mapping[str, Mapping[str, float]] = {
    "R_PIT": {"synthetic": 96.09, "HH": 65.63, "Summary": 72.66},
    "R_P": {"synthetic": 87.50, "HH": 65.63, "Summary": 68.75},
}

_MODEL_NAMES = {"r_pit": "R_PIT", "rm_gap": "R_PIT", "r_p": "R_P", "rm_policy": "R_P"}
_SYNONYMS = {"y_w": "chosen", "ywin": "chosen", "y_win": "chosen", "pit (all rounds)": "pit"}


def delta(comparison: str) -> str:
    """The paper's deltas for a comparison such as 'PIT vs original'; '' where it has none."""
    first, _, second = comparison.lower().replace("vs.", "vs").partition(" vs ")
    first, second = (_SYNONYMS.get(side.strip(), side.strip()) for side in (first, second))
    deltas = DELTAS.get(f"{first} vs {second}", {})
    return ", ".join(f"{value:+.2f}{NO_BREAK}{dataset}" for dataset, value in deltas.items())


def elo(iteration: int) -> str:
    """Writes the paper's ELO ratings of PIT at an iteration; '' past its fifth."""
    return ", ".join(
        f"{ratings[iteration]}{NO_BREAK}{dataset}"
        for dataset, ratings in ELO.items()
        if 0 <= iteration < len(ratings)
    )


def accuracy(reward_model: str) -> str:
    """The paper's accuracies of R_PIT or R_P (also called by stage name); '' for another model."""
    accuracies = ACCURACY.get(_MODEL_NAMES.get(reward_model.lower(), ""), {})
    return ", ".join(f"{value:.2f}{NO_BREAK}{dataset}" for dataset, value in accuracies.items())
