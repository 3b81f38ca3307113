"""Compares pit_jax's speed with that of its peers, side by side on the same machine.

    python benchmarks/peers.py
    python benchmarks/peers.py --python t5x=t5x/bin/python --python transformers=hf/bin/python \\
        --python trl=trl/bin/python --python tunix=tunix/bin/python --out=peers.json
    python benchmarks/peers.py --size=smollm2_135m --rounds=9

Each contestant is a process of its own interpreter, and only one of them works at a time: ours,
the peer, ours, the peer, and so on. Both have the same weights and the same tokens, and what they
make of them has to be equal. A rate is in tokens a second, and a figure is the median over rounds
of ours divided by the peer's, with the least and the largest. A peer that can't be imported is
absent. docs/performance.md says how each is installed and what the rows mean.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import peers_cases as cases
from peers_protocol import Absent, Failed, Worker

HERE = pathlib.Path(__file__).resolve().parent
WORKERS = {
    cases.OURS: "peers_ours.py",
    "t5x": "peers_t5x.py",
    "transformers": "peers_torch.py",
    "trl": "peers_torch.py",
    "tunix": "peers_tunix.py",
}
NEEDED = {"trl": "trl"}  # a module of the peer's own, where its worker serves another peer too
TOLERANCE = 2e-4  # of numbers, relative to the larger of 1 and theirs: float32 in another order
ALIKE = 0.98  # share of greedy tokens; where two logits are equal to rounding, rows part for good


# --- Arithmetic ----------------------------------------------------------------------------------


def spread(values: Iterable[float]) -> dict[str, float]:
    """Returns the median of numbers, the least and the largest."""
    values = sorted(values)
    return {"median": statistics.median(values), "least": values[0], "most": values[-1]}


def rate(answer: Mapping[str, Any]) -> float:
    """Returns the tokens a second of an answer to `go`."""
    return answer["tokens"] / answer["seconds"]


def summary(rounds: list[tuple[dict, dict]]) -> dict[str, Any]:
    """Makes the figures of a case.

    Args:
      rounds: of each round, what ours and the peer answered to `go`.

    Returns:
      `ratio`, of our rate to theirs, and `ours` and `theirs`, tokens a second: each a `spread`; and
      `phases`, of those that both have: our rate over theirs and both milliseconds for each 1,000
      tokens, as medians.
    """
    shared = rounds[0][0].get("phases", {}).keys() & rounds[0][1].get("phases", {}).keys()
    phases = {}
    for name in sorted(shared):
        pairs = [[answer["phases"][name] / answer["tokens"] for answer in pair] for pair in rounds]
        ours, theirs = (1e6 * statistics.median(column) for column in zip(*pairs))
        ratios = [their / max(our, 1e-12) for our, their in pairs]
        phases[name] = {"ratio": statistics.median(ratios), "ours": ours, "theirs": theirs}
    return {
        "ratio": spread(rate(ours) / rate(theirs) for ours, theirs in rounds),
        "ours": spread(rate(ours) for ours, _ in rounds),
        "theirs": spread(rate(theirs) for _, theirs in rounds),
        "phases": phases,
    }


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Compares what both made of the same weights and tokens.

    Returns:
      for each check that both have `difference` and `equal`: of numbers relative to the larger of 1
      and theirs, of tokens the share that differ.
    """
    found = {}
    for name in (name for name in ours if name in theirs):
        one, other = np.asarray(ours[name]), np.asarray(theirs[name])
        if one.shape != other.shape:
            found[name] = {"difference": float("inf"), "equal": False}
        elif one.ndim:
            apart = float(np.mean(one != other))
            found[name] = {"difference": apart, "equal": apart <= 1 - ALIKE}
        else:
            apart = float(abs(one - other) / max(1.0, abs(other)))
            found[name] = {"difference": apart, "equal": bool(apart <= TOLERANCE)}
    return found


def share_of_limit(
    tokens_per_second: float, about: Mapping[str, Any], limits: Mapping[str, float]
) -> tuple[float, str] | None:
    """Returns the share of the machine's limit that a rate reaches, and the limit's name.

    Training and PPO are held against the peak of float32 products, decoding against the bandwidth
    that reading weights and cache for each token takes.
    """
    for unit, limit in (("flops_per_token", "float32"), ("bytes_per_token", "bandwidth")):
        if unit in about and limit in limits:
            return tokens_per_second * about[unit] / limits[limit], limit
    return None


# --- Workers -------------------------------------------------------------------------------------


