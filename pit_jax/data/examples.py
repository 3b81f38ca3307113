"""Says what an example, its turns and a verdict are; makes folds by a stable hash of the group."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable

import numpy as np

SPLITS = ("train", "dev", "test")
FOLDS = ("sft", "rm", "rl")

quoted = json.encoder.encode_basestring_ascii  # what json.dumps makes of a text, much sooner

# Who speaks (system, user or assistant) and what is said, turn by turn.
Turns = tuple[tuple[str, str], ...]


class Dialogue(str):
    """Is x as text that knows the turns it was made of, for layouts that a chat template makes.

    Attributes:
      turns: the turns, before the answer that is looked for.
    """

    turns: Turns

    def __new__(cls, text: str, turns: Turns = ()):
        made = super().__new__(cls, text)
        made.turns = turns
        return made


def turns_of(x: str) -> Turns:
    """Returns the turns of x; plain text is one turn of the user."""
    return x.turns if isinstance(x, Dialogue) else (("user", x),)


def turns_json(x: str) -> str:
    """Writes the turns of a Dialogue as JSON; nothing for plain text."""
    if not isinstance(x, Dialogue):
        return ""
    said = (f"[{quoted(role)}, {quoted(content)}]" for role, content in x.turns)
    return f"[{', '.join(said)}]"


def with_turns(text: str, turns: str) -> str:
    """Makes x of its text and of what `turns_json` wrote of it."""
    if not turns:
        return text
    return Dialogue(text, tuple((role, content) for role, content in json.loads(turns)))


@dataclasses.dataclass(frozen=True)
class Example:
    """Holds a preference example as text: x, y_w, y_l, reflection c (section 3.1, Appendix D).

    Attributes:
      prompt: x, what stands between `Human: ` and `Assistant:` of the layout; a Dialogue where it
        was made of turns.
      chosen: y_w, the better response.
      rejected: y_l, the worse response.
      reflection: c, how y_l could become y_w; empty where the data has none.
      index: position in its split; names the example in batches and reference stores.
      group: what examples share that are never apart, in split or fold; empty means the prompt.
    """

    prompt: str
    chosen: str
    rejected: str
    reflection: str = ""
    index: int = 0
    group: str = ""

    def __post_init__(self):
        if not self.group:
            object.__setattr__(self, "group", self.prompt)


# The fields of Example that are text.
TEXTS = ("prompt", "chosen", "rejected", "reflection")


@dataclasses.dataclass(frozen=True)
class Check:
    """Holds the verdict of an exact checker on a response.

    Attributes:
      score: in [0, 1]; 1 for a perfect response.
      met: names of the requirements that hold.
      required: names of all requirements of the prompt.
      content: whether the content the task works on is whole.
    """

    score: float
    met: tuple[str, ...]
    required: tuple[str, ...]
    content: bool


def stable_hash(text: str, purpose: str) -> int:
    """Computes a 64-bit hash, the same in every process; purposes have independent hashes."""
    return int(stable_hashes([text], purpose)[0])


def stable_hashes(texts: Iterable[str], purpose: str) -> np.ndarray:
    """Computes `stable_hash` of many texts, uint64 [n]."""
    empty = hashlib.blake2b(digest_size=8, person=purpose.encode()[:16])
    found = []
    for text in texts:
        one = empty.copy()
        one.update(text.encode("utf-8", "surrogatepass"))
        found.append(one.digest())
    return np.frombuffer(b"".join(found), ">u8").astype(np.uint64)


def prompt_hash(prompt: str) -> str:
    """Returns 16 hexadecimal digits by which a sampled reference knows its prompt, turns too."""
    return f"{stable_hash(json.dumps([prompt, turns_json(prompt)]), 'reference'):016x}"


def fold_of(group: str, folds: int = len(FOLDS)) -> int:
    """Returns the fold, in [0, folds), that every example of this group belongs to."""
    return stable_hash(group, "fold") % folds
