"""Runs the command line: `python -m pit_jax COMMAND`."""

import sys

from pit_jax import huge_pages


def start() -> int:
    """Runs a command and returns its exit status, see `cli.main`."""
    huge_pages.ask()  # before there is much in memory
    from pit_jax.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(start())
