"""Parses OpenAI's comparisons of summaries, as they are published and as others have written them.

An exporter may write whole numbers as 1.0, a `validation` split for `valid1` and `valid2`, and two
summaries as one object of lists; each is read as what it plainly means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pit_jax.data.examples import Dialogue, Example
from pit_jax.data.files.fields import got, number, text
from pit_jax.data.files.formats import Skip
from pit_jax.data.files.json_values import shown

SOURCES = ("posts", "articles")
SPLITS = ("train", "valid1", "valid2", "validation", "test")
NO_CONFIDENCE = -1


def summary(record: dict[str, Any], source: str) -> tuple[Example, dict[str, Any]]:
    """Makes an Example of OpenAI's comparison of summaries, as readers.read_summaries describes."""
    info = _object(record, "info")
    post, article = info.get("post"), info.get("article")
    if (post is None) == (article is None):
        raise ValueError(
            f"got {shown(sorted(info))} under 'info', expected either 'post' or 'article'"
        )
    texts = [text(_as_object(one, "summaries"), "text").strip() for one in _two_summaries(record)]
    choice = _whole(record.get("choice"))
    if choice not in (0, 1):
        raise ValueError(f"got {got(record, 'choice')} under 'choice', expected 0 or 1")
    split = text(record, "split")
    if split not in SPLITS:
        raise ValueError(f"got {shown(split)} under 'split', expected one of {', '.join(SPLITS)}")
    confidence = _confidence(record)
    prompt = _post(info) if article is None else _article(info)
    if source != ("posts" if article is None else "articles"):
        raise Skip("not a Reddit post" if source == "posts" else "not a news article")
    columns = {"split": split, "confidence": confidence}
    x = Dialogue(prompt, (("user", prompt.strip()),))
    return Example(x, texts[choice], texts[1 - choice]), columns


def _two_summaries(record: dict[str, Any]) -> list[Any]:
    found = record.get("summaries")
    if isinstance(found, dict) and isinstance(found.get("text"), list):
        found = [{"text": one} for one in found["text"]]
    if not isinstance(found, list) or len(found) != 2:
        raise ValueError(f"got {got(record, 'summaries')} under 'summaries', expected two of them")
    return found


def _whole(value: Any) -> int | None:
    """Returns a whole number, which may be written as 1.0; None for anything else."""
    found = number(value)
    return None if found is None or found % 1 else int(found)


def _object(record: dict[str, Any], key: str) -> dict[str, Any]:
    if key not in record:
        raise ValueError(f"got {got(record, key)}, expected an object under {key!r}")
    return _as_object(record[key], key)


def _as_object(value: Any, key: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"got {shown(value)} under {key!r}, expected an object")
    return value


def _confidence(record: dict[str, Any]) -> int:
    """Returns `extra.confidence`, a whole number; NO_CONFIDENCE if it is missing or null."""
    extra = record.get("extra")
    confidence = None if extra is None else _as_object(extra, "extra").get("confidence")
    if confidence is None:
        return NO_CONFIDENCE
    whole = _whole(confidence)
    if whole is None or not 0 <= whole < 1000:
        raise ValueError(
            f"got {shown(confidence)} under 'confidence', expected a whole number of 0 or more"
        )
    return whole


def _post(info: dict[str, Any]) -> str:
    subreddit = _optional_text(info, "subreddit").removeprefix("r/")
    return _to_summarise(
        [("Subreddit: r/", subreddit), ("Title: ", _optional_text(info, "title"))],
        text(info, "post"),
        "post",
    )


def _article(info: dict[str, Any]) -> str:
    headings = [("Title: ", _optional_text(info, "title"))]
    return _to_summarise(headings, text(info, "article"), "article")


def _to_summarise(headings: Sequence[tuple[str, str]], told: str, kind: str) -> str:
    if not told.strip():
        raise Skip("empty prompt")
    lines = "".join(f"{name}{value}\n" for name, value in headings if value)
    return f"{lines}\n{told.strip()}\n\nSummarise the {kind} above.\n\n".lstrip("\n")


def _optional_text(record: dict[str, Any], key: str) -> str:
    return "" if record.get(key) is None else text(record, key).strip()
