"""Preference files: what is read, what is skipped and counted, what stops with file and line."""

import functools
import gzip
import json
import random
import tracemalloc
import types
import zlib

import pytest
from etils.epath import backend
from hypothesis import given
from hypothesis import strategies as st

from pit_jax.data.examples import Example
from pit_jax.data.files import readers, records
from pit_jax.data.files.readers import read_hh, read_preferences, read_summaries
from pit_jax.errors import UserError


def encode(*records):
    """Lines of a file: bytes as they are, text as UTF-8, anything else as JSON."""
    lines = []
    for record in records:
        text = record if isinstance(record, bytes | str) else json.dumps(record)
        lines.append(text if isinstance(text, bytes) else text.encode())
    return b"".join(line + b"\n" for line in lines)


def write(path, *records):
    data = encode(*records)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def pair(chosen, rejected):
    return {"chosen": chosen, "rejected": rejected}


def texts(reading):
    """The texts of plain pairs, as the files have them: x has a blank line after a prompt."""
    return [(e.prompt.removesuffix("\n\n"), e.chosen, e.rejected) for e in reading.examples]


CONTEXT = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: what is 2+2?\n\nAssistant:"
TURN = {"role": "user", "content": "hi"}
FINE = {"prompt": "x", "chosen": "a", "rejected": "b"}
OTHER = {"prompt": "y", "chosen": "c", "rejected": "d"}
SUMMARY = {
    "info": {"id": "t3_1", "title": "A car", "subreddit": "legaladvice", "post": " It hit me.\n"},
    "split": "train",
    "summaries": [{"text": " no", "policy": "ref", "note": None}, {"text": " yes "}],
    "choice": 1,
    "extra": {"confidence": 8},
}
ARTICLE = {
    **SUMMARY,
    "info": {"id": "5", "site": "cnn", "title": "News", "article": "Much happened."},
    "split": "valid2",
    "choice": 0,
    "extra": {},
}


# --- HH-RLHF ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hh.jsonl", "hh.jsonl.gz"])
def test_hh_dialogue(tmp_path, name):
    path = write(tmp_path / name, pair(CONTEXT + " It is 4.\n", CONTEXT + " 5"), "", "  ")
    reading = read_hh(path)
    x = "hi\n\nAssistant: hello\n\nHuman: what is 2+2?\n\n"
    expected = [Example(x, "It is 4.", "5", "", 0)]
    assert reading == readers.Reading(expected, 1, {}, (), {}, "pairs of HH dialogues")
    assert f"Human: {x}Assistant:" == CONTEXT.strip()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (pair(CONTEXT + " a", CONTEXT.replace("hello", "hey") + " b"), "contexts differ"),
        (pair(CONTEXT + " a\n\nHuman: b\n\nAssistant: c", CONTEXT + " d"), "contexts differ"),
        (pair(CONTEXT + " a", CONTEXT + " \n"), "empty response"),
        (pair(CONTEXT, CONTEXT + " b"), "empty response"),
        (pair(CONTEXT + " a", CONTEXT + "  a "), "identical responses"),
        (
            pair(CONTEXT + " a\n\nHuman: b", CONTEXT + " c"),
            "dialogue does not end with an Assistant turn",
        ),
        (pair("Human: a\n\nAssistant: b", CONTEXT + " c"), "dialogue does not begin with Human"),
        (
            pair(CONTEXT.replace("\n", "\r\n") + " a", CONTEXT + " b"),
            "dialogue does not begin with Human",
        ),
        (pair("\n\nHuman: a", "\n\nHuman: a"), "no Assistant turn"),
        (pair("\n\nHuman: \n\nAssistant: b", "\n\nHuman: \n\nAssistant: c"), "empty prompt"),
    ],
)
def test_hh_skips_and_counts(tmp_path, record, reason):
    good = pair(CONTEXT + " a", CONTEXT + " b")
    reading = read_hh(write(tmp_path / "hh.jsonl", record, good, record))
    assert (reading.read, reading.dropped, reading.malformed) == (3, {reason: 2}, ())
    assert [(example.chosen, example.index) for example in reading.examples] == [("a", 0)]


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5),
    st.text("abc", min_size=1),
)
def test_hh_prompt_reproduces_the_dialogue(tmp_path_factory, turns, answer):
    turns = [turn.replace(":", "") + "." for turn in turns[: len(turns) - 1 + len(turns) % 2]]
    dialogue = ""
    for number, turn in enumerate(turns):
        dialogue += f"\n\n{'Assistant' if number % 2 else 'Human'}: {turn}"
    path = tmp_path_factory.getbasetemp() / "dialogue.jsonl"
    record = pair(f"{dialogue}\n\nAssistant: {answer}", f"{dialogue}\n\nAssistant: {answer}d")
    (example,) = read_hh(write(path, record)).examples
    assert f"\n\nHuman: {example.prompt}Assistant:" == f"{dialogue}\n\nAssistant:"
    assert (example.chosen, example.rejected) == (answer, answer + "d")


