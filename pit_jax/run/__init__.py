"""A run: its configuration and directory, its stages, and the training of one after the other."""
