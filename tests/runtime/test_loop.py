"""The training loop on a straight line: steps, microbatches, records, checkpoints, bad steps."""

from __future__ import annotations

import itertools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pit_jax.errors import Interrupted, NotFiniteError
from pit_jax.method import supervised_step
from pit_jax.runtime import loop as training_loop
from pit_jax.runtime.checkpoints import Checkpoints
from pit_jax.runtime.metrics import MetricWriter
from pit_jax.runtime.partitioning import MeshConfig, Partitioner
from pit_jax.runtime.train_state import OptimizerConfig, TrainState
from tests import reference

OPTIMIZER = OptimizerConfig(learning_rate=0.1, clip_norm=1e9)
ONE_DEVICE = Partitioner(MeshConfig(), jax.devices()[:1])


def squared_error(params, batch):
    """A weighted mean of squared errors of a line; rows of weight 0 only fill the batch."""
    error_B = (batch["x"] @ params["slope"] - batch["y"]) ** 2
    pair = jnp.sum(error_B * batch["weight"]), jnp.sum(batch["weight"])
    return pair, {"loss": pair, "tokens": (pair[1], 1.0), "model_flops": (6e12, 1.0)}


def make_state():
    return TrainState.create({"slope": jnp.array([1.0, -2.0])}, OPTIMIZER.build())


def make_batch(seed, bad=False):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4, 2)).astype(np.float32)
    y = np.full(4, np.nan, np.float32) if bad else (x @ [3.0, 1.0]).astype(np.float32)
    return {"x": x, "y": y, "weight": np.array([1, 1, 0.5, 0], np.float32)}


class Recorder:
    """A writer that keeps what it gets."""

    def __init__(self):
        self.records, self.texts = [], []

    def write(self, step, scalars, texts=None):
        self.records.append({"step": step, **scalars})
        self.texts.append(texts)

    def flush(self):
        pass

    def close(self):
        pass


class Loop:
    """`loop.fit` with a straight line, in a folder."""

    def __init__(self, folder, progress=None, keep_every=0):
        self.recorder = Recorder()
        self.progress = progress or training_loop.Progress()
        self.checkpoints = Checkpoints(folder, keep_every)
        self._step = supervised_step.make_step(squared_error, ONE_DEVICE)

    def step(self, state, batch, number):
        return *self._step(state, batch), lambda: {"sample": f"after step {number}"}

    def run(self, batches, stop, state=None, **options):
        config = {"log_every": 1, "checkpoint_every": 2} | {
            name: options.pop(name) for name in tuple(options) if name.endswith("_every")
        }
        keep_every = config.pop("keep_every", 0)
        try:
            return training_loop.fit(
                make_state() if state is None else state,
                self.step,
                iter(batches),
                self.progress,
                stop,
                training_loop.LoopConfig(**config),
                MetricWriter(self.recorder),
                self.checkpoints,
                keep_every=keep_every,
                **options,
            )
        finally:
            self.checkpoints.close()


def batches(*bad):
    return (make_batch(seed, bad=seed in bad) for seed in itertools.count())


def test_a_step_divides_once_by_the_weight():
    batch = make_batch(0)
    slope = np.array([1.0, -2.0])
    error = batch["x"].astype(np.float64) @ slope - batch["y"]
    grad = (2 * error * batch["weight"]) @ batch["x"] / 2.5
    adam = reference.AdamW(OPTIMIZER.b1, OPTIMIZER.b2, OPTIMIZER.epsilon, 0.0, 1e9)
    expected = adam.update({"slope": slope}, {"slope": grad}, 0.1)["slope"]
    state, metrics = supervised_step.make_step(squared_error, ONE_DEVICE)(make_state(), batch)
    np.testing.assert_allclose(state.params["slope"], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"][0], np.linalg.norm(grad), rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"][0], np.sum(error**2 * batch["weight"]), rtol=1e-5)


def test_microbatches_add_up_to_the_whole_batch():
    """Their weights differ, so a mean of means would not."""
    whole, metrics = supervised_step.make_step(squared_error, ONE_DEVICE)(
        make_state(), make_batch(0)
    )
    parts, part_metrics = supervised_step.make_step(squared_error, ONE_DEVICE, 2)(
        make_state(), make_batch(0)
    )
    for one, two in zip(jax.tree.leaves(whole), jax.tree.leaves(parts)):
        np.testing.assert_allclose(one, two, rtol=1e-6)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(metrics[name], part_metrics[name], rtol=1e-6)
    assert float(part_metrics["tokens"][0]) == 2.5


def test_records_and_checkpoints_come_when_they_are_due(tmp_path):
    loop = Loop(tmp_path)
    loop.run(batches(), 7, log_every=2, checkpoint_every=3)
    assert [record["step"] for record in loop.recorder.records] == [2, 3, 4, 6, 7]
    assert loop.recorder.texts[-1] == {"sample": "after step 6"}
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [6, 7]
    assert loop.progress.step == 7 and loop.progress.tokens == 7 * 2.5
    assert loop.progress.seconds > 0


