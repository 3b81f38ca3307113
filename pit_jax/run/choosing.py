"""Chooses the checkpoint of an RL stage (Appendix F) and records the choice in `choice.json`.

Every checkpoint that the stage has kept answers the same dev prompts with the same keys, so that
checkpoints differ in nothing but their parameters; method/choice.py says what is measured and
decided. A choice that was interrupted is made again, with the same result. `choice.json` has

  settings     of the Choice, but for the step that overrides it
  proposed     the step that is proposed
  chosen       the step that is used: the proposed one, or that of Choice.step
  checkpoints  [{step, kl, kl_error, reward, reward_error, ended, group, candidate, chosen}]
  samples      [{prompt, reference, responses: [{step, text, reward, ended}]}] of the candidates

`group` is null for a checkpoint that can't be chosen, and `reference` for a policy. The reward is
what the stage learned from: R_P(x, y) or R_PIT(x, y, y_ref) above its anchor, or R_P(x, y) −
R_P(x, y_ref). For M_PIT a y_ref comes from where those of the last round come from: y_l and y_w of
the data, else a sample of M_P.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from pit_jax.data.examples import Example
from pit_jax.errors import UserError
from pit_jax.method import choice as choice_lib
from pit_jax.method import curriculum
from pit_jax.method.choice import Choice, Measured
from pit_jax.method.roles import POLICY, Role
from pit_jax.method.rollouts import Translated
from pit_jax.method.sampler import Response, Tokens, pad_left, pad_right
from pit_jax.run import directory as run_directory
from pit_jax.run.run import Run
from pit_jax.run.stage_training import environment, translation
from pit_jax.run.stages import RLStage, Stage, role_of
from pit_jax.runtime import processes
from pit_jax.runtime.checkpoints import Checkpoints


@dataclasses.dataclass(frozen=True)
class Row:
    """Holds what a response is sampled to.

    Attributes:
      number: names the row's draws.
      example: the example of the dev split.
      reference: y_ref; None for a policy.
    """

    number: int
    example: Example
    reference: Response | None = None


def is_due(run: Run, stage: Stage) -> bool:
    """Returns whether a stage's choice is yet to be made, or its record names another step.

    All processes get one answer, before any of them changes the record.
    """
    if not isinstance(stage, RLStage) or stage.choice is None:
        return False
    made = run.choice(stage.name) if run.is_complete(stage.name) else None
    due = made is None or made["chosen"] != (stage.choice.step or made["proposed"])
    return processes.any_process(due)


def choose(run: Run, stage: Stage, anew: bool = False) -> None:
    """Chooses the checkpoint of a stage whose steps are all done, and writes `choice.json`.

    Args:
      run: the run.
      stage: an RL stage with a `choice`.
      anew: whether to measure again what a record of before has. Else only another `Choice.step`
        changes no more than which one is chosen.

    Raises:
      UserError: if the step to take isn't kept.
    """
    assert isinstance(stage, RLStage) and stage.choice is not None
    steps = kept(run, stage)
    if stage.choice.step and stage.choice.step not in steps:
        raise UserError(
            f"stage {stage.name}: got Choice.step={stage.choice.step}, expected a checkpoint that "
            f"is there: {', '.join(map(str, steps))}"
        )
    made = None if anew else run.choice(stage.name)
    made = made or _make(run, stage, stage.choice, steps)
    record = with_chosen(made, stage.choice.step or made["proposed"])
    run_directory.write_json(run.folder(stage.name) / "choice.json", record)
    processes.wait()  # the first one has written
    if processes.is_first():
        print(table(stage.name, record), flush=True)


def kept(run: Run, stage: RLStage) -> list[int]:
    """Returns the steps of the checkpoints to choose among: those that are kept, and the last."""
    checkpoints = Checkpoints(run.folder(stage.name) / "checkpoints", read_only=True)
    steps = checkpoints.all_steps()
    checkpoints.close()
    return [step for step in steps if step == stage.steps or step % stage.keep_every == 0]


def recorded(run: Run) -> list[dict[str, Any]]:
    """Returns the records of all stages of a run whose choice is made, with their `stage`.

    `chosen` is what the configuration says now, also where the record isn't rewritten yet.
    """
    records = []
    for stage in run.config.stages:
        if run.is_complete(stage.name) and (made := run.choice(stage.name)):
            step = run.result(stage.name)["model_step"]
            records.append({"stage": stage.name, **with_chosen(made, step)})
    return records


def with_chosen(record: dict[str, Any], step: int) -> dict[str, Any]:
    """Returns a record in which this step is the chosen one."""
    rows = [{**row, "chosen": row["step"] == step} for row in record["checkpoints"]]
    return {**record, "chosen": step, "checkpoints": rows}


def table(name: str, record: dict[str, Any]) -> str:
    """Writes a record as aligned lines for a terminal."""
    title = f"{name}: step {record['chosen']} is chosen"
    if record["chosen"] != record["proposed"]:
        title += f" (proposed: {record['proposed']})"
    lines = [f"{'step':>8}{'KL':>20}{'reward':>20}{'ended %':>9}{'group':>7}"]
    for row in record["checkpoints"]:
        kl, reward = (_with_error(row[key], row[f"{key}_error"]) for key in ("kl", "reward"))
        role = "chosen" if row["chosen"] else "candidate" if row["candidate"] else ""
        line = f"{row['step']:>8}{kl:>20}{reward:>20}{100 * row['ended']:>9.1f}"
        lines.append(f"{line}{row['group'] or '-':>7}  {role}".rstrip())
    return "\n".join([title, *lines])


def _with_error(value: float | None, error: float | None) -> str:
    return "-" if value is None or error is None else f"{value:.3f} ± {error:.3f}"


def _make(run: Run, stage: RLStage, choice: Choice, steps: list[int]) -> dict[str, Any]:
    """Measures all checkpoints; returns the record, but for which of them is chosen."""
    rows = rows_of(run, stage, choice)
    if processes.is_first():
        print(
            f"{stage.name}: measuring {len(steps)} checkpoints on {len(rows)} rows of dev",
            flush=True,
        )
    groups = [row.example.group for row in rows]
    measured, found = [], {}
    for step, result in zip(steps, _results(run, stage, rows, steps), strict=True):
        means = [choice_lib.mean_and_error(result[name], groups) for name in ("kl", "score")]
        ended = float(np.mean(result["ended"]))
        measured.append(Measured(step, *means[0], *means[1], ended))
        found[step] = result
    scores_MN = np.stack([found[step]["score"] for step in steps])
    decision = choice_lib.decide(measured, scores_MN, groups, choice)
    return {
        "name": stage.name,
        "settings": {**dataclasses.asdict(choice), "step": 0},
        "proposed": decision.step,
        "checkpoints": [
            {
                **{key: _known(value) for key, value in dataclasses.asdict(each).items()},
                "group": group,
                "candidate": each.step in decision.candidates,
            }
            for each, group in zip(measured, decision.groups, strict=True)
        ],
        "samples": [
            {
                "prompt": row.example.prompt,
                "reference": _reference(run, stage, row),
                "responses": [
                    _sample(run, stage, step, found[step], place) for step in decision.candidates
                ],
            }
            for place, row in enumerate(rows[: choice.samples])
        ],
    }


def _results(run: Run, stage: RLStage, rows: list[Row], steps: list[int]):
    """Yields what each checkpoint's responses to the rows are: arrays with rows first."""
    networks, where, mesh = run.config.networks(stage), environment(run, stage), run.partitioner
    measure = choice_lib.make_measure(networks, stage.ppo, where)
    measure = mesh.jit(measure, out_shardings=mesh.replicated)
    sample = choice_lib.make_sample(networks, where)
    translated, role = Translated(sample, translation(run, stage), mesh), role_of(stage)
    reference = run.load_frozen(stage.reference, role=role)
    reward = run.load_frozen(stage.reward_model)
    batches = list(_batches(run, stage, rows))
    key = run.key("choice", stage.name)
    for step in steps:
        models = {"policy": run.load_frozen(stage.name, step)}
        models |= {"reference": reference, "reward": reward}
        found = []
        for batch in batches:
            placed = translated(models["policy"], mesh.shard_batch(batch), key)
            found.append(jax.tree.map(np.asarray, measure(models, placed, key)))
        del models  # before the next one is loaded
        result = {name: np.concatenate([part[name] for part in found]) for name in found[0]}
        yield {name: values[: len(rows)] for name, values in result.items()}


