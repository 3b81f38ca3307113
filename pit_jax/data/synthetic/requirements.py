"""Generates and checks the family `requirements`: a task over words, with requirements to meet.

It follows Appendix D of the paper, with an exact checker in place of a language model. A prompt
names a task, its content and the requirements:

    reverse rose lamp river with quotes greeting bullets

The perfect response does the task and meets every requirement, and nothing more:

    hello " - river - lamp - rose "

The chosen response is perfect. The rejected response meets a strict subset of the
requirements, or damages the content, or adds what nobody asked for, or has a broken layout, or
bluffs by naming the requirements it doesn't meet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence

import numpy as np

from pit_jax.checked import checked
from pit_jax.data.examples import Check

# For a reader of the report: what a response has to do, and what its score is.
ASKED = (
    "instructions on words: a prompt asks to write, reverse or sort some words and to meet "
    "requirements, such as a greeting or bullets"
)
SCORED = (
    "the share of the requirements that are met, less as much for each that nobody asked for; 0 "
    "where the words themselves are wrong"
)

TASKS: dict[str, Callable[[Sequence[str]], list[str]]] = {
    "write": list,
    "reverse": lambda content: list(content)[::-1],
    "sort": sorted,
}
CONTENT = (
    "apple", "bird", "cloud", "door", "fish", "garden", "house",
    "lamp", "moon", "paper", "river", "rose", "stone", "tree",
)  # fmt: skip
# What a response that meets the requirement holds; `upper` and `repeat` change the content itself.
REQUIREMENTS = {
    "quotes": "the content between two \"",
    "greeting": "hello first",
    "bullets": "a - before every word of the content",
    "upper": "the content in upper case",
    "signature": "regards last",
    "exclamation": "a ! after the content",
    "bold": "the content between <b> and </b>",
    "repeat": "the content twice",
    "heading": "a # before the content",
    "smile": "a :) after the content",
}  # fmt: skip
_WRAPPERS = {"bold": ("<b>", "</b>"), "quotes": ('"', '"')}
_ENDINGS = {"exclamation": "!", "smile": ":)"}
_GREETING, _HEADING, _BULLET, _SIGNATURE = "hello", "#", "-", "regards"
_REFLECTION_WORDS = ("missing", "remove", "fix", "the", "content", "layout")
_MARKS = ("hello", "#", "<b>", "</b>", '"', "-", "!", ":)", "regards")
WORDS = tuple(
    dict.fromkeys(
        (
            *TASKS,
            *CONTENT,
            "with",
            *REQUIREMENTS,
            *(word.upper() for word in CONTENT),
            *_MARKS,
            *_REFLECTION_WORDS,
        )
    )
)


@dataclasses.dataclass(frozen=True)
@checked
class RequirementsConfig:
    """Sets the difficulty of the family, and how rejected responses fail.

    Attributes:
      tasks: which of TASKS prompts name.
      min_words: fewest content words, all different.
      max_words: most content words.
      min_requirements: fewest requirements of a prompt.
      max_requirements: most requirements of a prompt.
      requirements: how many of REQUIREMENTS, from the first on, are in use.
      damaged: share of rejected responses whose content is wrong.
      extras: share that meets everything, and a requirement nobody asked for.
      malformed: share with a broken layout.
      bluffs: share that names requirements in the place of meeting them.
    """

    tasks: tuple[str, ...] = ("write", "reverse", "sort")
    min_words: int = 2
    max_words: int = 3
    min_requirements: int = 2
    max_requirements: int = 4
    requirements: int = len(REQUIREMENTS)
    damaged: float = 0.15
    extras: float = 0.15
    malformed: float = 0.1
    bluffs: float = 0.1

    def __post_init__(self):
        if not self.tasks or set(self.tasks) - set(TASKS):
            raise ValueError(f"requirements: got tasks {self.tasks}, expected some of {[*TASKS]}")
        if not 2 <= self.min_words <= self.max_words <= len(CONTENT):
            raise ValueError(
                f"requirements: got min_words={self.min_words}, max_words={self.max_words}; "
                f"expected 2 <= min_words <= max_words <= {len(CONTENT)}"
            )
        if not (
            1 <= self.min_requirements <= self.max_requirements < self.requirements
            and self.requirements <= len(REQUIREMENTS)
        ):
            raise ValueError(
                f"requirements: got min_requirements={self.min_requirements}, max_requirements="
                f"{self.max_requirements}, requirements={self.requirements}; expected 1 <= "
                f"min_requirements <= max_requirements < requirements <= {len(REQUIREMENTS)}"
            )
        if self.damaged + self.extras + self.malformed + self.bluffs > 1:
            raise ValueError("requirements: damaged + extras + malformed + bluffs is over 1")


CONFIG = RequirementsConfig


def parse_prompt(prompt: str) -> tuple[list[str], list[str]]:
    """Returns the content that a perfect response holds, and the required names in prompt order.

    Raises:
      ValueError: if the prompt isn't `TASK WORD … with REQUIREMENT …`.
    """
    words = prompt.split()
    split = words.index("with") if "with" in words else 0
    content, required = words[1:split], words[split + 1 :]
    if (
        not content
        or not required
        or words[0] not in TASKS
        or set(content) - set(CONTENT)
        or set(required) - set(REQUIREMENTS)
    ):
        raise ValueError(
            f"requirements: got the prompt {prompt!r}, expected 'TASK WORDS with REQUIREMENTS', "
            f"tasks {tuple(TASKS)}, requirements {tuple(REQUIREMENTS)}"
        )
    return TASKS[words[0]](content), required


def render(content: Sequence[str], names: Collection[str]) -> str:
    """Writes the response that meets exactly the requirements `names`."""
    words = list(content) * (2 if "repeat" in names else 1)
    if "upper" in names:
        words = [word.upper() for word in words]
    if "bullets" in names:
        words = [part for word in words for part in (_BULLET, word)]
    for name in ("quotes", "bold"):
        if name in names:
            words = [_WRAPPERS[name][0], *words, _WRAPPERS[name][1]]
    if "heading" in names:
        words = [_HEADING, *words]
    if "greeting" in names:
        words = [_GREETING, *words]
    words += [mark for name, mark in _ENDINGS.items() if name in names]
    if "signature" in names:
        words.append(_SIGNATURE)
    return " ".join(words)


def check(prompt: str, response: str) -> Check:
    """Judges a response exactly.

    Returns:
      Check whose `score` is 0 if the content isn't whole or the layout is broken, else the share of
      requirements met, less the same share for every requirement met that nobody asked for, and at
      least 0.

    Raises:
      ValueError: if the prompt isn't one of the family's.
    """
    content, required = parse_prompt(prompt)
    shown = _shown(content, response.split())
    if shown is None:
        return Check(0.0, (), tuple(required), False)
    met = tuple(name for name in required if name in shown)
    extras = len(shown - set(required))
    return Check(max(0.0, (len(met) - extras) / len(required)), met, tuple(required), True)


def _shown(content: Sequence[str], words: list[str]) -> set[str] | None:
    """Names the requirements that a response shows; None unless it has a sound `content`."""
    shown = set()
    if words[:1] == [_GREETING]:
        shown.add("greeting")
        words = words[1:]
    if words[-1:] == [_SIGNATURE]:
        shown.add("signature")
        words = words[:-1]
    if words[:1] == [_HEADING]:
        shown.add("heading")
        words = words[1:]
    for _ in _ENDINGS:
        for name, mark in _ENDINGS.items():
            if name not in shown and words[-1:] == [mark]:
                shown.add(name)
                words = words[:-1]
    for _ in _WRAPPERS:
        for name, (opening, closing) in _WRAPPERS.items():
            if name not in shown and words[:1] == [opening] and words[1:][-1:] == [closing]:
                shown.add(name)
                words = words[1:-1]
    if _BULLET in words:
        if set(words[::2]) != {_BULLET} or len(words) % 2:
            return None
        shown.add("bullets")
        words = words[1::2]
    lowered = [word.lower() for word in words]
    if words != lowered:
        if words != [word.upper() for word in words]:
            return None
        shown.add("upper")
    if lowered == [*content, *content]:
        shown.add("repeat")
    elif lowered != list(content):
        return None
    return shown


def generate(rng: np.random.Generator, config: RequirementsConfig) -> dict[str, str]:
    """Generates an example: `prompt`, `chosen`, `rejected`, `reflection`."""
    names = list(REQUIREMENTS)[: config.requirements]
    task = config.tasks[int(rng.integers(len(config.tasks)))]
    words = _some(rng, CONTENT, int(rng.integers(config.min_words, config.max_words + 1)))
    count = int(rng.integers(config.min_requirements, config.max_requirements + 1))
    order = _some(rng, names, len(names))
    required, others = order[:count], order[count:]
    prompt = f"{task} {' '.join(words)} with {' '.join(required)}"
    content = TASKS[task](words)

    met = _some(rng, required, int(rng.integers(len(required))))
    missing = [name for name in required if name not in met]
    kind = rng.random() - np.cumsum(
        [config.damaged, config.extras, config.malformed, config.bluffs]
    )
    if kind[0] < 0:
        # Often the only fault, so that the content matters beside the requirements.
        shown = required if rng.random() < 0.5 else met
        rejected = render(_damaged(rng, content), shown)
        reflection = "fix the content"
    elif kind[1] < 0:
        extra = others[0]
        rejected = render(content, [*required, extra])
        reflection = f"remove {extra}"
    elif kind[2] < 0:
        rejected = _malformed(rng, prompt, render(content, required))
        reflection = "fix the layout"
    elif kind[3] < 0:
        rejected = f"{render(content, met)} {' '.join(missing)}"
        reflection = f"missing {' '.join(missing)}"
    else:
        rejected = render(content, met)
        reflection = f"missing {' '.join(missing)}"
    return {
        "prompt": prompt,
        "chosen": render(content, required),
        "rejected": rejected,
        "reflection": reflection,
    }


def _some(rng: np.random.Generator, choices: Sequence[str], size: int) -> list[str]:
    """Draws `size` different choices in random order."""
    return [choices[i] for i in rng.permutation(len(choices))[:size]]


def _damaged(rng: np.random.Generator, content: Sequence[str]) -> list[str]:
    """Damages content: a word is lost, replaced or said twice, or two words are out of order."""
    words = list(content)
    place = int(rng.integers(len(words)))
    kind = int(rng.integers(4))
    if kind == 0:
        del words[place]
    elif kind == 1:
        words[place] = _some(rng, [word for word in CONTENT if word not in words], 1)[0]
    elif kind == 2:
        words.insert(place, words[place])
    else:
        words[place - 1], words[place] = words[place], words[place - 1]
    return words


def _malformed(rng: np.random.Generator, prompt: str, response: str) -> str:
    """Loses, doubles or moves marks or words of a response until it isn't sound."""
    words = response.split()
    while check(prompt, " ".join(words)).content:
        place = int(rng.integers(len(words)))
        kind = int(rng.integers(3))
        if kind == 0 and len(words) > 1:
            del words[place]
        elif kind == 1:
            words.insert(place, words[place])
        else:
            words.insert(int(rng.integers(len(words))), words.pop(place))
    return " ".join(words)
