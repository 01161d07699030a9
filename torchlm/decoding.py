"""Generation: prefill into a KV cache, and the choice of each next token."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int, Int32
from torch import Tensor

from lmcore.config import SampleConfig
from lmcore.model.quantize import WeightFormat
from lmcore.serve.slots import Sampling
from torchlm.cache import Cache
from torchlm.fast.decoding import for_decoding
from torchlm.model import Decoder

__all__ = ["Decoding", "Generator", "choose_tokens", "inverse_cdf"]

PART = 128
"""Tokens in a part of the vocabulary: the search goes over the parts' sums, then within one part."""


def choose_tokens(
    logits: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"], options: SampleConfig | Sampling
) -> Int[Tensor, " B"]:
    """Choose each next token by temperature, top-k, top-p and min-p, then by the inverse CDF at a uniform number.

    Temperature 0, or one too small to divide by, takes the most likely token, the first of equals. Tokens equal to the
    k-th most likely all stay. NaN counts as −∞; a row of nothing but −∞ counts as all equal.

    Args:
        logits: of the next token, one row for each sequence.
        uniforms: one uniform number in [0, 1) for each sequence, drawn on the host.
        options: temperature, top_k, top_p and min_p; of all sequences, or of each.
    """
    infinity, finite, size = torch.inf, torch.finfo(logits.dtype), logits.shape[-1]
    logits = torch.nan_to_num(logits, nan=finite.min, posinf=finite.max, neginf=finite.min)
    # On the host, where it is decided what needs to be computed
    temperature, top_k, top_p, min_p = (
        np.reshape(option, (-1, 1)) for option in (options.temperature, options.top_k, options.top_p, options.min_p)
    )
    sampled, has_top_k, has_top_p = temperature >= finite.tiny, (top_k > 0) & (top_k < size), top_p < 1
    likeliest = torch.argmax(logits, dim=-1)
    if not sampled.any():
        return likeliest

    def column(values: np.ndarray) -> Tensor:
        kinds = {"f": logits.dtype, "i": torch.int64, "b": torch.bool}
        return torch.from_numpy(values).to(logits.device, kinds[values.dtype.kind])

    logits = (logits - logits.amax(dim=-1, keepdim=True)).div_(column(np.where(sampled, temperature, 1.0)))
    if has_top_k.any():
        limit = np.where(has_top_k, top_k, 1)
        largest = torch.topk(logits, int(limit.max())).values
        kth = torch.take_along_dim(largest, column(limit - 1), dim=1)
        logits = torch.where((logits < kth) & column(has_top_k), -infinity, logits)
    probabilities = torch.softmax(logits, dim=-1)
    if has_top_p.any():
        limit = np.where(has_top_p, top_p, 2.0)  # more than the sum of all
        ordered = torch.sort(probabilities, dim=-1, descending=True).values
        before = torch.cumsum(ordered, dim=-1) - ordered
        cutoff = torch.where(before < column(limit), ordered, infinity).amin(dim=-1, keepdim=True)
        probabilities = torch.where(probabilities < cutoff, 0, probabilities)
    if (min_p > 0).any():
        highest = probabilities.amax(dim=-1, keepdim=True)
        probabilities = torch.where(probabilities < column(min_p) * highest, 0, probabilities)
    return torch.where(column(sampled)[:, 0], inverse_cdf(probabilities, uniforms), likeliest)


def inverse_cdf(probabilities: Float[Tensor, "B V"], uniforms: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """Return the first token whose cumulative probability exceeds uniform × total; its own is never 0.

    The search goes over the sums of parts of the vocabulary, then within one part: a cumulative sum over all of it is
    slow, and both twins must round the same way to choose the same token.
    """
    missing = -probabilities.shape[1] % PART
    padded = F.pad(probabilities, (0, missing)) if missing else probabilities
    parts = padded.view(len(padded), -1, PART)
    sums = torch.sum(parts, dim=-1)
    part, rest = _first_above(sums, uniforms * torch.sum(sums, dim=-1))
    within, _ = _first_above(torch.take_along_dim(parts, part[:, None, None], dim=1)[:, 0], rest)
    return PART * part + within


def _first_above(weights: Float[Tensor, "B N"], points: Float[Tensor, " B"]) -> tuple[Int[Tensor, " B"], Tensor]:
    """Return the first index whose cumulative weight exceeds the row's point, and the point less what is before it."""
    cumulative = torch.cumsum(weights, dim=-1)
    total = cumulative[:, -1]
    largest = total.nextafter(total.new_zeros(()))
    points = torch.minimum(points.clamp_min(0), largest)  # below the total, also when rounded
    below = cumulative <= points[:, None]
    return torch.sum(below, dim=-1), points - torch.where(below, cumulative, 0).amax(dim=-1)


class Decoding(NamedTuple):
    """A batch of sequences in generation: the cache, and the logits of the next token."""

    cache: Cache
    logits: Float[Tensor, "B V"]


class Generator:
    """Decodes with `model`; `lmcore.generate.prompting` feeds it."""

    def __init__(self, model: Decoder, options: SampleConfig, weights: WeightFormat = "full"):
        self.model = for_decoding(model, weights)
        self.options = options

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.model.embed_tokens.weight.device

    @torch.inference_mode()
    def start(self, tokens: Int32[np.ndarray, "B T"], pads: Int32[np.ndarray, " B"], size: int) -> Decoding:
        """Prefill a cache of `size` slots with left-padded prompts; the first pads[b] of sequence b are masked."""
        cache = self.model.empty_cache(torch.from_numpy(pads).to(self.device), size)
        logits, cache = self.model.prefill(torch.from_numpy(tokens).to(self.device), cache)
        return Decoding(cache, logits)

    @torch.inference_mode()
    def extend(
        self, state: Decoding, uniforms: Float32[np.ndarray, "B A"]
    ) -> tuple[Int32[np.ndarray, "B A"], Decoding]:
        """Decode A tokens of each sequence, one per uniform number; `state` must not be used again."""
        tokens = []
        for uniform in torch.from_numpy(uniforms).to(self.device).T:
            token = choose_tokens(state.logits, uniform, self.options)
            tokens.append(token)
            logits, cache = self.model.decode(token[:, None], state.cache)
            state = Decoding(cache, logits)
        return torch.stack(tokens, dim=1).to("cpu", torch.int32).numpy(), state

    def has_nan(self, state: Decoding) -> bool:
        """Return whether any logit of the next token is NaN."""
        return bool(torch.isnan(state.logits).any())
