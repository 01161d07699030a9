"""Decoding on a CPU: weights laid out for matmuls with one row, and top-k and top-p without a sort."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Array, Float, Num

from jaxlm.functional import Params
from lmcore.config import ModelConfig
from lmcore.model.lora import is_adapter
from lmcore.model.quantize import quantized_layers

__all__ = ["TRANSPOSED", "cutoff_by_bits", "for_decoding", "int8_for_decoding"]

TRANSPOSED = ".T"
"""Ends the name of a weight that is stored output × input."""


def for_decoding(params: Params, dtype: jnp.dtype, transposed: bool) -> Params:
    """Return a copy whose weights are laid out for the matmuls of decoding, which read each of them once per token.

    XLA's matmul with one row on a CPU is one and a half times as fast with weights stored output × input; one with more
    rows is slower by a third. The output head has its own copy.

    Args:
        params: the model's parameters, by their own names.
        dtype: of the matmuls; their weights are converted to it once.
        transposed: whether to store kernels output × input, under names that end in TRANSPOSED.
    """
    weights = params
    if "lm_head.kernel" not in params:
        weights = params | {"lm_head.kernel": params["embed_tokens.weight"].T}
    kernels = {name: w.astype(dtype) for name, w in weights.items() if name.endswith("kernel")}
    others = {name: w for name, w in weights.items() if name not in kernels}
    return others | ({name + TRANSPOSED: w.T for name, w in kernels.items()} if transposed else kernels)


def int8_for_decoding(
    params: Params, config: ModelConfig, dtype: jnp.dtype, place: NamedSharding, transposed: bool
) -> Params:
    """Return int8 weights with their scales, for `jaxlm.quantized`, and the other parameters.

    XLA on a CPU converts the values within a matmul with one row, and so reads a quarter of the memory of float32. For
    a matmul with more rows it would write the converted weights to memory for every token; so there they are held in
    the matmul's dtype, which takes as long as full weights.

    Args:
        params: the model's parameters, by their own names, and those of adapters.
        config: of the model.
        dtype: of the matmuls.
        place: the devices that decode, each with all weights.
        transposed: whether to store values output × input, under names that end in TRANSPOSED.
    """
    on_cpu = place.mesh.devices.flat[0].platform == "cpu"
    held = dtype if on_cpu and not transposed else jnp.dtype(jnp.int8)
    weights = {}
    for name, (values, scales) in quantized_layers({n: np.asarray(p) for n, p in params.items()}, config).items():
        weights[f"{name}.scale"] = jax.device_put(scales, place)
        if transposed:
            weights[f"{name}.kernel{TRANSPOSED}"] = jax.device_put(values, place)
        else:
            weights[f"{name}.kernel"] = jax.device_put(values.T, place).astype(held)
    return {n: p for n, p in params.items() if not (n.endswith(".kernel") or is_adapter(n))} | weights


def cutoff_by_bits(
    distances: Float[Array, "B V"], weights: Float[Array, "B V"], limit: float | Num[Array, "#B 1"] | Num[Array, ""]
) -> Float[Array, "B 1"]:
    """Return the greatest x for which the weights of the distances below x sum to less than `limit`.

    It is searched bit by bit, from the highest down: floats ≥ 0 are in the order of their bit patterns, so that 31
    comparisons with the whole row find a float32. XLA's sort takes far longer on a CPU.

    Args:
        distances: how far each token's logit is below the maximum; 0 or more.
        weights: of each token: 1 for top-k, its probability for top-p.
        limit: a token is kept where the weights before it sum to less than this.
    """
    size = jnp.finfo(distances.dtype).bits
    infinity = jax.lax.bitcast_convert_type(jnp.asarray(jnp.inf, distances.dtype), f"int{size}")

    def set_bit(index: Array, prefix: Array) -> Array:
        candidate = prefix | jnp.left_shift(jnp.ones_like(prefix), size - 2 - index)  # the highest bit is the sign
        below = distances < jax.lax.bitcast_convert_type(candidate, distances.dtype)
        small = jnp.sum(jnp.where(below, weights, 0), axis=-1, keepdims=True) < limit
        return jnp.where(small & (candidate <= infinity), candidate, prefix)  # patterns above infinity's are NaN

    bits = jax.lax.fori_loop(0, size - 1, set_bit, jnp.zeros((len(distances), 1), infinity.dtype))
    return jax.lax.bitcast_convert_type(bits, distances.dtype)
