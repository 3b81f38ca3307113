"""Reads from a compiled program's text its collectives and what happens inside its loops."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\([^\n]*\) -> [^\n]*)?\{$")
_SHAPE = re.compile(r"\b(pred|[suf]\d+|bf16)\[([\d,]*)\]")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_OPCODE = re.compile(r"= (?:\(.*?\)|\S+) ([a-z][\w\-]*)\(")
# What a GPU runs no kernel for: it names or groups values, or waits for what was started.
_NO_KERNEL = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call"),
    *("conditional", "after-all", "opt-barrier", "async-start", "partition-id", "replica-id"),
}
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Describes a collective operation of a program.

    Attributes:
      kind: one of KINDS.
      shapes: shapes of its results on a chip, without layout.
      bytes: bytes of these results.
      times: how often it runs when the program runs once.
      depth: how many loops it is inside.
    """

    kind: str
    shapes: tuple[str, ...]
    bytes: int
    times: int
    depth: int


class Program:
    """Takes the text of a compiled program apart.

    Args:
      text: `compiled.as_text()`.

    Attributes:
      lines: the instructions of each computation, by its name.
      entry: the name of the computation that the program begins with.
    """

    def __init__(self, text: str):
        self.lines: dict[str, list[str]] = {}
        self.entry = name = ""
        for line in text.splitlines():
            if head := _HEAD.match(line):
                name = head[2]
                self.lines[name] = []
                self.entry = name if head[1] else self.entry
            elif line == "}":
                name = ""
            elif name:
                self.lines[name].append(line)

    def collectives(self) -> list[Collective]:
        """Returns every collective, with how often loops run it."""
        found = []
        for line, times, depth, where in self._walk(self.entry, 1, 0):
            if match := _COLLECTIVE.search(line):
                shapes = _shapes(match[1])
                if match[3] and match[2] != "all-reduce":  # operands stand beside the results
                    shapes = shapes[len(shapes) // 2 :] if match[2] == "all-gather" else shapes[1:2]
                kind = match[2]
                if kind == "all-reduce" and "scatter" in where:
                    kind = "reduce-scatter"
                size = sum(size_of(shape) for shape in shapes)
                found.append(Collective(kind, tuple(shapes), size, times, depth))
        return found

    def instructions(self) -> Iterator[tuple[str, int]]:
        """Yields every instruction that runs, and how many loops it is inside."""
        for line, _, depth, _ in self._walk(self.entry, 1, 0):
            yield line, depth

    def launches(self) -> int:
        """Counts the kernels that a GPU starts when the program runs once, fusions as one each."""
        return self._launches(self.entry)

    def _launches(self, name: str) -> int:
        count = 0
        for line in self.lines.get(name, ()):
            if found := loop(line):
                once = self._launches(found[0]) + self._launches(found[1])
                count += self.trips(found[0]) * once
                continue
            opcode = _OPCODE.search(line)
            if opcode is None or opcode[1].endswith("-done"):
                continue
            if opcode[1] not in _NO_KERNEL:
                count += 1
            elif opcode[1] in ("call", "conditional", "async-start"):
                count += sum(map(self._launches, called(line)))
        return count

    def _walk(self, name: str, times: int, depth: int) -> Iterator[tuple[str, int, int, str]]:
        """Yields (instruction, times it runs, loops around it, computation) of all it calls."""
        for line in self.lines.get(name, ()):
            yield line, times, depth, name
            if found := loop(line):
                yield from self._walk(found[1], times * self.trips(found[0]), depth + 1)
                continue
            for inner in called(line):
                yield from self._walk(inner, times, depth)

    def trips(self, condition: str) -> int:
        """Returns how often a loop runs, by the name of its condition."""
        numbers = [1]
        for line, *_ in self._walk(condition, 1, 0):
            numbers += [int(n) for n in re.findall(r"s32\[\][^=]* constant\((\d+)\)", line)]
        return max(numbers)


def by_kind(collectives: list[Collective]) -> dict[tuple[str, bool], tuple[int, int]]:
    """Adds up collectives: (kind, whether inside a loop) -> how many run, bytes on a chip."""
    counts: collections.Counter[tuple[str, bool]] = collections.Counter()
    sizes: collections.Counter[tuple[str, bool]] = collections.Counter()
    for each in collectives:
        counts[each.kind, each.depth > 0] += each.times
        sizes[each.kind, each.depth > 0] += each.times * each.bytes
    return {key: (counts[key], sizes[key]) for key in counts}


def called(line: str) -> list[str]:
    """Returns the names of the computations that an instruction calls, all branches of it too."""
    found = _CALLED.findall(line)
    if branches := re.search(r"branch_computations=\{([^}]*)\}", line):
        found += [name.strip().lstrip("%") for name in branches[1].split(",")]
    return found


def loop(line: str) -> tuple[str, str] | None:
    """Returns the names of a loop's condition and body, None for another instruction."""
    if " while(" not in line:
        return None
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    body = re.search(r"body=%?([\w.\-]+)", line)
    return (condition[1], body[1]) if condition and body else None


def _shapes(text: str) -> list[str]:
    return [f"{kind}[{dims}]" for kind, dims in _SHAPE.findall(text)]


def size_of(shape: str) -> int:
    """Returns the bytes of a shape such as `bf16[4,8]`."""
    kind, dims = shape.rstrip("]").split("[")
    return _BYTES.get(kind, 4) * math.prod(int(n) for n in dims.split(",") if n)
