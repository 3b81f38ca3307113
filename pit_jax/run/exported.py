"""Takes all models out that improve, into one directory, and reads such a directory as a run.

The directory has a folder for each of the policy, the PIT model and R_PIT, as exports.py makes
them, and `pit_jax.json`. That says what their `config.json` doesn't: what the models are asked, in
which windows, which score of R_PIT counts as 0, and how to sample. It names no path, so the
directory may be moved.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from pit_jax.data import datasets
from pit_jax.data.datasets import DatasetConfig, MixtureConfig
from pit_jax.data.layouts import Lengths
from pit_jax.data.vocabularies.load import load as load_vocabulary
from pit_jax.errors import UserError
from pit_jax.files import write_whole
from pit_jax.method import self_refine
from pit_jax.method.decode import SamplingConfig
from pit_jax.method.improve import ImproveConfig
from pit_jax.method.roles import POLICY
from pit_jax.models.network import in_compute_type
from pit_jax.models.weights import configs
from pit_jax.models.weights import hugging_face as weights
from pit_jax.run import directory as run_directory
from pit_jax.run import exports, hugging_face, stages
from pit_jax.run.config import RoleConfig, RunConfig
from pit_jax.run.improver import GAP_MODEL, PIT, ROLE_OF, ROLES
from pit_jax.run.run import Run
from pit_jax.runtime import processes

FILE = "pit_jax.json"
_FORMAT = 1
_PROMPTS = "self_refine.json"
# What a role's tokenizer is read by, beside its files.
_NAMES = ("control_tokens", "eos_token", "pad_token")


def is_exported(folder: epath.Path) -> bool:
    """Returns whether a directory is one of this module's."""
    return (folder / FILE).exists()


# --- writing ----------------------------------------------------------------------------------


def take_out(
    run: Run, names: Mapping[str, str], folder: epath.Path, dtype: str = "float32"
) -> list[str]:
    """Writes the models of the roles of `improver.ROLES` and what is to be known of them.

    Args:
      run: the run that trained them.
      names: the stage of each role.
      folder: a folder, made if missing.
      dtype: of the weights: `float32` or `bfloat16`.

    Returns:
      a line for each role that says what became of it. R_PIT is left out where transformers
      couldn't read its score.

    Raises:
      UserError: if a model isn't trained, or can't be taken out.
    """
    results = {role: run.result(names[role], ROLE_OF[role]) for role in ROLES}
    said: list[str] = []
    models: dict[str, Any] = {}
    for role, result in results.items():
        pooling = result.get("pooling", "last")
        if pooling != "last":
            said.append(
                f"{role}: {names[role]} is left out, since its pooling is {pooling!r} and "
                "transformers reads the score at the last token"
            )
            continue
        exports.take_out(run, names[role], folder / role, dtype)
        models[role] = _described(run, names[role], role, result, models)
        _check_tokenizer(run, role, folder)
        said.append(f"{role}: {names[role]}, step {result['model_step']}")
    config = run.config
    improve = dataclasses.asdict(config.improve)
    if processes.is_first():
        shipped = {path.stem for path in self_refine.SHIPPED.glob("*.json")}
        if config.improve.self_refine not in shipped:
            text = epath.Path(config.improve.self_refine).read_text()
            write_whole(folder / _PROMPTS, text)
            improve["self_refine"] = _PROMPTS
    content = {
        "format": _FORMAT,
        "seed": config.seed,
        "sampling_batch": config.sampling_batch,
        "shard_size": config.shard_size,
        "prompts": [_prompts(part) for part in _parts(config.dataset)],
        "improve": improve,
        "models": models,
    }
    run_directory.write_json(folder / FILE, content)
    return said


def _described(
    run: Run, name: str, role: str, result: Mapping[str, Any], before: Mapping[str, Any]
) -> dict[str, Any]:
    """What there is to say of a model that its own files don't."""
    own = run.config.of_role(ROLE_OF[role])
    same = (other for other in before if run.config.of_role(ROLE_OF[other]) == own)
    score = {"pooling": result["pooling"], "anchor": run.anchor(name)} if role == GAP_MODEL else {}
    return {
        "stage": name,
        "task": result["task"],
        "model_step": result["model_step"],
        **score,
        "dtype": own.network.dtype,
        "lengths": dataclasses.asdict(own.windows),
        "tokenizer": next(same, role),
        **{name: getattr(own, name) for name in _NAMES},
    }


