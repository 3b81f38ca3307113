"""Says, independently of the readers, what a line holds and whose texts an example may have."""

import contextlib
import json
import math
import re

MAX_DEPTH = 100
MAX_DIGITS = 100
_MARKERS = re.compile("\n\n(?:Human|Assistant):")
_LAST = re.compile(r"\s*\n\s*Assistant:\Z")


def strict(line: bytes):
    """Returns the object of a line as `json` alone reads it; None where it has to be refused."""
    repeated = []

    def pairs(found):
        if len({key for key, _ in found}) < len(found):
            repeated.append(True)
        return dict(found)

    try:
        value = json.loads(line.strip(b"\r").decode("utf-8"), object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or repeated or not _is_plain(value) or is_columns(value):
        return None
    return value


def _is_plain(value) -> bool:
    level, depth = [value], 0
    while level:
        deeper = []
        for one in level:
            if isinstance(one, str) and any(0xD800 <= ord(mark) < 0xE000 for mark in one):
                return False
            if isinstance(one, float) and not math.isfinite(one):
                return False
            if type(one) is int and len(str(abs(one))) > MAX_DIGITS:
                return False
            if isinstance(one, (dict, list)):
                if depth == MAX_DEPTH:
                    return False
                deeper += [*one, *one.values()] if isinstance(one, dict) else one
        level, depth = deeper, depth + 1
    return True


def is_columns(value: dict) -> bool:
    """Returns whether an object is a table of columns rather than a row."""
    if not value:
        return False
    kinds = {type(one) for one in value.values()}
    if kinds == {list}:
        return not any(isinstance(one, dict) for column in value.values() for one in column)
    if kinds == {dict} and all(
        column and all(key.isdecimal() for key in column) for column in value.values()
    ):
        return True
    return all(key.isdecimal() for key in value) and isinstance(next(iter(value.values())), dict)


def texts(value) -> set[str]:
    """Returns all texts of a record and, of dialogues, all turns; without the space around them."""
    found, waiting = set(), [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            found.add(one.strip())
            for part in _MARKERS.split(one):
                # A prompt may end with the marker of what is to come, on a line of its own.
                found |= {part.strip(), _LAST.sub("", part).strip()}
            if one[:1] in ("[", "{", '"'):  # exports write turns as text too
                with contextlib.suppress(ValueError, RecursionError):
                    waiting.append(json.loads(one))
        elif isinstance(one, (dict, list)):
            waiting += one.values() if isinstance(one, dict) else one
    return found


def is_from(example, value: dict) -> bool:
    """Returns whether every text of an example is a text of the record, with nothing lost."""
    known = texts(value)
    if not {example.chosen, example.rejected} <= known and not (
        _is_joined(example.chosen, known) and _is_joined(example.rejected, known)
    ):
        return False
    return is_prompt(example.prompt, value)


def is_prompt(x: str, value: dict) -> bool:
    """Returns whether every text of a prompt x is a text of the record."""
    known = texts(value)
    if x == _summary_prompt(value.get("info")):
        return True
    turns = getattr(x, "turns", None) or (("user", x),)
    said = [content.strip() for _, content in turns]
    return all(content in known or _is_joined(content, known) for content in said)


def _is_joined(text: str, known: set[str]) -> bool:
    """Returns whether a text is of known ones, with a blank line between each two."""
    parts = {part.strip() for one in known for part in one.split("\n\n")}
    return all(part.strip() in parts for part in text.split("\n\n"))


def _summary_prompt(info) -> str:
    """Returns x of what is to be summarised; empty if it isn't of that format."""
    kinds = ("post", "article", "title", "subreddit")
    if not isinstance(info, dict) or {type(info.get(k)) for k in kinds} - {str, type(None)}:
        return ""
    post, article, title, subreddit = (info.get(k) and info[k].strip() for k in kinds)
    kind = "article" if info.get("article") is not None else "post"
    head = f"Subreddit: r/{subreddit.removeprefix('r/')}\n" if subreddit and kind == "post" else ""
    head += f"Title: {title}\n" if title else ""
    return f"{head}\n{post or article}\n\nSummarise the {kind} above.\n\n".lstrip("\n")
