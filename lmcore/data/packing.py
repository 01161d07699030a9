"""Batches of whole conversations: as many as fit are packed into each row, in their order, and the rest is padding.

A row is a stretch of the token file, so that packing needs no copy of it. The rows are the same in every epoch; their
order is shuffled.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int32

from lmcore.data.batches import Batches, Tokens
from lmcore.data.marks import BEGINS, UNCOUNTED, target_ids

__all__ = ["PackedBatches", "Rows", "pack", "packed_windows"]

PADDING = BEGINS | UNCOUNTED
"""Id 0 with the marks of padding: a document by itself, which does not count."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Packed conversations, each row a stretch of the token file."""

    starts: Int[np.ndarray, " rows"]
    """Position of the first token of each row."""
    ends: Int[np.ndarray, " rows"]
    """Position after its last token."""
    conversations: int
    """Number of conversations."""
    truncated: int
    """Number of conversations that are longer than a row, and cut at its end."""

    def __len__(self) -> int:
        return len(self.starts)

    def read(self, tokens: Tokens, rows: Int[np.ndarray, " B"], length: int) -> Int32[np.ndarray, "B T1"]:
        """Return rows of tokens, padded to one length.

        Args:
            tokens: the text that was packed.
            rows: numbers of the rows.
            length: number of tokens of each, T1.
        """
        positions = self.starts[rows][:, None] + np.arange(length)
        inside = positions < self.ends[rows][:, None]
        return np.where(inside, tokens.read(np.where(inside, positions, 0)), PADDING).astype(np.int32)

    def describe(self, length: int) -> str:
        """Return a line about the rows, for people to read."""
        filled = (self.ends - self.starts).sum() / (len(self) * length)
        cut = f"; {self.truncated:,} longer ones are cut there" if self.truncated else ""
        rows = f"{len(self):,} rows of {length - 1:,} tokens, {filled:.0%} filled"
        return f"{self.conversations:,} conversations in {rows}{cut}"


def pack(tokens: Tokens, length: int) -> Rows:
    """Pack conversations into rows: each is put into the row of the one before it, if there is room.

    Args:
        tokens: conversations, with marks where each begins.
        length: number of tokens of a row, one more than the model reads.
    """
    begins = np.flatnonzero(np.asarray(tokens.ids) >= BEGINS)
    bounds = np.append(begins, len(tokens))
    starts, ends, first, truncated = [], [], 0, 0
    while first < len(begins):
        room = bounds[first] + length
        last = int(np.searchsorted(bounds, room, side="right")) - 1
        truncated += last == first
        last = max(last, first + 1)
        starts.append(bounds[first])
        ends.append(min(bounds[last], room))
        first = last
    return Rows(np.array(starts), np.array(ends), len(begins), truncated)


class PackedBatches(Batches):
    """Training batches of packed conversations; a pure function of the constructor's arguments and of `step`."""

    def _count(self) -> int:
        self.packed = pack(self._tokens, self._seq_len + 1)
        return len(self.packed)

    def _place(self, order: np.ndarray, offset: int) -> np.ndarray:
        return order

    def _read(self, starts: np.ndarray) -> Int32[np.ndarray, "rows T1"]:
        return self.packed.read(self._tokens, starts, self._seq_len + 1)


def packed_windows(
    tokens: Tokens, *, seq_len: int, batch_size: int, windows: int
) -> Iterator[tuple[Int32[np.ndarray, "B T"], Int32[np.ndarray, "B T"]]]:
    """Yield (inputs, targets) of a fixed set of rows, evenly spaced over the conversations.

    Args:
        tokens: validation conversations.
        seq_len: targets per sequence, T.
        batch_size: sequences per batch, B; the last batch is padded with empty sequences.
        windows: number of rows; 0, or more than there are, takes all.
    """
    packed = pack(tokens, seq_len + 1)
    count = min(windows or len(packed), len(packed))
    chosen = np.arange(count) * len(packed) // count
    for begin in range(0, count, batch_size):
        rows = packed.read(tokens, chosen[begin : begin + batch_size], seq_len + 1)
        rows = np.pad(rows, ((0, batch_size - len(rows)), (0, 0)), constant_values=PADDING)
        yield rows[:, :-1], target_ids(rows[:, 1:])
