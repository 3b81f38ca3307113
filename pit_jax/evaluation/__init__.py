"""Judges, scores with intervals, and the report of a run (sections 4.3 to 4.7 of the paper)."""
