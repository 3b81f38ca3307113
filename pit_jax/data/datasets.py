"""What a dataset is made of, and its train, dev and test examples."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

from pit_jax.data import instructions, readers
from pit_jax.data.examples import SPLITS, Example, stable_hash
from pit_jax.errors import UserError

KINDS = ("instructions", "preferences", "hh")


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """One dataset.

    Attributes:
      kind: `instructions` (synthetic), `preferences` (JSON lines) or `hh` (Anthropic HH-RLHF).
      train_size: examples in the train split; for files 0 means all that remain.
      dev_size: examples in the dev split; for files at most this many.
      test_size: likewise for the test split.
      seed: of the synthetic generator.
      family: synthetic only: a key of instructions.FAMILIES.
      level: synthetic only: the family's configuration.
      path: files only: a path or glob, or several.
      test_path: files only: where dev and test come from; empty means from `path` too.
    """

    kind: str
    train_size: int
    dev_size: int
    test_size: int
    seed: int = 0
    family: str = ""
    level: Any = None
    path: str | tuple[str, ...] = ""
    test_path: str | tuple[str, ...] = ""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"dataset: got kind {self.kind!r}, expected one of {', '.join(KINDS)}")
        if min(self.train_size, self.dev_size, self.test_size) < 0:
            raise UserError(f"dataset: expected sizes of 0 or more, got {self}")
        if self.kind == "instructions":
            if self.family not in instructions.FAMILIES:
                choices = ", ".join(instructions.FAMILIES)
                raise UserError(f"dataset: got family {self.family!r}, expected one of {choices}")
            expected = instructions.FAMILIES[self.family].CONFIG
            if not isinstance(self.level, expected):
                raise UserError(
                    f"dataset: family {self.family!r} got level {self.level!r}, expected an "
                    f"instance of {expected.__name__}"
                )
        elif not self.path:
            raise UserError(f"dataset: kind {self.kind!r} needs a path, got none")

    @property
    def name(self) -> str:
        """A short name for tasks and reports."""
        return f"{self.kind}_{self.family}" if self.family else self.kind


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Examples of every split.

    Attributes:
      splits: split -> examples, `index` being the position in it. No prompt is in two splits.
      read: pairs read from files, or generated.
      dropped: reason -> number of pairs read that are in no split.
    """

    splits: dict[str, list[Example]]
    read: int
    dropped: dict[str, int]


def load(config: DatasetConfig) -> Dataset:
    """Generates or reads a dataset.

    From files, a prompt's hash decides where it goes: prompts are taken in the order of their hash,
    first for test, then for dev, until each has its size; the rest is train. So a prompt with
    several pairs is in one split only, and the choice doesn't depend on the order of the file.

    Raises:
      UserError: for files that can't be read and families that are exhausted.
    """
    sizes = {"train": config.train_size, "dev": config.dev_size, "test": config.test_size}
    if config.kind == "instructions":
        splits = {
            split: instructions.examples(
                config.family, split, sizes[split], config.seed, config.level
            )
            for split in SPLITS
        }
        return Dataset(splits, sum(map(len, splits.values())), {})
    read = {"preferences": readers.read_preferences, "hh": readers.read_hh}[config.kind]
    reading = read(config.path)
    dropped = collections.Counter(reading.dropped)
    count = reading.read
    if config.test_path:
        held_out = read(config.test_path)
        dropped.update(held_out.dropped)
        count += held_out.read
        test, dev, unused = _divide(held_out.examples, sizes)
        dropped["not needed for dev or test"] = len(unused)
        held_out_prompts = {example.prompt for example in held_out.examples}
        train = [e for e in reading.examples if e.prompt not in held_out_prompts]
        dropped["prompt also in the test files"] = len(reading.examples) - len(train)
    else:
        test, dev, train = _divide(reading.examples, sizes)
    if sizes["train"]:
        dropped["over train_size"] = max(0, len(train) - sizes["train"])
        train = train[: sizes["train"]]
    splits = {
        split: [dataclasses.replace(e, index=i) for i, e in enumerate(part)]
        for split, part in (("train", train), ("dev", dev), ("test", test))
    }
    return Dataset(splits, count, {reason: n for reason, n in dropped.items() if n})


def _divide(
    examples: list[Example], sizes: dict[str, int]
) -> tuple[list[Example], list[Example], list[Example]]:
    """Test, dev and the rest: whole prompts by the order of their hash, each in file order."""
    by_prompt: dict[str, list[Example]] = {}
    for example in examples:
        by_prompt.setdefault(example.prompt, []).append(example)
    parts: dict[str, list[Example]] = {"test": [], "dev": [], "rest": []}
    for prompt in sorted(by_prompt, key=lambda p: (stable_hash(p, "split"), p)):
        group = by_prompt[prompt]
        part = next((s for s in ("test", "dev") if len(parts[s]) + len(group) <= sizes[s]), "rest")
        parts[part] += group
    test, dev, rest = (sorted(part, key=lambda e: e.index) for part in parts.values())
    return test, dev, rest
