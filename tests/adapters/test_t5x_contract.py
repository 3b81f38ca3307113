"""The T5X adapter against the recorded contract; T5X itself is not needed, and not looked at."""

from __future__ import annotations

import dataclasses
import inspect
import json
import pathlib
import re
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.data.batching import BatchingConfig
from pit_jax.data.reference_store import ReferenceMeta, ReferenceWriter
from pit_jax.method import curriculum
from pit_jax.method.decode import SamplingConfig
from pit_jax.run import stage_training, stages
from pit_jax.run.references import references_folder
from tests import tiny_runs
from tests.adapters import t5x_contract

ROOT = pathlib.Path(__file__).resolve().parents[2]
GIN = sorted((ROOT / "gin/t5x").glob("*.gin"))
NAMES = [stage.name for stage in tiny_runs.config("unused").stages]
CONTRACT = t5x_contract.recorded()
CFG = types.SimpleNamespace(batch_size=8, split="dev")


@pytest.fixture(scope="module")
def pit():
    with t5x_contract.install_stub():
        from pit_jax.adapters import t5x

        yield t5x


def setup_of(pit, name, folder="unused", **changes):
    config = dataclasses.replace(tiny_runs.config(f"{folder}/{name}"), **changes)
    return pit.setup(config, name)


def test_the_stub_gives_way_to_what_was_imported_before(monkeypatch):
    real = types.ModuleType("t5x.real")
    monkeypatch.setitem(sys.modules, "t5x.real", real)
    with t5x_contract.install_stub():
        assert "t5x.real" not in sys.modules
    assert sys.modules["t5x.real"] is real


def test_without_t5x_one_line_says_so():
    code = "import sys; sys.modules['t5x'] = None\nimport pit_jax.adapters.t5x"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 1 and last.startswith("ImportError: pit_jax.adapters.t5x: ")
    assert "expected T5X from its repository and the extra `t5x`" in last


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("SupervisedModel", "t5x.models.BaseTransformerModel"),
        ("PairwiseRewardModel", "t5x.models.BaseTransformerModel"),
        ("GapRewardModel", "t5x.models.BaseTransformerModel"),
        ("PPOModel", "t5x.models.BaseTransformerModel"),
        ("Partitioner", "t5x.partitioning.PjitPartitioner"),
        ("TrainStateInitializer", "t5x.utils.TrainStateInitializer"),
        ("PPOTrainer", "t5x.trainer.Trainer"),
    ],
)
def test_overrides_take_what_t5x_gives_them(pit, ours, theirs):
    module, _, name = theirs.rpartition(".")
    methods = CONTRACT["modules"][module][name]
    cls = getattr(pit, ours)
    checked = 0
    for method, parameters in methods.items():
        if method == "__init__" and ours != "TrainStateInitializer":
            continue  # configured by our own arguments
        own = next((c.__dict__[method] for c in cls.__mro__[:-2] if method in c.__dict__), None)
        if own is None:
            continue
        given = list(inspect.signature(own).parameters.values())
        names = [p.strip("=") for p in parameters]
        if any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in given):
            continue
        assert [p.name for p in given[: len(names)]] == names, method
        assert all(p.default is not inspect.Parameter.empty for p in given[len(names) :])
        for parameter, one in zip(parameters, given):
            assert not parameter.endswith("=") or one.default is not inspect.Parameter.empty
        checked += 1
    assert checked >= 1


def test_dataset_functions_take_what_t5x_gives_them(pit):
    for ours, theirs in (
        (pit.get_dataset, "get_dataset"),
        (pit.get_eval_datasets, "get_training_eval_datasets"),
    ):
        names = [p.strip("=") for p in CONTRACT["modules"]["t5x.utils"][theirs]]
        given = list(inspect.signature(ours).parameters)
        called = [n for n in names if n in given]
        assert given == [*called, "setup"]
        assert called[:3] == ["cfg", "shard_id", "num_shards"]


def configurable(pit, alias: str, name: str) -> list[str] | None:
    """Parameters of what a gin file calls alias.name; None where it is of neither side."""
    if alias == "pit":
        return list(inspect.signature(getattr(pit, name)).parameters)
    scripts = {"train_script": "t5x.train", "infer_script": "t5x.infer", "eval_script": "t5x.eval"}
    modules = CONTRACT["modules"]
    module = scripts.get(alias, f"t5x.{alias}")
    if name not in modules.get(module, {}):
        return None
    found = modules[module][name]
    return [p.strip("=") for p in (found["__init__"] if isinstance(found, dict) else found)]


