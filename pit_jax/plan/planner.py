"""Compiles a run's programs for a slice, adds up memory and time, proposes settings that fit."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from pit_jax.errors import UserError
from pit_jax.method.flops import total
from pit_jax.plan import chips, hlo
from pit_jax.plan.estimate import Machine, estimate
from pit_jax.plan.programs import Program, programs, size_on_a_chip
from pit_jax.run.config import RunConfig
from pit_jax.run.stages import RLStage, Stage
from pit_jax.runtime.partitioning import Partitioner

SHARE = 0.95  # of a chip's memory that a program may take
_GIB = 2**30
_MOST_AT_ONCE = 4  # compilations, each of which takes some gigabytes
_PARTS = (1, 2, 4, 8, 16, 32)


def make_plan(
    config: RunConfig,
    slice_: chips.Slice,
    devices: list[Any],
    say: Callable[[str], None],
    save: pathlib.Path | None = None,
    explain: str | None = None,
) -> dict[str, Any]:
    """Compiles every program that a run executes.

    Args:
      config: the run.
      slice_: the machine.
      devices: the slice's devices.
      say: a function that is told what is being compiled.
      save: folder that the compiled programs are written to, as text with their options as JSON.
      explain: part of the name of a program; the run must have such a program.

    Returns:
      JSON values: `topology`, `chips`, `chip_memory` (bytes), `mesh`, `assumptions`, `programs` (a
      list of rows), `hours`, and `fits`, whether no program takes more than SHARE of a chip.

    Raises:
      UserError: if slice and mesh don't have as many slices, or no program is named `explain`.
    """
    if slice_.slices != config.mesh.slices:
        raise UserError(
            f"--topology: {slice_.name} has {slice_.slices} slices, the configuration's mesh "
            f"{config.mesh.slices}; give --gin.MeshConfig.slices={slice_.slices}"
        )
    partitioner = Partitioner(config.mesh, devices)
    chip = slice_.chip
    found = list(programs(config, partitioner))
    if explain:
        _named(explain, [f"{program.stage}: {program.name}" for program in found])
    rows = [
        {"stage": program.stage, "program": program.name} | row | {"runs": program.runs}
        for program, row in zip(
            found, _measure(found, config, partitioner, slice_, say, save), strict=True
        )
    ]
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
            + ("; slices joined as fast as chips, which they aren't" if slice_.slices > 1 else "")
        ),
        "programs": rows,
        "hours": sum(seconds) / 3600,
        "fits": all(row["share"] <= SHARE for row in rows),
    }


def _measure(
    found: list[Program],
    config: RunConfig,
    partitioner: Partitioner,
    slice_: chips.Slice,
    say: Callable[[str], None],
    save: pathlib.Path | None = None,
) -> list[dict[str, Any]]:
    """Measures programs, equal ones once, as many at a time as there are cores."""

    def one(program):
        say(f"compiling {program.stage}: {program.name}")
        return _measured(program, config, partitioner, slice_, save)

    with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_AT_ONCE)) as pool:
        # The first of equal ones; those that do most, and take longest to compile, before others.
        wanted = {program.key: program for program in reversed(found)}
        largest = sorted(wanted, key=lambda key: -total(wanted[key].work, config.network))
        rows = {key: pool.submit(one, wanted[key]) for key in largest}
        return [rows[program.key].result() for program in found]


def _measured(
    program: Program,
    config: RunConfig,
    partitioner: Partitioner,
    slice_: chips.Slice,
    save: pathlib.Path | None,
) -> dict[str, Any]:
    """Returns a program's row of the plan, without what depends on the stage."""
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
        _save(save, program, memory, text, partitioner)
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


def _save(folder: pathlib.Path, program: Program, memory, text: str, partitioner) -> None:
    """Writes a compiled program's text, and as JSON its arguments and the memory it takes."""
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "-", f"{program.stage} {program.name}")
    (folder / f"{name}.hlo.txt").write_text(text)
    leaves = jax.tree_util.tree_leaves_with_path(program.arguments)
    sizes = [field for field in dir(memory) if field.endswith("_size_in_bytes")]
    options = {
        "jax": jax.__version__,
        "mesh": dict(partitioner.mesh.shape),
        "arguments": {
            jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)} {x.sharding.spec}"
            for path, x in leaves
        },
        "memory": {field: getattr(memory, field) for field in sizes},
    }
    (folder / f"{name}.json").write_text(json.dumps(options, indent=1) + "\n")


