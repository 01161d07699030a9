"""Sequences that are decoded together, each of its own length and with its own sampling options.

The server's side of this is `lmcore.serve.slots`.
"""

from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int32
from torch import Tensor

from lmcore.config import SampleConfig
from lmcore.generate.prompting import cache_size
from lmcore.serve.slots import Sampling
from torchlm.attention import additive, attention, by_head, causal_mask
from torchlm.cache import Cache
from torchlm.decoding import Decoding, choose_tokens
from torchlm.engine import Engine
from torchlm.model import KEYS, Decoder

__all__ = ["Slots", "attention_weights"]


class Slots:
    """A KV cache of `count` slots, each for a sequence of at most `size` tokens; see `lmcore.serve.slots.Slots`."""

    @torch.inference_mode()
    def __init__(self, engine: Engine, count: int, size: int):
        self.count, self.size = count, size
        self.generator = engine.generator(SampleConfig())
        self.model, self.device = self.generator.model, self.generator.device
        dtype = self.model.embed_tokens.weight.dtype
        logits = torch.zeros(count, self.model.config.vocab_size, dtype=dtype, device=self.device)
        pads = torch.zeros(count, dtype=torch.int64, device=self.device)
        self.state = Decoding(self.model.empty_cache(pads, -(-size // KEYS) * KEYS), logits)

    @torch.inference_mode()
    def prefill(self, slot: int, tokens: Int32[np.ndarray, " T"]) -> Float[np.ndarray, " V"]:
        """Replace what a slot holds with a prompt, and return the logits of its next token."""
        state, own = self.state, slice(slot, slot + 1)
        keys, values = (tuple(x[own] for x in cached) for cached in (state.cache.keys, state.cache.values))
        for cached in (*keys, *values):  # where the mask is 0, a NaN of the sequence before would still give NaN
            cached.zero_()
        state.cache.lengths[own] = 0
        row = Cache(keys, values, state.cache.pads[own], state.cache.lengths[own], state.cache.previous[own])
        logits, row = self.model.prefill(self._padded(tokens), row, torch.tensor([len(tokens)]))
        state.cache.lengths[own], state.cache.previous[own] = row.lengths, row.previous
        state.logits[own] = logits
        return logits[0].cpu().numpy()

    @torch.inference_mode()
    def step(
        self, uniforms: Float32[np.ndarray, " B"], sampling: Sampling, active: Bool[np.ndarray, " B"]
    ) -> Int32[np.ndarray, " B"]:
        """Choose the next token of each slot, append it to its sequence if that is active, and return it."""
        state, taking_part = self.state, torch.from_numpy(active)
        tokens = choose_tokens(state.logits, torch.from_numpy(uniforms).to(self.device), sampling)
        logits, cache = self.model.decode(tokens[:, None], state.cache, taking_part.to(torch.int64))
        self.state = Decoding(cache, torch.where(taking_part[:, None].to(self.device), logits, state.logits))
        return tokens.to("cpu", torch.int32).numpy()

    def logits(self) -> Float[np.ndarray, "B V"]:
        """Return the logits of the next token of each slot."""
        return self.state.logits.cpu().numpy().copy()

    @torch.inference_mode()
    def prompt_logits(self, tokens: Int32[np.ndarray, " T"]) -> Float[np.ndarray, "T V"]:
        """Return the logits after each token of a text, by a full forward pass."""
        return self.model(self._padded(tokens))[0, : len(tokens)].cpu().numpy()

    @torch.inference_mode()
    def attention(self, tokens: Int32[np.ndarray, " T"], layer: int) -> Float[np.ndarray, "N T T"]:
        """Return the attention weights of one layer over a text: head × query position × key position."""
        weights = attention_weights(self.model, self._padded(tokens), layer)[0, :, : len(tokens), : len(tokens)]
        return weights.float().cpu().numpy()

    def _padded(self, tokens: Int32[np.ndarray, " T"]) -> Int[Tensor, "1 _"]:
        """Return a text padded on the right, where no token before attends to, to one of a few lengths."""
        length = min(self.size, cache_size(len(tokens)))
        return torch.from_numpy(np.pad(tokens, (0, length - len(tokens))))[None].to(self.device)


def attention_weights(decoder: Decoder, tokens: Int[Tensor, "B T"], layer: int) -> Float[Tensor, "B N T T"]:
    """Return the weights with which each query position of a layer attends to the key positions.

    They are what attention makes of an identity matrix in place of the values.

    Args:
        decoder: the model.
        tokens: token ids.
        layer: index of the layer.
    """
    length, config = tokens.shape[1], decoder.config
    positions = torch.arange(length, device=tokens.device)[None]
    tables, weights = decoder.rope(positions), []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask = additive(causal_mask(positions, length, window=config.window(layer)), decoder.dtype)
        mix = partial(attention, q, by_head(k), mask=mask, softcap=config.attention_softcap)
        identity = torch.eye(length, dtype=v.dtype, device=v.device).expand(len(v), v.shape[2], length, length)
        weights.append(mix(identity).transpose(1, 2))
        return mix(by_head(v))

    x = decoder.embed(tokens, positions)
    with decoder.autocast():
        for number in range(layer + 1):
            x = decoder.layers[number](x, *tables[config.layer_type(number)], partial(attend, number))
    return weights[layer]
