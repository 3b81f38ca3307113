"""Has the TFDS builders of the datasets, and reads the examples that they have prepared.

`python -m pit_jax.data.files.build NAME/CONFIG --data_dir=DIR` prepares a dataset under
DIR/NAME/CONFIG/VERSION, and without `/CONFIG` every config of it:

    python -m pit_jax.data.files.build hh_rlhf/helpful --data_dir=data
    python -m pit_jax.data.files.build summarize_from_feedback/reddit --data_dir=data
    python -m pit_jax.data.files.build instructions/drafts --data_dir=data
    python -m pit_jax.data.files.build preferences --data_dir=data \\
        --config='{"name": "mine", "path": "gs://bucket/pairs-*.jsonl.gz"}'

It is `tfds build NAME/CONFIG --imports=pit_jax.data.files.builders --data_dir=DIR`, with the same
flags, which works too where Apache Beam and mlcroissant are installed. A config of one's own is
JSON: the fields of PreferencesConfig or InstructionsConfig. A dataset that is prepared is left as
it is; after files have changed, add `--overwrite`.

The files of hh_rlhf and summarize_from_feedback come from `--manual_dir=…` where they are in it,
under the paths that they have in the source, such as `helpful-base/train.jsonl.gz` and
`comparisons/batch3.json`; what isn't there is downloaded. Downloads are checked against
`checksums.tsv` beside this module: sums that Anthropic's repository publishes for all files of
hh_rlhf, and one of summarize_from_feedback; `--register_checksums` adds those of other files.

Examples are those of the readers and of synthetic.instructions, in their order; a split without any
is left out. A malformed line stops with the readers' UserError. The key of an example is its
position in its split.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from pit_jax.data.examples import SPLITS, TEXTS, Example
from pit_jax.data.files import readers, summaries, turns
from pit_jax.data.synthetic import instructions
from pit_jax.errors import UserError

_BATCH = 1024
_HH_URL = (
    "https://huggingface.co/datasets/Anthropic/hh-rlhf/resolve/"
    "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa/"
)
_SUMMARIES_URL = "https://openaipublic.blob.core.windows.net/summarize-from-feedback/dataset/"
_HH_SUBSETS = {
    "helpful": ("helpful-base", "helpful-online", "helpful-rejection-sampled"),
    "harmless": ("harmless-base",),
}
# Config -> the source of readers.read_summaries, and the files that hold some of it.
_SUMMARIES = {
    "reddit": ("posts", (*(f"batch{n}" for n in (*range(3, 21), 22)), "edit_b2_eval_test")),
    "cnn_dm": ("articles", ("batch0_cnndm", "cnndm0", "cnndm2")),
}


class _Builder(tfds.core.GeneratorBasedBuilder):
    """Has what the builders share: features for texts, and for columns of numbers beside them."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    DESCRIPTION = ""
    HOMEPAGE = ""
    COLUMNS: dict[str, Any] = {}
    # checksums.tsv stands beside it. (To find the file itself, TFDS imports a package it may lack.)
    code_path = epath.Path(__file__)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {name: tfds.features.Text() for name in TEXTS} | self.COLUMNS
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.DESCRIPTION,
            homepage=self.HOMEPAGE,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _generate_examples(
        self, examples: Sequence[Example], columns: Mapping[str, Sequence[Any]]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, example in enumerate(examples):
            texts = {name: getattr(example, name) for name in TEXTS}
            yield key, texts | {name: values[key] for name, values in columns.items()}

    def _generators(self, splits: Mapping[str, tuple[Sequence[Example], dict[str, list[Any]]]]):
        """Returns a generator for each split that has examples."""
        if not any(examples for examples, _ in splits.values()):
            raise UserError(f"{self.info.full_name}: got no example, expected at least one")
        return {
            split: self._generate_examples(examples, columns)
            for split, (examples, columns) in splits.items()
            if examples
        }


class HhRlhf(_Builder):
    """Builds Anthropic's HH-RLHF dialogues, read by readers.read_hh."""

    DESCRIPTION = "Pairs of answers to dialogues, the better one chosen by people (2204.05862)."
    HOMEPAGE = "https://huggingface.co/datasets/Anthropic/hh-rlhf"
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=name, description=f"The files of {', '.join(subsets)}.")
        for name, subsets in _HH_SUBSETS.items()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "manual_dir may hold SUBSET/train.jsonl.gz and SUBSET/test.jsonl.gz, where SUBSET is "
        "harmless-base, or each of helpful-base, helpful-online, helpful-rejection-sampled."
    )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        subsets = _HH_SUBSETS[self.builder_config.name]
        splits = ("train", "test")
        names = {split: [f"{s}/{split}.jsonl.gz" for s in subsets] for split in splits}
        paths = _fetch(dl_manager, _HH_URL, [name for split in splits for name in names[split]])
        read = {split: readers.read_hh([paths[name] for name in names[split]]) for split in splits}
        return self._generators({split: (reading.examples, {}) for split, reading in read.items()})


