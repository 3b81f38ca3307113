"""Compiles every program of a run for a slice, adds up memory and time, proposes what fits."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from pit_jax.errors import UserError
from pit_jax.flops import total
from pit_jax.partitioning import Partitioner
from pit_jax.pipeline import RunConfig
from pit_jax.plan import chips, hlo
from pit_jax.plan.estimate import Machine, estimate
from pit_jax.plan.programs import Program, programs, size_on_a_chip

SHARE = 0.95  # of a chip's memory that a program may take
_GIB = 2**30


def make_plan(
    config: RunConfig,
    slice_: chips.Slice,
    devices: list[Any],
    say: Callable[[str], None],
    save: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Compiles what a run executes.

    Args:
      config: the run.
      slice_: the machine.
      devices: of the slice.
      say: told what is being compiled.
      save: folder that the compiled programs' texts are written to.

    Returns:
      JSON values: `topology`, `mesh`, `assumptions`, `programs` (a row each), `hours`, `fits`.
    """
    partitioner = Partitioner(config.mesh, devices)
    chip = slice_.chip
    rows, known = [], {}
    for program in programs(config, partitioner):
        if program.key not in known:
            say(f"compiling {program.stage}: {program.name}")
            known[program.key] = _measured(program, config, partitioner, slice_, save)
        rows.append({"stage": program.stage, "program": program.name} | known[program.key])
        rows[-1]["runs"] = program.runs
    seconds = [row["seconds"] * row["runs"] for row in rows if "seconds" in row]
    return {
        "topology": slice_.name,
        "chips": slice_.chips,
        "chip_memory": chip.hbm,
        "mesh": dict(partitioner.mesh.shape),
        "assumptions": (
            f"{chip.flops / 1e12:.0f} TFLOP/s, {chip.bandwidth / 1e9:.0f} GB/s of memory, "
            f"{chip.interconnect / 1e9:.0f} GB/s of interconnect a chip, all at their peak; "
            "collectives don't overlap with arithmetic; every response has its full length"
        ),
        "programs": rows,
        "hours": sum(seconds) / 3600,
        "fits": all(row["share"] <= SHARE for row in rows),
    }


def _measured(
    program: Program,
    config: RunConfig,
    partitioner: Partitioner,
    slice_: chips.Slice,
    save: pathlib.Path | None,
) -> dict[str, Any]:
    """One row of the plan, without what depends on the stage."""
    started = time.monotonic()
    beside = sum(map(size_on_a_chip, program.beside.values()))
    row: dict[str, Any] = {
        "roles": {role: size_on_a_chip(tree) for role, tree in program.roles.items()},
        "beside": beside,
        "tokens": program.tokens,
        "flops": total(program.work, config.network),
    }
    try:
        compiled = program.function.lower(*program.arguments).compile()
    except Exception as error:  # the compiler itself says when a program can't be placed
        used = re.search(r"Used ([\d.]+)([GMT]) of ([\d.]+)([GMT]) hbm", str(error))
        if not used:
            raise
        peak = float(used[1]) * {"M": 2**20, "G": 2**30, "T": 2**40}[used[2]] + beside
        return row | {"peak": peak, "share": peak / slice_.chip.hbm, "refused": True}
    memory = compiled.memory_analysis()
    peak = beside + (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    text = compiled.as_text()
    if save:
        save.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"\W+", "-", f"{program.stage} {program.name}")
        (save / f"{name}.hlo.txt").write_text(text)
    collectives = hlo.Program(text).collectives()
    chip = slice_.chip
    cost = estimate(
        program,
        config.network,
        collectives,
        Machine(chip.flops, chip.bandwidth, chip.interconnect),
        slice_.chips,
        partitioner.mesh.shape["model"],
    )
    seconds = cost.seconds
    return row | {
        "temporary": memory.temp_size_in_bytes,
        "peak": peak,
        "share": peak / chip.hbm,
        "collectives": [
            {"kind": kind, "in_loops": inside, "count": count, "bytes": size}
            for (kind, inside), (count, size) in sorted(hlo.by_kind(collectives).items())
        ],
        "estimate": dataclasses.asdict(cost),
        "seconds": seconds,
        "tokens_per_second": program.tokens / seconds,
        "mfu": row["flops"] / seconds / slice_.chips / chip.flops,
        "compile_seconds": time.monotonic() - started,
    }


