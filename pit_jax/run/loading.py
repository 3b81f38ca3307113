"""Loads trained models: whole ones, or adapters with the frozen backbone that they share.

A stage of a network with adapters (`NetworkConfig.lora`) keeps only what it trains. Its
`result.json` names the `backbone`, another stage or the path of a model, and has the settings of
its adapters as `lora`. Each backbone is on the devices once, for all roles of a run.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from pit_jax.data.vocabularies.base import Vocabulary
from pit_jax.data.vocabularies.load import load as load_vocabulary
from pit_jax.errors import UserError
from pit_jax.models import adapters
from pit_jax.models.config import LoraConfig, NetworkConfig
from pit_jax.models.network import in_compute_type
from pit_jax.run import directory as run_directory
from pit_jax.run import hugging_face, shapes, stages, t5x_checkpoints
from pit_jax.run.config import RoleConfig
from pit_jax.run.stages import Stage
from pit_jax.runtime import processes
from pit_jax.runtime.checkpoints import Checkpoints

Run = Any  # a run.run.Run, which imports this module


def vocabulary(model: RoleConfig, words: Any) -> Vocabulary:
    """Loads the vocabulary of a role.

    Args:
      model: of the role.
      words: what Self-Refine's prompts add to a vocabulary of words.

    Raises:
      UserError: if its network hasn't rows for all ids.
    """
    found: Vocabulary = load_vocabulary(
        model.vocabulary,
        words,
        model.control_tokens,
        model.eos_token,
        model.pad_token,
        model.chat_template,
    )
    if found.vocab_size > model.network.vocab_size:
        raise UserError(
            f"network: got vocab_size={model.network.vocab_size}, expected at least "
            f"{found.vocab_size}, the size of vocabulary {model.vocabulary!r} with its ids "
            "for padding and control tokens"
        )
    return found


def identity(run: Run, role: str, lora: LoraConfig | None) -> dict[str, str]:
    """Returns what gives a role's parameters their meaning, with these adapters."""
    own = run.role(role)
    network = dataclasses.replace(own.network, lora=lora)
    return run_directory.identity(network, own.vocabulary)


def lora_of(run: Run, name: str, role: str) -> LoraConfig | None:
    """Returns the settings of a complete stage's adapters, None for a model that has none."""
    found = _recorded(run, name, role).get("lora")
    return LoraConfig(**found) if found else None


def backbone_of(run: Run, name: str, role: str) -> str:
    """Returns what a stage's adapters are on, or the stage itself if it has none."""
    backbone = _recorded(run, name, role).get("backbone", name)
    if "/" in name and "/" not in backbone:  # a stage beside it, in another run
        backbone = str(run.folder(name).parent / backbone)
    return backbone


def _recorded(run: Run, name: str, role: str) -> dict[str, Any]:
    """What a stage's result says, also where its checkpoint isn't chosen yet; nothing of T5X's."""
    if run.is_complete(name):
        return run_directory.read_json(run.folder(name) / "result.json")
    return {} if run.is_from_t5x(name) else run.result(name, role)


def load(run: Run, name: str, step: int | None, role: str) -> Any:
    """Loads float32 parameters; for the arguments see `Run.load`.

    Returns:
      a tree; or an Adapted where the model has adapters, of the settings that the network has. If
      the network has others or none, they are merged into the matrices.
    """
    lora = lora_of(run, name, role)
    if lora is None:
        return _whole(run, name, step, role)
    backbone = _whole(run, backbone_of(run, name, role), None, role)
    if lora.backbone == "int8":  # the model's matrices are those that it was trained with
        backbone = adapters.dequantised(adapters.quantised(backbone))
    params = adapters.Adapted(backbone, own(run, name, step, role))
    return params if _same(lora, run.role(role).network.lora) else adapters.merged(params, lora)


def load_frozen(run: Run, name: str, step: int | None, role: str) -> Any:
    """Loads parameters in the compute type, on the backbone that all models of it share."""
    network, lora = run.role(role).network, lora_of(run, name, role)
    if network.lora and lora is None and step in (None, run.result(name, role)["model_step"]):
        return backbone(run, name, role)
    if lora is not None and _same(lora, network.lora):
        loaded = in_compute_type(own(run, name, step, role), network)
        return adapters.Adapted(backbone(run, backbone_of(run, name, role), role), loaded)
    return in_compute_type(load(run, name, step, role), network)


def own(run: Run, name: str, step: int | None, role: str) -> Any:
    """Loads what a stage has trained of a model with adapters, float32."""
    lora = lora_of(run, name, role)
    network = dataclasses.replace(run.role(role).network, lora=lora)
    return _restored(run, name, step, role, network)


