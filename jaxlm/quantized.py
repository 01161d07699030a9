"""Linear layers with int8 weights, for decoding: a matmul with the values, then one scale for each output channel.

`lmcore.model.quantize` computes values and scales, for both twins. The layers replace a decoder's from outside.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxlm.fast.linear import linear
from jaxlm.linear import BiasedLinear, Linear
from jaxlm.model import Decoder

__all__ = ["Int8BiasedLinear", "Int8Linear", "int8_decoder"]


class Int8Linear(Linear):
    """A matmul with int8 values, converted in it, without bias; its result is scaled."""

    def __init__(self, in_dim: int, out_dim: int, dtype: jnp.dtype):
        self.kernel = nnx.Param(jnp.zeros((in_dim, out_dim), jnp.int8))
        self.scale = nnx.Param(jnp.zeros(out_dim, jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        # Else XLA would convert the values before a loop over tokens, once, and the loop would read them as floats.
        kernel, x = jax.lax.optimization_barrier((self.kernel[...], x))
        y = linear(x.astype(self.dtype), kernel.astype(self.dtype))
        return (y * self.scale[(None,) * (y.ndim - 1)]).astype(y.dtype)


class Int8BiasedLinear(BiasedLinear, Int8Linear):
    """A matmul with int8 values, its scale, then a bias."""


INT8: dict[type, Callable[..., nnx.Module]] = {Linear: Int8Linear, BiasedLinear: Int8BiasedLinear}
"""Kind of linear layer -> the same with int8 weights."""


def int8_decoder(decoder: Decoder) -> Decoder:
    """Give the decoder linear layers with int8 weights, the output head included; return the decoder."""
    for module in (decoder, *(part for block in decoder.layers for part in (block.self_attn, block.mlp))):
        for name, layer in list(vars(module).items()):
            if type(layer) in INT8:
                setattr(module, name, INT8[type(layer)](*layer.kernel.shape, layer.dtype))
    return decoder