@pytest.mark.parametrize("path", GIN, ids=lambda path: path.stem)
def test_gin_files_open_with_what_to_set(path):
    text = path.read_text()
    head = " ".join(line.strip("# ") for line in text.splitlines() if line.startswith("#"))
    assert "Required to be set: " in head and "Commonly overridden: " in head
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("path", GIN, ids=lambda path: path.stem)
def test_gin_files_bind_what_is_there(pit, path):
    text, block, checked = path.read_text(), "", 0
    for line in text.splitlines():
        if opened := re.fullmatch(r"([\w/.]+):", line):
            block = opened[1]
        elif given := re.fullmatch(r"( *)([\w/.]+) = .*", line):
            whole = f"{block}.{given[2]}" if given[1] else given[2]
            *_, alias, name, parameter = ["", "", *whole.split("/")[-1].split(".")]
            found = configurable(pit, alias, name) if alias else None
            if found is not None:
                assert parameter in found, line
                checked += 1
        for alias, name in re.findall(r"@(?:\w+/)?(\w+)\.(\w+)", line):
            if alias == "pit":
                assert hasattr(pit, name), line
    assert checked or path.stem == "none"
    for included in re.findall(r"^include 'gin/t5x/(.*)'$", text, re.MULTILINE):
        assert (ROOT / "gin/t5x" / included).exists()


def test_what_t5xs_files_set_too_is_set_after_both_includes():
    """T5X's own file and model.gin are included side by side, in whatever order."""
    macros = re.compile(r"^([A-Z_]+) = ", re.MULTILINE)
    assert set(macros.findall((ROOT / "gin/t5x/model.gin").read_text())) == {"PIT", "MODEL"}
    for name in ("train", "infer", "eval"):
        text = (ROOT / f"gin/t5x/{name}.gin").read_text()
        after = text[text.rindex("include ") :]
        assert {"MIXTURE_OR_TASK_NAME", "TASK_FEATURE_LENGTHS"} <= set(macros.findall(after))


@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_are_the_recorded_ones(pit, name):
    """What T5X's checkpoints hold and what its jobs feed: a change breaks its users' runs."""
    assert t5x_contract.record_stage(name) == CONTRACT["stages"][name]


def initial_params(model):
    variables = jax.jit(lambda key: model.get_initial_variables(key, {}))(jax.random.key(1))
    return variables["params"]


@pytest.mark.parametrize("name", ["sft_pit", "rm_policy", "rm_gap"])
def test_the_loss_is_the_stages_own_mean(pit, name):
    setup = setup_of(pit, name)
    model = pit.model(setup)
    params = initial_params(model)
    batch = next(stage_training.train_batches(setup, setup.trained, 0))
    loss, metrics = jax.jit(model.loss_fn)(params, batch)
    objective = stages.objective(setup.trained, setup.config.network)
    (total, weight), expected = jax.jit(objective)(params, batch)
    assert float(loss) == pytest.approx(float(total / weight), rel=1e-6)
    assert float(metrics["loss"].compute()) == pytest.approx(
        float(expected["loss"][0] / expected["loss"][1]), rel=1e-6
    )
    assert model.eval_fn is not None and set(metrics) == set(expected)


def test_predictions_start_from_the_prompt_of_a_padded_row(pit):
    from pit_jax.adapters.t5x import models

    batch = {
        "decoder_input_tokens": jnp.array([[7, 8, 5, 1, 0, 0, 0], [9, 6, 4, 2, 5, 6, 1]]),
        "decoder_loss_weights": jnp.array(
            [[0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 0]], jnp.float32
        ),
    }
    expected = [[0, 0, 7, 8], [9, 6, 4, 2]]
    np.testing.assert_array_equal(models._prompts(batch, 3), expected)
    # A target that is to be unlikely, whose weight is -1, has a prompt too.
    unlikely = batch | {"decoder_loss_weights": -batch["decoder_loss_weights"]}
    np.testing.assert_array_equal(models._prompts(unlikely, 3), expected)
    prompts = {"prompt_tokens": jnp.array([[0, 7]])}
    np.testing.assert_array_equal(models._prompts(prompts, 3), [[0, 7]])