def _check_tokenizer(run: Run, role: str, folder: epath.Path) -> None:
    own, written = run.config.of_role(ROLE_OF[role]), folder / role
    names = {name: getattr(own, name) for name in _NAMES}
    again = load_vocabulary(f"tokenizer:{written}", chat_template=_template(written), **names)
    before: Any = run.role(ROLE_OF[role]).vocabulary
    same = np.array_equal(again.tokenizer_ids, before.tokenizer_ids)  # type: ignore[attr-defined]
    if not same or (again.ends, again.bos_id) != (before.ends, before.bos_id):
        raise UserError(
            f"{written}: its tokenizer has other ids than the run's; set eos_token, pad_token and "
            "control_tokens of RunConfig to the names of its pieces"
        )


def _template(folder: epath.Path) -> str:
    return "tokenizer" if (folder / "chat_template.jinja").exists() else "none"


def _parts(dataset: DatasetConfig | MixtureConfig) -> Sequence[DatasetConfig]:
    return dataset.parts if isinstance(dataset, MixtureConfig) else (dataset,)


def _prompts(part: DatasetConfig) -> dict[str, Any]:
    """How x is made of a prompt: as it stands or as a turn, and under which key a record has it."""
    prompt = (part.columns or {}).get("prompt")
    columns = {"prompt": prompt} if prompt else None
    return {"as_it_stands": datasets.is_synthetic(part), "columns": columns}


# --- reading ----------------------------------------------------------------------------------


class ExportedRun(Run):
    """Is a run whose trained models are those of an exported directory.

    Attributes:
      stages: the stage of each role that the directory has.
    """

    def __init__(
        self,
        folder: epath.Path,
        devices: Sequence[jax.Device] | None = None,
        changes: Mapping[str, Any] | None = None,
    ):
        """Reads the directory.

        Args:
          folder: what `take_out` has written.
          devices: the devices to use; all of `jax.devices()` by default.
          changes: fields of the RunConfig that are other ones.

        Raises:
          UserError: if it isn't such a directory, or isn't whole.
        """
        found = read(folder)
        self._models = found["models"]
        self.stages = {role: model["stage"] for role, model in self._models.items()}
        config = dataclasses.replace(config_of(folder, found), **(changes or {}))
        super().__init__(config, devices)

    def folder(self, name: str) -> epath.Path:
        """Returns the folder of a stage's model."""
        return self.directory / self._role(name)

    def result(self, name: str, role: str = POLICY) -> dict[str, Any]:
        """Returns the task, model_step and, of a reward model, pooling and anchor of a stage."""
        del role
        return self._models[self._role(name)]

    def load(self, name: str, step: int | None = None, role: str = "") -> Any:
        """Loads the float32 parameters of a stage's model; it has no other step."""
        del step
        own, folder = self.role(role or self.role_name(name)), self.folder(name)
        scalar = self.task_of(name) in stages.REWARD_TASKS
        init = stages.init_scalar_model if scalar else stages.init_language_model
        model = stages.abstract_model(init(own.network), self.partitioner)
        return hugging_face.load(folder, own.network, own.vocabulary, model)

    def load_frozen(self, name: str, step: int | None = None, role: str = "") -> Any:
        """Loads the parameters of `load` in the compute type."""
        network = self.role(role or self.role_name(name)).network
        return in_compute_type(self.load(name, step, role), network)

    def _role(self, name: str) -> str:
        for role, stage in self.stages.items():
            if stage == name:
                return role
        known = ", ".join(self.stages.values())
        raise UserError(f"{self.directory}: got stage {name!r}, expected one of {known}")


