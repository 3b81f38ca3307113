"""Runs the command line: `python -m pit_jax COMMAND`."""

import sys

from pit_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
