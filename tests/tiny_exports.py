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


def make(folder: pathlib.Path) -> None:
    """Writes `tokenizer`, `run` with three complete stages, and `all`, which is taken out of it."""
    tokenizer = tiny_tokenizers.byte_level_bpe()
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    folder.mkdir()
    tiny_tokenizers.save(folder / "tokenizer", tokenizer, TOKENIZER)
    fields = dataclasses.asdict(NETWORK).items()
    text = GIN + "".join(f"    {name} = {value!r}\n" for name, value in fields)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pathlib.Path("run").mkdir()
        pathlib.Path("run/config.gin").write_text(text)
        config, _ = bindings.read("run/config.gin", (RunConfig, EvaluationConfig))
        run = tiny_runs.on_one_device(config)
        for seed, (name, result) in enumerate(RESULTS.items()):
            write_stage(run, name, result, seed)
        argv = ["convert", "--gin_file=run/config.gin", "--to=hf", "--output=all"]
        assert cli.main(argv) == 0


def write_stage(run: Run, name: str, result: dict, seed: int) -> None:
    """Makes a stage complete, with random weights."""
    scalar = result["task"] in stages.REWARD_TASKS
    init = stages.init_scalar_model if scalar else stages.init_language_model
    role = run.role_name(name)
    abstract = stages.abstract_model(init(run.role(role).network), run.partitioner)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: jax.device_put(rng.normal(size=x.shape).astype(np.float32), x.sharding), abstract
    )
    folder = epath.Path(run.folder(name))
    run_directory.claim(folder, {}, run.identity(role))
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save(1, TrainState.create(params, optax.identity()), {"step": 1})
    checkpoints.close()
    found = {"name": name, "steps": 1, "model_step": 1} | result
    (folder / "result.json").write_text(json.dumps(found))


def made(tmp_path_factory) -> pathlib.Path:
    """The folder of it all, made once for all tests."""
    return tiny_runs.once(tiny_runs.shared_folder(tmp_path_factory) / "exports", make)
