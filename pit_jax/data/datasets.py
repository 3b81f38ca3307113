"""Says what a dataset is made of, and loads its train, dev and test examples."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pit_jax.checked import UserPath, at_least, checked
from pit_jax.data.examples import SPLITS, Example, stable_hash
from pit_jax.data.files import formats, readers, turns
from pit_jax.data.files.fields import NAMES, Fields, nearest
from pit_jax.data.synthetic import instructions
from pit_jax.errors import UserError

# Of each kind: what reads its files.
_READERS: dict[str, Callable[..., readers.Reading]] = {
    "preferences": readers.read_preferences,
    "hh": readers.read_hh,
    "summaries": readers.read_summaries,
}
KINDS = ("instructions", *_READERS, "tfds")
# The kinds whose files may have any of shapes.SHAPES.
_SHAPED = ("preferences", "hh")
A_TENTH = -1  # a size of dev or test
_MOST_OF_A_TENTH = 300
# What examples share that are in one split and in one fold together -> what an example has of it:
# how its x says it, and how its file does.
_GROUPS: dict[str, Callable[[Example], tuple[str, str]]] = {
    "prompt": lambda e: (e.prompt, e.group),
    "first_turn": lambda e: (turns.first_turn(e.prompt),) * 2,
}


@dataclasses.dataclass(frozen=True)
@checked
class DatasetConfig:
    """Describes a dataset.

    Attributes:
      kind: `instructions` (synthetic); `preferences` (JSON lines), `hh` (Anthropic HH-RLHF) or
        `summaries` (OpenAI summarize-from-feedback), read from files; `tfds`, one that
        `tfds build` has prepared (data/files/builders.py).
      train_size: examples in the train split; 0 means all that remain, except for `instructions`.
        Of files, it takes them in the order of a hash, like dev and test, and not the first ones.
      dev_size: examples in the dev split; except for `instructions`, at most this many, and -1
        takes a tenth of those that are read, 300 at most.
      test_size: examples in the test split, likewise.
      seed: seed of the synthetic generator.
      family: for `instructions` only: a key of instructions.FAMILIES.
      level: for `instructions` only: the family's configuration.
      path: for files: a path or glob, or several; for `tfds`: name of the dataset, such as
        `hh_rlhf/helpful`, or the directory it was prepared in.
      test_path: for files only: where dev and test come from; empty means from `path` too.
      data_dir: for `tfds` only: the `--data_dir` it was prepared with; empty is TFDS's own.
      on_error: for files only: `raise` stops at malformed lines, `skip` counts them as dropped.
      group_by: which examples stay together in one split and in one fold: those with the same
        `prompt`, or the same `first_turn`, for files that have dialogues cut after each turn. Those
        that differ only in white space, or in how Unicode composes characters, are the same.
      columns: for `preferences` and `hh` only: name of fields.NAMES, such as `chosen`, -> the key
        that stands for it in the files.
      min_margin: for `preferences` and `hh` only: by how much the chosen response has to be better,
        in the unit of the files' own scores; 0 takes every pair but ties.
    """

    kind: str
    train_size: int
    dev_size: int
    test_size: int
    seed: int = 0
    family: str = ""
    level: Any = None
    path: UserPath | tuple[UserPath, ...] = ""
    test_path: UserPath | tuple[UserPath, ...] = ""
    data_dir: UserPath = ""
    on_error: str = "raise"
    group_by: str = "prompt"
    columns: Mapping[str, str] | None = dataclasses.field(
        default=None, hash=False, metadata={"variation": True}
    )
    min_margin: float = dataclasses.field(default=0.0, metadata={"variation": True})

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UserError(f"dataset: got kind {self.kind!r}, expected one of {', '.join(KINDS)}")
        at_least(self, 0, "train_size", "seed")
        at_least(self, 0 if self.kind == "instructions" else A_TENTH, "dev_size", "test_size")
        if self.on_error not in readers.ON_ERROR:
            choices = ", ".join(readers.ON_ERROR)
            raise UserError(f"dataset: got on_error={self.on_error!r}, expected one of {choices}")
        if self.group_by not in _GROUPS:
            choices = ", ".join(_GROUPS)
            raise UserError(f"dataset: got group_by={self.group_by!r}, expected one of {choices}")
        self._check_columns()
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

    def _check_columns(self) -> None:
        columns = self.columns or {}
        for name in columns:
            if name not in NAMES:
                raise UserError(
                    f"dataset: got columns for {name!r}, expected one of {', '.join(NAMES)}"
                    f"{nearest(name, NAMES)}"
                )
        if len(set(columns.values())) < len(columns):
            raise UserError(f"dataset: got columns={columns!r}, expected each key once")
        if not 0 <= self.min_margin < math.inf:
            raise UserError(f"dataset: got min_margin={self.min_margin}, expected 0 or more")
        if (columns or self.min_margin) and self.kind not in _SHAPED:
            raise UserError(
                f"dataset: got columns or min_margin for kind {self.kind!r}, expected them for "
                + " or ".join(_SHAPED)
            )

    @property
    def name(self) -> str:
        """A short name for tasks and reports."""
        return f"{self.kind}_{self.family}" if self.family else self.kind


@dataclasses.dataclass(frozen=True)
@checked
class MixtureConfig:
    """Describes several datasets used at once, such as summaries beside dialogues.

    Attributes:
      parts: the datasets.
      rates: how often each dataset is drawn in training, in any unit; empty draws every example
        equally often.
    """

    parts: tuple[DatasetConfig, ...]
    rates: tuple[float, ...] = ()
    kind = "mixture"

    def __post_init__(self):
        if not self.parts:
            raise UserError("mixture: got no parts, expected one dataset or more")
        if self.rates and (len(self.rates) != len(self.parts) or min(self.rates) <= 0):
            raise UserError(
                f"mixture: got rates {self.rates}, expected {len(self.parts)} positive numbers, "
                "one for each of its parts, or none"
            )
        if len(ways := {part.group_by for part in self.parts}) > 1:
            raise UserError(
                f"mixture: got group_by={' and '.join(sorted(ways))}, expected the same for all "
                "parts, so that none holds out what another trains on"
            )

    @property
    def group_by(self) -> str:
        """What examples share that stay together, the same for all parts."""
        return self.parts[0].group_by

    @property
    def name(self) -> str:
        """A short name for tasks and reports."""
        return "_and_".join(dict.fromkeys(part.name for part in self.parts))


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Holds the examples of every split.

    Attributes:
      name: name that its tasks begin with.
      splits: split -> examples; `index` counts them over the datasets of a mixture, and in dev and
        test the datasets take turns by a hash.
      read: number of pairs read from files, or generated.
      dropped: reason -> number of pairs read that are in no split.
      malformed: some of the lines that were skipped, as `file:line: …`.
      shape: the shape that the files were read as; see readers.Reading.
    """

    name: str
    splits: dict[str, list[Example]]
    read: int
    dropped: dict[str, int]
    malformed: tuple[str, ...] = ()
    shape: str = ""


