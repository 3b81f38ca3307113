"""Parses the shapes that a preference has in files: one record at a time, by the names of Fields.

Each parser returns the record's Example and by name what else the record tells, such as `margin`,
by how much the chosen answer is better; or a Half, whose other half is in another record. It raises
ValueError, saying what was got and what was expected, for a record that isn't of the shape, and
Skip for one that is of the shape and can't be learned from.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pit_jax.data.examples import TEXTS, Dialogue, Example, Turns
from pit_jax.data.files import turns
from pit_jax.data.files.fields import Fields, number
from pit_jax.data.files.json_values import shown

# Keys whose sign says which answer is better: below 0 the first, 0 neither, above 0 the second.
_SIGNED = ("overall_preference", "preference_strength")
_TIES = ("tie", "both", "bothbad", "both_bad", "neither", "equal", "same", "draw", "none")
_ANSWER = re.compile(r"(model|response|answer|completion|assistant|output|conversation)[ _-]?")
# Where a prompt beside whole dialogues is compared with them; other keys hold one of these.
_ASKED = ("prompt", "question", "instruction", "query")
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
_RESULT_KEYS = ("response", "answer", "completion", "text", "content")
_SCORE_KEYS = ("score", "overall_score", "rating", "reward")


class Skip(Exception):
    """Says that a well-formed pair is left out; the message is the reason it is counted under."""


TIE = "tie"
Columns = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Half:
    """Holds one answer to a prompt, to be paired with another one to the same prompt.

    Attributes:
      prompt: x.
      group: as that of Example.
      answer: y.
      score: how good it is; 1 or 0 where a record only says whether it is.
      is_label: whether the record only says whether it is good.
    """

    prompt: str
    group: str
    answer: str
    score: float
    is_label: bool


def check_usable(example: Example) -> None:
    """Raises Skip for a pair that nothing can be learned from."""
    if not example.chosen or not example.rejected:
        raise Skip("empty response")
    if example.chosen == example.rejected:
        raise Skip("identical responses")
    if not example.prompt.strip():
        raise Skip("empty prompt")
    try:
        for name in TEXTS:
            getattr(example, name).encode()
    except UnicodeEncodeError:
        raise Skip("not valid Unicode") from None


def prompt(fields: Fields) -> Dialogue:
    """Makes x of a record's prompt, text or turns; a system text is a turn before it.

    Raises:
      ValueError: if there is no prompt, or one that is neither.
    """
    if "prompt" not in fields:
        raise ValueError(f"got {fields.got('prompt')}, expected text or turns under 'prompt'")
    key = fields.key("prompt")
    before = fields.record.get("history")
    if key != "history" and isinstance(before, list) and before:
        raise ValueError(
            f"got {shown(before)} under 'history' beside {key!r}, expected the whole dialogue as "
            "turns under 'prompt'"
        )
    listed = turns.listed(fields["prompt"])
    if listed is not None:
        return _with_system(turns.of_turns(turns.read(listed, key), key), fields)
    if isinstance(fields["prompt"], list):
        return _with_system(turns.of_text(turns.content(fields["prompt"], key)), fields)
    text = turns.plain(fields.text("prompt"))
    if _has_input(fields):
        text = f"{text.strip()}\n\n{fields.text('input').strip()}"
    return _with_system(turns.of_text(text), fields)


def pair(fields: Fields) -> tuple[Example, Columns]:
    """Reads a chosen and a rejected answer to a prompt.

    An answer is text, one turn of the assistant, or a dialogue whose last turn is the answer. If
    both are such dialogues they need no prompt beside them. A reflection may stand beside them,
    which says how the rejected one could become the chosen one.
    """
    example = _pair(fields, ("chosen", "rejected"))
    if "reflection" in fields:
        example = dataclasses.replace(example, reflection=fields.text("reflection").strip())
    return example, _scores(fields)


def hh(fields: Fields) -> tuple[Example, Columns]:
    """Reads two texts of whole dialogues, as those of Anthropic's HH-RLHF: see readers.read_hh."""
    contexts, responses = [], []
    for name in ("chosen", "rejected"):
        dialogue = fields.text(name)
        if not dialogue.startswith(turns.HUMAN):
            raise Skip("dialogue does not begin with Human")
        context, marker, response = dialogue.rpartition(turns.ASSISTANT)
        if not marker:
            raise Skip("no Assistant turn")
        if turns.HUMAN in response:
            raise Skip("dialogue does not end with an Assistant turn")
        contexts.append(context)
        responses.append(response.strip())
    if contexts[0] != contexts[1]:
        raise Skip("contexts differ")
    x = contexts[0].removeprefix(turns.HUMAN).removeprefix(" ") + "\n\n"
    return Example(turns.of_dialogue(x), responses[0], responses[1]), _scores(fields)


