"""Parses the formats of preference files, a line at a time.

Each parser takes the object of a line. It returns the line's Example, and by name what else the
line tells of it. It raises ValueError, saying what was got and what was expected, for a line that
isn't of the format, and Skip for a pair that is of the format and can't be learned from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pit_jax.data.examples import Dialogue, Example, Turns
from pit_jax.data.files.json_values import shown

SUMMARY_SOURCES = ("posts", "articles")
SUMMARY_SPLITS = ("train", "valid1", "valid2", "test")
NO_CONFIDENCE = -1

_HUMAN = "\n\nHuman:"
_ASSISTANT = "\n\nAssistant:"


class Skip(Exception):
    """Says that a well-formed pair is left out; the message is the reason it is counted under."""


def check_usable(example: Example) -> None:
    """Raises Skip for a pair that nothing can be learned from."""
    if not example.chosen or not example.rejected:
        raise Skip("empty response")
    if example.chosen == example.rejected:
        raise Skip("identical responses")
    if not example.prompt.strip():
        raise Skip("empty prompt")
    try:
        for text in (example.prompt, example.chosen, example.rejected):
            text.encode()
    except UnicodeEncodeError:
        raise Skip("not valid Unicode") from None


def hh(record: dict[str, Any]) -> tuple[Example, dict[str, Any]]:
    """Makes an Example of a line of Anthropic's HH-RLHF, as readers.read_hh describes."""
    contexts, responses = [], []
    for key in ("chosen", "rejected"):
        dialogue = _text(record, key)
        if not dialogue.startswith(_HUMAN):
            raise Skip("dialogue does not begin with Human")
        context, marker, response = dialogue.rpartition(_ASSISTANT)
        if not marker:
            raise Skip("no Assistant turn")
        if _HUMAN in response:
            raise Skip("dialogue does not end with an Assistant turn")
        contexts.append(context)
        responses.append(response.strip())
    if contexts[0] != contexts[1]:
        raise Skip("contexts differ")
    x = contexts[0].removeprefix(_HUMAN).removeprefix(" ") + "\n\n"
    return Example(hh_prompt(x), responses[0], responses[1]), {}


def hh_prompt(x: str) -> Dialogue:
    """Returns the text x of an HH-RLHF prompt with its turns, without the space around them."""
    parts = re.split(f"({_HUMAN}|{_ASSISTANT})", _HUMAN + x)[1:]
    roles = ["user" if marker == _HUMAN else "assistant" for marker in parts[::2]]
    said = [content.strip() for content in parts[1::2]]
    return Dialogue(x, tuple(zip(roles, said, strict=True)))


def first_turn(x: str) -> str:
    """Returns what the user says first in the prompt x of a dialogue, without the space around it.

    A file such as HH-RLHF's has a dialogue several times, cut after each of its turns: the prompts
    differ and the first turn is the same.
    """
    return x.partition(_ASSISTANT)[0].partition(_HUMAN)[0].strip()


def preference(record: dict[str, Any]) -> tuple[Example, dict[str, Any]]:
    """Makes an Example of a user's own preference, as readers.read_preferences describes."""
    x = prompt(record)
    answers = []
    for key in ("chosen", "rejected"):
        if isinstance(record.get(key), list):
            answer = _answer(record, key, x)
        else:
            answer = _text(record, key)
        answers.append(answer.strip())
    return Example(x, answers[0], answers[1]), {}


def prompt(record: dict[str, Any]) -> str:
    """Makes x of what stands under `prompt`, text or turns, as readers.read_preferences describes.

    Raises:
      ValueError: if it is neither.
    """
    if "prompt" not in record:
        raise ValueError(f"got {_got(record, 'prompt')}, expected text or turns under 'prompt'")
    if not isinstance(record["prompt"], list):
        return _text(record, "prompt")
    turns = _turns(record, "prompt")
    if turns[-1][0] != "user":
        raise ValueError(
            "got turns under 'prompt' that end with role 'assistant', expected 'user' last"
        )
    return Dialogue(_dialogue(_said(turns)), turns)


