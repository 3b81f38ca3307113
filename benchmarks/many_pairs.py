"""Shows what many preference pairs cost a host, and that all hosts see them in one order.

    python benchmarks/many_pairs.py --pairs=10000000 --folder=/tmp/many
    python benchmarks/many_pairs.py --pairs=10000 --hosts=1,2

It writes a file of tiny pairs into the folder, and for 1, 2 and 4 hosts, one after the other,
starts so many processes that share the folder as hosts share a run directory. Each of them joins
the others, reads the pairs, makes the rows of a task (the first of a folder writes them into
`data_cache`, the others map them), and puts the first, the middle and the last 200 batches of an
epoch on the mesh, where its device takes its rows. Of each process the phases' seconds and memory
are printed: VmHWM, the most that it held, with RssAnon and RssFile as they were when RssAnon was
largest, looked at every 50 ms. Mapped files (RssFile) are pages that the system may take back at
any time.

The rows that all hosts took are put together by their places in the batches and hashed; they have
to be equal for every number of hosts, else the exit status is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from memory import Peak, memory

T = TypeVar("T")

ROOT = pathlib.Path(__file__).resolve().parents[1]
WORDS = (
    *("write", "sort", "words", "and", "the", "with", "apple", "pear", "plum", "red", "blue"),
    *("cold", "warm", "stone", "river", "cloud", "tree", "bird"),
)
SHOWN = 200  # batches of each place of an epoch


def generate(path: pathlib.Path, pairs: int) -> None:
    """Writes pairs of 5 to 10 words a text, every prompt another."""
    draw = random.Random(0)
    with open(path, "w") as file:
        for number in range(pairs):
            x, good, bad = (" ".join(draw.choices(WORDS, k=draw.randint(4, 9))) for _ in range(3))
            record = {"prompt": f"{x} {number}", "chosen": f"{good} a", "rejected": f"{bad} b"}
            file.write(json.dumps(record) + "\n")


def host(options: argparse.Namespace) -> None:
    """Is one of the hosts; prints a line of JSON."""
    import jax

    from pit_jax.data.datasets import DatasetConfig
    from pit_jax.data.input_pipeline import InputPipeline
    from pit_jax.data.layouts import Lengths
    from pit_jax.data.vocabularies.load import load
    from pit_jax.runtime import processes
    from pit_jax.runtime.partitioning import MeshConfig, Partitioner

    phases: dict[str, list[float]] = {}
    peak = Peak(0.05)

    def timed(phase: str, work: Callable[[], T]) -> T:
        start = time.perf_counter(), time.process_time()
        found = work()
        ends = time.perf_counter(), time.process_time()
        phases[phase] = [b - a for a, b in zip(start, ends, strict=True)]
        print(f"{phase}: {phases[phase][0]:.1f} s", file=sys.stderr, flush=True)
        return found

    if processes.COUNT in os.environ:
        processes.initialize()
    mesh = Partitioner(MeshConfig())
    config = DatasetConfig("preferences", 0, -1, -1, path=str(options.folder / "pairs.jsonl"))
    vocabulary, lengths = load(options.vocabulary), Lengths(0, 0, 0)
    cache = options.folder / "data_cache"
    data = timed("read", lambda: InputPipeline(config, vocabulary, lengths, cache=cache))
    digest = timed("digest", lambda: data.digest)
    rows = timed("rows", lambda: data.num_rows(options.task, "train"))
    count = rows // options.batch
    starts = {"first": 0, "middle": count // 2, "last": max(0, count - SHOWN)}

    def taken() -> dict[str, list]:
        found: dict[str, list] = {}
        for place, start in starts.items():
            batches = data.batches(
                options.task, "train", options.batch, start_batch=start, num_epochs=1
            )
            for batch in itertools.islice(batches, SHOWN):
                found.setdefault(place, []).append(_own_rows(mesh.shard_batch(batch)))
        return found

    own = timed("600 batches", taken)
    said = {
        "rows": rows,
        "digest": digest,
        "phases": phases,
        "own": own,
        "index": jax.process_index(),
    }
    print(json.dumps({**said, "memory": {**peak.found, "VmHWM": memory()["VmHWM"]}}), flush=True)


def _own_rows(batch: dict[str, Any]) -> dict[int, str]:
    """Row of the batch -> a hash of all of its features, of the rows on this host's devices."""
    hashes: dict[int, Any] = {}
    for name in sorted(batch):
        for shard in batch[name].addressable_shards:
            begin = shard.index[0].start or 0
            for number, row in enumerate(np.asarray(shard.data), begin):
                hashes.setdefault(number, hashlib.sha256()).update(name.encode() + row.tobytes())
    return {number: found.hexdigest()[:16] for number, found in hashes.items()}


