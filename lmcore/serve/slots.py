"""What the server asks of a twin: a KV cache of a fixed number of slots, each with a sequence of its own.

A sequence joins by a prefill of its slot and leaves when its slot is prefilled again; in between, every step decodes
one token of each slot. All shapes are fixed, so that a sequence's tokens do not depend on what the other slots hold.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32

__all__ = ["Sampling", "Slots"]


class Sampling(NamedTuple):
    """Sampling options of each slot, by the names and meanings of `SampleConfig`."""

    temperature: Float[np.ndarray, " B"]
    top_k: Int[np.ndarray, " B"]
    top_p: Float[np.ndarray, " B"]
    min_p: Float[np.ndarray, " B"]


@runtime_checkable
class Slots(Protocol):
    """Sequences that are decoded together, each of its own length and with its own sampling options.

    Only one thread may use it.
    """

    count: int
    """Number of slots, B."""
    size: int
    """Number of positions of a slot: the maximum sum of a prompt's tokens and those decoded after it."""

    def prefill(self, slot: int, tokens: Int32[np.ndarray, " T"]) -> Float[np.ndarray, " V"]:
        """Replace what a slot holds with a prompt, and return the logits of its next token.

        Args:
            slot: index of the slot.
            tokens: token ids of the prompt, from 1 to `size` of them.
        """

    def step(
        self, uniforms: Float32[np.ndarray, " B"], sampling: Sampling, active: Bool[np.ndarray, " B"]
    ) -> Int32[np.ndarray, " B"]:
        """Choose the next token of each slot, append it to its sequence, and return it.

        Args:
            uniforms: one uniform number in [0, 1) for each slot.
            sampling: options of each slot.
            active: which slots take part; the tokens of the others mean nothing, and their sequences stay.
        """

    def logits(self) -> Float[np.ndarray, "B V"]:
        """Return the logits of the next token of each slot, which `step` will choose from."""

    def prompt_logits(self, tokens: Int32[np.ndarray, " T"]) -> Float[np.ndarray, "T V"]:
        """Return the logits after each token of a text, by a full forward pass that leaves the slots alone."""

    def attention(self, tokens: Int32[np.ndarray, " T"], layer: int) -> Float[np.ndarray, "N T T"]:
        """Return the attention weights of one layer over a text: head × query position × key position.

        Args:
            tokens: token ids, from 1 to `size` of them.
            layer: index of the layer.
        """
