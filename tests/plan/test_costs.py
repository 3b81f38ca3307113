"""What it costs to train runs of several seeds: shares that are left, operations, disk, times."""

from __future__ import annotations

import dataclasses
import json

from pit_jax.plan import costs
from tests import tiny_runs


def test_costs_count_what_is_left_and_take_times_from_what_is_measured(tmp_path):
    base = tiny_runs.config(tmp_path / "seed0")
    longer = dataclasses.replace(base.stages[0], name="longer", steps=8)
    base = dataclasses.replace(base, stages=(*base.stages[:2], longer, base.stages[-2]))
    both = [base, dataclasses.replace(base, model_dir=str(tmp_path / "seed1"), seed=1)]
    runs = [tiny_runs.on_one_device(config) for config in both]
    (tmp_path / "seed0" / "pretrain").mkdir(parents=True)
    result = tmp_path / "seed0" / "pretrain" / "result.json"
    result.write_text(json.dumps({"seconds": 3.0, "task": "pretrain", "model_step": 1}))
    (tmp_path / "seed1" / "pretrain" / "checkpoints" / "1").mkdir(parents=True)
    found = costs.costs(runs, runs[0].partitioner, {"sft_policy": 7.0, "pretrain": 99.0})
    assert [cost.stage for cost in found] == ["pretrain", "sft_policy", "longer", "rl_policy"]
    pretrain, sft, longer, rl = found

    assert pretrain.left == (0.0, 0.75) and pretrain.to_do == 0.75
    assert (pretrain.seconds, pretrain.source) == (3.0, "measured")
    assert (longer.seconds, longer.source) == (6.0, "as pretrain")  # twice the steps
    assert (sft.seconds, sft.source, sft.to_do) == (7.0, "plan", 2.0)
    assert (rl.seconds, rl.source) == (None, "")

    # By hand: a step passes 8 rows forwards and backwards, three times what forwards takes.
    # A token takes two operations for each parameter of 4 x 16 x 16 of attention, 3 x 16 x 16 of
    # the MLP and 64 x 16 of the output, and 4 x 16 for each key: on average half a row's. A plan
    # leaves room for the space of a tokenizer.
    width = sum(runs[0].data.feature_lengths("pretrain").values()) + 1
    token = 2 * (7 * 16 * 16 + 64 * 16) + 4 * 16 * width / 2
    assert pretrain.flops == 4 * 3 * 8 * width * token
    assert longer.flops == 2 * pretrain.flops

    # Parameters and two moments in float32, and little else, of two checkpoints each.
    parameters = 64 * 16 + 7 * 16 * 16 + 3 * 16  # the norms have 16 each
    assert 0 <= pretrain.size / 2 - 3 * 4 * parameters < 100
    assert rl.size > 2 * pretrain.size * 0.99