# --- preferences ------------------------------------------------------------------------------


def test_preferences_as_text_and_as_turns(tmp_path):
    user = {"role": "user", "content": "hi"}
    answers = {"chosen": " good ", "rejected": [{"role": "assistant", "content": "bad"}]}
    system = {"role": "system", "content": "Be brief."}
    more = [{"role": "assistant", "content": "yes?"}, {"role": "user", "content": "why"}]
    path = write(
        tmp_path / "p.jsonl",
        {"prompt": " hi\n", **answers},
        {"prompt": [user], **answers},
        {"prompt": [system, user, *more], **answers},
        {
            "prompt": [user],
            "chosen": [user, {"role": "assistant", "content": "good"}],
            "rejected": "bad",
        },
        {"prompt": "nul \0 é 😀", "chosen": "good", "rejected": "bad", "rank": [1.5e3, None, {}]},
    )
    reading = read_preferences(path)
    assert reading.examples == [
        Example("hi\n\n", "good", "bad", "", 0, " hi\n"),
        Example("hi\n\n", "good", "bad", "", 1),
        Example("Be brief.\n\nhi\n\nAssistant: yes?\n\nHuman: why\n\n", "good", "bad", "", 2),
        Example("hi\n\n", "good", "bad", "", 3),
        Example("nul \0 é 😀\n\n", "good", "bad", "", 4, "nul \0 é 😀"),
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chosen": ""}, "empty response"),
        ({"rejected": " \n\t"}, "empty response"),
        ({"chosen": "b"}, "identical responses"),
        ({"chosen": " b\n"}, "identical responses"),
        ({"prompt": "\n "}, "empty prompt"),
    ],
)
def test_preferences_skip_and_count(tmp_path, change, reason):
    reading = read_preferences(write(tmp_path / "p.jsonl", FINE, {**FINE, **change}, OTHER))
    assert texts(reading) == [("x", "a", "b"), ("y", "c", "d")]
    assert (reading.read, reading.dropped, reading.malformed) == (3, {reason: 1}, ())


# --- summaries --------------------------------------------------------------------------------


def test_summaries_of_posts(tmp_path):
    unsure = {**SUMMARY, "choice": 0, "split": "valid1", "extra": {"confidence": None}}
    bare = {**SUMMARY, "info": {"post": "Long.", "title": None}, "split": "test"}
    edited = {**SUMMARY, "info": {**SUMMARY["info"], "subreddit": "r/relationships"}}
    del edited["extra"]
    path = write(tmp_path / "batch3.json", SUMMARY, ARTICLE, unsure, bare, edited)
    reading = read_summaries(path)
    x = "Subreddit: r/legaladvice\nTitle: A car\n\nIt hit me.\n\nSummarise the post above.\n\n"
    assert reading.examples == [
        Example(x, "yes", "no", "", 0),
        Example(x, "no", "yes", "", 1),
        Example("Long.\n\nSummarise the post above.\n\n", "yes", "no", "", 2),
        Example(x.replace("legaladvice", "relationships"), "yes", "no", "", 3),
    ]
    assert (reading.read, reading.dropped) == (5, {"not a Reddit post": 1})
    assert reading.columns == {
        "split": ["train", "valid1", "test", "train"],
        "confidence": [8, -1, 8, -1],
    }


def test_summaries_of_articles(tmp_path):
    path = write(tmp_path / "cnndm0.json", SUMMARY, ARTICLE)
    reading = read_summaries(path, source="articles")
    x = "Title: News\n\nMuch happened.\n\nSummarise the article above.\n\n"
    assert reading.examples == [Example(x, "no", "yes", "", 0)]
    assert reading.dropped == {"not a news article": 1}
    assert reading.columns == {"split": ["valid2"], "confidence": [-1]}
    with pytest.raises(UserError, match="^source: got 'tweets', expected one of posts, articles$"):
        read_summaries(path, source="tweets")


