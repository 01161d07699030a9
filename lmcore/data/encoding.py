"""Encode documents to token ids, in bounded memory and on all cores, with the same ids as if encoded whole.

A long document arrives in pieces (`lmcore.data.readers`). Most cuts are at places over which byte-level BPE is known
never to merge, and there each piece is encoded independently. At other cuts, and with any other tokenizer, a piece is
encoded together with the end of the piece before it, so that two windows overlap. Where both encodings agree on the
tokens of a stretch of the overlap, the output switches from the first to the second. It switches at a word boundary,
after which the pre-tokenizer continues in the same way; or, for BPE on text that is not split into words, or within a
long word of byte-level BPE, at any token boundary of the stretch, since BPE decides a merge from the two neighbours
alone. Where the encodings never agree, the text since the last agreement is encoded again as a whole, which takes about
a hundred bytes of memory per character; text that never agrees is refused.
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
"""Characters per call of the library: enough to keep every core busy, few enough to hold two calls in memory."""
OVERLAP = 1 << 11
"""Characters of the preceding text that a piece is encoded with, where its tokens may depend on them."""
AGREED = 8
"""Tokens on each side of a boundary that both encodings must have in common."""
HELD = 1 << 22
"""Maximum number of characters to encode as a whole where encodings never agree: 400 MB of memory."""

SAFE_CUT = re.compile(r"\S\n\0\S|\S\0 \S")
"""Matches the text around a cut, marked by NUL, at which GPT-2's byte-level pre-tokenizer always splits."""


class Window(NamedTuple):
    """The unit of encoding: a piece of a document, preceded by the end of the text before it where that matters."""

    text: str
    overlap: int
    """Number of leading characters that belong to the previous window; 0 if it is encoded independently."""
    more: bool
    """Whether the next window overlaps this one."""
    begins: bool
    """Whether a document begins here."""
    ends: bool
    """Whether the document ends here."""


def encode(tokenizer: Tokenizer, pieces: Iterable[Piece]) -> Iterator[tuple[np.ndarray, int, int]]:
    """Encode documents; each begins with the tokenizer's document prefix and ends with end-of-text.

    While the library encodes one batch, this thread converts the previous one to an array and reads the next.

    Yields:
        (token ids, number of documents that end among them, UTF-8 bytes of text)
    """
    joiner = Joiner(tokenizer)
    previous: tuple[list[Window], Future] | None = None
    with ThreadPoolExecutor(1) as pool:
        # The output lags one batch behind; the empty batch at the end flushes the last one.
        for batch in itertools.chain(_batches(_windows(Cuts(tokenizer), pieces)), [[]]):
            current = batch, pool.submit(_encodings, tokenizer, batch)
            if previous is not None:
                yield _array(joiner, previous[0], previous[1].result())
            previous = current


class Cuts:
    """Where text may be cut without a change to its tokens, derived from a tokenizer's pipeline."""

    def __init__(self, tokenizer: Tokenizer):
        state = json.loads(tokenizer.inner.to_str())
        model, splitter = state["model"], state["pre_tokenizer"] or {"type": None}
        plain = (
            model["type"] == "BPE"
            and state["normalizer"] is None
            and all(
                token["special"] for token in state["added_tokens"]
            )  # others are searched for in the text, over a cut too
            and not splitter.get("add_prefix_space")
        )
        words = splitter["type"] == "ByteLevel" and splitter.get("use_regex", True)
        alone = splitter["type"] is None or (splitter["type"] == "ByteLevel" and not words)
        joins = model.get("merges") or any(
            model.get(name) for name in ("fuse_unk", "ignore_merges", "end_of_word_suffix", "continuing_subword_prefix")
        )
        self._anywhere = plain and alone and not joins
        self.between_words = plain and words

    def is_safe(self, left: str, right: str) -> bool:
        """Return whether the two parts of a text are known to have, encoded independently, the tokens of the whole."""
        if self._anywhere:
            return True
        return self.between_words and SAFE_CUT.fullmatch(_around(left, right)) is not None


def _around(left: str, right: str) -> str:
    """Return the few characters around a cut that `SAFE_CUT` decides by, with NUL at the cut."""
    return f"{left[-2:]}\0{right[:1]}" if left.endswith("\n") else f"{left[-1:]}\0{right[:2]}"


def _windows(cuts: Cuts, pieces: Iterable[Piece]) -> Iterator[Window]:
    """Put the end of the preceding text before each piece, except where the cut between them is safe."""
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
    yield batch  # may be empty: a corpus without text still gives one array


def _encodings(tokenizer: Tokenizer, batch: list[Window]) -> Iterator[Encoding]:
    """Return the encodings of a batch, in order; offsets, which are slow, only for windows that overlap another."""
    overlapping = [window.overlap > 0 or window.more for window in batch]
    without, with_offsets = (
        iter(tokenizer.encodings([w.text for w, o in zip(batch, overlapping) if o == offsets], offsets=offsets))
        for offsets in (False, True)
    )
    return iter([next(with_offsets if o else without) for o in overlapping])