def rows_of(run: Run, stage: RLStage, choice: Choice) -> list[Row]:
    """Returns the rows that each checkpoint answers: prompts of dev, for M_PIT with y_ref."""
    examples = run.data.examples("dev")[: choice.num_prompts or None]
    if stage.task == "rl_policy":
        return [Row(example.index, example) for example in examples]
    *_, (number, round_, _, _) = curriculum.locate(stage.rounds, 0)
    if not round_.is_sampled:
        return [
            Row(2 * example.index + place, example, Response([], True, text=text))
            for example in examples
            for place, text in enumerate((example.rejected, example.chosen))
        ]
    step = round_.policy_step or run.result(round_.policy)["model_step"]
    responses = run.role(POLICY).answers(
        run.load_frozen(round_.policy, step, POLICY),
        [example.prompt for example in examples],
        [example.index for example in examples],
        run.key("choice", stage.name, "references", number),
        round_.sampling,
    )
    return [
        Row(example.index, example, response)
        for example, response in zip(examples, responses, strict=True)
    ]


def _batches(run: Run, stage: RLStage, rows: list[Row]):
    """Yields batches of the stage's size; the last one is filled up with its last row."""
    own, reward = run.role_of(stage), run.role_of(stage.reward_model)
    for start in range(0, len(rows), stage.batch_size):
        part = rows[start : start + stage.batch_size]
        part += [part[-1]] * (stage.batch_size - len(part))
        batch = {"rows": np.asarray([row.number for row in part], np.int32)}
        batch["prompts"] = _prompts(own, part, "policy" if stage.task == "rl_policy" else "pit")
        kind = "gap" if stage.task == "rl_pit" else "reward"
        batch["reward_prompts"] = _prompts(reward, part, kind)
        if stage.task == "rl_pit_difference":
            references = [reward.layout.response(each) for each in _references(reward, part)]
            batch["references"] = pad_right(references, reward.widths.reference)
        yield batch


