"""How much arithmetic training takes, and how much a device can do: the two sides of MFU."""

import re

from lmcore.config import GATED, ModelConfig

__all__ = ["flops_per_token", "peak_flops"]

DENSE_BFLOAT16_PEAKS = {
    "H200": 989e12,
    "GH200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A10G": 70e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v4": 275e12,
}
"""Dense 16-bit matrix products per second of one device, in FLOP/s, from the makers' data sheets."""


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """FLOPs of one forward and backward pass per token: 6 per weight of a matrix product, and causal attention.

    The PaLM formula (Chowdhery et al. 2022, appendix B) with two differences: the embedding's look-up is not counted,
    its use as output head is; and attention counts the keys a query may see, half the square.
    """
    heads = 2 * config.n_heads + 2 * config.n_kv_heads
    matrices = 3 if config.mlp in GATED else 2
    block = config.dim * config.head_dim * heads + matrices * config.dim * config.ffn_dim
    attention = 6 * config.n_layers * config.n_heads * config.head_dim * seq_len
    return 6 * (config.n_layers * block + config.vocab_size * config.dim) + attention


def peak_flops(device_name: str) -> float | None:
    """Dense 16-bit peak of a device by its name, in FLOP/s; None where it is not known, as for any CPU."""
    named = (peak for name, peak in DENSE_BFLOAT16_PEAKS.items() if re.search(rf"\b{name}\b", device_name))
    return next(named, None)
