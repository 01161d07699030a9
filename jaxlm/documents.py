"""Documents packed into one sequence: where each begins, and which of their tokens count (see `lmcore.data.marks`)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from lmcore.config import DataConfig
from lmcore.data.marks import BEGINS, counts, target_ids, token_ids

__all__ = ["document_starts", "read_batch", "read_tokens", "target_count"]


def document_starts(marked: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Return the position at which the document of each token begins."""
    positions = jnp.arange(marked.shape[1], dtype=marked.dtype)
    return jax.lax.cummax(jnp.where(marked >= BEGINS, positions, 0), axis=1)


def read_tokens(data: DataConfig, marked: Int[Array, "B T"]) -> tuple[Int[Array, "B T"], Int[Array, "B T"] | None]:
    """Return token ids, and where their documents begin; None where a sequence is not masked by documents.

    Args:
        data: of the config; it says whether there are marks.
        marked: token ids with their marks.
    """
    return (token_ids(marked), document_starts(marked)) if data.is_marked else (marked, None)


def read_batch(
    data: DataConfig, batch: Int[Array, "B T1"]
) -> tuple[Int[Array, "B T"], Int[Array, "B T"], Int[Array, "B T"] | None]:
    """Return inputs, targets, and where the documents of the inputs begin; None where there are no marks.

    Args:
        data: of the config; it says whether there are marks.
        batch: token ids with their marks; the targets are the same tokens, one position later.
    """
    tokens, documents = read_tokens(data, batch[:, :-1])
    return tokens, target_ids(batch[:, 1:]) if data.is_marked else batch[:, 1:], documents


def target_count(data: DataConfig, batch: Int[Array, "A B T1"]) -> Int[Array, ""] | int:
    """Return the number of targets that count in a step, over all micro-batches and devices; at least 1.

    Args:
        data: of the config; it says whether there are marks.
        batch: token ids with their marks.
    """
    targets = batch[:, :, 1:]
    return jnp.maximum(counts(targets).sum(), 1) if data.is_marked else targets.size
