"""Embeddings of the tokens before each one, which are added to its own where `model.previous_tokens` is set.

The first layer knows the last few tokens then without attending to them. Unlike n-gram embeddings (Roy et al. 2022,
arXiv:2207.06366) there is one table for each distance, not one row for each n-gram. P is the number of tokens before.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lmcore.config import ModelConfig

__all__ = ["PREVIOUS", "NoPreviousTokens", "PreviousTokens", "latest", "preceding"]


class NoPreviousTokens(nn.Module):
    """Identity, for a model that embeds each token alone."""

    def __init__(self, config: ModelConfig):
        super().__init__()

    def forward(
        self, x: Float[Tensor, "B T D"], before: Int[Tensor, "B T _"], positions: Int[Tensor, "#B T"]
    ) -> Float[Tensor, "B T D"]:
        return x


class PreviousTokens(nn.Module):
    """x plus one row of weights for each of the tokens before, as far as the document goes back."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.vocab_size = config.vocab_size
        self.weight = nn.Parameter(torch.zeros(config.previous_tokens * config.vocab_size, config.dim))

    def forward(
        self, x: Float[Tensor, "B T D"], before: Int[Tensor, "B T P"], positions: Int[Tensor, "#B T"]
    ) -> Float[Tensor, "B T D"]:
        """Return x with what the tokens before add.

        Args:
            x: embeddings.
            before: ids of the tokens before each, from `preceding`.
            positions: of the tokens in their documents.
        """
        distances = torch.arange(1, before.shape[-1] + 1, device=before.device)
        added = F.embedding(before + self.vocab_size * (distances - 1), self.weight)
        known = positions[:, :, None] >= distances
        return x + torch.sum(torch.where(known[..., None], added, 0), dim=2)


PREVIOUS = {False: NoPreviousTokens, True: PreviousTokens}
"""Whether `model.previous_tokens` is set -> what is added to the embedding."""


def preceding(tokens: Int[Tensor, "B T"], previous: Int[Tensor, "B P"]) -> Int[Tensor, "B T P"]:
    """Return the ids of the P tokens before each, the nearest first.

    Args:
        tokens: token ids.
        previous: those before the first of them, in the order of the text.
    """
    count, length = previous.shape[1], tokens.shape[1]
    both = torch.cat([previous, tokens], dim=1)
    positions, distances = (torch.arange(size, device=tokens.device) for size in (length, count))
    return both[:, count - 1 + positions[:, None] - distances]


def latest(tokens: Int[Tensor, "B T"], previous: Int[Tensor, "B P"], counts: Int[Tensor, " B"]) -> Int[Tensor, "B P"]:
    """Return what `previous` is after tokens have been appended.

    Args:
        tokens: token ids.
        previous: the P tokens before the first of them, in the order of the text.
        counts: number of tokens of each sequence that are appended.
    """
    both = torch.cat([previous, tokens], dim=1)
    distances = torch.arange(previous.shape[1], device=tokens.device)
    return torch.take_along_dim(both, counts.to(tokens.device)[:, None] + distances, dim=1)
