"""The paper: its losses, its models' passes, PPO, curriculum and improvement, each in a module."""