def test_predictions_and_scores_are_pit_jaxs(pit):
    setup = setup_of(pit, "sft_policy")
    model = pit.model(setup, sampling=SamplingConfig(temperature=0.0))
    params = initial_params(model)
    batch = next(stage_training.train_batches(setup, setup.trained, 0))
    tokens_BR, aux = jax.jit(model.predict_batch_with_aux)(params, batch)
    prompts = [[int(t) for t in row if t] for row in prompts_of(batch)]
    role = setup.role("policy")
    key, rows = jax.random.key(0), list(range(len(prompts)))
    responses = role.sampler.respond(
        params, prompts, role.widths.policy, rows, key, SamplingConfig(temperature=0.0)
    )
    for tokens_R, response in zip(np.asarray(tokens_BR), responses, strict=True):
        assert tokens_R[: len(response.tokens)].tolist() == response.tokens
    assert aux["scores"].shape == (len(prompts),) and (np.asarray(aux["scores"]) < 0).all()
    log_probs_B = jax.jit(model.score_batch)(params, batch)
    total, _ = jax.jit(model.loss_fn)(params, batch)
    weight = batch["decoder_loss_weights"].sum()
    assert float(-log_probs_B.sum() / weight) == pytest.approx(float(total), rel=1e-5)
    # The likelihood of a target that is to be unlikely, whose weight is -1, is its likelihood.
    unlikely = batch | {"decoder_loss_weights": -batch["decoder_loss_weights"]}
    np.testing.assert_array_equal(jax.jit(model.score_batch)(params, unlikely), log_probs_B)


def prompts_of(batch):
    tokens, weights = batch["decoder_input_tokens"], batch["decoder_loss_weights"]
    return [row[: int(np.argmax(weight > 0)) + 1] for row, weight in zip(tokens, weights)]


@pytest.mark.parametrize("peeked", [False, True])
def test_batches_go_on_where_the_checkpoint_was(pit, tmp_path, peeked):
    """T5X looks at the first batch before it saves step 0 and starts its loop."""
    setup = setup_of(pit, "rm_gap", tmp_path)
    whole = [
        batch["tokens"] for batch, _ in zip(pit.get_dataset(CFG, 0, 1, None, setup=setup), range(5))
    ]
    it = pit.get_dataset(CFG, 0, 1, None, setup=setup)
    ahead = [next(it)] if peeked else []
    it.save(tmp_path / "checkpoint_7.tmp-1" / "train_ds-000-of-001")
    seen = [*ahead, *(next(it) for _ in range(3 - len(ahead)))]
    path = tmp_path / "checkpoint_10" / "dataset" / "train_ds-000-of-001"
    it.save(path)
    for batch, expected in zip(seen, whole):
        np.testing.assert_array_equal(batch["tokens"], expected)
    for load in ("restore", "load"):
        again = pit.get_dataset(CFG, 0, 1, None, setup=setup)
        getattr(again, load)(path)
        np.testing.assert_array_equal(next(again)["tokens"], whole[3])
        again.save(tmp_path / "checkpoint_11" / load)
        assert json.loads((tmp_path / "checkpoint_11" / load).read_text()) == {"batches": 4}
    with pytest.raises(ValueError, match="expected a path in a folder checkpoint_N"):
        it.save(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="4 batches read|3 batches read"):
        it.save(tmp_path / "checkpoint_99" / "x")


