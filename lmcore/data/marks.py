"""Marks: what a token is beside its id, in upper bits of the same integer, so that a batch is one array of int32.

A batch is drawn here, once for both twins, and so is the decision where a document begins and which tokens count in the
loss. The functions use operators alone, which the arrays of NumPy and of both frameworks share. Each twin's
`documents.py` reads a batch with them.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Int32

__all__ = ["BEGINS", "UNCOUNTED", "counts", "document_begins", "target_ids", "token_ids"]

BEGINS = 1 << 30
"""Mark of the first token of a document: it and those after it attend to no earlier ones."""
UNCOUNTED = 1 << 29
"""Mark of a token that is read, but is no target of the loss. Ids are less than this."""

Integers = Any
"""An array of integers, of any framework."""


def token_ids(marked: Integers) -> Integers:
    """Return the ids without their marks."""
    return marked & (UNCOUNTED - 1)


def counts(marked: Integers) -> Integers:
    """Return 1 where a token counts in the loss, and 0 where it does not."""
    return 1 - (marked >> 29 & 1)


def target_ids(marked: Integers) -> Integers:
    """Return the ids as targets: −1 where a token does not count in the loss."""
    return token_ids(marked) | (counts(marked) - 1)


def document_begins(ids: Int32[np.ndarray, "*B T"], eot_id: int, prefixed: bool) -> Bool[np.ndarray, "*B T"]:
    """Return which tokens of a text begin a document.

    The model reads the end-of-text token only to predict what begins the next document: as an input it belongs to
    that one, as a target to the one before. So a document's first token is predicted from end-of-text alone, as when
    text is generated after an empty prompt. A prefix, such as a begin-of-text token, takes its place.

    Args:
        ids: token ids.
        eot_id: id of end-of-text, which ends every document.
        prefixed: whether each document begins with a prefix of its own.
    """
    ends = ids == eot_id
    if not prefixed:
        return ends
    begins = np.zeros_like(ends)
    begins[..., 1:] = ends[..., :-1]
    return begins