def backbone(run: Run, name: str, role: str) -> Any:
    """Returns the backbone that a trained model without adapters is, as the network keeps it.

    It is loaded once for all that ask for it.
    """
    network, lora = run.role(role).network, run.role(role).network.lora
    int8 = lora is not None and lora.backbone == "int8"
    # Not by the step alone: another vocabulary orders the rows of a Hugging Face model otherwise.
    meaning = tuple(sorted(identity(run, role, None).items()))
    folder, step = str(run.folder(name)), run.result(name, role)["model_step"]
    key = folder, step, meaning, "int8" if int8 else network.dtype
    if key not in run.backbones:
        whole = _whole(run, name, None, role)
        if int8:
            like = shapes.quantised_like(whole)
            shardings = shapes.shardings(like)
            found = run.partitioner.jit(adapters.quantised, out_shardings=shardings)(whole)
            error = adapters.quantisation_error(whole, found)
            run.quantisation_errors[folder] = error
            if processes.is_first():
                print(f"{name}: int8, relative error of the matrices {error:.2%}", flush=True)
        else:
            found = in_compute_type(whole, network)
        run.backbones[key] = found
    return run.backbones[key]


def start_of(run: Run, stage: Stage, initial: str, role: str) -> Any:
    """Returns what is trained of the model that a stage with adapters starts from, float32.

    It is None for fresh adapters, on a model that has none.

    Args:
      run: the run.
      stage: the stage.
      initial: the stage, or path, of the model.
      role: the role of its model, whose network has adapters.

    Raises:
      UserError: if there is no model to start from, or its adapters have other settings.
    """
    check_start(run, stage, initial, role)
    return None if lora_of(run, initial, role) is None else own(run, initial, None, role)


def record(run: Run, backbone: str, role: str, trained: Any) -> dict[str, Any]:
    """Returns what the `result.json` of a stage that has trained adapters says of them."""
    lora = run.role(role).network.lora
    assert lora is not None
    folder = str(run.folder(backbone))
    error = run.quantisation_errors.get(folder)
    return {
        "backbone": backbone,
        "lora": dataclasses.asdict(lora),
        "trained_parameters": sum(x.size for x in jax.tree.leaves(trained)),
    } | ({} if error is None else {"quantisation_error": error})


def check_start(run: Run, stage: Stage, initial: str, role: str) -> None:
    """Refuses what a stage with adapters can't start from; what isn't trained yet passes.

    Raises:
      UserError: as `start_of`.
    """
    network = run.role(role).network
    if not initial:
        raise UserError(
            f"stage {stage.name}: got no initial, expected the stage or path of a model: with "
            "NetworkConfig.lora its matrices stay as they are"
        )
    before = lora_of(run, initial, role) if run.is_complete(initial) else None
    if before is not None and not _same(before, network.lora):
        raise UserError(
            f"stage {stage.name}: got {network.lora}, expected {before}, the adapters of "
            f"{initial!r}, which it starts from"
        )


def check(run: Run, name: str, role: str) -> None:
    """Refuses a complete stage whose parameters mean something else here.

    Raises:
      UserError: if vocabulary or architecture differ.
    """
    run_directory.check_identity(run.folder(name), identity(run, role, lora_of(run, name, role)))


def _same(one: LoraConfig | None, other: LoraConfig | None) -> bool:
    """Whether adapters of the one mean the same as of the other."""
    if one is None or other is None:
        return one is other
    return dataclasses.replace(one, backbone=other.backbone) == other


def _whole(run: Run, name: str, step: int | None, role: str) -> Any:
    """Loads a model without adapters, float32."""
    folder, network = run.folder(name), run.role(role).network.without_adapters
    inits = stages.init_language_model, stages.init_scalar_model
    if hugging_face.is_model(folder):
        model = stages.abstract_model(inits[0](network), run.partitioner)
        return hugging_face.load(folder, network, run.role(role).vocabulary, model)
    if checkpoint := run.t5x_checkpoint(name, step):
        models = (stages.abstract_model(init(network), run.partitioner) for init in inits)
        return t5x_checkpoints.load(checkpoint, network, *models)
    return _restored(run, name, step, role, network)


def _restored(run: Run, name: str, step: int | None, role: str, network: NetworkConfig) -> Any:
    folder, result = run.folder(name), _recorded(run, name, role)
    step, task = step or run.result(name, role)["model_step"], run.task_of(name, role)
    check(run, name, role)
    init = (stages.init_language_model, stages.init_scalar_model)[task in stages.REWARD_TASKS]
    like = stages.abstract_model(stages.trained_part(init, network), run.partitioner)
    stage = result.get("name", "")  # that of the folder, unless this was renamed
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True, stage=stage)
    params = checkpoints.restore_model(like, step)
    checkpoints.close()
    return params
