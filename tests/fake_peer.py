"""Stands for a worker of benchmarks/peers.py: `rows` of a case say what it does."""

from __future__ import annotations

import os
import sys

from peers_protocol import Prepared, serve

if missing := os.environ.get("FAKE_MISSING"):
    __import__(missing)
SLOW = float(os.environ["FAKE_STEP"])


def train(case, weights):
    if case["rows"] == 0:
        raise ValueError("no rows\nin this case")
    assert all(os.path.getsize(path) for path in weights.values())

    def go(times):
        if case["rows"] == 13:
            sys.exit("the last words")
        with open(os.environ["FAKE_RECORD"], "a") as file:
            file.write(f"{os.environ['FAKE_NAME']}{times} ")
        print("what a library prints")
        return {"seconds": SLOW * times, "tokens": 10 * times, "phases": {"update": SLOW}}

    checks = {"loss": 2.0, "tokens": [[1, 2], [3, 4]]}
    return Prepared(go, checks, compile_seconds=1.0, flops_per_token=5.0)


serve({"train": train}, {"fake": "1"})
