"""Makes synthetic splits: examples of a family, with no prompt twice inside or across splits."""

from __future__ import annotations

from typing import Any

import numpy as np

from pit_jax.data.examples import SPLITS, Check, Example, stable_hash
from pit_jax.data.synthetic import drafts, requirements
from pit_jax.errors import UserError

# A family is a module with WORDS, CONFIG (its frozen configuration class), generate and check, and
# with ASKED and SCORED, which say in words what its task and its score are.
FAMILIES = {"drafts": drafts, "requirements": requirements}

# Of ten prompts, one can only ever be in dev, one only in test and eight only in train.
_SPLIT_OF_TEN = {"dev": (0,), "test": (1,), "train": tuple(range(2, 10))}
_MAX_FRUITLESS_TRIES = 20_000


def examples(family: str, split: str, size: int, seed: int, config: Any) -> list[Example]:
    """Generates `size` examples of a split; a larger `size` only adds examples at the end.

    The hash of a prompt decides which split it may be in, so splits share no prompt, whatever their
    sizes and seeds.

    Args:
      family: a key of FAMILIES.
      split: `train`, `dev` or `test`.
      size: number of examples.
      seed: the generator's; with `family`, `split` and `config` it determines every example.
      config: the family's configuration, an instance of its CONFIG.

    Raises:
      UserError: if family or split are unknown, or the family runs out of different prompts.
    """
    module = _family(family)
    if split not in SPLITS:
        raise UserError(f"split: got {split!r}, expected one of {', '.join(SPLITS)}")
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    found: dict[str, Example] = {}
    fruitless = 0
    while len(found) < size:
        fields = module.generate(rng, config)
        prompt = fields["prompt"]
        fruitless += 1
        if prompt not in found and stable_hash(prompt, "split") % 10 in _SPLIT_OF_TEN[split]:
            found[prompt] = Example(**fields, index=len(found))
            fruitless = 0
        if fruitless == _MAX_FRUITLESS_TRIES:
            raise UserError(
                f"instructions: family {family!r} with {config} has about {len(found)} different "
                f"prompts for split {split!r}, expected {size}; ask for fewer or make it harder"
            )
    return list(found.values())


def check(family: str, prompt: str, response: str) -> Check:
    """Returns the exact verdict of the family's checker.

    Raises:
      UserError: if the family is unknown.
      ValueError: if the prompt isn't one of the family's.
    """
    return _family(family).check(prompt, response)


def _family(name: str):
    if name not in FAMILIES:
        raise UserError(f"family: got {name!r}, expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name]