def test_summaries_skip_and_count(tmp_path):
    same = {**SUMMARY, "summaries": [{"text": "a"}, {"text": " a"}]}
    empty = {**SUMMARY, "summaries": [{"text": "a"}, {"text": ""}]}
    no_post = {**SUMMARY, "info": {"post": " ", "title": "t"}}
    reading = read_summaries(write(tmp_path / "batch3.json", same, empty, no_post, SUMMARY))
    assert reading.dropped == {"identical responses": 1, "empty response": 1, "empty prompt": 1}
    assert reading.columns == {"split": ["train"], "confidence": [8]}


def without(record, *keys):
    return {key: value for key, value in record.items() if key not in keys}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (without(SUMMARY, "info"), "got the keys ['choice', 'extra', 'split', 'summaries'], expe"),
        ({**SUMMARY, "info": "post"}, "got 'post' under 'info', expected an object"),
        (
            {**SUMMARY, "info": {"title": "t", "post": None}},
            "got ['post', 'title'] under 'info', expected either 'post' or 'article'",
        ),
        ({**SUMMARY, "info": {"post": "p", "article": "a"}}, "expected either 'post' or 'article'"),
        ({**SUMMARY, "info": {"post": 3}}, "got 3, expected text under 'post'"),
        ({**ARTICLE, "info": {"article": []}}, "got [], expected text under 'article'"),
        ({**SUMMARY, "info": {"post": "p", "title": 1}}, "got 1, expected text under 'title'"),
        (
            {**SUMMARY, "summaries": [{"text": "a"}] * 3},
            "got [{'text': 'a'}, {'text': 'a'}, {'text': 'a'}] under 'summaries', expected two",
        ),
        ({**SUMMARY, "summaries": ["a", "b"]}, "got 'a' under 'summaries', expected an object"),
        (
            {**SUMMARY, "summaries": [{"text": "a"}, {}]},
            "got the keys [], expected text under 'text'",
        ),
        ({**SUMMARY, "choice": 2}, "got 2 under 'choice', expected 0 or 1"),
        ({**SUMMARY, "choice": True}, "got True under 'choice', expected 0 or 1"),
        ({**SUMMARY, "choice": 0.5}, "got 0.5 under 'choice', expected 0 or 1"),
        (
            {**SUMMARY, "split": "dev"},
            "got 'dev' under 'split', expected one of train, valid1, valid2, validation, test",
        ),
        ({**SUMMARY, "split": 1}, "got 1, expected text under 'split'"),
        ({**SUMMARY, "extra": []}, "got [] under 'extra', expected an object"),
        (
            {**SUMMARY, "extra": {"confidence": "high"}},
            "got 'high' under 'confidence', expected a whole number of 0 or more",
        ),
        ({**SUMMARY, "extra": {"confidence": -3}}, "got -3 under 'confidence', expected"),
        ({**SUMMARY, "extra": {"confidence": 1.5}}, "got 1.5 under 'confidence', expected"),
    ],
)
def test_malformed_summaries(tmp_path, record, message):
    path = write(tmp_path / "batch3.json", SUMMARY, record)
    with pytest.raises(UserError) as error:
        read_summaries(path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert message in str(error.value)


# --- malformed lines --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "got '{' (Expecting property name enclosed in double quotes, column 2), expected a"),
        ("[1]", "got [1], expected a JSON object"),
        ("null", "got None, expected a JSON object"),
        ('"text"', "got 'text', expected a JSON object"),
        (json.dumps(FINE) * 2, "(Extra data, column 48), expected a JSON object"),
        ("\ufeff" + json.dumps(FINE), "got a byte order mark, as where files were joined"),
        ('{"prompt": "\\ud83d"}', "got half a surrogate pair, \\ud83d, under 'prompt', expected"),
        ('{"a": [{"\\uDCB2": 1}]}', "got half a surrogate pair, \\udcb2, under 'a', expected text"),
        ('{"a": 1e999}', "got the number 1e999, expected one that a float holds"),
        (json.dumps(FINE) + "\r" + json.dumps(OTHER), "got lines that end with CR alone, expected"),
        ({"a": [[]] * 50, "b": functools.reduce(lambda a, _: [a], range(99), [])}, "too deeply"),
        ('{"prompt": "a\tb"}', "(Invalid control character at, column 14)"),
        (b'{"prompt": "a\0b"}', "(Invalid control character at, column 14)"),
        (b"\0" * 9, "(Expecting value, column 1), expected a JSON object"),
        ("café".encode("latin-1"), "got byte 0xe9 at position 3, expected UTF-8 text"),
        (json.dumps(FINE).encode("utf-16"), "got byte 0xff at position 0, expected UTF-8 text"),
        (b'{"prompt": "\xed\xa0\xbd"}', "got byte 0xed at position 12, expected UTF-8 text"),
        ('{"prompt": "a", "prompt": "a"}', "got the key 'prompt' twice, expected every key once"),
        ('{"prompt": [{"role": 1, "role": 2}]}', "got the key 'role' twice, expected every key"),
        ('{"prompt": "x", "p": NaN}', "got the number NaN, which JSON doesn't have"),
        ('{"prompt": "x", "p": [-Infinity]}', "got the number -Infinity, which JSON doesn't have"),
        ('{"p": %s}' % ("9" * 5000), "got a number of 5000 digits, expected 100 at most"),
        ("[" * 100_000, "got brackets nested too deeply, expected a JSON object"),
        ('{"prompt": ' * 100_000, "got brackets nested too deeply, expected a JSON object"),
        (pair("a", "b"), "got the keys ['chosen', 'rejected'], expected text or turns under 'pro"),
        ({**FINE, "prompt": 3}, "got 3, expected text under 'prompt'"),
        ({**FINE, "chosen": None}, "got None, expected text under 'chosen'"),
        ({**FINE, "chosen": {"a": 1}}, "got {'a': 1}, expected text under 'chosen'"),
        ({**FINE, "chosen": {"a": [["b" * 99] * 9] * 9}}, "got {'a': [['bbbb"),
        (without(FINE, "rejected"), "got the keys ['chosen', 'prompt'], expected text under 'reje"),
        ({**FINE, "prompt": []}, "got roles [] under 'prompt', expected a dialogue"),
        ({**FINE, "prompt": ["hi"]}, "got 'hi' under 'prompt', expected turns {role, content}"),
        ({**FINE, "prompt": [{"role": "user"}]}, "expected turns {role, content} with text"),
        (
            {**FINE, "prompt": [{"role": "tool", "content": "a"}]},
            "got roles ['tool'] under 'prompt', expected a dialogue that begins with 'user' and",
        ),
        (
            {**FINE, "prompt": [TURN, {"role": "assistant", "content": "a"}]},
            "got roles ['user', 'assistant'] under 'prompt', expected a dialogue that begins",
        ),
        ({**FINE, "chosen": [TURN]}, "got roles ['user'] under 'chosen', expected 'assistant'"),
        (
            {**FINE, "chosen": [TURN, {"role": "assistant", "content": "a"}]},
            "got 2 turns under 'chosen', expected one assistant turn, alone or after the turns of",
        ),
    ],
)
def test_a_malformed_line_is_named_and_loses_no_other(tmp_path, line, message):
    path = write(tmp_path / "p.jsonl", FINE, line, OTHER)
    with pytest.raises(UserError) as error:
        read_preferences(path)
    description = str(error.value)
    assert description.startswith(f"{path}:2: got ")
    assert message in description
    assert len(description.splitlines()) == 1 and len(description) < 400 + len(path)

    reading = read_preferences(path, on_error="skip")
    assert texts(reading) == [("x", "a", "b"), ("y", "c", "d")]
    assert (reading.read, reading.dropped) == (3, {"malformed": 1})
    assert reading.malformed == (description,)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "expected a JSON object"),
        (
            {"chosen": CONTEXT + " a"},
            "got the keys \\['chosen'\\], expected .* and this lacks 'rejected'$",
        ),
        ({"chosen": ["a"], "rejected": "b"}, "got \\['a'\\], expected text under 'chosen'"),
    ],
)
def test_malformed_hh_names_file_and_line(tmp_path, line, message):
    path = write(tmp_path / "hh.jsonl.gz", line)
    with pytest.raises(UserError, match=message) as error:
        read_hh(path)
    assert str(error.value).startswith(f"{path}:1: ")


