"""Which steps are traced, and that a trace is closed when a step fails."""

import jax.numpy as jnp
import pytest

from pit_jax.errors import UserError
from pit_jax.runtime.profiling import Profiler, Window, parse


def test_windows():
    assert parse("3:3") == Window(3, 3)
    assert parse("10:12").within(200) == Window(10, 12)
    assert parse("10:12").within(11) == Window(9, 11)
    assert parse("10:12").within(2) == Window(1, 2)


@pytest.mark.parametrize("text", ["", "3", "0:2", "5:4", "a:b", "1:2:3", "-1:2", "1:2 "])
def test_what_is_no_window(text):
    with pytest.raises(UserError, match=f"--profile: got '{text}', expected FIRST:LAST"):
        parse(text)


def traces(folder):
    return list(folder.rglob("*.xplane.pb"))


def test_a_step_that_fails_closes_the_trace(tmp_path):
    def step(state, batch, number):
        if number == 2:
            raise KeyError("stopped")
        return state + batch, {}, dict

    state = jnp.zeros(())
    with pytest.raises(KeyError), Profiler(Window(2, 9), tmp_path) as profiler:
        wrapped = profiler.wrap(step)
        for number in range(9):
            assert not traces(tmp_path)
            state, *_ = wrapped(state, 1.0, number)
    assert len(traces(tmp_path)) == 1 and float(state) == 2.0
    with Profiler(Window(1, 1), tmp_path / "again") as profiler:
        profiler.wrap(step)(state, 1.0, 0)
    assert len(traces(tmp_path / "again")) == 1


def test_without_a_window_a_step_is_left_alone(tmp_path):
    assert Profiler(None, tmp_path).wrap(dict) is dict
