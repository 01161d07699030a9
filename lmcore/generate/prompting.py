"""Decode prompts to text: left-padded batches, one uniform number per token, a sliding context, and stop tokens.

A twin's `Generator` only prefills its KV cache with a batch and decodes a few tokens per call. Everything around that
is here, so that both twins generate the same text from one seed.
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
    "cache_size",
    "complete",
    "continue_texts",
    "draw_uniforms",
    "generate_texts",
    "max_prompt_tokens",
    "pad_left",
    "write_tokens",
]

CHUNK = 16
"""Tokens per call of a generator: enough to amortize the call, few enough to stream."""
WIDTH = 32
"""Prompts are padded to a multiple of this length, and the KV cache has at least this step of size."""


@runtime_checkable
class Generator(Protocol):
    """Interface of a twin's generator: a decoder with a KV cache and fixed sampling options."""

    def start(self, tokens: Int32[np.ndarray, "B T"], pads: Int32[np.ndarray, " B"], size: int) -> Any:
        """Prefill a new KV cache with left-padded prompts; return the state.

        Args:
            tokens: token ids of the prompts.
            pads: number of padding tokens at the beginning of each sequence, which attention ignores.
            size: number of KV-cache slots per sequence, for the prompt and what is decoded after it.
        """

    def extend(self, state: Any, uniforms: Float32[np.ndarray, "B A"]) -> tuple[Int32[np.ndarray, "B A"], Any]:
        """Decode A tokens per sequence, one for each uniform number; return them and the new state."""

    def has_nan(self, state: Any) -> bool:
        """Return whether the logits of the next token are NaN in any sequence."""


def draw_uniforms(seed: int, rows: int, length: int) -> Float32[np.ndarray, "B A"]:
    """Return uniform numbers in [0, 1), a pure function of (seed + row, position).

    Sequence r of a batch with seed s thus gets the numbers of a single sequence with seed s + r.

    Args:
        seed: seed of the first sequence.
        rows: number of sequences, B.
        length: numbers per sequence, A.
    """
    generators = [np.random.Generator(np.random.Philox(key=seed + row)) for row in range(rows)]
    return np.stack([generator.random(length, dtype=np.float32) for generator in generators])


def max_prompt_tokens(context: int) -> int:
    """Return the maximum number of prompt tokens that leaves room in the context for the first call's tokens."""
    return context - min(CHUNK, context // 2)


def pad_left(
    prompts: Sequence[Sequence[int]], longest: int, pad: int, room: int = 0
) -> tuple[Int32[np.ndarray, "B T"], Int32[np.ndarray, " B"]]:
    """Pad prompts on the left to one length T; return the batch and the number of padding tokens of each sequence.

    T is a multiple of 32, or `longest`, so that a few lengths, each with its own compiled program, serve all prompts.
    It is shorter where only that leaves `room` positions within `longest`.

    Args:
        prompts: token ids.
        longest: maximum T; only the last `longest` tokens of a prompt are used.
        pad: token id to pad with.
        room: positions to leave for decoding.
    """
    truncated = [list(prompt[-longest:]) for prompt in prompts]
    needed = max(map(len, truncated))
    length = min(longest, -(-needed // WIDTH) * WIDTH)
    if needed + room <= longest < length + room:
        length = longest - room
    tokens = np.array([[pad] * (length - len(prompt)) + prompt for prompt in truncated], np.int32)
    return tokens, np.array([length - len(prompt) for prompt in truncated], np.int32)


def write_tokens(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    options: SampleConfig,
    *,
    context: int,
    pad: int,
    first: int = 0,
) -> Iterator[Int32[np.ndarray, "B A"]]:
    """Yield the tokens that follow each prompt, a few positions at a time, `options.max_tokens` in all.

    Args:
        generator: a twin's generator.
        prompts: token ids, at least one per prompt.
        options: number of tokens and seed; the generator has the other sampling options.
        context: maximum context length in tokens. When it is full, the older half is dropped, and the KV cache is
            prefilled with the newer half.
        pad: any token id; it pads shorter prompts and is ignored.
        first: number of each prompt's last tokens that were decoded in an earlier call, whose uniform numbers are
            skipped.
    """
    longest = max_prompt_tokens(context)
    chunk = context - longest
    later = (options.max_tokens - 1) // chunk * chunk  # tokens to decode after the first call
    tokens, pads = pad_left(prompts, longest, pad, room=later)
    uniforms = draw_uniforms(options.seed, len(prompts), first + options.max_tokens)[:, first:]
    size = min(context, cache_size(tokens.shape[1] + options.max_tokens + chunk - 1))
    state = None
    for begin in range(0, options.max_tokens, chunk):
        if tokens.shape[1] + chunk > size:
            dropped = tokens.shape[1] - context // 2
            tokens, pads, state = tokens[:, dropped:], np.maximum(pads - dropped, 0), None
        if state is None:
            state = generator.start(tokens, pads, size)
        draws = uniforms[:, begin : begin + chunk]
        count = draws.shape[1]
        # Always a whole chunk, of which the last may be unused: one shape, one compiled program.
        new, state = generator.extend(state, np.pad(draws, ((0, 0), (0, chunk - count))))
        tokens = np.concatenate([tokens, new], axis=1)
        yield new[:, :count]


def cache_size(positions: int) -> int:
    """Round up to an eighth of the next power of two: few slots are unused, and few sizes are compiled."""
    step = max(WIDTH, (1 << (positions - 1).bit_length()) // 8)
    return -(-positions // step) * step


@dataclass
class Text:
    """The text generated after one prompt."""

    prompt: str
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    """Whether the model ended the text itself, with end-of-text or another stop token."""


def generate_texts(
    generator: Generator,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    options: SampleConfig,
    *,
    context: int,
    special: bool = False,
) -> Iterator[list[Text]]:
    """Generate text after each prompt, and yield the growing texts until all have ended or reached `max_tokens`.

    Args:
        generator: a twin's generator.
        tokenizer: the model's tokenizer.
        prompts: prompts; an empty one begins a new document, as documents begin in training.
        options: number of tokens and seed.
        context: maximum context length in tokens.
        special: whether to encode special tokens in the prompts.

    Yields:
        The same list each time, one text per prompt.
    """
    ids = [tokenizer.encode_prompt(prompt, special) for prompt in prompts]
    yield from continue_texts(generator, tokenizer, list(map(Text, prompts)), ids, options, context=context)


def continue_texts(
    generator: Generator,
    tokenizer: Tokenizer,
    texts: list[Text],
    ids: Sequence[Sequence[int]],
    options: SampleConfig,
    *,
    context: int,
) -> Iterator[list[Text]]:
    """Generate text after the ids of each prompt, and yield the growing texts, as `generate_texts` does.

    Args:
        generator: a twin's generator.
        tokenizer: the model's tokenizer.
        texts: receive what is generated.
        ids: token ids of their prompts.
        options: number of tokens and seed.
        context: maximum context length in tokens.
    """
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
    generator: Generator,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    options: SampleConfig,
    *,
    context: int,
) -> list[Text]:
    """Generate text after each prompt, and return the finished texts.

    Args:
        generator: a twin's generator.
        tokenizer: the model's tokenizer.
        prompts: prompts; an empty one begins a new document.
        options: number of tokens and seed.
        context: maximum context length in tokens.
    """
    *_, texts = generate_texts(generator, tokenizer, prompts, options, context=context)
    return texts