class Contestants:
    """Starts workers.

    Args:
      interpreters: of each contestant, the Python that runs its worker.
      folder: where weights and logs go.
    """

    def __init__(self, interpreters: Mapping[str, str], folder: pathlib.Path):
        self._interpreters, self._folder = interpreters, folder

    def start(self, name: str, label: str) -> Worker:
        """Starts a worker; `label` names its log. Raises as Worker does."""
        environment = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", **os.environ}
        environment |= {
            "TOKENIZERS_PARALLELISM": "false",
            "TQDM_DISABLE": "1",
            "HF_HUB_OFFLINE": "1",
        }
        if name == cases.OURS:  # this checkout's package, whichever is installed
            paths = [str(HERE.parent), environment.get("PYTHONPATH", "")]
            environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        command = [self._interpreters[name], str(HERE / WORKERS[name])]
        command += [NEEDED[name]] if name in NEEDED else []
        return Worker(name, command, environment, self._folder / f"{label}.log")

    def weights(self, case: cases.Case) -> dict[str, str]:
        """Writes the weights of a case's models, and returns their paths."""
        paths = {}
        for seed, model in enumerate(cases.models(case)):
            path = self._folder / f"{case.name}.{model}.npz"
            scalar = model in cases.SCALAR
            np.savez(path, **cases.weights(case.network, case.family, seed, scalar))
            paths[model] = str(path)
        return paths


def compare(
    case: cases.Case, contestants: Contestants, rounds: int, seconds: float
) -> dict[str, Any]:
    """Measures a case.

    Args:
      case: what is compared.
      contestants: starts its workers.
      rounds: how often both are measured.
      seconds: about how long one measurement takes; at least one step, whatever that takes.

    Returns:
      the case, `summary`'s figures, `checks` of `differences`, and what both said of themselves.

    Raises:
      Absent: if a contestant can't be imported.
      Failed: if one fails.
    """
    with contextlib.ExitStack() as stack:
        sides = []
        for side, name in (("theirs", case.peer), ("ours", cases.OURS)):
            worker = contestants.start(name, f"{case.name}.{side}")
            sides.insert(0, stack.enter_context(worker))
        paths = contestants.weights(case)
        stack.callback(lambda: [os.remove(path) for path in paths.values()])
        message = {"do": "prepare", "case": case.message(), "weights": paths}
        tasks = case.task, case.peer_task
        about = [side.ask(**message, task=task) for side, task in zip(sides, tasks)]
        times = []
        for side in sides:
            # Twice, since a step's own results may make it compile again.
            *_, once = (side.ask(do="go", times=1)["seconds"] for _ in range(2))
            times.append(max(1, round(seconds / once)))
        answers = [tuple(steady(side, n) for side, n in zip(sides, times)) for _ in range(rounds)]
        checks = differences(about[0].pop("checks"), about[1].pop("checks"))
        return {
            "case": case.message(),
            **summary(answers),
            "checks": checks,
            "about": dict(zip(("ours", "theirs"), about)),
            "versions": dict(zip(("ours", "theirs"), (side.versions for side in sides))),
            "rounds": answers,
        }


def steady(side: Worker, times: int) -> dict[str, Any]:
    """Measures a side once it works: after a pause the system first has to give it memory again."""
    side.ask(do="go", times=1)
    return side.ask(do="go", times=times)


