"""Position tables, rotary (RoPE) and sinusoidal, computed once in NumPy float64 for both twins.

RoPE uses the half-split layout of Hugging Face Llama: feature i of a head is rotated together with feature i + H/2. A
rotated head is x · cos + roll(x, H/2) · sin, so both tables have a column for each feature, and the sine includes the
sign. Source: Su et al. 2021, RoFormer, arXiv:2104.09864; frequency scaling from the Llama 3.1 reference code.
"""

import math

import numpy as np
from jaxtyping import Float

from lmcore.config import ModelConfig, RopeScaling

__all__ = ["frequencies", "rope_tables", "sinusoidal_table"]


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Float[np.ndarray, " R"]:
    """Return the rotation angle per position of each feature pair, in radians, float64.

    Args:
        head_dim: head width H; there are R = H/2 pairs.
        theta: base of the frequencies.
        scaling: Llama 3's frequency scaling; None for none.
    """
    plain = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return plain
    wavelengths = 2 * math.pi / plain
    rotations = scaling.original_max_seq_len / wavelengths  # full rotations within the original context
    # 1 leaves a frequency as it is, 0 divides it by the factor; between the two limits it is interpolated.
    unscaled = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    unscaled = np.clip(unscaled, 0.0, 1.0)
    return unscaled * plain + (1.0 - unscaled) * plain / scaling.factor


def rope_tables(config: ModelConfig) -> tuple[Float[np.ndarray, "T H"], Float[np.ndarray, "T H"]]:
    """Return cosine and sine of every position below max_seq_len, in float64; each twin rounds them to its dtype once.

    The sine is negated for the first half of the features, as rotation subtracts there what it adds to the second half.
    Both tables are T × 0 if the model does not use RoPE.
    """
    if config.position != "rope":
        return np.empty((config.max_seq_len, 0)), np.empty((config.max_seq_len, 0))
    angular = frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
    angles = np.outer(np.arange(config.max_seq_len), angular)
    return np.tile(np.cos(angles), 2), np.concatenate([-np.sin(angles), np.sin(angles)], axis=-1)


def sinusoidal_table(config: ModelConfig) -> Float[np.ndarray, "T D"]:
    """Return the sinusoidal position encoding of every position below max_seq_len, in float64.

    Feature 2i is the sine and feature 2i + 1 the cosine of position · 10000^(−2i/D) (Vaswani et al. 2017,
    arXiv:1706.03762, 3.5).
    """
    angles = np.outer(np.arange(config.max_seq_len), frequencies(config.dim, 10000.0))
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(config.max_seq_len, -1)[:, : config.dim]