def compared(fields: Fields) -> tuple[Example, Columns]:
    """Reads two answers and which one is better, or the scores of both."""
    _check_two(fields)
    better, columns = _verdict(fields)
    names = ("response_a", "response_b")
    return _pair(fields, (names[better], names[1 - better])), columns


def _check_two(fields: Fields) -> None:
    """Raises ValueError for a third answer, such as `response_c` or `response_0`."""
    keys = [fields.key(name) for name in ("response_a", "response_b")]
    if keys[0][:-1] != keys[1][:-1] or "response_a" in fields.columns:
        return
    stem, letter = re.escape(keys[0][:-1]), keys[0][-1]
    ends = r"\d+" if letter.isdecimal() else "[a-h]" if letter.islower() else "[A-H]"
    for key, value in fields.record.items():
        if key not in keys and value is not None and re.fullmatch(stem + ends, key):
            raise ValueError(
                f"got {key!r} beside {keys[0]!r} and {keys[1]!r}, expected two answers, or a list "
                "of them under 'responses', with their 'scores'"
            )


def several(fields: Fields) -> tuple[Example, Columns]:
    """Reads several answers with scores or ranks, and pairs the best with the worst."""
    answers = fields["responses"]
    scores = fields["scores"] if isinstance(fields["scores"], list) else []
    if not isinstance(answers, list) or len(answers) < 2:
        raise ValueError(
            f"got {fields.got('responses')} under {fields.key('responses')!r}, expected two "
            "answers or more"
        )
    sign = -1 if fields.key("scores").startswith("rank") else 1
    found = []
    for place, answer in enumerate(answers):
        score = number(scores[place]) if len(scores) == len(answers) else None
        if score is not None:
            score *= sign
        elif isinstance(answer, dict):
            score = _score_within(answer)
        if score is None:
            raise ValueError(f"got the answer {shown(answer)}, expected each with a score or rank")
        if isinstance(answer, dict) and turns.listed(answer) is None:
            answer = next((answer[key] for key in _RESULT_KEYS if key in answer), None)
        found.append((score, answer))
    best, worst = max(found, key=lambda one: one[0]), min(found, key=lambda one: one[0])
    if best[0] == worst[0]:
        raise Skip(TIE)
    record = {**fields.record, "chosen": best[1], "rejected": worst[1]}
    columns = {"score_chosen": best[0], "score_rejected": worst[0], "margin": best[0] - worst[0]}
    return _pair(Fields(record, fields.columns), ("chosen", "rejected")), columns


def labelled(fields: Fields) -> Half:
    """Reads one answer and whether it is good."""
    label = fields["label"]
    if not isinstance(label, (bool, int, float)) or label not in (0, 1):
        raise ValueError(
            f"got {fields.got('label')} under {fields.key('label')!r}, expected true or false"
        )
    return _half(fields, float(label), True)


def scored(fields: Fields) -> Half:
    """Reads one answer and its score."""
    score = fields.number("score")
    if score is None:
        raise ValueError(
            f"got {fields.got('score')} under {fields.key('score')!r}, expected a number"
        )
    return _half(fields, score, False)


def _has_input(fields: Fields) -> bool:
    return (
        fields.key("prompt") == "instruction"
        and "input" in fields
        and fields["input"] not in ("", [])
    )


def _with_system(x: Dialogue, fields: Fields) -> Dialogue:
    if "system" not in fields or any(role == "system" for role, _ in x.turns):
        return x
    said = fields.text("system").strip()
    return turns.of_turns((("system", said), *x.turns)) if said else x