def proposals(config: RunConfig) -> Iterator[tuple[str, RunConfig]]:
    """(flags, configuration) of settings that take less memory, the mildest first."""
    replace = dataclasses.replace
    if config.network.remat != "full":
        network = replace(config.network, remat="full")
        yield "--gin.NetworkConfig.remat=\"'full'\"", replace(config, network=network)
        config = replace(config, network=network)
    for parts in (2, 4, 8):
        stages = tuple(
            replace(stage, microbatches=stage.microbatches * parts)
            if hasattr(stage, "microbatches")
            and stage.batch_size % (stage.microbatches * parts) == 0
            else stage
            for stage in config.stages
        )
        flags = " ".join(
            f"--gin.{stage.name}/{type(stage).__name__}.microbatches={stage.microbatches}"
            for stage in stages
            if hasattr(stage, "microbatches")
        )
        yield flags, replace(config, stages=stages)
    for model in (2, 4, 8):
        if config.network.num_kv_heads % (config.mesh.model * model) == 0:
            mesh = replace(config.mesh, model=config.mesh.model * model)
            yield f"--gin.MeshConfig.model={mesh.model}", replace(config, mesh=mesh)


def propose(
    config: RunConfig,
    slice_: chips.Slice,
    devices: list[Any],
    plan: dict[str, Any],
    say: Callable[[str], None],
) -> tuple[str, float] | None:
    """The first of `proposals` that makes what doesn't fit fit; None if there is none."""
    failing = {(row["stage"], row["program"]) for row in plan["programs"] if row["share"] > SHARE}
    for flags, other in proposals(config):
        say(f"trying {flags}")
        try:
            partitioner = Partitioner(other.mesh, devices)
        except UserError:
            continue
        rows = [
            _measured(program, other, partitioner, slice_, None)
            for program in programs(other, partitioner)
            if (program.stage, program.name) in failing
        ]
        if all(row["share"] <= SHARE for row in rows):
            return flags, max(row["peak"] for row in rows)
    return None


def to_text(plan: dict[str, Any]) -> str:
    """The plan for a terminal."""
    lines = [
        f"{plan['topology']}: {plan['chips']} chips of {plan['chip_memory'] / _GIB:.0f} GiB, mesh "
        + " x ".join(f"{axis} {size}" for axis, size in plan["mesh"].items()),
        f"Assumed: {plan['assumptions']}.",
        "",
        f"{'stage':<12}{'program':<24}{'kept':>7}{'temp':>7}{'peak':>7}{'of chip':>9}"
        f"{'PFLOP':>8}{'moved':>8}{'seconds':>9}{'tokens/s':>10}{'MFU':>6}{'runs':>9}",
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
            f"{row['flops'] / 1e15:>8.2f}{moved / _GIB:>8.2f}{row['seconds']:>9.3f}"
            f"{row['tokens_per_second']:>10,.0f}{row['mfu']:>6.0%}{row['runs']:>9,.0f}"
        )
    lines += [
        "",
        "GiB on each chip: kept = parameters, optimizers and frozen models; temp = what a program "
        "adds; moved = by its collectives.",
        f"The whole run: at least {plan['hours']:.1f} hours.",
    ]
    for row in plan["programs"]:
        if row["share"] > SHARE:
            role, size = max(row["roles"].items(), key=lambda item: item[1])
            lines.append(
                f"Doesn't fit: {row['stage']}, {row['program']}: {row['peak'] / _GIB:.1f} GiB, "
                f"{row['share']:.0%} of a chip; largest: {role}, {size / _GIB:.1f} GiB"
            )
    return "\n".join(lines)


def explain(plan: dict[str, Any], name: str) -> str:
    """All that is known of the programs whose stage or name contains `name`.

    Raises:
      UserError: if there is none.
    """
    rows = [row for row in plan["programs"] if name in f"{row['stage']}: {row['program']}"]
    if not rows:
        names = ", ".join(f"{row['stage']}: {row['program']}" for row in plan["programs"])
        raise UserError(f"--explain: got {name!r}, expected part of one of {names}")
    lines = []
    for row in rows:
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
