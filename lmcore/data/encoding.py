"""Documents to token ids, in bounded memory and on all cores; a document in pieces has the tokens of the whole.

A long document arrives in pieces (`lmcore.data.readers`). At most cuts, byte-level BPE is known to join nothing over
them, and each piece is encoded by itself. Elsewhere, and with any other tokenizer, a piece is encoded together with the
end of the one before. Where both encodings have the same tokens over a stretch of text, the first is left for the
second: at a boundary of words, from which a pre-tokenizer goes on alike, or, for BPE on undivided text, at any boundary
of tokens there, since it joins two neighbours by what those two are. Where they never agree, the text from the last
agreement on is encoded as one, which takes memory for as much of the document: about a hundred bytes a character.
"""

import array
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding

from lmcore.data.readers import Piece
from lmcore.data.tokenizer import Tokenizer
from lmcore.errors import UserError

__all__ = ["encode"]

BATCH = 1 << 20
"""Characters encoded in one call: enough to keep every core busy, little enough for the memory of two calls."""
OVERLAP = 1 << 11
"""Characters of the text before that a piece is encoded with, where its tokens may depend on them."""
AGREED = 8
"""Tokens on both sides of a boundary that must be the same in both encodings."""

SAFE_CUT = re.compile(r"\S\n\0\S|\S\0 \S")
"""Text about a cut, marked by NUL, over which GPT-2's byte-level pre-tokenizer joins nothing."""


class Window(NamedTuple):
    """What is encoded at a time: a piece of a document, after the end of the text before it where that matters."""

    text: str
    overlap: int
    """Characters at its beginning that belong to the window before; with 0 it is encoded by itself."""
    more: bool
    """Whether the next window overlaps this one."""
    begins: bool
    """Whether a document begins here."""
    ends: bool
    """Whether it ends here."""


def encode(tokenizer: Tokenizer, pieces: Iterable[Piece]) -> Iterator[tuple[np.ndarray, int, int]]:
    """Encode documents; each begins as the tokenizer's template says and ends with end-of-text.

    While the library encodes one batch, this thread turns the last one into an array and reads the next.

    Yields:
        (token ids, documents ended, UTF-8 bytes of text)
    """
    joiner = Joiner(tokenizer)
    ready: tuple[list[Window], Future] | None = None
    with ThreadPoolExecutor(1) as pool:
        for batch in itertools.chain(_batches(_windows(Cuts(tokenizer), pieces)), [[]]):
            coming = batch, pool.submit(_encodings, tokenizer, batch)
            if ready is not None:
                yield _array(joiner, ready[0], ready[1].result())
            ready = coming


class Cuts:
    """Where a tokenizer may be cut, found out from its pipeline."""

    def __init__(self, tokenizer: Tokenizer):
        state = json.loads(tokenizer.inner.to_str())
        model, splitter = state["model"], state["pre_tokenizer"] or {"type": None}
        plain = (
            model["type"] == "BPE"
            and state["normalizer"] is None
            and all(token["special"] for token in state["added_tokens"])  # others would be looked for in the text
            and not splitter.get("add_prefix_space")
        )
        words = splitter["type"] == "ByteLevel" and splitter.get("use_regex", True)
        alone = splitter["type"] is None or (splitter["type"] == "ByteLevel" and not words)
        joins = model.get("merges") or any(
            model.get(name) for name in ("fuse_unk", "ignore_merges", "end_of_word_suffix", "continuing_subword_prefix")
        )
        self._anywhere = plain and alone and not joins
        self._between_words = plain and words

    def is_safe(self, left: str, right: str) -> bool:
        """Whether two parts of a text surely have, each by itself, the tokens of the whole."""
        if self._anywhere:
            return True
        return self._between_words and SAFE_CUT.fullmatch(_around(left, right)) is not None


def _around(left: str, right: str) -> str:
    return f"{left[-2:]}\0{right[:1]}" if left.endswith("\n") else f"{left[-1:]}\0{right[:2]}"


def _windows(cuts: Cuts, pieces: Iterable[Piece]) -> Iterator[Window]:
    tail, begins = "", True
    for piece, following in itertools.pairwise(itertools.chain(pieces, [None])):
        assert piece is not None
        text = tail + piece.text
        more = following is not None and not piece.ends and not cuts.is_safe(text, following.text)
        yield Window(text, len(tail), more, begins, piece.ends)
        tail, begins = text[-OVERLAP:] if more else "", piece.ends


