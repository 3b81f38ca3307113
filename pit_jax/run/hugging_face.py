"""Brings a base model in from a Hugging Face folder, and takes a trained one out into another.

The folder's weights are in the order of its tokenizer's ids. Ours have padding at 0 and EOS at 1,
and rows for the ids that a vocabulary has added to the tokenizer's own, such as the control tokens.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec

from pit_jax.data.vocabularies import tokenizer_files
from pit_jax.data.vocabularies.base import PAD_ID
from pit_jax.data.vocabularies.load import load as load_vocabulary
from pit_jax.errors import UserError
from pit_jax.files import absolute, write_whole
from pit_jax.method.roles import GAP_REWARD, PIT, POLICY, POLICY_REWARD
from pit_jax.models.config import NetworkConfig
from pit_jax.models.weights import configs, gguf_files, hugging_face
from pit_jax.models.weights.rows import flatten, nest
from pit_jax.run import directory as run_directory
from pit_jax.run import stages
from pit_jax.runtime import digests, processes
from pit_jax.runtime.checkpoints import Checkpoints
from pit_jax.runtime.partitioning import MeshConfig, Partitioner
from pit_jax.runtime.train_state import TrainState

# Parameters with a dim of ids, and which dim that is.
_OF_IDS = {
    "decoder/embed/embedding": 0,
    "decoder/unembed/kernel": 1,
    "decoder/unembed/lora_b": 1,
}
# How a network is run on this machine and what is trained of it, which weights don't say;
# `vocab_size` is checked apart.
_FREE = ("vocab_size", "dtype", "remat", "attention", "lora")
# A multiple of it are the rows of ids that we make, which a mesh can split and a TPU has no
# remainder of.
_ROWS = 128
# The settings that say which pieces of a tokenizer are used for what.
TOKENS = ("control_tokens", "eos_token", "pad_token")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)


def is_model(path: epath.Path) -> bool:
    """Returns whether a path is a Hugging Face model's folder, or a GGUF file."""
    return path.suffix == ".gguf" or (path / "config.json").exists()


def not_found(folder: epath.Path, name: str) -> str:
    """Says that a stage isn't trained, or which file is meant where its folder has GGUF files."""
    files = sorted(folder.glob("*.gguf")) if folder.is_dir() else []
    if files:
        return f"{folder}: has no config.json; to start from its GGUF file, name {files[0]}"
    return f"{folder / 'result.json'}: not found; train stage {name!r} first"


def config_of(path: epath.Path) -> dict[str, Any]:
    """Reads what describes a model, in the words of a `config.json`.

    Raises:
      UserError: if that can't be read, or the family isn't known.
    """
    if path.suffix == ".gguf":
        return gguf_files.GGUFFile(path).config()
    return hugging_face.config_of_folder(path)


def _network_of(path: epath.Path, config: Any, dtype: str, remat: str = "full") -> NetworkConfig:
    try:
        return configs.network_of(config, dtype, remat)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def check(
    path: epath.Path, network: NetworkConfig, vocabulary: Any, abstract: Any
) -> tuple[Any, Any, Any]:
    """Refuses a model that isn't the run's network, or whose tokenizer isn't the vocabulary.

    Only `config.json` and the names and shapes of the tensors are read.

    Args:
      path: a Hugging Face folder with safetensors, or a GGUF file.
      network: the network of the run.
      vocabulary: the vocabulary of the run, made of the model's tokenizer.
      abstract: parameters of a LanguageModel, or of a ScalarModel for a model with one label, with
        shapes and shardings.

    Returns:
      the tensors, the family's table, and `abstract` with the model's rows of ids: what
      `models.weights.hugging_face.fill` takes.

    Raises:
      UserError: it names the field or the tensor, what the model has and what the run has.
    """
    config = config_of(path)
    architecture = (config.get("architectures") or ["a language model"])[0]
    if "ForSequenceClassification" in architecture and "head" not in (abstract or {}):
        raise UserError(f"{path}: got a {architecture}, expected a language model to start from")
    of_model = dataclasses.asdict(_network_of(path, config, network.dtype, network.remat))
    for field, value in dataclasses.asdict(network).items():
        if field not in _FREE and of_model[field] != value:
            raise UserError(
                f"{path}: got {field}={of_model[field]!r} in its config, expected {value!r}, which "
                "the run's network has; `convert --from=hf` writes the gin file of its network"
            )
    rows = config["vocab_size"]
    pieces = getattr(vocabulary, "num_pieces", None)
    if pieces is None:
        raise UserError(
            f"{path}: got a vocabulary that isn't this model's, expected its own, such as "
            f"VOCABULARY = 'tokenizer:{path}'"
        )
    if pieces > rows:
        raise UserError(
            f"{path}: got {rows} rows of the embedding, expected at least {pieces}, one for each "
            "piece of the tokenizer"
        )
    theirs = with_rows(abstract, rows)
    if path.suffix == ".gguf":
        return *gguf_files.checked(path, theirs), theirs
    return *hugging_face.checked(path, theirs), theirs