def _group(fields: Fields) -> str:
    """What tells an example's group: a text prompt as it stands, or "" for x."""
    value = fields["prompt"]
    is_text = isinstance(value, str) and turns.listed(value) is None
    return value if is_text and value.strip() and not _has_input(fields) else ""


def _pair(fields: Fields, names: tuple[str, str]) -> Example:
    """Makes an Example of the better and the worse answer, which stand under these names."""
    sides = [_side(fields, name) for name in names]
    own = all(not isinstance(side, str) and _is_whole(side) for side in sides)
    given = None
    if "prompt" in fields and (not own or fields.key("prompt") in _ASKED):
        given = prompt(fields)
    elif not own:
        prompt(fields)  # says what is expected
    if _systems_differ(sides, given, fields):
        raise Skip("contexts differ")
    apart = [_apart(side, given, fields, name) for side, name in zip(sides, names, strict=True)]
    contexts = [context for context, _ in apart if context is not None]
    x = given
    if contexts:
        first = contexts[0]
        if any(not _is_same(first, context or given) for context, _ in apart):
            raise Skip("contexts differ")
        x = _with_system(first, fields)
    assert x is not None
    group = _group(fields) if x is given else ""
    return Example(x, apart[0][1], apart[1][1], group=group)


def _systems_differ(sides: Sequence[Turns | str], given: Dialogue | None, fields: Fields) -> bool:
    """Returns whether the system says one thing in one place and another in another."""
    said = [side for side in sides if not isinstance(side, str)]
    found = {
        tuple(content for role, content in each if role == "system")
        for each in (*said, given.turns if given else ())
    }
    if isinstance(fields["system"], str):
        found.add((fields["system"].strip(),))
    return len(found - {(), ("",)}) > 1


def _side(fields: Fields, name: str) -> Turns | str:
    """Returns an answer as text, or the turns that end with it."""
    key = fields.key(name)
    listed = turns.listed(fields[name])
    if listed is not None:
        return turns.read(listed, key)
    if isinstance(fields[name], list):
        return turns.content(fields[name], key)
    return turns.plain(fields.text(name)).strip()


def _is_whole(side: Turns) -> bool:
    return len(side) > 1 and side[0][0] in ("user", "system")


def _apart(
    side: Turns | str, given: Dialogue | None, fields: Fields, name: str
) -> tuple[Dialogue | None, str]:
    """Splits a side into the dialogue before the answer, None if it is `given`, and the answer."""
    key = fields.key(name)
    if isinstance(side, str):
        context, marker, answer = f"\n\n{side}".rpartition(turns.ASSISTANT)
        if marker and context.startswith(turns.HUMAN) and given is not None:
            is_asked = turns.of_text(context + marker).split() == given.split()
            return None, answer.strip() if is_asked else side
        return None, side
    if not side or side[-1][0] != "assistant":
        roles = [role for role, _ in side]
        raise ValueError(f"got roles {shown(roles)} under {key!r}, expected 'assistant' last")
    before, answer = side[:-1], side[-1][1]
    if not before:
        return None, answer
    if before[0][0] in ("assistant", "tool") and given is not None:
        return turns.of_turns((*given.turns, *before), key), answer
    x = turns.of_turns(before, key)
    if given is None:
        return x, answer
    spoken, asked = _spoken(before), _spoken(given.turns)
    if spoken == asked:
        return (x, answer) if len(before) > len(given.turns) else (None, answer)
    if isinstance(fields["prompt"], str) and len(asked) == 1 and asked[0] in spoken:
        return x, answer
    raise ValueError(
        f"got {len(side)} turns under {key!r}, expected one assistant turn, alone or after the "
        f"turns of {fields.key('prompt')!r}"
    )


def _spoken(found: Turns) -> list[tuple[str, str]]:
    return [turn for turn in found if turn[0] != "system"]


def _is_same(x: Dialogue, other: Dialogue | None) -> bool:
    return other is not None and _spoken(x.turns) == _spoken(other.turns)


