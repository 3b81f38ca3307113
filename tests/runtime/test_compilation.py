"""Compiled programs are kept in the run directory, and compute the same bits as when compiled."""

from __future__ import annotations

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from pit_jax.runtime import compilation

DIRECTORY = "jax_compilation_cache_dir"
SECONDS = "jax_persistent_cache_min_compile_time_secs"
SIZE = "jax_persistent_cache_min_entry_size_bytes"
DEFAULTS = {DIRECTORY: None, SECONDS: 1.0, SIZE: 0}


@pytest.fixture(autouse=True)
def defaults():
    """JAX as it is without the cache of the tests."""
    before = {name: getattr(jax.config, name) for name in DEFAULTS}
    for name, value in DEFAULTS.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def settings():
    return {name: getattr(jax.config, name) for name in DEFAULTS}


def program(x_NN):
    """Products, exponentials and sums, which another program could round in another order."""
    for _ in range(3):
        x_NN = jnp.tanh(x_NN @ x_NN) + jax.nn.softmax(x_NN, axis=-1)
    return jax.nn.logsumexp(x_NN, axis=-1)


def test_a_program_that_was_kept_computes_the_same_bits(tmp_path):
    """The second function is another one to JAX, as in the next process."""
    happened = collections.Counter()

    def listen(event, **_):
        happened[event.rpartition("/")[2]] += 1

    compilation.keep(str(tmp_path))
    x_NN = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    jax.monitoring.register_event_listener(listen)
    try:
        first = jax.jit(lambda x_NN: program(x_NN))(x_NN)
        assert (happened["cache_misses"], happened["cache_hits"]) == (1, 0)
        second = jax.jit(lambda x_NN: program(x_NN))(x_NN)
        assert (happened["cache_misses"], happened["cache_hits"]) == (1, 1)
    finally:
        jax.monitoring.unregister_event_listener(listen)
    assert np.asarray(first).tobytes() == np.asarray(second).tobytes()
    assert list((tmp_path / compilation.FOLDER).glob("jit__lambda*"))  # though compiled quickly


def test_a_folder_that_the_user_has_set_stays(tmp_path):
    for folder in (str(tmp_path / "mine"), ""):
        jax.config.update(DIRECTORY, folder)
        compilation.keep(str(tmp_path))
        assert settings() == DEFAULTS | {DIRECTORY: folder}


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    compilation.keep(str(tmp_path / "file"))
    assert settings() == DEFAULTS


def test_the_folder_is_the_same_from_wherever_the_command_is_given(tmp_path, monkeypatch):
    """JAX's names of programs depend on its path."""
    monkeypatch.chdir(tmp_path)
    compilation.keep("run")
    assert settings()[DIRECTORY] == str(tmp_path / "run" / compilation.FOLDER)


def test_a_bucket_has_what_took_long_to_compile():
    compilation.keep("gs://bucket/run")
    assert settings() == DEFAULTS | {DIRECTORY: f"gs://bucket/run/{compilation.FOLDER}"}


def zeroed(path, other):
    path.write_bytes(b"\0" * path.stat().st_size)


def cut(path, other):
    path.write_bytes(path.read_bytes()[:-9])


def replaced(path, other):
    """JAX alone would run the other program, which takes and gives the same."""
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("damage", [zeroed, cut, replaced])
def test_a_damaged_program_is_compiled_again_without_a_word(damage, tmp_path, recwarn):
    compilation.keep(str(tmp_path))
    x_NN = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)

    def kept(name):
        (path,) = (tmp_path / compilation.FOLDER).glob(f"jit_{name}-*-cache")
        return path

    def one(x_NN):
        return program(x_NN)

    def two(x_NN):
        return program(x_NN) + 1

    first, other = jax.jit(one)(x_NN), jax.jit(two)(x_NN)
    whole = kept("one").read_bytes()
    damage(kept("one"), kept("two"))
    assert kept("one").read_bytes() != whole
    jax.clear_caches()
    np.testing.assert_array_equal(first, jax.jit(one)(x_NN))
    np.testing.assert_array_equal(other, jax.jit(two)(x_NN))
    damaged = kept("one").read_bytes()
    jax.clear_caches()
    np.testing.assert_array_equal(first, jax.jit(one)(x_NN))
    assert kept("one").read_bytes() == damaged != whole[:-9]  # whole again, and found
    assert not recwarn.list