def proposals(config: RunConfig, failing: set[str], chips_: int) -> Iterator[tuple[str, RunConfig]]:
    """Yields (flags, configuration) of settings that take less memory, the mildest first.

    Args:
      config: the run that doesn't fit.
      failing: names of the stages that don't fit.
      chips_: number of chips of all slices together.
    """
    flags: list[str] = []
    if config.network.remat != "full":
        network = dataclasses.replace(config.network, remat="full")
        config = dataclasses.replace(config, network=network)
        flags.append("--gin.NetworkConfig.remat=\"'full'\"")
        yield " ".join(flags), config
    offloaded = [_offloaded(stage) if stage.name in failing else stage for stage in config.stages]
    if offloaded != list(config.stages):
        config = dataclasses.replace(config, stages=tuple(offloaded))
        names = [s.name for s in offloaded if s.name in failing and isinstance(s, RLStage)]
        flags += [f"--gin.{name}/RLStage.offload_frozen=True" for name in names]
        yield " ".join(flags), config
    for wider in (1, 2, 4, 8):
        mesh = dataclasses.replace(config.mesh, model=config.mesh.model * wider)
        if config.network.num_heads % mesh.model:
            continue
        split = [f"--gin.MeshConfig.model={mesh.model}"] if wider > 1 else []
        for more in _PARTS if wider > 1 else _PARTS[1:]:
            parts = {s.name: s.parts * (more if s.name in failing else 1) for s in config.stages}
            rows = chips_ // mesh.model
            if any(stage.batch_size % (parts[stage.name] * rows) for stage in config.stages):
                continue
            cut = [_cut(stage, more) for stage in config.stages if stage.name in failing]
            changed = {stage.name: stage for stage, _ in cut}
            stages = tuple(changed.get(stage.name, stage) for stage in config.stages)
            wanted = flags + split + [flag for _, flag in cut if flag]
            yield " ".join(wanted), dataclasses.replace(config, mesh=mesh, stages=stages)


def _offloaded(stage: Stage) -> Stage:
    if isinstance(stage, RLStage):
        return dataclasses.replace(stage, offload_frozen=True)
    return stage


def _cut(stage: Stage, more: int) -> tuple[Stage, str]:
    """Returns the stage with `more` times its microbatches, and the flag that says so."""
    if more == 1:
        return stage, ""
    if isinstance(stage, RLStage):
        ppo = dataclasses.replace(stage.ppo, microbatches=stage.ppo.microbatches * more)
        flag = f"--gin.{stage.name}/PPOConfig.microbatches={ppo.microbatches}"
        return dataclasses.replace(stage, ppo=ppo), flag
    parts = stage.microbatches * more
    flag = f"--gin.{stage.name}/{type(stage).__name__}.microbatches={parts}"
    return dataclasses.replace(stage, microbatches=parts), flag


def propose(
    config: RunConfig,
    slice_: chips.Slice,
    devices: list[Any],
    plan: dict[str, Any],
    say: Callable[[str], None],
) -> dict[str, Any] | None:
    """Tries `proposals` in order on a plan that doesn't fit.

    Args:
      config: the run.
      slice_: the machine.
      devices: the slice's devices.
      plan: what `make_plan` returned for it.
      say: a function that is told what is being tried.

    Returns:
      `flags` of the first proposal that makes all programs fit, and the largest `peak` of a chip in
      bytes; None if no proposal does.
    """
    failing = {(row["stage"], row["program"]) for row in plan["programs"] if row["share"] > SHARE}
    for flags, other in proposals(config, {stage for stage, _ in failing}, len(devices)):
        say(f"trying {flags}")
        partitioner = Partitioner(other.mesh, devices)
        found = [p for p in programs(other, partitioner) if (p.stage, p.name) in failing]
        rows = _measure(found, other, partitioner, slice_, lambda text: None)
        if all(row["share"] <= SHARE for row in rows):
            return {"flags": flags, "peak": max(row["peak"] for row in rows)}
    return None


def advice(proposal: dict[str, Any] | None) -> str:
    """Says in a sentence what to do about a plan that doesn't fit."""
    if proposal is None:
        return "No setting that was tried makes it fit: take more chips."
    return f"It fits with {proposal['flags']}: {proposal['peak'] / _GIB:.1f} GiB a chip."


def to_text(plan: dict[str, Any]) -> str:
    """Writes the plan for a terminal."""
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
    lines += ["", f"{'stage':<12}{'what stays on each chip':<36}{'GiB':>7}"]
    for stage, role, size in dict.fromkeys(
        (row["stage"], role, size)
        for row in plan["programs"]
        for role, size in row["roles"].items()
    ):
        lines.append(f"{stage:<12}{role:<36}{size / _GIB:>7.2f}")
    lines += [
        "",
        "GiB on each chip: kept = parameters, optimizers and frozen models; temp = what a program "
        "adds; moved = by its collectives.",
        f"All stages: {plan['hours']:.1f} hours by this estimate, without loading, compiling, "
        "evaluation and checkpoints.",
    ]
    for row in plan["programs"]:
        if row["share"] > SHARE:
            sizes = row["roles"] | {"temporary": row.get("temporary", 0)}
            role, size = max(sizes.items(), key=lambda item: item[1])
            lines.append(
                f"Doesn't fit: {row['stage']}, {row['program']}: {row['peak'] / _GIB:.1f} GiB, "
                f"{row['share']:.0%} of a chip; largest: {role}, {size / _GIB:.1f} GiB"
            )
    return "\n".join(lines)


def _named(part: str, names: list[str]) -> list[str]:
    if found := [name for name in names if part in name]:
        return found
    raise UserError(f"--explain: got {part!r}, expected part of one of {', '.join(names)}")


def explain(plan: dict[str, Any], name: str) -> str:
    """Writes all that is known of the programs whose stage or name contains `name`.

    Raises:
      UserError: if there is no such program.
    """
    names = [f"{row['stage']}: {row['program']}" for row in plan["programs"]]
    asked = _named(name, names)
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