class SummarizeFromFeedback(_Builder):
    """Builds OpenAI's comparisons of summaries, by readers.read_summaries, in their own splits."""

    DESCRIPTION = (
        "Pairs of summaries, the better one chosen by people (2009.01325). `confidence` is the "
        "rater's, -1 where it isn't known."
    )
    HOMEPAGE = "https://github.com/openai/summarize-from-feedback"
    COLUMNS = {"confidence": tfds.features.Scalar(np.int32)}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="reddit", description="Summaries of posts of Reddit."),
        tfds.core.BuilderConfig(name="cnn_dm", description="Summaries of articles of CNN/DM."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "manual_dir may hold comparisons/batch3.json to comparisons/batch20.json, batch22.json and "
        "edit_b2_eval_test.json there, or for CNN/DM batch0_cnndm.json, cnndm0.json, cnndm2.json."
    )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        source, files = _SUMMARIES[self.builder_config.name]
        paths = _fetch(dl_manager, _SUMMARIES_URL, [f"comparisons/{file}.json" for file in files])
        reading = readers.read_summaries(list(paths.values()), source)
        columns = reading.columns
        splits: dict[str, tuple[list[Example], dict[str, list[Any]]]] = {
            split: ([], {"confidence": []}) for split in summaries.SPLITS
        }
        for row, example in enumerate(reading.examples):
            examples, kept = splits[columns["split"][row]]
            examples.append(example)
            kept["confidence"].append(columns["confidence"][row])
        return self._generators({**splits})


@dataclasses.dataclass(eq=False)
class InstructionsConfig(tfds.core.BuilderConfig):
    """Configures a synthetic dataset.

    Attributes:
      family: a key of instructions.FAMILIES.
      level: fields of the family's configuration; the others have its defaults.
      train_size: examples of the train split.
      dev_size: examples of the dev split.
      test_size: examples of the test split.
      seed: seed of the generator.
    """

    family: str = "drafts"
    level: dict[str, Any] = dataclasses.field(default_factory=dict)
    train_size: int = 24_000
    dev_size: int = 600
    test_size: int = 600
    seed: int = 0


