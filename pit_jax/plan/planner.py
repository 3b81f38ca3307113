"""Compiles a run's programs for a machine, adds up memory and time, proposes settings that fit."""

from __future__ import annotations

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

from pit_jax import files
from pit_jax.errors import UserError
from pit_jax.plan import chips, cuda, hlo, storage
from pit_jax.plan.estimate import Machine, estimate
from pit_jax.plan.programs import BACKBONE, Program, programs, size_on_a_chip
from pit_jax.plan.text import assumptions, named
from pit_jax.run.config import RunConfig
from pit_jax.run.stages import RLStage, Stage
from pit_jax.runtime.partitioning import Partitioner

SHARE = 0.95  # of a chip's memory that a program may take
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
      JSON values: `topology`, `chip`, `chips`, `chip_memory` (bytes), `mesh`, `assumptions` (what
      is `exact`, `estimated` and `assumed`), `programs` (a list of rows), `shared` (for each stage
      of PPO, the models of each backbone that several have), `disk` (for each stage, the number of
      checkpoints that stay and the `bytes` of one), `hours`, and `fits`, whether no program takes
      more than SHARE of a chip.

    Raises:
      UserError: if the mesh can't have these slices, or no program is named `explain`.
    """
    if config.mesh.slices % slice_.slices:
        raise UserError(
            f"--topology: {slice_.name} has {slice_.slices} slices, the configuration's mesh "
            f"{config.mesh.slices}; give --gin.MeshConfig.slices={slice_.slices}"
        )
    partitioner = Partitioner(config.mesh, devices)
    chip = slice_.chip
    found = list(programs(config, partitioner))
    if explain:
        named(explain, [f"{program.stage}: {program.name}" for program in found])
    rows = [
        {"stage": program.stage, "program": program.name} | row | {"runs": program.runs}
        for program, row in zip(found, _measure(found, partitioner, slice_, say, save), strict=True)
    ]
    seconds = [row["seconds"] * row["runs"] for row in rows if "seconds" in row]
    return {
        "topology": slice_.name,
        "chip": chip.name,
        "chips": slice_.chips,
        "chip_memory": chip.hbm,
        "mesh": dict(partitioner.mesh.shape),
        "assumptions": assumptions(slice_, config.network, SHARE),
        "programs": rows,
        "shared": {
            stage.name: sharing([p for p in found if p.stage == stage.name])
            for stage in config.stages
            if isinstance(stage, RLStage)
        },
        "disk": storage.checkpoints(config, partitioner),
        "hours": sum(seconds) / 3600,
        "fits": all(row["fits"] for row in rows),
    }


def sharing(found: list[Program]) -> list[list[str]]:
    """Returns the models of a stage that have one backbone, for each that several have."""
    roles = {role for program in found for role in program.roles if role.startswith(BACKBONE)}
    names = (role.removeprefix(BACKBONE).split(", ") for role in sorted(roles))
    return [models for models in names if len(models) > 1]


def _measure(
    found: list[Program],
    partitioner: Partitioner,
    slice_: chips.Slice,
    say: Callable[[str], None],
    save: pathlib.Path | None = None,
) -> list[dict[str, Any]]:
    """Measures programs, equal ones once, as many at a time as there are cores."""

    def one(program):
        say(f"compiling {program.stage}: {program.name}")
        return measured(program, partitioner, slice_, save)

    with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_AT_ONCE)) as pool:
        # The first of equal ones; those that do most, and take longest to compile, before others.
        wanted = {program.key: program for program in reversed(found)}
        largest = sorted(wanted, key=lambda key: -wanted[key].flops)
        rows = {key: pool.submit(one, wanted[key]) for key in largest}
        return [rows[program.key].result() for program in found]


def measured(
    program: Program,
    partitioner: Partitioner,
    slice_: chips.Slice,
    save: pathlib.Path | None = None,
) -> dict[str, Any]:
    """Returns a program's row of the plan, without what depends on the stage."""
    started = time.monotonic()
    beside = sum(map(size_on_a_chip, program.beside.values()))
    row: dict[str, Any] = {
        "roles": {role: size_on_a_chip(tree) for role, tree in program.roles.items()},
        "beside": beside,
        "tokens": program.tokens,
        "flops": program.flops,
    }
    chip = slice_.chip
    try:
        lowered = program.function.lower(*program.arguments)
        compiled = lowered.compile(cuda.OPTIONS if chip.platform == "gpu" else None)
    except Exception as error:  # the compiler itself says when a program can't be placed
        if "cuDNN" in str(error):
            raise cuda.absent(error) from error
        used = _refused(str(error), size_on_a_chip(program.arguments))
        if used is None:
            raise
        peak = used + beside
        return row | _fits(peak, chip) | {"refused": True}
    memory = compiled.memory_analysis()
    # What a program doesn't read isn't among its arguments, as the optimizer when it samples; what
    # several models share is there as often as they are.
    leaves = jax.tree.leaves(program.arguments)
    passed = sum(map(size_on_a_chip, leaves))
    unread = max(0, passed - memory.argument_size_in_bytes)
    shared = passed - size_on_a_chip(program.arguments)
    peak = beside + (
        unread
        - shared
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    text = compiled.as_text()
    if save:
        _save(save, program, memory, text, partitioner)
    parsed, speeds = hlo.Program(text), machine(chip)
    collectives = parsed.collectives()
    cost = estimate(
        program,
        collectives,
        speeds,
        partitioner.mesh.shape,
        parsed.launches(),
    )
    seconds = cost.seconds
    peak_speed = dataclasses.replace(speeds, flops=chip.flops).speed
    at_peak = sum(work.flops(network) / peak_speed(network) for work, network in program.work)
    return row | {
        "temporary": memory.temp_size_in_bytes,
        **_fits(peak, chip),
        "collectives": [
            {"kind": kind, "in_loops": inside, "count": count, "bytes": size}
            for (kind, inside), (count, size) in sorted(hlo.by_kind(collectives).items())
        ],
        "estimate": dataclasses.asdict(cost),
        "seconds": seconds,
        "tokens_per_second": program.tokens / seconds,
        "mfu": at_peak / seconds / slice_.chips,
        "compile_seconds": time.monotonic() - started,
    }


def _refused(error: str, arguments: int) -> float | None:
    """Returns the bytes that a program needs of a chip, as the TPU's compiler refuses it; or None.

    It names either all that is used, or what is used beside the arguments.
    """
    units = {"M": 2**20, "G": 2**30, "T": 2**40}
    if found := re.search(r"Used ([\d.]+)([GMT]) of [\d.]+[GMT] hbm", error):
        return float(found[1]) * units[found[2]]
    if found := re.search(r"for HLO temporaries \(([\d.]+)([GMT])\) exceeds", error):
        return float(found[1]) * units[found[2]] + arguments
    return None


def _kept(program: Program) -> int:
    """Returns the bytes on a chip of all that is in memory before the program adds to it."""
    return size_on_a_chip(program.arguments) + sum(map(size_on_a_chip, program.beside.values()))


def _fits(peak: float, chip: chips.Chip) -> dict[str, Any]:
    return {"peak": peak, "share": peak / chip.hbm, "fits": peak / chip.hbm <= SHARE}


def machine(chip: chips.Chip) -> Machine:
    """Returns the speeds that a plan for a chip counts with."""
    counted = chip.shares
    return Machine(
        flops=counted.flops * chip.flops,
        bandwidth=counted.bandwidth * chip.bandwidth,
        interconnect=counted.interconnect * chip.interconnect,
        launch=counted.launch,
        float32=chip.float32,
    )


def _save(folder: pathlib.Path, program: Program, memory, text: str, partitioner) -> None:
    """Writes a compiled program's text, and as JSON its arguments and the memory it takes."""
    name = re.sub(r"\W+", "-", f"{program.stage} {program.name}")
    files.write_whole(folder / f"{name}.hlo.txt", text)
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
    files.write_whole(folder / f"{name}.json", json.dumps(options, indent=1) + "\n")


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
            if not rows or any(
                stage.batch_size % (parts[stage.name] * rows) for stage in config.stages
            ):
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
    failing = {(row["stage"], row["program"]) for row in plan["programs"] if not row["fits"]}
    for flags, other in proposals(config, {stage for stage, _ in failing}, len(devices)):
        partitioner = Partitioner(other.mesh, devices)
        found = [p for p in programs(other, partitioner) if (p.stage, p.name) in failing]
        if any(_kept(program) > SHARE * slice_.chip.hbm for program in found):
            continue  # whatever the program adds to it
        say(f"trying {flags}")
        rows = _measure(found, partitioner, slice_, lambda text: None)
        if all(row["fits"] for row in rows):
            return {"flags": flags, "peak": max(row["peak"] for row in rows)}
    return None
