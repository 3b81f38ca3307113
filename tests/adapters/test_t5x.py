"""T5X itself on the stages: `python -m t5x.train`, `infer` and `eval` against pit_jax's own.

Needs T5X; `bash launch/local.sh t5x-test` runs it. The runs are tiny_runs', with more steps.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from flax import traverse_util

from pit_jax.data import layouts
from pit_jax.method import forward
from pit_jax.method.decode import SamplingConfig
from pit_jax.models.heads import ScalarModel
from pit_jax.run import t5x_checkpoints
from tests import tiny_runs
from tests.adapters import t5x_contract
from tests.child_environment import ROOT, child_environment

pytestmark = pytest.mark.t5x
pytest.importorskip("t5x.trainer", reason="T5X is not installed", exc_type=ImportError)

SUPERVISED = ("pretrain", "sft_policy", "sft_pit", "rm_policy", "rm_gap")
PPO = ("rl_policy", "rl_pit")
DEVICES = (1, 8)
GIN = (
    tiny_runs.GIN
    + """
pretrain/stages.SupervisedStage.steps = 20
sft_policy/stages.SupervisedStage.steps = 20
sft_pit/stages.SupervisedStage.steps = 20
rm_policy/stages.RewardStage.steps = 20
rm_gap/stages.RewardStage.steps = 20
rl_policy/curriculum.Round.steps = 3
rl_pit_0/curriculum.Round.steps = 2
rl_pit_1/curriculum.Round.steps = 4
rm_policy/loop.LoopConfig.eval_every = 0
"""
)


@pytest.fixture(scope="session")
def native(tmp_path_factory):
    """A run that pit_jax trained on one device."""

    def make(folder):
        for stage in (*SUPERVISED, *PPO):
            assert tiny_runs.command("train", folder, f"--gin.STAGE='{stage}'", gin=GIN) == 0

    return tiny_runs.once(tiny_runs.shared_folder(tmp_path_factory) / "native", make)


def t5x(program: str, *arguments: str, devices: int = 1, succeeds: bool = True) -> str:
    """`python -m t5x.PROGRAM`; returns what it printed."""
    environment = child_environment(devices, PJRT_NPROC=os.environ.get("PJRT_NPROC", "32"))
    mesh = ["--gin.PjitPartitioner.model_parallel_submesh=(1,2)"] if devices > 1 else []
    command = [sys.executable, "-m", f"t5x.{program}", *arguments, *mesh]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (run.returncode == 0) == succeeds, run.stderr[-5000:]
    return run.stderr


def train(stage: str, folder: pathlib.Path, *bindings: str, gin: str = GIN, **options) -> str:
    file = folder / "run.gin"
    file.write_text(gin)
    files = (f"--gin_file=gin/t5x/{stage}.gin", f"--gin_file={file}")
    place = f"--gin.MODEL_DIR='{folder / stage}'"
    return t5x("train", *files, place, "--gin.train.stats_period=1", *bindings, **options)


def beside(native: pathlib.Path, folder: pathlib.Path, stage: str) -> pathlib.Path:
    """A run directory with all stages but one as pit_jax trained them."""
    for other in set(SUPERVISED + PPO) - {stage}:
        shutil.copytree(native / other, folder / other)
    return folder


@pytest.fixture(scope="session")
def trained(native, tmp_path_factory):
    """(stage, devices) -> the run directory in which T5X trained the stage, once."""

    def get(stage: str, devices: int = 1) -> pathlib.Path:
        def make(folder):
            folder.mkdir()
            train(stage, beside(native, folder, stage), devices=devices)

        place = tiny_runs.shared_folder(tmp_path_factory) / f"t5x-{stage}-{devices}"
        return tiny_runs.once(place, make)

    return get


def scalars(folder: pathlib.Path, name: str) -> list[float]:
    """A metric of every step, from the TensorBoard events that T5X wrote."""
    from tensorboard.backend.event_processing import event_accumulator
    from tensorboard.util import tensor_util

    events = event_accumulator.EventAccumulator(str(folder / "train"), {"tensors": 0})
    events.Reload()
    found = {e.step: tensor_util.make_ndarray(e.tensor_proto) for e in events.Tensors(name)}
    return [float(found[step]) for step in sorted(found)]


def own(native: pathlib.Path, stage: str, name: str) -> list[float]:
    return [record[name] for record in tiny_runs.records(native / stage / "metrics.jsonl")]


def state(folder: pathlib.Path, step: int | None = None) -> dict[str, np.ndarray]:
    """Every array of a folder's newest T5X checkpoint, or of a certain one."""
    path = t5x_checkpoints.find(epath.Path(folder), step) / "state"
    tree = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(path)
    return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(tree, sep="/").items()}


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name, strict=True)


