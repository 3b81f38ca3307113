"""What a run gives its stages and evaluations: models, the key of a purpose, samplers."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest

from pit_jax.errors import UserError
from pit_jax.run import run as runs
from tests import tiny_runs


@pytest.fixture
def run(tmp_path):
    """A run in which both reward models are trained, as their folders say."""
    for name, result in (
        ("rm_policy", {"task": "rm_policy", "model_step": 4, "pooling": "sum", "anchor": 1.5}),
        ("rm_gap", {"task": "rm_gap", "model_step": 2, "pooling": "sum", "anchor": -0.5}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    return tiny_runs.on_one_device(tiny_runs.config(tmp_path))


@pytest.fixture
def restored(monkeypatch):
    """Checkpoints whose models are the names of their folders and their steps."""

    def checkpoints(folder, read_only):
        return types.SimpleNamespace(
            restore_model=lambda model, step: (folder.parent.name, step), close=lambda: None
        )

    monkeypatch.setattr(runs, "Checkpoints", checkpoints)


def test_a_model_is_that_of_its_result_or_of_the_step_asked_for(run, restored):
    assert run.load("rm_policy") == ("rm_policy", 4)
    assert run.load("rm_policy", 6) == ("rm_policy", 6)


@pytest.mark.parametrize("what", ["vocabulary", "network"])
def test_a_model_with_another_meaning_is_not_read(run, restored, what):
    identity = run.identity() | {what: "another"}
    (run.folder("rm_gap") / "stage.json").write_text(json.dumps({"model": identity}))
    with pytest.raises(UserError, match=f"rm_gap: was trained with another {what}: .*another"):
        run.load("rm_gap")


def test_gaps_are_read_as_their_model_was_trained(run):
    with_gaps, without = run.improver("M_PIT", "R_PIT", "rm_gap"), run.improver("M_PIT")
    assert (with_gaps.gap_model, with_gaps.pooling, with_gaps.anchor) == ("R_PIT", "sum", -0.5)
    assert (without.gap_model, without.pooling, without.anchor) == (None, "last", 0.0)


def test_a_run_samples_ids_of_text_and_eos_only(run, monkeypatch):
    found = []
    monkeypatch.setattr(runs, "Sampler", lambda *given: found.append(given))
    run.place(run.partitioner)
    ((network, _, response, batch, allowed),) = found
    assert (network, response, batch) == (tiny_runs.NETWORK, 13, 16)
    expected = np.isin(range(64), [1, *range(2, run.vocabulary.vocab_size - 2)])
    np.testing.assert_array_equal(allowed, expected)