def _prompts(role: Role, rows: list[Row], kind: str) -> np.ndarray:
    """Prompts of a layout, `policy`, `pit`, `reward` or `gap`, as wide as its window."""
    make = getattr(role.layout, f"{kind}_prompt")
    given: list[tuple[Any, ...]] = [(row.example.prompt,) for row in rows]
    if kind in ("pit", "gap"):
        pairs = zip(given, _references(role, rows), strict=True)
        given = [(*x, reference) for x, reference in pairs]
    return pad_left([make(*each) for each in given], getattr(role.widths, kind))


def _references(role: Role, rows: list[Row]) -> list[Tokens]:
    return [role.reference(row.reference) for row in rows if row.reference is not None]


def _reference(run: Run, stage: RLStage, row: Row) -> str | None:
    """A row's y_ref as `choice.json` has it: as the model reads it."""
    if row.reference is None:
        return None
    role = run.role_of(stage)
    return role.vocabulary.decode(role.reference(row.reference))


def _sample(
    run: Run, stage: RLStage, step: int, result: dict[str, np.ndarray], place: int
) -> dict[str, Any]:
    """A response as `choice.json` has it."""
    tokens = result["tokens"][place][result["mask"][place]].tolist()
    ended = bool(result["ended"][place])
    text = run.role_of(stage).vocabulary.decode(tokens[: len(tokens) - ended])
    return {
        "step": step,
        "text": text,
        "reward": _known(float(result["score"][place])),
        "ended": ended,
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
