"""Lets one command at a time write to a run directory.

The command that has it keeps the file `owner.lock` there: a line of JSON that says who it is, by
host, process and the moment when the process started. The file appears whole or not at all: on a
disk, NFS too, by a hard link, which fails where there is a file already; in a bucket by a write on
the condition that there is no object, or still the one that was read (its generation). etils.epath
and tf.io.gfile have no such writes, so TensorStore makes them, as it does those of checkpoints.

Every BEAT seconds the holder gives a sign of life: the file's time of change on a disk, a new
generation in a bucket. Whether a holder is alive is known at once on its own machine, where a
process that has its number and its start is looked for. A holder on another machine is watched:
with one sign of life it is alive, with none in LEASE seconds it is dead, whatever clocks say.
A lock whose holder is dead is taken over by one of those that want it. A holder that finds its lock
taken over, as after a sleep of its machine, ends at once.

The processes of a distributed run share the lock of the first one, which alone writes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import secrets
import socket
import sys
import threading
import time
from typing import Any, NamedTuple, Protocol

from pit_jax import errors, files
from pit_jax.errors import UserError
from pit_jax.runtime import processes

NAME = "owner.lock"
BEAT = 10.0  # seconds between two signs of life
LEASE = 60.0
_POLL = 0.5
_REQUEST = 60.0  # seconds that a bucket may take to answer
# Of file systems that have no hard links.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


class Held(NamedTuple):
    """Holds a lock as it was read.

    Attributes:
      record: its content.
      sign: what differs after the holder's next sign of life.
    """

    record: bytes
    sign: Any


class Place(Protocol):
    """Says what a lock asks of where it is kept."""

    def read(self) -> Held | None:
        """Returns the lock, None if there is none."""

    def swap(self, held: Held | None, record: bytes | None) -> bool:
        """Puts a record, or nothing, in the place of what was read; False if that has changed."""

    def touch(self, held: Held) -> None:
        """Gives a sign of life."""


class OnDisk:
    """Keeps a lock in a file on a local or a network's disk."""

    def __init__(self, path: str | os.PathLike[str]):
        self._path = pathlib.Path(path)

    def read(self) -> Held | None:
        # Opening it makes NFS ask the server, as os.stat does not.
        with contextlib.suppress(FileNotFoundError), open(self._path, "rb") as file:
            return Held(file.read(), os.fstat(file.fileno()).st_mtime_ns)
        if self._path.is_symlink():
            raise UserError(f"{self._path}: is a link to nothing, expected a lock; delete it")
        return None

    def swap(self, held: Held | None, record: bytes | None) -> bool:
        scratch = files.scratch_of(self._path)
        try:
            if record is not None:
                with open(files.new(scratch), "wb") as file:
                    file.write(record)
                    file.flush()
                    os.fsync(file.fileno())
            return self._replace(held, scratch, record)
        finally:
            scratch.unlink(missing_ok=True)

    def _replace(self, held: Held | None, scratch: pathlib.Path, record: bytes | None) -> bool:
        if held is None:
            return record is not None and self._link(scratch, record)
        try:
            file = open(self._path, "rb+")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            return False
        with file:
            with contextlib.suppress(OSError):  # one at a time, of those that have read one lock
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                same = os.path.samestat(os.fstat(file.fileno()), os.stat(self._path))
            except FileNotFoundError:
                return False
            if not same or file.read() != held.record:
                return False
            if record is None:
                self._path.unlink()
            else:
                os.replace(scratch, self._path)
        return True

    def _link(self, scratch: pathlib.Path, record: bytes) -> bool:
        try:
            os.link(scratch, self._path)
        except FileExistsError:
            return os.stat(scratch).st_nlink == 2  # NFS may have done it when first asked
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            try:
                with open(files.new(self._path), "wb") as file:
                    file.write(record)
            except FileExistsError:
                return False
        return True

    def touch(self, held: Held) -> None:
        del held
        os.utime(self._path)


class InBucket:
    """Keeps a lock in an object of a bucket."""

    def __init__(self, path: str):
        folder, _, self._name = path.rpartition("/")
        self._store = open_store(f"{folder}/")

    def read(self) -> Held | None:
        found = self._store.read(self._name).result(timeout=_REQUEST)
        return Held(found.value, found.stamp.generation) if found.state == "value" else None

    def swap(self, held: Held | None, record: bytes | None) -> bool:
        if held is None:
            found = self._store.read(self._name).result(timeout=_REQUEST)
            if found.state == "value":
                return False
            generation = found.stamp.generation
        else:
            generation = held.sign
        stamp = self._store.write(self._name, record, if_equal=generation).result(timeout=_REQUEST)
        return stamp.generation != b""

    def touch(self, held: Held) -> None:
        self.swap(held, held.record)


def open_store(folder: str) -> Any:
    """Opens a folder of a bucket as a key-value store of TensorStore's."""
    import tensorstore

    return tensorstore.KvStore.open(folder).result(timeout=_REQUEST)