def read(folder: epath.Path) -> dict[str, Any]:
    """Reads what `take_out` has written of its models.

    Raises:
      UserError: if it isn't there or can't be read.
    """
    path = folder / FILE
    if not path.exists():
        raise UserError(f"{path}: not found; `convert --to=hf` without STAGE writes it")
    try:
        found = json.loads(path.read_text())
        made, models = found["format"], found["models"]
        missing = [role for role in (POLICY, PIT) if role not in models]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: isn't what `convert --to=hf` writes: {error!r}") from None
    if made != _FORMAT or missing:
        what = f"no {missing[0]}" if missing else f"format {made!r}"
        raise UserError(f"{path}: got {what}, expected format {_FORMAT} with policy and pit")
    return found


def config_of(folder: epath.Path, found: Mapping[str, Any]) -> RunConfig:
    """Makes the configuration of a run with an exported directory's models.

    Args:
      folder: the directory.
      found: what `read` has read of it.

    Raises:
      UserError: if something is missing, or isn't as expected.
    """
    path = folder / FILE
    try:
        improve = dict(found["improve"])
        if improve["self_refine"] == _PROMPTS:
            improve["self_refine"] = str(folder / _PROMPTS)
        for name in ("sampling", "policy_sampling"):
            improve[name] = SamplingConfig(**improve[name])
        roles = {role: _role_config(folder, model) for role, model in found["models"].items()}
        fields: dict[str, Any] = {
            field.name: getattr(roles[POLICY], field.name)
            for field in dataclasses.fields(RoleConfig)
        }
        fields |= {ROLE_OF[role]: own for role, own in roles.items() if own != roles[POLICY]}
        parts = tuple(_dataset(folder, part) for part in found["prompts"])
        return RunConfig(
            model_dir=str(folder),
            seed=found["seed"],
            dataset=MixtureConfig(parts) if parts[1:] else parts[0],
            stages=(),
            sampling_batch=found["sampling_batch"],
            shard_size=found["shard_size"],
            improve=ImproveConfig(**improve),
            **fields,
        )
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: isn't what `convert --to=hf` writes: {error!r}") from None


def _role_config(folder: epath.Path, model: Mapping[str, Any]) -> RoleConfig:
    tokenizer = folder / model["tokenizer"]
    # Models of one tokenizer are of one network: a reward model's file says the same of it.
    config = weights.config_of_folder(tokenizer)
    return RoleConfig(
        network=configs.network_of(config, model["dtype"], "none"),
        vocabulary=f"tokenizer:{tokenizer}",
        lengths=Lengths(**model["lengths"]),
        chat_template=_template(tokenizer),
        **{name: model[name] for name in _NAMES},
    )


def _dataset(folder: epath.Path, part: Mapping[str, Any]) -> DatasetConfig:
    """A dataset of whose prompts x is made as of the run's; it has no examples."""
    if part["as_it_stands"]:
        return DatasetConfig("tfds", 0, 0, 0, path="instructions")
    return DatasetConfig("preferences", 0, 0, 0, path=str(folder), columns=part["columns"])


def gin_text(config: RunConfig) -> str:
    """Returns a gin file of how a run improves, with the names that gin/stages/all.gin has.

    Args:
      config: its seed, its sizes of batches and shards, and its ImproveConfig are written.
    """
    improve = config.improve
    samplings = {"pit": improve.sampling, "policy": improve.policy_sampling}
    lines = [
        "from __gin__ import dynamic_registration",
        "from pit_jax.method import decode",
        "from pit_jax.method import improve",
        "from pit_jax.run import config as run_config",
        f"SEED = {config.seed}",
        "run_config.RunConfig:",
        "    seed = %SEED",
        f"    sampling_batch = {config.sampling_batch}",
        f"    shard_size = {config.shard_size}",
        "    improve = @improve.ImproveConfig()",
        "improve.ImproveConfig:",
        "    sampling = @pit/decode.SamplingConfig()",
        "    policy_sampling = @policy/decode.SamplingConfig()",
    ]
    for field in dataclasses.fields(improve):
        if field.name not in ("sampling", "policy_sampling"):
            lines.append(f"    {field.name} = {getattr(improve, field.name)!r}")
    for scope, sampling in samplings.items():
        lines.append(f"{scope}/decode.SamplingConfig:")
        lines += [f"    {name} = {value!r}" for name, value in dataclasses.asdict(sampling).items()]
    return "\n".join(lines) + "\n"
