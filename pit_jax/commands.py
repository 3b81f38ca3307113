"""Does what the commands do, once flags and configuration are read.

Each command takes the Run, the EvaluationConfig and the flags, except `plan`, which needs no data.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import sys
from typing import Any

from etils import epath

from pit_jax import bindings, checked, command_flags, files
from pit_jax.errors import UserError
from pit_jax.runtime import owner, processes

_PATIENCE = 300.0  # seconds to wait for another report
# Commands for which the data need not be there.
_WITHOUT_DATA = ("convert", "improve")


def run(run, evaluation, options) -> None:
    """Trains a whole pipeline, then writes its report."""
    from pit_jax.run import pipeline

    _check_evaluation(run, evaluation)
    if run.finds_windows:
        found = run.config.lengths
        print(
            f"windows from the data: prompt {found.prompt}, reference {found.reference}, response "
            f"{found.response} tokens",
            flush=True,
        )
    for warning in _warnings(run, evaluation):
        print(f"warning: {warning}", flush=True)
    pipeline.train_all(run)
    _report(run, evaluation, report_folder(run, evaluation), options)


def _warnings(run, evaluation) -> list[str]:
    """What is to be known of the data, before training and at the top of the report."""
    from pit_jax.data import advice

    found = advice.warnings(run.data, evaluation.split, evaluation.num_prompts)
    return [*found, *_circular(run, evaluation)]


def _circular(run, evaluation) -> list[str]:
    """Warns of a judge that training optimised."""
    from pit_jax.run.stages import RLStage

    exact = getattr(run.config.dataset, "kind", "") == "instructions"
    own = None if exact else evaluation.reward_model  # of the run's models, the one that judges
    if evaluation.judge:
        own = getattr(evaluation.judge, "stage", None)
    optimised = {stage.reward_model for stage in run.config.stages if isinstance(stage, RLStage)}
    if own not in optimised:
        return []
    return [
        f"the judge is {own}, a reward model that training optimised: what scores well may still "
        "be bad, so read the samples"
    ]


def _check_evaluation(run, evaluation) -> None:
    """Refuses, before hours of training, an evaluation that can't be made after it."""
    from pit_jax.evaluation import configured_judge
    from pit_jax.evaluation.responses import Responses
    from pit_jax.run import checks

    checks.check_evaluated(run, evaluation)
    checks.check_split(run, evaluation.split, "evaluation: got")
    if evaluation.judge:
        configured_judge.make(evaluation.judge, run, Responses.of(run, evaluation))


def data(run, evaluation, options) -> None:
    """Shows what became of every example."""
    del evaluation
    from pit_jax.report import data as data_report

    _check_read(run)
    found = data_report.gather(run.data, run.config.stages, options.examples)
    print(data_report.to_json(found) if options.json else data_report.to_text(found))
    if options.output:
        data_report.write(found, pathlib.Path(options.output))


def say(what: str) -> None:
    """Tells of what takes a while."""
    sys.stderr.write(f"{what} …\n")  # whole, also from several threads
    sys.stderr.flush()


def plan(config, options) -> int:
    """Compiles every program of a run for a machine; returns 1 if it doesn't fit there, else 0."""
    from pit_jax.plan import machines, planner, text

    slice_ = machines.find(options.topology)
    devices = machines.devices(slice_)
    save = pathlib.Path(options.save) if options.save else None
    if options.json and options.explain:
        raise UserError("--explain: the JSON has it all, expected one of --json and --explain")
    found = planner.make_plan(config, slice_, devices, say, save, options.explain)
    if not options.json:
        print(text.to_text(found))
        if options.explain:
            print("\n" + text.explain(found, options.explain))
    if not found["fits"]:
        found["proposal"] = planner.propose(config, slice_, devices, found, say)
    if options.json:
        print(json.dumps(found, indent=1))
    elif not found["fits"]:
        print(text.advice(found["proposal"]))
    return 0 if found["fits"] else 1


def train(run, evaluation, options) -> None:
    """Trains the stage that STAGE names."""
    del evaluation
    from pit_jax.run import pipeline

    result = pipeline.train(run, options.stage)
    final = ", ".join(f"{name} {value:.4g}" for name, value in sorted(result["final"].items()))
    print(f"{result['name']}: {result['steps']} steps in {result['seconds']:.0f} s; {final}")


