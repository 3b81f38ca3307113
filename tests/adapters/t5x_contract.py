"""What pit_jax and T5X need of each other, as data: t5x_contract.json.

T5X's signatures at one commit; and of the adapter, for the run of tiny_runs, what T5X writes into
checkpoints and reads from batches. `install_stub` makes modules of the signatures, so that the
adapter can be imported and checked without T5X. With T5X, `python -m tests.adapters.t5x_contract`
records the file anew.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import pathlib
import re
import sys
import types
from collections.abc import Iterator
from typing import Any

import flax.core
import jax
import numpy as np
from flax import traverse_util

from tests import tiny_runs

STAGES = tiny_runs.config("unused").stages
FILE = pathlib.Path(__file__).with_suffix(".json")
COMMIT = "cc342d419ec3e3e9c4bf1df33c82330cafdc1e16"
KEY = jax.random.key(0)
# All that the adapter and gin/t5x refer to: a class's methods, or a function.
USED: dict[str, dict[str, tuple[str, ...]]] = {
    "t5x.models": {
        "BaseTransformerModel": (
            "__init__",
            "_compute_logits",
            "eval_fn",
            "get_initial_variables",
            "loss_fn",
            "predict_batch",
            "predict_batch_with_aux",
            "score_batch",
        ),
    },
    "t5x.optimizers": {
        "OptaxWrapper": ("__init__", "create"),
        "OptimizerState": ("__init__",),
    },
    "t5x.partitioning": {
        "PjitPartitioner": ("__init__", "partition", "get_mesh_axes", "compile"),
    },
    "t5x.train_state": {"FlaxOptimTrainState": ("__init__", "create")},
    "t5x.trainer": {"Trainer": ("__init__", "train", "compile_train")},
    "t5x.utils": {
        "TrainStateInitializer": ("__init__", "from_scratch"),
        "DatasetConfig": ("__init__",),
        "RestoreCheckpointConfig": ("__init__",),
        "SaveCheckpointConfig": ("__init__",),
        "get_dataset": (),
        "get_training_eval_datasets": (),
        "get_local_data": (),
    },
    "t5x.train": {"train": ()},
    "t5x.infer": {"infer": ()},
    "t5x.eval": {"evaluate": ()},
}


def record() -> dict[str, Any]:
    """The contract as the T5X that can be imported has it: parameter names, in order."""

    def parameters(function: Any) -> list[str]:
        kinds = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
        return [
            kinds.get(p.kind, "") + name + ("=" if p.default is not inspect.Parameter.empty else "")
            for name, p in inspect.signature(function).parameters.items()
        ]

    modules: dict[str, Any] = {}
    for module, names in USED.items():
        source = importlib.import_module(module)
        modules[module] = {
            name: (
                {method: parameters(getattr(getattr(source, name), method)) for method in methods}
                if methods
                else parameters(getattr(source, name))
            )
            for name, methods in names.items()
        }
    return {"commit": COMMIT, "modules": modules}


def record_stage(name: str) -> dict[str, Any]:
    """Of a stage: parameters as name -> shape, logical axes; features of a batch; task."""
    from pit_jax.adapters import t5x as pit

    setup = pit.setup(tiny_runs.config(f"unused/{name}"), name)
    variables = jax.eval_shape(lambda key: pit.model(setup).get_initial_variables(key, {}), KEY)
    state = {}
    for collection in ("params", "ppo"):
        if collection in variables:
            axes = flatten(variables[f"{collection}_axes"])
            for path, x in flatten(variables[collection]).items():
                state[f"{collection}/{path}"] = [list(x.shape), list(axes[f"{path}_axes"].names)]
    spec = pit.get_dataset(setup.trained, 0, 1, None, setup=setup).element_spec
    features = {k: [str(np.dtype(s.dtype)), list(s.shape)] for k, s in spec.items()}
    return {"state": state, "features": features, "task": setup.task}


def flatten(tree: Any) -> dict[str, Any]:
    return traverse_util.flatten_dict(flax.core.unfreeze(tree), sep="/")


def recorded() -> dict[str, Any]:
    """The contract in the file."""
    return json.loads(FILE.read_text(encoding="utf-8"))


@contextlib.contextmanager
def install_stub() -> Iterator[None]:
    """Modules named t5x with the recorded classes, whose methods take what T5X's take.

    Until the end of the context they stand in the place of T5X's own, which other tests may have
    imported.
    """
    ours = "pit_jax.adapters.t5x"
    loaded = [name for name in sys.modules if name == "t5x" or name.startswith(("t5x.", ours))]
    before = {name: sys.modules.pop(name) for name in loaded}
    modules = {"t5x": types.ModuleType("t5x")}
    for path, names in recorded()["modules"].items():
        module = modules[path] = types.ModuleType(path)
        for name, found in names.items():
            setattr(
                module, name, _class(name, found) if isinstance(found, dict) else _function(found)
            )
        setattr(modules["t5x"], path.partition(".")[2], module)
    sys.modules |= modules
    try:
        yield
    finally:
        for name in [n for n in sys.modules if n in modules or n.startswith(ours)]:
            del sys.modules[name]
        sys.modules |= before


def _signature(parameters: list[str]) -> inspect.Signature:
    made = []
    for text in parameters:
        name = text.strip("*=")
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        if text.startswith("**"):
            kind = inspect.Parameter.VAR_KEYWORD
        default = None if text.endswith("=") else inspect.Parameter.empty
        if any(before.default is None for before in made) and default is not None:
            kind = inspect.Parameter.KEYWORD_ONLY  # it can't be anything else
        if any(before.kind == inspect.Parameter.KEYWORD_ONLY for before in made):
            kind = max(kind, inspect.Parameter.KEYWORD_ONLY)
        made.append(inspect.Parameter(name, kind, default=default))
    return inspect.Signature(made)


def _function(parameters: list[str]) -> Any:
    signature = _signature(parameters)

    def stub(*args, **kwargs):
        return dict(signature.bind(*args, **kwargs).arguments)

    stub.__signature__ = signature  # type: ignore[attr-defined]
    return stub


def _class(name: str, methods: dict[str, list[str]]) -> type:
    def init(self, *args, **kwargs):
        bound = _signature(methods["__init__"]).bind(self, *args, **kwargs)
        self.__dict__ |= {k: v for k, v in bound.arguments.items() if k != "self"}

    body = {m: _function(parameters) for m, parameters in methods.items()}
    init.__signature__ = _signature(methods["__init__"])  # type: ignore[attr-defined]
    return type(name, (), body | {"__init__": init})


if __name__ == "__main__":
    contract = {**record(), "stages": {s.name: record_stage(s.name) for s in STAGES}}
    text = json.dumps(contract, indent=1)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda m: " ".join(m[0].split()), text)
    FILE.write_text(text + "\n", encoding="utf-8")
