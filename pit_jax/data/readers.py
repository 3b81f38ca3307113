"""Readers of preference files: lines -> Examples, with a count of what is left out and why.

Both readers take one path or glob, or several, plain or gzipped. A line that breaks the format is a
UserError that names file and line; a well-formed pair that can't be learned from is counted and
skipped, never repaired.
"""

from __future__ import annotations

import collections
import dataclasses
import glob
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pit_jax.data.examples import Example
from pit_jax.errors import UserError

_HUMAN = "\n\nHuman:"
_ASSISTANT = "\n\nAssistant:"


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a reader found.

    Attributes:
      examples: in file order, `index` counting them.
      read: number of lines that hold a pair; `read == len(examples) + sum(dropped.values())`.
      dropped: reason -> number of pairs left out.
    """

    examples: list[Example]
    read: int
    dropped: dict[str, int]


class _Skip(Exception):
    """A well-formed pair that is left out; the message is the reason it is counted under."""


def read_preferences(paths: str | Sequence[str]) -> Reading:
    """Reads JSON lines with `prompt`, `chosen` and `rejected`.

    `prompt` is text, used as x as it stands, or a list of `{role, content}` turns with roles `user`
    and `assistant` in turn (and a `system` turn first, put before the first user turn and a blank
    line), ending with `user`; turns become x as dialogues of read_hh do. `chosen` and `rejected`
    are text or a list of turns: the answer, one `assistant` turn, which the turns of the prompt may
    precede. White space around answers is removed.

    Raises:
      UserError: for a file that can't be read, and a line that isn't of this form.
    """
    return _read(paths, _preference)


def read_hh(paths: str | Sequence[str]) -> Reading:
    """Reads Anthropic HH-RLHF files: `chosen` and `rejected`, whole dialogues `\\n\\nHuman: …`.

    x is what stands between the first `Human: ` and the last `Assistant:`, including the blank line
    before `Assistant:`, so that `Human: {x}Assistant:` is the dialogue again, without the blank
    line it opens with. (A dialogue with no space after its first `Human:` gains one.) White space
    around the responses is removed: the layouts put one space before a response where they need it.

    Raises:
      UserError: for a file that can't be read, and a line that isn't of this form.
    """
    return _read(paths, _hh)


def _read(paths: str | Sequence[str], parse: Callable[[dict], Example]) -> Reading:
    examples: list[Example] = []
    dropped: collections.Counter[str] = collections.Counter()
    read = 0
    for path in _files(paths):
        for place, line in _lines(path):
            read += 1
            try:
                record = json.loads(line)
            except ValueError as error:
                raise UserError(f"{place}: expected a JSON object, got {error}") from None
            if not isinstance(record, dict):
                raise UserError(f"{place}: expected a JSON object, got {line[:40].strip()!r}")
            try:
                example = parse(record)
                _check_usable(example)
            except ValueError as error:
                raise UserError(f"{place}: {error}") from None
            except _Skip as reason:
                dropped[str(reason)] += 1
                continue
            examples.append(dataclasses.replace(example, index=len(examples)))
    return Reading(examples, read, dict(dropped))


def _check_usable(example: Example) -> None:
    if not example.chosen or not example.rejected:
        raise _Skip("empty response")
    if example.chosen == example.rejected:
        raise _Skip("identical responses")
    if not example.prompt.strip():
        raise _Skip("empty prompt")
    try:
        for text in (example.prompt, example.chosen, example.rejected):
            text.encode()
    except UnicodeEncodeError:
        raise _Skip("not valid Unicode") from None


def _files(paths: str | Sequence[str]) -> list[str]:
    patterns = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    files: list[str] = []
    for pattern in map(os.fspath, patterns):
        matches = [pattern] if os.path.isfile(pattern) else sorted(glob.glob(pattern))
        if not matches:
            raise UserError(f"{pattern}: no such file, and no file matches it as a pattern")
        files += matches
    return files


def _lines(path: str) -> Iterator[tuple[str, str]]:
    """Yields `file:line` and the text of every line that isn't blank."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number}: expected UTF-8 text, got {error}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}:{number + 1}: can't be read: {error}") from None


