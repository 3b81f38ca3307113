"""Tests of metric pairs and writers."""

import errno
import io
import math
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pit_jax.errors import UserError
from pit_jax.runtime import metrics, records
from tests import fake_bucket

FLOATS = st.floats(-1e3, 1e3)
PAIRS = st.dictionaries(
    st.sampled_from(["loss", "accuracy", "kl"]), st.tuples(FLOATS, st.integers(0, 9))
)


def test_merge_weighs_every_token_alike():
    # 3 tokens with a mean of 2, then 1 token of 6: 12 / 4 = 3, where a mean of means gives 4.
    merged = metrics.merge({"loss": (6.0, 3)}, {"loss": (6.0, 1)})
    assert metrics.compute(merged) == {"loss": 3.0}


def test_merge_keeps_names_of_one_side():
    merged = metrics.merge({"a": (1.0, 1)}, {"b": (4.0, 2)})
    assert metrics.compute(merged) == {"a": 1.0, "b": 2.0}


@given(PAIRS, PAIRS)
def test_merge_commutes_and_leaves_its_arguments(a, b):
    before = dict(a), dict(b)
    assert metrics.compute(metrics.merge(a, b)) == pytest.approx(
        metrics.compute(metrics.merge(b, a))
    )
    assert (a, b) == before


def test_compute_leaves_out_zero_weight_and_keeps_nan():
    values = metrics.compute({"none": (0.0, 0), "bad": (jnp.nan, 2), "good": (3, jnp.array(2))})
    assert set(values) == {"bad", "good"}
    assert math.isnan(values["bad"])
    assert values["good"] == 1.5 and type(values["good"]) is float


def test_compute_rejects_arrays():
    with pytest.raises(ValueError, match=r"'loss': expected a \(sum, weight\) pair of scalars.*2"):
        metrics.compute({"loss": (np.zeros(2), 1)})


def test_merge_inside_jit_and_scan():
    values = jnp.arange(6.0).reshape(3, 2)

    @jax.jit
    def total(values):
        def body(carry, row):
            return metrics.merge(carry, {"x": (row.sum(), jnp.float32(row.size))}), None

        return jax.lax.scan(body, {"x": (jnp.float32(0), jnp.float32(0))}, values)[0]

    assert metrics.compute(total(values)) == {"x": 2.5}


def test_a_writer_whose_disk_is_full_keeps_nothing_from_the_others(tmp_path):
    class Failing(metrics.Console):
        number = errno.ENOSPC

        def write(self, *_):
            raise OSError(self.number, "No space left on device")

    failing = Failing("rl_pit", 4, (), stream=io.StringIO())
    path = tmp_path / "metrics.jsonl"
    with metrics.MetricWriter(failing, records.JsonlWriter(path)) as writer:
        writer.write(1, {"loss": 0.5})
        failing.number = errno.EPIPE
        with pytest.raises(OSError, match="No space"):
            writer.write(2, {"loss": 0.5})
    assert [record["step"] for record in records.read_jsonl(path)] == [1]


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def test_console_prints_a_line_every_tenth_when_piped():
    stream = io.StringIO()
    console = metrics.Console("rl_pit", 200, ["reward", "kl", "absent"], stream=stream)
    for step in range(1, 201):
        console.write(step, {"reward": step / 2, "kl": 0.01, "hidden": 1.0}, {"sample": "text"})
    console.close()
    lines = stream.getvalue().splitlines()
    steps = [int(line.split()[1].split("/")[0]) for line in lines]
    assert steps == [1, *range(20, 201, 20)]
    assert lines[1].startswith("rl_pit   20/200  reward 10  kl 0.01  ")
    assert "left" in lines[1] and "left" not in lines[-1]
    assert "hidden" not in stream.getvalue() and "text" not in stream.getvalue()


def test_console_lines_when_records_are_sparse_or_resumed():
    stream = io.StringIO()
    console = metrics.Console("sft", 10, ["loss"], initial_step=4, stream=stream)
    for step in (5, 7, 10):
        console.write(step, {"loss": 1.0})
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["5/10", "7/10", "10/10"]


def test_console_draws_a_bar_on_a_terminal():
    stream = _Terminal()
    console = metrics.Console("rm_gap", 4, ["accuracy"], initial_step=2, stream=stream, unit="row")
    console.write(4, {"accuracy": 0.75, "hidden": 1.0})
    console.close()
    last = stream.getvalue().split("\r")[-1]
    assert "row/s" in last or "s/row" in last
    assert "rm_gap" in last and "4/4" in last and "accuracy 0.75" in last and "hidden" not in last