@pytest.mark.parametrize("total", [2, 10, 11, 17])
def test_the_first_ten_malformed_lines_and_their_number(tmp_path, total):
    first = write(tmp_path / "a.jsonl", *[[n] for n in range(4)][:total], FINE)
    second = write(tmp_path / "b.jsonl", OTHER, *[[n] for n in range(4, total)])
    places = [f"{first}:{n + 1}" for n in range(min(4, total))]
    places += [f"{second}:{n - 2}" for n in range(4, total)]
    lines = [f"{place}: got [{n}], expected a JSON object" for n, place in enumerate(places)]
    end = f"{total} malformed lines in all"
    if total > 10:
        end = f"… and {total - 10} more, {end}"
    with pytest.raises(UserError) as error:
        read_preferences([first, second])
    assert str(error.value) == "\n".join([*lines[:10], end])

    reading = read_preferences([first, second], on_error="skip")
    assert reading.malformed == tuple(lines[:10])
    assert (reading.read, reading.dropped) == (total + 2, {"malformed": total})
    assert texts(reading) == [("x", "a", "b"), ("y", "c", "d")]


def test_on_error_is_one_of_two(tmp_path):
    path = write(tmp_path / "p.jsonl", FINE)
    for read in (read_hh, read_preferences, read_summaries):
        with pytest.raises(UserError, match="^on_error: got 'ignore', expected one of raise, skip"):
            read(path, on_error="ignore")


