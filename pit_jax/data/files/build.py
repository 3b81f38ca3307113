"""Runs `tfds build` for this package's builders: `python -m pit_jax.data.files.build NAME …`.

It takes the flags of `tfds build`, with `--imports` set already. The command `tfds` itself needs
Apache Beam and mlcroissant to start, as of TFDS 4.9.10; this command doesn't. A user's mistake
prints a single line and ends with exit status 2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pit_jax.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Builds what `argv`, or else the command line, asks for, and returns the exit status."""
    from tensorflow_datasets.scripts.cli import build, cli_utils

    from pit_jax.data.files import builders

    parse = cli_utils.make_flags_parser(build.Args, description=__doc__ or "")
    given = sys.argv[1:] if argv is None else list(argv)
    args = parse(["build", f"--imports={builders.__name__}", *given])
    try:
        _check([*args.positional_datasets, *args.datasets], builders.BUILDERS)
        args.execute()
    except UserError as error:
        print(f"pit_jax.data.files.build: {error}", file=sys.stderr)
        return 2
    return 0


def _check(datasets: Sequence[str], builders: dict) -> None:
    if not datasets:
        raise UserError(f"got no dataset, expected one of {', '.join(builders)}")
    for dataset in datasets:
        name, _, config = dataset.partition(":")[0].partition("/")
        if name not in builders:
            raise UserError(f"got dataset {name!r}, expected one of {', '.join(builders)}")
        configs = builders[name].builder_configs
        if config and config not in configs:
            raise UserError(f"{name}: got config {config!r}, expected one of {', '.join(configs)}")


if __name__ == "__main__":
    sys.exit(main())
