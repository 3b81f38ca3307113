"""Makes tables of what `plan` says of one run on slices of many sizes, and of a token of decoding.

    JAX_PLATFORMS=cpu python benchmarks/scale.py --gin_file gin/runs/hh_8b.gin --rows 2 \\
        --topology v4-16 --topology v4-128 --topology v4-1024 --topology v4-8192

Compiles for each slice, with so many rows a chip, the training step of `sft_policy`, the sampling
of references and PPO's update, and prints a line for each: the peak memory of a chip, the seconds
of the roofline, tokens a second and chip, the share of the chips' peak, and the bytes that a chip's
collectives move. With `--token` it compiles the decoding loop alone, and prints the bytes that a
chip moves to and from its main memory for one token of all rows, beside its weights and its cache.
They are added up over the instructions of the compiled loop: what is in the chip's own fast memory
(`S(n)` in a layout) isn't counted, of a slice its own size is, and an update in place counts as
what it writes. Nothing is measured on a chip.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from input_pipeline import configuration

from pit_jax.method.decode import Decoding, SamplingConfig
from pit_jax.models.network import LanguageModel
from pit_jax.plan import chips, hlo, machines, planner
from pit_jax.plan.programs import Program, programs, size_on_a_chip
from pit_jax.run.config import RunConfig
from pit_jax.runtime.partitioning import Partitioner

WANTED = (
    ("sft_policy", "training step"),
    ("rl_pit", "sampling of references"),
    ("rl_pit", "PPO: update"),
)


def line(program: Program, partitioner: Partitioner, slice_: chips.Slice) -> dict[str, Any]:
    """What `plan` says of one program."""
    row = planner.measured(program, partitioner, slice_)
    moved = sum(each["bytes"] for each in row.get("collectives", ()))
    return {
        "topology": slice_.name,
        "chips": slice_.chips,
        "mesh": dict(partitioner.mesh.shape),
        "program": f"{program.stage}: {program.name}",
        "rows": max(work.rows * work.times for work, _ in program.work),
        "peak_gib": row["peak"] / 2**30,
        "share": row["share"],
        "seconds": row.get("seconds"),
        "tokens_per_second_and_chip": row.get("tokens_per_second", 0) / slice_.chips,
        "mfu": row.get("mfu"),
        "collectives_gb": moved / 1e9,
        "compile_seconds": row.get("compile_seconds"),
    }


def token(config: RunConfig, partitioner: Partitioner, program: Program) -> dict[str, Any]:
    """The bytes that a chip moves for one token of every row, by the compiler's own count.

    Decoding is a loop, whose body the count has once.
    """
    work = next(work for work, _ in program.work if work.steps is not None)
    network, width = config.network, work.tokens
    decoding = Decoding(LanguageModel(network), work.steps, SamplingConfig())
    model, key = program.arguments[0], program.arguments[-1]
    ones = partitioner.row_sharding((work.rows,))
    temperature_B = jax.ShapeDtypeStruct((work.rows,), jnp.float32, sharding=ones)

    def empty(temperature_B, key):
        return decoding.empty(width, temperature_B, key).placed()

    params = _out(partitioner.jit(decoding.prepared).lower(model))
    rows = _out(partitioner.jit(empty).lower(temperature_B, key))
    rows = dataclasses.replace(
        rows, drawn=jax.ShapeDtypeStruct((), jnp.int32, sharding=partitioner.replicated)
    )
    advance = partitioner.jit(decoding.advance, donate_argnums=1)
    compiled = advance.lower(params, rows).compile()
    moved = Traffic(compiled.as_text()).of_a_turn()
    weights, cache = size_on_a_chip(params), size_on_a_chip(rows.cache)
    return {
        "rows": work.rows,
        "columns": work.tokens + work.steps,
        "weights_mb": weights / 1e6,
        "cache_mb": cache / 1e6,
        "moved_mb": moved / 1e6,
        "ratio": moved / (weights + cache),
        "temporary_mb": compiled.memory_analysis().temp_size_in_bytes / 1e6,
    }


_SHAPE = re.compile(r"\b((?:pred|[suf]\d+|bf16)\[[\d,]*\])(\{[^}]*\})?")
_DEFINED = re.compile(r"^\s*(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_NAMES = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"}


class Instruction(NamedTuple):
    """An instruction of a compiled program: its result's shape and layout, and its operands."""

    shape: str
    kind: str
    operands: list[str]
    rest: str


