"""Decoding on a CPU: weights laid out for matmuls with one row, and top-k and top-p without a sort."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from jaxlm.functional import Params

__all__ = ["TRANSPOSED", "cutoff_by_bits", "for_decoding"]

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
