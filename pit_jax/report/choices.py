"""The section on chosen checkpoints: KL, reward and group of each, and the candidates' samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pit_jax.report.blocks import Block, Code, Drawings, Results, Section, Table
from pit_jax.report.formatting import NONE, known, share, three_digits, with_interval

_NORMAL = 1.96  # standard errors on each side of a mean that a 95% interval has


def section(results: Results, drawings: Drawings) -> Section:
    """The records of all stages whose checkpoint is chosen; no blocks if there is none."""
    del drawings
    blocks: list[Block] = []
    records = results.get("choices", ())
    for number, record in enumerate(records, 1):
        blocks.append(_table(record, explained=number == len(records)))
        steps = [row["step"] for row in record["checkpoints"] if row["candidate"]]
        for step in steps if record["samples"] else ():
            title = f"Samples of {record['stage']} at step {step}"
            blocks.append(Code(_samples(record, step), title=title))
    return Section("Choice of checkpoints", blocks)


def _table(record: Mapping[str, Any], explained: bool) -> Table:
    cells = []
    for row in record["checkpoints"]:
        role = "chosen" if row["chosen"] else "candidate" if row["candidate"] else ""
        group = NONE if row["group"] is None else str(row["group"])
        means = [_mean(row, name) for name in ("kl", "reward")]
        cells.append([str(row["step"]), role, group, *means, share(row["ended"])])
    caption = f"Checkpoints of {record['stage']}, on validation data."
    if record["chosen"] != record["proposed"]:
        caption += f" Step {record['proposed']} was proposed."
    if explained:
        caption += (
            " KL is that to the supervised model, in nats a response; the groups are intervals of "
            "it. Candidates have the highest reward of their group. Proposed is the one of least "
            "KL whose reward is below the highest by no more than a standard error of the "
            "difference. Brackets: 95% intervals over prompts. Paper: Appendix F."
        )
    columns = ["Step", "", "Group", "KL [95% interval]", "Reward [95% interval]", "Ended %"]
    return Table(columns, cells, caption, labels=2)


def _mean(row: Mapping[str, Any], name: str) -> str:
    mean, error = row[name], row[f"{name}_error"]
    if not (known(mean) and known(error)):
        return three_digits(mean)
    low, high = mean - _NORMAL * error, mean + _NORMAL * error
    return with_interval(three_digits(mean), low, high, three_digits)


def _samples(record: Mapping[str, Any], step: int) -> str:
    """All samples of a checkpoint as one text."""
    texts = []
    for sample in record["samples"]:
        (response,) = [each for each in sample["responses"] if each["step"] == step]
        cut = "" if response["ended"] else ", didn't end"
        parts = [f"Prompt: {sample['prompt']}"]
        if sample["reference"] is not None:
            parts.append(f"Reference: {sample['reference']}")
        parts.append(f"Response (reward {three_digits(response['reward'])}{cut}): ")
        texts.append("\n".join(parts) + response["text"])
    return "\n\n".join(texts)
