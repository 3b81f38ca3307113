"""Divides examples into train, dev and test by whole groups, in the order of a hash."""

from __future__ import annotations

import collections
import itertools
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from pit_jax.data.examples import SPLITS, Example, stable_hashes
from pit_jax.data.files import turns
from pit_jax.data.progress import chunks
from pit_jax.data.texts import Examples, Texts

Fits = Callable[[Example], bool]
# What examples share that are in one split and in one fold together -> what an example has of it,
# by its prompt and its group as it was read: how its x says it, and how its file does.
GROUPS: dict[str, Callable[[str, str], tuple[str, str]]] = {
    "prompt": lambda prompt, group: (prompt, group),
    "first_turn": lambda prompt, group: (turns.first_turn(prompt),) * 2,
}


def grouped(
    piles: Sequence[Examples], group_by: str, voting: Sequence[bool]
) -> tuple[Texts, list[np.ndarray]]:
    """Puts the texts of what was read together, and names their groups.

    Args:
      piles: what each reading has, all of its texts.
      group_by: a key of GROUPS.
      voting: for each of them whether its ways to write a group may name it.

    Returns:
      the texts, and the rows that each of the piles has there.
    """
    of = GROUPS[group_by]
    parts = [part for pile in piles for part in pile.texts.parts]
    bounds = np.cumsum([0, *map(len, piles)])
    renamed: dict[int, str] = {}
    texts = Texts(parts, lambda prompt, group: of(prompt, group)[1], renamed)
    keys = np.empty(bounds[-1], np.uint64)
    for some in chunks(len(keys), "prompts compared"):
        asked = texts.asked(np.arange(len(keys))[some])
        keys[some] = stable_hashes((_normal(of(*each)[0]) for each in asked), "same")
    votes = np.repeat(voting, np.diff(bounds))
    for rows in _runs(keys):
        names = texts.groups(np.array(rows))
        voted = [name for name, row in zip(names, rows, strict=True) if votes[row]]
        if not voted:
            continue
        shortest = min(voted, key=lambda name: (len(name), name))
        renamed |= {
            row: shortest for row, name in zip(rows, names, strict=True) if name != shortest
        }
    return texts, [np.arange(a, b) for a, b in itertools.pairwise(bounds)]


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _runs(keys: np.ndarray) -> Iterator[list[int]]:
    """Yields the places of each key that is there more than once."""
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    edges = np.diff(np.concatenate([[False], same, [False]]).astype(np.int8))
    for start, end in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1), strict=True):
        yield order[start : end + 1].tolist()


def divide(
    texts: Texts, rows: np.ndarray, sizes: Mapping[str, int], fits: Fits
) -> dict[str, np.ndarray]:
    """Divides whole groups by their hash.

    Args:
      texts: what the rows are of.
      rows: the rows to divide.
      sizes: the most that may go to `test` and to `dev`.
      fits: whether an example counts.

    Returns:
      the rows of `test` and of `dev`, each by another hash, and the `rest`, in their order.
    """
    split = texts.hashes["split"][rows]
    order = np.argsort(split, kind="stable")
    edges = np.flatnonzero(np.diff(split[order])) + 1
    part = np.zeros(len(rows), np.int8)
    room = {name: sizes[name] for name in ("test", "dev")}
    start = 0
    for end in [*edges.tolist(), len(rows)]:
        if not any(room.values()) or start == end:
            break
        members = order[start:end]
        count = sum(fits(texts.example(int(row), 0)) for row in rows[members])
        for number, name in enumerate(room, 1):
            if room[name] and count <= room[name]:
                room[name] -= count
                part[members] = number
                break
        start = end
    found = {name: by_order(texts, rows[part == n]) for n, name in enumerate(room, 1)}
    return {**found, "rest": rows[part == 0]}


def by_order(texts: Texts, rows: np.ndarray) -> np.ndarray:
    """Sorts groups at random, alike in every dataset and independently of splits and folds."""
    return rows[np.argsort(texts.hashes["order"][rows], kind="stable")]


def without_shared(
    texts: Texts,
    loaded: Sequence[dict[str, np.ndarray]],
    dropped: Sequence[collections.Counter],
    reason: str,
) -> None:
    """Takes the groups out of dev and train that another part has in test, or in dev.

    Args:
      texts: what the rows are of.
      loaded: the splits of each part, which change.
      dropped: for each part a counter, to which those are added that it loses.
      reason: what they are counted under.
    """
    held_out = np.zeros(0, np.uint64)
    groups = texts.hashes["split"]
    for split in ("test", "dev", "train"):
        for splits, counter in zip(loaded, dropped, strict=True):
            kept = splits[split][~np.isin(groups[splits[split]], held_out)]
            counter[reason] += len(splits[split]) - len(kept)
            splits[split] = kept
        held_out = np.unique(np.concatenate([held_out, *(groups[s[split]] for s in loaded)]))


def numbered(texts: Texts, loaded: Sequence[dict[str, np.ndarray]]) -> list[dict[str, Examples]]:
    """Numbers each split's examples over all parts, one part after the other only in train."""
    found: list[dict[str, Examples]] = [{} for _ in loaded]
    for split in SPLITS:
        rows = np.concatenate([splits[split] for splits in loaded])
        parts = np.repeat(np.arange(len(loaded)), [len(splits[split]) for splits in loaded])
        if split != "train" and len(loaded) > 1:
            order = np.argsort(texts.hashes["order"][rows], kind="stable")
            rows, parts = rows[order], parts[order]
        for number, splits in enumerate(found):
            mine = np.flatnonzero(parts == number)
            splits[split] = Examples(texts, rows[mine], mine.astype(np.int32))
    return found
