"""This folder judges a run's responses and computes its tables (sections 4.3 to 4.7)."""
