"""Writes a plan for a terminal, and says what it stands on."""

from __future__ import annotations

import collections
from typing import Any

from pit_jax.errors import UserError
from pit_jax.models.config import NetworkConfig
from pit_jax.plan.chips import Slice

_GIB = 2**30
_ALWAYS = "nothing overlaps with collectives; every response has its full length"


def assumptions(slice_: Slice, network: NetworkConfig, share: float) -> dict[str, str]:
    """Says what of a plan is exact, what is estimated, and what is assumed.

    Args:
      slice_: the machine.
      network: the network of the run's models.
      share: how much of a chip's memory a program may take.
    """
    chip, counted = slice_.chip, slice_.chip.shares
    kept = "parameters, optimizers, frozen models, batches and the number of operations"
    if chip.platform == "tpu":
        slower = "; slices joined as fast as chips, which they aren't" if slice_.slices > 1 else ""
        return {
            "exact": f"{kept}; what a program adds, as the TPU's compiler allots it",
            "assumed": f"{chip.flops / 1e12:.0f} TFLOP/s, {chip.bandwidth / 1e9:,.0f} GB/s of "
            f"memory, {chip.interconnect / 1e9:,.0f} GB/s of interconnect a chip, all at their "
            f"peak; {_ALWAYS}{slower}",
        }
    peak = chip.flops * (chip.float32 if network.dtype == "float32" else 1)
    if chip.platform == "cpu":
        return {
            "exact": f"{kept}; what a program adds, as XLA allots it on this processor",
            "assumed": f"as measured just now, with whatever else runs: {peak / 1e9:,.0f} GFLOP/s "
            f"in {network.dtype} and {chip.bandwidth / 1e9:,.0f} GB/s of memory a device; "
            f"programs took 1 to 5 times as long as that where both were measured; {_ALWAYS}",
        }
    how = "bfloat16" if network.dtype == "bfloat16" else "TF32"
    links = f"{counted.interconnect:.0%} of {chip.interconnect / 1e9:,.0f} GB/s of links, "
    return {
        "exact": kept,
        "estimated": "what a program adds, as XLA allots it for this GPU where it has none to try "
        "kernels on; scratch memory of cuDNN's attention isn't in it",
        "assumed": f"{counted.flops:.0%} of {peak / 1e12:,.1f} TFLOP/s ({how}), "
        f"{counted.bandwidth:.0%} of {chip.bandwidth / 1e9:,.0f} GB/s of memory, "
        + (links if slice_.chips > 1 else "")
        + f"{counted.launch * 1e6:.0f} microseconds to start each kernel; XLA takes {share:.0%} "
        f"of the memory, which needs XLA_PYTHON_CLIENT_MEM_FRACTION={share}; {_ALWAYS}",
    }


