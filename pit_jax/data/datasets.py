"""Says what a dataset is made of, and loads its train, dev and test examples."""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pit_jax.checked import UserPath, at_least, checked
from pit_jax.data import splits
from pit_jax.data.examples import SPLITS, Example
from pit_jax.data.files import formats, kept, readers, turns
from pit_jax.data.files.fields import NAMES, Fields, nearest
from pit_jax.data.flat_arrays import Cache
from pit_jax.data.splits import GROUPS
from pit_jax.data.synthetic import instructions
from pit_jax.data.texts import Examples, Texts
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
# What only some kinds read; it would be ignored in silence for another.
_ONLY_FOR = {
    "path": (*_READERS, "tfds"),
    "test_path": (*_READERS,),
    "data_dir": ("tfds",),
}
A_TENTH = -1  # a size of dev or test
_MOST_OF_A_TENTH = 300
_NOWHERE = Cache("")


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
        if self.group_by not in GROUPS:
            choices = ", ".join(GROUPS)
            raise UserError(f"dataset: got group_by={self.group_by!r}, expected one of {choices}")
        for field, kinds in _ONLY_FOR.items():
            if (value := getattr(self, field)) and self.kind not in kinds:
                raise UserError(
                    f"dataset: got {field}={value!r} for kind {self.kind!r}, expected it for "
                    + " or ".join(kinds)
                )
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
    splits: dict[str, Examples]
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
    return read(config, check).divided(fits)


@dataclasses.dataclass(frozen=True)
class Read:
    """Holds all that was read or generated, before it is divided.

    Attributes:
      config: the dataset.
      texts: the texts of all sources.
    """

    config: DatasetConfig | MixtureConfig
    texts: Texts
    _sources: list[_Source]
    _rows: list[np.ndarray]

    def divided(self, fits: Callable[[Example], bool] = lambda _: True) -> list[Dataset]:
        """Divides it as `load` does; it may be divided again by other windows."""
        texts, found = self.texts, iter(self._rows)
        sources = [dataclasses.replace(s, dropped=s.dropped.copy()) for s in self._sources]
        loaded = [
            _divided(each, texts, [next(found) for _ in each.piles], fits) for each in sources
        ]
        dropped = [each.dropped for each in sources]
        reason = f"{_words(self.config.group_by)} also in another part"
        splits.without_shared(texts, loaded, dropped, reason)
        names: collections.Counter[str] = collections.Counter()
        datasets = []
        for each, examples in zip(sources, splits.numbered(texts, loaded), strict=True):
            names[each.config.name] += 1
            number = names[each.config.name]
            name = each.config.name if number == 1 else f"{each.config.name}_{number}"
            lost = {reason: n for reason, n in each.dropped.items() if n}
            datasets.append(
                Dataset(name, examples, each.read, lost, each.malformed, "; ".join(each.shapes))
            )
        return datasets


def read(
    config: DatasetConfig | MixtureConfig,
    check: readers.Check | None = None,
    cache: Cache = _NOWHERE,
    said: object = None,
) -> Read:
    """Generates or reads what `load` divides; `config`, `check` and errors are those of `load`.

    Args:
      config: the dataset.
      check: see `load`.
      cache: where what is read of big files is kept.
      said: what `check` depends on, with a `repr` that is the same in every process.
    """
    parts = config.parts if isinstance(config, MixtureConfig) else (config,)
    sources = [_source(part, check, cache, said) for part in parts]
    piles = [pile for each in sources for pile in each.piles.values()]
    voting = [not is_synthetic(each.config) for each in sources for _ in each.piles]
    texts, rows = splits.grouped(piles, config.group_by, voting)
    return Read(config, texts, sources, rows)


def _words(group_by: str) -> str:
    return group_by.replace("_", " ")