class Instructions(_Builder):
    """Builds the synthetic families, with the checker's scores of both responses, in [0, 1]."""

    DESCRIPTION = "Synthetic instructions. `chosen_score`, `rejected_score`: the exact checker's."
    COLUMNS = {
        "chosen_score": tfds.features.Scalar(np.float32),
        "rejected_score": tfds.features.Scalar(np.float32),
    }
    BUILDER_CONFIGS = [
        InstructionsConfig(
            name="drafts",
            description="Chains of five steps.",
            train_size=48_000,
        ),
        InstructionsConfig(
            name="drafts_long",
            description="Chains of six to eight steps.",
            level={"min_steps": 6, "max_steps": 8},
            train_size=48_000,
        ),
        InstructionsConfig(
            name="requirements",
            description="Two to four requirements on two or three words.",
            family="requirements",
        ),
        InstructionsConfig(
            name="requirements_many",
            description="Four to six requirements on three to five words.",
            family="requirements",
            level={"min_words": 3, "max_words": 5, "min_requirements": 4, "max_requirements": 6},
        ),
    ]

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        config = self.builder_config
        if config.family not in instructions.FAMILIES:
            choices = ", ".join(instructions.FAMILIES)
            raise UserError(f"family: got {config.family!r}, expected one of {choices}")
        try:
            level = instructions.FAMILIES[config.family].CONFIG(**config.level)
        except (TypeError, ValueError) as error:
            raise UserError(f"level: got {config.level}: {error}") from None
        sizes = {"train": config.train_size, "dev": config.dev_size, "test": config.test_size}
        splits: dict[str, tuple[Sequence[Example], dict[str, list[Any]]]] = {}
        for split in SPLITS:
            examples = instructions.examples(config.family, split, sizes[split], config.seed, level)
            columns = {
                f"{name}_score": [
                    instructions.check(config.family, e.prompt, getattr(e, name)).score
                    for e in examples
                ]
                for name in ("chosen", "rejected")
            }
            splits[split] = examples, columns
        return self._generators(splits)


@dataclasses.dataclass(eq=False)
class PreferencesConfig(tfds.core.BuilderConfig):
    """Configures a dataset of the user's own preference files.

    Attributes:
      path: a path or pattern, local or `gs://`, or several; if empty, every `*.jsonl` and
        `*.jsonl.gz` of manual_dir.
    """

    path: str | list[str] = ""


class Preferences(_Builder):
    """Builds a dataset of the user's own preference pairs, read by readers.read_preferences."""

    DESCRIPTION = "JSON lines with prompt, chosen and rejected."
    BUILDER_CONFIGS = [
        PreferencesConfig(name="manual", description="Every file in manual_dir."),
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "manual_dir holds *.jsonl or *.jsonl.gz files, JSON lines with prompt, chosen, rejected."
    )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        paths = self.builder_config.path
        if not paths:
            folder = _manual_dir(dl_manager)
            found = [] if folder is None else folder.iterdir()
            names = sorted(os.fspath(file) for file in found)
            paths = [name for name in names if name.endswith((".jsonl", ".jsonl.gz"))]
            if not paths:
                raise UserError(
                    "preferences: got no files in manual_dir, expected *.jsonl or *.jsonl.gz there "
                    'or --config=\'{"name": …, "path": …}\''
                )
        return self._generators({"train": (readers.read_preferences(paths).examples, {})})


BUILDERS = {cls.name: cls for cls in (HhRlhf, SummarizeFromFeedback, Instructions, Preferences)}


