"""The comparison with peers: its arithmetic, and its protocol with workers that pretend."""

from __future__ import annotations

import dataclasses
import pathlib
import sys

import numpy as np
import peers
import peers_cases
import peers_ours
import pytest
from peers_protocol import Absent, Failed, Worker

FAKE = pathlib.Path(__file__).with_name("fake_peer.py")
TINY = peers_cases.Size(2, 8, 2, 1, 4, 12, 20, 100.0)
CASE = peers_cases.Case("tiny", "a step", "train", "t5x", "train", "llama", 2, 3, 5)


def answer(seconds, tokens, **phases):
    return {"seconds": seconds, "tokens": tokens, "phases": phases}


def test_ratios_are_taken_within_a_round():
    # Ours does 10, 20, 40 tokens a second; the peer 10, 5 and 20, in steps twice as large.
    rounds = [
        (answer(1.0, 10, update=1.0, rollout=3.0), answer(2.0, 20, update=6.0, input=1.0)),
        (answer(0.5, 10, update=2.0, rollout=3.0), answer(4.0, 20, update=8.0, input=1.0)),
        (answer(0.25, 10, update=3.0, rollout=3.0), answer(1.0, 20, update=2.0, input=1.0)),
    ]
    found = peers.summary(rounds)
    assert found["ratio"] == {"median": 2.0, "least": 1.0, "most": 4.0}
    assert found["ours"]["median"] == 20.0 and found["theirs"]["median"] == 10.0
    # Seconds for each 10 tokens: 1, 2, 3 against 3, 4, 1, whose ratios are 3, 2 and 1/3.
    assert found["phases"].keys() == {"update"}
    assert found["phases"]["update"] == pytest.approx({"ratio": 2.0, "ours": 2e5, "theirs": 3e5})


def test_examples_are_packed_as_a_stage_packs_them():
    """Of 3, 2 and 1 tokens into rows of 4: the longest first, each where it leaves least room."""
    rows = {
        "decoder_target_tokens": np.array([[5, 6, 0, 0], [7, 8, 9, 0], [4, 0, 0, 0]], np.int32),
        "decoder_segment_ids": np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]], np.int32),
    }
    found = peers_ours._packed(rows, 4)
    assert found["decoder_target_tokens"].tolist() == [[5, 6, 0, 0], [7, 8, 9, 4]]
    assert found["decoder_segment_ids"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 2]]


def test_results_are_equal_to_rounding():
    ours = {"loss": 8.0, "small": 0.1, "tokens": [[1] * 50, [2] * 50], "rows": [1], "own": 1.0}
    theirs = {"loss": 8.001, "small": 0.1003, "tokens": [[1] * 50, [2] * 49 + [3]], "rows": [1, 2]}
    found = peers.differences(ours, theirs)
    assert {name: check["equal"] for name, check in found.items()} == {
        "loss": True,
        "small": False,
        "tokens": True,
        "rows": False,
    }
    assert found["loss"]["difference"] == pytest.approx(0.001 / 8.001)
    assert found["small"]["difference"] == pytest.approx(0.0003)
    assert found["tokens"]["difference"] == 0.01
    assert not peers.differences({"loss": float("nan")}, {"loss": 1.0})["loss"]["equal"]
    worse = [[1] * 50, [2] * 47 + [3] * 3]
    assert not peers.differences(ours, {"tokens": worse})["tokens"]["equal"]


def test_shares_of_the_limit():
    limits = {"float32": 1000.0, "bandwidth": 300.0}
    assert peers.share_of_limit(20.0, {"flops_per_token": 25.0}, limits) == (0.5, "float32")
    assert peers.share_of_limit(20.0, {"bytes_per_token": 6.0}, limits) == (0.4, "bandwidth")
    assert peers.share_of_limit(20.0, {}, limits) is None


def test_weights_have_the_names_of_transformers():
    shapes = {
        name: array.shape for name, array in peers_cases.weights(TINY, "qwen3", 0, True).items()
    }
    assert len(shapes) == 3 + 2 * 11 and shapes["score.weight"] == (1, 8)
    assert shapes["model.layers.1.self_attn.q_proj.weight"] == (8, 8)
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (4, 8)
    assert shapes["model.layers.1.self_attn.k_norm.weight"] == (4,)
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (8, 12)
    t5x = peers_cases.weights(TINY, "t5x", 0, False)
    assert t5x["model.relative_attention_bias.weight"].shape == (32, 2)
    assert all(array.dtype == np.float32 for array in t5x.values())
    small = peers_cases.weights(peers_cases.SIZES["small"], "llama", 0, False)
    assert sum(array.size for array in small.values()) == 4_294_912


