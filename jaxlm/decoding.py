"""Generation: prefill into a KV cache, and the choice of each next token, many in one compiled call."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float, Float32, Int, Int32, Num

from jaxlm.cache import Cache
from jaxlm.fast.decoding import TRANSPOSED, cutoff_by_bits, for_decoding, int8_for_decoding
from jaxlm.functional import Model, Params
from jaxlm.model import Decoder
from jaxlm.quantized import int8_decoder
from jaxlm.sharding import batch_sharding, replicated
from lmcore.config import SampleConfig
from lmcore.model.quantize import WeightFormat
from lmcore.serve.slots import Sampling

__all__ = ["Decoding", "Generator", "choose_tokens", "inverse_cdf"]

PART = 128
"""Tokens in a part of the vocabulary: the search goes over the parts' sums, then within one part."""


def choose_tokens(
    logits: Float[Array, "B V"], uniforms: Float[Array, " B"], options: SampleConfig | Sampling
) -> Int[Array, " B"]:
    """Choose each next token by temperature, top-k, top-p and min-p, then by the inverse CDF at a uniform number.

    Temperature 0, or one too small to divide by, takes the most likely token, the first of equals. Tokens equal to the
    k-th most likely all stay. NaN counts as −∞; a row of nothing but −∞ counts as all equal.

    Args:
        logits: of the next token, one row for each sequence.
        uniforms: one uniform number in [0, 1) for each sequence, drawn on the host.
        options: temperature, top_k, top_p and min_p; of all sequences, or of each.
    """
    finite, size = jnp.finfo(logits.dtype), logits.shape[-1]
    logits = jnp.nan_to_num(logits, nan=finite.min, posinf=finite.max, neginf=finite.min)
    named: tuple[Any, ...] = options.temperature, options.top_k, options.top_p, options.min_p
    temperature, top_k, top_p, min_p = (value[:, None] if isinstance(value, Array) else value for value in named)
    sampled, has_top_k, has_top_p = temperature >= float(finite.tiny), (top_k > 0) & (top_k < size), top_p < 1
    likeliest = jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def keep_top_k(logits: Array) -> Array:
        limit = jnp.where(has_top_k, top_k, size)
        return jnp.where(-logits <= _cutoff(-logits, jnp.ones_like(logits), limit), logits, -jnp.inf)

    def keep_top_p(logits: Array, probabilities: Array) -> Array:
        limit = jnp.where(has_top_p, top_p, 2.0)  # more than the sum of all
        return jnp.where(-logits <= _cutoff(-logits, probabilities, limit), probabilities, 0)

    def draw(logits: Array) -> Array:
        logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / jnp.where(sampled, temperature, 1)
        logits = _where_any(has_top_k, keep_top_k, logits, logits)
        probabilities = jax.nn.softmax(logits, axis=-1)
        probabilities = _where_any(has_top_p, partial(keep_top_p, logits), probabilities, probabilities)
        highest = jnp.max(probabilities, axis=-1, keepdims=True)
        probabilities = jnp.where(probabilities < min_p * highest, 0, probabilities)
        return jnp.where(jnp.ravel(sampled), inverse_cdf(probabilities, uniforms), likeliest)

    return _where_any(sampled, draw, logits, likeliest)


def _where_any(condition: bool | Array, change: Callable[[Array], Array], x: Array, otherwise: Array) -> Array:
    """Return change(x) where the condition is true of any sequence; else `otherwise`, without computing the change."""
    if isinstance(condition, Array):
        return jax.lax.cond(jnp.any(condition), lambda x, _: change(x), lambda _, otherwise: otherwise, x, otherwise)
    return change(x) if condition else otherwise


def inverse_cdf(probabilities: Float[Array, "B V"], uniforms: Float[Array, " B"]) -> Int[Array, " B"]:
    """Return the first token whose cumulative probability exceeds uniform × total; its own is never 0.

    The search goes over the sums of parts of the vocabulary, then within one part: a cumulative sum over all of it is
    slow, and both twins must round the same way to choose the same token.
    """
    padded = jnp.pad(probabilities, ((0, 0), (0, -probabilities.shape[1] % PART)))
    parts = padded.reshape(len(padded), -1, PART)
    sums = jnp.sum(parts, axis=-1)
    part, rest = _first_above(sums, uniforms * jnp.sum(sums, axis=-1))
    within, _ = _first_above(jnp.take_along_axis(parts, part[:, None, None], axis=1)[:, 0], rest)
    return (PART * part + within).astype(jnp.int32)


def _first_above(weights: Float[Array, "B N"], points: Float[Array, " B"]) -> tuple[Int[Array, " B"], Array]:
    """Return the first index whose cumulative weight exceeds the row's point, and the point less what is before it."""
    cumulative = jnp.cumsum(weights, axis=-1)
    points = jnp.clip(points, 0, jnp.nextafter(cumulative[:, -1], 0))  # below the total, also when rounded
    below = cumulative <= points[:, None]
    return jnp.sum(below, axis=-1), points - jnp.max(jnp.where(below, cumulative, 0), axis=-1)


def _cutoff(distances: Float[Array, "B V"], weights: Float[Array, "B V"], limit: Array) -> Float[Array, "B 1"]:
    """Return the largest distance before which the weights sum to less than `limit`, or an equivalent cutoff."""
    return jax.lax.platform_dependent(distances, weights, limit, cpu=cutoff_by_bits, default=cutoff_by_sorting)


