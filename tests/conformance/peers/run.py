"""Asks the properties of other libraries, and makes a table of the answers.

Each peer is run by the Python of an environment of its own, which needs no pit_jax:

    python -m venv trl && trl/bin/pip install torch trl==1.12.0
    python -m venv tunix && tunix/bin/pip install google-tunix==0.1.7
    python -m venv easydel && easydel/bin/pip install torch pillow easydel==0.3.0
    trl/bin/python tests/conformance/peers/run.py --peer=trl --out=trl.json
    python tests/conformance/peers/run.py --peer=pit_jax --out=pit_jax.json
    python tests/conformance/peers/run.py --table pit_jax.json trl.json

A check calls the peer's own functions on tiny models and looks at what they do, for minutes on a
CPU. A check that breaks off counts as `not run`.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import pathlib
import sys
import traceback

from properties import PROPERTIES, Failed, NotRun, table

PEERS = ("pit_jax", "tunix", "easydel", "trl")


def answers(check) -> dict[str, tuple[str, str]]:
    """(status, reason) of each property that a check asks for."""
    name = check.__name__
    try:
        found = check()
    except Failed as failure:
        return {name: ("fail", str(failure))}
    except NotRun as reason:
        return {name: ("not run", str(reason))}
    except Exception as error:
        traceback.print_exc()
        return {name: ("not run", f"{type(error).__name__}: {str(error).splitlines()[0]}")}
    return found if isinstance(found, dict) else {name: ("pass", found)}


def ask(peer: str) -> dict:
    """Runs all checks of a peer."""
    module = importlib.import_module(f"on_{peer}")
    found: dict[str, tuple[str, str]] = {}
    for check in module.CHECKS:
        for name, answer in answers(check).items():
            print(peer, name, *answer, file=sys.stderr, flush=True)
            found[name] = answer
    return {
        "peer": peer,
        "version": module.version(),
        "date": datetime.date.today().isoformat(),
        "properties": {
            name: dict(zip(("status", "reason"), found.get(name, ("not run", ""))))
            for name in PROPERTIES
        },
    }


def main() -> None:
    """Runs one peer, or prints the table of several."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", choices=PEERS)
    parser.add_argument("--out", type=pathlib.Path, help="where the answers go, as JSON")
    parser.add_argument("--table", nargs="+", type=pathlib.Path, help="files of answers")
    arguments = parser.parse_args()
    if arguments.table:
        results = [json.loads(path.read_text()) for path in arguments.table]
        print(table(results))
        if arguments.out:
            arguments.out.write_text(json.dumps(results, indent=2) + "\n")
        return
    if not arguments.peer:
        parser.error("expected --peer or --table")
    result = ask(arguments.peer)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(table([result]))


if __name__ == "__main__":
    main()
