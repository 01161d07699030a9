"""A training run: the training loop (`trainer`), its folder and checkpoints, trackers, progress, and evaluation."""
