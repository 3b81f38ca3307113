"""This is PIT in JAX: language models learn from preferences to improve their own answers.

The method is "Enabling Language Models to Implicitly Learn Self-Improvement" (ICLR 2024,
arXiv 2310.00898). `pit_jax.load` loads trained models, see `pit_jax.api`. Importing this package
imports nothing else; every part is a module of its own.
"""

__version__ = "0.1.0"


def load(path, batch_size=16):
    """Loads the models of a run directory or an exported directory, see `pit_jax.api.load`."""
    import importlib  # by name, since modules import __version__ from here

    return importlib.import_module("pit_jax.api").load(path, batch_size)