def test_an_enormous_line_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 1000)
    room = 999 - len(json.dumps({**FINE, "chosen": ""}))
    fits, over = ({**FINE, "chosen": "a" * size} for size in (room, room + 1))
    path = write(tmp_path / "p.jsonl", fits, over, FINE, "b" * 5000)
    reading = read_preferences(path, on_error="skip")
    assert [len(e.chosen) for e in reading.examples] == [room, 1]
    assert reading.dropped == {"malformed": 2}
    message = "got a line of over 1000 bytes, expected 1000 bytes at most"
    assert reading.malformed == (f"{path}:2: {message} (and 1 more line alike)",)


def test_an_enormous_line_is_never_in_memory_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 1 << 20)
    packer = zlib.compressobj(wbits=31)
    data = packer.compress(b'{"prompt": "')
    for _ in range(64):
        data += packer.compress(b"a" * (1 << 20))
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(data + packer.compress(b'"}\n' + encode(FINE)) + packer.flush())
    tracemalloc.start()
    reading = read_preferences(str(path), on_error="skip")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (texts(reading), reading.dropped) == ([("x", "a", "b")], {"malformed": 1})
    assert peak < 16 << 20


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"\n \n\r\n", 0),
        (gzip.compress(b""), 0),
        (encode(FINE)[:-1], 1),
        (encode(FINE, OTHER).replace(b"\n", b"\r\n"), 2),
        (b"\xef\xbb\xbf" + encode(FINE, OTHER), 2),
        (b"\xef\xbb\xbf\n" + encode(FINE), 1),
        (gzip.compress(b"\xef\xbb\xbf" + encode(FINE)), 1),
        (gzip.compress(encode(FINE)) + gzip.compress(encode(OTHER)) + b"\0\0", 2),
    ],
    ids=["empty", "blank", "empty gzip", "no end", "CRLF", "BOM", "BOM, blank", "gzip BOM", "two"],
)
def test_files_that_are_fine(tmp_path, data, expected):
    # The name says nothing about whether a file is packed.
    for name in ("p.jsonl", "p.jsonl.gz"):
        (tmp_path / name).write_bytes(data)
        reading = read_preferences(str(tmp_path / name))
        assert texts(reading) == [("x", "a", "b"), ("y", "c", "d")][:expected]
        assert (reading.read, reading.dropped) == (expected, {})


def test_blank_lines_count_in_line_numbers(tmp_path):
    path = write(tmp_path / "p.jsonl", "", FINE, "  ", "[1]")
    with pytest.raises(UserError, match="p.jsonl:4: got \\[1\\]"):
        read_preferences(path)


def packed(lines):
    numbers = random.Random(0)
    noise = [f"{numbers.getrandbits(2000):x}" for _ in range(lines)]
    return gzip.compress(encode(*[{**FINE, "prompt": text} for text in noise])), noise


