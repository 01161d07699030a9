"""A run: the one training loop (`trainer`), its folder and checkpoints, trackers, progress, and evaluation."""
