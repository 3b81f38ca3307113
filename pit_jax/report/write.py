"""The report of a run: report.json, report.md, report.html, and a summary for the terminal.

`results` is a plain dict. Every part may be absent, and the report leaves its section out; a part
unknown here is kept in report.json. Units: win, lose, tie, delta and their intervals are in
percent, as `scoring.Comparison` has them; accuracies, inequalities, eos_rate and changed are shares
between 0 and 1, as `scoring.Agreement` has them. A value in the other unit is refused.

  title, description, command, seed, versions, device, num_prompts, config_text, subjects
  task, score    what a response has to do; what its score is, by an exact checker
  commit         of the code; data_digest: SHA-256 of the examples
  data           {'rows': [[name, value]]}
  stages         [{name, steps, seconds, tokens, tokens_per_second, mfu, parameters,
                   final: {metric: value}, changes: [{step, name, from, to}] of settings that
                   changed while it was trained, if any did, damaged: whether records are lost}]
  comparisons    [{name, first, second, temperature, judge, win, lose, tie, delta, ci_low, ci_high,
                   n, group: 'table1' | 'table2' | 'control' | 'figure5',
                   sign_test: {wins, losses, ties, p}, lengths: {longer_wins, longer_low,
                   longer_high, longer_n, delta, ci_low, ci_high}}]
  variants       [{group: 'table2' | 'control' | 'reward_models' | 'figure5', label, stage, what}]:
                 what the models of a group are, where a run has several of one kind
  scores         [{name, temperature, mean_score, ci_low, ci_high, eos_rate, mean_length}]
  iterations     [{temperature, rows: [{iteration, mean_score, delta_vs_original, ci_low, ci_high,
                   elo, elo_low, elo_high, rank, bradley_terry, bradley_terry_low,
                   bradley_terry_high, changed, gap}], self_refine: [the same],
                   stops: [{criterion, limit, iterations, tokens, mean_score, delta_vs_original,
                   ci_low, ci_high}]}]: evaluation/stopping.py has the criteria
  budgets        [{temperature, iteration, pit_tokens, drawn_tokens: means of what is sampled for
                   PIT after so many iterations, and for best-of-n, draws: the mean of n, capped:
                   the share of prompts with tokens left after the most draws, gap_passes,
                   reward_passes: how often R_PIT and R_P read a response to choose, comparisons:
                   [{name, win, lose, tie, delta, ci_low, ci_high, n}]}]: evaluation/budgets.py
  reward_models  [{name, accuracy, ci_low, ci_high, n, inequalities, means, degeneration}]
  figure2        {'wl' | 'ww' | 'll' | 'lw': rewards}
  figure3        {temperatures, series: {name: deltas}, intervals: {name: [[low, high]]}}
  figure4        [{model, round, steps, reward, start: the step before a model's second round}]
  figure5        as figure3
  curves         [{stage, metric, steps, values, folded: whether it is shown on demand only}]
  samples        [{prompt, original, iterations, scores, gaps, chosen, rejected}]
  judging        {name, comparisons, agreed, both, first_twice, second_twice, swapped_low,
                  swapped_high, marked, marked_swapped, unjudged, answers, first, second, tie, none,
                  cut, prompt_tokens, completion_tokens, uncounted, cost: None without prices}:
                  counts of a judge that is a language model
  ground_truth   [{name, n, accuracy, ci_low, ci_high, kappa, kappa_low, kappa_high}]: of judges
                  beside an exact checker; a row of n = 0 has no others
  people         {question, ties, asked, judged, alike, agreed, annotators: [{name, first, second,
                  tie}]}: how many comparisons people were asked for, judged all, weren't asked for
                  since responses are equal, and agree on; how often each preferred A, B, neither
  agreement      as ground_truth, of every two of these people; of three or more then of all
  transfer       [{trained_on, evaluated_on, data_digest, gap_model: a row of reward_models, read,
                  too_long: pairs that were read, and that don't fit, seen: prompts that the run was
                  trained on, and all that a comparison has}]: of the run's own dataset first
  choices        [{stage, and all that run/choosing.py records}]
  warnings       [text]

`first` and `second` of a comparison are kinds of responses; by them it meets the paper's own.

  original                  M_P^RL's, which the others are compared with
  sft, chosen               M_P^SFT's; y_w of the data
  pit, self_refine          improvements of the original by M_PIT^RL; by Self-Refine
  first_only, second_only   improvements by a PIT model that one round alone has trained: with
                            references from the data (Eq. 4); from M_P^RL (Eq. 5)
  ablation                  improvements by any other PIT model
  resampled, control        another sample of M_P^RL; another policy's
  iteration                 of saved generations
  system                    of a file, which is compared with another one's
  original_sft              M_P^SFT's, sampled at temperature 1 and improved as those that follow
  pit_sft, self_refine_sft  improvements of it by an M_PIT^SFT; by Self-Refine with M_P^SFT

`scores` of a sample are those of the original and then of each iteration, `gaps` R_PIT's of each
iteration; `chosen` and `rejected` are the responses of the data. Of a judge that has verdicts alone
there is no `mean_score`, and `scores` of a sample are empty.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from pit_jax.files import write_whole
from pit_jax.report import markdown, page, plots, sections
from pit_jax.report.blocks import Drawings, Figure, Results, Section
from pit_jax.report.formatting import (
    MAIN_OF_BUDGETS,
    NONE,
    comparison_labels,
    count,
    duration,
    known,
    number,
    points,
    share,
    three_digits,
    whole,
)

# What makes sections and figures of results.
Build = Callable[[Results], tuple[list[Section], Drawings]]
_Lines = tuple[list[str], list[list[str]]]

_SHARES = {
    "scores": ("eos_rate",),
    "reward_models": ("accuracy", "ci_low", "ci_high"),
    "ground_truth": ("accuracy", "ci_low", "ci_high"),
    "agreement": ("accuracy", "ci_low", "ci_high"),
    "budgets": ("capped",),
}


def write_report(
    results: Mapping[str, Any],
    run_dir: str | os.PathLike[str],
    build: Build | None = None,
) -> dict[str, str]:
    """Writes the report of a run into its directory.

    report.json holds the results themselves and is written first; report.html needs no other file;
    report.md shows the images of figures/. `build` is given for results that aren't those of a
    run, as those of several seeds.

    Returns:
      {'json': path, 'markdown': path, 'html': path}.

    Raises:
      ValueError: a figure of the results isn't in the unit this module asks for.
    """
    folder = epath.Path(run_dir)
    paths = {
        "json": folder / "report.json",
        "markdown": folder / "report.md",
        "html": folder / "report.html",
    }
    plain = _plain(results)
    text = json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(paths["json"], text)
    if build is None:
        _check_units(plain)
        build = sections.build

    parts, figures = build(plain)
    title, description = plain.get("title", "PIT report"), plain.get("description", "")
    shown = [b.name for part in parts for b in part.blocks if isinstance(b, Figure)]
    vector = {
        name: (
            plots.render(figures[name](), "svg"),
            plots.render(figures[name](narrow=True), "svg"),
        )
        for name in shown
    }
    write_whole(paths["html"], page.to_html(title, description, parts, vector))

    image_paths = {name: f"figures/{name}.png" for name in figures}
    for name, draw in figures.items():
        write_whole(folder / image_paths[name], plots.render(draw(), "png"))
    write_whole(paths["markdown"], markdown.to_markdown(title, description, parts, image_paths))
    return {name: str(path) for name, path in paths.items()}


def format_summary(results: Mapping[str, Any]) -> str:
    """Writes the main tables as aligned lines for a terminal."""
    plain = _plain(results)
    return format_tables(plain, _summary_tables(plain))


def format_tables(results: Mapping[str, Any], tables: Iterable[_Lines]) -> str:
    """Writes title, tables as (columns, rows), and warnings for a terminal."""
    blocks = [results.get("title", "PIT report")]
    blocks += [_aligned(*table) for table in tables if table[1]]
    blocks += [f"warning: {text}" for text in results.get("warnings", ())]
    return "\n\n".join(blocks).replace(NONE, "-") + "\n"


def _summary_tables(plain: Mapping[str, Any]) -> list[_Lines]:
    stages = [
        [s["name"], count(s.get("steps")), duration(s.get("seconds")), count(s.get("parameters"))]
        for s in plain.get("stages", ())
    ]
    models = [
        [r["name"], share(r.get("accuracy")), _interval(r, share), count(r.get("n"))]
        for r in plain.get("reward_models", ())
    ]
    scores = [
        [
            s["name"],
            number(s.get("temperature"), 1),
            three_digits(s.get("mean_score")),
            _interval(s, three_digits),
        ]
        for s in plain.get("scores", ())
        if known(s.get("mean_score"))
    ]
    rows = plain.get("comparisons", ())
    comparisons = [
        [
            label,
            *(number(row.get(key), 1) for key in ("win", "lose", "tie")),
            points(row.get("delta")),
            _interval(row, points),
            count(row.get("n")),
        ]
        for row, label in zip(rows, comparison_labels(rows), strict=True)
    ]
    iterations = [
        [
            number(group.get("temperature"), 1),
            f"{label}{row['iteration']}",
            three_digits(row.get("mean_score")),
            points(row.get("delta_vs_original")),
            whole(row.get("elo")),
            share(row.get("changed")),
        ]
        for group in plain.get("iterations", ())
        for label, part in (("", "rows"), ("Self-Refine ", "self_refine"))
        for row in group.get(part, ())
    ]
    at_budgets = [
        [
            number(row["temperature"], 1),
            str(row["iteration"]),
            *(number(row[key], 1) for key in ("pit_tokens", "drawn_tokens", "draws")),
            compared["name"],
            points(compared.get("delta")),
            _interval(compared, points),
        ]
        for row in plain.get("budgets", ())
        for compared in row["comparisons"]
        if compared["name"] == MAIN_OF_BUDGETS
    ]
    budget = ["tokens", "drawn", "n", "at equal tokens", "delta", "95% interval"]
    return [
        (["stage", "steps", "time", "parameters"], stages),
        (["reward model", "accuracy %", "95% interval", "pairs"], models),
        (["responses", "temp", "mean score", "95% interval"], scores),
        (["temp", "iteration", "mean score", "delta", "elo", "changed %"], iterations),
        (["comparison", "win %", "lose %", "tie %", "delta", "95% interval", "n"], comparisons),
        (["temp", "K", *budget], at_budgets),
        *_judging_tables(plain),
    ]


def _judging_tables(plain: Mapping[str, Any]) -> list[_Lines]:
    judges = [
        [
            found["name"],
            count(found["comparisons"]),
            *(count(found[key]) for key in ("agreed", "first", "second", "tie", "none")),
            count(found.get("unjudged", 0)),
            f"{found['prompt_tokens']:,}",
            f"{found['completion_tokens']:,}",
        ]
        for found in [plain.get("judging")]
        if found
    ]
    people = [
        [
            row["name"],
            share(row["accuracy"]),
            _interval(row, share),
            number(row["kappa"]),
            _interval(row, number, "kappa"),
            count(row["n"]),
        ]
        for row in plain.get("agreement", ())
    ]
    agree = ["agree %", "95% interval", "kappa", "95% interval", "comparisons"]
    verdicts = ["orders agree", "A", "B", "tie", "no verdict", "unjudged"]
    moved = [
        [
            row["evaluated_on"],
            points(row.get("delta")),
            _interval(row, points),
            count(row.get("n")),
            share(row["gap_model"].get("accuracy")),
            _interval(row["gap_model"], share),
        ]
        for row in plain.get("transfer", ())
    ]
    return [
        (["judge", "comparisons", *verdicts, "tokens read", "written"], judges),
        (["people", *agree], people),
        (["PIT on", "delta", "95% interval", "n", "R_PIT right %", "95% interval"], moved),
    ]


def _interval(row: Mapping[str, Any], form, of: str = "ci") -> str:
    low, high = row.get(f"{of}_low"), row.get(f"{of}_high")
    return f"[{form(low)}, {form(high)}]" if known(low) and known(high) else NONE


def _aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _check_units(plain: Mapping[str, Any]) -> None:
    for row in plain.get("comparisons", ()):
        rates = [row.get(key) for key in ("win", "lose", "tie")]
        if all(map(known, rates)) and abs(sum(rates) - 100) > 0.5:
            raise ValueError(
                f"comparisons, {row['name']!r}: expected win, lose and tie in percent, adding up "
                f"to 100, got {rates}"
            )
    shares = [
        (part, row, key)
        for part, ks in _SHARES.items()
        for row in plain.get(part, ())
        for key in ks
    ]
    shares += [
        ("iterations", row, "changed")
        for group in plain.get("iterations", ())
        for row in (*group["rows"], *group.get("self_refine", ()))
    ]
    for part, row, key in shares:
        _check_share(part, key, row.get(key))
    for row in plain.get("reward_models", ()):
        for name, value in (row.get("inequalities") or {}).items():
            _check_share("reward_models", name, value)


def _check_share(part: str, key: str, value: Any) -> None:
    if known(value) and not 0 <= value <= 1:
        raise ValueError(f"{part}, {key}: expected a share between 0 and 1, got {value}")


def _plain(value: Any) -> Any:
    """Standard JSON, which has no numbers that aren't finite: they become None."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
