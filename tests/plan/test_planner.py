"""Whole plans, compiled for simulated CPU devices in the place of chips."""

import dataclasses
import json
import os

import jax
import pytest

from pit_jax import cli
from pit_jax.errors import UserError
from pit_jax.plan import chips, host, machines, planner, text
from pit_jax.plan.programs import Program
from tests import tiny_runs

SLICE = chips.Slice("v4-8", chips.CHIPS["v4"], (2, 2, 1))


def small(hbm: float) -> chips.Slice:
    return dataclasses.replace(SLICE, chip=dataclasses.replace(SLICE.chip, hbm=hbm))


@pytest.fixture(scope="module")
def config():
    base = tiny_runs.config("unused", network=dataclasses.replace(tiny_runs.NETWORK, remat="full"))
    wide = tiny_runs.supervised("sft_policy", 10, batch_size=64)
    return dataclasses.replace(base, stages=(wide, *base.stages[5:6]))


@pytest.fixture(scope="module")
def plan(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    said: list[str] = []
    found = planner.make_plan(config, SLICE, jax.devices()[:4], said.append, folder)
    assert sorted(said) == [
        "compiling rl_policy: PPO: sample and score",
        "compiling rl_policy: PPO: update",
        "compiling sft_policy: training step",
    ]
    assert len(list(folder.glob("*.hlo.txt"))) == 3
    options = json.loads((folder / "sft_policy-training-step.json").read_text())
    assert options["arguments"]["[1]['decoder_loss_weights']"].startswith("float32[64, 21] ")
    assert options["memory"]["temp_size_in_bytes"] > 0 and options["mesh"]["data"] == 4
    return found


def test_a_plan(plan):
    assert plan["fits"] and plan["mesh"] == {"slice": 1, "data": 4, "model": 1}
    step, collect, update = plan["programs"]
    assert step["runs"] == 10 and step["tokens"] == 64 * 21
    for row in (step, collect, update):
        kept = sum(row["roles"].values()) + row["beside"]
        # All of a stage is in memory, also what a program doesn't read, as the optimizer.
        assert kept + row["temporary"] <= row["peak"] < 1e8
        parts = row["estimate"]
        assert row["seconds"] == pytest.approx(parts["passes"] + parts["communication"])
        assert max(parts["compute"], parts["memory"]) <= parts["passes"] * (1 + 1e-9)
        assert parts["passes"] <= parts["compute"] + parts["memory"]
    # The optimizer has two moments of each parameter; frozen models stay beside an update.
    assert step["roles"]["optimizer"] == pytest.approx(2 * step["roles"]["parameters"], rel=0.01)
    assert update["beside"] == collect["roles"]["frozen models"]
    kinds = {each["kind"] for each in step["collectives"]}
    assert "all-gather" in kinds  # of the layers' parameters, which are split over `data`
    seconds = sum(row["seconds"] * row["runs"] for row in plan["programs"])
    assert plan["hours"] == pytest.approx(seconds / 3600)
    assert json.loads(json.dumps(plan)) == plan


def test_its_text(plan):
    written = text.to_text(plan)
    assert "v4-8: 4 x v4 with 32 GiB, mesh slice 1 x data 4 x model 1" in written
    assert written.count("\nrl_policy   PPO: ") == 2 and "rl_policy   frozen models" in written
    assert "\nrl_policy   no backbone is shared\n" in written
    assert "Doesn't fit" not in written and "Estimated: " not in written
    each = plan["disk"][0]["bytes"] + plan["disk"][1]["bytes"]
    assert f"All stages: {each / 2**30:.2f} GiB on disk" in written
    told = text.explain(plan, "update")
    assert told.startswith("rl_policy: PPO: update\n") and "all-gather" in told
    assert "frozen models" in text.explain(plan, "sample")
    with pytest.raises(UserError, match="--explain: got 'nothing', expected part of one of sft_po"):
        text.explain(plan, "nothing")


def test_what_does_not_fit_gets_a_proposal_that_does(config, plan):
    only = dataclasses.replace(config, stages=config.stages[:1])
    peak = plan["programs"][0]["peak"]
    tight = small(peak / 0.96)
    devices = jax.devices()[:4]
    found = planner.make_plan(only, tight, devices, lambda text: None)
    assert not found["fits"]
    assert "Doesn't fit: sft_policy, training step" in text.to_text(found)
    proposal = planner.propose(only, tight, devices, found, lambda text: None)
    assert proposal is not None
    assert proposal["flags"] == "--gin.sft_policy/SupervisedStage.microbatches=2"
    assert proposal["peak"] < 0.95 * tight.chip.hbm
    assert text.advice(proposal).startswith("It fits with --gin.sft_policy/SupervisedStage.mi")
    fixed = dataclasses.replace(only.stages[0], microbatches=2)
    applied = dataclasses.replace(only, stages=(fixed,))
    assert planner.make_plan(applied, tight, devices, lambda text: None)["fits"]


@pytest.mark.parametrize(
    ("said", "peak"),
    [
        ("Ran out of memory in memory space hbm. Used 40.50G of 30.75G hbm.", 40.5 * 2**30),
        (
            "Ran out of memory on HBM, the total memory required for HLO temporaries (31G) "
            "exceeds available HBM (30.75G).",
            31 * 2**30 + 400,
        ),
    ],
)
def test_what_the_compiler_refuses_does_not_fit(config, monkeypatch, said, peak):
    """On a chip there are 400 bytes of arguments, and 40 beside the program."""

    class Refused:
        def lower(self, *_):
            raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {said}")

    alone = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    given, kept = (jax.ShapeDtypeStruct((n,), "int32", sharding=alone) for n in (100, 10))
    program = Program("step", "sft_policy", Refused(), (given,), {}, {"models": kept}, (), 1, 1)
    monkeypatch.setattr(planner, "programs", lambda *_: iter([program]))
    found = planner.make_plan(config, SLICE, jax.devices()[:4], lambda text: None)
    (row,) = found["programs"]
    assert row["refused"] and not found["fits"] and row["peak"] == peak + 40


def test_what_nothing_helps(config):
    stage = dataclasses.replace(config.stages[0], batch_size=4)
    only = dataclasses.replace(config, stages=(stage,))
    tiny = small(1000.0)
    found = planner.make_plan(only, tiny, jax.devices()[:4], lambda text: None)
    assert planner.propose(only, tiny, jax.devices()[:4], found, lambda text: None) is None
    assert "take more chips" in text.advice(None)


def test_what_is_too_large_already_is_not_compiled(config, plan, monkeypatch):
    monkeypatch.setattr(planner, "_measure", lambda *_: pytest.fail("compiled"))
    failing = {"programs": [row | {"fits": False} for row in plan["programs"][:1]]}
    only = dataclasses.replace(config, stages=config.stages[:1])
    assert planner.propose(only, small(1000.0), jax.devices()[:4], failing, print) is None


def test_proposals_are_tried_the_mildest_first(config):
    """As far as rows and heads go: 8 episodes in 2 minibatches, 2 heads of keys."""
    network = dataclasses.replace(config.network, remat="none")
    offload = "--gin.rl_policy/RLStage.offload_frozen=True"
    remat = "--gin.NetworkConfig.remat=\"'full'\""
    found = list(planner.proposals(dataclasses.replace(config, network=network), {"rl_policy"}, 4))
    assert [flags.removeprefix(f"{remat} {offload} ") for flags, _ in found] == [
        remat,
        f"{remat} {offload}",
        "--gin.MeshConfig.model=2",
        "--gin.MeshConfig.model=2 --gin.rl_policy/PPOConfig.microbatches=2",
    ]
    last = found[-1][1]
    assert last.network.remat == "full" and last.mesh.model == 2
    assert last.stages[1].offload_frozen and last.stages[1].ppo.microbatches == 2
    assert last.stages[0] == config.stages[0]  # it fits as it is


def test_what_a_plan_for_gpus_says():
    network = dataclasses.replace(tiny_runs.NETWORK, dtype="bfloat16")
    said = text.assumptions(chips.parse("h100-8"), network, 0.95)
    assert "40% of 989.0 TFLOP/s (bfloat16), 70% of 3,350 GB/s" in said["assumed"]
    assert "70% of 450 GB/s of links" in said["assumed"] and "estimated" in said
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95" in said["assumed"]
    said = text.assumptions(chips.parse("l4-1"), tiny_runs.NETWORK, 0.95)
    assert "40% of 60.5 TFLOP/s (TF32)" in said["assumed"]
    assert "links" not in said["assumed"]  # a single one has none


def test_which_models_share_a_backbone(plan):
    roles = {"backbone of actor, critic": 0, "backbone of reward": 0, "parameters": 0}
    programs = [Program("p", "s", None, (), of, {}, (), 1, 1) for of in ({}, roles)]
    assert planner.sharing(programs) == [["actor", "critic"]]
    written = text.to_text(plan | {"shared": {"rl_policy": [["actor", "critic"]]}})
    assert "\nrl_policy   backbone shared by actor, critic\n" in written
    assert planner.sharing(programs[:1]) == [] and plan["shared"] == {"rl_policy": []}


@pytest.mark.gpu_compiler
def test_the_compiler_for_cuda_compiles_a_run(config):
    """On one GPU and on several, with cuDNN's attention; each device of 8 has less than the one."""
    network = dataclasses.replace(config.network, dtype="bfloat16")
    only = dataclasses.replace(config, network=network, stages=config.stages[:1])
    peaks = []
    for name in ("h100-1", "h100-8"):
        slice_ = chips.parse(name)
        found = planner.make_plan(only, slice_, machines.devices(slice_), lambda text: None)
        peaks.append(found["programs"][0]["peak"])
    assert peaks[1] < peaks[0]


def test_one_chip_shares_no_layer(config):
    """8 episodes in 2 minibatches: up to 4 microbatches, and a mesh of one device."""
    found = list(planner.proposals(config, {"rl_policy"}, 1))
    assert [other.mesh.model for _, other in found] == [1, 1, 1]
    assert [other.stages[1].ppo.microbatches for _, other in found] == [1, 2, 4]


def test_slices_must_be_those_of_the_mesh(config):
    with pytest.raises(UserError, match="2xv4-8 has 2 slices, .* mesh 1; give --gin.MeshConfig.sl"):
        planner.make_plan(config, chips.parse("2xv4-8"), jax.devices(), lambda text: None)


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    file = tmp_path / "one.gin"
    only = "run_config.RunConfig.stages = (@sft_policy/stages.SupervisedStage(),)\n"
    file.write_text(
        f"{tiny_runs.GIN}\n{only}BATCH_SIZE = 64\nconfig.NetworkConfig.remat = 'full'\n"
    )
    four = jax.devices()[:4]
    monkeypatch.setattr(machines, "devices", lambda slice_: four)
    monkeypatch.setattr(host, "devices", lambda: four)
    monkeypatch.setattr(host, "meter", lambda *_: lambda: host.Machine(4e11, 1.6e11, 1.0))
    argv = ["plan", f"--gin_file={file}", "--gin.MODEL_DIR='none'"]
    assert cli.main([*argv, "--topology=cpu", "--explain=nothing"]) == 2
    assert "expected part of one of sft_policy: training step" in capsys.readouterr().err
    saved = f"--save={tmp_path}/saved"
    assert cli.main([*argv, "--topology=cpu", "--explain=training", saved]) == 0
    out, err = capsys.readouterr()
    assert err == "compiling sft_policy: training step …\n"
    assert out.startswith(f"cpu: 4 x {os.cpu_count()} cores with ")
    assert "100 GFLOP/s in float32 and 40 GB/s of memory a device" in out
    assert "All stages: 0.0 minutes" in out and "  optimizer " in out
    assert (tmp_path / "saved" / "sft_policy-training-step.hlo.txt").exists()
    assert cli.main([*argv, "--topology=h100-4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["programs"]
    assert (found["chip"], found["chips"], found["disk"][0]["checkpoints"]) == ("h100", 4, 1)
    assert row["share"] == row["peak"] / (79.1 * 2**30)
    parts = row["estimate"]
    assert parts["launches"] > 100 * 3e-6
    assert row["seconds"] == parts["passes"] + parts["communication"] + parts["launches"]
    assert row["mfu"] == pytest.approx(row["flops"] / row["seconds"] / 4 / (989e12 / 2))
    argv.append("--topology=v4-8")
    monkeypatch.setattr(machines, "find", lambda name: small(row["peak"] / 0.96))
    assert cli.main(argv) == 1
    out = capsys.readouterr().out
    assert "Doesn't fit: sft_policy, training step" in out
    flag = "--gin.sft_policy/SupervisedStage.microbatches=2"
    assert f"It fits with {flag}: " in out
    assert cli.main([*argv, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["proposal"]["flags"] == flag
    assert cli.main([*argv, flag]) == 0  # the proposal, applied
