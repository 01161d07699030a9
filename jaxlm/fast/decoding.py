"""Decoding on a CPU: weights laid out as a single row reads them fastest, and top-k and top-p without a sort."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlm.functional import Params

__all__ = ["TRANSPOSED", "cutoff_by_bits", "for_decoding"]

TRANSPOSED = ".T"
"""Ends the name of a weight that is stored output × input."""


def for_decoding(params: Params, dtype: jnp.dtype, transposed: bool) -> Params:
    """Return a copy whose matmuls read their weights as fast as they can, once for every token.

    XLA's matmul with one row on a CPU is half as fast again with weights that lie output × input, one with more rows
    slower by a third. The output head has its own copy.

    Args:
        params: the model's parameters, by their own names.
        dtype: type of the matmuls, in which their weights are stored once and for all.
        transposed: whether to store kernels output × input, under names that end in TRANSPOSED.
    """
    weights = params
    if "lm_head.kernel" not in params:
        weights = params | {"lm_head.kernel": params["embed_tokens.weight"].T}
    kernels = {name: w.astype(dtype) for name, w in weights.items() if name.endswith("kernel")}
    others = {name: w for name, w in weights.items() if name not in kernels}
    return others | ({name + TRANSPOSED: w.T for name, w in kernels.items()} if transposed else kernels)


def cutoff_by_bits(distances: Float[Array, "B V"], weights: Float[Array, "B V"], limit: float) -> Float[Array, "B 1"]:
    """Return the greatest x for which the weights of the distances below x sum to less than `limit`.

    Found bit by bit, from the highest down: floats ≥ 0 are in the order of their bit patterns, so that 31 comparisons
    with the whole row find a float32. XLA's sort takes far longer on a CPU.

    Args:
        distances: how far each token is behind the likeliest; 0 or more.
        weights: what each token counts: 1 for top-k, its probability for top-p.
        limit: the sum that a kept token has less than before it.
    """
    size = jnp.finfo(distances.dtype).bits
    infinity = jax.lax.bitcast_convert_type(jnp.asarray(jnp.inf, distances.dtype), f"int{size}")

    def set_bit(index: Array, found: Array) -> Array:
        tried = found | jnp.left_shift(jnp.ones_like(found), size - 2 - index)  # the highest bit is the sign
        below = distances < jax.lax.bitcast_convert_type(tried, distances.dtype)
        small = jnp.sum(jnp.where(below, weights, 0), axis=-1, keepdims=True) < limit
        return jnp.where(small & (tried <= infinity), tried, found)  # patterns above infinity's are NaN

    bits = jax.lax.fori_loop(0, size - 1, set_bit, jnp.zeros((len(distances), 1), infinity.dtype))
    return jax.lax.bitcast_convert_type(bits, distances.dtype)