def test_a_record_is_the_mean_since_the_one_before(tmp_path):
    every, third = Loop(tmp_path / "a"), Loop(tmp_path / "b")
    every.run(batches(), 3, checkpoint_every=0)
    third.run(batches(), 3, log_every=3, checkpoint_every=0)
    losses = [record["loss"] for record in every.recorder.records]
    (record,) = third.recorder.records
    np.testing.assert_allclose(record["loss"], np.mean(losses), rtol=1e-6)
    assert "tokens" not in record and record["tokens_per_second"] > 0


def test_rates_are_those_of_the_steps_alone(tmp_path, monkeypatch):
    """A clock that each look moves on by a second, and an evaluation by a hundred."""
    now = [0.0]

    def look():
        now[0] += 1.0
        return now[0]

    def held_out(state):
        now[0] += 100.0
        return {"accuracy": 1.0}

    monkeypatch.setattr(training_loop, "time", types.SimpleNamespace(monotonic=look))
    loop = Loop(tmp_path)
    loop.run(batches(), 4, log_every=2, eval_every=2, held_out=held_out, peak=16e12)
    for record in loop.recorder.records:  # two steps of 2.5 tokens and 6 TFLOP a second
        assert record["tokens_per_second"] == 5.0
        assert record["model_tflops_per_second"] == pytest.approx(12.0)
        assert record["mfu"] == pytest.approx(0.75)
        assert "model_flops" not in record
    assert loop.progress.flops == pytest.approx(24e12)
    assert "mfu" not in training_loop.rates(1.0, 1.0, 1.0, 0.0)


def test_checkpoints_of_certain_steps_are_kept(tmp_path):
    loop = Loop(tmp_path, keep_every=2)
    loop.run(batches(), 5, checkpoint_every=0, keep_every=2)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [2, 4, 5]


def test_the_first_of_the_best_evaluations_is_kept(tmp_path):
    """Equal accuracies, and a checkpoint between evaluations, must not push the best one out."""
    accuracies = iter([0.5, 0.75, 0.75, 0.25])
    evaluated = []

    def held_out(state):
        evaluated.append(np.asarray(state.params["slope"]))
        return {"accuracy": next(accuracies)}

    loop = Loop(tmp_path)
    state = loop.run(batches(), 8, held_out=held_out, eval_every=2, checkpoint_every=3)
    assert loop.progress.best == {"accuracy": 0.75, "step": 4}
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [4, 6, 8]
    found = [r["held_out_accuracy"] for r in loop.recorder.records if "held_out_accuracy" in r]
    assert found == [0.5, 0.75, 0.75, 0.25]
    best = Checkpoints(tmp_path, read_only=True).restore_model(state.params, 4)
    np.testing.assert_array_equal(best["slope"], evaluated[1])


def test_a_bad_step_is_skipped_and_counted(tmp_path):
    loop = Loop(tmp_path)
    state = loop.run(batches(1), 3)
    assert int(state.skipped) == 1 and int(state.skipped_in_row) == 0
    assert [record["skipped_steps"] for record in loop.recorder.records] == [0, 1, 0]
    assert np.isnan(loop.recorder.records[1]["loss"])
    without = Loop(tmp_path / "without")
    expected = without.run((make_batch(seed) for seed in (0, 2)), 2)
    np.testing.assert_array_equal(state.params["slope"], expected.params["slope"])


def test_ten_bad_steps_in_a_row_stop_the_run_with_the_last_good_parameters(tmp_path):
    good = Loop(tmp_path / "good").run(batches(), 3)
    loop = Loop(tmp_path / "bad")
    message = re.escape("step 13: loss or gradient was not finite in the last 10 steps")
    with pytest.raises(NotFiniteError, match=message):
        loop.run(batches(*range(3, 99)), 50)
    checkpoints = Checkpoints(tmp_path / "bad", read_only=True)
    state, extra = checkpoints.restore(make_state())
    assert extra["step"] == checkpoints.latest_step() < 13
    for kept, expected in zip(
        jax.tree.leaves((state.params, state.opt_state)),
        jax.tree.leaves((good.params, good.opt_state)),
    ):
        np.testing.assert_array_equal(kept, expected)


def test_nine_bad_steps_do_not_stop_it(tmp_path):
    state = Loop(tmp_path).run(batches(*range(1, 10)), 12, log_every=50, checkpoint_every=0)
    assert int(state.skipped) == 9


