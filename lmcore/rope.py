"""Rotary position tables: one formula, in NumPy float64, used by both twins.

Half-split layout, as in Hugging Face Llama: feature i of a head turns together with feature i + H/2. Source: Su et al.
2021, RoFormer, arXiv:2104.09864; frequency scaling from the Llama 3.1 reference code.
"""

import math

import numpy as np
from jaxtyping import Float

from lmcore.config import ModelConfig, RopeScaling

__all__ = ["frequencies", "rope_tables"]


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Float[np.ndarray, " R"]:
    """Angle per position of each feature pair, in radians, float64."""
    plain = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return plain
    wavelengths = 2 * math.pi / plain
    turns = scaling.original_max_seq_len / wavelengths
    kept = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0.0, 1.0)
    return kept * plain + (1.0 - kept) * plain / scaling.factor


def rope_tables(config: ModelConfig) -> tuple[Float[np.ndarray, "T R"], Float[np.ndarray, "T R"]]:
    """Cosine and sine of every position below max_seq_len, in float64; a twin rounds them to its own type once."""
    turning = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    angles = np.outer(np.arange(config.max_seq_len), turning)
    return np.cos(angles), np.sin(angles)