def to_text(plan: dict[str, Any]) -> str:
    """Writes the plan for a terminal."""
    lines = [
        f"{plan['topology']}: {plan['chips']} x {plan['chip']} with "
        f"{plan['chip_memory'] / _GIB:.0f} GiB, mesh "
        + " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items()),
        *(f"{kind.capitalize()}: {text}." for kind, text in plan["assumptions"].items()),
        "",
        f"{'stage':<12}{'program':<24}{'kept':>7}{'temp':>7}{'peak':>7}{'of chip':>9}"
        f"{'TFLOP':>11}{'moved':>8}{'seconds':>9}{'tokens/s':>11}{'MFU':>6}{'runs':>9}",
    ]
    for row in plan["programs"]:
        kept = sum(row["roles"].values()) + row["beside"]
        start = f"{row['stage']:<12}{row['program']:<24}{kept / _GIB:>7.2f}"
        if row.get("refused"):
            lines.append(
                f"{start}{'':>7}{row['peak'] / _GIB:>7.2f}{row['share']:>9.0%}  doesn't fit"
            )
            continue
        moved = sum(each["bytes"] for each in row["collectives"])
        lines.append(
            f"{start}{row['temporary'] / _GIB:>7.2f}{row['peak'] / _GIB:>7.2f}{row['share']:>9.0%}"
            f"{row['flops'] / 1e12:>11,.1f}{moved / _GIB:>8.2f}{row['seconds']:>9.3f}"
            f"{row['tokens_per_second']:>11,.0f}{row['mfu']:>6.0%}{row['runs']:>9,.0f}"
        )
    lines += ["", *_resident(plan), "", *_disk(plan), ""]
    hours = plan["hours"]
    lines += [
        "GiB on each chip: kept = parameters, optimizers and frozen models; temp = what a program "
        "adds; moved = by its collectives.",
        "All stages: "
        + (f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes")
        + " by this estimate, without loading, compiling, evaluation and checkpoints.",
    ]
    for row in plan["programs"]:
        if not row["fits"]:
            sizes = row["roles"] | {"temporary": row.get("temporary", 0)}
            role, size = max(sizes.items(), key=lambda item: item[1])
            lines.append(
                f"Doesn't fit: {row['stage']}, {row['program']}: {row['peak'] / _GIB:.1f} GiB, "
                f"{row['share']:.0%} of a chip; largest: {role}, {size / _GIB:.1f} GiB"
            )
    return "\n".join(lines)


def _resident(plan: dict[str, Any]) -> list[str]:
    """What stays on each chip, and which models of a stage are one in memory."""
    lines = [f"{'stage':<12}{'what stays on each chip':<56}{'GiB':>7}"]
    for stage, role, size in dict.fromkeys(
        (row["stage"], role, size)
        for row in plan["programs"]
        for role, size in row["roles"].items()
    ):
        lines.append(f"{stage:<12}{role:<56}{size / _GIB:>7.2f}")
    for stage, shared in plan["shared"].items():
        together = (f"backbone shared by {', '.join(models)}" for models in shared)
        lines += [f"{stage:<12}{line}" for line in together] or [
            f"{stage:<12}no backbone is shared"
        ]
    return lines


def _disk(plan: dict[str, Any]) -> list[str]:
    lines = [f"{'stage':<12}{'checkpoints on disk at the end':<36}{'GiB each':>12}{'GiB':>9}"]
    for row in plan["disk"]:
        each, count = row["bytes"] / _GIB, row["checkpoints"]
        lines.append(f"{row['stage']:<12}{count:<36}{each:>12.2f}{each * count:>9.2f}")
    total = sum(row["bytes"] * row["checkpoints"] for row in plan["disk"])
    spare = max(row["bytes"] for row in plan["disk"])
    lines.append(
        f"All stages: {total / _GIB:.2f} GiB on disk, and {spare / _GIB:.2f} more while the next "
        "checkpoint is written beside the last."
    )
    return lines


def advice(proposal: dict[str, Any] | None) -> str:
    """Says in a sentence what to do about a plan that doesn't fit."""
    if proposal is None:
        return "No setting that was tried makes it fit: take more chips."
    return f"It fits with {proposal['flags']}: {proposal['peak'] / _GIB:.1f} GiB a chip."


def named(part: str, names: list[str]) -> list[str]:
    """Returns the names that contain `part`.

    Raises:
      UserError: if none does.
    """
    if found := [name for name in names if part in name]:
        return found
    raise UserError(f"--explain: got {part!r}, expected part of one of {', '.join(names)}")


def explain(plan: dict[str, Any], name: str) -> str:
    """Writes all that is known of the programs whose stage or name contains `name`.

    Raises:
      UserError: if there is no such program.
    """
    names = [f"{row['stage']}: {row['program']}" for row in plan["programs"]]
    asked = named(name, names)
    lines = []
    for row in (row for row, full in zip(plan["programs"], names, strict=True) if full in asked):
        lines.append(f"{row['stage']}: {row['program']}")
        sizes = collections.ChainMap(row["roles"], {"beside the program": row["beside"]})
        lines += [f"  {role:<24}{size / _GIB:>9.3f} GiB a chip" for role, size in sizes.items()]
        for part, seconds in row.get("estimate", {}).items():
            lines.append(f"  {part:<24}{seconds:>9.4f} s")
        for each in row.get("collectives", ()):
            where = "in loops" if each["in_loops"] else "outside loops"
            lines.append(
                f"  {each['kind']:<24}{each['bytes'] / _GIB:>9.3f} GiB in {each['count']:,} {where}"
            )
    return "\n".join(lines)