def prompt(config: DatasetConfig | MixtureConfig, record: Mapping[str, Any]) -> str:
    """Makes x of a record's prompt, text or turns, as it is made for training on a dataset.

    A text is x as it stands where the dataset is synthetic, at least in part. Elsewhere it is made
    x as module turns says, and `prompt` may be spelled as in the dataset's files.

    Raises:
      ValueError: if the record has no prompt, or one that is neither text nor turns.
    """
    parts = config.parts if isinstance(config, MixtureConfig) else (config,)
    mappings = [part.columns or {} for part in parts]
    mapped = (columns for columns in mappings if columns.get("prompt") in record)
    columns = {name: key for name, key in next(mapped, {}).items() if key in record}
    fields = Fields(record, columns)
    if any(map(is_synthetic, parts)) and turns.listed(fields["prompt"]) is None:
        return fields.text("prompt")
    return formats.prompt(fields)


def is_synthetic(config: DatasetConfig) -> bool:
    """Returns whether a dataset has this package's synthetic prompts, whose texts are x."""
    path = config.path if isinstance(config.path, str) else ""
    return config.kind == "instructions" or (
        config.kind == "tfds" and "instructions" in path.split("/")
    )


def load(
    config: DatasetConfig | MixtureConfig,
    fits: Callable[[Example], bool] = lambda _: True,
    check: readers.Check | None = None,
) -> list[Dataset]:
    """Generates or reads the dataset, or every dataset of a mixture.

    Examples from a file go together by group: those that share the prompt, or what `group_by` says,
    but for white space. A group is named, and so hashed, as its files have it: where it is written
    in several ways, as the shortest of them.
    Groups are taken in the order of a hash, first for test, then for dev, until each has its size
    of examples that fit the windows (the others are dropped later, by whoever tokenizes); the rest
    is train. So a group with several pairs is in a single split, and the choice doesn't depend on
    the order of the file. No group is in two splits, not even in those of different parts of a
    mixture.

    Dev and test are in the order of another hash of the group, those of all parts of a mixture
    together (unless they are synthetic and alone: these are random as they come). So the first n of
    them are a sample. Train is in the order of the files.

    Args:
      config: the dataset.
      fits: whether an example fits the windows; asked only of what may go to test or dev.
      check: raises ValueError for an example that is to be treated as a malformed line; not asked
        of synthetic ones.

    Raises:
      UserError: for files that can't be read and families that are exhausted.
    """
    parts = config.parts if isinstance(config, MixtureConfig) else (config,)
    sources = [_source(part, check) for part in parts]
    group = _grouping(sources, _GROUPS[config.group_by])
    loaded = [_divided(each, group, fits) for each in sources]
    held_out: set[str] = set()
    names: collections.Counter[str] = collections.Counter()
    datasets = []
    for split in ("test", "dev", "train"):
        for each in loaded:
            kept = [e for e in each.splits[split] if e.group not in held_out]
            reason = f"{_words(config.group_by)} also in another part"
            each.dropped[reason] += len(each.splits[split]) - len(kept)
            each.splits[split] = kept
        held_out |= {e.group for each in loaded for e in each.splits[split]}
    for split in SPLITS:
        _number([each.splits for each in loaded], split)
    for each in loaded:
        names[each.name] += 1
        name = each.name if names[each.name] == 1 else f"{each.name}_{names[each.name]}"
        dropped = {reason: n for reason, n in each.dropped.items() if n}
        datasets.append(dataclasses.replace(each, name=name, dropped=dropped))
    return datasets


