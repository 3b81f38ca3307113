"""This folder has what any training needs: devices, state, checkpoints, the loop, metrics."""
