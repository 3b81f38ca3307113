"""Runs the command line: `python -m pit_jax COMMAND`."""

import sys

from pit_jax import errors, huge_pages


def main() -> int:
    """Runs the command; a signal ends it with a line, also in the seconds that imports take."""
    huge_pages.ask()  # before there is much in memory
    errors.end_at_signals()
    from pit_jax import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
