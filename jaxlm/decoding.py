"""Writing tokens: a cache of keys and values, and the choice of each next token, many in one compiled call."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from jaxlm.functional import Model, Params
from jaxlm.model import Cache
from lmcore.config import SampleConfig

__all__ = ["Decoding", "Generator", "choose_tokens"]


def choose_tokens(logits: Float[Array, "B V"], uniforms: Float[Array, " B"], options: SampleConfig) -> Int[Array, " B"]:
    """Temperature, top-k, top-p and min-p, then the inverse of the cumulative distribution at one uniform number.

    Temperature 0 takes the likeliest token, the first of equals. Tokens equal to the k-th likeliest all stay. NaN
    counts as −∞; a row of nothing but −∞ counts as all equal.
    """
    logits = jnp.nan_to_num(logits, nan=-jnp.inf, posinf=jnp.finfo(logits.dtype).max, neginf=-jnp.inf)
    if options.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    highest = jnp.max(logits, axis=-1, keepdims=True)
    logits = jnp.where(jnp.isneginf(highest), 0, (logits - highest) / options.temperature)
    if 0 < options.top_k < logits.shape[-1]:
        kth = jax.lax.top_k(logits, options.top_k)[0][:, -1:]
        logits = jnp.where(logits < kth, -jnp.inf, logits)
    probabilities = jax.nn.softmax(logits, axis=-1)
    if options.top_p < 1:
        ordered = -jnp.sort(-probabilities, axis=-1)
        before = jnp.cumsum(ordered, axis=-1) - ordered
        least = jnp.min(jnp.where(before < options.top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        probabilities = jnp.where(probabilities < least, 0, probabilities)
    if options.min_p > 0:
        most = jnp.max(probabilities, axis=-1, keepdims=True)
        probabilities = jnp.where(probabilities < options.min_p * most, 0, probabilities)
    cumulative = jnp.cumsum(probabilities, axis=-1)
    total = cumulative[:, -1:]
    threshold = jnp.minimum(uniforms[:, None] * total, jnp.nextafter(total, 0))  # below the total, also when rounded
    return jnp.sum(cumulative <= threshold, axis=-1).astype(jnp.int32)


class Decoding(NamedTuple):
    """A batch of texts being written: what was read so far, and the logits of the next token."""

    cache: Cache
    logits: Float[Array, "B V"]


def _start(model: Model, size: int, params: Params, tokens: Array, pads: Array) -> Decoding:
    decoder = model(params)
    logits, cache = decoder.decode(tokens, decoder.empty_cache(pads, size))
    return Decoding(cache, logits)


def _extend(
    model: Model, options: SampleConfig, params: Params, state: Decoding, uniforms: Array
) -> tuple[Array, Decoding]:
    decoder = model(params)

    def one(state: Decoding, uniform: Array) -> tuple[Decoding, Array]:
        token = choose_tokens(state.logits, uniform, options)
        logits, cache = decoder.decode(token[:, None], state.cache)
        return Decoding(cache, logits), token

    state, tokens = jax.lax.scan(one, state, uniforms.T)
    return tokens.T, state


class Generator:
    """Writes tokens with `params`; `lmcore.prompting` feeds it."""

    def __init__(self, model: Model, options: SampleConfig):
        self.params: Params = {}
        self._start = jax.jit(partial(_start, model), static_argnums=0)
        self._extend = jax.jit(partial(_extend, model, options), donate_argnums=1)

    def start(self, tokens: Int32[np.ndarray, "B T"], pads: Int32[np.ndarray, " B"], size: int) -> Decoding:
        """Read left-padded prompts into a cache of `size` columns; row b begins with pads[b] columns to ignore."""
        return self._start(size, self.params, tokens, pads)

    def extend(
        self, state: Decoding, uniforms: Float32[np.ndarray, "B A"]
    ) -> tuple[Int32[np.ndarray, "B A"], Decoding]:
        """Write one token for each column of uniform numbers. `state` is used up."""
        tokens, state = self._extend(self.params, state, uniforms)
        return np.asarray(tokens), state
