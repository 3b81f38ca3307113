"""Brings adapters in that the library PEFT has saved, as stages that runs start from or use.

A folder that it writes holds the base model as `run.hugging_face.bring_in` leaves it, and beside it
each adapter:

    model/  model.gin  tokenizer/    the base model
    NAME/   NAME.gin                 an adapter: a stage, and the settings of the network's adapters
"""

from __future__ import annotations

import dataclasses

import optax
from etils import epath

from pit_jax.data.vocabularies import tokenizer_files
from pit_jax.data.vocabularies.load import load as load_vocabulary
from pit_jax.errors import UserError
from pit_jax.files import write_whole
from pit_jax.models.config import LoraConfig
from pit_jax.models.weights import configs, peft
from pit_jax.models.weights.rows import flatten
from pit_jax.run import directory as run_directory
from pit_jax.run import hugging_face, stages
from pit_jax.runtime import digests, processes
from pit_jax.runtime.checkpoints import Checkpoints
from pit_jax.runtime.partitioning import MeshConfig, Partitioner
from pit_jax.runtime.train_state import TrainState

FILES = ("adapter_config.json", "adapter_model.safetensors")
_BASE = "model"


def bring_in(
    path: epath.Path,
    output: epath.Path,
    name: str,
    base: str = "",
    dtype: str = "bfloat16",
    chat_template: str = tokenizer_files.NO_TEMPLATE,
) -> LoraConfig:
    """Writes an adapter, and its base model unless that is there, see this module.

    Args:
      path: a folder that PEFT has saved.
      output: gets them.
      name: of the adapter's stage.
      base: the base model, a folder or a name on the hub; if empty it is what the adapter says.
      dtype: compute type of the network.
      chat_template: as of `hugging_face.bring_in`.

    Returns:
      the settings of the adapters.

    Raises:
      UserError: if it isn't LoRA as we have it, doesn't fit the base model, or `output` holds a
        stage of this name or another base model.
    """
    stages.check_name(name)
    stage = output / name
    if name in (_BASE, "tokenizer"):
        raise UserError(f"{path}: got an adapter called {name!r}, expected another name of it")
    if (stage / "result.json").exists():
        raise UserError(f"{stage}: is there already; delete it to write it again")
    base = base or peft.config_of(path).get("base_model_name_or_path") or ""
    if not base:
        raise UserError(f"{path}: doesn't say what its base model is, expected --base=NAME")
    there = hugging_face.found(base, "--base")
    family = configs.family_of(hugging_face.config_of(there))
    adapter = peft.describe(path, family)
    tokens = adapter.notes.pop("tokens", {})  # of the run that trained it
    if (output / _BASE / "result.json").exists():
        _check_base(output / _BASE, hugging_face.source_of(base, there))
    else:
        source = hugging_face.source_of(base, there)
        hugging_face.bring_in(there, output, dtype, chat_template, source, tokens)
    tokenizer = f"tokenizer:{output / 'tokenizer'}"
    vocabulary = load_vocabulary(tokenizer, chat_template=chat_template, **tokens)
    network = hugging_face.network_of(there, vocabulary, dtype)
    run_directory.check_identity(output / _BASE, run_directory.identity(network, vocabulary))
    network = dataclasses.replace(network, lora=adapter.lora)
    init = stages.init_scalar_model if adapter.is_scalar else stages.init_language_model
    part = stages.trained_part(init, network)
    abstract = stages.abstract_model(part, Partitioner(MeshConfig()))
    rows = hugging_face.config_of(there)["vocab_size"]
    own = peft.read(path, family, hugging_face.with_rows(abstract, rows))
    own = hugging_face.in_our_order(own, vocabulary, abstract)
    identity = run_directory.identity(network, vocabulary)
    content = {"digest": digests.of_arrays(own)}
    run_directory.claim(stage, {**identity, **content}, identity)
    checkpoints = Checkpoints(stage / "checkpoints")
    checkpoints.save(0, TrainState.create(own, optax.identity()), {"step": 0})
    checkpoints.check_saved()
    checkpoints.close()
    if processes.is_first():
        write_whole(output / f"{name}.gin", _gin(name, adapter.lora))
    result = {
        "name": stage.name,
        **({"task": "rm_policy", "pooling": "last"} if adapter.is_scalar else {"task": "pretrain"}),
        **adapter.notes,
        "steps": 0,
        "model_step": 0,
        **content,
        "backbone": _BASE,
        "lora": dataclasses.asdict(adapter.lora),
        "trained_parameters": sum(x.size for _, x in flatten(own)),
    }
    run_directory.write_json(stage / "result.json", result)
    processes.wait()
    return adapter.lora


def _check_base(stage: epath.Path, source: str) -> None:
    """Refuses a base model that another one was brought in as."""
    before = run_directory.read_json(stage / "result.json").get("source")
    if before != source:
        raise UserError(
            f"{stage}: is {before!r}, expected {source!r}, the adapter's base model; write it into "
            "another --output"
        )


def _gin(name: str, lora: LoraConfig) -> str:
    """A file that gives a run's network the settings of an adapter."""
    return "\n".join(
        [
            f"# The adapters of {name}, for the network of model.gin.",
            "from __gin__ import dynamic_registration",
            "from pit_jax.models import config",
            "",
            "config.NetworkConfig.lora = @config.LoraConfig()",
            "config.LoraConfig:",
            f"    rank = {lora.rank!r}",
            f"    alpha = {lora.alpha!r}",
            f"    targets = {lora.targets!r}",
            f"    rslora = {lora.rslora!r}",
            "",
        ]
    )
