"""Writing tokens: a cache of keys and values, and the choice of each next token, many in one compiled call."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int, Int32

from jaxlm.functional import Model, Params
from jaxlm.model import Cache, Decoder
from jaxlm.sharding import batch_sharding
from lmcore.config import SampleConfig

__all__ = ["Decoding", "Generator", "choose_tokens", "inverse_cdf"]

PART = 128
"""Tokens whose probabilities are summed first, when one of all is looked for."""
TURNED = ".T"
"""Ends the name of a weight that lies output × input."""


def choose_tokens(logits: Float[Array, "B V"], uniforms: Float[Array, " B"], options: SampleConfig) -> Int[Array, " B"]:
    """Temperature, top-k, top-p and min-p, then the inverse of the cumulative distribution at one uniform number.

    Temperature 0, or one too small to divide by, takes the likeliest token, the first of equals. Tokens equal to the
    k-th likeliest all stay. NaN counts as −∞; a row of nothing but −∞ counts as all equal.
    """
    finite = jnp.finfo(logits.dtype)
    logits = jnp.nan_to_num(logits, nan=finite.min, posinf=finite.max, neginf=finite.min)
    if options.temperature < finite.tiny:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / options.temperature
    if 0 < options.top_k < logits.shape[-1]:
        logits = jnp.where(-logits <= _cutoff(-logits, jnp.ones_like(logits), options.top_k), logits, -jnp.inf)
    probabilities = jax.nn.softmax(logits, axis=-1)
    if options.top_p < 1:
        probabilities = jnp.where(-logits <= _cutoff(-logits, probabilities, options.top_p), probabilities, 0)
    if options.min_p > 0:
        most = jnp.max(probabilities, axis=-1, keepdims=True)
        probabilities = jnp.where(probabilities < options.min_p * most, 0, probabilities)
    return inverse_cdf(probabilities, uniforms)


def inverse_cdf(probabilities: Float[Array, "B V"], uniforms: Float[Array, " B"]) -> Int[Array, " B"]:
    """The first token up to which the probabilities sum to more than uniform × total; it has some itself.

    Looked for among the sums of parts of the vocabulary, then within one part: running sums over all of it are slow.
    """
    padded = jnp.pad(probabilities, ((0, 0), (0, -probabilities.shape[1] % PART)))
    parts = padded.reshape(len(padded), -1, PART)
    sums = jnp.sum(parts, axis=-1)
    part, rest = _first_above(sums, uniforms * jnp.sum(sums, axis=-1))
    within, _ = _first_above(jnp.take_along_axis(parts, part[:, None, None], axis=1)[:, 0], rest)
    return (PART * part + within).astype(jnp.int32)


def _first_above(weights: Float[Array, "B N"], points: Float[Array, " B"]) -> tuple[Int[Array, " B"], Array]:
    """The first index up to which a row's weights sum to more than its point, and the point less what is before it."""
    cumulative = jnp.cumsum(weights, axis=-1)
    points = jnp.clip(points, 0, jnp.nextafter(cumulative[:, -1], 0))  # below the total, also when rounded
    below = cumulative <= points[:, None]
    return jnp.sum(below, axis=-1), points - jnp.max(jnp.where(below, cumulative, 0), axis=-1)


def _cutoff(distances: Float[Array, "B V"], weights: Float[Array, "B V"], limit: float) -> Float[Array, "B 1"]:
    """The greatest x for which the weights of the distances below x sum to less than `limit`; distances ≥ 0.

    Found bit by bit, since floats ≥ 0 are in the order of their bit patterns: XLA's sort takes far longer on a CPU.
    """
    size = jnp.finfo(distances.dtype).bits
    infinity = jax.lax.bitcast_convert_type(jnp.asarray(jnp.inf, distances.dtype), f"int{size}")

    def set_bit(index: Array, found: Array) -> Array:
        tried = found | jnp.left_shift(jnp.ones_like(found), size - 2 - index)
        below = distances < jax.lax.bitcast_convert_type(tried, distances.dtype)
        small = jnp.sum(jnp.where(below, weights, 0), axis=-1, keepdims=True) < limit
        return jnp.where(small & (tried <= infinity), tried, found)

    bits = jax.lax.fori_loop(0, size - 1, set_bit, jnp.zeros((len(distances), 1), infinity.dtype))
    return jax.lax.bitcast_convert_type(bits, distances.dtype)


class Decoding(NamedTuple):
    """A batch of texts being written: what was read so far, and the logits of the next token."""

    cache: Cache
    logits: Float[Array, "B V"]


