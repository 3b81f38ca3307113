"""Makes each task's sequences of an example's token pieces.

A function takes a Layout and the pieces {prompt, chosen, rejected, reflection, index}, and
`reference` where one was sampled. It returns what the task learns from, one or several elements
for an example. The pieces are whatever the Layout joins: lists of ids, the tensors of one example
in a seqio Task, or Ragged columns of many examples at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pit_jax.data.layouts import GAP_PAIR_TREE, GAP_TREE, PAIR_TREE, UNLIKELY, Layout, Tree

Features = Mapping[str, Any]


def pretrain(layout: Layout, f: Features) -> list[Features]:
    """Makes plain text that doesn't tell which response is better: {inputs, targets} four times.

    It is each response alone and each response after the other, so that a model knows both layouts.
    """
    parts: list[Features] = []
    for y, other in (("chosen", "rejected"), ("rejected", "chosen")):
        for inputs in (layout.policy_prompt(f["prompt"]), layout.pit_prompt(f["prompt"], f[other])):
            parts.append({"inputs": inputs, "targets": layout.response(f[y])})
    return parts


def sft_policy(layout: Layout, f: Features) -> list[Features]:
    """Makes {inputs, targets} of -log M_P(y_w | x)."""
    return [{"inputs": layout.policy_prompt(f["prompt"]), "targets": layout.response(f["chosen"])}]


def sft_pit(layout: Layout, f: Features) -> list[Features]:
    """Makes {inputs, targets} of -log M_PIT(y_w | x, y_l)."""
    inputs = layout.pit_prompt(f["prompt"], f["rejected"])
    return [{"inputs": inputs, "targets": layout.response(f["chosen"])}]


def sft_pit_reflection(layout: Layout, f: Features) -> list[Features]:
    """Makes {inputs, targets} of -log M_PIT(c, y_w | x, y_l) (Appendix K)."""
    inputs = layout.pit_prompt(f["prompt"], f["rejected"])
    return [{"inputs": inputs, "targets": layout.reflected_response(f["reflection"], f["chosen"])}]


def sft_pit_unlikely(
    layout: Layout, f: Features, pairs: Sequence[tuple[str, str]]
) -> list[Features]:
    """Makes {inputs, targets, unlikely} of unlikelihood (3.2), the likely one of `sft_pit` first.

    Args:
      layout: of whatever the features hold.
      f: the features.
      pairs: (response, reference) of M_PIT(y | x, y_ref) that become less likely.
    """
    return [
        {
            "inputs": layout.pit_prompt(f["prompt"], f[reference]),
            "targets": layout.response(f[response]),
            "unlikely": layout.fill(f["index"], int(number > 0)),
        }
        for number, (response, reference) in enumerate([("chosen", "rejected"), *pairs])
    ]


def rm_policy(layout: Layout, f: Features) -> list[Features]:
    """Makes {tokens, blocks} of layouts.PAIR_TREE: R_P(x, y_w) against R_P(x, y_l), with one x."""
    return _tree(PAIR_TREE, layout, f)


def rm_gap(layout: Layout, f: Features) -> list[Features]:
    """Makes {tokens, blocks} of layouts.GAP_TREE: the sequences of Eq. 2 with shared prefixes."""
    return _tree(GAP_TREE, layout, f)


def rm_gap_pair(layout: Layout, f: Features) -> list[Features]:
    """Makes {tokens, blocks} of layouts.GAP_PAIR_TREE: what the loss of two terms reads."""
    return _tree(GAP_PAIR_TREE, layout, f)


def _tree(tree: Tree, layout: Layout, f: Features) -> list[Features]:
    """Joins blocks one after the other, and numbers each token's block from 1."""
    blocks = [block.piece(layout, f[block.text]) for block in tree]
    numbers = [layout.fill(block, number) for number, block in enumerate(blocks, 1)]
    return [{"tokens": layout.join(blocks), "blocks": layout.join(numbers)}]


def rl_policy(layout: Layout, f: Features) -> list[Features]:
    """Makes prompts for Eq. 3: {prompt, reward_prompt, chosen, example_index}."""
    return [
        {
            "prompt": layout.policy_prompt(f["prompt"]),
            "reward_prompt": layout.reward_prompt(f["prompt"]),
            "chosen": layout.response(f["chosen"]),
            "example_index": f["index"],
        }
    ]


def rl_pit(layout: Layout, f: Features) -> list[Features]:
    """Makes prompts for Eqs. 4 and 5; y_ref is `reference` if there is any, else y_l, then y_w."""
    return [
        {
            "prompt": layout.pit_prompt(f["prompt"], reference),
            "reward_prompt": layout.gap_prompt(f["prompt"], reference),
            "chosen": layout.response(f["chosen"]),
            "example_index": f["index"],
        }
        for reference in _references(f)
    ]


def rl_pit_difference(layout: Layout, f: Features) -> list[Features]:
    """Makes prompts of `rl_pit` for the gap R_P(x, y) − R_P(x, y_ref), where R_P reads y_ref too.

    The critic reads the whole prompt of the gap, since the return depends on y_ref.
    """
    return [
        {
            **prompts,
            "reward_prompt": layout.reward_prompt(f["prompt"]),
            "critic_prompt": prompts["reward_prompt"],
            "reference": layout.response(reference),
        }
        for prompts, reference in zip(rl_pit(layout, f), _references(f), strict=True)
    ]


def _references(f: Features) -> list[Any]:
    return [f["reference"]] if "reference" in f else [f["rejected"], f["chosen"]]


# Task -> what makes its sequences.
SEQUENCES: dict[str, Callable[[Layout, Features], list[Features]]] = {
    "pretrain": pretrain,
    "sft_policy": sft_policy,
    "sft_pit": sft_pit,
    "sft_pit_reflection": sft_pit_reflection,
    **{task: functools.partial(sft_pit_unlikely, pairs=pairs) for task, pairs in UNLIKELY.items()},
    "rm_policy": rm_policy,
    "rm_gap": rm_gap,
    "rm_gap_pair": rm_gap_pair,
    "rl_policy": rl_policy,
    "rl_pit": rl_pit,
    "rl_pit_difference": rl_pit_difference,
}
