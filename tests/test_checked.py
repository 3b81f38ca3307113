"""Every field of a configuration holds what its annotation says, or none is made."""

from __future__ import annotations

import dataclasses
import os
import pathlib

import numpy as np
import pytest

from pit_jax.checked import UserPath, at_least, checked
from pit_jax.data.datasets import DatasetConfig
from pit_jax.errors import UserError
from pit_jax.evaluation.suite import EvaluationConfig
from pit_jax.method.ppo import PPOConfig
from pit_jax.run.config import RunConfig
from pit_jax.run.stages import SupervisedStage
from pit_jax.runtime.loop import LoopConfig
from pit_jax.runtime.train_state import OptimizerConfig
from tests import tiny_runs


@dataclasses.dataclass(frozen=True)
@checked
class Each:
    """A field of every kind that configurations have."""

    whole: int = 1
    number: float = 1.0
    switch: bool = False
    text: str = ""
    path: UserPath = ""
    paths: UserPath | tuple[UserPath, ...] = ""
    maybe: float | None = None
    numbers: tuple[float, ...] = ()
    pairs: tuple[tuple[str, int], ...] = ()
    names: dict[str, str] = dataclasses.field(default_factory=dict)
    loop: LoopConfig = LoopConfig()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("whole", 4.0, "Each.whole: got 4.0, expected a whole number, such as 4"),
        ("whole", 1.5, "Each.whole: got 1.5, expected a whole number"),
        ("whole", True, "Each.whole: got True, expected a whole number"),
        ("whole", "4", "Each.whole: got '4', expected a whole number, without quotes"),
        ("whole", "one", "Each.whole: got 'one', expected a whole number"),
        ("whole", 2**63, f"Each.whole: got {2**63}, expected a whole number below 2**63"),
        ("whole", -(2**63), f"Each.whole: got {-(2**63)}, expected a whole number below 2**63"),
        ("whole", float("nan"), "Each.whole: got nan, expected a whole number"),
        ("whole", None, "Each.whole: got None, expected a whole number"),
        ("number", "1e-3", "Each.number: got '1e-3', expected a number, without quotes"),
        ("number", float("inf"), "Each.number: got inf, expected a finite number"),
        ("number", float("nan"), "Each.number: got nan, expected a finite number"),
        ("number", False, "Each.number: got False, expected a number"),
        ("switch", 1, "Each.switch: got 1, expected True or False"),
        ("switch", "true", "Each.switch: got 'true', expected True or False"),
        ("text", 2024, "Each.text: got 2024, expected text, '2024' in quotes"),
        ("path", "a\0b", "Each.path: got 'a\\x00b', expected a path, which has no NUL"),
        ("maybe", "x", "Each.maybe: got 'x', expected a number or None"),
        ("numbers", 1.0, "Each.numbers: got 1.0, expected a tuple, such as (1.0,)"),
        (
            "numbers",
            (1.0, "a"),
            "Each.numbers: got (1.0, 'a'), expected a tuple, each part a number",
        ),
        ("pairs", (("a",),), "Each.pairs: got (('a',),), expected a tuple, each part a tuple of 2"),
        ("names", "a", "Each.names: got 'a', expected a dict in braces"),
        ("loop", None, "Each.loop: got None, expected a LoopConfig"),
    ],
)
def test_what_a_field_cannot_hold_is_refused_in_one_line(field, value, message):
    with pytest.raises(UserError) as error:
        Each(**{field: value})
    assert str(error.value) == message


def test_what_a_field_holds_stays_as_it_was_given():
    """A float field keeps a whole number, whose text is part of what a stage was trained with."""
    given = {"number": 3, "maybe": None, "numbers": (1, 0.5), "pairs": (("a", 1),), "paths": ("x",)}
    assert repr(Each(**given)) == repr(dataclasses.replace(Each(), **given))
    made = Each(**given)
    assert all(getattr(made, name) is value for name, value in given.items())
    assert Each(whole=2**63 - 1).whole == 2**63 - 1 and Each(number=1e-300).number == 1e-300


def test_lists_and_numpy_numbers_become_what_python_has():
    made = Each(numbers=[1.0, 0.5], pairs=[["a", 1]], whole=np.int64(3), number=np.float32(0.5))
    assert made.numbers == (1.0, 0.5) and made.pairs == (("a", 1),)
    assert (type(made.whole), made.whole) == (int, 3)
    assert (type(made.number), made.number) == (float, 0.5)


def test_the_home_folder_takes_the_place_of_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    made = Each(path="~/x", paths=("tokenizer:~/t", "a~b", "gs://b/~c"), text="~/x")
    assert (made.path, made.text) == ("/home/me/x", "~/x")
    assert made.paths == ("tokenizer:/home/me/t", "a~b", "gs://b/~c")


