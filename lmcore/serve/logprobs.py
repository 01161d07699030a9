"""Logarithms of token probabilities, by the model's own distribution: before temperature, top-k, top-p and min-p."""

import json
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int32

from lmcore.data.tokenizer import BYTE, Tokenizer

__all__ = ["Logprob", "TokenTexts", "log_softmax", "logprob_of", "prompt_logprobs"]

LOWEST = -9999.0
"""Stands for −∞, which JSON lacks."""
ROWS = 64
"""Positions of a prompt that are converted to float64 at a time."""


class Logprob(NamedTuple):
    """The log probability of a token, and the most likely tokens in its place."""

    token: int
    value: float | None
    """None for the first token of a prompt, which nothing predicts."""
    top: tuple[tuple[int, float], ...] = ()
    """(token, log probability), the most likely first, of equals the smaller id."""


def log_softmax(logits: Float[np.ndarray, "*B V"]) -> Float[np.ndarray, "*B V"]:
    """Return log probabilities in float64."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def logprob_of(logits: Float[np.ndarray, " V"], token: int, top: int) -> Logprob:
    """Return the log probability of a token.

    Args:
        logits: that it was chosen from.
        token: its id.
        top: number of most likely tokens to return with it.
    """
    return _of(log_softmax(logits), token, top)


def prompt_logprobs(logits: Float[np.ndarray, "T V"], tokens: Int32[np.ndarray, " T"], top: int) -> list[Logprob]:
    """Return the log probability of each token of a text, given those before it.

    Args:
        logits: after each token.
        tokens: token ids.
        top: number of most likely tokens to return with each.
    """
    found = [Logprob(int(tokens[0]), None)]
    for begin in range(0, len(tokens) - 1, ROWS):
        rows = log_softmax(logits[begin : min(begin + ROWS, len(tokens) - 1)])
        found += [_of(row, int(token), top) for row, token in zip(rows, tokens[begin + 1 :])]
    return found


def _of(values: Float[np.ndarray, " V"], token: int, top: int) -> Logprob:
    values = np.maximum(values, LOWEST)
    if not top:
        return Logprob(token, float(values[token]))
    least = np.partition(values, -min(top, len(values)))[-min(top, len(values))]
    likely = np.flatnonzero(values >= least)
    likely = likely[np.argsort(-values[likely], kind="stable")][:top]
    return Logprob(token, float(values[token]), tuple((int(i), float(values[i])) for i in likely))


class TokenTexts:
    """The text and the bytes of single tokens."""

    def __init__(self, tokenizer: Tokenizer):
        """Look at how the tokenizer writes bytes."""
        self._tokenizer = tokenizer
        decoder = json.dumps(json.loads(tokenizer.to_json()).get("decoder"))
        self._byte_level = '"ByteLevel"' in decoder
        self._added = {i: token.content for i, token in tokenizer.inner.get_added_tokens_decoder().items()}
        # A decoder may treat the first token of a text differently, so that each is decoded after another.
        size = tokenizer.vocab_size
        self._first = next((i for i in range(size) if i not in self._added and tokenizer.decode([i]).strip()), None)
        self.bytes_of = lru_cache(maxsize=size)(self._bytes_of)
        self.text_of = lru_cache(maxsize=size)(self._text_of)

    def _bytes_of(self, token: int) -> bytes:
        """Return the bytes of a token, which may be a part of a character."""
        if token in self._added:
            return self._added[token].encode()
        name = self._tokenizer.inner.id_to_token(token)
        if name is None:  # the model has more embeddings than the vocabulary has tokens
            return b""
        if self._byte_level and all(character in BYTES for character in name):
            return bytes(BYTES[character] for character in name)
        if BYTE.fullmatch(name):
            return bytes([int(name[3:5], 16)])
        if self._first is None:
            return self._tokenizer.decode([token]).encode()
        before = self._tokenizer.decode([self._first])
        return self._tokenizer.decode([self._first, token])[len(before) :].encode()

    def _text_of(self, token: int) -> str:
        r"""Return the text of a token, one that is not valid UTF-8 in the API's form, such as `bytes:\xe2\x96`."""
        content = self.bytes_of(token)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)


def _byte_characters() -> dict[str, int]:
    """Return the bytes that the characters of a byte-level vocabulary stand for.

    A printable byte of Latin-1 stands for itself; the others are, in order, U+0100 and the following (Radford et al.,
    GPT-2, `bytes_to_unicode`).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTES = _byte_characters()
