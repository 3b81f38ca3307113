"""Reads the command line's flags and starts the command; `bindings` reads gin files.

python -m pit_jax COMMAND --gin_file=FILE [--gin_file=…] [--gin.NAME=VALUE …]
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from pit_jax import __version__, bindings, checked, command_flags, files, people, serving, sweep
from pit_jax.errors import Interrupted, NotFiniteError, UserError, quieten

_EXAMPLES = {
    "run": ("python -m pit_jax run --gin_file=gin/runs/quickstart.gin --gin.MODEL_DIR=runs/mine"),
    "data": (
        "python -m pit_jax data --gin_file=gin/runs/preferences.gin "
        "--gin.PREFERENCES_PATH=mine.jsonl --examples=2"
    ),
    "plan": "python -m pit_jax plan --gin_file=gin/runs/quickstart.gin --topology=v4-8",
    "train": "python -m pit_jax train --gin_file=gin/runs/quickstart.gin --gin.STAGE=rm_gap",
    "convert": (
        "python -m pit_jax convert --from=hf --input=HuggingFaceTB/SmolLM2-135M-Instruct "
        "--output=base\n"
        "  python -m pit_jax convert --gin_file=gin/runs/quickstart.gin --gin.STAGE=sft_pit "
        "--to=t5x --output=exported"
    ),
    "improve": (
        "python -m pit_jax improve --gin_file=gin/runs/quickstart.gin --input=prompts.jsonl "
        "--output=improved.jsonl --gin.ImproveConfig.iterations=3\n"
        "  python -m pit_jax improve --exported=exported --endpoint=http://localhost:8000/v1 "
        "--model=pit --input=answers.jsonl --output=improved.jsonl"
    ),
    "evaluate": (
        "python -m pit_jax evaluate --gin_file=gin/runs/quickstart.gin "
        "--gin.EvaluationConfig.split=dev\n"
        "  python -m pit_jax evaluate --gin_file=gin/runs/quickstart.gin "
        "--transfer=gin/tasks/drafts_short.gin\n"
        "  python -m pit_jax evaluate --compare runs/seed0 runs/seed1 --output=runs/seeds\n"
        f"{people.EXAMPLE}"
    ),
    "sweep": (
        "python -m pit_jax sweep --gin_file=gin/runs/quickstart.gin --gin.MODEL_DIR=runs/sweep "
        "--seeds=0,1,2 --vary='weak:rl_pit/PPOConfig.beta=0.02' --dry_run\n"
        "  python -m pit_jax sweep --gin_file=gin/runs/paper_tables.gin --seeds=0,1,2"
    ),
}
_SUMMARIES = {
    "run": "run a whole pipeline, stage after stage, then evaluate it and write the report",
    "data": "show what became of every example: counts, lengths, padding, tokens; train nothing",
    "plan": "compile a run for TPUs or GPUs that aren't there: memory, disk, time; no data needed",
    "train": "train one stage, the one that STAGE names",
    "convert": "bring a base model in, or write the model of the stage that STAGE names, or all "
    "that improve needs, for another framework",
    "improve": "improve responses: JSONL of {prompt, response?} in, every iteration out",
    "evaluate": "judge, table and plot the models of a run, or saved generations; combine the "
    "reports of several seeds",
    "sweep": "run variations and seeds of a run, sharing the stages that are the same; say first "
    "what it costs",
}
# What goes wrong outside the program, such as a full disk.
_OUTSIDE = [
    getattr(errno, name)
    for name in (
        *("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EFBIG", "EIO", "ESTALE"),
        *("ENOTDIR", "EISDIR", "ENAMETOOLONG", "ELOOP"),
    )
]
_ON_DEVICES = ("run", "train", "convert", "improve", "evaluate", "sweep")
_SEVERAL_HOSTS = """
several hosts:
  --distributed joins the processes of all hosts; each is given the same command. On TPU pods they
  find each other. Processes that are started by hand need these environment variables:
    PIT_JAX_COORDINATOR     HOST:PORT, a free port of the first process's host
    PIT_JAX_PROCESS_COUNT   how many there are
    PIT_JAX_PROCESS_INDEX   which one this is, from 0
  The first process prints and writes. Hosts that share no disk need MODEL_DIR in a bucket,
  gs://BUCKET/FOLDER. A process that dies ends the others within 30 s, with status 1 and a line
  that names it; only on a TPU pod, the first one's death ends them with a stack of JAX's. For
  that, each one connects to a free port of the first one's host. All have to join within 300 s.

