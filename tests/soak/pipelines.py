"""One pipeline of a soak: starts that are ended, damaged, crowded or doubled, then the end."""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import re
import shutil
import signal
import time

from tests.soak import compare, damages, starts

SIGNALS = {signal.SIGKILL: 6, signal.SIGTERM: 3, signal.SIGINT: 2}
ENDED = {  # what a start may end with, by the signal it was sent
    signal.SIGKILL: (-signal.SIGKILL,),
    signal.SIGTERM: (128 + signal.SIGTERM,),
    signal.SIGINT: (128 + signal.SIGINT,),
}
TOPOLOGIES = {
    "1": (1, ()),
    "8": (8, ()),
    "4x2": (8, ("--gin.MeshConfig.data=4", "--gin.MeshConfig.model=2")),
    "2x4": (8, ("--gin.MeshConfig.data=2", "--gin.MeshConfig.model=4")),
}
REMEDIES = 8  # in a row, of a run that was damaged
# Lines that may stand before the one of a refusal.
NO_ROOM = re.compile("No space left on device|File too large|Disk quota exceeded")
BEFORE = re.compile(r"couldn't be written|waiting up to \d+ s for a sign of life|^$")


class Pipeline:
    """Runs and disturbs one pipeline; what it finds goes into the soak."""

    def __init__(self, soak, name: str, draw: random.Random, until: float):
        self.soak, self.name, self.draw, self.until = soak, name, draw, until
        self.kind = name.partition("-")[0]
        self.folder: pathlib.Path = soak.folder
        self.damages = damages.Damages(self.folder, draw)
        self.damaged = False  # something was, since the last start that ended well
        self.changed = False  # something was deleted or brought back, so steps are done again
        self.topology = ""
        self.number = 0
        self.before: compare.Where | None = None

    def run(self) -> None:
        soak = self.soak
        for each in (self.folder, soak.live / "ballast"):
            shutil.rmtree(each, ignore_errors=True) if each.is_dir() else each.unlink(True)
        if soak.stages != compare.STAGES:  # the short form: all but these are there
            shutil.copytree(soak.reference, self.folder)
            for stage in soak.stages:
                shutil.rmtree(self.folder / stage)
        elif self.kind != "topologies" and self.draw.random() < 0.8:
            cache = "compilation_cache"
            shutil.copytree(soak.reference / cache, self.folder / cache)
        act = {
            "kills": self._kill,
            "damages": self._kill_and_damage,
            "full_disks": self._crowd,
            "double_starts": self._double,
            "topologies": self._change,
        }[self.kind]
        for _ in range(self.draw.randint(*soak.starts)):
            if time.monotonic() > self.until or act():
                break
        if self._finish():
            self._compare()

    # --- what is done to a start ------------------------------------------------------------------

    def _plan(self, **changes) -> starts.Plan:
        soak, more = self.soak, ()
        devices, cache = soak.devices, ""
        if self.kind == "topologies":
            previous, self.topology = self.topology, self.draw.choice(list(TOPOLOGIES))
            soak.counts["topologies"] += previous not in ("", self.topology)
            devices, more = TOPOLOGIES[self.topology]
            cache = str(soak.cache)
        plan = starts.Plan(
            [*soak.argv, *more],
            self.folder,
            real=self.draw.random() < soak.real,
            devices=devices,
            first=soak.first,
            cache=cache,
            lease=2.0 if self.damaged else 0.0,
        )
        return plan._replace(**changes)

    def _start(self, plan: starts.Plan) -> starts.Start:
        self.number += 1
        soak = self.soak
        soak.counts["starts"] += 1
        soak.counts["real processes"] += plan.real
        return starts.Start(plan, soak.logs.with_name(f"start{self.number % 2}"))

    def _delay(self, plan: starts.Plan, share: float = 0.6) -> float:
        return self.draw.uniform(0.0, share * self.soak.seconds + 8.0 * plan.real)

    def _end(self, number: int | None = None) -> starts.Start:
        """A start that is ended somewhere, unless it is done before."""
        number = number or self.draw.choices(*zip(*SIGNALS.items()))[0]
        plan = self._plan(signal=number)
        if not plan.real and self.draw.random() < 0.5:
            at = int(self.soak.changes ** self.draw.uniform(0.4, 1.0))
            plan = plan._replace(end_at=at)
        if self.soak.at:
            plan = plan._replace(end_at=self.soak.at.pop(0))
        start = self._start(plan)
        if not plan.end_at and not start.wait(self._delay(plan)):
            start.send(number)
        start.wait()
        if start.status in ENDED[number]:
            self._ended(start, number)
        return start

    def _kill(self) -> bool:
        return self._judge(self._end())

    def _kill_and_damage(self) -> bool:
        done = self._judge(self._end(self.draw.choice((signal.SIGKILL, None))))
        for _ in range(self.draw.choice((1, 1, 1, 2, 3))):
            if what := self.damages.damage():
                self.damaged = self.changed = True
                self.soak.counts["damages"] += 1
                self.soak.counts[f"damages: {what['how']}"] += 1
                self.soak.counts[f"damages to {what['kind']}"] += 1
        del done  # what is complete is damaged too, and started again
        return False

    def _change(self) -> bool:
        return self._judge(self._end(signal.SIGKILL))

    def _crowd(self) -> bool:
        """A start on a disk that is full, or becomes full, or has a limit for files."""
        soak, draw = self.soak, self.draw
        room = int(2 ** draw.uniform(10, 21))
        how = draw.choice(("from the start", "later", "for a while", "a file's size"))
        if how == "a file's size" or not soak.small_disk:
            how = "a file's size"
            start = self._start(self._plan(limit=int(2 ** draw.uniform(11, 17)), real=False))
            start.wait()
        else:
            plan = self._plan()
            if how == "from the start":
                self._fill(room)
            start = self._start(plan)
            if how != "from the start":
                start.wait(self._delay(plan))
                self._fill(room)
            if how == "for a while":
                start.wait(self._delay(plan, 0.3))
                (soak.live / "ballast").unlink(missing_ok=True)
            start.wait()
        (soak.live / "ballast").unlink(missing_ok=True)
        soak.counts["full_disks"] += 1
        soak.counts[f"full_disks: {how}"] += 1
        soak.counts["full_disks: ended with status 2"] += start.status == 2
        soak.counts["full_disks: went on"] += start.status == 0
        self.changed = True
        return self._judge(start, crowded=True)

    def _fill(self, room: int) -> None:
        found = os.statvfs(self.soak.live)
        size = found.f_bavail * found.f_frsize - room
        with open(self.soak.live / "ballast", "wb") as file, contextlib.suppress(OSError):
            if size > 0:
                os.posix_fallocate(file.fileno(), 0, size)

    def _double(self) -> bool:
        """A second start beside the first, at any moment; then the first one is killed."""
        first = self._start(self._plan(real=False))
        first.wait(self._delay(first.plan, 0.4))
        second = self._start(self._plan())
        while not first.poll() and not second.wait(0.05):
            pass
        if first.status == 2:  # it was the second to ask for the lock
            first, second = second, first
        if second.status == 2:
            self.soak.counts["double_starts"] += 1
            if f"of process {first.pid} on " not in second.err or first.status not in (None, 0):
                self._fault("a second start doesn't name the first one", second)
            self._check(second)
        elif first.status is None:
            self._fault(f"two starts at once, the second one ended with {second.status}", second)
        for start in (first, second):
            if not start.wait(self._delay(start.plan, 0.4)):
                start.send(signal.SIGKILL)
                start.wait()
                self._ended(start, signal.SIGKILL)
        return self._judge(first if second.status == 2 else second)

    # --- what is looked at ------------------------------------------------------------------------

    def _ended(self, start: starts.Start, number: int) -> None:
        """Notes where a start was ended."""
        soak, found = self.soak, compare.where(self.folder, start.out, start.since)
        soak.counts["kills"] += 1
        soak.counts[f"kills: {signal.Signals(number).name}"] += 1
        soak.places[f"{found.stage or 'report'}: {found.doing}"] += 1
        at = start.plan.end_at
        soak.counts["kills before a certain change of a file"] += 0 < at <= len(start.places)
        if found.doing in ("training", "saving"):
            if not self.changed:
                self._recomputed(start, found)
            self.changed = False

    def _recomputed(self, start: starts.Start, found: compare.Where) -> None:
        """Counts the steps that are to be done again: those recorded since the checkpoint."""
        again = max(0, found.recorded - found.saved)
        self.soak.recomputed[again] += 1
        allowed = 2 * self.soak.interval if found.saving else self.soak.interval
        if again > allowed:
            self._fault(f"{found}: {again} steps are to be done again", start)

    def _judge(self, start: starts.Start, crowded: bool = False) -> bool:
        """Looks at how a start ended, follows a remedy; whether the run is complete."""
        self._check(start)
        if "taken over from" in start.out:
            self.soak.counts["stale locks taken over"] += 1
        self.soak.counts["checkpoints set aside"] += len(re.findall(r"now \d+\.damaged", start.out))
        if start.status == 0:
            self.damaged = False
            return True
        if start.status == 2 and self.damaged:
            self._follow(start)
        elif start.status == 2 and not crowded:
            self._fault("refused, though nothing was damaged", start)
        return False

    def _check(self, start: starts.Start) -> None:
        """Faults of any start: its status, a traceback, more than a line."""
        lines = start.err.splitlines()
        allowed = {0, 2, *(status for each in ENDED.values() for status in each)}
        if start.hung:
            self._fault("hung", start)
        elif start.status not in allowed:
            self._fault(f"ended with status {start.status}", start)
        if "Traceback" in start.err:
            self._fault(f"a traceback, status {start.status}", start)
        elif start.status == 2:
            before = [line for line in lines[:-1] if not BEFORE.search(line)]
            if before or not lines or not lines[-1].startswith("pit_jax "):
                self._fault("refused with more or less than a line", start)
        if "other settings" in start.err:  # they never are: another stage's file is called so
            self._fault("refused with the wrong reason", start)
        if any(NO_ROOM.search(line) and f"{self.soak.live}/" not in line for line in lines):
            self._fault("doesn't name what couldn't be written", start)
        for line in lines:
            said = re.sub(r"\S*/\S*|\b[0-9a-f]{8,}\b|\d+", "…", line)[:120]
            self.soak.lines[said] += 1

    def _follow(self, start: starts.Start) -> None:
        line = start.err.splitlines()[-1] if start.err.strip() else ""
        self.soak.counts["damages: refused"] += 1
        remedy = self.damages.remedy(line)
        self.soak.counts[f"remedies: {remedy or 'none'}"] += 1
        self.changed = True
        if not remedy:
            self._fault("a refusal has no remedy that helps", start)

    def _finish(self) -> bool:
        """Starts the run until it is complete."""
        for _ in range(REMEDIES):
            start = self._start(self._plan())
            start.wait()
            if self._judge(start):
                return True
            if start.status != 2:
                break
        self._fault("doesn't come to its end", start)
        return False

    def _compare(self) -> None:
        soak = self.soak
        soak.counts["ends compared"] += 1
        soak.counts["curves without some records"] += len(self.damages.curves)
        close = self.kind == "topologies"
        for line in compare.differences(
            soak.reference,
            self.folder,
            soak.stages,
            self.damages.curves,
            close,
            self.damages.left(),
        ):
            soak.fault(self.name, f"ended otherwise: {line}")

    def _fault(self, what: str, start: starts.Start) -> None:
        plan = f"{'process' if start.plan.real else 'fork'}, start {self.number}"
        self.soak.fault(self.name, f"{what} ({plan})", start.err)