def test_a_gzip_file_that_breaks_off(tmp_path):
    data, prompts = packed(1000)
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(data[: len(data) // 2])
    other = write(tmp_path / "other.jsonl", OTHER)
    reading = read_preferences([str(path), other], on_error="skip")
    got = len(reading.examples) - 1
    assert 100 < got < 900
    assert [e.group for e in reading.examples] == [*prompts[:got], "y"]
    assert (reading.read, reading.dropped) == (got + 2, {"malformed": 1})
    (description,) = reading.malformed
    assert description.startswith(f"{path}:{got + 1}: got a gzip file that breaks off (")
    with pytest.raises(UserError) as error:
        read_preferences([str(path), other])
    assert str(error.value) == description


@pytest.mark.parametrize("place", ["first block", "checksum", "end"])
def test_a_corrupt_gzip_file(tmp_path, place):
    data, prompts = packed(20)
    kept = 0 if place == "first block" else 20
    if place == "first block":
        data = data[:10] + bytes([data[10] | 0b110]) + data[11:]
    elif place == "checksum":
        data = data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]
    else:
        data += b"more"
    path = tmp_path / "corrupt.jsonl.gz"
    path.write_bytes(data)
    reading = read_preferences(str(path), on_error="skip")
    assert [e.group for e in reading.examples] == prompts[:kept]
    assert (reading.read, reading.dropped) == (kept + 1, {"malformed": 1})
    with pytest.raises(UserError, match=f":{kept + 1}: got a gzip file that breaks off"):
        read_preferences(str(path))


def test_paths_that_hold_no_files(tmp_path):
    (tmp_path / "folder.jsonl").mkdir()
    for on_error in readers.ON_ERROR:
        with pytest.raises(UserError, match="no such file, and no file matches it as a pattern"):
            read_hh(str(tmp_path / "none.jsonl"), on_error=on_error)
        with pytest.raises(UserError, match=r"\*.jsonl: no such file, and no file matches it"):
            read_hh(str(tmp_path / "*.jsonl"), on_error=on_error)
        with pytest.raises(UserError, match=r"folder.jsonl: got a folder, expected files"):
            read_hh(str(tmp_path / "folder.jsonl"), on_error=on_error)
        with pytest.raises(UserError, match=r"got a pattern with \*\*, expected"):
            read_hh("gs://bucket/**/*.jsonl", on_error=on_error)


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    path = write(tmp_path / "p.jsonl", FINE)

    class Failing(records._Raw):
        def readinto(self, buffer):
            raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(records, "_Raw", Failing)
    for on_error in readers.ON_ERROR:
        with pytest.raises(UserError) as error:
            read_preferences(path, on_error=on_error)
        assert str(error.value) == f"{path}: can't be read: Permission denied"


def test_patterns_are_read_in_name_order(tmp_path, monkeypatch):
    for name in "ba":
        (tmp_path / name).mkdir()
        write(tmp_path / name / "p.jsonl", {**FINE, "prompt": name})
    (tmp_path / "a" / "folder.jsonl").mkdir()
    read = [read_preferences(str(tmp_path / "*" / "*.jsonl"))]
    monkeypatch.chdir(tmp_path)
    read += [read_preferences("[ab]/?.jsonl"), read_preferences(tmp_path / "*" / "p.*")]
    for reading in read:
        assert [(e.group, e.index) for e in reading.examples] == [("a", 0), ("b", 1)]
    reading = read_preferences(["b/p.jsonl", "a/*.jsonl"])
    assert [(e.group, e.index) for e in reading.examples] == [("b", 0), ("a", 1)]


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """The folder that gs://bucket is, read by TensorFlow as buckets are."""
    import tensorflow as tf

    def local(path):
        assert str(path).startswith("gs://bucket")
        return str(path).replace("gs://bucket", str(tmp_path))

    def opened(path, mode):
        if "denied" in path:
            raise tf.errors.PermissionDeniedError(None, None, "no access\nat all")
        return tf.io.gfile.GFile(local(path), mode)

    def matches(pattern):
        return [m.replace(str(tmp_path), "gs://bucket") for m in tf.io.gfile.glob(local(pattern))]

    class Bucket(backend._TfBackend):
        gfile = types.SimpleNamespace(
            GFile=opened,
            exists=lambda path: tf.io.gfile.exists(local(path)),
            isdir=lambda path: tf.io.gfile.isdir(local(path)),
            glob=matches,
        )

    monkeypatch.setattr(backend, "tf_backend", Bucket())
    return tmp_path


def test_buckets(bucket):
    write(bucket / "b.jsonl", OTHER, "{")
    write(bucket / "a.jsonl.gz", FINE)
    write(bucket / "denied.jsonl", FINE)
    reading = read_preferences("gs://bucket/?.jsonl*", on_error="skip")
    assert texts(reading) == [("x", "a", "b"), ("y", "c", "d")]
    assert reading.malformed[0].startswith("gs://bucket/b.jsonl:2: got '{'")
    with pytest.raises(UserError, match="^gs://bucket/c.jsonl: no such file"):
        read_preferences("gs://bucket/c.jsonl")
    with pytest.raises(UserError, match="^gs://bucket/denied.jsonl: can't be read: no access$"):
        read_preferences("gs://bucket/denied.jsonl")


# --- anything at all --------------------------------------------------------------------------

READERS = (
    read_preferences,
    read_hh,
    read_summaries,
    functools.partial(read_summaries, source="articles"),
)
HH = pair(CONTEXT + " a", CONTEXT + " b")
VALID = [encode(record)[:-1] for record in (FINE, HH, SUMMARY, ARTICLE)]


def check_any(folder, data):
    """Reads `data` with every reader: a sound Reading, or, iff a line is malformed, UserError."""
    path = str(folder.getbasetemp() / "any.jsonl")
    with open(path, "wb") as file:
        file.write(data)
    for read in READERS:
        reading = read(path, on_error="skip")
        assert reading.read == len(reading.examples) + sum(reading.dropped.values())
        assert [e.index for e in reading.examples] == list(range(len(reading.examples)))
        assert all(e.prompt.strip() and e.chosen and e.rejected for e in reading.examples)
        assert all(len(values) == len(reading.examples) for values in reading.columns.values())
        malformed = reading.dropped.get("malformed", 0)
        assert min(1, malformed) <= len(reading.malformed) <= min(10, malformed)
        assert all("\n" not in line and line.startswith(path) for line in reading.malformed)
        if malformed:
            with pytest.raises(UserError) as error:
                read(path)
            assert str(error.value).startswith(reading.malformed[0])
        else:
            assert read(path) == reading


@given(st.binary(), st.integers(0, 60), st.sampled_from(VALID))
def test_any_bytes(tmp_path_factory, data, cut, valid):
    check_any(tmp_path_factory, data)
    check_any(tmp_path_factory, gzip.compress(valid + b"\n" + data, mtime=0)[:cut])
    check_any(tmp_path_factory, b"\x1f\x8b" + data)


KEYS = st.sampled_from(("prompt", "chosen", "rejected", "role", "content")) | st.sampled_from(
    ("info", "post", "article", "summaries", "text", "choice", "split", "extra", "confidence")
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["user", "assistant", "system", "train", CONTEXT + " a", CONTEXT + " b"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.fixed_dictionaries({"role": LEAVES, "content": LEAVES})
        | st.fixed_dictionaries({"prompt": inner, "chosen": inner, "rejected": inner})
    ),
    max_leaves=12,
)


@given(st.lists(VALUES, max_size=3))
def test_any_values(tmp_path_factory, values):
    check_any(tmp_path_factory, encode(*map(json.dumps, values)))


@given(st.sampled_from([FINE, HH, SUMMARY, ARTICLE]), st.data())
def test_records_with_another_value_somewhere(tmp_path_factory, record, data):
    record = json.loads(json.dumps(record))
    place = record
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else [0, 1]))
        if not (place[key] and isinstance(place[key], dict | list)) or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(VALUES)
    check_any(tmp_path_factory, encode(record))


@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 9), st.binary(max_size=3)), max_size=3),
)
def test_records_with_other_bytes_somewhere(tmp_path_factory, line, edits):
    for start, length, new in edits:
        start %= len(line) + 1
        line = line[:start] + new + line[start + length :]
    check_any(tmp_path_factory, line + b"\n" + VALID[0])


@given(st.binary().filter(lambda data: b"\n" not in data and data.strip()))
def test_what_stands_around_a_line_of_any_bytes_is_read(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "around.jsonl"
    reading = read_preferences(write(path, FINE, data, OTHER), on_error="skip")
    assert texts(reading) == [("x", "a", "b"), ("y", "c", "d")]
    assert (reading.read, sum(reading.dropped.values())) == (3, 1)
