"""Shards and manifest: what survives a crash, and what is refused."""

import dataclasses
import json
import os

import pytest

from pit_jax.data import reference_store
from pit_jax.data.reference_store import MANIFEST, ReferenceMeta, ReferenceStore, ReferenceWriter
from pit_jax.errors import UserError

META = ReferenceMeta(round=1, source="rl_policy", checkpoint="step_100", seed=7, prompts=8)


def record(number):
    return {
        "index": number * 10,
        "reference_tokens": [5, number],
        "text": f"text {number}",
        "ended": number != 3,
    }


RECORDS = [record(number) for number in range(8)]


def filled(directory, closed=True):
    writer = ReferenceWriter(directory, 3, META)
    writer.add(RECORDS)
    if closed:
        writer.close()
    return writer


def test_reads_back_what_was_written(tmp_path):
    filled(tmp_path / "store")
    store = ReferenceStore(tmp_path / "store")
    assert len(store) == 8 and store.unended == 1
    assert [store[k] for k in range(8)] == RECORDS
    assert store.example_indices == [r["index"] for r in RECORDS]
    counts = [(shard["file"], shard["count"]) for shard in store.manifest["shards"]]
    assert counts == [("shard-00000.jsonl", 3), ("shard-00001.jsonl", 3), ("shard-00002.jsonl", 2)]
    meta = {name: store.manifest[name] for name in dataclasses.asdict(META)}
    assert meta == dataclasses.asdict(META)
    assert not list((tmp_path / "store").glob("*.tmp"))


def test_text_of_any_kind_stays_on_one_line(tmp_path):
    odd = {
        "index": 0,
        "reference_tokens": [],
        "text": "a\nb\u2028c\r\x85\ud83d",
        "ended": False,
        "prompt_tokens": [1],
    }
    writer = ReferenceWriter(tmp_path, 2, META)
    writer.add([odd, odd])
    writer.close()
    assert ReferenceStore(tmp_path)[1] == odd