def limits(contestants: Contestants, rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Measures what the machine does at its best, by XLA and, where it is there, by torch.

    Returns:
      by name the larger of their medians: `float32` and `bfloat16`, operations a second of matrix
      products, and `bandwidth`, bytes a second; and the medians of each contestant.
    """
    found = {}
    with contextlib.ExitStack() as stack:
        sides = {}
        for name in (cases.OURS, "transformers"):
            with contextlib.suppress(Absent):
                worker = contestants.start(name, f"machine.{name}")
                sides[name] = stack.enter_context(worker)
        for side in sides.values():
            side.ask(do="prepare", task="machine", case={}, weights={})
        answers = [
            {name: side.ask(do="go", times=1)["rates"] for name, side in sides.items()}
            for _ in range(rounds)
        ]
    for name in sides:
        found[name] = {
            what: statistics.median(answer[name][what] for answer in answers)
            for what in ("float32", "bfloat16", "bandwidth")
        }
    best = {what: max(of[what] for of in found.values()) for what in found[cases.OURS]}
    return best, found


# --- The table -----------------------------------------------------------------------------------

_COLUMNS = "{:<18} {:<22} {:>10} {:>10} {:>6} {:>13} {:>6} {:>6} {:>11}  {}"


def heading() -> str:
    """The table's first line."""
    names = ("what", "compared with", "ours tok/s", "theirs", "ratio", "range")
    return _COLUMNS.format(*names, "limit", "theirs", "compile s", "same results")


def lines(result: Mapping[str, Any], limits: Mapping[str, float]) -> list[str]:
    """Writes a result: a line of the table, and one for each phase."""
    case, ratio = cases.Case(**result["case"]), result["ratio"]
    peer = "fixed windows" if case.peer == cases.OURS else case.peer
    what = f"{case.what}, B={case.rows}"
    about = result["about"]["ours"]
    shares = []
    for side in ("ours", "theirs"):
        share = share_of_limit(result[side]["median"], about, limits)
        shares.append(f"{share[0]:.0%}" if share and case.peer != cases.OURS else "")
    compiled = "/".join(f"{about['compile_seconds']:.0f}" for about in result["about"].values())
    worst = max((check["difference"] for check in result["checks"].values()), default=None)
    same = "" if worst is None else f"{'yes' if is_equal(result) else 'NO'}, within {worst:.1e}"
    span = f"{ratio['least']:.2f} to {ratio['most']:.2f}"
    rates = (f"{result[side]['median']:,.0f}" for side in ("ours", "theirs"))
    written = [
        _COLUMNS.format(
            what, f"{peer}, {case.prompt}+{case.response}", *rates, f"{ratio['median']:.2f}", span,
            *shares, compiled, same,
        ).rstrip()
    ]  # fmt: skip
    for name, phase in result["phases"].items():
        both = (f"{phase[side]:.1f}" for side in ("ours", "theirs"))
        row = _COLUMNS.format(f"  {name}", "ms per 1,000 tokens", *both, f"{phase['ratio']:.2f}",
                              *[""] * 5)  # fmt: skip
        written.append(row.rstrip())
    return written


def is_equal(result: Mapping[str, Any]) -> bool:
    """Returns whether all checks of a result hold."""
    return all(check["equal"] for check in result["checks"].values())


# --- The command ---------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help=f"the interpreter of one of {', '.join(WORKERS)}; this one for those not named",
    )
    parser.add_argument("--size", default="small", choices=[*cases.SIZES, "all"])
    parser.add_argument("--case", action="append", choices=[case.name for case in cases.CASES])
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a measurement, default 2")
    parser.add_argument("--out", type=pathlib.Path, help="where everything goes, as JSON")
    parser.add_argument("--logs", type=pathlib.Path, help="folder for what the workers print")
    options = parser.parse_args(arguments)
    options.interpreters = dict.fromkeys(WORKERS, sys.executable)
    for text in options.python:
        name, _, path = text.partition("=")
        if name not in WORKERS or not os.access(path, os.X_OK):
            parser.error(f"--python: got {text!r}, expected {'|'.join(WORKERS)}=an interpreter")
        options.interpreters[name] = path
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds: expected at least 1, and more than 0")
    return options


def chosen(options: argparse.Namespace) -> list[cases.Case]:
    """The cases that are named, or all of a size."""
    if options.case:
        return [case for case in cases.CASES if case.name in options.case]
    return [case for case in cases.CASES if options.size in (case.size, "all")]


def main() -> int:
    """Measures, prints and writes; returns 1 if results differ or a contestant fails."""
    options = parse_arguments()
    results: list[dict[str, Any]] = []
    absent: dict[str, str] = {}
    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        folder = options.logs or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        contestants = Contestants(options.interpreters, folder)
        best, measured = limits(contestants, options.rounds)
        cores = len(os.sched_getaffinity(0))
        print(
            f"{cores} cores, at best {best['float32'] / 1e9:,.0f} GFLOP/s in float32, "
            f"{best['bfloat16'] / 1e9:,.0f} of bfloat16, {best['bandwidth'] / 1e9:.1f} GB/s\n"
            f"{heading()}",
            flush=True,
        )
        for case in chosen(options):
            if case.peer in absent:
                continue
            try:
                result = compare(case, contestants, options.rounds, options.seconds)
            except Absent as absence:
                absent[case.peer] = str(absence)
                print(f"absent: {absence}", flush=True)
            except Failed as failure:
                failed[case.name] = str(failure)
                print(f"{case.name}: {failure}", flush=True)
            else:
                results.append(result)
                print("\n".join(lines(result, best)), flush=True)
    if options.out:
        machine = {"cores": cores, "processor": platform.processor(), "best": best}
        content = {
            "date": datetime.date.today().isoformat(),
            "machine": machine | {"measured": measured},
            "results": results,
            "absent": absent,
            "failed": failed,
        }
        options.out.write_text(json.dumps(content, indent=1) + "\n")
    return int(bool(failed) or not all(map(is_equal, results)))


if __name__ == "__main__":
    sys.exit(main())