def read_prepared(name_or_directory: str, data_dir: str | None = None) -> dict[str, list[Example]]:
    """Reads every split of a prepared dataset, in the order in which it was prepared.

    Args:
      name_or_directory: `NAME/CONFIG` of a builder here, or `NAME` for its first config; else the
        folder that holds a dataset's dataset_info.json, such as DIR/hh_rlhf/helpful/1.0.0. The
        latter may come from any builder with the features `prompt`, `chosen` and `rejected`.
      data_dir: the folder that it was prepared in; by default the one TFDS itself takes.

    Returns:
      split -> examples, `index` being the position in the split.

    Raises:
      UserError: if the dataset isn't prepared, naming the command that does it, has other
        features, or a text that is malformed.
    """
    name, _, config = name_or_directory.partition("/")
    if name in BUILDERS:
        builder_class = BUILDERS[name]
        root = builder_class(data_dir=data_dir).data_dir_root
        config = config or builder_class.BUILDER_CONFIGS[0].name
        directory = root / name / config / str(builder_class.VERSION)
        command = f"python -m pit_jax.data.files.build {name}/{config} --data_dir={root}"
        remedy = f"prepare it with `{command}`"
    else:
        directory = epath.Path(name_or_directory)
        remedy = f"expected such a folder, or one of {', '.join(BUILDERS)}, each with /CONFIG"
    if not (directory / "dataset_info.json").exists():
        raise UserError(f"{name_or_directory}: no prepared dataset in {directory}; {remedy}")
    # TensorFlow would otherwise take the accelerator's memory from JAX.
    tf.config.set_visible_devices([], "GPU")
    builder = tfds.builder_from_directory(directory)
    features = sorted(builder.info.features)
    if not {"prompt", "chosen", "rejected"} <= set(features):
        raise UserError(
            f"{name_or_directory}: got the features {', '.join(features)}, expected prompt, "
            "chosen and rejected"
        )
    for name in set(TEXTS) & set(features):
        feature = builder.info.features[name]
        if not isinstance(feature, tfds.features.Text):
            raise UserError(f"{name_or_directory}: got {feature} for {name!r}, expected text")
    return {split: _examples(builder, split) for split in builder.info.splits}


def _examples(builder: tfds.core.DatasetBuilder, split: str) -> list[Example]:
    in_order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    dataset = builder.as_dataset(split=split, read_config=in_order, batch_size=_BATCH)
    examples: list[Example] = []
    for batch in tfds.as_numpy(dataset):
        names = [name for name in TEXTS if name in batch]
        for texts in zip(*(batch[name] for name in names)):
            try:
                fields = dict(zip(names, (text.decode() for text in texts)))
                text = fields.pop("prompt")
                x, group = _PROMPTS.get(builder.name, _prompt)(text)
            except ValueError as error:  # UnicodeDecodeError is one
                place = f"{builder.info.full_name}: {split}:{len(examples)}"
                raise UserError(f"{place}: {error}") from None
            if builder.name not in BUILDERS:  # ours have done it
                fields = {name: text.strip() for name, text in fields.items()}
            examples.append(Example(x, **fields, index=len(examples), group=group))
    return examples


def _prompt(text: str) -> tuple[str, str]:
    """Makes x of a text, and says what tells its group; x as it was prepared stays as it is."""
    return turns.of_text(text), "" if text.endswith("\n\n") else text


def _dialogue(text: str) -> tuple[str, str]:
    return (turns.of_dialogue(text), "") if text.endswith("\n\n") else _prompt(text)


# Name of a builder -> what makes x, and what tells its group, of a prompt that it has prepared.
_PROMPTS: dict[str, Callable[[str], tuple[str, str]]] = {
    HhRlhf.name: _dialogue,
    Preferences.name: _dialogue,
    Instructions.name: lambda text: (text, ""),
}


def _manual_dir(dl_manager: tfds.download.DownloadManager) -> epath.Path | None:
    try:
        return dl_manager.manual_dir
    except AssertionError:  # there is no such folder, or nothing in it
        return None


def _fetch(
    dl_manager: tfds.download.DownloadManager, url: str, names: Sequence[str]
) -> dict[str, str]:
    """Finds each file of a source in manual_dir, or downloads it; returns name -> path."""
    folder = _manual_dir(dl_manager)
    paths: dict[str, Any] = {}
    if folder is not None:
        paths = {name: folder / name for name in names if (folder / name).exists()}
    missing = {name: url + name for name in names if name not in paths}
    if missing:
        try:
            paths |= dl_manager.download(missing)
        except (OSError, tfds.download.DownloadError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"{url}: can't be downloaded ({reason}); put {', '.join(missing)} into the folder "
                "given as --manual_dir"
            ) from error
        except NonMatchingChecksumError as error:
            found = " ".join(str(error).split()).partition("Artifact ")[2].partition(" To debug")[0]
            raise UserError(f"checksums.tsv: got another file: {found}") from error
    return {name: os.fspath(paths[name]) for name in names}
