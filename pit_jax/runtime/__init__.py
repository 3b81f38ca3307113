"""What any training needs, whatever it trains: devices, state, checkpoints, the loop, metrics."""
