"""T5X's checkpoints without T5X: what is written is read, in both formats, with the same bits."""

from __future__ import annotations

import functools
import gc
import json
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from etils import epath
from flax import serialization, traverse_util

from pit_jax.errors import UserError
from pit_jax.method.environment import Networks
from pit_jax.models.weights import t5x as weights
from pit_jax.run import stages, t5x_checkpoints
from pit_jax.runtime.partitioning import MeshConfig, Partitioner
from tests import tiny_runs

KEY = jax.random.key(0)
STAGES = {stage.name: stage for stage in tiny_runs.config("unused").stages}


def partitioner(model=2):
    return Partitioner(MeshConfig(model=model))


def abstract(part=None, network=tiny_runs.NETWORK):
    """What `load` is given: a network, its language model, its reward model."""
    part = part or partitioner()
    inits = (stages.init_language_model(network), stages.init_scalar_model(network))
    return (network, *(stages.abstract_model(init, part) for init in inits))


@functools.cache
def made(name):
    return stages.create_state(STAGES[name], Networks.same(tiny_runs.NETWORK), partitioner(), KEY)


def flat(tree):
    return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(tree, sep="/").items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name, strict=True)


def write_legacy(folder, target, in_file=("final_norm",)):
    """As T5X's older checkpointer writes: small arrays in the msgpack file, others as zarr."""
    folder.mkdir(parents=True)

    def one(path, array):
        if any(part in path for part in in_file):
            return array
        name = "target." + ".".join(path)
        kind = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(folder / name)}}
        store = tensorstore.open(
            {**kind, "metadata": {"dtype": "<f4", "shape": array.shape}}, create=True
        ).result()
        store.write(array).result()
        spec = store.spec().to_json()
        return {**spec, "kvstore": {"driver": "file", "path": name}}

    leaves = {p: one(p, x) for p, x in traverse_util.flatten_dict(target).items()}
    optimizer = {"target": traverse_util.unflatten_dict(leaves), "state": {"step": np.int32(7)}}
    data = serialization.msgpack_serialize({"version": 3, "optimizer": optimizer})
    (folder / "checkpoint").write_bytes(data)


@pytest.mark.parametrize("name", ["sft_pit", "rm_gap", "rl_pit"])
def test_what_is_saved_is_loaded_on_another_mesh(tmp_path, name):
    state = made(name)
    folder = epath.Path(tmp_path)
    path = t5x_checkpoints.save(folder, 12, state)
    assert path.name == "checkpoint_12" and t5x_checkpoints.find(folder) == path
    other = partitioner(4)
    loaded = t5x_checkpoints.load(path, *abstract(other))
    params = state.train.params["actor"] if name == "rl_pit" else state.params
    assert_same(flat(loaded), flat(params))
    assert jax.tree.leaves(loaded)[0].sharding.mesh == other.mesh