def _number(parts: Sequence[dict[str, list[Example]]], split: str) -> None:
    """Numbers a split's examples over all parts, one part after the other only in train."""
    pool = [(part, example) for part in parts for example in part[split]]
    if split != "train" and len(parts) > 1:
        pool.sort(key=lambda pair: _order(pair[1]))
    for part in parts:
        part[split] = []
    for index, (part, example) in enumerate(pool):
        part[split].append(dataclasses.replace(example, index=index))


def _order(example: Example) -> tuple[int, str]:
    """Sorts groups at random, alike in every dataset and independently of splits and folds."""
    return stable_hash(example.group, "order"), example.group


def _words(group_by: str) -> str:
    return group_by.replace("_", " ")


@dataclasses.dataclass(frozen=True)
class _Source:
    """Holds what was read for a dataset; `held_out` is None if its own files hold dev and test."""

    config: DatasetConfig
    reading: readers.Reading
    held_out: readers.Reading | None


def _source(config: DatasetConfig, check: readers.Check | None) -> _Source:
    if config.kind == "instructions":
        return _Source(config, readers.Reading([], 0, {}), None)
    return _Source(config, *_read(config, check))


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _grouping(
    sources: Sequence[_Source], told: Callable[[Example], tuple[str, str]]
) -> Callable[[Example], str]:
    """Returns what names an example's group, the same in all of the sources."""
    names: dict[str, str] = {}
    for each in sources:
        if is_synthetic(each.config):
            continue
        for reading in filter(None, (each.reading, each.held_out)):
            for text, name in map(told, reading.examples):
                key = _normal(text)
                names[key] = min(names.get(key, name), name, key=_by_length)

    def group(example: Example) -> str:
        text, name = told(example)
        return names.get(_normal(text), name)

    return group


def _by_length(text: str) -> tuple[int, str]:
    return len(text), text


