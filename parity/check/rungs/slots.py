"""Rung 8, sequences that join and leave: each as if it were alone, and by its own sampling options.

More sequences than slots, of different lengths, join one step after the other and as slots become free. Their logits
are those of the full forward pass, and each token is one that the sequence's own options and uniform number can give.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from lmcore.config import SampleConfig
from lmcore.generate.prompting import draw_uniforms
from parity.backends.base import Pair, Twin
from parity.check.result import Result, distributions, judge
from parity.check.rungs.sampling import OPTIONS, per_sequence, possible_tokens
from parity.difference import difference

__all__ = ["slots"]

SLOTS, SIZE = 3, 32
"""Number of slots, and of positions of each."""
DECODED = (9, 4, 12, 6, 5, 7)
"""Tokens that each sequence decodes; there is one for each of `OPTIONS`."""


@dataclass
class Decoded:
    """One sequence: its prompt and options, and what is decoded."""

    prompt: np.ndarray
    options: SampleConfig
    uniforms: np.ndarray
    tokens: list[int] = field(default_factory=list)
    logits: list[np.ndarray] = field(default_factory=list)
    """Of each token, before it was chosen."""

    @property
    def ended(self) -> bool:
        """Whether all its tokens are decoded."""
        return len(self.tokens) == len(self.uniforms)


def slots(pair: Pair) -> Iterator[Result]:
    """Compare sequences that share the slots of one cache with the full forward pass, and both twins."""
    size = min(SIZE, pair.context)
    decoded = pair.each("slots", lambda twin: _decode(pair.loaded(twin), _sequences(pair, size), size))
    for label, twin, sequences in zip(pair.labels, pair, decoded, strict=True):
        what = f"{label}, {len(sequences)} sequences in {SLOTS} slots"
        full = pair.ask(twin, "slots, full forward", partial(_full, pair, sequences=sequences, size=size))
        cached = np.concatenate([sequence.logits for sequence in sequences])
        differences = [difference("logits", cached, full)]
        if pair.dtype == "bfloat16":
            yield distributions(8, f"{what} against full forward", pair.dtype, cached, full, differences)
        else:
            yield judge(8, f"{what} against full forward", pair.dtype, differences, "logits")
        chosen = [
            difference(f"tokens of {name}", _possible(sequence), np.ones(len(sequence.tokens)))
            for name, sequence in zip(OPTIONS, sequences, strict=True)
        ]
        yield judge(8, f"{what}, tokens by their own options", pair.dtype, chosen, 0.0)


def _sequences(pair: Pair, size: int) -> list[Decoded]:
    rows = pair.rows(len(OPTIONS), size)
    sequences = []
    for number, (row, options, count) in enumerate(zip(rows, OPTIONS.values(), DECODED, strict=True)):
        count = min(count, size - 1)
        prompt = row[: 1 + (7 * number) % (size - count)]
        sequences.append(Decoded(prompt, options, draw_uniforms(number, 1, count)[0]))
    return sequences


def _decode(twin: Twin, sequences: list[Decoded], size: int) -> list[Decoded]:
    """Let sequences join as slots become free, at most one at each step."""
    held = twin.slots(SLOTS, size)
    waiting, places = list(sequences), dict[int, Decoded]()
    while waiting or places:
        free = [slot for slot in reversed(range(SLOTS)) if slot not in places]
        if waiting and free:
            places[free[0]] = waiting.pop(0)
            held.prefill(free[0], places[free[0]].prompt)
        logits, uniforms, active = held.logits(), np.zeros(SLOTS, np.float32), np.zeros(SLOTS, bool)
        options = [places[slot].options if slot in places else SampleConfig() for slot in range(SLOTS)]
        for slot, sequence in places.items():
            uniforms[slot], active[slot] = sequence.uniforms[len(sequence.tokens)], True
            sequence.logits.append(logits[slot])
        tokens = held.step(uniforms, per_sequence(options), active)
        for slot, sequence in places.items():
            sequence.tokens.append(int(tokens[slot]))
        places = {slot: sequence for slot, sequence in places.items() if not sequence.ended}
    return sequences


def _full(pair: Pair, twin: Twin, sequences: list[Decoded], size: int) -> np.ndarray:
    """Return the logits of all decoded tokens by the full forward pass."""
    padded = np.zeros((len(sequences), size), np.int32)  # what follows a position does not change its logits
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence.prompt) + len(sequence.tokens)] = [*sequence.prompt, *sequence.tokens]
    logits = pair.loaded(twin).logits(padded)
    begins = (len(sequence.prompt) - 1 for sequence in sequences)
    return np.concatenate(
        [row[begin : begin + len(s.tokens)] for row, begin, s in zip(logits, begins, sequences, strict=True)]
    )


def _possible(sequence: Decoded) -> np.ndarray:
    """Return for each token 1 where its sequence's options and uniform number can give it, else 0."""
    draws, options = zip(sequence.tokens, sequence.logits, sequence.uniforms, strict=True), sequence.options
    return np.array([float(token in possible_tokens(row, float(u), options, 0.0).tokens) for token, row, u in draws])
