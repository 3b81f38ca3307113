"""Trains one stage of a run: makes what it starts from, takes its steps, writes its result."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from pit_jax.data.input_pipeline import DATA_REFERENCES
from pit_jax.data.reference_store import ReferenceStore
from pit_jax.method import curriculum, flops, ppo_step, supervised_step
from pit_jax.method.decode import is_end
from pit_jax.method.environment import Environment
from pit_jax.method.frozen import Frozen
from pit_jax.models import adapters
from pit_jax.run import directory as run_directory
from pit_jax.run import loading, stages
from pit_jax.run.references import check_sampled, references_folder, sample_references, seed_of
from pit_jax.run.run import Run
from pit_jax.run.stages import RewardStage, RLStage, Stage, SupervisedStage
from pit_jax.runtime import digests, loop, processes, profiling, records
from pit_jax.runtime import metrics as metrics_lib
from pit_jax.runtime.checkpoints import Checkpoints
from pit_jax.runtime.partitioning import OnHost

_SHOWN = {
    SupervisedStage: ("loss", "token_accuracy"),
    RewardStage: ("loss", "accuracy", "held_out_accuracy"),
    RLStage: ("score", "kl", "eos_rate"),
}


def train(run: Run, stage: Stage) -> None:
    """Trains a stage from its last checkpoint, or from what it builds on, and writes its result."""
    keep_every = stage.keep_every if isinstance(stage, RLStage) else 0
    checkpoints = Checkpoints(run.folder(stage.name) / "checkpoints", keep_every, stage=stage.name)
    try:
        state, progress = _fit(run, stage, checkpoints, keep_every)
        checkpoints.check_saved()
    finally:  # an interrupted run too leaves its last checkpoint whole
        checkpoints.close()
    _finish(run, stage, state, progress)


def _fit(run: Run, stage: Stage, checkpoints: Checkpoints, keep_every: int):
    progress = loop.Progress()
    if checkpoints.latest_step() is not None:
        abstract = stages.abstract_state(stage, run.config.networks(stage), run.partitioner)
        state, extra, damaged = checkpoints.restore_newest(abstract)
        progress = loop.Progress(**extra)
        for line in damaged:
            print(f"{stage.name}: {line}", flush=True)
        print(f"{stage.name}: continues at step {progress.step}", flush=True)
    else:
        key = run.key("init", stage.task)
        state = stages.create_state(stage, run.config.networks(stage), run.partitioner, key)
        state = start_from(run, stage, state)
    run_directory.went_on(run.folder(stage.name), progress.step)
    window = run.profile and run.profile.within(stage.steps - progress.step)
    profiler = profiling.Profiler(window, run.folder(stage.name) / "profile")
    with _writer(run, stage, progress) as writer, profiler:
        fit = functools.partial(
            loop.fit,
            progress=progress,
            loop=stage.loop,
            writer=writer,
            checkpoints=checkpoints,
            keep_every=keep_every,
            peak=run.peak,
            wrap=profiler.wrap,
            signals=run.signals,
        )
        if isinstance(stage, RLStage):
            state = _train_rl(run, stage, state, fit, progress)
        else:
            state = _train_supervised(run, stage, state, fit, progress)
    return state, progress


def restore(run: Run, stage: Stage, step: int) -> Any:
    """Restores the whole state of a stage of this run from its checkpoint of `step`."""
    abstract = stages.abstract_state(stage, run.config.networks(stage), run.partitioner)
    folder = run.folder(stage.name) / "checkpoints"
    checkpoints = Checkpoints(folder, read_only=True, stage=stage.name)
    state, _ = checkpoints.restore(abstract, step)
    checkpoints.close()
    return state


def start_from(run: Run, stage: Stage, state: Any) -> Any:
    """Returns the starting state with the parameters of the stages that it builds on."""
    if run.config.networks(stage).actor.lora is None and not stage.initial:
        return state
    initial = _initial(run, stage, stage.initial, stages.role_of(stage))
    if isinstance(stage, SupervisedStage):
        return state if initial is None else state.replace(params=initial)
    if isinstance(stage, RewardStage):
        if initial is None:
            return state
        return state.replace(params=stages.reward_from_language_model(state.params, initial))
    actor, critic = state.train.params["actor"], state.train.params["critic"]
    actor = actor if initial is None else initial
    if stage.ppo.critic_start == "reward":
        reward = _initial(run, stage, stage.reward_model, stages.reward_role(stage))
        if reward is None:  # fresh adapters on a reward model that was trained whole
            reward = {**critic, "head": run.load(stage.reward_model)["head"]}
        critic = stages.critic_from_reward_model(reward, run.pooling(stage.reward_model))
    else:
        critic = stages.own_copy(stages.critic_from_actor(critic, actor))
    params = {"actor": actor, "critic": critic}
    return state.replace(train=state.train.replace(params=params))


def _initial(run: Run, stage: Stage, name: str, role: str) -> Any:
    """What a model that is trained starts from; None for fresh adapters on what is named."""
    network = stages.network_of(stage, run.role(role).network)
    if network.lora is None:
        return run.load(name, role=role)
    return loading.start_of(run, stage, name, role)


def backbones(run: Run, stage: Stage) -> dict[str, tuple[str, str]]:
    """Returns the backbone's name, and the role, of each model that a stage trains by adapters.

    The models are `actor` and `critic` of a PPO stage, and `model` of any other.
    """
    networks, role = run.config.networks(stage), stages.role_of(stage)
    if not isinstance(stage, RLStage):
        models = {"model": (networks.actor, stage.initial, role)}
    else:
        models = {"actor": (networks.actor, stage.initial, role)}
        reward = networks.critic, stage.reward_model, stages.reward_role(stage)
        models["critic"] = models["actor"] if stage.ppo.critic_start == "actor" else reward
    return {
        model: (loading.backbone_of(run, name, role), role)
        for model, (network, name, role) in models.items()
        if network.lora
    }


def backbone(run: Run, stage: Stage, model: str) -> Any:
    """Returns the backbone of a model that a stage trains, see `backbones`; None for none."""
    found = backbones(run, stage).get(model)
    return None if found is None else loading.backbone(run, *found)


def _train_supervised(
    run: Run, stage: SupervisedStage | RewardStage, state, fit: Callable, progress
) -> Any:
    network, partitioner = run.config.networks(stage).actor, run.partitioner
    widths = run.role_of(stage).widths
    loss = stages.objective(stage, network, widths)
    step = supervised_step.make_step(loss, partitioner, stage.microbatches)
    frozen = backbone(run, stage, "model")
    held_out = None
    if isinstance(stage, RewardStage):
        objective = stages.held_out_objective(stage, network, widths)
        program = supervised_step.make_evaluation(objective, partitioner, stage.microbatches)

        def held_out(state):
            batches = held_out_batches(run, stage, "dev", stage.held_out)
            params = adapters.on(frozen, state.params)
            return supervised_step.evaluate(program, params, batches, partitioner)

    def placed(state, batch, number):
        del number
        batch = partitioner.shard_batch(batch)
        state, metrics = step(state, batch, frozen)
        rows, width = jax.tree.leaves(batch)[0].shape
        is_text = isinstance(stage, SupervisedStage)
        work = flops.training_step(rows, width, is_text, stage.microbatches)
        return state, metrics | {"model_flops": (flops.total(work, network), 1.0)}, dict

    batches = train_batches(run, stage, progress.step)
    with run.signals.training():
        return fit(state, placed, batches, stop=stage.steps, held_out=held_out)


def make_ppo_step(run: Run, stage: RLStage) -> Callable:
    """Makes the step of a PPO stage with ppo_step.make_step.

    Raises:
      UserError: if a model that it builds on isn't trained.
    """
    return ppo_step.make_step(
        run.config.networks(stage),
        stage.ppo,
        environment(run, stage),
        run.partitioner,
        frozen(run, stage),
        run.key("ppo", stage.name),
        run.role_of(stage).vocabulary.readable,
        translation(run, stage),
    )


def translation(run: Run, stage: RLStage) -> Callable[[Any], dict[str, np.ndarray]] | None:
    """Returns what makes of a Generation on the host what the stage's reward model reads of it.

    It is None where they have one vocabulary.
    """
    own, reward = run.role_of(stage), run.role(stages.reward_role(stage))
    if own.vocabulary == reward.vocabulary:
        return None

    def translate(generation) -> dict[str, np.ndarray]:
        pairs = zip(generation.tokens_BR, generation.mask_BR, strict=True)
        rows = [tokens[mask] for tokens, mask in pairs]
        texts = [own.vocabulary.decode(row) for row in rows]
        ended = [bool(is_end(row, own.vocabulary.ends).any()) for row in rows]
        read = [reward.read(*each) for each in zip(texts, ended, strict=True)]
        tokens_BR, mask_BR = reward.sampler.scored(read)
        return {
            "reward_response_tokens": tokens_BR,
            "reward_response_mask": mask_BR.astype(np.float32),
        }

    return translate


def environment(run: Run, stage: RLStage) -> Environment:
    """Returns how an episode of a PPO stage ends and what it scores.

    Raises:
      UserError: if its reward model isn't trained.
    """
    difference, role = stage.task == "rl_pit_difference", run.role_of(stage)
    return Environment(
        role.widths.response,
        run.pooling(stage.reward_model),
        0.0 if difference else run.anchor(stage.reward_model),
        difference,
        role.vocabulary.sampled_ids(role.network.vocab_size),
        role.vocabulary.ends,
    )


def _train_rl(run: Run, stage: RLStage, state, fit: Callable, progress) -> Any:
    step = make_ppo_step(run, stage)
    for number, round_, first, last in curriculum.locate(stage.rounds, progress.step):
        references = DATA_REFERENCES
        if round_.is_sampled:
            begins = progress.step == first
            if round_.source == "pit" and not begins:
                check_sampled(run, stage, number)
            actor = adapters.on(backbone(run, stage, "actor"), state.train.params["actor"])
            references = sample_references(run, stage, number, round_, actor, begins)
        batches = train_batches(run, stage, progress.step - first, number, references)
        with run.signals.training():
            state = fit(state, step, batches, stop=last)
    return state


def frozen(run: Run, stage: RLStage) -> Callable[[Any], Frozen]:
    """Returns a function that gives a PPO stage's models that it doesn't train, on devices.

    Where they are offloaded, backbones stay on the devices: the update needs them too.
    """
    models = {
        "reference": run.load_frozen(stage.reference, role=stages.role_of(stage)),
        "reward": run.load_frozen(stage.reward_model),
    }
    trained = {model: backbone(run, stage, model) for model in ("actor", "critic")}
    shared = Frozen.share(models, trained)
    if not stage.offload_frozen:
        return lambda after: shared
    waiting = OnHost(shared.models)
    return lambda after: shared.replace(models=waiting(after))


def train_batches(
    run: Run,
    stage: Stage,
    start_batch: int,
    round_number: int = 0,
    references: str = DATA_REFERENCES,
) -> Iterator:
    """Yields a stage's batches from `start_batch` on.

    Args:
      run: the run.
      stage: the stage.
      start_batch: number of the first batch, within the round if the stage has rounds.
      round_number: number of the round.
      references: directory of the round's reference store, or DATA_REFERENCES.
    """
    role = stages.role_of(stage)
    return run.data_of(role).batches(
        stages.rows_of(stage),
        "train",
        stage.batch_size,
        seed=seed_of(run, stage, round_number),
        start_batch=start_batch,
        references=references,
        reward=run.reward_data(stage),
    )


def held_out_batches(run: Run, stage: Stage, split: str, limit: int) -> Iterator:
    """Yields a split's rows in order, for a stage's task; at most `limit` rows, 0 for all.

    Rows that only fill up the last batch have weight 0.
    """
    return run.data_of(stages.role_of(stage)).batches(
        stage.task, split, stage.batch_size, shuffle=False, num_epochs=1, limit=limit
    )


def _writer(run: Run, stage: Stage, progress: loop.Progress) -> metrics_lib.MetricWriter:
    folder, step = run.folder(stage.name), progress.step
    jsonl = records.open_together(folder / records.NAME, step, progress.records)
    if jsonl is None:
        return metrics_lib.MetricWriter()
    if (lost := progress.records.get("count", 0) - jsonl.written()["count"]) > 0:
        print(f"{stage.name}: goes on without {lost} of its records", flush=True)
    console = metrics_lib.Console(stage.name, stage.steps, (*_SHOWN[type(stage)], "mfu"), step)
    writers: list[metrics_lib.Writer] = [jsonl, console]
    if run.config.tensorboard:
        writers.append(metrics_lib.TensorBoardWriter(folder / "tensorboard", step))
    if run.config.wandb_project:
        writers.append(
            metrics_lib.WandbWriter(
                run.config.wandb_project, str(folder), folder / run_directory.WANDB_ID
            )
        )
    return metrics_lib.MetricWriter(*writers)


def anchor(stage: RewardStage, held_out: dict[str, float]) -> float:
    """The score that counts as 0, of the reward model that is used.

    The losses see differences only and leave a model's offset free. Of R_P it is the mean score of
    the held-out y_w; of R_PIT that of a response which is its own reference, so that a gap above 0
    means an improvement.
    """
    if stage.task == "rm_gap":
        return (held_out["mean_ww"] + held_out["mean_ll"]) / 2
    return held_out["mean_score"] + held_out["margin"] / 2


def _finish(run: Run, stage: Stage, state: Any, progress: loop.Progress) -> None:
    """Writes the stage's result, for all processes to read."""
    processes.wait()  # the first one has closed the metrics
    found = records.read_jsonl(run.folder(stage.name) / records.NAME, progress.records)
    model = "actor" if isinstance(stage, RLStage) else "model"
    trained = state.train.params["actor"] if isinstance(stage, RLStage) else state.params
    params = adapters.on(backbone(run, stage, model), trained)
    last = found[-1] if found and found[-1].get("step") == progress.step else {}
    result = {
        "name": stage.name,
        "task": stage.task,
        "steps": progress.step,
        "seconds": progress.seconds,
        "tokens": progress.tokens,
        **loop.rates(progress.tokens, progress.flops, max(progress.seconds, 1e-9), run.peak),
        "parameters": adapters.count(params),
        "model_step": int(progress.best.get("step", progress.step)),
        "digest": digests.of_arrays(trained),
        "final": {k: v for k, v in last.items() if isinstance(v, float) and v == v},
        "records": records.summary(found),
    }
    if changes := run_directory.changes(run.folder(stage.name)):
        result["changes"] = changes
    if below := backbones(run, stage).get(model):
        result |= loading.record(run, *below, trained)
    if isinstance(stage, RewardStage):
        result["pooling"] = stage.reward.pooling
        result["anchor"] = anchor(stage, progress.best)
    if isinstance(stage, RLStage):
        result["references"] = [
            {"round": number, "count": len(store), "unended": store.unended}
            for number, round_ in enumerate(stage.rounds)
            if round_.is_sampled and round_.steps
            for store in [ReferenceStore(references_folder(run, stage, number))]
        ]
    run_directory.write_json(run.folder(stage.name) / "result.json", result)
    processes.wait()
