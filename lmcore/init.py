"""Initial weights, drawn in NumPy and keyed by seed and parameter name, so that both twins start from the same model.

A parameter's draw depends on nothing but its own name: neither the order of creation nor the other parameters matter.
"""

import hashlib
import math

import numpy as np
from jaxtyping import Float32

__all__ = ["initial_weight"]

STD = 0.02
RESIDUAL_OUTPUTS = ("o_proj", "down_proj")


def initial_weight(seed: int, name: str, shape: tuple[int, ...], n_layers: int) -> Float32[np.ndarray, "..."]:
    """Initial value of one parameter.

    Args:
        seed: `train.seed`.
        name: path of the module that owns it, such as `layers.0.self_attn.q_proj`.
        shape: vectors are norm weights; matrices are input × output, the embedding is vocabulary × width.
        n_layers: L; projections onto the residual stream are scaled by 1/√(2L) (Radford et al. 2019, GPT-2).
    """
    if len(shape) == 1:
        return np.ones(shape, np.float32)
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
    draws = np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, np.float32)
    std = STD / math.sqrt(2 * n_layers) if name.endswith(RESIDUAL_OUTPUTS) else STD
    return draws * np.float32(std)
