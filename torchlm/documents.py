"""Documents packed into one sequence: where each begins, and which of their tokens count (see `lmcore.data.marks`)."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from lmcore.config import DataConfig
from lmcore.data.marks import BEGINS, counts, target_ids, token_ids

if TYPE_CHECKING:
    from torchlm.sharding import Sharding

__all__ = ["document_starts", "read_batch", "read_tokens", "target_count"]


def document_starts(marked: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Return the position at which the document of each token begins."""
    positions = torch.arange(marked.shape[1], dtype=marked.dtype, device=marked.device)
    return torch.where(marked >= BEGINS, positions, 0).cummax(dim=1).values


def read_tokens(data: DataConfig, marked: Int[Tensor, "B T"]) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"] | None]:
    """Return token ids, and where their documents begin; None where a sequence is not masked by documents.

    Args:
        data: of the config; it says whether there are marks.
        marked: token ids with their marks.
    """
    return (token_ids(marked), document_starts(marked)) if data.is_marked else (marked, None)


def read_batch(
    data: DataConfig, batch: Int[Tensor, "B T1"]
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"], Int[Tensor, "B T"] | None]:
    """Return inputs, targets, and where the documents of the inputs begin; None where there are no marks.

    Args:
        data: of the config; it says whether there are marks.
        batch: token ids with their marks; the targets are the same tokens, one position later.
    """
    tokens, documents = read_tokens(data, batch[:, :-1])
    return tokens, target_ids(batch[:, 1:]) if data.is_marked else batch[:, 1:], documents


def target_count(
    data: DataConfig, batch: Int[Tensor, "A B T1"], sharding: "Sharding | None" = None
) -> Int[Tensor, ""] | int:
    """Return the number of targets that count in a step, over all micro-batches and devices; at least 1.

    Args:
        data: of the config; it says whether there are marks.
        batch: token ids with their marks.
        sharding: where each process has a part of the batch.
    """
    targets = batch[:, :, 1:]
    if not data.is_marked:
        return targets.numel() * (sharding.shape.batch if sharding else 1)
    count = counts(targets).sum()
    if sharding:
        sharding.sum_over_batch([count])
    return count.clamp_min(1)
