"""`python -m pit_jax COMMAND`: the command line."""

import sys

from pit_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
