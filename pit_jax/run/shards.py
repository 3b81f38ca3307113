"""Keeps the shards of a file in a folder beside it until all are there, then joins them.

The folder is OUTPUT.parts. Its `job.json` says what the shards depend on, so that a job that was
ended goes on after its last whole shard, and shards of another job are refused. A file beside each
shard has its digest and is written first, so a shard that isn't what was written is told from a
whole one: it is set aside, and made again with those after it. Only the first process writes; what
it finds counts for all processes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

from etils import epath

from pit_jax import files
from pit_jax.errors import UserError
from pit_jax.runtime import processes

_JOB = "job.json"
_ASIDE = ".damaged"
_SHOWN = 60


class Shards:
    """Holds the shards of one file.

    Args:
      output: the file.
      count: how many shards it will be made of.
      job: what the shards depend on, by name.

    Attributes:
      folder: where the shards are.
    """

    def __init__(self, output: epath.Path, count: int, job: Mapping[str, str]):
        self.folder = output.with_name(output.name + ".parts")
        self._output, self._count, self._job = output, count, dict(job)

    def claim(self) -> int:
        """Makes the folder this job's; returns how many shards are done, the first ones.

        Raises:
          UserError: if it holds shards of another job or other files, or can't be written.
        """
        problem, done = "", 0
        if processes.is_first():
            try:
                with self._reported():
                    while done < self._count and self._is_whole(done):
                        done += 1
                    self._compare(done)
            except UserError as error:
                problem = str(error)
        if processes.any_process(bool(problem)):
            raise UserError(problem or "--output: the first process can't write it, and says why")
        return int(processes.largest(done))

    def write(self, number: int, text: str) -> None:
        """Writes a shard, whole lines.

        Raises:
          UserError: if it can't be written.
        """
        if processes.is_first():
            data = text.encode()
            with self._reported():
                files.write_whole(self._digest(number), hashlib.sha256(data).hexdigest() + "\n")
                files.write_whole(self._path(number), data)

    def lines(self) -> Iterator[bytes]:
        """Yields the lines of all shards in order.

        Raises:
          UserError: if a shard isn't what was written.
        """
        for number in range(self._count):
            data = self._path(number).read_bytes()
            if not self._is_written(number, data):
                raise UserError(
                    f"{self._path(number)}: is damaged, expected what its digest says; give the "
                    "same command again to make it anew"
                )
            # JSON has no other end of a line in it, as bytes are split.
            yield from data.splitlines(keepends=True)

    def join(self) -> None:
        """Writes the file, then deletes the folder.

        Raises:
          UserError: if it can't be written.
        """
        if not processes.is_first():
            return
        with self._reported(), files.whole(self._output) as file:
            file.writelines(self.lines())
        # What says whose the folder is goes last.
        for each in sorted(self.folder.iterdir(), key=lambda each: each.name == _JOB):
            each.unlink()
        self.folder.rmtree(missing_ok=True)  # a bucket's folder may be gone with its files

    def disown(self) -> None:
        """Keeps the shards from being gone on with."""
        if processes.is_first():
            (self.folder / _JOB).unlink(missing_ok=True)

    def _path(self, number: int) -> epath.Path:
        return self.folder / f"{number:06d}.jsonl"

    def _digest(self, number: int) -> epath.Path:
        return self.folder / f"{number:06d}.sha256"

    def _is_written(self, number: int, data: bytes) -> bool:
        """Whether a shard is what was written; those of an earlier version have no digest."""
        path = self._digest(number)
        return not path.exists() or path.read_bytes().split() == [
            hashlib.sha256(data).hexdigest().encode()
        ]

    def _is_whole(self, number: int) -> bool:
        """Whether a shard is there; a damaged one is set aside."""
        path = self._path(number)
        if not path.exists():
            return False
        data = path.read_bytes()
        if self._is_written(number, data):
            return True
        aside = path.with_name(path.name + _ASIDE)
        files.write_whole(aside, data)
        path.unlink()
        print(f"{path}: is damaged, now {aside.name}, and made again", flush=True)
        return False

    def _compare(self, done: int) -> None:
        path = self.folder / _JOB
        names = [each.name for each in self.folder.iterdir()] if self.folder.is_dir() else []
        others = [name for name in names if not name.endswith(".tmp")]
        if others and _JOB not in names:
            raise UserError(
                f"{self.folder}: has {others[0]!r} and isn't of an unfinished job; delete the "
                "folder, or give another --output"
            )
        try:
            before = files.unsealed(path.read_bytes(), _JOB)[0] if done else None
        except files.NotSealed as error:
            raise UserError(
                f"{path}: is damaged, {error}; bring it back from a copy, or delete the folder to "
                "start again"
            ) from None
        if before is None:
            files.write_whole(path, json.dumps(files.sealed(self._job, _JOB), indent=1) + "\n")
        elif before != self._job:
            changed = [n for n in {**before, **self._job} if before.get(n) != self._job.get(n)]
            changes = ", ".join(_change(n, before.get(n), self._job.get(n)) for n in changed)
            raise UserError(
                f"{self.folder}: has {done} shards of another job ({changes}); delete the folder "
                "to start again, or give another --output"
            )
        ours = {each(number).name for number in range(done) for each in (self._path, self._digest)}
        for name in set(names) - {_JOB, *ours}:
            if not name.endswith(_ASIDE):
                (self.folder / name).unlink(missing_ok=True)

    def _reported(self) -> AbstractContextManager[None]:
        return files.reported(self._output, f"--output: can't write {self._output}")


def _change(name: str, before: str | None, now: str | None) -> str:
    if max(len(str(before)), len(str(now))) > _SHOWN:
        return f"{name} changed"
    return f"{name}: {before or 'nothing'} -> {now or 'nothing'}"