def run_of(folder: pathlib.Path):
    """The run in a directory, as pit_jax sees it."""
    base = tiny_runs.config(folder)
    return tiny_runs.on_one_device(base)


def test_the_recorded_signatures_are_t5xs():
    recorded = t5x_contract.recorded()
    assert t5x_contract.record() == {name: recorded[name] for name in ("commit", "modules")}


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("stage", SUPERVISED)
def test_losses_are_pit_jaxs(native, trained, stage, devices):
    losses = scalars(trained(stage, devices) / stage, "loss")
    assert len(losses) == 20
    np.testing.assert_allclose(losses, own(native, stage, "loss"), rtol=0, atol=1e-4)


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("stage", PPO)
def test_ppo_is_pit_jaxs(native, trained, stage, devices):
    folder = trained(stage, devices) / stage
    for name in ("score", "kl", "response_length", "policy_loss", "value_loss"):
        values = scalars(folder, name)
        tolerance = 1e-4 if devices == 1 else 0.05  # rounding can change which token is drawn
        np.testing.assert_allclose(values, own(native, stage, name), rtol=tolerance, atol=tolerance)
    assert len(values) == {"rl_policy": 3, "rl_pit": 6}[stage]
    assert max(scalars(folder, "first_ratio_error")) < 1e-5


@pytest.mark.parametrize(
    "change",
    [
        "rm_gap/train_state.OptimizerConfig.kind = 'adafactor'",
        "rm_gap/stages.RewardStage.microbatches = 2",
        "sft_pit/stages.SupervisedStage.microbatches = 4",
        "batching.BatchingConfig.packed_length = 64",
    ],
)
def test_options_of_a_stage_count(native, tmp_path, change):
    """On one device; the mean of microbatches is that of the batch."""
    stage = "rm_gap" if "rm_gap" in change else "sft_pit"
    imported = "from pit_jax.data import batching\nfrom pit_jax.data import datasets"
    gin = GIN.replace("from pit_jax.data import datasets", imported) + change
    ours = beside(native, tmp_path / "ours", stage)
    assert tiny_runs.command("train", ours, f"--gin.STAGE='{stage}'", gin=gin) == 0
    theirs = beside(native, tmp_path / "theirs", stage)
    train(stage, theirs, gin=gin)
    np.testing.assert_allclose(
        scalars(theirs / stage, "loss"), own(ours, stage, "loss"), rtol=0, atol=1e-4
    )


def test_references_are_the_ones_pit_jax_samples(native, trained):
    folder = trained("rl_pit") / "rl_pit" / "references" / "round-1"
    expected = native / "rl_pit" / "references" / "round-1"
    names = sorted(path.name for path in expected.iterdir())
    assert names == sorted(path.name for path in folder.iterdir()) and len(names) > 1
    for name in names:
        assert (folder / name).read_bytes() == (expected / name).read_bytes()


@pytest.mark.parametrize(
    ("stage", "stop", "period"), [("rm_gap", 10, 5), ("rl_pit", 1, 1), ("rl_pit", 4, 2)]
)
def test_an_interrupted_run_goes_on_exactly(native, trained, tmp_path, stage, stop, period):
    folder = beside(native, tmp_path, stage)
    often = (f"--gin.SaveCheckpointConfig.period={period}", "--gin.train.eval_period=10")
    train(stage, folder, f"--gin.TRAIN_STEPS={stop}", *often)
    assert t5x_checkpoints.find(epath.Path(folder / stage)).name == f"checkpoint_{stop}"
    train(stage, folder, *often)
    assert_same(state(folder / stage), state(trained(stage) / stage))