def test_a_stage_whose_last_step_was_skipped_is_not_complete(tmp_path):
    """The message has the checkpoints that it may go on from."""
    expected = re.escape(
        "step 3: loss or gradient was not finite in the last 3 steps; stopped. Lower the learning "
        "rate, or look at the batch's data"
    )
    with pytest.raises(NotFiniteError, match=f"^{expected}$"):
        Loop(tmp_path / "all").run(batches(0, 1, 2), 3, checkpoint_every=0)
    assert not [path for path in (tmp_path / "all").iterdir() if path.name.isdigit()]
    text = "step 5: loss or gradient was not finite in the last step; stopped. To go on from step "
    text += "{}, lower the learning rate and give --allow_change{}. Or look at the batch's data"
    folder = tmp_path / "last"
    for every, step, more in (
        (4, 4, ""),
        (2, 4, f"; to go on from step 2, also delete {folder}/2/4"),
    ):
        expected = re.escape(text.format(step, more))
        with pytest.raises(NotFiniteError, match=f"^{expected}$"):
            Loop(folder / f"{every}").run(batches(4), 5, checkpoint_every=every)
        assert Checkpoints(folder / f"{every}", read_only=True).latest_step() == 4
    state = Loop(tmp_path / "first").run(batches(0, 1), 3, checkpoint_every=0)
    assert int(state.skipped) == 2


class Clocked(Loop):
    """A loop whose steps take a second by a clock of its own, with metrics of all kinds."""

    def __init__(self, folder, monkeypatch, progress=None):
        super().__init__(folder, progress)
        self.now = 0.0
        monkeypatch.setattr(
            training_loop, "time", types.SimpleNamespace(monotonic=lambda: self.now)
        )

    def step(self, state, batch, number):
        self.now += 1.0
        state, metrics, texts = super().step(state, batch, number)
        third = jnp.float32(1) / 3  # its sums are rounded
        metrics |= {
            "third": (third, third),
            "count": (jnp.int32(2**24 + 1), 1),  # no float32
            "model_flops": (1e12 / 3 + number, 1.0),  # a float64 of the host's
        }
        return state, metrics, texts

    def goes_on_to(self, stop, state, bad, signalled=0, **options):
        def asked(wait=False):
            return 15 * (self.progress.step == signalled)

        return self.run(
            itertools.islice(batches(*bad), self.progress.step, None),
            stop,
            state,
            signals=types.SimpleNamespace(asked=asked),
            held_out=lambda state: {"accuracy": float(state.params["slope"][0])},
            peak=1e15,
            **options,
        )


@pytest.mark.parametrize(
    ("bad", "signals", "every"),
    [
        ((10,), (3, 12), {"log_every": 5, "checkpoint_every": 10, "eval_every": 10}),
        ((10,), (5, 10, 23), {"log_every": 5, "checkpoint_every": 10, "eval_every": 10}),
        # Ten bad steps in a row that no record would have told of.
        (range(1, 11), (3, 11, 13), {"log_every": 20, "checkpoint_every": 20}),
    ],
)
def test_a_signal_changes_nothing_that_is_recorded(tmp_path, monkeypatch, bad, signals, every):
    """To the bit, through checkpoints: records, sums, best evaluation, state."""
    whole = Clocked(tmp_path / "whole", monkeypatch)
    state = whole.goes_on_to(23, None, bad, **every)
    assert any(record["skipped_steps"] for record in whole.recorder.records)
    records, progress, found = [], training_loop.Progress(), None
    for signal in (*signals, 0):
        loop = Clocked(tmp_path / "parts", monkeypatch, progress)
        if signal:
            with pytest.raises(Interrupted, match=f"continues at step {signal}$"):
                loop.goes_on_to(23, found, bad, signal, **every)
            reading = Checkpoints(tmp_path / "parts", read_only=True)
            found, extra = reading.restore(make_state())
            progress = training_loop.Progress(**extra)
        else:
            found = loop.goes_on_to(23, found, bad, **every)
        records += loop.recorder.records
    np.testing.assert_equal(records, whole.recorder.records)
    assert loop.progress == whole.progress and whole.progress.seconds == 23
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("parts", [1, 2])
def test_evaluation_leaves_fillers_out(parts):
    params, both = make_state().params, [make_batch(0), make_batch(1)]
    program = supervised_step.make_evaluation(squared_error, ONE_DEVICE, parts)
    results = supervised_step.evaluate(program, params, both, ONE_DEVICE)
    total = sum(float(squared_error(params, batch)[0][0]) for batch in both)
    np.testing.assert_allclose(results["loss"], total / 5, rtol=1e-6)
    assert supervised_step.evaluate(program, params, [], ONE_DEVICE) == {}


def test_a_state_that_is_not_finite_is_never_saved(tmp_path):
    """Not only its parameters: whatever a step changes."""
    training_loop.check_state(make_state(), 3)
    for name, change in (("params", jnp.inf), ("opt_state", jnp.nan)):
        state = make_state()
        bad = jax.tree.map(lambda x, c=change: x + c if x.ndim else x, getattr(state, name))
        bad = state.replace(**{name: bad})
        message = f"step 1: .*{name}.* is not finite; no checkpoint of it is written"
        with pytest.raises(NotFiniteError, match=message):
            Loop(tmp_path / name).run(batches(0), 1, state=bad)
        assert not [path for path in (tmp_path / name).iterdir() if path.name.isdigit()]
