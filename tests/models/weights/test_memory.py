"""A large model comes in with little beside it in the host's memory."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath
from safetensors.numpy import save_file

from pit_jax.models.weights import configs, hugging_face
from pit_jax.models.weights.rows import flatten, pieces
from pit_jax.run import stages
from pit_jax.runtime.partitioning import MeshConfig, Partitioner

CONFIG = {
    "model_type": "llama",
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
}


def abstract():
    network = configs.network_of(CONFIG, "float32", "none")
    partitioner = Partitioner(MeshConfig(), jax.devices()[:1])
    return stages.abstract_model(stages.init_language_model(network), partitioner)


def gigabytes(field: str) -> float:
    """A field of this process's status, such as VmHWM, the most memory that it ever held."""
    with open("/proc/self/status", encoding="ascii") as file:
        return int(next(line for line in file if line.startswith(field)).split()[1]) / 1e6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_peak_is_the_largest_tensor_above_what_stays(tmp_path):
    found = pieces(
        configs.family_of(CONFIG).rows, {name: x.shape for name, x in flatten(abstract())}, "x"
    )
    rng, places, shards = np.random.default_rng(0), {}, 5
    for number in range(shards):
        mine = found[number::shards]
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        tensors = {piece.theirs: rng.random(piece.shape, np.float32) for piece in mine}
        save_file(tensors, tmp_path / name)
        places |= dict.fromkeys(tensors, name)
    size = sum(4 * math.prod(piece.shape) for piece in found)
    assert size > 2e9
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    index = json.dumps({"metadata": {}, "weight_map": places})
    (tmp_path / "model.safetensors.index.json").write_text(index)
    code = "from tests.models.weights import test_memory; test_memory.measure()"
    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    above = float(child.stdout.split()[-1])
    print(f"{size / 1e9:.2f} GB of parameters, {above:.2f} GB above them at the peak")
    assert above < 0.5


def measure():
    """Reads the folder that the command line names, in a process of its own."""
    like = abstract()
    jax.numpy.zeros(3).block_until_ready()
    before = gigabytes("VmRSS")
    params = hugging_face.read(epath.Path(sys.argv[1]), like)
    size = sum(x.nbytes for x in jax.tree.leaves(params)) / 1e9
    print(gigabytes("VmHWM") - before - size)
