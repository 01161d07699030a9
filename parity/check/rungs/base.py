"""What all rungs share: options, and the batches of the run."""

from dataclasses import dataclass

import numpy as np

from lmcore.data.batches import Batches, Tokens
from lmcore.data.marks import BEGINS
from parity.backends.base import Pair

__all__ = ["Options", "in_short_documents", "training_batches"]

DOCUMENT = 8
"""Mean number of tokens of a document where documents are masked, so that the short sequences of a check have several.
"""


@dataclass(frozen=True)
class Options:
    """Lengths of the runs on rung 7, and the witnesses on rung 9."""

    steps: int = 20
    """Number of steps of the training trajectory."""
    draws: int = 3
    """Number of runs of each twin that measure its own drift."""
    witnesses: tuple[str, ...] = ()
    """Names of the witnesses on rung 9, in addition to transformers."""


def in_short_documents(tokens: np.ndarray) -> np.ndarray:
    """Mark the beginnings of random short documents in a vector of token ids, which may have marks already."""
    begins = np.random.default_rng(0).random(len(tokens)) < 1 / DOCUMENT
    return (tokens | np.where(begins, BEGINS, 0)).astype(np.int32)


def training_batches(pair: Pair, count: int) -> list[np.ndarray]:
    """Return the first `count` batches of the run, B T1 each, from the shared core."""
    train = pair.config.train
    tokens = Tokens(ids=pair.tokens, documents=1, bytes=len(pair.tokens), unknown=0)
    batches = Batches(tokens, seq_len=train.seq_len, batch_size=train.batch_size, seed=train.seed)
    return [batches.batch(step) for step in range(count)]
