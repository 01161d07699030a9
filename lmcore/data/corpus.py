"""A corpus: documents that can be read any number of times, a part of them, and the split into training and validation.

A corpus is read in pieces of bounded size, and has an identity by which a change of the text is noticed.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from fractions import Fraction
from functools import cached_property
from typing import Any

from lmcore.data.readers import Piece
from lmcore.errors import UserError

__all__ = ["Capped", "Corpus", "Part", "Piece", "Split"]


class Corpus(ABC):
    """A sequence of documents in a fixed order, which can be read any number of times."""

    name: str
    """A short name, used for folder names."""
    size: int | None = None
    """Approximate number of bytes of text, or None where it is not known without reading."""
    divisible: bool = True
    """Whether a single document may be split in two, to hold a part of it out; a conversation may not."""

    @abstractmethod
    def __iter__(self) -> Iterator[Piece]:
        """Iterate over the pieces of all documents."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return JSON-serializable values that are equal only if the text is equal."""

    @abstractmethod
    def describe(self) -> str:
        """Describe the corpus for messages."""


class Capped(Corpus):
    """The first documents of another corpus."""

    def __init__(self, source: Corpus, count: int):
        self._source = source
        self._count = count
        self.name = source.name

    def __iter__(self) -> Iterator[Piece]:
        remaining = self._count
        for piece in self._source:
            yield piece
            remaining -= piece.ends
            if remaining == 0:
                return

    def identity(self) -> dict[str, Any]:
        return {"first": self._count, "of": self._source.identity()}

    def describe(self) -> str:
        return f"the first {self._count:,} documents of {self._source.describe()}"


class Split:
    """The rule that splits one corpus into training and validation documents.

    To find it, only the beginning of the corpus is read: up to the first document that is to be held out.
    """

    def __init__(self, source: Corpus, fraction: Fraction, max_documents: int):
        """Set up the rule.

        Args:
            source: corpus to split.
            fraction: fraction of the documents to hold out.
            max_documents: maximum number of training documents; 0 for no limit.
        """
        self.source = source
        self.fraction = fraction
        self.max_documents = max_documents

    def holds(self, index: int) -> bool:
        """Return whether document `index` is held out."""
        if self.first < self._regular_first:
            return index == self.first
        # Held out where ⌊fraction · (i + 1)⌋ exceeds ⌊fraction · i⌋, in integers: exact for any number of documents.
        part, whole = self.fraction.as_integer_ratio()
        return index * part // whole < (index + 1) * part // whole

    @cached_property
    def _regular_first(self) -> int:
        return math.ceil(1 / self.fraction) - 1

    @cached_property
    def first(self) -> int:
        """Index of the first held-out document; 0 if there is only one document."""
        return self._survey[0]

    @cached_property
    def characters(self) -> int:
        """Number of characters of the first document."""
        return self._survey[1]

    @cached_property
    def _survey(self) -> tuple[int, int]:
        """Return (index of the first held-out document, characters of the first document)."""
        target = min(self._regular_first, self.max_documents or self._regular_first)
        documents = characters = 0
        for piece in self.source:
            characters += len(piece.text) if documents == 0 else 0
            documents += piece.ends
            if documents > target:
                break
        if documents == 0:
            raise UserError(f"{self.source.describe()}: found no text, expected at least one document")
        if documents == 1 and not self.source.divisible:
            found = f"{self.source.describe()}: found one conversation"
            raise UserError(f"{found}, expected at least two, to hold one out; or set data.valid_files")
        if documents == 1 and characters < 2:
            raise UserError(f"{self.source.describe()}: found one character, expected at least two, to hold one out")
        return min(target, documents - 1), characters


class Part(Corpus):
    """The training or the held-out documents of a corpus."""

    def __init__(self, split: Split, *, held_out: bool):
        self._split = split
        self._held_out = held_out
        self.name = split.source.name
        fraction = split.fraction if held_out else 1 - split.fraction
        if split.source.size is not None and not split.max_documents:
            self.size = int(split.source.size * fraction)

    def __iter__(self) -> Iterator[Piece]:
        if self._split.first == 0:
            yield from self._characters()
            return
        index = trained = 0
        held_out = self._split.holds(0)
        for piece in self._split.source:
            if held_out == self._held_out:
                yield piece
            if piece.ends:
                index += 1
                trained += not held_out
                held_out = self._split.holds(index)
                if not held_out and trained == self._split.max_documents > 0:
                    return

    def _characters(self) -> Iterator[Piece]:
        """Yield this part of a single document, which is split at a character."""
        total = self._split.characters
        cut = min(max(int(total * (1 - self._split.fraction)), 1), total - 1)
        begin, end = (cut, total) if self._held_out else (0, cut)
        position = 0
        for piece in self._split.source:
            text = piece.text[max(begin - position, 0) : max(end - position, 0)]
            position += len(piece.text)
            if text:
                yield Piece(text, ends=position >= end)
            if position >= end:
                return

    def identity(self) -> dict[str, Any]:
        return {
            "part": "held out" if self._held_out else "training",
            "fraction": str(self._split.fraction),
            "max_documents": self._split.max_documents,
            "of": self._split.source.identity(),
        }

    def describe(self) -> str:
        part = f"{float(self._split.fraction):.3g} of " if self._held_out else "all but the held-out part of "
        return part + self._split.source.describe()
