"""A run of tiny chat models with random weights, and the directory that `convert --to=hf` makes."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import jax
import numpy as np
import optax
import pytest
from etils import epath

from pit_jax import bindings, cli
from pit_jax.evaluation.suite import EvaluationConfig
from pit_jax.run import directory as run_directory
from pit_jax.run import stages
from pit_jax.run.config import RunConfig
from pit_jax.run.run import Run
from pit_jax.runtime.checkpoints import Checkpoints
from pit_jax.runtime.train_state import TrainState
from tests import tiny_runs, tiny_tokenizers

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Padding is the end of text, and nothing is spare: three ids are appended.
TOKENIZER = {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "chat_template": TEMPLATE}
STAGES = {"policy": "sft_policy", "pit": "sft_pit", "gap_model": "rm_gap"}
RESULTS = {
    "sft_policy": {"task": "sft_policy"},
    "sft_pit": {"task": "sft_pit"},
    "rm_gap": {"task": "rm_gap", "pooling": "last", "anchor": 0.25},
}
NETWORK = dataclasses.replace(
    tiny_runs.NETWORK, scale_embeddings=False, tied_embeddings=False, vocab_size=312
)
GIN = """
from __gin__ import dynamic_registration
from pit_jax.data import layouts
from pit_jax.evaluation import suite
from pit_jax.models import config
from pit_jax.run import config as run_config

include 'gin/runs/from_base.gin'

MODEL_DIR = 'run'
VOCABULARY = 'tokenizer:tokenizer'
PREFERENCES_PATH = 'pairs.jsonl'
run_config.RunConfig.sampling_batch = 16
run_config.RunConfig.shard_size = 2
layouts.Lengths:
    prompt = 64
    reference = 24
    response = 25
suite.EvaluationConfig.policy = 'sft_policy'
suite.EvaluationConfig.pit = 'sft_pit'
config.NetworkConfig:
"""


# Models of M_PIT and R_PIT of another family, whose tokenizer has other ids.
ROLES = """
other/config.NetworkConfig:
    num_layers = 2
    qk_norm = 'head'
    vocab_size = 320
other/run_config.RoleConfig:
    network = @other/config.NetworkConfig()
    vocabulary = 'tokenizer:other'
    chat_template = 'tokenizer'
run_config.RunConfig:
    pit = @other/run_config.RoleConfig()
    gap_reward = @other/run_config.RoleConfig()
"""
# Adapters on a model that `base` holds.
LORA = """
config.NetworkConfig.lora = @config.LoraConfig()
config.LoraConfig:
    rank = 3
    alpha = 6.0
"""


def make(folder: pathlib.Path, more: str = "") -> None:
    """Writes `tokenizer`, `run` with three complete stages, and `all`, which is taken out of it.

    `more` is ROLES or LORA, for a run that has such models.
    """
    folder.mkdir()
    orders = {"tokenizer": [], "other": ["<spare>"]}
    for name, before in orders.items():
        tokenizer = tiny_tokenizers.byte_level_bpe()
        tokenizer.add_special_tokens([*before, "<|im_start|>", "<|im_end|>"])
        tiny_tokenizers.save(folder / name, tokenizer, TOKENIZER)
    fields = dataclasses.asdict(NETWORK)
    del fields["lora"]
    text = GIN + "".join(f"    {name} = {value!r}\n" for name, value in fields.items()) + more
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pathlib.Path("run").mkdir()
        pathlib.Path("run/config.gin").write_text(text)
        config, _ = bindings.read("run/config.gin", (RunConfig, EvaluationConfig))
        run = tiny_runs.on_one_device(config)
        results = RESULTS
        if lora := config.network.lora:
            own = {"backbone": "base", "lora": dataclasses.asdict(lora)}
            results = {name: result | own for name, result in RESULTS.items()}
            results["base"] = {"task": "pretrain"}
        for seed, (name, result) in enumerate(results.items()):
            write_stage(run, name, result, seed)
        argv = ["convert", "--gin_file=run/config.gin", "--to=hf", "--output=all"]
        assert cli.main(argv) == 0


def write_stage(run: Run, name: str, result: dict, seed: int) -> None:
    """Makes a stage complete, with random weights."""
    scalar = result["task"] in stages.REWARD_TASKS
    init = stages.init_scalar_model if scalar else stages.init_language_model
    role = stages.ROLE_OF[result["task"]]
    network = run.role(role).network
    if "lora" not in result:
        network = network.without_adapters
    abstract = stages.abstract_model(stages.trained_part(init, network), run.partitioner)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: jax.device_put(rng.normal(size=x.shape).astype(np.float32), x.sharding), abstract
    )
    folder = epath.Path(run.folder(name))
    run_directory.claim(folder, {}, run_directory.identity(network, run.role(role).vocabulary))
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(1, TrainState.create(params, optax.identity()), {"step": 1})
    checkpoints.close()
    found = {"name": name, "steps": 1, "model_step": 1} | result
    (folder / "result.json").write_text(json.dumps(found))


def made(tmp_path_factory) -> pathlib.Path:
    """The folder of it all, made once for all tests."""
    return tiny_runs.once(tiny_runs.shared_folder(tmp_path_factory) / "exports", make)
