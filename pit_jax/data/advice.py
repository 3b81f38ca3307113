"""Says what makes a run on some data not worth its time, and which windows would suit the data."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from pit_jax.data.examples import SPLITS
from pit_jax.data.input_pipeline import InputPipeline
from pit_jax.data.windows import windows_for

_MUCH_DROPPED = 0.2
MUCH_UNKNOWN = 0.01
_FEW_PROMPTS = 100
# What is left out as the configuration asks for it, and isn't lost.
_WANTED = ("over train_size", "not needed for dev or test")


def warnings(data: InputPipeline, split: str, num_prompts: int = 0) -> list[str]:
    """Lists what a user should know of the data before hours of training.

    Args:
      data: the dataset, with its windows.
      split: the split that models are judged on.
      num_prompts: how many of its prompts they are judged on at most; 0 takes all.

    Returns:
      sentences: whether over 20% of the pairs are dropped, over 1% of a field's tokens are unknown
      to the vocabulary, reflections aren't learned, or there are too few prompts to tell models
      apart.
    """
    report = data.report()
    found = [*_dropped(data, report), *_unknown(data), *_long_reflections(data)]
    count = report["splits"][split]
    judged = min(num_prompts or count, count)
    if 0 < judged < _FEW_PROMPTS:
        found.append(
            f"models are compared on {judged} prompts of {split} only, which leaves Δ uncertain by "
            f"up to ±{_half_width(judged):.0f} points: take more, such as "
            f"--gin.DatasetConfig.{split}_size=300"
        )
    return found


def _half_width(n: int) -> float:
    """Half of a 95% interval of Δ, in points, where every comparison is won or lost."""
    return 100 * 1.96 / math.sqrt(n)


def _dropped(data: InputPipeline, report: Mapping) -> list[str]:
    dropped = {reason: n for reason, n in report["dropped"].items() if reason not in _WANTED}
    meant = report["read"] - sum(report["dropped"].get(reason, 0) for reason in _WANTED)
    lost = sum(dropped.values())
    if lost <= _MUCH_DROPPED * meant:
        return []
    largest = sorted(dropped.items(), key=lambda item: -item[1])
    reasons = ", ".join(f"{n:,} {reason}" for reason, n in largest)
    text = f"{lost:,} of {meant:,} pairs ({100 * lost / meant:.0f}%) are dropped: {reasons}"
    if any(reason.endswith("too long") for reason in dropped):
        wanted = suggested_windows(data)
        flags = " ".join(f"--gin.Lengths.{name}={tokens}" for name, tokens in wanted.items())
        text += f". In these windows 90% fit: {flags}"
    return [text]


def _unknown(data: InputPipeline) -> list[str]:
    found = []
    for field, share in unknown_shares(data).items():
        if share > MUCH_UNKNOWN:
            found.append(
                f"{100 * share:.1f}% of the tokens of {field} are unknown to the vocabulary, which "
                "can't tell such texts apart: take a tokenizer that knows them"
            )
    return found


def _long_reflections(data: InputPipeline) -> list[str]:
    if not data.lengths.reflection:
        return []
    read = len(data.examples("train", "sft"))
    bounds = data.row_bounds("sft_pit_reflection", "train", read + 1).values()
    lost = read - sum(most for _, most in bounds)
    if not lost:
        return []
    return [
        f"{lost:,} of {read:,} reflections aren't learned, since they are longer than "
        f"Lengths.reflection={data.lengths.reflection}"
    ]


def unknown_shares(data: InputPipeline) -> dict[str, float]:
    """Returns the share of each field's tokens, in [0, 1], that the vocabulary doesn't know."""
    counts = [data.token_counts(split) for split in SPLITS]
    return {
        field: sum(int(part[f"{field}_unknown"].sum()) for part in counts)
        / max(1, sum(int(part[field].sum()) for part in counts))
        for field in ("prompt", "chosen", "rejected")
    }


def suggested_windows(data: InputPipeline) -> dict[str, int]:
    """Returns windows of Lengths, in tokens, in which nine of ten examples fit."""
    counts = [data.token_counts(split) for split in SPLITS]
    prompt, chosen, rejected = (
        np.concatenate([part[field] for part in counts])
        for field in ("prompt", "chosen", "rejected")
    )
    return windows_for(prompt, np.maximum(chosen, rejected))
