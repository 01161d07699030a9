"""Sequences that are decoded together, each of its own length and with its own sampling options.

The server's side of this is `lmcore.serve.slots`. Decoding compiles once, since all its shapes are fixed; a prefill
compiles once for each length that `cache_size` rounds to.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from jaxlm.attention import attention, by_head, causal_mask
from jaxlm.decoding import Decoding, choose_tokens
from jaxlm.engine import Engine
from jaxlm.functional import Params
from jaxlm.model import Decoder
from lmcore.config import SampleConfig
from lmcore.generate.prompting import cache_size
from lmcore.serve.slots import Sampling

__all__ = ["Slots", "attention_weights"]


class Slots:
    """A KV cache of `count` slots, each for a sequence of at most `size` tokens; see `lmcore.serve.slots.Slots`."""

    def __init__(self, engine: Engine, count: int, size: int):
        self.count, self.size = count, size
        self.generator = engine.generator(SampleConfig())
        self.weights = {name: w.addressable_data(0) for name, w in self.generator.weights(count).items()}
        self._prefill = jax.jit(self._traced_prefill, donate_argnums=1)
        self._step = jax.jit(self._traced_step, donate_argnums=1)
        self._logits = jax.jit(self._traced_logits)
        self._attention = jax.jit(self._traced_attention, static_argnums=2)
        device = next(iter(self.weights.values())).sharding  # named, or what takes the state compiles for it again
        self.state: Decoding = jax.jit(self._traced_empty, out_shardings=device)(self.weights)

    def prefill(self, slot: int, tokens: Int32[np.ndarray, " T"]) -> Float[np.ndarray, " V"]:
        """Replace what a slot holds with a prompt, and return the logits of its next token."""
        self.state, logits = self._prefill(self.weights, self.state, slot, self._padded(tokens), np.int32(len(tokens)))
        return np.asarray(logits)

    def step(
        self, uniforms: Float32[np.ndarray, " B"], sampling: Sampling, active: Bool[np.ndarray, " B"]
    ) -> Int32[np.ndarray, " B"]:
        """Choose the next token of each slot, append it to its sequence if that is active, and return it."""
        tokens, self.state = self._step(self.weights, self.state, uniforms, sampling, active)
        return np.asarray(tokens)

    def logits(self) -> Float[np.ndarray, "B V"]:
        """Return the logits of the next token of each slot."""
        return np.array(self.state.logits)

    def prompt_logits(self, tokens: Int32[np.ndarray, " T"]) -> Float[np.ndarray, "T V"]:
        """Return the logits after each token of a text, by a full forward pass."""
        return np.asarray(self._logits(self.weights, self._padded(tokens)))[: len(tokens)]

    def attention(self, tokens: Int32[np.ndarray, " T"], layer: int) -> Float[np.ndarray, "N T T"]:
        """Return the attention weights of one layer over a text: head × query position × key position."""
        weights = np.asarray(self._attention(self.weights, self._padded(tokens), layer))
        return weights[:, : len(tokens), : len(tokens)]

    def _padded(self, tokens: Int32[np.ndarray, " T"]) -> Int32[np.ndarray, "1 _"]:
        """Return a text padded on the right, where no token before attends to, to one of a few lengths."""
        length = min(self.size, cache_size(len(tokens)))
        return np.pad(tokens, (0, length - len(tokens)))[None]

    def _traced_empty(self, weights: Params) -> Decoding:
        decoder = self.generator.decoder(weights)
        logits = jnp.zeros((self.count, decoder.config.vocab_size), decoder.embed_tokens.weight.dtype)
        return Decoding(decoder.empty_cache(jnp.zeros(self.count, jnp.int32), self.size), logits)

    def _traced_prefill(
        self, weights: Params, state: Decoding, slot: Array, tokens: Array, count: Array
    ) -> tuple[Decoding, Array]:
        decoder = self.generator.decoder(weights)
        empty = decoder.empty_cache(jnp.zeros(1, jnp.int32), tokens.shape[1])
        logits, filled = decoder.prefill(tokens, empty, count[None])

        def insert(cached: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(cached, new, slot * len(new), axis=0)

        def insert_keys(cached: Array, new: Array) -> Array:
            # All of the slot is replaced: where the mask is 0, a NaN of the sequence before would still give NaN.
            rest = [(0, whole - part) for whole, part in zip(cached.shape[1:], new.shape[1:], strict=True)]
            return jax.lax.dynamic_update_slice(cached, jnp.pad(new, [(0, 0), *rest]), (slot * len(new), 0, 0))

        cache = state.cache._replace(
            keys=tuple(map(insert_keys, state.cache.keys, filled.keys)),
            values=tuple(map(insert_keys, state.cache.values, filled.values)),
            lengths=insert(state.cache.lengths, filled.lengths),
            previous=insert(state.cache.previous, filled.previous),
        )
        return Decoding(cache, insert(state.logits, logits)), logits[0]

    def _traced_step(
        self, weights: Params, state: Decoding, uniforms: Array, sampling: Sampling, active: Array
    ) -> tuple[Array, Decoding]:
        tokens = choose_tokens(state.logits, uniforms, sampling)
        decoder = self.generator.decoder(weights)
        logits, cache = decoder.decode(tokens[:, None], state.cache, active.astype(jnp.int32))
        return tokens, Decoding(cache, jnp.where(active[:, None], logits, state.logits))

    def _traced_logits(self, weights: Params, tokens: Array) -> Array:
        return self.generator.decoder(weights)(tokens)[0]

    def _traced_attention(self, weights: Params, tokens: Array, layer: int) -> Array:
        return attention_weights(self.generator.decoder(weights), tokens, layer)[0]


def attention_weights(decoder: Decoder, tokens: Int[Array, "B T"], layer: int) -> Float[Array, "B N T T"]:
    """Return the weights with which each query position of a layer attends to the key positions.

    They are what attention makes of an identity matrix in place of the values.

    Args:
        decoder: the model.
        tokens: token ids.
        layer: index of the layer.
    """
    length, config = tokens.shape[1], decoder.config
    positions = jnp.arange(length)[None]
    tables, weights = decoder.rope(positions), []

    def attend(layer: int, q: Array, k: Array, v: Array) -> Array:
        mask = causal_mask(positions, length, window=config.window(layer))
        mix = partial(attention, q, by_head(k), mask=mask, softcap=config.attention_softcap)
        identity = jnp.broadcast_to(jnp.eye(length, dtype=v.dtype), (len(v) * v.shape[2], length, length))
        weights.append(mix(identity).swapaxes(1, 2))
        return mix(by_head(v))

    x = decoder.embed(tokens, positions)
    for number in range(layer + 1):
        x = decoder.layers[number](x, *tables[config.layer_type(number)], partial(attend, number))
    return weights[layer]
