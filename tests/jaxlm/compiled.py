"""A decoder whose every call is one compiled program; called as it is, it compiles each of its operations."""

import jax

from jaxlm.model import Decoder

__all__ = ["Compiled"]


class Compiled:
    """Calls a decoder, whose parameters no longer change, under `jax.jit`."""

    def __init__(self, decoder: Decoder):
        self.empty_cache = decoder.empty_cache
        self.forward, self.hidden = jax.jit(decoder.__call__), jax.jit(decoder.hidden)
        self.prefill, self.decode = jax.jit(decoder.prefill), jax.jit(decoder.decode)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Return the logits of the next token at every position."""
        return self.forward(tokens)
