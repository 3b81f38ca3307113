"""Reads what `evaluate` takes to have people judge, writes what they need, and reports on it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from etils import epath

from pit_jax import checked, command_flags, files
from pit_jax.errors import UserError, quieten

EXAMPLE = (
    "  python -m pit_jax evaluate --gin_file=gin/runs/quickstart.gin --people=people\n"
    "  python -m pit_jax evaluate --people=people --verdicts ana.csv ben.csv"
)
_KEY, _PAGE, _SHEET = "key.json", "page.html", "sheet.csv"


def add_flags(command: argparse.ArgumentParser) -> None:
    """Adds the flags of both steps."""
    add = command.add_argument_group(
        "people as judges",
        "Without --verdicts, writes page.html to the folder, on which people judge blind in any\n"
        "browser; sheet.csv, the same for a spreadsheet; and key.json, which says what stands\n"
        "behind A and B: keep it from them. With --verdicts, reports on what they have judged.",
    ).add_argument
    add("--people", metavar="DIR", help="the folder of page, sheet, key and report")
    add(
        "--responses",
        nargs=2,
        metavar="FILE",
        help="compare the responses of two files, JSONL of {prompt, response}, and not a run's; "
        "takes no gin file, but without --people, where the judge of the run compares them",
    )
    add("--question", metavar="TEXT", help="what people are asked (Which response is better?)")
    add("--no_ties", action="store_true", help="one of the two has to be preferred")
    add("--seed", type=int, metavar="N", help="of the order of comparisons, and of A and B (0)")
    add(
        "--verdicts",
        nargs="+",
        metavar="FILE",
        help="what two people or more have judged, a file of each; takes no gin file; "
        "--on_error=skip leaves out what one of them hasn't judged",
    )


def without_run(options: argparse.Namespace, flags: Sequence[tuple[str, str]]) -> bool:
    """Does what needs no run: writes what compares two files, or reports on verdicts.

    Returns:
      whether that was asked for.

    Raises:
      UserError: for flags that don't go together, and for files that are wrong.
    """
    given = (options.question, options.no_ties or None, options.seed)
    asking = any(value is not None for value in given)
    if not options.people:
        if options.verdicts or asking:
            raise UserError("--question, --no_ties, --seed, --verdicts: expected --people=DIR too")
        return False
    if options.compare is not None or options.generations:
        raise UserError("--people takes no --compare or --generations; two files are --responses")
    if options.verdicts and (asking or options.responses):
        raise UserError("--verdicts takes no --responses, --question, --no_ties or --seed")
    if not options.verdicts:
        _check_new(options)
    if not (options.verdicts or options.responses):
        return False
    if options.gin_file or flags or options.distributed:
        which = "--verdicts" if options.verdicts else "--responses"
        raise UserError(f"{which} takes no gin file, binding or --distributed")
    quieten()
    (_report if options.verdicts else _ask_of_files)(options)
    return True


def ask(run, evaluation, options) -> None:
    """Writes what people need to judge a run's responses."""
    from pit_jax import commands
    from pit_jax.evaluation import about, people

    if evaluation.judge:
        raise UserError("--people: EvaluationConfig.judge names another judge, expected None")
    run.check_data()
    print("sampling …", flush=True)
    sides = people.of_run(run, evaluation)
    subjects = commands.subjects(evaluation)
    del subjects["judge"]
    facts = {
        "title": f"PIT on {run.config.dataset.name}, judged by people",
        "description": f"The {evaluation.split} split; seed {run.config.seed}.",
        "seed": run.config.seed,
        "subjects": subjects,
        **about.facts(run),
        "config_text": options.operative,
    }
    _write(options, sides, facts)


def _ask_of_files(options) -> None:
    from pit_jax.evaluation import generations, people

    paths = [checked.expand(path) for path in options.responses]
    rows, notes = generations.paired(paths, options.on_error)
    for line in notes:
        print(line)
    first, second = generations.names_of(paths)
    row = {"name": f"{first} vs {second}", "first": "system", "second": "system"}
    prompts, *said = zip(*rows)
    sides = [people.Sides(row, prompts, said[0], said[1], groups=prompts)]
    about = {"title": f"{first} and {second}, judged by people", "warnings": notes}
    _write(options, sides, about)


def _check_new(options) -> None:
    """Refuses a folder in which people may have been asked before, or which can't be written."""
    if options.output:
        raise UserError("--output is of the report, which --verdicts makes; --people has the rest")
    files.check_folder(options.people, "--people")
    path = epath.Path(options.people) / _KEY
    if path.exists():
        raise UserError(
            f"--people: {path} is there already, without which no verdict can be read; expected "
            "another folder"
        )
    if options.seed is not None and options.seed < 0:
        raise UserError(f"--seed: got {options.seed}, expected 0 or more")


def _write(options, sides, facts: dict[str, Any]) -> None:
    from pit_jax.evaluation import people, verdict_files
    from pit_jax.report import people as page
    from pit_jax.runtime import processes

    facts["asked_by"] = command_flags.command_line(options.argv)
    question = options.question or people.QUESTION
    key = people.ask(sides, question, not options.no_ties, options.seed or 0, facts)
    count, alike = len(key.asked), len(key.items) - len(key.asked)
    print(f"{count:,} comparisons; {alike:,} more are of equal responses, which tie")
    if options.dry_run or not processes.is_first():
        return
    folder = epath.Path(options.people)
    shown = [item.shown for item in key.asked]
    files.write_whole(folder / _PAGE, page.to_html(key))
    files.write_whole(folder / _SHEET, verdict_files.empty(key.page, shown))
    files.write_whole(folder / _KEY, people.to_json(key))
    print(f"for two people or more: {folder / _PAGE}, or {folder / _SHEET} for a spreadsheet")
    print(f"not for them: {folder / _KEY}, which says what stands behind A and B")


def _report(options) -> None:
    from pit_jax import commands
    from pit_jax.evaluation import people
    from pit_jax.report import cautions
    from pit_jax.report import write as report

    output = options.output or options.people
    commands.check_combined(output, "--output" if options.output else "--people")
    files.check_folder(output, "--output" if options.output else "--people")
    key = people.read_key(epath.Path(options.people) / _KEY)
    sheets = people.read_sheets(key, [checked.expand(path) for path in options.verdicts])
    if options.on_error == "stop":
        people.check_whole(key, sheets)
    results = people.results(key, sheets, key.about.get("seed", 0))
    results["warnings"] += cautions.few_prompts(results)
    asked_by = results.pop("asked_by", "")
    results["command"] = "\n".join([asked_by, command_flags.command_line(options.argv)]).strip()
    print(report.format_summary(results))
    if not options.dry_run:
        paths = report.write_report(results, output)
        print(f"report: {paths['html']}")