def bring_in(options) -> None:
    """Makes a base model, or a stage with adapters, of a folder or a name on the hub."""
    _check_bases(options.source, options)
    with owner.Owner(options.output, "convert", other="--output"):
        _bring_in(options)


def _bring_in(options) -> None:
    from pit_jax.run import hugging_face, peft

    output, dtype = epath.Path(options.output), options.dtype or "bfloat16"
    if options.source == "peft":
        path = hugging_face.found(options.input, more=peft.FILES)
        name = hugging_face.source_of(options.input, path).rpartition("/")[2]
        lora = peft.bring_in(path, output, name, options.base, dtype, options.chat_template)
        print(f"{options.input}: rank {lora.rank} -> {output}/{name}, {output}/{name}.gin")
        return
    path = hugging_face.found(options.input)
    source = hugging_face.source_of(options.input, path)
    network = hugging_face.bring_in(path, output, dtype, options.chat_template, source)
    written = [f"{output}/model", f"{output}/model.gin", f"{output}/tokenizer"]
    if options.role:
        text = hugging_face.role_gin(network, output, options.chat_template, options.role)
        written.append(f"{output}/{options.role}.gin")
        if processes.is_first():
            files.write_whole(epath.Path(written[-1]), text)
    print(
        f"{options.input}: {network.num_layers} layers, {network.vocab_size:,} rows of ids -> "
        f"{', '.join(written)}"
    )


def _check_bases(kind: str, options) -> None:
    if options.role and options.source != "hf":
        raise UserError("--role: expected it with --from=hf alone")
    for flag in ("base", "with_base"):
        if getattr(options, flag) and kind != "peft":
            raise UserError(f"--{flag}: got it with {kind}, expected it with peft alone")
    if options.with_base and (options.base or options.source):
        raise UserError("--with_base: expected it with --to=peft and without --base")
    if options.with_base:
        files.check_folder(options.with_base, "--with_base")


def convert(run, evaluation, options) -> None:
    """Writes the model of the stage that STAGE names as transformers, PEFT or T5X loads it.

    Without one it writes all models that improve, for transformers.
    """
    from pit_jax.run import exported, exports, stage_training, t5x_checkpoints

    _check_bases(options.to, options)
    if not options.stage:
        output, names = epath.Path(options.output), _improving_stages(evaluation)
        for line in exported.take_out(run, names, output, options.dtype or "float32"):
            print(line)
        print(f"-> {output}")
        return
    stage = run.stage(options.stage)
    step = run.result(stage.name)["model_step"]
    output, dtype = epath.Path(options.output), options.dtype or "float32"
    if options.to == "hf":
        exports.take_out(run, stage.name, output, dtype)
        print(f"{stage.name}, step {step}: {options.output}")
        return
    if options.to == "peft":
        with_base = epath.Path(options.with_base) if options.with_base else None
        base = exports.take_out_adapter(run, stage.name, output, dtype, options.base, with_base)
        print(f"{stage.name}, step {step}: {options.output}, adapters of {base}")
        return
    t5x_checkpoints.check_network(run.config.networks(stage).actor)
    state = stage_training.restore(run, stage, step)
    path = t5x_checkpoints.save(output, step, state)
    print(f"{stage.name}, step {step}: {path}")


def evaluate(run, evaluation, options) -> None:
    """Makes the tables and plots of a run, or of a file that `improve` wrote."""
    if options.generations or options.responses:
        if options.transfer:
            raise UserError("--transfer samples anew: got it with saved responses, expected none")
        _evaluate_saved(run, evaluation, options)
        return
    run.check_data()
    options.others = others(run, evaluation, options.transfer)
    directory = epath.Path(options.output) if options.output else report_folder(run, evaluation)
    _report(run, evaluation, directory, options)


def compare(options) -> None:
    """Combines the reports of runs that differ in their seed; needs neither their data nor gin."""
    from pit_jax.evaluation import reports, seeds
    from pit_jax.report import seed_tables
    from pit_jax.report import seeds as sections
    from pit_jax.report import write as report

    found = reports.read(options.compare)
    if options.output:
        check_combined(options.output)
    results = reports.headings(found) | seeds.gather(found)
    results["command"] = command_flags.command_line(options.argv)
    print(report.format_tables(results, seed_tables.for_terminal(results)))
    if options.output:
        paths = report.write_report(results, options.output, sections.build)
        print(f"report: {paths['html']}")