def cutoff_by_sorting(
    distances: Float[Array, "B V"], weights: Float[Array, "B V"], limit: float | Num[Array, "#B 1"] | Num[Array, ""]
) -> Float[Array, "B 1"]:
    """Return the largest distance before which, in order, the weights sum to less than `limit`.

    Args:
        distances: how far each token's logit is below the maximum; 0 or more.
        weights: of each token: 1 for top-k, its probability for top-p.
        limit: a token is kept where the weights before it sum to less than this.
    """
    ordered, counted = jax.lax.sort((distances, weights), num_keys=1)
    before = jnp.cumsum(counted, axis=-1) - counted
    return jnp.max(jnp.where(before < limit, ordered, 0), axis=-1, keepdims=True)


class Decoding(NamedTuple):
    """A batch of sequences in generation: the cache, and the logits of the next token."""

    cache: Cache
    logits: Float[Array, "B V"]


class Generator:
    """Decodes with the parameters last loaded; `lmcore.generate.prompting` feeds it.

    A batch is split over the mesh's devices where it divides evenly; else the first device decodes it alone. On a CPU a
    bfloat16 model decodes in float32: XLA would convert its weights and its cache there for every token.
    """

    def __init__(self, model: Model, options: SampleConfig, mesh: Mesh | AbstractMesh, weights: WeightFormat = "full"):
        self.options = options
        self.mesh = mesh
        config = replace(model.config, model=replace(model.config.model, tie_embeddings=False, lora=None))
        if model.dtype == jnp.bfloat16 and mesh.abstract_mesh.abstract_device.platform == "cpu":
            config = replace(config, train=replace(config.train, precision="float32"))
        self.params: Params = {}
        self.laid_out: dict[bool, Params] = {}
        self._prepare: Callable[..., Params]
        if weights == "int8":
            assert isinstance(mesh, Mesh), "int8 values are computed, not traced"
            self.model = Model(config, int8_decoder)
            placed = partial(int8_for_decoding, dtype=self.model.dtype, place=replicated(mesh))
            self._prepare = partial(placed, config=model.config.model)
        else:
            self.model = Model(config)
            self._prepare = jax.jit(partial(for_decoding, dtype=self.model.dtype), static_argnames="transposed")
        self._start = jax.jit(self._traced_start, static_argnums=0)
        self._extend = jax.jit(self._traced_extend, donate_argnums=1)

    def load(self, params: Params) -> None:
        """Decode with these parameters from now on; with int8 weights, adapters are merged here."""
        self.params, self.laid_out = params, {}

    def weights(self, sequences: int) -> Params:
        """Return the weights that `decoder` takes, laid out for this many sequences per device; cached."""
        transposed = sequences == 1
        if transposed not in self.laid_out:
            self.laid_out[transposed] = self._prepare(self.params, transposed=transposed)
        return self.laid_out[transposed]

    def decoder(self, weights: Params) -> Decoder:
        """Return the model with weights from `for_decoding`; to be called within the compiled loop that uses it.

        There XLA fuses the transpose into the matmul; outside of the loop it would make a transposed copy first.
        """
        params = {n.removesuffix(TRANSPOSED): w.T if n.endswith(TRANSPOSED) else w for n, w in weights.items()}
        return self.model(params)

    def start(self, tokens: Int32[np.ndarray, "B T"], pads: Int32[np.ndarray, " B"], size: int) -> Decoding:
        """Prefill a cache of `size` slots with left-padded prompts; the first pads[b] of sequence b are masked."""
        weights, tokens, pads = self._placed(tokens, pads)
        return self._start(size, weights, tokens, pads)

    def extend(
        self, state: Decoding, uniforms: Float32[np.ndarray, "B A"]
    ) -> tuple[Int32[np.ndarray, "B A"], Decoding]:
        """Decode A tokens of each sequence, one per uniform number; `state` must not be used again."""
        weights, uniforms = self._placed(uniforms)
        tokens, state = self._extend(weights, state, uniforms)
        return np.asarray(tokens), state

    def has_nan(self, state: Decoding) -> bool:
        """Return whether any logit of the next token is NaN."""
        return bool(jnp.isnan(state.logits).any())

    def trace(self, params: dict[str, Any], sequences: int, tokens: int, size: int) -> tuple[Any, Decoding]:
        """Return the loop of `extend`, traced from shapes: nothing is allocated. Also return those of its state.

        Args:
            params: shapes of the parameters.
            sequences: number of sequences.
            tokens: number that one call decodes of each sequence.
            size: slots of the cache.
        """
        int32, float32 = (partial(jax.ShapeDtypeStruct, dtype=dtype) for dtype in (jnp.int32, jnp.float32))
        weights = jax.eval_shape(partial(self._prepare, transposed=sequences == 1), params)
        prompt = int32((sequences, 1)), int32((sequences,))
        state = jax.eval_shape(partial(self._traced_start, size), weights, *prompt)
        return self._extend.trace(weights, state, float32((sequences, tokens))), state

    def _placed(self, *rows: np.ndarray) -> tuple:
        """Return the weights, and arrays of one row per sequence, on the devices that decode them."""
        count, devices = len(rows[0]), self.mesh.size
        if count % devices > 0:
            return {name: w.addressable_data(0) for name, w in self.weights(count).items()}, *rows
        return self.weights(count // devices), *jax.device_put(rows, batch_sharding(self.mesh))

    def _traced_start(self, size: int, weights: Params, tokens: Array, pads: Array) -> Decoding:
        decoder = self.decoder(weights)
        logits, cache = decoder.prefill(tokens, decoder.empty_cache(pads, size))
        return Decoding(cache, logits)

    def _traced_extend(self, weights: Params, state: Decoding, uniforms: Array) -> tuple[Array, Decoding]:
        def one(state: Decoding, uniform: Array) -> tuple[Decoding, Array]:
            token = choose_tokens(state.logits, uniform, self.options)
            logits, cache = self.decoder(weights).decode(token[:, None], state.cache)
            return Decoding(cache, logits), token

        state, tokens = jax.lax.scan(one, state, uniforms.T)
        return tokens.T, state
