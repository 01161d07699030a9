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

Table = Float[np.ndarray, "T H"]


def frequencies(rotary_dim: int, theta: float, scaling: RopeScaling | None = None) -> Float[np.ndarray, " R"]:
    """Return the rotation angle per position of each rotated feature pair, in radians, float64.

    Args:
        rotary_dim: number of rotated features of a head; there are R = rotary_dim / 2 pairs.
        theta: base of the frequencies.
        scaling: of the frequencies; None for none.
    """
    plain = theta ** (-np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
    if scaling is None:
        return plain
    # 1 leaves a frequency as it is, 0 divides it by the factor; in between it is interpolated.
    unscaled = UNSCALED[scaling.type](plain, theta, scaling)
    return unscaled * plain + (1.0 - unscaled) * plain / scaling.factor


def _llama3(plain: np.ndarray, theta: float, scaling: RopeScaling) -> np.ndarray:
    wavelengths = 2 * math.pi / plain
    rotations = scaling.original_max_seq_len / wavelengths  # full rotations within the original context
    limits = scaling.high_freq_factor - scaling.low_freq_factor
    return np.clip((rotations - scaling.low_freq_factor) / limits, 0.0, 1.0)


def _yarn(plain: np.ndarray, theta: float, scaling: RopeScaling) -> np.ndarray:
    """Peng et al. 2023, arXiv:2309.00071, 3.2: linear in the index of a pair, between two numbers of rotations."""
    rotary_dim = 2 * len(plain)

    def pair(rotations: float) -> float:
        """Return the index of the pair with so many rotations in the original context."""
        return rotary_dim * math.log(scaling.original_max_seq_len / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    width = high - low if high != low else 0.001  # as in the reference code
    return 1.0 - np.clip((np.arange(len(plain)) - low) / width, 0.0, 1.0)


UNSCALED = {
    "llama3": _llama3,
    "linear": lambda plain, theta, scaling: np.zeros_like(plain),
    "yarn": _yarn,
    "dynamic": lambda plain, theta, scaling: np.ones_like(plain),
}
"""`model.rope_scaling.type` -> how much of each frequency stays as it is."""


def rope_tables(config: ModelConfig, layer_type: str = "full") -> tuple[Table, Table]:
    """Return cosine and sine of every position below max_seq_len, in float64; each twin rounds them to its dtype once.

    The sine is negated for the first half of the features, as rotation subtracts there what it adds to the second half.
    Features that are not rotated have cosine 1 and sine 0. Both tables are T × 0 if the model does not use RoPE.

    Args:
        config: of the model.
        layer_type: as in `model.layer_types`.
    """
    if config.position != "rope":
        return np.empty((config.max_seq_len, 0)), np.empty((config.max_seq_len, 0))
    angular, scale = np.zeros(config.head_dim // 2), np.ones(config.head_dim // 2)
    if layer_type != "nope":
        own = config.sliding_rope_theta if layer_type == "sliding" else 0.0
        scaling = None if own else config.rope_scaling
        rotated = slice(config.rotary_dim // 2)
        angular[rotated] = frequencies(config.rotary_dim, own or config.rope_theta, scaling)
        if scaling is not None and scaling.type == "yarn":
            scale[rotated] = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0
    angles = np.outer(np.arange(config.max_seq_len), angular)
    cos, sin = scale * np.cos(angles), scale * np.sin(angles)
    return np.tile(cos, 2), np.concatenate([-sin, sin], axis=-1)


def sinusoidal_table(config: ModelConfig) -> Float[np.ndarray, "T D"]:
    """Return the sinusoidal position encoding of every position below max_seq_len, in float64.

    Feature 2i is the sine and feature 2i + 1 the cosine of position · 10000^(−2i/D) (Vaswani et al. 2017,
    arXiv:1706.03762, 3.5).
    """
    angles = np.outer(np.arange(config.max_seq_len), frequencies(config.dim, 10000.0))
    return np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(config.max_seq_len, -1)[:, : config.dim]