def load(path: epath.Path, network: NetworkConfig, vocabulary: Any, abstract: Any) -> Any:
    """Loads the parameters that a stage starts from, tensor by tensor onto the mesh.

    Args:
      path: a Hugging Face folder with safetensors, or a GGUF file.
      network: the network of the run.
      vocabulary: the vocabulary of the run, made of the model's tokenizer.
      abstract: parameters of a LanguageModel, or of a ScalarModel for a model with one label, with
        shapes and shardings.

    Returns:
      parameters in the structure of `abstract`.

    Raises:
      UserError: if it doesn't fit network and vocabulary; see `check`.
    """
    tensors, table, theirs = check(path, network, vocabulary, abstract)
    return in_our_order(hugging_face.fill(tensors, table, theirs), vocabulary, abstract)


def in_our_order(params: Any, vocabulary: Any, abstract: Any) -> Any:
    """Brings parameters with a model's rows of ids into our order.

    Args:
      params: the parameters.
      vocabulary: the vocabulary of the run, made of the model's tokenizer.
      abstract: the same with our rows, with shapes and shardings.
    """
    leaves = dict(flatten(params))
    for name, leaf in flatten(abstract):
        if name in _OF_IDS:
            dim = _OF_IDS[name]
            source = rows_of(vocabulary, leaf.shape[dim], leaves[name].shape[dim])
            arrange = _arrange(dim, vocabulary.num_pieces, leaf.sharding)
            leaves[name] = arrange(leaves[name], source)
    return nest(leaves)


def in_their_order(params: Any, vocabulary: Any) -> Any:
    """Brings parameters into the order of the tokenizer, added pieces after its own."""
    ids, leaves = vocabulary.tokenizer_ids, dict(flatten(params))
    for name, dim in _OF_IDS.items():
        if name in leaves:
            source = np.arange(leaves[name].shape[dim], dtype=np.int32)
            source[ids] = np.arange(len(ids))
            leaves[name] = jnp.take(leaves[name], source, axis=dim)
    return nest(leaves)


def rows_of(vocabulary: Any, size: int, rows: int) -> np.ndarray:
    """Says which row of a model each row of ours is; -1 where it is the mean of all pieces' rows.

    Args:
      vocabulary: made of the model's tokenizer.
      size: rows of our embedding.
      rows: rows of the model's embedding, which may be more than its tokenizer has pieces.

    Returns:
      int32 [size]; rows beyond the vocabulary are the model's of the same number.
    """
    source = np.arange(size, dtype=np.int32)
    source[: vocabulary.vocab_size] = vocabulary.tokenizer_ids
    within = np.arange(size) < vocabulary.vocab_size
    return np.where(np.where(within, source < vocabulary.num_pieces, source < rows), source, -1)


@functools.cache
def _arrange(dim: int, pieces: int, sharding: NamedSharding):
    """Makes a program that brings a parameter's rows into our order."""

    def arrange(array, source):
        mean = jnp.mean(jax.lax.slice_in_dim(array, 0, pieces, axis=dim), dim, keepdims=True)
        known = jnp.expand_dims(source >= 0, 1 - dim)
        taken = jnp.take(array, jnp.maximum(source, 0), axis=dim)
        return jnp.where(known, taken, jnp.broadcast_to(mean, taken.shape))

    return jax.jit(arrange, out_shardings=sharding)