class Generator:
    """Writes tokens with the parameters it was last given; `lmcore.generate.prompting` feeds it.

    Texts are split over the mesh's devices where they divide evenly; others are written by the first alone. On a CPU a
    bfloat16 model writes in float32: XLA widens its weights and its cache there for every token.
    """

    def __init__(self, model: Model, options: SampleConfig, mesh: Mesh):
        self.options = options
        self.mesh = mesh
        config = replace(model.config, model=replace(model.config.model, tie_embeddings=False))
        if model.dtype == jnp.bfloat16 and mesh.devices.flat[0].platform == "cpu":
            config = replace(config, train=replace(config.train, precision="float32"))
        self.model = Model(config)
        self.params: Params = {}
        self.laid_out: dict[bool, Params] = {}
        self._prepare = jax.jit(partial(for_decoding, dtype=self.model.dtype), static_argnames="turned")
        self._start = jax.jit(self._traced_start, static_argnums=0)
        self._extend = jax.jit(self._traced_extend, donate_argnums=1)

    def load(self, params: Params) -> None:
        """Write with these parameters from now on."""
        self.params, self.laid_out = params, {}

    def weights(self, texts: int) -> Params:
        """What `decoder` takes, as products for so many texts a device read it fastest; made when first asked for."""
        turned = texts == 1
        if turned not in self.laid_out:
            self.laid_out[turned] = self._prepare(self.params, turned=turned)
        return self.laid_out[turned]

    def decoder(self, weights: Params) -> Decoder:
        """The model with weights from `for_decoding`, to be made where it is used, within a compiled loop.

        There XLA takes the transpose into the product; outside of the loop it would make a transposed copy first.
        """
        return self.model({n.removesuffix(TURNED): w.T if n.endswith(TURNED) else w for n, w in weights.items()})

    def start(self, tokens: Int32[np.ndarray, "B T"], pads: Int32[np.ndarray, " B"], size: int) -> Decoding:
        """Read left-padded prompts into a cache of `size` columns; row b begins with pads[b] columns to ignore."""
        weights, tokens, pads = self._placed(tokens, pads)
        return self._start(size, weights, tokens, pads)

    def extend(
        self, state: Decoding, uniforms: Float32[np.ndarray, "B A"]
    ) -> tuple[Int32[np.ndarray, "B A"], Decoding]:
        """Write one token for each column of uniform numbers. `state` is used up."""
        weights, uniforms = self._placed(uniforms)
        tokens, state = self._extend(weights, state, uniforms)
        return np.asarray(tokens), state

    def has_nan(self, state: Decoding) -> bool:
        """Whether the next token would be drawn from NaN."""
        return bool(jnp.isnan(state.logits).any())

    def _placed(self, *rows: np.ndarray) -> tuple:
        """The weights, and arrays of one row a text, where the texts are written."""
        texts, devices = len(rows[0]), self.mesh.size
        if texts % devices > 0:
            return {name: w.addressable_data(0) for name, w in self.weights(texts).items()}, *rows
        return self.weights(texts // devices), *jax.device_put(rows, batch_sharding(self.mesh))

    def _traced_start(self, size: int, weights: Params, tokens: Array, pads: Array) -> Decoding:
        decoder = self.decoder(weights)
        logits, cache = decoder.decode(tokens, decoder.empty_cache(pads, size))
        return Decoding(cache, logits)

    def _traced_extend(self, weights: Params, state: Decoding, uniforms: Array) -> tuple[Array, Decoding]:
        def one(state: Decoding, uniform: Array) -> tuple[Decoding, Array]:
            token = choose_tokens(state.logits, uniform, self.options)
            logits, cache = self.decoder(weights).decode(token[:, None], state.cache)
            return Decoding(cache, logits), token

        state, tokens = jax.lax.scan(one, state, uniforms.T)
        return tokens.T, state


def for_decoding(params: Params, dtype: jnp.dtype, turned: bool) -> Params:
    """A copy whose products read their weights as fast as they can, once for every token.

    Weights of products are in `dtype` already. Those to be `turned` are laid out output × input, and their names say
    so: XLA's product with one row on a CPU is half as fast again there, one with more rows slower by a third. The
    output head has its own copy.
    """
    weights = params
    if "lm_head.kernel" not in params:
        weights = params | {"lm_head.kernel": params["embed_tokens.weight"].T}
    kernels = {name: w.astype(dtype) for name, w in weights.items() if name.endswith("kernel")}
    others = {name: w for name, w in weights.items() if name not in kernels}
    return others | ({name + TURNED: w.T for name, w in kernels.items()} if turned else kernels)
