"""Makes lines that are nearly right, as exports, crashes, editors and joins leave them."""

import copy
import json
import random

from tests.data.files import test_readers as examples

TURNS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "línea\u2028two"},
    {"role": "assistant", "content": "ok \U0001f375"},
    {"role": "user", "content": "and?"},
]
SEEDS = [
    {"prompt": "tea 1?", "chosen": "yes ", "rejected": "no", "score": 1.5},
    {"prompt": TURNS, "chosen": "yes", "rejected": [{"role": "assistant", "content": " no"}]},
    {"prompt": TURNS, "chosen": [*TURNS, {"role": "assistant", "content": "a"}], "rejected": "b"},
    {"prompt": "tea 2?", "response": "yes", "id": 7, "meta": {"from": ["a", None, True]}},
    {"prompt": TURNS, "responses": ["one", "two"], "ended": [True, False]},
    examples.HH,
    examples.SUMMARY,
    examples.ARTICLE,
]
VALUES = [
    *(None, True, 0, -1, 1.5, 10**99, "", " ", "a", "user", [], {}, [[]], [{}], ["a", "b"]),
    *("\ud83d", "\udcb2x", "\0", "\u2028", "\ufeff", "\u200b", "\x85", "a\r\nb", '"}', "\\", "{"),
    *(TURNS, TURNS[1], {"0": "a", "1": "b"}, {"role": "user", "content": None}, [TURNS]),
    *(examples.CONTEXT, examples.CONTEXT + " a", "\n\nHuman: a\n\nAssistant: b\n\nHuman: c"),
]
NUMBERS = [
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"-0",
    b"1E2",
    b"9" * 200,
    b"9" * 5000,
    b"01",
]
PIECES = [
    *(
        b"\0",
        b"\r",
        b"\n",
        b"\r\n",
        b"\x0b",
        b"\x1a",
        b"\x1e",
        b"\x7f",
        b"\t",
        b" ",
        b"\xff",
        b"\x80",
    ),
    *(
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\xe2\x80\xa8",
        b"\xc2\x85",
        b"\xed\xa0\xbd",
        b"\xc0\x80",
        b"\xf5",
    ),
    *(
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"'",
        b"/",
        b"#",
        b"<",
        b"\\ud83d",
        b"\\u0000",
    ),
    *(
        b"\\udcb2",
        b"\\ud83c\\udf75",
        b"\\u2028",
        b"\\n",
        b"\\x",
        b"null",
        b"{}",
        b"[]",
        b"\x1f\x8b",
    ),
]
ENCODINGS = [
    "utf-16",
    "utf-16-le",
    "utf-32",
    "utf-8-sig",
    "latin-1",
    "cp1252",
    "utf-7",
    "shift-jis",
]


def mutated(numbers: random.Random) -> bytes:
    """Returns a seed after none, one or several changes, as a line without its end."""
    value = copy.deepcopy(numbers.choice(SEEDS))
    for _ in range(numbers.choice((0, 0, 1, 1, 2))):
        _change_value(value, numbers)
    text = json.dumps(value, ensure_ascii=numbers.random() < 0.5)
    line = text.encode("utf-8", "surrogatepass")
    for _ in range(numbers.choice((0, 0, 1, 1, 1, 2, 5))):
        line = numbers.choice(_CHANGES)(line, numbers)
    return line


def _change_value(value, numbers):
    """Puts another value, or another key, somewhere into a record."""
    place = value
    while isinstance(place, (dict, list)) and place:
        key = numbers.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], (dict, list)) or not place[key] or numbers.random() < 0.4:
            break
        place = place[key]
    else:
        return
    change = numbers.randrange(5)
    if change == 0 and isinstance(place, dict):
        place[numbers.choice((key.upper(), key + " ", "text", "\ud800", ""))] = place.pop(key)
    elif change == 1:
        del place[key]
    elif change == 2:
        place[key] = json.dumps(place[key])
    elif change == 3 and isinstance(place, list):
        place.insert(0, place[key])
    else:
        place[key] = copy.deepcopy(numbers.choice(VALUES))


def _flip(line, numbers):
    if not line:
        return line
    at = numbers.randrange(len(line))
    return line[:at] + bytes([line[at] ^ (1 << numbers.randrange(8))]) + line[at + 1 :]


def _cut(line, numbers):
    at = numbers.randint(0, len(line))
    return line[:at] if numbers.random() < 0.7 else line[at:]


def _insert(line, numbers):
    at = numbers.choice((0, len(line), numbers.randint(0, len(line))))
    return line[:at] + numbers.choice(PIECES) * numbers.choice((1, 1, 1, 3)) + line[at:]


def _drop(line, numbers):
    at = numbers.randint(0, len(line))
    return line[:at] + line[at + numbers.randint(1, 30) :]


def _repeat(line, numbers):
    at = numbers.randint(0, len(line))
    end = at + numbers.randint(1, 60)
    return line[:end] + line[at:end] + line[end:]


def _encode(line, numbers):
    text = line.decode("utf-8", "replace")
    return text.encode(numbers.choice(ENCODINGS), "replace")


def _nest(line, numbers):
    depth = numbers.choice((1, 3, 90, 101, 900, 1100, 5000))
    start, end = numbers.choice(((b"[", b"]"), (b'{"a":', b"}")))
    inner = start * depth + b"1" + end * depth
    return b'{"prompt": "x", "deep": ' + inner + b"}" if numbers.random() < 0.5 else inner


def _wrap(line, numbers):
    return numbers.choice(
        (
            json.dumps(line.decode("utf-8", "replace")).encode(),
            b"[" + line + b"]",
            b'{"data": [' + line + b"]}",
            line + b",",
            line + line,
            line + b"\r" + line,
            line.replace(b'"', b"'"),
            line.replace(b", ", b",\n  "),
            line.replace(b": ", b":\r\n "),
            b"data: " + line,
            b"\0" * len(line),
            line.replace(b'{"', b'{"prompt": "again", "', 1),
        )
    )


def _number(line, numbers):
    return line.replace(b"{", b'{"n": ' + numbers.choice(NUMBERS) + b", ", 1)


_CHANGES = (_flip, _flip, _cut, _insert, _insert, _drop, _repeat, _encode, _nest, _wrap, _number)
