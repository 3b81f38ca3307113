"""Makes turns of what a record says, however that is spelled, and x of turns or text.

There is one rule for x. It is what stands between the first `Human: ` and the last `Assistant:` of
a dialogue, a blank line before the latter included:

    [{"role": "user", "content": "Hi."}]       ->  "Hi.\\n\\n"
    "Hi."                                      ->  "Hi.\\n\\n"
    "\\n\\nHuman: Hi.\\n\\nAssistant:"             ->  "Hi.\\n\\n"

So text is one turn of the user, unless it begins with `Human:` and so is a dialogue already.
White space around a turn is removed. Turns are kept as they are, two of one role in a row as well:
whether that is a dialogue is for a chat template to say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pit_jax.data.examples import Dialogue, Turns
from pit_jax.data.files.json_values import shown

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"

_ROLES = {
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "model", "bot", "chatbot", "chatgpt", "function_call"),
    "system": ("system", "developer"),
    "tool": ("tool", "function", "observation", "ipython"),
}
_ROLE_OF = {spelling: role for role, spellings in _ROLES.items() for spelling in spellings}
_SPEAKERS = {"user": "Human", "assistant": "Assistant", "tool": "Tool"}
_ROLE_KEYS = ("role", "from")
_CONTENT_KEYS = ("content", "value", "text", "parts")
_TEXT_PARTS = ("text", "input_text", "output_text")
# What a turn may have beside its text, which would be lost.
_BESIDE = (
    *("tool_calls", "function_call"),
    *("image", "images", "audio", "audios", "video", "videos"),
)


def of_text(text: str) -> Dialogue:
    """Makes x of text: of one turn of the user, or of a dialogue with `Human:` and `Assistant:`.

    Raises:
      ValueError: for a dialogue in which the assistant said something last.
    """
    said = text.strip()
    if not said.startswith(HUMAN.strip()):
        return Dialogue(f"{said}\n\n", (("user", said),))
    asked = said
    said = said.removesuffix(ASSISTANT)
    if said == asked:
        said = re.sub(r"\s*\n\s*Assistant:\Z", "", said)
    if HUMAN in said or ASSISTANT in said or "\nAssistant:" not in said:
        x = of_dialogue(said.removeprefix(HUMAN.strip()).removeprefix(" ") + "\n\n")
    else:  # a dialogue without blank lines between its turns
        x = of_turns(_marked(r"\n(Human|Assistant):", "\n" + said))
    if said == asked and x.turns[-1][0] != "user":
        raise ValueError(
            f"got a dialogue that ends with what the assistant says, {shown(x.turns[-1][1])}, "
            "expected what the user says last"
        )
    return x


def of_dialogue(x: str) -> Dialogue:
    """Returns the text x, as it is, with the turns in it, without the white space around them."""
    return Dialogue(x, _marked(f"({HUMAN}|{ASSISTANT})", HUMAN + x))


def of_turns(turns: Turns, key: str = "prompt") -> Dialogue:
    """Makes x of turns; what the system says joins the next turn of the user, after a blank line.

    Args:
      turns: the dialogue before an answer.
      key: where it is from, for errors.

    Raises:
      ValueError: for turns that aren't a dialogue whose next turn is the assistant's.
    """
    roles = [role for role, _ in turns]
    spoken = [role for role in roles if role != "system"]
    if not spoken or spoken[0] != "user" or roles[-1] not in ("user", "tool"):
        raise ValueError(
            f"got roles {shown(roles)} under {key!r}, expected a dialogue that begins with "
            "'user' and ends with it before the answer"
        )
    parts: list[str] = []
    system: list[str] = []
    for role, content in turns:
        if role == "system":
            system.append(content)
            continue
        if system and role != "user":
            raise ValueError(
                f"got roles {shown(roles)} under {key!r}, expected 'user' after 'system'"
            )
        said = "\n\n".join([*system, content])
        system = []
        parts.append(f"{_SPEAKERS[role]}: {said}\n\n")
    return Dialogue("".join(parts).removeprefix("Human: "), turns)


def first_turn(x: str) -> str:
    """Returns what the user says first in the prompt x of a dialogue, without the space around it.

    A file such as HH-RLHF's has a dialogue several times, cut after each of its turns: the prompts
    differ and the first turn is the same.
    """
    return x.partition(ASSISTANT)[0].partition(HUMAN)[0].strip()


def listed(value: Any) -> list[Any] | None:
    """Returns the turns of a value, not yet read, or None if it is no list of turns.

    Turns come as a list of objects; as one object; as an object of lists, which `datasets` and TFDS
    make of a list of objects; under `messages`; and as JSON text of any of these.
    """
    if isinstance(value, str):
        value = _unquoted(value)
    if isinstance(value, dict):
        if isinstance(value.get("messages"), list):
            return value["messages"]
        role, content = _key(value, _ROLE_KEYS), _key(value, _CONTENT_KEYS)
        if not role or not content:
            return None
        if not isinstance(value[role], list):
            return [value]
        columns = [value[role], value[content]]
        if not isinstance(columns[1], list) or len(columns[0]) != len(columns[1]):
            return None
        return [{"role": one, "content": other} for one, other in zip(*columns, strict=True)]
    if not isinstance(value, list) or (value and _is_part(value[0])):
        return None
    return value


def plain(text: str) -> str:
    """Returns a text that is no list of turns.

    Raises:
      ValueError: for a list of turns as Python prints it.
    """
    if re.match(r"\s*\[\{'(role|content|from)':.*\}\]\s*\Z", text, re.DOTALL):
        raise ValueError(f"got {shown(text)}, turns as Python prints them, expected them as JSON")
    return text


def read(values: Sequence[Any], key: str) -> Turns:
    """Reads turns `{role, content}` in any of their spellings; an empty system turn is left out.

    Raises:
      ValueError: for anything else, such as a role that isn't known, or a turn with tool calls or
        images.
    """
    found = []
    for turn in values:
        role_key = _key(turn, _ROLE_KEYS) if isinstance(turn, dict) else ""
        content_key = _key(turn, _CONTENT_KEYS) if isinstance(turn, dict) else ""
        if not role_key or not content_key or not isinstance(turn[role_key], str):
            raise ValueError(
                f"got {shown(turn)} under {key!r}, expected turns {{role, content}} with text"
            )
        role = _ROLE_OF.get(turn[role_key].strip().lower())
        if role is None:
            raise ValueError(
                f"got role {shown(turn[role_key])} under {key!r}, expected one of "
                + ", ".join(_ROLES)
            )
        for name in _BESIDE:
            if turn.get(name):
                raise ValueError(f"got {name!r} in a turn under {key!r}, expected text alone")
        if role == "system" and turn[content_key] is None:
            continue
        said = content(turn[content_key], key)
        if said or role != "system":
            found.append((role, said))
    return tuple(found)


def content(value: Any, key: str) -> str:
    """Reads what a turn says: text, or a list of parts that are text, a blank line between them.

    Raises:
      ValueError: for anything else, such as a part that is an image.
    """
    if isinstance(value, str):
        return value.strip()
    if not isinstance(value, list) or not value:
        raise ValueError(
            f"got {shown(value)} under {key!r}, expected turns {{role, content}} with text"
        )
    said = []
    for part in value:
        text = part.get("text") if _is_part(part) else part
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind not in _TEXT_PARTS or not isinstance(text, str):
            raise ValueError(f"got the part {shown(part)} under {key!r}, expected parts of text")
        said.append(text.strip())
    return "\n\n".join(said)


def _marked(markers: str, dialogue: str) -> Turns:
    parts = re.split(markers, dialogue)[1:]
    roles = ["user" if marker.strip().startswith("Human") else "assistant" for marker in parts[::2]]
    said = [text.strip() for text in parts[1::2]]
    return tuple(zip(roles, said, strict=True))


def _key(turn: Mapping[str, Any], keys: Sequence[str]) -> str:
    return next((key for key in keys if key in turn), "")


def _is_part(value: Any) -> bool:
    return isinstance(value, dict) and "type" in value and not _key(value, _ROLE_KEYS)


def _unquoted(text: str) -> Any:
    """Returns what JSON text of turns stands for; the text itself if it is anything else."""
    start = text.lstrip()[:2]
    if start in ("[{", '{"') and any(f'"{key}"' in text for key in _ROLE_KEYS):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text
        turns = value if isinstance(value, list) else [value]
        keys = (_ROLE_KEYS, _CONTENT_KEYS)
        if all(isinstance(turn, dict) and all(_key(turn, k) for k in keys) for turn in turns):
            return value
    return text