def _batches(windows: Iterable[Window]) -> Iterator[list[Window]]:
    batch: list[Window] = []
    size = 0
    for window in windows:
        batch.append(window)
        size += len(window.text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    yield batch


def _encodings(tokenizer: Tokenizer, batch: list[Window]) -> Iterator[Encoding]:
    """Encodings of a batch, in order; with the tokens' places only where windows are to be joined."""
    joined = [window.overlap > 0 or window.more for window in batch]
    alone, parts = (
        iter(tokenizer.encodings([w.text for w, j in zip(batch, joined) if j == places], offsets=places))
        for places in (False, True)
    )
    return iter([next(parts if j else alone) for j in joined])


def _array(joiner: "Joiner", batch: list[Window], encodings: Iterable[Encoding]) -> tuple[np.ndarray, int, int]:
    ids: list[int] = []
    size = 0
    for window, encoding in zip(batch, encodings, strict=True):
        if window.begins:
            ids += joiner.tokenizer.document_prefix
        ids += joiner.take(window, encoding)
        if window.ends:
            ids.append(joiner.tokenizer.eot_id)
        text = window.text[window.overlap :] if window.overlap else window.text
        size += len(text) if text.isascii() else len(text.encode())
    flat = np.frombuffer(array.array("I", ids), np.uint32)  # a third of the time of np.array(ids)
    return flat, sum(window.ends for window in batch), size


class Encoded(NamedTuple):
    """What the library says of a text, as lists."""

    ids: list[int]
    spans: list[tuple[int, int]]
    """Each token's characters."""
    words: list[int | None]
    """Each token's word, as the pre-tokenizer divides the text."""

    @classmethod
    def of(cls, encoding: Encoding) -> "Encoded":
        """Read the library's object once."""
        return cls(encoding.ids, encoding.offsets, encoding.word_ids)

    def boundaries(self, begin: int) -> dict[int, int]:
        """Place after `begin` -> the token that begins there after the end of the last, so no part of a character."""
        return {
            this[0] - begin: index
            for index, (last, this) in enumerate(itertools.pairwise(self.spans), 1)
            if this[0] >= begin and last[1] <= this[0]
        }

    def around(self, index: int, begin: int) -> tuple[list[int], list[tuple[int, int]], list[bool]]:
        """Ids, places and word boundaries of the tokens on both sides of a token's beginning."""
        near = slice(index - AGREED, index + AGREED)
        spans = [(first - begin, last - begin) for first, last in self.spans[near]]
        return self.ids[near], spans, [one != other for one, other in itertools.pairwise(self.words[near])]


class Joiner:
    """Gives out the ids of overlapping windows as soon as they are those of the whole text."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        state = json.loads(tokenizer.inner.to_str())
        splitter = state["pre_tokenizer"]
        undivided = splitter is None or (splitter["type"] == "Metaspace" and not splitter.get("split", True))
        self._within_words = undivided and state["model"]["type"] == "BPE"
        self._hold("", Encoded([], [], []), 0)

    def _hold(self, text: str, encoded: Encoded, first: int) -> None:
        """Hold back the tokens of a text from the `first` on; those before are given out as the last window's."""
        self._text, self._encoded, self._first = text, encoded, first
        self._length = len(text)
        """Characters that are encoded; `_text` may have more."""

    def take(self, window: Window, encoding: Encoding) -> list[int]:
        """Take the next window; return the ids that have become certain: all of them where no other overlaps it."""
        if not (window.overlap or window.more):
            return encoding.ids
        given: list[int] = []
        encoded = Encoded.of(encoding)
        if self._first == 0 and window.overlap == len(self._text):  # it holds all that is held back
            self._hold(window.text, encoded, 0)
        elif (meeting := self._meet(encoded, window.overlap)) is not None:
            given = self._encoded.ids[self._first : meeting[0]]
            self._hold(window.text, encoded, meeting[1])
        else:
            self._text += window.text[window.overlap :]
            if len(self._text) >= 2 * self._length or not window.more:  # doubled, so that the work stays in bounds
                self._encode_again()
        if not window.more:
            given += self._encoded.ids[self._first :]
            self._hold("", Encoded([], [], []), 0)
        return given

    def _encode_again(self) -> None:
        whole = Encoded.of(self.tokenizer.encodings([self._text], offsets=True)[0])
        known, first = self._encoded, self._first
        if (whole.ids[:first], whole.spans[:first]) != (known.ids[:first], known.spans[:first]):
            raise UserError(
                "data: found a document in which this tokenizer chooses tokens by text too far away to encode it in "
                "parts; cut it into several documents, or take another tokenizer"
            )
        self._hold(self._text, whole, first)

    def _meet(self, right: Encoded, overlap: int) -> tuple[int, int] | None:
        """Index of a token in the held text, and of that in the next window from which on the window's are taken."""
        left, begin = self._encoded, self._length - overlap
        if self._length != len(self._text):
            return None
        here, there = left.boundaries(begin), right.boundaries(0)
        for place in sorted(here.keys() & there.keys(), key=lambda place: abs(place - overlap // 2)):
            i, j = here[place], there[place]
            inside = self._first + AGREED <= i <= len(left.ids) - AGREED and AGREED <= j <= len(right.ids) - AGREED
            if not inside or left.around(i, begin) != (near := right.around(j, 0)):
                continue
            if self._within_words or near[2][AGREED - 1]:
                return i, j
        return None
