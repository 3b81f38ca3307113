"""Generates and checks the family `drafts`: a long chain of steps whose partial answers are valid.

A prompt gives a digit and a list of operations; after each operation only the last digit is kept:

    from 4 do +3 x7 +5 x3

A response is a work sheet with one line a step, *newest first*: the operation and its result, or
`?` for a step that is not worked out yet; the start stands at the bottom:

    x3 ? +5 ? x7 9 +3 7 from 4

Whoever writes such a sheet in a single pass must know the newest result before any older result is
written, so a small model can only reach a few steps. To edit a sheet is easy: the newest result
stands in the draft, a further step carries it on, and a wrong line can be seen from its neighbours.

The score of a sheet is the share of its lines filled in if every given result is right, else 0.
The chosen response carries the rejected one on by one to three right steps, or cuts it back to
before its first mistake. Rejected sheets also bluff (results that were not worked out) and come
malformed, as a reward model that never saw such answers is exploited by PPO.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from pit_jax.checked import checked
from pit_jax.data.examples import Check

# For a reader of the report: what a response has to do, and what its score is.
ASKED = (
    "work sheets of arithmetic: a prompt has a digit and operations on it, and a response gives "
    "the result of each step, the newest first, or leaves it open with a “?”"
)
SCORED = "the share of the sheet’s steps that are worked out, if none is wrong; else 0"

OPERATIONS = ("+1", "+2", "+3", "+4", "+5", "x3", "x7", "x9")
DIGITS = tuple(str(n) for n in range(10))
BLANK = "?"
_REFLECTION_WORDS = ("carry", "on", "after", "cut", "back", "to", "rewrite", "the", "sheet", "step")
WORDS = ("from", "do", BLANK, *DIGITS, *OPERATIONS, *_REFLECTION_WORDS)


@dataclasses.dataclass(frozen=True)
@checked
class DraftsConfig:
    """Sets the difficulty of the family.

    Attributes:
      min_steps: fewest operations in a prompt.
      max_steps: most operations in a prompt (at most the number of operations; they are distinct).
      max_ahead: how many right steps the chosen sheet is ahead of the rejected one, at most.
      mistakes: share of examples whose rejected sheet holds a wrong result.
      bluffs: share whose rejected sheet fills in steps it did not work out.
      malformed: share whose rejected sheet breaks the layout.
    """

    min_steps: int = 5
    max_steps: int = 5
    max_ahead: int = 3
    mistakes: float = 0.25
    bluffs: float = 0.15
    malformed: float = 0.1

    def __post_init__(self):
        if not 1 <= self.min_steps <= self.max_steps <= len(OPERATIONS):
            raise ValueError(
                f"drafts: got min_steps={self.min_steps}, max_steps={self.max_steps}; expected "
                f"1 <= min_steps <= max_steps <= {len(OPERATIONS)}"
            )
        if self.max_ahead < 1:
            raise ValueError(f"drafts: got max_ahead={self.max_ahead}, expected 1 or more")
        if self.mistakes + self.bluffs + self.malformed > 1:
            raise ValueError("drafts: mistakes + bluffs + malformed is over 1")


CONFIG = DraftsConfig


def apply(operation: str, digit: int) -> int:
    """Returns the last digit of `digit` after `operation`, as in `apply("x7", 9) == 3`."""
    number = int(operation[1:])
    return (digit + number if operation[0] == "+" else digit * number) % 10


def parse_prompt(prompt: str) -> tuple[int, list[str]]:
    """Splits `from D do OP OP …` into its start digit and operations.

    Raises:
      ValueError: if the prompt isn't of that form.
    """
    words = prompt.split()
    if len(words) < 4 or words[0] != "from" or words[1] not in DIGITS or words[2] != "do":
        raise ValueError(f"drafts: got the prompt {prompt!r}, expected 'from D do OPERATIONS'")
    if unknown := [word for word in words[3:] if word not in OPERATIONS]:
        raise ValueError(f"drafts: unknown operation {unknown[0]!r}, expected one of {OPERATIONS}")
    return int(words[1]), words[3:]


def solve(start: int, operations: list[str]) -> list[int]:
    """Works out the right result after each operation, oldest first."""
    results = []
    for operation in operations:
        start = apply(operation, start)
        results.append(start)
    return results


def sheet(start: int, operations: list[str], results: list[int]) -> str:
    """Writes a work sheet, newest step first; steps beyond `results` (oldest first) are blank."""
    lines = [
        f"{operation} {results[step] if step < len(results) else BLANK}"
        for step, operation in enumerate(operations)
    ]
    return " ".join([*reversed(lines), f"from {start}"])


def check(prompt: str, response: str) -> Check:
    """Judges a sheet exactly.

    Returns:
      Check whose `score` is the share of lines filled in, the start among them, and 0 if any result
      is wrong or the layout is broken; `met` lists the right steps before the first mistake;
      `content` says whether the layout is whole.
    """
    start, operations = parse_prompt(prompt)
    right = solve(start, operations)
    required = tuple(f"step {step + 1}" for step in range(len(operations)))
    words = response.split()
    if words[::2] != [*operations[::-1], "from"] or words[-1:] != [str(start)]:
        return Check(0.0, (), required, False)
    given = words[1:-2:2][::-1]
    done = next((step for step, word in enumerate(given) if word == BLANK), len(given))
    if any(word != BLANK for word in given[done:]) or any(w not in DIGITS for w in given[:done]):
        return Check(0.0, (), required, False)
    correct = [int(word) == result for word, result in zip(given[:done], right)]
    first_mistake = next((step for step in range(done) if not correct[step]), done)
    score = (done + 1) / (len(operations) + 1) if first_mistake == done else 0.0
    return Check(score, required[:first_mistake], required, True)


def generate(rng: np.random.Generator, config: DraftsConfig) -> dict[str, str]:
    """Generates an example: `prompt`, `chosen`, `rejected`, `reflection`.

    The rejected sheet stands at an early step more often than at a late one, as first drafts do.
    """
    n = int(rng.integers(config.min_steps, config.max_steps + 1))
    operations = [str(o) for o in rng.choice(OPERATIONS, size=n, replace=False)]
    start = int(rng.integers(10))
    right = solve(start, operations)
    done = int(rng.integers(0, n, size=2).min())
    kind = rng.random()
    if kind < config.mistakes:
        chosen = right[:done]
        rejected = sheet(start, operations, _with_mistake(rng, operations, right, done))
        reflection = f"cut back to step {done}"
    elif kind < config.mistakes + config.bluffs:
        chosen = right[: done + int(rng.integers(0, 2))]
        filled = int(rng.integers(done + 1, n + 1))
        guesses = [int(g) for g in rng.integers(0, 10, size=filled - done)]
        guesses[0] = (right[done] + int(rng.integers(1, 10))) % 10
        rejected = sheet(start, operations, right[:done] + guesses)
        reflection = f"cut back to step {done}"
        if len(chosen) > done:
            reflection += " carry on"
    elif kind < config.mistakes + config.bluffs + config.malformed:
        chosen = right[:done]
        rejected = _malformed(rng, start, operations, chosen)
        reflection = "rewrite the sheet"
    else:
        ahead = int(rng.integers(1, config.max_ahead + 1))
        chosen = right[: done + ahead]
        rejected = sheet(start, operations, right[:done])
        reflection = f"carry on after step {done}"
    return {
        "prompt": f"from {start} do {' '.join(operations)}",
        "chosen": sheet(start, operations, chosen),
        "rejected": rejected,
        "reflection": reflection,
    }


def _with_mistake(rng, operations, right, done) -> list[int]:
    """Makes a wrong result at step `done`, and what a careless writer works out from it."""
    results = [*right[:done], (right[done] + int(rng.integers(1, 10))) % 10]
    end = int(rng.integers(done + 1, len(operations) + 1))
    for operation in operations[done + 1 : end]:
        results.append(apply(operation, results[-1]))
    return results


def _malformed(rng, start, operations, results) -> str:
    """Makes a sheet with a broken layout.

    A line is missing, stands in the place of the next one or names another operation; a result is
    missing; the sheet is cut short; its start is wrong; or it has a hole, or else a stray word.
    """
    words = sheet(start, operations, results).split()
    n = len(operations)
    line = 2 * int(rng.integers(n))
    kind = int(rng.integers(7))
    if kind == 0:
        del words[line : line + 2]
    elif kind == 1 and n > 1:
        after = (line + 2) % (2 * n)
        words[after : after + 2] = words[line : line + 2]
    elif kind == 2:
        words[line] = str(rng.choice([o for o in OPERATIONS if o != words[line]]))
    elif kind == 3:
        del words[line + 1]
    elif kind == 4:
        words = words[: 2 * int(rng.integers(n))]
    elif kind == 5:
        words[-1] = str((start + int(rng.integers(1, 10))) % 10)
    elif len(results) > 1:
        words[-3] = BLANK
    else:
        words[line + 1] = words[line]
    return " ".join(words)