def test_a_full_disk_is_told_in_a_line_with_the_path(tmp_path, capfd, caplog):
    """Orbax says it in an error of TensorStore's."""
    made("sft_pit")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
    try:
        with pytest.raises(UserError) as refusal:
            t5x_checkpoints.save(epath.Path(tmp_path), 12, made("sft_pit"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    line = f"{tmp_path}/checkpoint_12: can't be written: File too large"
    assert str(refusal.value) == line
    gc.collect()  # of coroutines that tell what became of them
    assert capfd.readouterr().err == "" and caplog.text == ""


def test_the_optimizer_and_ppos_part_are_saved_under_t5xs_names(tmp_path):
    state = made("rl_pit")
    moments = state.moments.add(jnp.array([1.0, 3.0]), jnp.ones(2))
    state = state.replace(moments=moments, beta=jnp.float32(0.25))
    path = t5x_checkpoints.save(epath.Path(tmp_path), 3, state)
    import orbax.checkpoint as ocp

    tree = flat(ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).restore(path / "state"))
    assert json.loads((path / "dataset" / "train_ds-000-of-001").read_text()) == {"batches": 3}
    assert tree["state/step"] == 3 and tree["state/step"].dtype == np.int32
    assert tree["flax_mutables/ppo/beta"] == 0.25
    assert tree["flax_mutables/ppo/moments/mean"] == 2
    assert tree["flax_mutables/ppo/gradient_steps"] == 0
    name = "decoder/final_norm/scale"
    assert tree[f"target/critic/{name}"].shape == (16,)
    assert any(k.endswith(f"/mu/actor/{name}") for k in tree if k.startswith("state/param_states/"))


@pytest.mark.parametrize("prefix", ["", "actor"])
def test_the_older_format_is_read(tmp_path, prefix):
    params = made("sft_pit").params
    target = jax.tree.map(np.asarray, params)
    folder = epath.Path(tmp_path) / "checkpoint_7"
    write_legacy(folder, {prefix: target, "critic": target} if prefix else target)
    assert_same(flat(t5x_checkpoints.load(folder, *abstract())), flat(params))


def test_bfloat16_becomes_the_type_that_is_wanted(tmp_path):
    params = jax.tree.map(lambda x: np.asarray(x, jnp.bfloat16), made("sft_pit").params)
    folder = epath.Path(tmp_path) / "checkpoint_7"
    write_legacy(folder, params, in_file=("decoder",))
    loaded = t5x_checkpoints.load(folder, *abstract())
    assert_same(flat(loaded), {k: v.astype(np.float32) for k, v in flat(params).items()})


def test_the_newest_or_a_certain_checkpoint_is_found(tmp_path):
    folder = epath.Path(tmp_path)
    assert t5x_checkpoints.find(folder) is None and t5x_checkpoints.find(folder / "no") is None
    for name in ("checkpoint_9", "checkpoint_10", "checkpoint_11.tmp-1", "other_12", "checkpoint_"):
        (folder / name).mkdir()
    assert t5x_checkpoints.find(folder).name == "checkpoint_10"
    assert t5x_checkpoints.find(folder, 9).name == "checkpoint_9"
    assert t5x_checkpoints.find(folder, 8) is None
    assert t5x_checkpoints.find(folder / "checkpoint_9") == folder / "checkpoint_9"
    assert t5x_checkpoints.step_of(folder / "checkpoint_10") == 10
    assert t5x_checkpoints.step_of(folder / "other_12") == -1


def test_what_is_no_checkpoint_or_of_another_model_is_refused(tmp_path):
    folder = epath.Path(tmp_path)
    (folder / "checkpoint_1").mkdir()
    with pytest.raises(UserError, match="expected a T5X checkpoint, a file `checkpoint` or folder"):
        t5x_checkpoints.load(folder / "checkpoint_1", *abstract())
    path = t5x_checkpoints.save(folder, 2, made("sft_pit"))
    import dataclasses

    wide = dataclasses.replace(tiny_runs.NETWORK, mlp_dim=32)
    message = r"checkpoint_2: doesn't fit .*got decoder/layers/mlp/down/kernel \(1, 16, 16\), "
    with pytest.raises(UserError, match=message + r"expected \(1, 32, 16\)"):
        t5x_checkpoints.load(path, *abstract(network=wide))
    untied = dataclasses.replace(tiny_runs.NETWORK, tied_embeddings=False)
    with pytest.raises(UserError, match=r"got decoder/unembed/kernel missing, expected \(16, 64\)"):
        t5x_checkpoints.load(path, *abstract(network=untied))
    with pytest.raises(UserError, match="checkpoint_2: is there already, expected a new folder"):
        t5x_checkpoints.save(folder, 2, made("sft_pit"))


def test_t5xs_decoder_is_imported(tmp_path):
    import dataclasses

    network = dataclasses.replace(
        tiny_runs.NETWORK,
        num_layers=2,
        scale_embeddings=False,
        scale_attention=False,
        scale_logits=True,
        positions="relative",
        activation="gelu",
    )
    init = stages.init_language_model(network)
    part = partitioner()
    stage = STAGES["sft_pit"]
    params = stages.create_state(stage, Networks.same(network), part, KEY).params
    theirs = weights.to_t5x_decoder(params)
    folder = epath.Path(tmp_path) / "checkpoint_5"
    write_legacy(folder, traverse_util.unflatten_dict(theirs, sep="/"))
    loaded = t5x_checkpoints.load(folder, *abstract(part, network))
    assert_same(flat(loaded), flat(params))
    shardings = jax.tree.map(lambda x: x.sharding, stages.abstract_model(init, part))
    assert jax.tree.map(lambda x: x.sharding, loaded) == shardings
    with pytest.raises(UserError, match="num_kv_heads|scale_|positions"):
        t5x_checkpoints.load(folder, *abstract(part))


def test_a_stage_starts_from_a_t5x_checkpoint_and_is_exported(tmp_path, capsys):
    """From the command line: INITIAL_CHECKPOINT_PATH names one, `convert` writes one."""
    source = epath.Path(tmp_path) / "t5x"
    t5x_checkpoints.save(source, 4, made("pretrain"))
    folder = tmp_path / "run"
    initial = f"--gin.INITIAL_CHECKPOINT_PATH='{source / 'checkpoint_4'}'"
    stage = "--gin.STAGE='sft_policy'"
    assert tiny_runs.command("train", folder, stage, initial) == 0
    output = tmp_path / "exported"
    arguments = (stage, initial, "--to=t5x", f"--output={output}")
    assert tiny_runs.command("convert", folder, *arguments) == 0
    assert f"sft_policy, step 2: {output}/checkpoint_2" in capsys.readouterr().out
    run = tiny_runs.on_one_device(tiny_runs.config(folder))
    exported = t5x_checkpoints.load(epath.Path(output) / "checkpoint_2", *abstract(run.partitioner))
    assert_same(flat(exported), flat(run.load("sft_policy")))
    assert tiny_runs.command("convert", folder, *arguments) == 2
    assert "is there already" in capsys.readouterr().err
    missing = ("--gin.STAGE='rm_gap'", "--to=t5x", f"--output={output}")
    assert tiny_runs.command("convert", folder, *missing) == 2
    assert "train stage 'rm_gap' first" in capsys.readouterr().err


def test_a_run_uses_stages_that_t5x_trained(tmp_path):
    """Task, step and pooling come from the run's file, as T5X's folders don't have them."""
    folder = epath.Path(tmp_path)
    t5x_checkpoints.save(folder / "rm_gap", 9, made("rm_gap"))
    t5x_checkpoints.save(folder / "rl_pit", 4, made("rl_pit"))
    run = tiny_runs.on_one_device(tiny_runs.config(tmp_path))
    assert run.result("rm_gap") == {"task": "rm_gap", "model_step": 9, "pooling": "sum"}
    assert run.pooling("rm_gap") == "sum" and run.result("rl_pit")["model_step"] == 4
    assert_same(flat(run.load("rl_pit")), flat(made("rl_pit").train.params["actor"]))
    assert "head" in run.load("rm_gap")
    by_path = run.result(str(tmp_path / "rm_gap" / "checkpoint_9"))
    assert by_path == run.result(str(tmp_path / "rm_gap")) == run.result("rm_gap")
    (folder / "rm_gap").rename(folder / "elsewhere")
    with pytest.raises(UserError, match="stage: got '.*elsewhere', expected one of pretrain"):
        run.result(str(folder / "elsewhere"))
    with pytest.raises(UserError, match="train stage 'sft_pit' first"):
        run.result("sft_pit")
    assert json.dumps(run.result("rl_pit"))