def check_combined(output: str, flag: str = "--output") -> None:
    """Refuses to write a report of seeds, or of people, over that of a run.

    Raises:
      UserError: if there is a run's report in the folder.
    """
    before = _report_in(epath.Path(output))
    if "seed" in before and "people" not in before:
        path = epath.Path(output) / "report.json"
        raise UserError(f"{flag}: {path} is the report of a run, expected another folder")


def _report_in(folder) -> dict[str, Any]:
    """The results of the report in a folder; nothing where there is none to read."""
    found: Any = None
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((folder / "report.json").read_text())
    return found if isinstance(found, dict) else {}


# Who is judged, by whom and on what: a report of others never takes the place of another's.
_SUBJECTS = ("split", "num_prompts", "sft", "policy", "pit", "reward_model", "gap_model")
_OWN = "own judge"  # the data's exact checker, or R_P


def subjects(evaluation) -> dict[str, Any]:
    """Names the stages, prompts and judge of an evaluation."""
    from pit_jax.evaluation import configured_judge

    judge = configured_judge.name_of(evaluation.judge) if evaluation.judge else _OWN
    return {name: getattr(evaluation, name) for name in _SUBJECTS} | {"judge": judge}


def report_folder(run, evaluation):
    """Returns where a run's report goes: its own folder, or one in it if another's is there."""
    now, directory = subjects(evaluation), run.directory
    before = _report_in(directory).get("subjects")
    before = {"split": "test", "judge": _OWN} | (before if isinstance(before, dict) else {})
    changed = [f"{value}" for name, value in now.items() if before.get(name, value) != value]
    if not changed:
        return directory
    return directory / re.sub(r"[^\w-]+", "_", "-".join(["report", *changed])).rstrip("_")


def _report(run, evaluation, directory, options) -> None:
    from pit_jax.evaluation import about, suite, transfer
    from pit_jax.report import cautions
    from pit_jax.report import write as report
    from pit_jax.run import checks, choosing

    checks.check_records(run)
    print("evaluating …", flush=True)
    made = suite.Suite(run, evaluation)
    results = made.results() | about.facts(run)
    told: list[str] = []
    if elsewhere := getattr(options, "others", None):
        results["transfer"], told = transfer.rows(made, run, evaluation, elsewhere)
    results["subjects"] = subjects(evaluation)
    told = [*results.get("warnings", ()), *told, *_warnings(run, evaluation)]
    results["warnings"] = [*told, *cautions.cautions(results)]
    results["choices"] = choosing.recorded(run)
    results["config_text"] = options.operative
    results["command"] = command_flags.command_line(options.argv)
    # The report of a run that is under way beside this may be written at the same time.
    lock = directory / "report.lock"
    with owner.Owner(directory, options.command, lock, "--output", _PATIENCE):
        if processes.is_first():
            paths = report.write_report(results, directory)
            print(report.format_summary(results))
            print(f"report: {paths['html']}")


def improve(run, evaluation, options) -> None:
    """Runs Algorithm 2 on the prompts of a file."""
    run.check_data(needed=False)
    _improving(run, evaluation, options)()


def _improving(run, evaluation, options):
    from pit_jax.run import improver, improving

    made = improver.RunImprover(run, _improving_stages(evaluation))
    return improving.Job(made, options.input, options.output, options.on_error)


def _improving_stages(evaluation) -> dict[str, str]:
    from pit_jax.run import improver

    return {role: getattr(evaluation, role) for role in improver.ROLES}


def others(run, evaluation, paths) -> dict[str, Any]:
    """The run on each other dataset that `--transfer` names, by its file."""
    from pit_jax.data.datasets import DatasetConfig
    from pit_jax.evaluation import transfer
    from pit_jax.evaluation.suite import EvaluationConfig
    from pit_jax.run.config import RunConfig

    roots, found = (RunConfig, DatasetConfig, EvaluationConfig), {}
    for path in paths:
        dataset = bindings.read_part(path, "dataset", roots)
        found[path] = transfer.moved(run, path, dataset, evaluation.split)
    return found


