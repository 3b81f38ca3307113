"""A short run of the fuzzer, and that its oracle refuses what it should."""

import pytest

from pit_jax.data.examples import Example
from tests.fuzz import oracle, run


def test_readers_on_mutated_lines(tmp_path):
    counts = run.fuzz(2000, 1, tmp_path)
    assert counts["objects"] > 500 and counts["records"] - counts["objects"] > 500
    assert all(counts[name] > 5 for name in (*run.READERS, "improve"))
    assert counts["evaluate"] > 3


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b'{"a": 1, "a": 1}',
        b'{"a": [{"b": NaN}]}',
        b'{"a": 1e999}',
        b'{"a": "\\ud800"}',
        b'{"\\udc00": 1}',
        b'{"a": "\xff"}',
        b'{"a": ' + b"9" * 101 + b"}",
        b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"a": [1, 2], "b": [3, 4]}',
    ],
)
def test_the_oracle_refuses(line):
    assert oracle.strict(b'{"a": "\\ud83c\\udf75"}') == {"a": "\U0001f375"}
    assert oracle.strict(line) is None


def test_the_oracle_sees_a_text_that_changed():
    row = {"prompt": "tea?", "chosen": " yes ", "rejected": "no"}
    assert oracle.is_from(Example("tea?", "yes", "no"), row)
    assert not oracle.is_from(Example("tea", "yes", "no"), row)
    assert not oracle.is_from(Example("tea?", "ye", "no"), row)
