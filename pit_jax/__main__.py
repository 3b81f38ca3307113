"""Runs the command line: `python -m pit_jax COMMAND`."""

import sys

from pit_jax.cli import main
from pit_jax.runtime.host_memory import keep_freed

if __name__ == "__main__":
    keep_freed()
    sys.exit(main())
