"""This folder has a run's configuration, its directory, its stages, and what trains them."""