def test_checkpoints_of_t5x_restore_in_pit_jax(trained):
    for stage in ("sft_pit", "rm_gap", "rl_pit"):
        run = run_of(trained(stage))
        params = traverse_util.flatten_dict(run.load(stage), sep="/")
        prefix = "target/actor/" if stage == "rl_pit" else "target/"
        stored = {k: v for k, v in state(trained(stage) / stage).items() if k.startswith(prefix)}
        assert_same({f"{prefix}{k}": np.asarray(v) for k, v in params.items()}, stored)


def test_the_older_format_restores_in_pit_jax(native, trained, tmp_path):
    folder = beside(native, tmp_path, "sft_pit")
    train("sft_pit", folder, "--gin.train.use_orbax=False")
    checkpoint = t5x_checkpoints.find(epath.Path(folder / "sft_pit"))
    assert (checkpoint / "checkpoint").exists() and not (checkpoint / "state").exists()
    assert any(path.name.startswith("target.") for path in checkpoint.iterdir())
    params = traverse_util.flatten_dict(run_of(folder).load("sft_pit"), sep="/")
    stored = state(trained("sft_pit") / "sft_pit")
    for name, array in params.items():
        np.testing.assert_array_equal(array, stored[f"target/{name}"], err_msg=name)


@pytest.mark.parametrize("stage", ["sft_policy", "rl_pit"])
def test_checkpoints_of_pit_jax_restore_in_t5x(native, tmp_path, stage):
    """Parameters, optimizer, and PPO's counters: T5X writes back the bits that it read."""
    exported = tmp_path / "exported"
    arguments = ("--to=t5x", f"--output={exported}", f"--gin.STAGE='{stage}'")
    assert tiny_runs.command("convert", native, *arguments, gin=GIN) == 0
    steps = json.loads((native / stage / "result.json").read_text())["steps"]
    path = exported / f"checkpoint_{steps}"
    again = beside(native, tmp_path / "run", stage)
    train(
        stage,
        again,
        f"--gin.RestoreCheckpointConfig.path='{path}'",
        "--gin.RestoreCheckpointConfig.mode='specific'",
        f"--gin.TRAIN_STEPS={steps + 1}",
        "--gin.SaveCheckpointConfig.keep=None",
        "--gin.rl_pit_1/Round.steps=5",
    )
    assert_same(state(again / stage, steps), state(exported))
    model = traverse_util.flatten_dict(run_of(native).load(stage), sep="/")
    prefix = "target/actor/" if stage == "rl_pit" else "target/"
    for name, array in model.items():
        np.testing.assert_array_equal(array, state(exported)[prefix + name], err_msg=name)


def infer(trained, stage: str, mode: str, output: pathlib.Path, *bindings: str, devices: int = 1):
    folder = trained(stage)
    checkpoint = t5x_checkpoints.find(epath.Path(folder / stage))
    t5x(
        "infer",
        "--gin_file=gin/t5x/infer.gin",
        f"--gin_file={folder / 'run.gin'}",
        f"--gin.setup.stage='{stage}'",
        f"--gin.CHECKPOINT_PATH='{checkpoint}'",
        f"--gin.INFER_OUTPUT_DIR='{output}'",
        f"--gin.infer.mode='{mode}'",
        "--gin.MODEL_DIR='unused/unused'",
        "--gin.utils.DatasetConfig.batch_size=8",
        *bindings,
        devices=devices,
    )
    (file,) = output.glob("*.jsonl-00000-of-00001")
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("stage", ["sft_policy", "sft_pit", "rl_pit"])
def test_predictions_are_pit_jaxs(trained, tmp_path, stage, devices):
    records = infer(trained, stage, "predict", tmp_path, devices=devices)
    run = run_of(trained(stage))
    examples, role = run.data.examples("dev"), run.role("policy")
    if stage == "sft_policy":
        prompts = [role.layout.policy_prompt(e.prompt) for e in examples]
    else:
        prompts = [role.layout.pit_prompt(e.prompt, e.rejected) for e in examples]
    if stage == "rl_pit":  # each prompt with y_l, then with y_w, as its reference
        others = [role.layout.pit_prompt(e.prompt, e.chosen) for e in examples]
        prompts = [prompt for pair in zip(prompts, others, strict=True) for prompt in pair]
    width = max(map(len, prompts))
    rows, key = list(range(len(prompts))), jax.random.key(0)
    greedy = SamplingConfig(temperature=0.0)
    responses = role.respond(run.load_frozen(stage), prompts, width, rows, key, greedy)
    assert [r["prediction"] for r in records] == [response.text for response in responses]
    texts = [record["inputs"]["prompt_pretokenized"] for record in records]
    assert texts[0] == examples[0].prompt and len(set(texts)) == len({e.prompt for e in examples})