def test_resumes_after_the_last_whole_shard(tmp_path):
    filled(tmp_path / "a", closed=False)  # The process dies with two records pending.
    writer = ReferenceWriter(tmp_path / "a", 3, META)
    assert writer.next_record == 6
    writer.add(RECORDS[6:])
    assert writer.next_record == 8
    writer.close()
    filled(tmp_path / "b")
    one, other = ReferenceStore(tmp_path / "a"), ReferenceStore(tmp_path / "b")
    assert one.manifest == other.manifest
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize("crash_at", range(1, 9))
def test_a_crash_at_any_rename_loses_no_listed_shard(tmp_path, monkeypatch, crash_at):
    renames = 0
    replace = os.replace

    def crash(source, target):
        nonlocal renames
        renames += 1
        if renames == crash_at:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(reference_store.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        filled(tmp_path)
    monkeypatch.undo()
    writer = ReferenceWriter(tmp_path, 3, META)
    assert writer.next_record % 3 == 0 or writer.next_record == 8
    writer.add(RECORDS[writer.next_record :])
    writer.close()
    assert [*ReferenceStore(tmp_path)] == RECORDS


def test_reopening_a_closed_store_changes_nothing(tmp_path):
    filled(tmp_path)
    before = ReferenceStore(tmp_path).fingerprint
    writer = ReferenceWriter(tmp_path, 3, META)
    assert writer.closed and writer.next_record == 8
    writer.close()
    assert ReferenceStore(tmp_path).fingerprint == before
    with pytest.raises(ValueError, match="the reference store is closed"):
        writer.add(RECORDS)


@pytest.mark.parametrize("change", [{"round": 2}, {"checkpoint": "step_200"}, {"seed": 8}])
def test_another_round_needs_another_directory(tmp_path, change):
    filled(tmp_path)
    (name, value) = next(iter(change.items()))
    with pytest.raises(
        UserError, match=f"holds a reference store with {name}=.*expected {value!r}"
    ):
        ReferenceWriter(tmp_path, 3, dataclasses.replace(META, **change))
    with pytest.raises(UserError, match="with shard_size=3, expected 4"):
        ReferenceWriter(tmp_path, 4, META)


@pytest.mark.parametrize(
    "broken",
    [
        {"index": "0", "reference_tokens": [], "text": ""},
        {"index": 0, "reference_tokens": (1,), "text": ""},
        {"index": 0, "reference_tokens": []},
    ],
)
def test_incomplete_records_are_refused(tmp_path, broken):
    with pytest.raises(ValueError, match="record: field '.*' is .*, expected"):
        ReferenceWriter(tmp_path, 3, META).add([broken])


def test_an_open_store_is_not_read(tmp_path):
    filled(tmp_path, closed=False)
    with pytest.raises(UserError, match=r"is not complete \(6 records so far\)"):
        ReferenceStore(tmp_path)


def test_closed_or_not_is_seen_without_reading_the_shards(tmp_path):
    assert not reference_store.is_closed(tmp_path / "none")
    writer = filled(tmp_path, closed=False)
    assert not reference_store.is_closed(tmp_path)
    writer.close()
    assert reference_store.is_closed(tmp_path)


def test_missing_and_foreign_manifests(tmp_path):
    with pytest.raises(UserError, match="no manifest.json, expected a reference store"):
        ReferenceStore(tmp_path / "nowhere")
    for text, told in (
        ("", "manifest.json: is damaged, expected a JSON object; bring it back from a copy, or"),
        ("[]", "manifest.json: is damaged, expected a JSON object; bring it back from a copy, or"),
        ("{}", "manifest.json: is damaged, expected shards and format; bring"),
        ('{"format": 1}', "manifest.json: is damaged, expected shards and format; bring"),
        ('{"format": 1, "shards": []}', "manifest.json: is damaged, expected shards and closed"),
        ('{"format": 1, "shards": [{}], "closed": true}', "is damaged, expected shards and closed"),
    ):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(UserError, match=told):
            ReferenceStore(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 9, "shards": []}))
    with pytest.raises(UserError, match="got format 9, expected 1"):
        ReferenceStore(tmp_path)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("file", (None, 5, ["a"], "../../etc/hostname", "shard-1.jsonl", "shard-00001.jsonl.x")),
        ("count", (None, "3", True)),
        ("sha256", (None, 7)),
    ],
)
def test_a_manifest_without_a_digest_has_to_list_shards(tmp_path, key, values):
    filled(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    del manifest["sha256"]
    for value in values:
        manifest["shards"][1] |= {key: value}
        (tmp_path / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(UserError, match="is damaged, expected shards and closed; bring it"):
            ReferenceStore(tmp_path)


@pytest.mark.parametrize("reader", [ReferenceStore, lambda path: ReferenceWriter(path, 3, META)])
def test_damaged_shards_are_refused(tmp_path, reader):
    filled(tmp_path)
    shard = tmp_path / "shard-00001.jsonl"
    whole = shard.read_bytes()
    for damaged in (whole[:-5], whole.replace(b"text 4", b"text 5"), b"", whole + whole):
        shard.write_bytes(damaged)
        with pytest.raises(UserError, match="shard-00001.jsonl: damaged: got"):
            reader(tmp_path)
    shard.unlink()
    with pytest.raises(
        UserError, match="shard-00001.jsonl: missing, though manifest.json lists it"
    ):
        reader(tmp_path)
    shard.write_bytes(whole)
    assert reader(tmp_path)


@pytest.mark.parametrize("reader", [ReferenceStore, lambda path: ReferenceWriter(path, 3, META)])
def test_no_flipped_bit_of_the_manifest_goes_unnoticed(tmp_path, reader):
    """Or it is one of white space, or of a name that nothing reads."""
    filled(tmp_path)
    path, expected = tmp_path / MANIFEST, ReferenceStore(tmp_path).manifest
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 7
        path.write_bytes(damaged)
        try:
            found = reader(tmp_path)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        assert reader is not ReferenceStore or expected.items() <= found.manifest.items()


def test_a_shard_holds_a_record_or_more(tmp_path):
    with pytest.raises(ValueError, match="shard_size: expected 1 or more, got 0"):
        ReferenceWriter(tmp_path, 0, META)
    assert not list(tmp_path.iterdir())


def test_a_store_of_an_earlier_version_is_read_but_not_continued(tmp_path):
    """It doesn't say of how many prompts it is, which were all of the fold then."""
    writer = ReferenceWriter(tmp_path, 2, META)
    writer.add([record(0)])
    for closed in (False, True):
        if closed:
            writer.close()
        manifest = json.loads((tmp_path / MANIFEST).read_text())
        assert manifest.pop("prompts") == 8 and manifest.pop("sha256")
        (tmp_path / MANIFEST).write_text(json.dumps(manifest))
        if closed:
            assert ReferenceWriter(tmp_path, 2, META).closed
        else:
            with pytest.raises(UserError, match="prompts=None, expected 8"):
                ReferenceWriter(tmp_path, 2, META)


def test_the_references_of_another_stage_are_refused(tmp_path):
    meta = dataclasses.replace(META, stage="rl_pit")
    folder = tmp_path / "round-1"
    ReferenceWriter(folder, 3, dataclasses.replace(META, stage="rl_pit_first"))
    with pytest.raises(UserError) as refusal:
        ReferenceWriter(folder, 3, meta)
    assert str(refusal.value) == (
        f"{folder}: holds a reference store with stage='rl_pit_first', expected 'rl_pit'; bring it "
        f"back from a copy, or delete {folder} to sample the references again"
    )
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["stage"], manifest["sha256"]  # as an earlier version wrote it
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert ReferenceWriter(folder, 3, meta).next_record == 0