def _divided(
    source: _Source, group: Callable[[Example], str], fits: Callable[[Example], bool]
) -> Dataset:
    """Divides what was read, or generates it, with a Counter as `dropped`."""
    config, reading, held_out = source.config, source.reading, source.held_out
    sizes = {"train": config.train_size, "dev": config.dev_size, "test": config.test_size}
    if config.kind == "instructions":
        splits = {
            split: _grouped(
                instructions.examples(
                    config.family, split, sizes[split], config.seed, config.level
                ),
                group,
            )
            for split in SPLITS
        }
        read = sum(map(len, splits.values()))
        return Dataset(config.name, splits, read, collections.Counter())
    dropped = collections.Counter(reading.dropped)
    count, malformed = reading.read, reading.malformed
    examples = _grouped(reading.examples, group)
    if held_out is not None:
        dropped.update(held_out.dropped)
        count, malformed = count + held_out.read, malformed + held_out.malformed
        others = _grouped(held_out.examples, group)
        test, dev, unused = _divide(others, _held_out_sizes(sizes, others), fits)
        dropped["not needed for dev or test"] = len(unused)
        groups = {example.group for example in others}
        train = [e for e in examples if e.group not in groups]
        dropped[f"{_words(config.group_by)} also in the test files"] = len(examples) - len(train)
    else:
        test, dev, train = _divide(examples, _held_out_sizes(sizes, examples), fits)
    if sizes["train"]:
        dropped["over train_size"] = max(0, len(train) - sizes["train"])
        train = sorted(sorted(train, key=_order)[: sizes["train"]], key=lambda e: e.index)
    splits = {"train": train, "dev": dev, "test": test}
    both = dict.fromkeys(each.shape for each in (reading, held_out) if each and each.shape)
    return Dataset(config.name, splits, count, dropped, malformed, "; ".join(both))


def _read(
    config: DatasetConfig, check: readers.Check | None
) -> tuple[readers.Reading, readers.Reading | None]:
    """Reads the pairs to train on, some of them to hold out, and those of `test_path`, if any."""
    if config.kind != "tfds":
        read = _READERS[config.kind]
        if config.kind in _SHAPED:
            read = functools.partial(read, columns=config.columns, min_margin=config.min_margin)
        reading = read(config.path, on_error=config.on_error, check=check)
        if not config.test_path:
            return reading, None
        return reading, read(config.test_path, on_error=config.on_error, check=check)
    from pit_jax.data.files import builders

    if not isinstance(config.path, str):
        raise UserError(f"dataset: got path {config.path!r}, expected the name of one TFDS dataset")
    splits = builders.read_prepared(config.path, config.data_dir or None)
    train = splits.pop("train", [])
    held_out = [example for examples in splits.values() for example in examples]
    found = []
    for examples in (train, held_out):
        accepted = check or (lambda _: None)
        found.append(readers.checked(examples, config.path, config.on_error, accepted))
    return found[0], found[1] if held_out else None


def _grouped(examples: list[Example], group: Callable[[Example], str]) -> list[Example]:
    return [dataclasses.replace(example, group=group(example)) for example in examples]


def _held_out_sizes(sizes: dict[str, int], pool: list[Example]) -> dict[str, int]:
    tenth = min(len(pool) // 10, _MOST_OF_A_TENTH)
    return {split: tenth if size == A_TENTH else size for split, size in sizes.items()}


def _divide(
    examples: list[Example], sizes: dict[str, int], fits: Callable[[Example], bool]
) -> tuple[list[Example], list[Example], list[Example]]:
    """Divides whole groups by their hash; the rest stays in file order."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.group, []).append(example)
    parts: dict[str, list[Example]] = {"test": [], "dev": [], "rest": []}
    room = {split: sizes[split] for split in ("test", "dev")}
    for key in sorted(groups, key=lambda group: (stable_hash(group, "split"), group)):
        group = groups[key]
        part = "rest"
        if any(room.values()):
            count = sum(map(fits, group))
            part = next((s for s in room if room[s] and count <= room[s]), "rest")
        if part != "rest":
            room[part] -= count
        parts[part] += group
    test, dev = (sorted(parts[split], key=_order) for split in room)
    return test, dev, sorted(parts["rest"], key=lambda e: e.index)