def test_training_rows_have_their_loss_on_the_response():
    inputs, targets, weights = peers_cases.training_rows(CASE, 1)
    assert inputs.shape == targets.shape == (2, 8)
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    np.testing.assert_array_equal(weights, [[0, 0, 0, 1, 1, 1, 1, 1]] * 2)
    assert inputs.min() >= 2
    assert not np.array_equal(inputs, peers_cases.training_rows(CASE, 2)[0])


@pytest.mark.parametrize("share", [0.5, 0.21])
def test_ends_fill_a_share_of_the_window_in_the_mean(share):
    case = dataclasses.replace(CASE, response=128)
    found = peers_cases.ends(case, share)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, case.network.vocabulary, (4000, 128))
    ended = np.cumsum(np.isin(drawn, found), axis=1) - np.isin(drawn, found) > 0
    assert np.mean(~ended) == pytest.approx(share, abs=0.03)


@pytest.fixture
def contestants(tmp_path, monkeypatch):
    """Both sides are the fake, the peer three times as slow."""
    monkeypatch.setitem(peers_cases.SIZES, "small", TINY)

    class Fakes(peers.Contestants):
        def start(self, name, label, **environment):
            step = "0.25" if name == peers_cases.OURS else "0.75"
            environment |= {"FAKE_STEP": step, "FAKE_NAME": name[0]}
            environment |= {"FAKE_RECORD": str(tmp_path / "record"), **self.environment}
            environment["PYTHONPATH"] = str(pathlib.Path(peers.__file__).parent)
            log = tmp_path / f"{label}.log"
            return Worker(name, [sys.executable, "-S", str(FAKE)], environment, log)

    fakes = Fakes({}, tmp_path)
    fakes.environment = {}
    return fakes


def test_a_comparison_takes_turns(contestants, tmp_path):
    result = peers.compare(CASE, contestants, rounds=2, seconds=0.75)
    assert (tmp_path / "record").read_text().split() == [
        "p1",
        "p1",
        "t1",
        "t1",
        *["p1", "p3", "t1", "t1"] * 2,
    ]
    assert result["ratio"] == {"median": 3.0, "least": 3.0, "most": 3.0}
    assert result["ours"]["median"] == 40.0
    assert result["checks"]["tokens"] == {"difference": 0.0, "equal": True}
    assert peers.is_equal(result)
    first, phase = peers.lines(result, {"float32": 1000.0})
    assert " ".join(first.split()) == (
        "a step, B=2 t5x, 3+5 40 13 3.00 3.00 to 3.00 20% 7% 1/1 yes, within 0.0e+00"
    )
    assert " ".join(phase.split()) == "update ms per 1,000 tokens 8333.3 75000.0 9.00"
    assert not list(tmp_path.glob("*.npz"))
    assert "what a library prints" in (tmp_path / "tiny.ours.log").read_text()


def test_absent_peers_and_failures_are_told_apart(contestants, monkeypatch):
    for rows, message in (
        (0, "t5x|pit_jax: ValueError: no rows; see .*log"),
        (13, "pit_jax: ended: the last words; see .*log"),
    ):
        with pytest.raises(Failed, match=message):
            peers.compare(dataclasses.replace(CASE, rows=rows), contestants, 1, 1.0)
    monkeypatch.setitem(contestants.environment, "FAKE_MISSING", "no_such_peer")
    with pytest.raises(Absent, match="t5x: ModuleNotFoundError: No module named 'no_such_peer'"):
        peers.compare(CASE, contestants, 1, 1.0)


def test_the_command_refuses_unknown_contestants(capsys):
    with pytest.raises(SystemExit):
        peers.parse_arguments(["--python", "t5x=/no/such/python"])
    assert "got 't5x=/no/such/python', expected pit_jax|t5x|" in capsys.readouterr().err
    options = peers.parse_arguments(["--python", f"t5x={sys.executable}", "--case", "ppo_tunix"])
    assert [case.peer for case in peers.chosen(options)] == ["tunix"]
    everything = peers.parse_arguments(["--size=all"])
    assert len(peers.chosen(everything)) == len(peers_cases.CASES)
