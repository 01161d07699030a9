"""Embeddings of the tokens before each one, which are added to its own where `model.previous_tokens` is set.

The first layer knows the last few tokens then without attending to them. Unlike n-gram embeddings (Roy et al. 2022,
arXiv:2207.06366) there is one table for each distance, not one row for each n-gram. P is the number of tokens before.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxlm.sharding import on_mesh
from lmcore.config import ModelConfig

__all__ = ["PREVIOUS", "NoPreviousTokens", "PreviousTokens", "latest", "preceding"]


class NoPreviousTokens(nnx.Module):
    """Identity, for a model that embeds each token alone."""

    def __init__(self, config: ModelConfig):
        pass

    def __call__(
        self, x: Float[Array, "B T D"], before: Int[Array, "B T _"], positions: Int[Array, "#B T"]
    ) -> Float[Array, "B T D"]:
        return x


class PreviousTokens(nnx.Module):
    """x plus one row of weights for each of the tokens before, as far as the document goes back."""

    def __init__(self, config: ModelConfig):
        self.vocab_size = config.vocab_size
        self.weight = nnx.Param(jnp.zeros((config.previous_tokens * config.vocab_size, config.dim)))

    def __call__(
        self, x: Float[Array, "B T D"], before: Int[Array, "B T P"], positions: Int[Array, "#B T"]
    ) -> Float[Array, "B T D"]:
        """Return x with what the tokens before add.

        Args:
            x: embeddings.
            before: ids of the tokens before each, from `preceding`.
            positions: of the tokens in their documents.
        """
        distances = jnp.arange(1, before.shape[-1] + 1)
        added = on_mesh(self.weight[...], None, None)[before + self.vocab_size * (distances - 1)[None, None]]
        known = positions[:, :, None] >= distances[None, None]
        return x + jnp.sum(jnp.where(known[..., None], added, 0), axis=2)


PREVIOUS = {False: NoPreviousTokens, True: PreviousTokens}
"""Whether `model.previous_tokens` is set -> what is added to the embedding."""


def preceding(tokens: Int[Array, "B T"], previous: Int[Array, "B P"]) -> Int[Array, "B T P"]:
    """Return the ids of the P tokens before each, the nearest first.

    Args:
        tokens: token ids.
        previous: those before the first of them, in the order of the text.
    """
    count, length = previous.shape[1], tokens.shape[1]
    both = jnp.concatenate([previous, tokens], axis=1)
    positions, distances = jnp.arange(length), jnp.arange(count)
    return both[:, count - 1 + positions[:, None] - distances[None]]


def latest(tokens: Int[Array, "B T"], previous: Int[Array, "B P"], counts: Int[Array, " B"]) -> Int[Array, "B P"]:
    """Return what `previous` is after tokens have been appended.

    Args:
        tokens: token ids.
        previous: the P tokens before the first of them, in the order of the text.
        counts: number of tokens of each sequence that are appended.
    """
    both = jnp.concatenate([previous, tokens], axis=1)
    distances = jnp.arange(previous.shape[1])
    return jnp.take_along_axis(both, counts[:, None] + distances[None], axis=1)