def test_each_shard_gets_its_rows(pit):
    setup = setup_of(pit, "rm_gap")
    whole = next(pit.get_dataset(CFG, 0, 1, None, setup=setup))["tokens"]
    parts = [next(pit.get_dataset(CFG, i, 2, None, setup=setup))["tokens"] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_sampled_rounds_batches_wait_for_its_store(pit, tmp_path, monkeypatch):
    setup = setup_of(pit, "rl_pit", tmp_path)
    rounds = setup.trained.rounds
    assert [round_.source for round_ in rounds] == ["data", "policy"]
    it = pit.get_dataset(CFG, 0, 1, None, setup=setup)
    for _ in range(rounds[0].steps):
        next(it)
    waits = []

    def fill(seconds):
        waits.append(seconds)
        meta = ReferenceMeta(1, "policy", "rl_policy@2", 0, 8)
        folder = references_folder(setup, setup.trained, 1)
        with_ids = ReferenceWriter(folder, 16, meta)
        with_ids.add(
            {"index": e.index, "reference_tokens": [5, 6], "text": "x", "ended": True}
            for e in setup.data.examples("train", "rl")
        )
        with_ids.close()

    from pit_jax.adapters.t5x import batches

    monkeypatch.setattr(batches.time, "sleep", fill)
    sampled = next(it)["prompt_tokens"]
    assert len(waits) == 1
    assert all(", 5, 6," in str(row.tolist()) for row in sampled)
    steps = sum(1 for _ in it) + rounds[0].steps + 1
    assert steps == sum(round_.steps for round_ in rounds)  # and then no more
    assert list(curriculum.locate(rounds, steps)) == []


def test_held_out_batches_begin_anew_and_weigh_fillers_nothing(pit):
    config = tiny_runs.config("unused/sft_policy")

    setup = pit.setup(config, "sft_policy")
    ((name, held_out),) = pit.get_eval_datasets(CFG, 0, 1, 0, setup=setup).items()
    assert name == "instructions_drafts_sft_policy"
    batches = list(held_out)
    assert len(batches) == len(list(held_out)) == 3  # 20 examples in rows of 8
    assert {k: s.shape for k, s in held_out.element_spec.items()} == {
        k: v.shape for k, v in batches[0].items()
    }
    weights = batches[-1]["decoder_loss_weights"]
    assert weights[:4].any(axis=1).all() and not weights[4:].any()
    assert len(list(pit.get_eval_datasets(CFG, 0, 1, 2, setup=setup)[name])) == 2


def test_what_a_model_can_not_do_says_so(pit):
    reward = pit.model(setup_of(pit, "rm_gap"))
    with pytest.raises(NotImplementedError, match="infer.mode must be 'score'"):
        reward.predict_batch_with_aux({}, {})
    with pytest.raises(NotImplementedError, match="has no logits"):
        reward._compute_logits({}, {})
    ppo = pit.model(setup_of(pit, "rl_policy"))
    with pytest.raises(NotImplementedError, match="train.trainer_cls = @pit.PPOTrainer"):
        ppo.loss_fn({}, {})
    with pytest.raises(NotImplementedError, match="PPO has no logits of a batch; see PPOTrainer"):
        ppo._compute_logits({}, {})


def test_what_t5x_can_not_batch_is_refused(pit):
    from pit_jax.errors import UserError

    setup = setup_of(pit, "rm_gap")
    other = types.SimpleNamespace(batch_size=16, split="dev")
    message = "DatasetConfig.batch_size: got 16, expected 8, the stage's; BATCH_SIZE sets both"
    with pytest.raises(UserError, match=message):
        pit.get_dataset(other, 0, 1, None, setup=setup)
    with pytest.raises(UserError, match=message):
        pit.get_eval_datasets(other, 0, 1, setup=setup)
    buckets = setup_of(pit, "rm_gap", batching=BatchingConfig(length_buckets=2))
    with pytest.raises(UserError, match="got length_buckets=2, expected 1: T5X compiles for one"):
        pit.get_dataset(CFG, 0, 1, None, setup=buckets)


def test_a_stage_the_run_has_not_is_named(pit):
    from pit_jax.errors import UserError

    with pytest.raises(UserError, match="stage: got 'sft', expected one of pretrain, sft_policy"):
        pit.setup(tiny_runs.config("unused/x"), "sft")


def test_what_ppo_can_not_be_trained_with_is_refused(pit):
    from pit_jax.errors import UserError

    setup = setup_of(pit, "rl_pit")
    model = types.SimpleNamespace(stage=setup.trained, setup=setup, optimizer_def="adam")
    with pytest.raises(UserError, match="optimizer_def: got str, expected an optax one for PPO"):
        pit.PPOTrainer(model, None, None, None, None, None, None)
    trainer = object.__new__(pit.PPOTrainer)
    trainer._stage = setup.trained
    message = "stage rl_pit: got TRAIN_STEPS=5 or more, expected at most 4, the steps of its rounds"
    with pytest.raises(UserError, match=message):
        trainer.train(None, 3, start_step=2)
