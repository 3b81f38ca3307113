"""TFDS builders: what they prepare is what the readers read, from a folder or downloaded."""

import contextlib
import dataclasses
import gzip
import hashlib
import json
import os
import pathlib
import shutil

import numpy as np
import promise
import pytest
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core.download import checksums, download_manager, downloader

from pit_jax.data import datasets
from pit_jax.data.datasets import DatasetConfig
from pit_jax.data.examples import SPLITS, Example
from pit_jax.data.files import build, builders, readers
from pit_jax.data.synthetic import instructions
from pit_jax.errors import UserError

HH_SPLITS = ("train", "test")
HELPFUL = ("helpful-base", "helpful-online", "helpful-rejection-sampled")
REDDIT = [*(f"comparisons/batch{n}.json" for n in (*range(3, 21), 22))]
REDDIT += ["comparisons/edit_b2_eval_test.json"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("asked for a download")

    monkeypatch.setattr(download_manager, "get_downloader", refuse)
    tfds.disable_progress_bar()


def write(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return str(path)


def prepare(builder_class, tmp_path, manual_dir=None, config=None, **options):
    builder = builder_class(data_dir=str(tmp_path / "data"), config=config)
    options = tfds.download.DownloadConfig(manual_dir=manual_dir, **options)
    builder.download_and_prepare(download_config=options)
    return builder


def numbered(examples):
    return [dataclasses.replace(example, index=i) for i, example in enumerate(examples)]


def dialogue(question, answer):
    return f"\n\nHuman: {question}\n\nAssistant: {answer}"


def write_hh(folder, subsets):
    """Files of the source: names -> paths."""
    paths = {}
    for subset in subsets:
        for split in HH_SPLITS:
            questions = [f"{subset} {split} {n}?" for n in range(3)]
            pairs = [
                {"chosen": dialogue(q, "yés"), "rejected": dialogue(q, "no")} for q in questions
            ]
            pairs[1]["rejected"] = dialogue("else", "no")
            name = f"{subset}/{split}.jsonl.gz"
            paths[name] = write(folder / name, *pairs)
    return paths


# --- HH-RLHF ----------------------------------------------------------------------------------


def test_hh_is_what_its_reader_reads(tmp_path):
    paths = write_hh(tmp_path / "manual", (*HELPFUL, "harmless-base"))
    for config, subsets in (("helpful", HELPFUL), ("harmless", ("harmless-base",))):
        builder = prepare(builders.HhRlhf, tmp_path, tmp_path / "manual", config)
        expected = {
            split: readers.read_hh([paths[f"{s}/{split}.jsonl.gz"] for s in subsets]).examples
            for split in HH_SPLITS
        }
        assert [len(expected[split]) for split in HH_SPLITS] == [2 * len(subsets)] * 2
        assert builders.read_prepared(builder.data_dir) == expected
        assert builders.read_prepared(f"hh_rlhf/{config}", str(tmp_path / "data")) == expected
        # Without any code of ours.
        rows = tfds.builder_from_directory(builder.data_dir).as_dataset(split="train")
        assert [
            (row["prompt"].decode(), row["chosen"].decode(), row["rejected"].decode(), "")
            for row in tfds.as_numpy(rows)
        ] == [(e.prompt, e.chosen, e.rejected, e.reflection) for e in expected["train"]]
    assert builders.read_prepared("hh_rlhf", str(tmp_path / "data"))["test"][0] == Example(
        "helpful-base test 0?\n\n", "yés", "no"
    )


class FakeDownloader:
    """Gives the files of a folder for the URLs that end in their names."""

    def __init__(self, folder):
        self.folder = folder
        self.urls = []

    @contextlib.contextmanager
    def tqdm(self):
        yield

    def increase_tqdm(self, url_info):
        pass

    def download(self, url, destination, verify=True):
        self.urls.append(url)
        name = "/".join(url.split("/")[-2:])
        if not (self.folder / name).exists():
            raise tfds.download.DownloadError(f"Failed to get url {url}.\nHTTP code: 404.")
        path = destination / os.path.basename(name)
        shutil.copy(self.folder / name, path)
        info = checksums.compute_url_info(path)
        return promise.Promise.resolve(downloader.DownloadResult(path=path, url_info=info))


@pytest.fixture
def remote(tmp_path, monkeypatch):
    fake = FakeDownloader(tmp_path / "remote")
    monkeypatch.setattr(download_manager, "get_downloader", lambda **options: fake)
    # TFDS adds what each builder knows to one table of the process.
    monkeypatch.setattr(checksums, "get_all_url_infos", dict)
    return fake


HH_URL = (
    "https://huggingface.co/datasets/Anthropic/hh-rlhf/resolve/"
    "09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa/"
)


def test_the_published_checksums_are_those_of_every_hh_file():
    infos = checksums.load_url_infos(pathlib.Path(builders.__file__).with_name("checksums.tsv"))
    names = [f"{s}/{split}.jsonl.gz" for s in (*HELPFUL, "harmless-base") for split in HH_SPLITS]
    assert {url for url in infos if url.startswith(HH_URL)} == {HH_URL + name for name in names}
    assert all(len(info.checksum) == 64 for info in infos.values())


def test_another_file_than_the_published_one_is_refused(tmp_path, remote):
    write_hh(remote.folder, HELPFUL)
    with pytest.raises(
        UserError, match=r"checksums\.tsv: got another file: .*/test.jsonl.gz, .*wro"
    ):
        prepare(builders.HhRlhf, tmp_path)


def test_hh_downloaded_is_the_same(tmp_path, remote, monkeypatch):
    other = {"https://other.example": checksums.UrlInfo(1, "0" * 64, "other")}
    monkeypatch.setattr(builders.HhRlhf, "url_infos", other)
    write_hh(remote.folder, HELPFUL)
    names = [f"{subset}/{split}.jsonl.gz" for split in HH_SPLITS for subset in HELPFUL]
    prepare(builders.HhRlhf, tmp_path / "downloaded")
    assert sorted(remote.urls) == sorted(HH_URL + name for name in names)
    downloaded = builders.read_prepared("hh_rlhf", str(tmp_path / "downloaded" / "data"))

    # What manual_dir has isn't downloaded.
    remote.urls.clear()
    shutil.copytree(remote.folder, tmp_path / "manual")
    (tmp_path / "manual" / names[1]).unlink()
    prepare(builders.HhRlhf, tmp_path, tmp_path / "manual")
    assert remote.urls == [HH_URL + names[1]]
    assert builders.read_prepared("hh_rlhf", str(tmp_path / "data")) == downloaded


def test_a_failed_download_says_where_files_may_be_put(tmp_path, remote):
    with pytest.raises(UserError) as error:
        prepare(builders.HhRlhf, tmp_path, config="harmless")
    assert str(error.value) == (
        f"{HH_URL}: can't be downloaded (Failed to get url {HH_URL}harmless-base/test.jsonl.gz. "
        "HTTP code: 404.); put harmless-base/train.jsonl.gz, harmless-base/test.jsonl.gz into the "
        "folder given as --manual_dir"
    )


def test_checksums_are_registered_beside_the_module_and_checked(tmp_path, remote, monkeypatch):
    beside = pathlib.Path(builders.__file__).with_name("checksums.tsv")
    assert pathlib.Path(builders.HhRlhf._checksums_path) == beside
    assert pathlib.Path(builders.SummarizeFromFeedback._checksums_path) == beside

    paths = write_hh(remote.folder, ["harmless-base"])
    table = tmp_path / "checksums.tsv"
    monkeypatch.setattr(builders.HhRlhf, "_checksums_path", table)
    prepare(builders.HhRlhf, tmp_path / "a", config="harmless", register_checksums=True)
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    data = {name: pathlib.Path(path).read_bytes() for name, path in paths.items()}
    assert rows == [
        [HH_URL + name, str(len(data[name])), hashlib.sha256(data[name]).hexdigest(), base]
        for name, base in (
            ("harmless-base/test.jsonl.gz", "test.jsonl.gz"),
            ("harmless-base/train.jsonl.gz", "train.jsonl.gz"),
        )
    ]

    known = checksums.load_url_infos(table)
    monkeypatch.setattr(builders.HhRlhf, "url_infos", known)
    options = {"config": "harmless", "force_checksums_validation": True}
    prepare(builders.HhRlhf, tmp_path / "b", **options)
    write(remote.folder / "harmless-base/test.jsonl.gz", "changed")
    with pytest.raises(UserError, match="got another file: .*harmless-base/test.jsonl.gz"):
        prepare(builders.HhRlhf, tmp_path / "c", **options)


# --- summaries --------------------------------------------------------------------------------


def summary(text, split, kind="post", confidence=None):
    return {
        "info": {kind: text, "title": "t", "subreddit": "s"},
        "split": split,
        "summaries": [{"text": "bad"}, {"text": f"good {text}"}],
        "choice": 1,
        "extra": {} if confidence is None else {"confidence": confidence},
    }


def test_summaries_keep_their_splits(tmp_path):
    folder = tmp_path / "manual"
    for name in REDDIT:
        write(folder / name)
    write(folder / REDDIT[0], summary("a", "train", confidence=9), summary("b", "valid2"))
    write(folder / REDDIT[7], summary("c", "valid1"), summary("d", "train", "article"))
    write(folder / REDDIT[-1], summary("e", "train", confidence=1), summary("f", "train"))
    write(folder / "comparisons/batch22.json", summary("g", "test"))
    builder = prepare(builders.SummarizeFromFeedback, tmp_path, folder)
    splits = builders.read_prepared(builder.data_dir)
    reading = readers.read_summaries([str(folder / name) for name in REDDIT])
    assert list(splits) == ["train", "valid1", "valid2", "test"]
    assert splits == {
        split: numbered(e for e, s in zip(reading.examples, reading.columns["split"]) if s == split)
        for split in splits
    }
    chosen = {split: [e.chosen for e in examples] for split, examples in splits.items()}
    assert chosen == {
        "train": ["good a", "good e", "good f"],
        "valid1": ["good c"],
        "valid2": ["good b"],
        "test": ["good g"],
    }
    rows = tfds.as_numpy(builder.as_dataset(split="train"))
    assert [int(row["confidence"]) for row in rows] == [9, 1, -1]


def test_summaries_of_articles(tmp_path, remote):
    names = [f"comparisons/{name}.json" for name in ("batch0_cnndm", "cnndm0", "cnndm2")]
    for name in names:
        write(remote.folder / name, summary(name, "valid2", "article"), summary("b", "valid2"))
    prepare(builders.SummarizeFromFeedback, tmp_path, config="cnn_dm")
    url = "https://openaipublic.blob.core.windows.net/summarize-from-feedback/dataset/"
    assert sorted(remote.urls) == [url + name for name in names]
    splits = builders.read_prepared("summarize_from_feedback/cnn_dm", str(tmp_path / "data"))
    assert {split: [e.chosen for e in part] for split, part in splits.items()} == {
        "valid2": [f"good {name}" for name in names]
    }


# --- instructions -----------------------------------------------------------------------------


def test_instructions_are_the_generators(tmp_path):
    level = {"min_steps": 2, "max_steps": 4}
    config = builders.InstructionsConfig(
        name="short", level=level, train_size=40, dev_size=5, test_size=0, seed=3
    )
    builder = prepare(builders.Instructions, tmp_path, config=config, num_shards=3)
    family = instructions.FAMILIES["drafts"]
    expected = {
        split: instructions.examples("drafts", split, size, 3, family.CONFIG(**level))
        for split, size in (("train", 40), ("dev", 5))
    }
    assert len(list(pathlib.Path(builder.data_dir).glob("*-train.tfrecord*"))) == 3
    assert builders.read_prepared("instructions/short", str(tmp_path / "data")) == expected
    assert all(e.reflection for e in expected["train"])
    scores = [
        [row["chosen_score"], row["rejected_score"]]
        for row in tfds.as_numpy(builder.as_dataset(split="train"))
    ]
    checked = [
        [family.check(e.prompt, response).score for response in (e.chosen, e.rejected)]
        for e in expected["train"]
    ]
    np.testing.assert_allclose(scores, checked, rtol=1e-6)
    assert any(0 < rejected < chosen for chosen, rejected in checked)


@pytest.mark.parametrize("config", builders.Instructions.BUILDER_CONFIGS, ids=lambda c: c.name)
def test_every_config_of_instructions(tmp_path, config):
    small = dataclasses.replace(config, name="small", train_size=6, dev_size=2, test_size=3)
    prepare(builders.Instructions, tmp_path, config=small)
    splits = builders.read_prepared("instructions/small", str(tmp_path / "data"))
    assert {split: len(examples) for split, examples in splits.items()} == {
        "train": 6,
        "dev": 2,
        "test": 3,
    }
    level = instructions.FAMILIES[config.family].CONFIG(**config.level)
    for split in SPLITS:
        assert splits[split] == instructions.examples(
            config.family, split, len(splits[split]), 0, level
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"family": "poems"}, "family: got 'poems', expected one of drafts, requirements"),
        ({"level": {"steps": 3}}, "level: got {'steps': 3}: .*unexpected keyword argument"),
        ({"level": {"min_steps": 9}}, "level: got {'min_steps': 9}: drafts: got min_steps=9"),
        (
            {"train_size": 0, "dev_size": 0, "test_size": 0},
            "instructions/mine/1.0.0: got no example, expected at least one",
        ),
    ],
)
def test_instructions_that_cannot_be(tmp_path, fields, message):
    config = builders.InstructionsConfig(name="mine", **fields)
    with pytest.raises(UserError, match=message):
        prepare(builders.Instructions, tmp_path, config=config)