def _text(record: dict, key: str) -> str:
    if not isinstance(record.get(key), str):
        raise ValueError(f"expected text under {key!r}, got {_shown(record, key)}")
    return record[key]


def _shown(record: dict, key: str) -> str:
    return repr(record[key])[:60] if key in record else f"the keys {sorted(record)}"


def _hh(record: dict) -> Example:
    contexts, responses = [], []
    for key in ("chosen", "rejected"):
        dialogue = _text(record, key)
        if not dialogue.startswith(_HUMAN):
            raise _Skip("dialogue does not begin with Human")
        context, marker, response = dialogue.rpartition(_ASSISTANT)
        if not marker:
            raise _Skip("no Assistant turn")
        if _HUMAN in response:
            raise _Skip("dialogue does not end with an Assistant turn")
        contexts.append(context)
        responses.append(response.strip())
    if contexts[0] != contexts[1]:
        raise _Skip("contexts differ")
    x = contexts[0].removeprefix(_HUMAN).removeprefix(" ") + "\n\n"
    return Example(x, responses[0], responses[1])


def _preference(record: dict) -> Example:
    if "prompt" not in record:
        raise ValueError(f"expected text or turns under 'prompt', got {_shown(record, 'prompt')}")
    if isinstance(record["prompt"], list):
        turns = _turns(record, "prompt")
        if len(turns) % 2 == 0:
            raise ValueError("expected the turns under 'prompt' to end with role 'user'")
        prompt = _dialogue(turns)
    else:
        turns = []
        prompt = _text(record, "prompt")
    answers = []
    for key in ("chosen", "rejected"):
        if isinstance(record.get(key), list):
            answer = _answer(record, key, turns)
        else:
            answer = _text(record, key)
        answers.append(answer.strip())
    return Example(prompt, answers[0], answers[1])


def _turns(record: dict, key: str) -> list[str]:
    """Contents of alternating user and assistant turns; a system turn joins the first."""
    turns: list[Any] = list(record[key])
    for turn in turns:
        if not isinstance(turn, dict) or not all(
            isinstance(turn.get(name), str) for name in ("role", "content")
        ):
            raise ValueError(
                f"expected turns {{role, content}} with text under {key!r}, got {repr(turn)[:60]}"
            )
    if len(turns) > 1 and turns[0]["role"] == "system" and turns[1]["role"] == "user":
        content = f"{turns[0]['content']}\n\n{turns[1]['content']}"
        turns[:2] = [{"role": "user", "content": content}]
    roles = [turn["role"] for turn in turns]
    expected = [("user", "assistant")[i % 2] for i in range(len(turns))]
    if not turns or roles != expected:
        raise ValueError(f"expected roles user, assistant, … in turn under {key!r}, got {roles}")
    return [turn["content"] for turn in turns]


def _dialogue(turns: Sequence[str]) -> str:
    """x of a dialogue whose turns alternate, first and last by the user."""
    parts = [turns[0], "\n\n"]
    for number, content in enumerate(turns[1:], 1):
        parts.append(f"{'Assistant' if number % 2 else 'Human'}: {content}\n\n")
    return "".join(parts)


def _answer(record: dict, key: str, prompt_turns: Sequence[str]) -> str:
    turns = record[key]
    if len(turns) == 1 and isinstance(turns[0], dict) and turns[0].get("role") == "assistant":
        return _text(turns[0], "content")
    contents = _turns(record, key)
    if len(contents) % 2 or list(contents[:-1]) != list(prompt_turns):
        raise ValueError(
            f"expected one assistant turn under {key!r}, alone or after the turns of 'prompt', "
            f"got {len(turns)} turns"
        )
    return contents[-1]
