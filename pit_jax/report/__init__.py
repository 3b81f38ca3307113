"""This folder makes what a person looks at: the report of a run and the summary of its data."""