@dataclasses.dataclass(frozen=True)
class _Source:
    """Holds what was read for a dataset, or generated.

    Its piles are `train`, `dev` and `test`, or all of its examples, and `held_out` where those of
    dev and test come from other files.
    """

    config: DatasetConfig
    piles: dict[str, Examples]
    read: int
    dropped: collections.Counter[str]
    malformed: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()


def _source(
    config: DatasetConfig, check: readers.Check | None, cache: Cache, said: object
) -> _Source:
    sizes = {"train": config.train_size, "dev": config.dev_size, "test": config.test_size}
    if config.kind == "instructions":
        made = {
            split: Examples.of(
                instructions.examples(config.family, split, sizes[split], config.seed, config.level)
            )
            for split in SPLITS
        }
        return _Source(config, made, sum(map(len, made.values())), collections.Counter())
    reading, held_out = _read(config, check, cache, said)
    both = [reading] if held_out is None else [reading, held_out]
    dropped: collections.Counter[str] = collections.Counter()
    for each in both:
        dropped.update(each.dropped)
    return _Source(
        config,
        {
            name: Examples.of(each.examples)
            for name, each in zip(("all", "held_out"), both, strict=False)
        },
        sum(each.read for each in both),
        dropped,
        tuple(line for each in both for line in each.malformed),
        tuple(dict.fromkeys(each.shape for each in both if each.shape)),
    )


def _divided(
    source: _Source, texts: Texts, rows: Sequence[np.ndarray], fits: splits.Fits
) -> dict[str, np.ndarray]:
    """Returns the rows of each split, and counts what is in none."""
    config, dropped = source.config, source.dropped
    if config.kind == "instructions":
        return dict(zip(SPLITS, rows, strict=True))
    pool = rows[-1]
    found = splits.divide(texts, pool, _held_out_sizes(config, len(pool)), fits)
    train = found.pop("rest")
    if len(rows) > 1:
        dropped["not needed for dev or test"] = len(train)
        groups = texts.hashes["split"]
        train = rows[0][~np.isin(groups[rows[0]], groups[pool])]
        lost = len(rows[0]) - len(train)
        dropped[f"{_words(config.group_by)} also in the test files"] = lost
    if config.train_size:
        dropped["over train_size"] = max(0, len(train) - config.train_size)
        train = np.sort(splits.by_order(texts, train)[: config.train_size])
    return {"train": train, **found}


def _read(
    config: DatasetConfig, check: readers.Check | None, cache: Cache, said: object
) -> tuple[readers.Reading, readers.Reading | None]:
    """Reads the pairs to train on, some of them to hold out, and those of `test_path`, if any."""
    if config.kind != "tfds":
        how: dict[str, Any] = {"on_error": config.on_error}
        if config.kind in _SHAPED:
            how |= {"columns": config.columns, "min_margin": config.min_margin}
        read = functools.partial(_READERS[config.kind], check=check, with_columns=False, **how)
        said = (config.kind, how, said)
        reading = kept.reading(read, config.path, cache, said)
        if not config.test_path:
            return reading, None
        return reading, kept.reading(read, config.test_path, cache, said)
    from pit_jax.data.files import builders

    if not isinstance(config.path, str):
        raise UserError(f"dataset: got path {config.path!r}, expected the name of one TFDS dataset")
    read_splits = builders.read_prepared(config.path, config.data_dir or None)
    train = read_splits.pop("train", [])
    held_out = [example for examples in read_splits.values() for example in examples]
    found = []
    for examples in (train, held_out):
        accepted = check or (lambda _: None)
        found.append(readers.checked(examples, config.path, config.on_error, accepted))
    return found[0], found[1] if held_out else None


def _held_out_sizes(config: DatasetConfig, count: int) -> dict[str, int]:
    tenth = min(count // 10, _MOST_OF_A_TENTH)
    sizes = {"dev": config.dev_size, "test": config.test_size}
    return {split: tenth if size == A_TENTH else size for split, size in sizes.items()}
