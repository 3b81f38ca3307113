"""This is PIT in JAX: language models learn from preferences to improve their own answers.

The method is "Enabling Language Models to Implicitly Learn Self-Improvement" (ICLR 2024,
arXiv 2310.00898). Importing this package imports nothing else; every part is a module of its own.
"""

__version__ = "0.1.0"
