"""Initial weights, drawn in NumPy and keyed by seed and parameter name, so that both twins start from the same model.

A parameter's draw depends on nothing but its own name: neither the order of creation nor the other parameters matter.
"""

import hashlib
import math

import numpy as np
from jaxtyping import Float32

from lmcore.config import ModelConfig

__all__ = ["initial_weight"]

STD = 0.02
RESIDUAL_OUTPUTS = ("o_proj", "down_proj")
EMBEDDINGS = ("embed_tokens", "embed_positions")


def initial_weight(seed: int, name: str, shape: tuple[int, ...], model: ModelConfig) -> Float32[np.ndarray, "..."]:
    """Initial value of one parameter.

    Args:
        seed: `train.seed`.
        name: path of the parameter, such as `layers.0.self_attn.q_proj.kernel`. Matrices are drawn by the path of the
            module that owns them, so that `kernel` and `weight` are one.
        shape: vectors are biases, which begin at 0, or norm weights, which begin at 1; matrices are input × output,
            embeddings are rows × width.
        model: its `init` says how matrices are drawn. normal: std 0.02, projections onto the residual stream scaled
            by 1/√(2L) (Radford et al. 2019, GPT-2). xavier: uniform within ±√(6 / (inputs + outputs)) (Glorot & Bengio
            2010). kaiming: normal with std √(2 / inputs) (He et al. 2015, arXiv:1502.01852). The last two are made for
            products; embeddings stay normal with std 0.02.
    """
    owner, _, leaf = name.rpartition(".")
    if len(shape) == 1:
        return np.full(shape, 0 if leaf == "bias" else 1, np.float32)
    key = int.from_bytes(hashlib.sha256(f"{seed}:{owner}".encode()).digest()[:16], "little")
    generator = np.random.Generator(np.random.Philox(key=key))
    if model.init == "xavier" and not owner.endswith(EMBEDDINGS):
        return (generator.random(shape, np.float32) * 2 - 1) * np.float32(math.sqrt(6 / sum(shape)))
    std = STD
    if model.init == "normal" and owner.endswith(RESIDUAL_OUTPUTS):
        std = STD / math.sqrt(2 * model.n_layers)
    elif model.init == "kaiming" and not owner.endswith(EMBEDDINGS):
        std = math.sqrt(2 / shape[0])
    return generator.standard_normal(shape, np.float32) * np.float32(std)
