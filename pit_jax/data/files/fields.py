"""Gives the values of a record by one name each, however its file spells them."""

from __future__ import annotations

import difflib
import functools
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from pit_jax.data.files.json_values import shown

# Name -> how files spell it; the first spelling that a record has a value for is taken.
NAMES: dict[str, tuple[str, ...]] = {
    "prompt": (
        *("prompt", "question", "instruction", "query", "context", "messages", "conversations"),
        *("conversation", "trajectory", "history", "input"),
    ),
    "input": ("input",),
    "system": ("system", "system_prompt"),
    "chosen": (
        *("chosen", "chosen_response", "response_chosen", "preferred", "preferred_output"),
        *("chosen_answer", "response_j"),
    ),
    "rejected": (
        *("rejected", "rejected_response", "response_rejected", "dispreferred"),
        *("non_preferred_output", "rejected_answer", "response_k"),
    ),
    "reflection": ("reflection",),
    "response_a": (
        *("response_a", "response_A", "response1", "response_1", "response_0", "answer_a"),
        *("answer_1", "answer_0", "completion_a", "completion_1", "completion_0", "output_a"),
        *("output_1", "output_0", "conversation_a", "human_ref_A"),
    ),
    "response_b": (
        *("response_b", "response_B", "response2", "response_2", "response_1", "answer_b"),
        *("answer_2", "answer_1", "completion_b", "completion_2", "completion_1", "output_b"),
        *("output_2", "output_1", "conversation_b", "human_ref_B"),
    ),
    "preference": (
        *("preference", "winner", "overall_preference", "preference_strength"),
        *("better_response_id", "better", "choice", "label", "labels"),
    ),
    "responses": ("responses", "completions", "answers", "candidates", "generations"),
    "scores": ("scores", "ratings", "rewards", "rating", "ranks", "rank"),
    "response": ("response", "completion", "answer", "output"),
    "label": ("label", "desirable", "kto_tag"),
    "score": ("score", "helpfulness", "overall_score", "rating", "reward"),
    "score_chosen": (
        *("score_chosen", "chosen_score", "rating_chosen", "chosen_rating", "chosen_avg_rating"),
        *("reward_chosen", "chosen_reward"),
    ),
    "score_rejected": (
        *("score_rejected", "rejected_score", "rating_rejected", "rejected_rating"),
        *("rejected_avg_rating", "reward_rejected", "rejected_reward"),
    ),
    "margin": ("margin", "score_margin"),
}
_TWO = ("response_a", "response_b")
_PAIRS = [(pair, set(pair)) for pair in zip(*(NAMES[name] for name in _TWO), strict=True)]


class Fields:
    """Holds a record, whose values it gives by the keys of NAMES.

    Attributes:
      record: the record.
      columns: name -> the key that stands for it in the record, instead of the spellings.
    """

    def __init__(self, record: Mapping[str, Any], columns: Mapping[str, str] | None = None):
        self.record = record
        self.columns = dict(columns or {})
        filled = tuple(key for key, value in record.items() if value is not None)
        self._keys = _keys(filled, tuple(record), tuple(self.columns.items()))

    def __contains__(self, name: str) -> bool:
        return self.record.get(self.key(name)) is not None

    def __getitem__(self, name: str) -> Any:
        return self.record.get(self.key(name))

    def key(self, name: str) -> str:
        """Returns the key that stands for a name in the record; the name if none does."""
        return self._keys.get(name, name)

    def got(self, name: str) -> str:
        """Shows the value under a name, or the record's keys if it isn't there, for a message."""
        return got(self.record, self.key(name))

    def text(self, name: str) -> str:
        """Returns the text under a name.

        Raises:
          ValueError: if it isn't text.
        """
        return text(self.record, self.key(name))

    def number(self, name: str) -> float | None:
        """Returns the finite number under a name; None for anything else."""
        return number(self[name])


@functools.lru_cache(1024)
def _keys(
    filled: tuple[str, ...], keys: tuple[str, ...], columns: tuple[tuple[str, str], ...]
) -> dict[str, str]:
    """Returns name -> key, of a record with these keys; some are `filled`, the others hold null."""
    found = dict(columns)
    taken = set(found.values())
    free, full = set(keys) - taken, set(filled) - taken
    for name, spellings in NAMES.items():
        if name not in found and name not in _TWO:
            there = [key for key in spellings if key in free]
            found[name] = next((key for key in there if key in full), there[0] if there else name)
    if not set(_TWO) & found.keys():
        pair = next((two for two, both in _PAIRS if free >= both), _TWO)
        found |= dict(zip(_TWO, pair, strict=True))
    return found


def number(value: Any) -> float | None:
    """Returns a number that a float holds, as a float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if -sys.float_info.max <= value <= sys.float_info.max else None


def got(record: Mapping[str, Any], key: str) -> str:
    """Shows the value under a key, or the record's keys if it isn't there, for a message."""
    return shown(record[key]) if key in record else f"the keys {shown(sorted(record))}"


def text(record: Mapping[str, Any], key: str) -> str:
    """Returns the text under a key.

    Raises:
      ValueError: if it isn't text.
    """
    value = record.get(key)
    if not isinstance(value, str):
        raise ValueError(f"got {got(record, key)}, expected text under {key!r}")
    return value


def nearest(name: str, names: Iterable[str]) -> str:
    """Asks in a message whether the nearest of some names was meant; empty if none is near."""
    found = difflib.get_close_matches(name, list(names), 1, 0.6)
    return f"; did you mean {found[0]!r}?" if found else ""
