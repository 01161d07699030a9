"""What both frameworks agree on: configuration, text, tokens, initial weights, schedule, and the training loop.

Nothing in this package imports jax or torch.
"""
