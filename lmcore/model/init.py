"""The shared NumPy initialization: weights drawn by seed and parameter name, so that both twins start equal.

The draw of a parameter depends on the seed and its own name only, not on other parameters or the order of creation.
"""

import hashlib
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

from lmcore.config import ModelConfig

__all__ = ["Weights", "initial_weight"]

Weights = Callable[[str, tuple[int, ...]], np.ndarray]
"""Name and shape of a parameter, as for `initial_weight` -> its value, in any dtype."""

STD = 0.02
RESIDUAL_OUTPUTS = ("o_proj", "down_proj")
EMBEDDINGS = ("embed_tokens", "embed_previous", "embed_positions")


def initial_weight(seed: int, name: str, shape: tuple[int, ...], model: ModelConfig) -> Float32[np.ndarray, "..."]:
    """Return the initial value of one parameter, in float32.

    Args:
        seed: `train.seed`.
        name: dotted name of the parameter, such as `layers.0.self_attn.q_proj.kernel`. Matrices are drawn by the name
            of the module that owns them, so that JAX's `kernel` and PyTorch's `weight` get the same values.
        shape: vectors are biases, initialized to 0, or norm weights, initialized to 1, or 0 where they are
            zero-centered. Matrices are (inputs, outputs), embeddings (number of embeddings, D).
        model: its `init` selects the distribution of matrices. normal: std 0.02, projections onto the residual stream
            scaled by 1/√(2L) (Radford et al. 2019, GPT-2). xavier: uniform in ±√(6 / (fan_in + fan_out)) (Glorot &
            Bengio 2010). kaiming: normal with std √(2 / fan_in) (He et al. 2015, arXiv:1502.01852). Embeddings, whose
            lookup is no matmul, are normal with std 0.02 in all three. Of an adapter, A is uniform in ±1/√fan_in and
            B zero, as in peft, so that it adds nothing before the first update.
    """
    owner, _, leaf = name.rpartition(".")
    if len(shape) == 1:
        zero = leaf == "bias" or (model.norm == "zero_centered_rmsnorm" and leaf == "weight")
        return np.full(shape, 0 if zero else 1, np.float32)
    if owner.endswith("lora_B"):
        return np.zeros(shape, np.float32)
    key = int.from_bytes(hashlib.sha256(f"{seed}:{owner}".encode()).digest()[:16], "little")
    generator = np.random.Generator(np.random.Philox(key=key))
    if owner.endswith("lora_A"):
        return (generator.random(shape, np.float32) * 2 - 1) * np.float32(1 / math.sqrt(shape[0]))
    if model.init == "xavier" and not owner.endswith(EMBEDDINGS):
        return (generator.random(shape, np.float32) * 2 - 1) * np.float32(math.sqrt(6 / sum(shape)))
    std = STD
    if model.init == "normal" and owner.endswith(RESIDUAL_OUTPUTS):
        std = STD / math.sqrt(2 * model.n_layers)
    elif model.init == "kaiming" and not owner.endswith(EMBEDDINGS):
        std = math.sqrt(2 / shape[0])
    return generator.standard_normal(shape, np.float32) * np.float32(std)
