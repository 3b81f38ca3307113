"""Synthetic families of instructions, each with an exact checker."""
