"""Summed cross-entropy of next-token predictions, over chunks of positions so that all logits never exist at once."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlm.dropout import Key
from jaxlm.model import Decoder
from jaxlm.sharding import devices_in_mesh

__all__ = ["IGNORED", "chunk_count", "cross_entropy", "loss_sum"]

IGNORED = -1
"""Target of a position that is left out of the loss."""
CHUNK_LOGITS = 2**25
"""Maximum number of logits at once on a device; a batch with more is cut along its positions."""


def cross_entropy(logits: Float[Array, "*B V"], targets: Int[Array, "*B"]) -> Float[Array, "*B"]:
    """Return −log softmax(logits)[target] of each position, 0 where the target is ignored; in the logits' dtype."""
    chosen = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(targets == IGNORED, 0, jax.nn.logsumexp(logits, axis=-1) - chosen)


def chunk_count(batch: int, length: int, vocab_size: int, devices: int) -> int:
    """Return the number of equal chunks that the positions are cut into.

    Args:
        batch: number of sequences, on all devices.
        length: number of positions.
        vocab_size: number of logits of each position.
        devices: number of devices.
    """
    min_chunks = -(-batch * length * vocab_size // (CHUNK_LOGITS * devices))
    # The smallest number from `min_chunks` up that divides the length: all steps of a scan have one shape.
    return next(n for n in range(min(min_chunks, length), length + 1) if length % n == 0)


def loss_sum(
    model: Decoder,
    tokens: Int[Array, "B T"],
    targets: Int[Array, "B T"],
    key: Key = None,
    documents: Int[Array, "B T"] | None = None,
) -> Float[Array, ""]:
    """Return the summed token loss, in the parameters' dtype.

    Args:
        model: the decoder.
        tokens: token ids.
        targets: the id that follows each token, or IGNORED.
        key: random key of the dropout masks; None switches dropout off.
        documents: position at which each token's document begins; None where a sequence is one document.
    """
    hidden = model.hidden(tokens, key, documents)
    batch, length, dim = hidden.shape
    chunks = chunk_count(batch, length, model.config.vocab_size, devices_in_mesh())
    if chunks == 1:
        return cross_entropy(model.logits(hidden), targets).sum()

    @jax.checkpoint  # the backward pass recomputes a chunk's logits instead of keeping all
    def chunk_loss(total: Array, chunk: tuple[Array, Array]) -> tuple[Array, None]:
        return total + cross_entropy(model.logits(chunk[0]), chunk[1]).sum(), None

    in_chunks = (
        hidden.reshape(batch, chunks, -1, dim).swapaxes(0, 1),
        targets.reshape(batch, chunks, -1).swapaxes(0, 1),
    )
    total, _ = jax.lax.scan(chunk_loss, jnp.zeros((), hidden.dtype), in_chunks)
    return total