def hosts(options: argparse.Namespace, count: int) -> list[dict]:
    """Starts so many hosts and returns what each said."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        *(sys.executable, str(pathlib.Path(__file__).resolve()), "--as_host"),
        *(f"--folder={options.folder}", f"--task={options.task}", f"--batch={options.batch}"),
        f"--vocabulary={options.vocabulary}",
    ]
    started = []
    for index in range(count):
        names = ("COORDINATOR", "PROCESS_COUNT", "PROCESS_INDEX")
        joins = {
            f"PIT_JAX_{n}": str(v) for n, v in zip(names, (address, count, index), strict=True)
        }
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        environment |= joins if count > 1 else {}
        quiet = None if index == 0 else subprocess.DEVNULL
        with open(options.folder / f"said-{index}", "w") as said:
            started.append(subprocess.Popen(command, env=environment, stdout=said, stderr=quiet))
    if any(status for status in [process.wait() for process in started]):
        raise SystemExit(f"one of {count} hosts failed")
    found = [options.folder / f"said-{index}" for index in range(count)]
    return [json.loads(path.read_text().splitlines()[-1]) for path in found]


def together(said: Sequence[dict]) -> str:
    """A hash of the batches that the hosts' rows make."""
    found = hashlib.sha256(f"{said[0]['digest']} {said[0]['rows']}".encode())
    for place in ("first", "middle", "last"):
        for parts in zip(*(each["own"][place] for each in said), strict=True):
            rows = {int(number): digest for part in parts for number, digest in part.items()}
            if sorted(rows) != list(range(len(rows))) or len(rows) < sum(map(len, parts)):
                raise SystemExit(f"{place}: got the rows {sorted(rows)}, expected each once")
            found.update("".join(rows[number] for number in sorted(rows)).encode())
    return found.hexdigest()[:16]


def shown(count: int, said: Sequence[dict]) -> Iterator[str]:
    """Lines about each host."""
    for each in said:
        seconds = ", ".join(
            f"{k} {s:.1f} s ({c:.1f} s of a core)" for k, (s, c) in each["phases"].items()
        )
        sizes = ", ".join(f"{k} {v / 2**20:,.0f} MiB" for k, v in each["memory"].items())
        yield f"host {each['index'] + 1} of {count}: {seconds}; {sizes}"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--hosts", default="1,2,4", help="numbers of hosts")
    parser.add_argument("--folder", type=pathlib.Path, help="a new one, deleted afterwards")
    parser.add_argument("--task", default="sft_pit", help="whose rows are made")
    parser.add_argument("--batch", type=int, default=64, help="rows of a batch of all hosts")
    parser.add_argument("--vocabulary", default="bytes")
    parser.add_argument("--as_host", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.as_host:
        host(options)
        return
    options.folder = options.folder or pathlib.Path(tempfile.mkdtemp(), "pairs")
    if options.folder.exists():
        parser.error(f"--folder: {options.folder} is there, expected a new one, deleted afterwards")
    options.folder.mkdir(parents=True)
    try:
        start = time.perf_counter()
        generate(options.folder / "pairs.jsonl", options.pairs)
        size = (options.folder / "pairs.jsonl").stat().st_size / 1e6
        took = time.perf_counter() - start
        print(f"{options.pairs:,} pairs, {size:,.0f} MB, written in {took:.0f} s", flush=True)
        orders = {}
        for count in map(int, options.hosts.split(",")):
            said = hosts(options, count)
            print(*shown(count, said), sep="\n", flush=True)
            orders[count] = together(said)
        kept = sum(f.stat().st_size for f in (options.folder / "data_cache").rglob("*.bin"))
        print(f"{said[0]['rows']:,} rows of {options.task}, {kept / 1e6:,.0f} MB in data_cache")
        print(f"order of batches by hosts: {orders}")
        if len(set(orders.values())) > 1:
            raise SystemExit("got other batches on other numbers of hosts, expected the same")
    finally:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