def test_every_path_of_a_run_has_its_tilde_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    stage = tiny_runs.supervised("sft_policy", initial="~/base/model")
    dataset = DatasetConfig("preferences", 0, 4, 4, path="~/mine.jsonl", test_path=("~/t.jsonl",))
    config = tiny_runs.config(
        "~/runs/x", vocabulary="tokenizer:~/t", chat_template="~/c", dataset=dataset
    )
    assert stage.initial == "/home/me/base/model"
    assert (dataset.path, dataset.test_path) == ("/home/me/mine.jsonl", ("/home/me/t.jsonl",))
    assert config.model_dir == "/home/me/runs/x" and config.chat_template == "/home/me/c"
    assert config.vocabulary == "tokenizer:/home/me/t"
    assert not pathlib.Path("~").exists() and os.path.expanduser("~") == "/home/me"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny_runs.supervised("pretrain", 1.5), "SupervisedStage.steps: got 1.5"),
        (lambda: tiny_runs.supervised("pretrain", batch_size=4.0), "batch_size: got 4.0"),
        (
            lambda: OptimizerConfig(learning_rate="1e-3"),
            "Config.learning_rate: got '1e-3'",
        ),
        (
            lambda: OptimizerConfig(learning_rate=-1.0),
            "learning_rate: got -1.0, expected 0 or",
        ),
        (lambda: OptimizerConfig(1e-3, b2=1.0), "OptimizerConfig: got b2=1.0, expected below 1"),
        (lambda: OptimizerConfig(1e-3, epsilon=-1.0), "epsilon: got -1.0, expected 0 or more"),
        (lambda: PPOConfig(beta=-0.1), "PPOConfig.beta: got -0.1, expected 0 or more"),
        (lambda: PPOConfig(clip=-1.0), "PPOConfig.clip: got -1.0, expected 0 or more"),
        (lambda: PPOConfig(gamma=1.5), "PPOConfig: got gamma=1.5, expected 0 to 1"),
        (lambda: tiny_runs.config(" "), "run: MODEL_DIR is empty, expected a directory"),
        (
            lambda: tiny_runs.config("~nobody_here/x"),
            "RunConfig.model_dir: got '~nobody_here/x', expected a path whose ~ is somebody's home",
        ),
        (lambda: EvaluationConfig(temperatures=1.0), "EvaluationConfig.temperatures: got 1.0"),
        (lambda: EvaluationConfig(num_prompts=-1), "num_prompts: got -1, expected 0 or more"),
        (lambda: DatasetConfig("hh", 1e1, 1, 1, path="x"), "DatasetConfig.train_size: got 10.0"),
        (lambda: LoopConfig(eval_every=-1), "LoopConfig.eval_every: got -1, expected 0 or more"),
        (lambda: tiny_runs.config("x", seed=10**20), "RunConfig.seed: got 1000"),
        # JAX takes the lower half of a seed in silence: 2**32 would be another name for 0.
        (lambda: tiny_runs.config("x", seed=2**32), "seed: got 4294967296, expected 0 to 42949672"),
        (
            lambda: tiny_runs.config("x", seed=-1),
            "seed: got -1, expected 0 to 4294967295",
        ),
        (lambda: tiny_runs.config("x", sampling_batch=0), "sampling_batch: got 0, expected 1 or"),
    ],
)
def test_mistakes_in_the_configurations_of_a_run(make, message):
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_every_configuration_is_checked():
    """All that a run or a report is made of, by its fields, each of which refuses an object()."""
    todo, seen = [tiny_runs.config("x"), EvaluationConfig()], set()
    while todo:
        each = todo.pop()
        if isinstance(each, tuple):
            todo += each
        if not dataclasses.is_dataclass(each) or type(each) in seen:
            continue
        seen.add(type(each))
        for field in dataclasses.fields(each):
            todo.append(getattr(each, field.name))
            if (type(each), field.name) == (DatasetConfig, "level"):
                continue  # whatever configures the family, which the class itself checks
            with pytest.raises(UserError, match=rf"^{type(each).__name__}\.{field.name}: got <obj"):
                dataclasses.replace(each, **{field.name: object()})
    assert {RunConfig, SupervisedStage, OptimizerConfig, LoopConfig, DatasetConfig} <= seen
    assert len(seen) >= 15


def test_the_least_is_allowed():
    at_least(Each(whole=2), 2, "whole")
    with pytest.raises(UserError, match=r"^Each.whole: got 2, expected 3 or more$"):
        at_least(Each(whole=2), 3, "whole")
