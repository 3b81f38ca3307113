"""What every test runs with: eight simulated devices, strict shapes, repeatable examples."""

import gc
import os
import sys
import tempfile

assert "jax" not in sys.modules, "jax was imported before tests/conftest.py could set it up"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
# A program of a test is compiled for longer than it runs: this takes a sixth of XLA's usual time.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
for _flag in ("--xla_force_host_platform_device_count=8", "--xla_cpu_use_fusion_emitters=false"):
    if _flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()

# Programs that several tests, workers or processes of this session compile are compiled once.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="pit_jax_tests_", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing makes many objects and few of them garbage: looking for it took an eighth of the time.
gc.set_threshold(100_000, 20, 100)

# Compilation makes a first example slow, and a failure must come back when the test is run again.
hypothesis.settings.register_profile("pit_jax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("pit_jax")


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of a tiny run that the `run` command trained and evaluated; not to be changed.

    `trained.compilations.json` beside it has what each stage compiled.
    """
    from tests import tiny_runs

    def make(folder):
        with tiny_runs.compilations(folder.with_name(f"{folder.name}.compilations.json")):
            assert tiny_runs.command("run", folder) == 0

    return tiny_runs.once(tiny_runs.shared_folder(tmp_path_factory) / "trained", make)
