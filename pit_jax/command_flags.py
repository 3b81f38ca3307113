"""Adds the flags of the commands that have many of their own to the command line's parser."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence

_LINE = 100  # characters of a command's line in a report


def add_plan(command: argparse.ArgumentParser) -> None:
    """Adds what `plan` takes."""
    command.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="v4-128, 2xv5p-256, h100-1, l4-8, cpu, …",
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--explain", metavar="PROGRAM", help="all about some programs")
    command.add_argument("--save", metavar="DIR", help="write compiled programs as text")


def add_convert(command: argparse.ArgumentParser) -> None:
    """Adds what `convert` takes."""
    way = command.add_mutually_exclusive_group(required=True)
    way.add_argument(
        "--from",
        dest="source",
        choices=["hf", "peft"],
        help="hf: a Hugging Face model becomes a base model; peft: an adapter of PEFT becomes a "
        "stage, beside its base model; takes --input and no gin file",
    )
    way.add_argument(
        "--to",
        choices=["hf", "peft", "t5x"],
        help="what a stage's model becomes; hf: a folder that transformers loads, adapters merged, "
        "or without STAGE a directory of policy, PIT and gap model; peft: a folder with its "
        "adapters, which PEFT loads; t5x: a folder checkpoint_STEP",
    )
    command.add_argument(
        "--input",
        metavar="MODEL",
        help="with --from: a folder, GGUF file or name on the hub",
    )
    command.add_argument(
        "--base",
        default="",
        metavar="MODEL",
        help="with peft: the base model, a folder or a name on the hub; by default what the "
        "adapter says, or where the backbone has come from",
    )
    command.add_argument(
        "--with_base",
        default="",
        metavar="DIR",
        help="with --to=peft: write the base model too, with rows for ids that were added",
    )
    command.add_argument("--output", required=True, metavar="DIR", help="where to write it")
    command.add_argument(
        "--chat_template",
        default="none",
        metavar="NAME",
        help="with --from: what RunConfig.chat_template will be; none, tokenizer or a file",
    )
    command.add_argument(
        "--role",
        choices=["policy", "pit", "policy_reward", "gap_reward"],
        default="",
        help="with --from=hf: write ROLE.gin too, which makes it the base model of this role alone",
    )
    command.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        help="with --from of the computations (bfloat16), with --to of the weights (float32)",
    )


def add_evaluate(command: argparse.ArgumentParser) -> None:
    """Adds what `evaluate` takes."""
    command.add_argument("--generations", help="JSONL written by improve, to judge instead")
    command.add_argument(
        "--compare",
        nargs="+",
        metavar="DIR",
        help="combine the reports of these run directories, one for each seed, with spaces "
        "or commas between them: each seed's figures side by side, their mean, and its "
        "interval over seeds; takes no gin file",
    )
    command.add_argument("--output", help="folder of the report; the run's own by default")


def add_transfer(command: argparse.ArgumentParser) -> None:
    """Adds what takes a run to other data."""
    command.add_argument(
        "--transfer",
        nargs="+",
        default=[],
        metavar="FILE",
        help="gin files of other datasets, such as those of gin/tasks, or of other runs: "
        "how the run's PIT and R_PIT do there, as a table of the report",
    )


def command_line(argv: Sequence[str]) -> str:
    """Writes the command with these arguments as a shell takes it, over lines if it is long."""
    first, *others = ["python -m pit_jax", *map(_quoted, argv)]
    line = " ".join([first, *others])
    return line if len(line) <= _LINE else " \\\n  ".join([f"{first} {others[0]}", *others[1:]])


def _quoted(argument: str) -> str:
    """An argument, or its value, in the quotes that it needs; double ones around a gin string."""
    name, equals, value = argument.partition("=")
    if not (equals and re.fullmatch(r"--[\w./-]+", name)):
        name, equals, value = "", "", argument
    quoted = shlex.quote(value)
    if "'" in value and not re.search(r'["$`\\!\n]', value):
        quoted = f'"{value}"'
    return name + equals + quoted