signals:
  After SIGTERM or SIGINT (^C), a stage in training finishes its step, writes a checkpoint and ends
  with exit status 143 or 130; at any other time the process ends at once, with the same status.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
      the exit status: 0, 2 for a user's mistake, 1 when training broke off or another process of
      the run died, 143 or 130 when it was ended by SIGTERM or SIGINT, 141 when nobody reads what it
      prints any more.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    arguments, flags = bindings.take_out(argv)
    options = _parsed(arguments)
    options.argv = argv  # a report says how it was made
    status = _status(options, arguments, flags)
    if status and getattr(options, "distributed", False) and _joined():
        from pit_jax.runtime import processes

        # At once: the other processes may wait for this one, and its end would wait for them.
        processes.leave(status)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Refuses a flag without a value, as of a shell's variable that isn't set."""
    last = ""
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if not argument or (flag.startswith("--") and equals and not value):
            flag = flag or last
            raise UserError(f"{flag}: got no value, expected {flag}=VALUE")
        last = flag if flag.startswith("--") else last


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of 0 or more")
    return int(text)


def _joined() -> bool:
    import jax

    return jax.distributed.is_initialized()


def _status(
    options: argparse.Namespace, arguments: Sequence[str], flags: list[tuple[str, str]]
) -> int:
    try:
        _refuse_empty(arguments)
        status = _dispatch(options, flags)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # A reader such as `head` has seen enough; what Python still holds for it goes nowhere.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except UserError as error:
        print(f"pit_jax {options.command}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in _OUTSIDE:
            raise
        where = f": {error.filename}" if error.filename else ""  # of our files it is always known
        print(f"pit_jax {options.command}: {error.strerror}{where}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"pit_jax {options.command}: out of memory: {error}", file=sys.stderr)
        return 2
    except NotFiniteError as error:
        print(f"pit_jax {options.command}: {error}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.number
    except KeyboardInterrupt:  # of a caller that catches no signals
        print("interrupted", file=sys.stderr)
        return 130
    except Exception:
        if not getattr(options, "distributed", False):
            raise
        from pit_jax.runtime import processes

        if line := processes.lost():  # which broke a computation together
            print(line, file=sys.stderr)
        else:
            traceback.print_exc()
        return 1


class _Parser(argparse.ArgumentParser):
    """Makes one line of a mistake."""

    def error(self, message: str):
        self.exit(2, f"{self.prog.removeprefix('python -m ')}: {message}; see --help\n")


def _parsed(arguments: list[str]) -> argparse.Namespace:
    """Parses flags, and names the one that may have been meant by one that isn't there."""
    parser, commands = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        command = commands[options.command]
        typed = "--" + unknown[0].partition("=")[0].lstrip("-").replace("-", "_")
        close = difflib.get_close_matches(typed, command._option_string_actions, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        if typed == "--gin_bindings":
            hint = "; write --gin.NAME=VALUE"
        command.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    paths = ("input", "output", "exported", "generations", "save", "chat_template", "people")
    for name in (*paths, "base", "with_base"):
        if isinstance(path := getattr(options, name, None), str):
            setattr(options, name, checked.expand(path))
    return options


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(
        prog="python -m pit_jax",
        description="PIT: language models that implicitly learn self-improvement.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pit_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, summary in _SUMMARIES.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=(_SEVERAL_HOSTS if name in _ON_DEVICES else "")
            + {"improve": serving.IMPROVE, "sweep": sweep.SWEEP}.get(name, "")
            + f"\nexample:\n  {_EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_argument(
            "--gin_file", action="append", default=[], metavar="FILE", help="gin file; repeatable"
        )
        command.add_argument(
            "--gin_search_paths", default="", metavar="DIRS", help="comma-separated, for includes"
        )
        # Taken out by bindings.take_out before parsing; listed here for --help.
        command.add_argument(
            "--gin.NAME", dest="binding", metavar="VALUE", help="override a gin binding or macro"
        )
        if name != "plan":
            command.add_argument(
                "--dry_run",
                action="store_true",
                help="resolve the config, count the data, show shapes, memory and every setting; "
                "write nothing",
            )
        if name in ("run", "train"):
            command.add_argument(
                "--profile",
                nargs="?",
                const="10:12",
                metavar="FIRST:LAST",
                help="trace these steps of each stage, 10:12 by default, into its folder",
            )
            command.add_argument(
                "--allow_change",
                action="store_true",
                help="let a stage that isn't complete go on with a learning rate or clip_norm that "
                "is lower now; the report says so",
            )
        if name in _ON_DEVICES:
            command.add_argument(
                "--distributed",
                action="store_true",
                help="join the processes of several hosts; see below",
            )
        if name == "data":
            command.add_argument(
                "--examples", type=_count, default=0, metavar="N", help="rows to show of each task"
            )
            command.add_argument("--json", action="store_true", help="print JSON")
            command.add_argument("--output", help="folder to write data.json and lengths.png to")
        if name == "plan":
            command_flags.add_plan(command)
        if name == "convert":
            command_flags.add_convert(command)
        if name == "improve":
            _add_improve(command)
        if name == "sweep":
            sweep.add_flags(command)
        if name == "evaluate":
            command_flags.add_evaluate(command)
            _add_on_error(command)
            people.add_flags(command)
        if name in ("evaluate", "sweep"):
            command_flags.add_transfer(command)
    return parser, commands.choices


def _add_on_error(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--on_error",
        choices=["stop", "skip"],
        default="stop",
        help="rows that can't be used: stop before anything is done, or skip them (stop)",
    )


def _add_improve(command: argparse.ArgumentParser) -> None:
    command.add_argument("--input", required=True, help="JSONL of {prompt, response?}")
    command.add_argument("--output", required=True, help="JSONL to write")
    _add_on_error(command)
    serving.add_flags(command)


def _dispatch(options: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    if getattr(options, "source", None):
        return _bring_in(options, flags)
    if options.command == "evaluate" and people.without_run(options, flags):
        return 0
    if getattr(options, "compare", None) is not None:
        return _compare(options, flags)
    if getattr(options, "exported", None) or getattr(options, "endpoint", None):
        quieten()
        serving.improve(options, flags)
        return 0
    if not options.gin_file:
        raise UserError("expected at least one --gin_file=FILE, such as gin/runs/quickstart.gin")
    quieten()
    if options.command == "sweep":
        return sweep.main(options, flags)
    from pit_jax import commands
    from pit_jax.evaluation import suite
    from pit_jax.run import run as runs
    from pit_jax.run.config import RunConfig
    from pit_jax.runtime import compilation, owner, processes, profiling, signals
    from pit_jax.runtime.partitioning import MeshConfig

    profile = getattr(options, "profile", None)
    window = None if profile is None else profiling.parse(profile)
    roots = (RunConfig, suite.EvaluationConfig)
    takes_stage = options.command in ("train", "convert")
    bindings.parse(options.gin_file, options.gin_search_paths, flags, roots, takes_stage)
    config, evaluation = map(bindings.configured, roots)
    options.operative = bindings.operative()
    if takes_stage:
        needed = getattr(options, "to", None) != "hf"
        options.stage = bindings.stage((stage.name for stage in config.stages), needed)
    _check_paths(config.model_dir, evaluation, options)
    if options.command == "plan":
        return commands.plan(config, options)
    if options.dry_run:
        run = runs.Run(config, keep=False)
        run.allow_change = getattr(options, "allow_change", False)
        commands.describe(run, evaluation, options)
        return 0
    if options.command == "data":  # needs no devices
        run = runs.Run(dataclasses.replace(config, mesh=MeshConfig()))
        commands.data(run, evaluation, options)
        return 0
    with contextlib.ExitStack() as stack:
        caught = stack.enter_context(signals.Signals())
        if options.distributed:
            processes.initialize()
        stack.enter_context(processes.one_voice())
        if options.command in ("run", "train"):
            stack.enter_context(owner.Owner(config.model_dir, options.command))
        if config.compilation_cache:
            compilation.keep(config.model_dir)
        run = runs.Run(config)
        run.signals, run.profile, run.config_text = caught, window, bindings.whole(roots)
        run.allow_change = getattr(options, "allow_change", False)
        asked = getattr(options, "people", None)
        work = people.ask if asked else getattr(commands, options.command)
        work(run, evaluation, options)
    return 0


def _check_paths(model_dir: str, evaluation: Any, options: argparse.Namespace) -> None:
    """Refuses, before any work, what can't be written, and a run that isn't there."""
    from pit_jax.run import checks

    flag = "save" if options.command == "plan" else "output"
    output = getattr(options, flag, None)
    if output and options.command != "improve":  # which writes a file
        files.check_folder(output, f"--{flag}")
    elif options.command in ("run", "train", "evaluate"):
        files.check_folder(model_dir, "MODEL_DIR")
    names: tuple[str, ...] = ()
    if options.command == "convert" and options.stage:
        names = (options.stage,)
    elif options.command in ("improve", "convert") or (
        options.command == "evaluate" and not (options.generations or options.responses)
    ):
        names = (evaluation.policy, evaluation.pit, evaluation.gap_model)
    if any("/" not in name for name in names):
        checks.check_there(model_dir)


def _bring_in(options: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    """Converts a model from elsewhere, for which no run is needed."""
    if not options.input:
        raise UserError("expected --input=MODEL, a Hugging Face folder, GGUF file or name")
    if options.gin_file or flags or options.dry_run:
        raise UserError(f"--from={options.source} takes no gin file, binding or --dry_run")
    files.check_folder(options.output, "--output")
    quieten()
    from pit_jax import commands
    from pit_jax.runtime import processes

    if options.distributed:
        processes.initialize()
    commands.bring_in(options)
    return 0


def _compare(options: argparse.Namespace, flags: list[tuple[str, str]]) -> int:
    """Combines the reports of runs, for which they alone are needed."""
    others = (options.gin_file, flags, options.generations, options.dry_run, options.distributed)
    if any(others) or options.transfer or options.responses:
        raise UserError(
            "--compare takes no gin file, binding, --generations, --transfer, --responses, "
            "--dry_run or --distributed"
        )
    paths = [path.strip() for listed in options.compare for path in listed.split(",")]
    options.compare = [checked.expand(path) for path in paths]
    if options.output:
        files.check_folder(options.output, "--output")
    from pit_jax import commands

    commands.compare(options)
    return 0
