"""Tables of positions, rotary and sinusoidal: one formula, in NumPy float64, used by both twins.

Rotary: half-split layout, as in Hugging Face Llama: feature i of a head turns together with feature i + H/2. A turned
head is x · cos + roll(x, H/2) · sin, so each feature has its column in both tables, and the sine its sign. Source: Su
et al. 2021, RoFormer, arXiv:2104.09864; frequency scaling from the Llama 3.1 reference code.
"""

import math

import numpy as np
from jaxtyping import Float

from lmcore.config import ModelConfig, RopeScaling

__all__ = ["frequencies", "rope_tables", "sinusoidal_table"]


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


def rope_tables(config: ModelConfig) -> tuple[Float[np.ndarray, "T H"], Float[np.ndarray, "T H"]]:
    """Cosine and sine of every position below max_seq_len, in float64; a twin rounds them to its own type once.

    The sine is negative for the first half of the features, which loses what the second half gains.

    Without columns where positions are not rotary.
    """
    if config.position != "rope":
        return np.empty((config.max_seq_len, 0)), np.empty((config.max_seq_len, 0))
    turning = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    angles = np.outer(np.arange(config.max_seq_len), turning)
    return np.tile(np.cos(angles), 2), np.concatenate([-np.sin(angles), np.sin(angles)], axis=-1)


def sinusoidal_table(config: ModelConfig) -> Float[np.ndarray, "T D"]:
    """What is added to the embedding at every position below max_seq_len, in float64.

    Feature 2i is the sine and feature 2i + 1 the cosine of position · 10000^(−2i/D) (Vaswani et al. 2017,
    arXiv:1706.03762, 3.5).
    """
    angles = np.outer(np.arange(config.max_seq_len), frequencies(config.dim, 10000.0))
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(config.max_seq_len, -1)[:, : config.dim]
