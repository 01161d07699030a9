"""Weights of 8 bits for decoding: int8 values, and one float32 scale for each output channel.

A decoded token reads every weight once for little arithmetic, so that weights of half the size take half the time.
Only weights are quantized, not activations: y = (x · values) · scale, by whose scale a channel of small weights keeps
its precision (Wu et al. 2020, arXiv:2004.09602, section 3.2). Computed in NumPy, for both twins.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int8

from lmcore.config import ModelConfig, Precision
from lmcore.errors import UserError
from lmcore.model.lora import merged_kernels

__all__ = ["Quantized", "WeightFormat", "check_format", "dequantize", "quantize", "quantized_layers"]

WeightFormat = Literal["full", "int8"]
"""Form in which decoding reads its weights: full is the dtype of the matmuls."""

LARGEST = 127
"""Largest value; −128 is not used, so that the values are symmetric."""


class Quantized(NamedTuple):
    """The weights of one linear layer."""

    values: Int8[np.ndarray, "O I"]
    scales: Float32[np.ndarray, " O"]


def quantize(weight: Float[np.ndarray, "O I"]) -> Quantized:
    """Return the nearest int8 values of each output channel, on a scale by which its largest weight is ±127.

    Halves round to even. A channel that has NaN or an infinity gets such a scale, so that its outputs are NaN, too.
    """
    weight = weight.astype(np.float32)
    scales = np.max(np.abs(weight), axis=1, initial=0) / np.float32(LARGEST)
    divisors = np.where((scales > 0) & np.isfinite(scales), scales, np.float32(1))
    # A scale below the normal range of floats has few bits, so that a quotient by it may be larger than 127.
    values = np.nan_to_num(np.rint(weight / divisors[:, None])).clip(-LARGEST, LARGEST)
    return Quantized(values.astype(np.int8), scales)


def dequantize(quantized: Quantized, dtype: np.dtype) -> Float[np.ndarray, "O I"]:
    """Return the weights that the values and scales stand for; in float64, without rounding."""
    return quantized.values.astype(dtype) * quantized.scales[:, None].astype(dtype)


def quantized_layers(params: Mapping[str, np.ndarray], config: ModelConfig) -> dict[str, Quantized]:
    """Return name of a linear layer, such as `layers.0.mlp.up_proj` or `lm_head` -> its quantized weights.

    Adapters are merged into the weights before. A tied output head is quantized; the table of embeddings stays.

    Args:
        params: all parameters by dotted name, kernels stored input × output.
        config: of the model.
    """
    kernels = merged_kernels({name: p for name, p in params.items() if name.endswith(".kernel")}, config)
    weights = {name.removesuffix(".kernel"): kernel.T for name, kernel in kernels.items()}
    if config.tie_embeddings:
        weights["lm_head"] = params["embed_tokens.weight"]
    return {name: quantize(weight) for name, weight in weights.items()}


def check_format(weights: WeightFormat, precision: Precision, split: bool) -> None:
    """Check that a model can be decoded with such weights.

    Args:
        weights: the form that is asked for.
        precision: of the matmuls.
        split: whether the parameters are split over several devices or processes.

    Raises:
        UserError: it cannot.
    """
    if weights == "full":
        return
    if split:
        raise UserError("--weights: found int8 for a model that is split over devices, expected full")
    if precision == "float16":
        raise UserError(
            "--weights: found int8 with --precision float16, in which sums of int8 values overflow; "
            "expected --precision bfloat16 or float32"
        )