def _half(fields: Fields, score: float, is_label: bool) -> Half:
    if "response" in fields:
        side, given = _side(fields, "response"), None
        if isinstance(side, str) or not _is_whole(side) or fields.key("prompt") in _ASKED:
            given = prompt(fields)
        context, answer = _apart(side, given, fields, "response")
        x = given if context is None else context
        assert x is not None
        return Half(x, _group(fields) if x is given else "", answer, score, is_label)
    listed = turns.listed(fields["prompt"])
    if listed is None:
        raise ValueError(f"got {fields.got('response')}, expected text under 'response'")
    key = fields.key("prompt")
    context, answer = _apart(turns.read(listed, key), None, fields, "prompt")
    if context is None:
        raise ValueError(f"got one turn under {key!r}, expected a dialogue")
    return Half(_with_system(context, fields), "", answer, score, is_label)


def _scores(fields: Fields) -> Columns:
    """Returns what a record tells of the scores of its two answers; Skip for equal ones."""
    names = ("score_chosen", "score_rejected", "margin")
    found = {name: fields.number(name) for name in names}
    if all(name in fields for name in names[:2]):
        for name in names[:2]:
            _check_unquoted(fields, name)
    high, low = found["score_chosen"], found["score_rejected"]
    if high is not None and low is not None and found["margin"] is None:
        found["margin"] = high - low
    if found["margin"] is None and isinstance(fields["scores"], list):
        both = [number(score) for score in fields["scores"]]
        if len(both) == 2 and both[0] is not None and both[1] is not None:
            found["margin"] = abs(both[0] - both[1])
    if found["margin"] == 0:
        raise Skip(TIE)
    return {name: value for name, value in found.items() if value is not None}


def _verdict(fields: Fields) -> tuple[int, Columns]:
    """Returns which of two answers is better, 0 or 1, and what is told of their scores."""
    keys = [fields.key(name) for name in ("response_a", "response_b")]
    ends = [_ANSWER.sub("", key.lower()) for key in keys]
    scores = _scores_of(fields.record, ends)
    if "preference" not in fields:
        if None in scores:
            raise ValueError(f"got {fields.got('preference')}, expected which answer is better")
        better = int(scores[1] > scores[0])
    else:
        name = fields.key("preference")
        if name in _SIGNED:
            _check_unquoted(fields, "preference")
            if (signed := fields.number("preference")) is not None:
                if signed == 0:
                    raise Skip(TIE)
                return int(signed > 0), {"margin": abs(signed)}
        better = _named_better(fields, keys, ends)
    if None in scores:
        return better, {}
    if scores[0] == scores[1]:
        raise Skip(TIE)
    return better, {"margin": scores[better] - scores[1 - better]}


def _check_unquoted(fields: Fields, name: str) -> None:
    """Raises ValueError for a number that is text, which would count as none."""
    value = fields[name]
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        raise ValueError(f"got {fields.got(name)} under {fields.key(name)!r}, expected a number")


def _named_better(fields: Fields, keys: list[str], ends: list[str]) -> int:
    """Returns which of two answers a record names as the better one, 0 or 1; Skip for neither."""
    value, name = fields["preference"], fields.key("preference")
    signed = number(value)
    if keys == ["human_ref_A", "human_ref_B"] and signed in (0, 1):
        return int(signed == 0)  # Stanford's SHP: 1 for the first
    text = str(int(signed)) if signed is not None and signed % 1 == 0 else str(value)
    text = text.strip().lower()
    if text in _TIES or text.startswith("tie"):
        raise Skip(TIE)
    end = _ANSWER.sub("", text)
    found = [text == key.lower() or end == other for key, other in zip(keys, ends, strict=True)]
    if isinstance(value, bool) or sum(found) != 1:
        raise ValueError(
            f"got {shown(value)} under {name!r}, expected {ends[0]!r}, {ends[1]!r} or 'tie'"
        )
    return found.index(True)


def _scores_of(record: Mapping[str, Any], ends: list[str]) -> list[Any]:
    found = []
    for end in ends:
        names = (f"score_{end}", f"score_{end.upper()}", f"score{end}", f"rating_{end}")
        found.append(next((number(record[name]) for name in names if name in record), None))
    return found


def _score_within(answer: Mapping[str, Any]) -> float | None:
    scores = (number(answer.get(key)) for key in _SCORE_KEYS)
    score = next((score for score in scores if score is not None), None)
    rank = number(answer.get("rank"))
    return -rank if score is None and rank is not None else score
