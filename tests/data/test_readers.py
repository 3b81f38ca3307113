"""Preference files: what is read, what is skipped and counted, what stops with file and line."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit_jax.data.examples import Example
from pit_jax.data.readers import read_hh, read_preferences
from pit_jax.errors import UserError


def write(path, *records):
    text = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def pair(chosen, rejected):
    return {"chosen": chosen, "rejected": rejected}


CONTEXT = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: what is 2+2?\n\nAssistant:"


@pytest.mark.parametrize("name", ["hh.jsonl", "hh.jsonl.gz"])
def test_hh_dialogue(tmp_path, name):
    path = write(tmp_path / name, pair(CONTEXT + " It is 4.\n", CONTEXT + " 5"), "", "  ")
    reading = read_hh(path)
    x = "hi\n\nAssistant: hello\n\nHuman: what is 2+2?\n\n"
    assert reading.examples == [Example(x, "It is 4.", "5", "", 0)]
    assert (reading.read, reading.dropped) == (1, {})
    assert f"Human: {x}Assistant:" == CONTEXT.strip()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (pair(CONTEXT + " a", CONTEXT.replace("hello", "hey") + " b"), "contexts differ"),
        (pair(CONTEXT + " a\n\nHuman: b\n\nAssistant: c", CONTEXT + " d"), "contexts differ"),
        (pair(CONTEXT + " a", CONTEXT + " \n"), "empty response"),
        (pair(CONTEXT, CONTEXT + " b"), "empty response"),
        (pair(CONTEXT + " a", CONTEXT + "  a "), "identical responses"),
        (pair(CONTEXT + " a\n\nHuman: b", CONTEXT + " c"), "does not end with an Assistant turn"),
        (pair("Human: a\n\nAssistant: b", CONTEXT + " c"), "does not begin with Human"),
        (pair("\n\nHuman: a", "\n\nHuman: a"), "no Assistant turn"),
        (pair("\n\nHuman: \n\nAssistant: b", "\n\nHuman: \n\nAssistant: c"), "empty prompt"),
        (pair(CONTEXT + " \ud83d", CONTEXT + " c"), "not valid Unicode"),
    ],
)
def test_hh_skips_and_counts(tmp_path, record, reason):
    good = pair(CONTEXT + " a", CONTEXT + " b")
    reading = read_hh(write(tmp_path / "hh.jsonl", record, good, record))
    assert reading.read == 3
    assert [(example.chosen, example.index) for example in reading.examples] == [("a", 0)]
    assert list(reading.dropped.values()) == [2]
    assert reason in next(iter(reading.dropped))


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5),
    st.text("abc", min_size=1),
)
def test_hh_prompt_reproduces_the_dialogue(tmp_path_factory, turns, answer):
    turns = [turn.replace(":", "") + "." for turn in turns[: len(turns) - 1 + len(turns) % 2]]
    dialogue = ""
    for number, turn in enumerate(turns):
        dialogue += f"\n\n{'Assistant' if number % 2 else 'Human'}: {turn}"
    path = tmp_path_factory.mktemp("hh") / "hh.jsonl"
    record = pair(f"{dialogue}\n\nAssistant: {answer}", f"{dialogue}\n\nAssistant: {answer}d")
    (example,) = read_hh(write(path, record)).examples
    assert f"\n\nHuman: {example.prompt}Assistant:" == f"{dialogue}\n\nAssistant:"
    assert (example.chosen, example.rejected) == (answer, answer + "d")


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
    )
    reading = read_preferences(path)
    assert reading.examples == [
        Example(" hi\n", "good", "bad", "", 0),
        Example("hi\n\n", "good", "bad", "", 1),
        Example("Be brief.\n\nhi\n\nAssistant: yes?\n\nHuman: why\n\n", "good", "bad", "", 2),
        Example("hi\n\n", "good", "bad", "", 3),
    ]


TURN = {"role": "user", "content": "hi"}
FINE = {"prompt": "x", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "expected a JSON object, got"),
        ("[1]", "expected a JSON object, got '\\[1\\]'"),
        ({"chosen": "a", "rejected": "b"}, "expected text or turns under 'prompt', got the keys"),
        ({**FINE, "prompt": 3}, "expected text under 'prompt', got 3"),
        ({**FINE, "chosen": None}, "expected text under 'chosen', got None"),
        ({"prompt": "x", "chosen": "a"}, "expected text under 'rejected', got the keys"),
        ({**FINE, "prompt": []}, "to end with role 'user'|roles user, assistant"),
        ({**FINE, "prompt": ["hi"]}, "expected turns {role, content} with text under 'prompt'"),
        ({**FINE, "prompt": [{"role": "user"}]}, "expected turns {role, content}"),
        (
            {**FINE, "prompt": [{"role": "tool", "content": "a"}]},
            "roles user, assistant, … in turn",
        ),
        ({**FINE, "prompt": [TURN, TURN]}, "roles user, assistant, … in turn"),
        (
            {**FINE, "prompt": [TURN, {"role": "assistant", "content": "a"}]},
            "the turns under 'prompt' to end with role 'user'",
        ),
        ({**FINE, "chosen": [TURN]}, "expected one assistant turn under 'chosen'"),
        (
            {**FINE, "chosen": [TURN, {"role": "assistant", "content": "a"}]},
            "alone or after the turns of 'prompt'",
        ),
    ],
)
def test_malformed_preference_names_file_and_line(tmp_path, line, message):
    path = write(tmp_path / "p.jsonl", FINE, line)
    with pytest.raises(UserError, match=message) as error:
        read_preferences(path)
    assert str(error.value).startswith(f"{path}:2: ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "expected a JSON object"),
        ({"chosen": CONTEXT + " a"}, "expected text under 'rejected', got the keys"),
        ({"chosen": ["a"], "rejected": "b"}, "expected text under 'chosen', got \\['a'\\]"),
    ],
)
def test_malformed_hh_names_file_and_line(tmp_path, line, message):
    path = write(tmp_path / "hh.jsonl.gz", line)
    with pytest.raises(UserError, match=message) as error:
        read_hh(path)
    assert str(error.value).startswith(f"{path}:1: ")


def test_unreadable_files(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_hh(str(tmp_path / "*.jsonl"))
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(json.dumps(FINE).encode() + b"\n\xff\xfe\n")
    with pytest.raises(UserError, match="latin.jsonl:2: expected UTF-8"):
        read_preferences(str(latin))
    cut = tmp_path / "cut.jsonl.gz"
    whole = gzip.compress(json.dumps(FINE).encode() * 50)
    cut.write_bytes(whole[:-9])
    with pytest.raises(UserError, match="cut.jsonl.gz:1: can't be read"):
        read_preferences(str(cut))
    plain = tmp_path / "plain.jsonl.gz"
    plain.write_text(json.dumps(FINE))
    with pytest.raises(UserError, match="plain.jsonl.gz:1: can't be read"):
        read_preferences(str(plain))


def test_globs_are_read_in_name_order(tmp_path):
    for name in "ba":
        write(tmp_path / f"{name}.jsonl", {**FINE, "prompt": name})
    reading = read_preferences(str(tmp_path / "*.jsonl"))
    assert [(e.prompt, e.index) for e in reading.examples] == [("a", 0), ("b", 1)]
    reading = read_preferences([str(tmp_path / "b.jsonl"), str(tmp_path / "a.jsonl")])
    assert [(e.prompt, e.index) for e in reading.examples] == [("b", 0), ("a", 1)]
