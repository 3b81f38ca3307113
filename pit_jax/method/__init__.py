"""This folder is the paper: losses, passes of its models, PPO, curriculum, improvement."""