def _saved(run, evaluation, options):
    """Reads the generations that are to be judged, or two systems' responses."""
    from pit_jax.evaluation import generations

    if not options.responses:
        return generations.read(run, evaluation.judge, options.generations, options.on_error)
    if options.generations:
        raise UserError("--generations: got them with --responses, expected one of both")
    paths = [checked.expand(path) for path in options.responses]
    return generations.of_systems(run, evaluation.judge, paths, options.on_error)


def _evaluate_saved(run, evaluation, options) -> None:
    from pit_jax.evaluation import suite
    from pit_jax.report import cautions
    from pit_jax.report import write as report

    found = _saved(run, evaluation, options)
    for line in found.notes:
        print(line)
    results = suite.Suite(run, evaluation).judge_generations(found.records, found.names)
    if results["description"]:
        print(results["description"])
    told = [*found.notes, *results.get("warnings", ()), *_circular(run, evaluation)]
    results["warnings"] = [*told, *cautions.few_prompts(results)]
    results["command"] = command_flags.command_line(options.argv)
    print(report.format_summary(results))
    if options.output and processes.is_first():
        paths = report.write_report(results, options.output)
        print(f"report: {paths['html']}")


def check(run, evaluation, options) -> None:
    """Refuses what a command could only refuse, or fail at, when it is under way."""
    from pit_jax.run import checks, settings_diff

    if options.command not in _WITHOUT_DATA:
        _check_read(run)
    if options.command in ("run", "sweep"):
        _check_evaluation(run, evaluation)
    if options.command in ("run", "train", "sweep"):
        one = run.stage(options.stage).name if options.command == "train" else None
        for stage in run.config.stages:
            if one in (None, stage.name) and (lowered := checks.check(run, stage.name)):
                print(f"{stage.name}: would go on with {settings_diff.told(lowered)}")
    elif options.command == "convert":
        stage = options.stage and run.stage(options.stage).name
        checks.check_models(run, [stage] if stage else _improving_stages(evaluation).values())
    elif options.command == "improve":
        job = _improving(run, evaluation, options)
        checks.check_models(run, job.needed.values())
        print(f"improve        {job.describe()}")
    elif options.command == "evaluate" and (options.generations or options.responses):
        print(f"generations    {len(_saved(run, evaluation, options).records)} rows to judge")
    elif options.command == "evaluate":
        _check_evaluation(run, evaluation)
        checks.check_models(run, evaluation.stages)
        others(run, evaluation, options.transfer)


def _check_read(run) -> None:
    if not run.data.report()["read"]:
        dataset = run.config.dataset
        path = getattr(dataset, "path", "") or dataset.name
        raise UserError(f"{path}: has no pairs, expected one or more")


def describe(run, evaluation, options) -> None:
    """Prints what `--dry_run` promises, the configuration in use last."""
    import jax

    from pit_jax.run import shapes, stages

    check(run, evaluation, options)
    print(f"run directory  {run.directory} (nothing is written)")
    print(f"mesh           {dict(run.partitioner.mesh.shape)} on {jax.devices()[0].device_kind}")
    if options.command not in _WITHOUT_DATA:
        report = run.data.report()
        dropped = ", ".join(f"{n} {reason}" for reason, n in report["dropped"].items()) or "none"
        print(f"data           {report['read']} read; dropped: {dropped}")
        print(f"               {report['splits']}, folds of train {report['folds']}")
    lengths = run.config.lengths
    print(
        f"windows        prompt {lengths.prompt}, reference {lengths.reference}, response "
        f"{lengths.response} tokens"
    )
    print(
        f"{'stage':24}{'task':12}{'steps':>8}{'batch':>8}{'parameters':>16}{'state MB':>12}  done"
    )
    most = (0.0, "")
    for stage in run.config.stages:
        of_stage = run.config.networks(stage)
        state = stages.abstract_state(stage, of_stage, run.partitioner)
        count = sum(x.size for x in jax.tree.leaves(state.train.params))
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) / 1e6
        print(
            f"{stage.name:24}{stage.task:12}{stage.steps:>8}{stage.batch_size:>8}{count:>16,}"
            f"{size:>12,.1f}  {run.progress(stage.name)}"
        )
        least = shapes.least_memory(stage, state, of_stage, run.partitioner)
        most = max(most, (least / 1e6, stage.name))
    print(
        f"\nmemory         at least {most[0]:,.1f} MB over all devices, in {most[1]}: state, "
        "gradients and frozen models; activations come on top"
    )
    print(f"\noperative configuration\n\n{options.operative}")
