"""What every test runs with: eight simulated devices, strict shapes, repeatable examples."""

import os
import sys

assert "jax" not in sys.modules, "jax was imported before tests/conftest.py could set it up"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
if "--xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    ).strip()

import hypothesis  # noqa: E402
import jax  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# Compilation makes a first example slow, and a failure must come back when the test is run again.
hypothesis.settings.register_profile("pit_jax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("pit_jax")