@pytest.mark.parametrize(
    ("stage", "tree"), [("rm_policy", layouts.PAIR_TREE), ("rm_gap", layouts.GAP_TREE)]
)
def test_scores_of_reward_models_are_pit_jaxs(trained, tmp_path, stage, tree):
    records = infer(trained, stage, "score", tmp_path)
    run = run_of(trained(stage))
    model, params = ScalarModel(run.config.network), run.load(stage)
    batches = run.data.batches(stage, "dev", 20, shuffle=False, num_epochs=1)
    scores = forward.tree_scores(model, params, next(batches), tree, run.pooling(stage))
    for name, values in scores.items():
        got = [record["aux"][name] for record in records]
        np.testing.assert_allclose(got, values, rtol=1e-5, atol=1e-5)
    better, worse = ("chosen", "rejected") if stage == "rm_policy" else ("wl", "lw")
    margins = [record["score"] for record in records]
    np.testing.assert_allclose(margins, scores[better] - scores[worse], rtol=1e-5, atol=1e-5)
    # And by the separate passes that judge responses.
    if stage == "rm_policy":
        from pit_jax.method.sampler import Response

        examples, role = run.data.examples("dev"), run.role("policy_reward")
        prompts = [role.layout.reward_prompt(e.prompt) for e in examples]
        chosen = [Response(role.layout.response(e.chosen)[:-1], True) for e in examples]
        width, pooling = role.widths.reward, run.pooling(stage)
        separate = role.sampler.score(params, prompts, width, chosen, pooling)
        got = [record["aux"]["chosen"] for record in records]
        np.testing.assert_allclose(got, separate, rtol=1e-4, atol=1e-4)


def test_scores_of_language_models_are_pit_jaxs(trained, tmp_path):
    records = infer(trained, "sft_pit", "score", tmp_path)
    run = run_of(trained("sft_pit"))
    examples, layout = run.data.examples("dev"), run.role("pit").layout
    from pit_jax.method.sampler import pad_left, pad_right
    from pit_jax.models.network import LanguageModel

    prompts = [layout.pit_prompt(e.prompt, e.rejected) for e in examples]
    responses = pad_right([list(layout.response(e.chosen)) for e in examples], 13)
    log_probs_BR, _ = forward.response_log_probs(
        LanguageModel(run.config.network),
        run.load("sft_pit"),
        pad_left(prompts, max(map(len, prompts))),
        responses,
        (responses > 0).astype(np.float32),
    )
    got = [record["score"] for record in records]
    np.testing.assert_allclose(got, log_probs_BR.sum(axis=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        ("sft_pit", {"log_likelihood", "exact_match"}),
        ("rm_gap", {"accuracy", "margin"}),
        ("rl_pit", {"log_likelihood"}),
    ],
)
def test_eval_writes_the_metrics_of_the_stage(trained, tmp_path, stage, names):
    folder = trained(stage)
    t5x(
        "eval",
        "--gin_file=gin/t5x/eval.gin",
        f"--gin_file={folder / 'run.gin'}",
        f"--gin.setup.stage='{stage}'",
        f"--gin.CHECKPOINT_PATH='{t5x_checkpoints.find(epath.Path(folder / stage))}'",
        f"--gin.EVAL_OUTPUT_DIR='{tmp_path}'",
        "--gin.MODEL_DIR='unused/unused'",
        "--gin.utils.DatasetConfig.batch_size=8",
    )
    (file,) = (tmp_path / "inference_eval").rglob("*-metrics.jsonl")
    found = json.loads(file.read_text().splitlines()[-1])
    assert names <= set(found)
    if stage == "rm_gap":
        records = infer(trained, stage, "score", tmp_path / "scores")
        right = np.mean([record["score"] > 0 for record in records])
        assert found["accuracy"] == pytest.approx(float(right))


def test_a_users_mistake_is_named(tmp_path):
    assert "train stage 'pretrain' first" in train("sft_policy", tmp_path, succeeds=False)