class Traffic(hlo.Program):
    """Counts the bytes that a compiled program moves to and from the main memory of a TPU.

    Args:
      text: `compiled.as_text()`, of a program with one loop over tokens.
    """

    def __init__(self, text: str):
        super().__init__(text)
        self._of: dict[str, dict[str, Instruction]] = {}
        for name, lines in self.lines.items():
            defined = [found.groups() for found in map(_DEFINED.match, lines) if found]
            self._of[name] = {
                label: Instruction(shape, kind, _operands(rest), rest)
                for label, shape, kind, rest in defined
            }

    def of_a_turn(self) -> int:
        """Returns the bytes of one turn of the outermost loop, inner loops with all their turns."""
        _, body = next(found for line in self.lines[self.entry] if (found := hlo.loop(line)))
        return self._moved(body)

    def _moved(self, computation: str) -> int:
        loops = [found for line in self.lines[computation] if (found := hlo.loop(line))]
        total = sum(self.trips(condition) * self._moved(body) for condition, body in loops)
        for each in self._of[computation].values():
            if each.kind not in {*_NAMES, "while"} and not each.kind.endswith("-done"):
                total += self._of_one(computation, each)
        return total

    def _of_one(self, computation: str, each: Instruction) -> int:
        operands = [self._of[computation][name].shape for name in each.operands]
        if each.kind == "dynamic-slice":
            return _size(each.shape, all_memory=True) + _size(each.shape)
        if each.kind == "dynamic-update-slice":
            return 2 * _size(operands[1], all_memory=True)
        if each.kind == "copy-start":
            first = _SHAPE.search(each.shape)
            return _size(operands[0]) + _size(first[0] if first else "")
        if each.kind in ("async-start", "slice-start"):
            return _size(operands[0])
        if each.kind.endswith("-start"):
            return 0  # a collective
        if each.kind != "fusion":
            return _size(each.shape) + sum(map(_size, operands))
        (inside,), written = hlo.called(each.rest), _size(each.shape)
        read = 0
        for name, shape in zip(self._parameters(inside), operands, strict=True):
            if whole := _size(shape):
                some, in_place = self._read(inside, name, whole)
                read, written = read + some, written - in_place
        return read + max(written, 0)

    def _parameters(self, fusion: str) -> list[str]:
        named = {
            int(each.rest.partition(")")[0]): name
            for name, each in self._of[fusion].items()
            if each.kind == "parameter"
        }
        return [named[number] for number in sorted(named)]

    def _read(self, fusion: str, name: str, whole: int) -> tuple[int, int]:
        """Bytes that a fusion reads of a value, and those of it that stay as they are in place."""
        read = kept = 0
        for user, each in self._of[fusion].items():
            if name not in each.operands:
                continue
            some, in_place = whole, 0
            if each.kind == "bitcast":
                some, in_place = self._read(fusion, user, whole)
            elif each.kind in ("dynamic-slice", "gather"):
                some = _size(each.shape, all_memory=True)
            elif each.kind == "dynamic-update-slice" and each.operands[0] == name:
                some = _size(self._of[fusion][each.operands[1]].shape, all_memory=True)
                in_place = whole - some
            elif each.kind == "fusion":
                (inner,) = hlo.called(each.rest)
                pairs = zip(self._parameters(inner), each.operands, strict=True)
                parts = [self._read(inner, own, whole) for own, given in pairs if given == name]
                some, in_place = (sum(part) for part in zip(*parts, strict=True))
            read, kept = read + some, kept + in_place
        return min(read, whole), kept


def _operands(rest: str) -> list[str]:
    return re.findall(r"%([\w.\-]+)", rest.split("), ")[0])


def _size(shape: str, all_memory: bool = False) -> int:
    """Bytes of a shape, or of each of a tuple, that are in the main memory."""
    return sum(
        hlo.size_of(found)
        for found, layout in _SHAPE.findall(shape)
        if all_memory or not re.search(r"S\(\d\)", layout)
    )


def _out(lowered: Any) -> Any:
    """What a program gives, as abstract arrays."""

    def one(shape, sharding):
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

    return jax.tree.map(one, lowered.out_info, lowered.compile().output_shardings)


def main() -> None:
    """Prints a line of JSON for each program, as soon as it is compiled."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gin_file", default="gin/runs/hh_8b.gin")
    parser.add_argument("--binding", action="append", default=[])
    parser.add_argument("--topology", action="append", required=True)
    parser.add_argument("--rows", type=int, default=2, help="of a batch, for each chip")
    parser.add_argument("--program", action="append", help="part of the name; all by default")
    parser.add_argument("--token", action="store_true", help="the decoding of a token alone")
    options = parser.parse_args()
    for name in options.topology:
        slice_ = machines.find(name)
        rows = options.rows * slice_.chips
        config = configuration(options.gin_file, [*options.binding, f"BATCH_SIZE = {rows}"])
        config = dataclasses.replace(config, sampling_batch=rows)
        partitioner = Partitioner(config.mesh, machines.devices(slice_))
        for program in programs(config, partitioner):
            if (program.stage, program.name) not in WANTED:
                continue
            label = f"{program.stage}: {program.name}"
            if "sampling" in label and options.token:
                print(json.dumps({"topology": name} | token(config, partitioner, program)))
            elif not options.token and any(p in label for p in options.program or [label]):
                print(json.dumps(line(program, partitioner, slice_)), flush=True)


if __name__ == "__main__":
    main()
