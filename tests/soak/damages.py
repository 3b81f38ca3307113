"""Damages to a random file of a run directory, and what a user does when told of one."""

from __future__ import annotations

import pathlib
import random
import re
import shutil

# (kind of file, patterns, how often it is damaged)
KINDS = (
    ("checkpoint", ("*/checkpoints/*/**/*",), 45),
    ("stage.json", ("*/stage.json",), 8),
    ("result.json", ("*/result.json",), 12),
    ("references", ("*/references/*/*",), 10),
    ("metrics.jsonl", ("*/metrics.jsonl",), 8),
    ("compilation_cache", ("compilation_cache/*",), 7),
    ("data_cache", ("data_cache/*/*", "data_cache/*"), 4),
    ("owner.lock", ("owner.lock",), 4),
    ("config.gin", ("config.gin",), 2),
)
HOW = ("flipped", "cut", "emptied", "zeroed", "deleted", "swapped")


class Damages:
    """Damages files of a run directory and keeps what they were.

    Attributes:
      curves: the stages that go on without some of their records, as a remedy was.
    """

    def __init__(self, folder: pathlib.Path, draw: random.Random):
        self._folder, self._draw = folder, draw
        self._kept: dict[pathlib.Path, tuple[bytes, bytes | None]] = {}  # before, and after
        self.curves: set[str] = set()

    def damage(self) -> dict[str, str] | None:
        """Damages one file; what was done to which, None if there is no file yet."""
        there = {
            kind: sorted({p for each in patterns for p in self._folder.glob(each) if p.is_file()})
            for kind, patterns, _ in KINDS
        }
        kinds = [(kind, weight) for kind, _, weight in KINDS if there[kind]]
        if not kinds:
            return None
        kind = self._draw.choices(*zip(*kinds))[0]
        path = self._draw.choice(there[kind])
        how = self._draw.choice(HOW)
        data = path.read_bytes()
        if how == "swapped":
            pool = [p for p in there[kind] if p != path] or [
                p for each in there.values() for p in each if p != path
            ]
            if not pool:
                return None
            other = self._draw.choice(pool)
            self._write(path, other.read_bytes())
            self._write(other, data)
            name = f"{self._name(path)} <-> {self._name(other)}"
        else:
            self._write(path, self._changed(data, how))
            name = self._name(path)
        return {"kind": kind, "how": how, "file": name}

    def _changed(self, data: bytes, how: str) -> bytes | None:
        if how == "flipped" and data:
            changed = bytearray(data)
            for _ in range(self._draw.choice((1, 1, 3))):
                changed[self._draw.randrange(len(data))] ^= 1 << self._draw.randrange(8)
            return bytes(changed)
        if how == "cut":
            return data[: self._draw.randrange(len(data))] if data else data
        return {"emptied": b"", "zeroed": b"\0" * len(data), "deleted": None}.get(how, data)

    def _write(self, path: pathlib.Path, data: bytes | None) -> None:
        before = path.read_bytes()
        self._kept[path] = self._kept[path][0] if path in self._kept else before, data
        if data is None:
            path.unlink()
        else:
            path.write_bytes(data)

    def _name(self, path: pathlib.Path) -> str:
        return str(path.relative_to(self._folder))

    def left(self) -> set[pathlib.Path]:
        """The files that are as a damage left them: nobody has read them since, or minded."""
        return {path for path, (_, after) in self._kept.items() if _content(path) == after}

    def remedy(self, line: str) -> str:
        """Does what a line asks of its reader; what was done, empty if it asks for nothing."""
        choices = []
        if "from a copy" in line and (copies := self._copies(line)):
            choices.append(("copy", copies))
        named = re.search(r"delete (/\S+?)(?=[ ,;]|$)", line)
        if not named and "delete the folder" in line:
            named = re.search(r"(/\S+?): ", line)
        if found := re.search(r"(/\S+metrics\.jsonl)(:\d+)?: .* metrics\.jsonl\.damaged", line):
            choices.append(("aside", pathlib.Path(found[1])))
        elif named:
            choices.append(("delete", pathlib.Path(named[1])))
        if not choices:
            return ""
        kind, what = self._draw.choice(choices)
        if kind == "copy":
            for path in what:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self._kept.pop(path)[0])
            return "copy"
        if kind == "aside":
            aside = what.with_name("metrics.jsonl.damaged")
            what.rename(aside) if what.exists() else aside.touch()
            self.curves.add(what.parent.name)
            return "set records aside"
        if not what.exists():
            return ""
        if what.is_dir():
            shutil.rmtree(what)
            for path in [path for path in self._kept if path.is_relative_to(what)]:
                del self._kept[path]
            if what.parent == self._folder:
                self.curves.discard(what.name)
        else:
            what.unlink()
        return f"delete {'folder' if not what.suffix else what.name}"

    def _copies(self, line: str) -> list[pathlib.Path]:
        """The damaged files that a line is about, which are still as the damage left them."""
        found = re.search(r"(/\S+?):? ", line)
        about = pathlib.Path(re.sub(r":\d+$", "", found[1])) if found else self._folder
        return [path for path in sorted(self.left()) if path == about or path.is_relative_to(about)]


def _content(path: pathlib.Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
