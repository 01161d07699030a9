"""From prompts to text: padded batches, one uniform number per token, a context that slides, and stop rules.

A twin's `Generator` only reads a batch and writes a few tokens at a time; everything around that is here, so that both
twins write the same text from one seed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int32

from lmcore.config import SampleConfig
from lmcore.data.tokenizer import Tokenizer

__all__ = [
    "Generator",
    "Text",
    "complete",
    "draw_uniforms",
    "longest_prompt",
    "pad_left",
    "write_texts",
    "write_tokens",
]

CHUNK = 16
"""Tokens per call of a generator: enough to hide the call, few enough to stream."""
WIDTH = 32
"""Prompts are padded to a multiple of this."""


@runtime_checkable
class Generator(Protocol):
    """What a twin provides: a cached decoder with its sampling options built in."""

    def start(self, tokens: Int32[np.ndarray, "B T"], pads: Int32[np.ndarray, " B"], size: int) -> Any:
        """Read left-padded prompts into a cache of `size` columns."""

    def extend(self, state: Any, uniforms: Float32[np.ndarray, "B A"]) -> tuple[Int32[np.ndarray, "B A"], Any]:
        """Write A tokens per row; returns them and the new state."""

    def has_nan(self, state: Any) -> bool:
        """Whether the next token would be drawn from NaN."""


def draw_uniforms(seed: int, rows: int, length: int) -> Float32[np.ndarray, "B A"]:
    """Numbers in [0, 1), a pure function of (seed + row, position): row r of seed s is the single row of seed s + r."""
    generators = [np.random.Generator(np.random.Philox(key=seed + row)) for row in range(rows)]
    return np.stack([generator.random(length, dtype=np.float32) for generator in generators])


def longest_prompt(context: int) -> int:
    """Tokens of a prompt that are read, its last ones: as many as leave room for what the first call writes."""
    return context - min(CHUNK, context // 2)


def pad_left(
    prompts: Sequence[Sequence[int]], longest: int, pad: int, room: int = 0
) -> tuple[Int32[np.ndarray, "B T"], Int32[np.ndarray, " B"]]:
    """Prompts as one block, and the padding of each row.

    Only the last `longest` tokens of a prompt are kept. The width is a multiple of 32, or `longest`, so that few
    widths, each with its own compiled program, serve all prompts; less where only that leaves `room` columns.
    """
    kept = [list(prompt[-longest:]) for prompt in prompts]
    needed = max(map(len, kept))
    width = min(longest, -(-needed // WIDTH) * WIDTH)
    if needed + room <= longest < width + room:
        width = longest - room
    tokens = np.array([[pad] * (width - len(prompt)) + prompt for prompt in kept], np.int32)
    return tokens, np.array([width - len(prompt) for prompt in kept], np.int32)


def write_tokens(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    options: SampleConfig,
    *,
    context: int,
    pad: int,
    first: int = 0,
) -> Iterator[Int32[np.ndarray, "B A"]]:
    """Yield the tokens that follow each prompt, a few columns at a time, `options.max_tokens` in all.

    Args:
        prompts: token ids, at least one each.
        context: most columns that the model can see. When they are full, the older half is forgotten and the newer
            half read again.
        pad: any token id, put before shorter prompts and ignored.
        first: number of the prompts' last tokens that were decoded before: the draws go on after theirs.
    """
    longest = longest_prompt(context)
    chunk = context - longest
    later = (options.max_tokens - 1) // chunk * chunk
    tokens, pads = pad_left(prompts, longest, pad, room=later)
    uniforms = draw_uniforms(options.seed, len(prompts), first + options.max_tokens)[:, first:]
    size = min(context, _cache_size(tokens.shape[1] + options.max_tokens + chunk - 1))
    state = None
    for begin in range(0, options.max_tokens, chunk):
        if tokens.shape[1] + chunk > size:
            dropped = tokens.shape[1] - context // 2
            tokens, pads, state = tokens[:, dropped:], np.maximum(pads - dropped, 0), None
        if state is None:
            state = generator.start(tokens, pads, size)
        draws = uniforms[:, begin : begin + chunk]
        count = draws.shape[1]
        new, state = generator.extend(state, np.pad(draws, ((0, 0), (0, chunk - count))))
        tokens = np.concatenate([tokens, new], axis=1)
        yield new[:, :count]


def _cache_size(columns: int) -> int:
    """Columns rounded up to an eighth of the next power of two: few are read in vain, and few programs are compiled."""
    step = max(WIDTH, (1 << (columns - 1).bit_length()) // 8)
    return -(-columns // step) * step


@dataclass
class Text:
    """What was written after one prompt."""

    prompt: str
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    """Whether the model ended the text itself, with end-of-text or another token at which it stops."""


def write_texts(
    generator: Generator,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    options: SampleConfig,
    *,
    context: int,
    special: bool = False,
) -> Iterator[list[Text]]:
    """Yield the texts as they grow, the same list each time, until all have ended or reached `max_tokens`.

    Args:
        generator: a twin's.
        tokenizer: the model's.
        prompts: texts to go on from; an empty one begins a new document, as every document began in training.
        options: how to choose tokens, and how many.
        context: most columns that the model can see.
        special: read special tokens from the prompts.
    """
    texts = [Text(prompt) for prompt in prompts]
    ids = [tokenizer.encode_prompt(prompt, special) for prompt in prompts]
    streams = [tokenizer.stream(prompt) for prompt in ids]
    for new in write_tokens(generator, ids, options, context=context, pad=tokenizer.eot_id):
        for text, stream, row in zip(texts, streams, new.tolist(), strict=True):
            for token in [] if text.ended else row:
                text.ended = token in tokenizer.stop_ids
                if text.ended:
                    break
                text.tokens.append(token)
                text.text += stream.feed(token)
        yield texts
        if all(text.ended for text in texts):
            break
    for text, stream in zip(texts, streams, strict=True):
        text.text += stream.flush()
    yield texts


def complete(
    generator: Generator, tokenizer: Tokenizer, prompts: Sequence[str], options: SampleConfig, *, context: int
) -> list[Text]:
    """The finished texts."""
    *_, texts = write_texts(generator, tokenizer, prompts, options, context=context)
    return texts