# --- preferences ------------------------------------------------------------------------------

TURNS = [{"role": "user", "content": "hi"}]
PAIR = {"prompt": "x", "chosen": "a", "rejected": "b"}


def test_the_command(tmp_path, capsys):
    paths = [
        write(tmp_path / "one.jsonl.gz", PAIR, {**PAIR, "chosen": " "}),
        write(tmp_path / "two.jsonl", {**PAIR, "prompt": TURNS}),
    ]
    config = json.dumps({"name": "mine", "path": str(tmp_path / "*.jsonl*")})
    data_dir = f"--data_dir={tmp_path / 'data'}"
    assert build.main(["preferences", data_dir, f"--config={config}"]) == 0
    expected = readers.read_preferences(paths).examples
    assert [e.prompt for e in expected] == ["x\n\n", "hi\n\n"]
    prepared = builders.read_prepared("preferences/mine", str(tmp_path / "data"))
    # What is prepared holds x; a file's own text of a prompt, which names its group, is gone.
    assert prepared == {"train": [dataclasses.replace(e, group="") for e in expected]}

    assert build.main(["preferences/manual", data_dir, f"--manual_dir={tmp_path}"]) == 0
    assert builders.read_prepared("preferences", str(tmp_path / "data")) == prepared

    # Files that have changed since are read again when they are asked for.
    write(tmp_path / "two.jsonl", {**PAIR, "prompt": "new"})
    assert build.main(["preferences", data_dir, f"--manual_dir={tmp_path}"]) == 0
    assert builders.read_prepared("preferences", str(tmp_path / "data")) == prepared
    assert build.main(["preferences", data_dir, f"--manual_dir={tmp_path}", "--overwrite"]) == 0
    (examples,) = builders.read_prepared("preferences", str(tmp_path / "data")).values()
    assert [e.prompt for e in examples] == ["x\n\n", "new\n\n"]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "got no dataset, expected one of hh_rlhf, summarize_from_feedback, instructions, pre"),
        (["mnist"], "got dataset 'mnist', expected one of hh_rlhf, summarize_from_feedback, "),
        (["hh_rlhf/helpless"], "hh_rlhf: got config 'helpless', expected one of helpful, harmless"),
        (
            ["preferences"],
            "preferences: got no files in manual_dir, expected *.jsonl or *.jsonl.gz",
        ),
    ],
)
def test_mistakes_in_the_command_are_one_line(tmp_path, capsys, arguments, message):
    assert build.main([*arguments, f"--data_dir={tmp_path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"pit_jax.data.files.build: {message}")


def test_malformed_lines_stop_with_the_readers_error(tmp_path):
    path = write(tmp_path / "manual" / "p.jsonl", PAIR, "{", PAIR, "[]")
    with pytest.raises(UserError) as expected:
        readers.read_preferences(path)
    with pytest.raises(UserError) as error:
        prepare(builders.Preferences, tmp_path, tmp_path / "manual")
    assert str(error.value) == str(expected.value)
    with pytest.raises(UserError, match="preferences: no prepared dataset in .*; prepare it with"):
        builders.read_prepared("preferences", str(tmp_path / "data"))


def test_preferences_that_are_not_there(tmp_path):
    (tmp_path / "manual").mkdir()
    for _ in range(2):
        with pytest.raises(UserError, match="preferences: got no files in manual_dir, expected"):
            prepare(builders.Preferences, tmp_path, tmp_path / "manual")
        write(tmp_path / "manual" / "p.txt", PAIR)
    config = builders.PreferencesConfig(name="mine", path=str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="none.jsonl: no such file"):
        prepare(builders.Preferences, tmp_path, config=config)


# --- reading back -----------------------------------------------------------------------------


def test_datasets_that_are_not_prepared(tmp_path):
    with pytest.raises(UserError) as error:
        builders.read_prepared("hh_rlhf/harmless", str(tmp_path))
    assert str(error.value) == (
        f"hh_rlhf/harmless: no prepared dataset in {tmp_path}/hh_rlhf/harmless/1.0.0; prepare it "
        f"with `python -m pit_jax.data.files.build hh_rlhf/harmless --data_dir={tmp_path}`"
    )
    with pytest.raises(UserError, match="^none: no prepared dataset in none; expected such a fold"):
        builders.read_prepared("none")


class Numbers(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Somebody else's dataset."""

    VERSION = tfds.core.Version("1.0.0")
    FEATURES = ("n",)
    code_path = epath.Path(__file__)

    def _info(self):
        features = tfds.features.FeaturesDict(
            {name: tfds.features.Text() for name in self.FEATURES}
        )
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for n in range(5):
            yield n, {name: f"{name} {n}" for name in self.FEATURES}


class Pairs(Numbers, skip_registration=True):
    FEATURES = ("prompt", "chosen", "rejected")


def test_datasets_of_others(tmp_path):
    with pytest.raises(UserError, match="got the features n, expected prompt, chosen and rejected"):
        builders.read_prepared(prepare(Numbers, tmp_path).data_dir)
    (examples,) = builders.read_prepared(prepare(Pairs, tmp_path).data_dir).values()
    assert sorted(e.group for e in examples) == [f"prompt {n}" for n in range(5)]
    group = examples[2].group
    number = group[-1]
    assert examples[2] == Example(
        f"{group}\n\n", f"chosen {number}", f"rejected {number}", "", 2, group
    )


class Odd(Pairs, skip_registration=True):
    """Pairs as others may have prepared them."""

    ROWS = (
        {"prompt": " a ", "chosen": " b\n", "rejected": "c"},
        {"prompt": "a", "chosen": "b", "rejected": " b "},
        {"prompt": "a", "chosen": " ", "rejected": "b"},
    )

    def _generate_examples(self):
        yield from enumerate(self.ROWS)


class Unfinished(Odd, skip_registration=True):
    ROWS = ({"prompt": "Human: a\n\nAssistant: b", "chosen": "b", "rejected": "c"},)


class Latin(Odd, skip_registration=True):
    ROWS = ({"prompt": b"caf\xe9", "chosen": "b", "rejected": "c"},)


class Listed(Odd, skip_registration=True):
    ROWS = ({"prompt": ["a"], "chosen": "b", "rejected": "c"},)

    def _info(self):
        text = tfds.features.Text()
        listed = {"prompt": tfds.features.Sequence(text), "chosen": text, "rejected": text}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(listed))


def test_pairs_of_others_are_left_out_and_counted_as_those_of_files(tmp_path):
    path = str(prepare(Odd, tmp_path).data_dir)
    (dataset,) = datasets.load(DatasetConfig("tfds", 0, 0, 0, path=path))
    (example,) = dataset.splits["train"]
    assert (example.prompt, example.chosen, example.rejected) == ("a\n\n", "b", "c")
    assert dataset.read == 3 and dataset.dropped == {"identical responses": 1, "empty response": 1}


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        (
            Unfinished,
            r"unfinished/1.0.0: train:0: got a dialogue that ends with what the assistant",
        ),
        (Latin, r"latin/1.0.0: train:0: 'utf-8' codec can't decode byte 0xe9"),
        (Listed, r"got Sequence\(.*\) for 'prompt', expected text"),
    ],
)
def test_what_others_prepared_and_cannot_be_read_is_one_line(builder, message, tmp_path):
    with pytest.raises(UserError, match=message):
        builders.read_prepared(prepare(builder, tmp_path).data_dir)


def test_several_paths_are_no_tfds_dataset():
    config = DatasetConfig("tfds", 0, 0, 0, path=("a", "b"))
    with pytest.raises(UserError, match=r"got path \('a', 'b'\), expected the name of one TFDS"):
        datasets.load(config)


def test_data_dir_is_where_a_tfds_dataset_is_looked_for(tmp_path):
    for data_dir in (str(tmp_path / "a"), str(tmp_path / "b")):
        config = DatasetConfig("tfds", 0, 0, 0, path="hh_rlhf/helpful", data_dir=data_dir)
        with pytest.raises(UserError, match=f"no prepared dataset in {data_dir}/hh_rlhf/helpful/"):
            datasets.load(config)