def with_rows(abstract: Any, rows: int) -> Any:
    """The abstract parameters with so many rows of ids, whole on each device if they must."""
    leaves = dict(flatten(abstract))
    for name, dim in _OF_IDS.items():
        if name not in leaves:
            continue
        leaf = leaves[name]
        shape = tuple(rows if n == dim else size for n, size in enumerate(leaf.shape))
        sharding = leaf.sharding
        if not _splits(sharding, shape):
            sharding = NamedSharding(sharding.mesh, PartitionSpec())
        leaves[name] = jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)
    return nest(leaves)


def _splits(sharding: NamedSharding, shape: tuple[int, ...]) -> bool:
    try:
        sharding.shard_shape(shape)
    except ValueError:
        return False
    return True


def save(
    folder: epath.Path,
    params: Any,
    network: NetworkConfig,
    vocabulary: Any,
    dtype: str = "float32",
    model_type: str | None = None,
) -> str:
    """Writes a model's `config.json`, `generation_config.json` and weights, for transformers.

    The rows of ids are in the tokenizer's order, those of added pieces after its own.

    Args:
      folder: a folder, made if missing.
      params: of a LanguageModel or a ScalarModel.
      network: its network.
      vocabulary: made of the tokenizer that is written beside it.
      dtype: of the tensors: `float32` or `bfloat16`.
      model_type: the family; None for the first that computes what the network does.

    Returns:
      the class of transformers that loads it.

    Raises:
      UserError: if no family, or not this one, computes what the network does.
    """
    ids, params = vocabulary.tokenizer_ids, in_their_order(params, vocabulary)
    ends = [int(ids[end]) for end in vocabulary.ends]
    tokens: dict[str, Any] = {"eos_token_id": ends[0], "pad_token_id": int(ids[PAD_ID])}
    if vocabulary.bos_id is not None:
        tokens["bos_token_id"] = int(ids[vocabulary.bos_id])
    config = hugging_face.write(folder, params, network, model_type, dtype, tokens)
    if "head" not in params:
        generation = tokens | {"eos_token_id": ends if ends[1:] else ends[0]}
        generation |= {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        run_directory.write_json(folder / "generation_config.json", generation)
    return config["architectures"][0]


def bring_in(
    path: epath.Path,
    output: epath.Path,
    dtype: str = "bfloat16",
    chat_template: str = tokenizer_files.NO_TEMPLATE,
    source: str = "",
    tokens: Mapping[str, Any] = {},
) -> NetworkConfig:
    """Writes a Hugging Face model as `gin/stages/paper.gin` expects a base model.

    Args:
      path: a Hugging Face folder, or a GGUF file with the tokenizer's files beside it.
      output: gets `model.gin`, its network; `model`, a stage's folder that other stages start from;
        and `tokenizer`, the tokenizer's files.
      dtype: compute type of the network.
      chat_template: that of the runs that start from it, which settles what ends a response.
      source: what to call the model in adapters that are trained on it, its name on the hub or its
        folder.
      tokens: those runs' settings of TOKENS; the defaults where there are none.

    Returns:
      the network.

    Raises:
      UserError: if the model or its tokenizer can't be read, or `output` holds a model already.
    """
    stage = output / "model"
    if (stage / "result.json").exists():
        raise UserError(f"{stage}: is there already; delete it to write it again")
    beside = path.parent if path.suffix == ".gguf" else path
    for name in _TOKENIZER_FILES:
        if (beside / name).exists():
            write_whole(output / "tokenizer" / name, (beside / name).read_bytes())
    tokenizer = f"tokenizer:{output / 'tokenizer'}"
    vocabulary = load_vocabulary(tokenizer, chat_template=chat_template, **tokens)
    network = network_of(path, vocabulary, dtype)
    partitioner = Partitioner(MeshConfig())
    abstract = stages.abstract_model(stages.init_language_model(network), partitioner)
    params = load(path, network, vocabulary, abstract)
    identity = run_directory.identity(network, vocabulary)
    content = {"digest": digests.of_arrays(params)}
    run_directory.claim(stage, {**identity, **content}, identity)
    checkpoints = Checkpoints(stage / "checkpoints")
    checkpoints.save(0, TrainState.create(params, optax.identity()), {"step": 0})
    checkpoints.check_saved()
    checkpoints.close()
    if processes.is_first():
        write_whole(output / "model.gin", network_gin(network, path))
    result = {"name": stage.name, "task": "pretrain", "steps": 0, "model_step": 0}
    result |= {"source": source, **content}
    run_directory.write_json(stage / "result.json", result)
    processes.wait()
    return network


def network_of(path: epath.Path, vocabulary: Any, dtype: str) -> NetworkConfig:
    """Returns the network of a model, with rows for all ids of a vocabulary of its tokenizer.

    Raises:
      UserError: if it can't be read, or we don't compute it.
    """
    network = _network_of(path, config_of(path), dtype)
    size = max(network.vocab_size, vocabulary.vocab_size)
    return dataclasses.replace(network, vocab_size=math.ceil(size / _ROWS) * _ROWS)


def network_gin(network: NetworkConfig, path: epath.Path) -> str:
    """Returns a file of `gin/models/` for a network; fields at their defaults are left out."""
    lines = [
        f"# The network of {path.name}, as its config describes it.",
        "# Commonly overridden: dtype, remat.",
        "from __gin__ import dynamic_registration",
        "from pit_jax.models import config",
        "",
        "config.NetworkConfig:",
    ]
    for field in dataclasses.fields(network):
        value = getattr(network, field.name)
        if field.default is dataclasses.MISSING or value != field.default:
            lines.append(f"    {field.name} = {value!r}")
    return "\n".join(lines) + "\n"


def role_gin(network: NetworkConfig, output: epath.Path, chat_template: str, role: str) -> str:
    """Returns a gin file that gives one role of a run a base model of its own.

    Args:
      network: the model's network; all of its fields are written, as the run's may have others.
      output: where `bring_in` has written the model.
      chat_template: what makes its prompts.
      role: one of method.roles.ROLES.
    """
    stage = {
        POLICY: "sft_policy/stages.SupervisedStage",
        PIT: "sft_pit/stages.SupervisedStage",
        POLICY_REWARD: "rm_policy/stages.RewardStage",
        GAP_REWARD: "rm_gap/stages.RewardStage",
    }[role]
    lines = [
        f"# A base model of its own for the role {role}; given after a run's file.",
        "# Commonly overridden: dtype, remat; lengths of RoleConfig, where the run's don't suit.",
        "from __gin__ import dynamic_registration",
        "from pit_jax.models import config",
        "from pit_jax.run import config as run_config",
        "from pit_jax.run import stages",
        "",
        f"{role}/config.NetworkConfig:",
    ]
    for field in dataclasses.fields(network):
        if field.name != "lora":  # adapters are the run's to say
            lines.append(f"    {field.name} = {getattr(network, field.name)!r}")
    lines += [
        f"{role}/run_config.RoleConfig:",
        f"    network = @{role}/config.NetworkConfig()",
        f"    vocabulary = {f'tokenizer:{output}/tokenizer'!r}",
        f"    chat_template = {chat_template!r}",
        f"run_config.RunConfig.{role} = @{role}/run_config.RoleConfig()",
        f"{stage}.initial = {f'{output}/model'!r}",
    ]
    return "\n".join(lines) + "\n"


def source_of(name: str, there: epath.Path) -> str:
    """Returns what to call a model: its name on the hub, or else the whole path of its folder."""
    if there.suffix == ".gguf":
        return ""  # its weights are no Hugging Face model's
    return str(absolute(there)) if epath.Path(name).expanduser().exists() else name


def found(name: str, flag: str = "--input", more: tuple[str, ...] = ()) -> epath.Path:
    """Returns where a model is, which the hub's client fetches if it is nowhere here.

    Args:
      name: a folder, a GGUF file, or a name on the hub such as `HuggingFaceTB/SmolLM2-135M`.
      flag: what names it, for messages.
      more: files to fetch beside a model's own.

    Raises:
      UserError: if there is no such folder or file, and the hub gives none either.
    """
    path = epath.Path(name).expanduser()
    if path.exists():
        return path
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"{flag}: {name} not found, expected a folder, a GGUF file or a hub name")
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.safetensors.index.json", "config.json", *_TOKENIZER_FILES]
    patterns += more
    try:
        return epath.Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{flag}: {name}: no folder here, and from the hub: {reason}") from error
