"""MLX, Apple's array framework, with the models of mlx-lm; on Linux it computes on the CPU."""

from pathlib import Path

import numpy as np

__all__ = ["logits"]


def logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Return the logits B T V of token ids B T."""
    import mlx.core as mx
    from mlx_lm.utils import load_model

    with mx.stream(mx.cpu):
        model, _ = load_model(folder)
        return np.array(model(mx.array(tokens)).astype(mx.float32))