def _array(joiner: "Joiner", batch: list[Window], encodings: Iterable[Encoding]) -> tuple[np.ndarray, int, int]:
    """Return (token ids, documents that end, UTF-8 bytes) of a batch, with overlapping windows joined."""
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
    """The library's encoding of a text, as Python lists: its properties build a new list at each access."""

    ids: list[int]
    spans: list[tuple[int, int]]
    """(begin, end) of each token, in characters."""
    words: list[int | None]
    """Index of each token's word, as the pre-tokenizer splits the text."""

    @classmethod
    def of(cls, encoding: Encoding) -> "Encoded":
        """Copy the lists of the library's object."""
        return cls(encoding.ids, encoding.offsets, encoding.word_ids)

    def boundaries(self, begin: int) -> dict[int, int]:
        """Return, for text from `begin` on, the character where a token begins -> index of that token.

        Tokens that share a character with the token before them (bytes of one character) are left out.
        """
        return {
            span[0] - begin: index
            for index, (previous, span) in enumerate(itertools.pairwise(self.spans), 1)
            if span[0] >= begin and previous[1] <= span[0]
        }

    def around(self, index: int, begin: int) -> tuple[list[int], list[tuple[int, int]], list[bool]]:
        """Return ids, spans from `begin` on and word boundaries of the AGREED tokens on each side of token `index`."""
        near = slice(index - AGREED, index + AGREED)
        spans = [(first - begin, last - begin) for first, last in self.spans[near]]
        return self.ids[near], spans, [one != other for one, other in itertools.pairwise(self.words[near])]


class Joiner:
    """Joins the ids of overlapping windows.

    It holds back the ids of the latest window until the next window shows which of them are those of the whole text.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        state = json.loads(tokenizer.inner.to_str())
        splitter = state["pre_tokenizer"]
        unsplit = splitter is None or (splitter["type"] == "Metaspace" and not splitter.get("split", True))
        self._unsplit = unsplit and state["model"]["type"] == "BPE"
        # GPT-2's pattern ends a long word where its kind of character ends, wherever the word began.
        self._within_words = Cuts(tokenizer).between_words and not state["model"].get("ignore_merges")
        self._hold("", Encoded([], [], []), 0)

    def _hold(self, text: str, encoded: Encoded, first: int) -> None:
        """Hold back the tokens of a text from token `first` on; earlier ones have been output already."""
        self._text, self._encoded, self._first = text, encoded, first
        self._length = len(text)
        """Number of characters of `_text` that are encoded; it may hold more."""

    def take(self, window: Window, encoding: Encoding) -> list[int]:
        """Take the next window and return the ids that are now certain: all of them if no further window overlaps."""
        if not (window.overlap or window.more):
            return encoding.ids
        certain: list[int] = []
        encoded = Encoded.of(encoding)
        if self._first == 0 and window.overlap == len(self._text):  # the window contains all held-back text
            self._hold(window.text, encoded, 0)
        elif (meeting := self._meet(encoded, window.overlap)) is not None:
            certain = self._encoded.ids[self._first : meeting[0]]
            self._hold(window.text, encoded, meeting[1])
        else:
            self._text += window.text[window.overlap :]
            if len(self._text) > HELD:
                raise UserError(
                    f"data: found {len(self._text):,} characters (from {self._text[:20]!r} on) without a place where "
                    "this tokenizer's tokens end in any case; split them, or set tokenizer.kind to bytes"
                )
            if (
                len(self._text) >= 2 * self._length or not window.more
            ):  # only once it has doubled, so that total work stays linear
                self._encode_again()
        if not window.more:
            certain += self._encoded.ids[self._first :]
            self._hold("", Encoded([], [], []), 0)
        return certain

    def _encode_again(self) -> None:
        """Encode all held text as a whole, where windows did not agree.

        Raises:
            UserError: that changes tokens which have been output already.
        """
        whole = Encoded.of(self.tokenizer.encodings([self._text], offsets=True)[0])
        earlier, first = self._encoded, self._first
        if (whole.ids[:first], whole.spans[:first]) != (earlier.ids[:first], earlier.spans[:first]):
            raise UserError(
                "data: found a document in which this tokenizer chooses tokens by text too far away to encode it in "
                "parts; split it into several documents, or use another tokenizer"
            )
        self._hold(self._text, whole, first)

    def _meet(self, right: Encoded, overlap: int) -> tuple[int, int] | None:
        """Find where to switch from the held text to the next window.

        Args:
            right: encoding of the next window.
            overlap: number of its leading characters that are the end of the held text.

        Returns:
            Index of the same token in the held text and in the window, or None if they never agree.
        """
        left, begin = self._encoded, self._length - overlap
        if self._length != len(self._text):
            return None
        left_tokens, right_tokens = left.boundaries(begin), right.boundaries(0)
        shared = left_tokens.keys() & right_tokens.keys()
        # From the middle of the overlap outwards: there, both encodings have the most context on either side.
        for position in sorted(shared, key=lambda position: abs(position - overlap // 2)):
            i, j = left_tokens[position], right_tokens[position]
            inside = self._first + AGREED <= i <= len(left.ids) - AGREED and AGREED <= j <= len(right.ids) - AGREED
            if not inside or left.around(i, begin) != (near := right.around(j, 0)):
                continue
            if self._unsplit or near[2][AGREED - 1] or (self._within_words and not any(near[2])):
                return i, j
        return None