def test_console_rejects_no_steps():
    with pytest.raises(ValueError, match="total_steps: expected at least 1, got 0"):
        metrics.Console("sft", 0, [])


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.6, "1m00s"), (61, "1m01s"), (3720, "1h02m")]
)
def test_duration(seconds, text):
    assert metrics._duration(seconds) == text


def test_tensorboard_writer(tmp_path):
    pytest.importorskip("tensorboardX")
    writer = metrics.TensorBoardWriter(tmp_path, resume_step=3)
    writer.write(4, {"loss": 0.5}, {"sample": "a\n# b"})
    writer.close()
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    assert b"loss" in data and b"    a\n    # b" in data


def test_tensorboard_hides_what_comes_after_the_last_checkpoint(tmp_path, monkeypatch):
    tensorboard, found = pytest.importorskip("tensorboardX"), []
    monkeypatch.setattr(
        tensorboard, "SummaryWriter", lambda folder, purge_step: found.append(purge_step)
    )
    for step in (None, 0, 3):
        metrics.TensorBoardWriter(tmp_path, step)
    assert found == [None, 1, 4]


class _Recorder:
    def __init__(self, fails=False):
        self.records, self.closed, self._fails = [], False, fails

    def write(self, step, scalars, texts=None):
        self.records.append((step, dict(scalars), texts))

    def close(self):
        self.closed = True
        if self._fails:
            raise OSError("disk full")


def test_metric_writer_fans_out_and_closes_all():
    first, second = _Recorder(fails=True), _Recorder()
    writer = metrics.MetricWriter(first, second)
    writer.write(3, {"loss": 1.0}, {"sample": "x"})
    assert first.records == second.records == [(3, {"loss": 1.0}, {"sample": "x"})]
    with pytest.raises(OSError, match="disk full"):
        writer.close()
    assert first.closed and second.closed


def test_metric_writer_closes_when_the_run_fails():
    recorder = _Recorder()
    with pytest.raises(KeyboardInterrupt), metrics.MetricWriter(recorder):
        raise KeyboardInterrupt
    assert recorder.closed


def test_events_in_a_bucket(tmp_path, monkeypatch):
    fake_bucket.install(monkeypatch, tmp_path)
    writer = metrics.TensorBoardWriter("gs://bucket/run/tensorboard")
    writer.write(1, {"loss": 1.0}, {"sample": "a text"})
    writer.flush()
    (file,) = (tmp_path / "bucket" / "run" / "tensorboard").iterdir()
    assert b"brain.Event" in file.read_bytes()
    writer.close()
    assert b"loss" in file.read_bytes() and b"a text" in file.read_bytes()


class Wandb(types.ModuleType):
    """A stand-in for wandb that notes what it is told."""

    class UsageError(Exception):
        pass

    errors = types.SimpleNamespace(AuthenticationError=PermissionError)

    def __init__(self, key="key"):
        super().__init__("wandb")
        self.told, self._key = [], key
        self.summary = {}

    def init(self, **options):
        if not self._key:
            raise self.UsageError("No API key configured.\nUse wandb login")
        self.told.append(("init", options))
        return self

    def __getattr__(self, name):
        return lambda *arguments, **options: self.told.append((name, *arguments, options))


def test_metrics_go_to_weights_and_biases(monkeypatch, tmp_path):
    """A stage and its continuation are one run of W&B, in which each step stands once."""
    stand_in = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    for steps in ((0, 3, 6), (3, 6, 9)):
        writer = metrics.WandbWriter("pit", "gs://bucket/run/rl_pit", tmp_path / "rl_pit" / "id")
        for step in steps:
            writer.write(step, {"loss": 0.5}, {"sample": "text"})
        writer.flush()
        writer.close()
        stand_in.summary = {"training_step": 6, "loss": 0.5}  # what W&B has of a run it resumes
    one, *rest = stand_in.told
    assert one[1]["project"] == "pit" and one[1]["name"] == "gs://bucket/run/rl_pit"
    assert one[1]["resume"] == "allow" and len(one[1]["id"]) == 16

    def told(*steps):
        yield ("define_metric", "*", {"step_metric": "training_step"})
        for step in steps:
            yield ("log", {"training_step": step, "loss": 0.5, "sample": "text"}, {})
        yield ("finish", {})

    assert rest == [*told(0, 3, 6), one, *told(9)]


def test_mistakes_with_weights_and_biases(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", Wandb(key=""))
    with pytest.raises(UserError, match=r"^wandb_project: No API key configured; expected a va"):
        metrics.WandbWriter("pit", "run", tmp_path / "id")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"^wandb_project: wandb isn't installed .*pip install"):
        metrics.WandbWriter("pit", "run", tmp_path / "id")
