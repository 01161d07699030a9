"""FLOPs of training per token and peak FLOP/s of a device: numerator and denominator of MFU."""

import re

from lmcore.config import ModelConfig
from lmcore.model.lora import adapter_size

__all__ = ["flops_per_token", "peak_flops"]

DENSE_BFLOAT16_PEAKS = {
    "B200": 2250e12,
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
"""Peak rate of dense 16-bit matmuls of one device, in FLOP/s, from the vendors' data sheets."""


def flops_per_token(config: ModelConfig, seq_len: int) -> float:
    """Return the FLOPs of one forward and backward pass per token: 6 per matmul weight, plus causal attention.

    This is the PaLM formula (Chowdhery et al. 2022, appendix B) with two differences: the embedding lookup does not
    count, but the output head does, tied or not; and attention counts only the keys that the mask allows, half of the
    full square where it is only causal. A weight that is not trained has no gradient of its own, and takes 4.
    """
    block = sum(inputs * outputs for inputs, outputs in config.linear_shapes.values())
    windows = [config.window(layer) or seq_len for layer in range(config.n_layers)]
    keys = sum(min(window, seq_len) * (1 - min(window, seq_len) / (2 * seq_len)) for window in windows)  # of one query
    attention = 12 * config.n_heads * config.head_dim * keys
    weights = config.n_layers * block + config.vocab_size * config.dim
    return (6 if config.lora is None else 4) * weights + 6 * adapter_size(config) + attention


def peak_flops(device_name: str) -> float | None:
    """Return the dense 16-bit peak of a device by its name, in FLOP/s; None if unknown, as for any CPU."""
    # The first match wins: the table lists "H100 PCIe" before "H100", which occurs in it.
    matches = (peak for name, peak in DENSE_BFLOAT16_PEAKS.items() if re.search(rf"\b{name}\b", device_name))
    return next(matches, None)