def summary(record: dict[str, Any], source: str) -> tuple[Example, dict[str, Any]]:
    """Makes an Example of OpenAI's comparison of summaries, as readers.read_summaries describes."""
    info = _object(record, "info")
    post, article = info.get("post"), info.get("article")
    if (post is None) == (article is None):
        raise ValueError(
            f"got {shown(sorted(info))} under 'info', expected either 'post' or 'article'"
        )
    summaries = record.get("summaries")
    if not isinstance(summaries, list) or len(summaries) != 2:
        raise ValueError(f"got {_got(record, 'summaries')} under 'summaries', expected two of them")
    texts = [_text(_as_object(one, "summaries"), "text").strip() for one in summaries]
    choice = record.get("choice")
    if type(choice) is not int or choice not in (0, 1):
        raise ValueError(f"got {_got(record, 'choice')} under 'choice', expected 0 or 1")
    split = _text(record, "split")
    if split not in SUMMARY_SPLITS:
        raise ValueError(
            f"got {shown(split)} under 'split', expected one of {', '.join(SUMMARY_SPLITS)}"
        )
    confidence = _confidence(record)
    prompt = _post(info) if article is None else _article(info)
    if source != ("posts" if article is None else "articles"):
        raise Skip("not a Reddit post" if source == "posts" else "not a news article")
    columns = {"split": split, "confidence": confidence}
    x = Dialogue(prompt, (("user", prompt.strip()),))
    return Example(x, texts[choice], texts[1 - choice]), columns


def _got(record: dict[str, Any], key: str) -> str:
    return shown(record[key]) if key in record else f"the keys {shown(sorted(record))}"


def _text(record: dict[str, Any], key: str) -> str:
    if not isinstance(record.get(key), str):
        raise ValueError(f"got {_got(record, key)}, expected text under {key!r}")
    return record[key]


def _object(record: dict[str, Any], key: str) -> dict[str, Any]:
    if key not in record:
        raise ValueError(f"got {_got(record, key)}, expected an object under {key!r}")
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
    if type(confidence) is not int or not 0 <= confidence < 1000:
        raise ValueError(
            f"got {shown(confidence)} under 'confidence', expected a whole number of 0 or more"
        )
    return confidence


def _post(info: dict[str, Any]) -> str:
    subreddit = _optional_text(info, "subreddit").removeprefix("r/")
    return _to_summarise(
        [("Subreddit: r/", subreddit), ("Title: ", _optional_text(info, "title"))],
        _text(info, "post"),
        "post",
    )


def _article(info: dict[str, Any]) -> str:
    headings = [("Title: ", _optional_text(info, "title"))]
    return _to_summarise(headings, _text(info, "article"), "article")


def _to_summarise(headings: Sequence[tuple[str, str]], text: str, kind: str) -> str:
    if not text.strip():
        raise Skip("empty prompt")
    lines = "".join(f"{name}{value}\n" for name, value in headings if value)
    return f"{lines}\n{text.strip()}\n\nSummarise the {kind} above.\n\n".lstrip("\n")


def _optional_text(record: dict[str, Any], key: str) -> str:
    return "" if record.get(key) is None else _text(record, key).strip()


def _turns(record: dict[str, Any], key: str) -> Turns:
    """Returns alternating user and assistant turns, which a system turn may precede."""
    turns: list[Any] = list(record[key])
    for turn in turns:
        if not isinstance(turn, dict) or not all(
            isinstance(turn.get(name), str) for name in ("role", "content")
        ):
            raise ValueError(
                f"got {shown(turn)} under {key!r}, expected turns {{role, content}} with text"
            )
    roles = [turn["role"] for turn in turns]
    rest = roles[1:] if roles[:1] == ["system"] else roles
    if not rest or rest != [("user", "assistant")[i % 2] for i in range(len(rest))]:
        raise ValueError(
            f"got roles {shown(roles)} under {key!r}, expected user, assistant, … in turn"
        )
    return tuple((turn["role"], turn["content"]) for turn in turns)


def _said(turns: Turns) -> list[str]:
    """Returns what the turns say; a system turn joins the first one of the user."""
    said = [content for _, content in turns]
    return ["\n\n".join(said[:2]), *said[2:]] if turns[0][0] == "system" else said


def _dialogue(turns: Sequence[str]) -> str:
    """Makes x of a dialogue whose turns alternate, the first and the last by the user."""
    parts = [turns[0], "\n\n"]
    for number, content in enumerate(turns[1:], 1):
        parts.append(f"{'Assistant' if number % 2 else 'Human'}: {content}\n\n")
    return "".join(parts)


def _answer(record: dict[str, Any], key: str, x: str) -> str:
    turns = record[key]
    if len(turns) == 1 and isinstance(turns[0], dict) and turns[0].get("role") == "assistant":
        return _text(turns[0], "content")
    contents = _said(_turns(record, key))
    before = _said(x.turns) if isinstance(x, Dialogue) else []
    if len(contents) % 2 or contents[:-1] != before:
        raise ValueError(
            f"got {len(turns)} turns under {key!r}, expected one assistant turn, alone or after "
            "the turns of 'prompt'"
        )
    return contents[-1]
