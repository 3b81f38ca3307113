"""This folder generates synthetic families of instructions, each with an exact checker."""