class Owner:
    """Has a directory, or a file to write, to itself from `with owner:` on.

    Args:
      owned: what messages call it.
      command: what has it, which others are told.
      lock: where the lock is; by default `owner.lock` in `owned`. Its folder is made if missing.
      other: the setting that names another one.
      patience: seconds to wait for a holder that is alive.

    Raises (when it is entered):
      UserError: if another process has it, which is named, or the lock can't be written.
    """

    def __init__(
        self,
        owned: str | os.PathLike[str],
        command: str,
        lock: str | os.PathLike[str] = "",
        other: str = "MODEL_DIR",
        patience: float = 0.0,
    ):
        self._owned, self._other, self._patience = os.fspath(owned), other, patience
        self._lock = os.fspath(lock) or os.path.join(self._owned, NAME)
        me = {"command": command, **_this_process(), "token": secrets.token_hex(8)}
        me["since"] = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        self._record = json.dumps(me).encode() + b"\n"
        self._place: Place | None = None
        self._made: list[pathlib.Path] = []
        self._ended = threading.Event()

    def __enter__(self) -> Owner:
        problem = ""
        if processes.is_first():
            try:
                with files.reported(self._lock, f"{self._other}: can't write {self._owned}"):
                    self._take()
            except UserError as error:
                problem = str(error)
        if processes.any_process(bool(problem)):
            raise UserError(problem or f"{self._owned}: the first process says who has it")
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def release(self) -> None:
        """Lets the directory go, if this process has it; another thread may call this too."""
        place, self._place = self._place, None
        if place is None:
            return
        self._ended.set()
        errors.leaving.remove(self.release)
        with contextlib.suppress(Exception):  # a lock that stays is one of a dead process
            if (held := place.read()) is not None and held.record == self._record:
                place.swap(held, None)
            for folder in reversed(self._made):  # of a command that was refused
                folder.rmdir()

    def _take(self) -> None:
        place = self._make_place()
        watched: dict[bytes, tuple[Any, float]] = {}
        waits_until = time.monotonic() + self._patience
        while True:
            held = place.read()
            if held is None or self._is_over(held, watched, waits_until):
                if not place.swap(held, self._record):
                    continue
                if held is not None:
                    print(f"{self._owned}: taken over from {_who(held)}, which has ended")
                break
            time.sleep(_POLL)
        self._place = place
        errors.leaving.append(self.release)
        if os.path.basename(self._lock) == NAME:
            files.sweep(os.path.dirname(self._lock))
        threading.Thread(target=self._live, args=(place,), name="owner", daemon=True).start()

    def _make_place(self) -> Place:
        if not files.is_local(self._lock):
            return InBucket(self._lock)
        folder = pathlib.Path(self._lock).parent
        self._made = [each for each in (*reversed(folder.parents), folder) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        return OnDisk(self._lock)

    def _is_over(self, held: Held, watched: dict, waits_until: float) -> bool:
        """Whether the holder is dead; refuses one that is alive, and has to be asked again else."""
        who, now = _read(held), time.monotonic()
        if who.get("machine") == _this_process()["machine"]:
            started = _started(who.get("pid"))
            if started is None or started != who.get("started"):
                return True
        else:
            if held.record not in watched:
                watched[held.record] = held.sign, now
                if not self._patience:
                    print(
                        f"{self._owned}: {_who(held)} has it; waiting up to {LEASE:.0f} s for "
                        "a sign of life",
                        file=sys.stderr,
                        flush=True,
                    )
            sign, since = watched[held.record]
            if held.sign == sign:
                return now - since >= LEASE
        if now >= waits_until:
            raise UserError(
                f"{self._owned}: {_who(held)} writes to it; end that or wait for it, or use "
                f"another {self._other}"
            )
        return False

    def _live(self, place: Place) -> None:
        while not self._ended.wait(BEAT):
            try:
                held = place.read()
                if held is not None and held.record == self._record:
                    place.touch(held)
                    continue
            except Exception:  # a network that is down for a while
                continue
            if not self._ended.is_set():
                by = f"{_who(held)} has taken it over" if held else "its lock was deleted"
                print(f"pit_jax: {self._owned}: {by}; ended", file=sys.stderr, flush=True)
                os._exit(2)


def _this_process() -> dict[str, Any]:
    """Says which process this is, of which machine since its start, in which space of numbers."""
    machine = socket.gethostname()
    with contextlib.suppress(OSError):
        machine += " " + pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine += " " + os.readlink("/proc/self/ns/pid")
    pid = os.getpid()
    return {"host": socket.gethostname(), "machine": machine, "pid": pid, "started": _started(pid)}


def _started(pid: Any) -> str | None:
    """When a process of this machine started, as /proc has it; None if there is none any more."""
    if not isinstance(pid, int):
        return None
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        if pathlib.Path("/proc/self/stat").exists():
            return None
    with contextlib.suppress(ProcessLookupError):
        with contextlib.suppress(PermissionError):
            os.kill(pid, 0)
        return ""
    return None


def _read(held: Held) -> dict[str, Any]:
    try:
        found = json.loads(held.record)
    except (ValueError, RecursionError):  # half of one, where a file system has no hard links
        found = None
    return found if isinstance(found, dict) else {}


def _who(held: Held) -> str:
    who = _read(held)
    if "pid" not in who:
        return "a process that is not known"
    return (
        f"`{who.get('command')}` of process {who['pid']} on {who.get('host')}, started "
        f"{who.get('since')},"
    )
