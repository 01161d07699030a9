"""What all rungs share: the batches of the run, from the text."""

from collections.abc import Callable

import numpy as np

from lmcore.data.marks import BEGINS, UNCOUNTED, token_ids
from parity.backends.base import Pair
from parity.check.rungs.base import in_short_documents, training_batches


def test_batches_are_pieces_of_the_text_and_depend_on_the_seed(tiny_pair: Callable[..., Pair]):
    pair = tiny_pair(train={"seq_len": 11})
    first, second, third = training_batches(pair, 3)
    assert first.shape == second.shape == third.shape == (4, 12)
    windows = np.lib.stride_tricks.sliding_window_view(pair.tokens, 12)
    assert all((windows == row).all(axis=1).any() for row in (*first, *second, *third))
    assert len(np.unique(np.concatenate([first, second, third]), axis=0)) == 12, "no window is read twice"
    np.testing.assert_array_equal(training_batches(pair, 1)[0], first)
    assert not np.array_equal(training_batches(tiny_pair(train={"seed": 7}), 1)[0], first)


def test_documents_are_short_enough_for_a_sequence_to_have_several():
    tokens = np.arange(4000, dtype=np.int32)
    tokens[::2] |= UNCOUNTED
    marked = in_short_documents(tokens)
    assert marked.dtype == np.int32
    np.testing.assert_array_equal(token_ids(marked), np.arange(4000))
    np.testing.assert_array_equal(marked & ~BEGINS, tokens)
    assert 400 < (marked >= BEGINS).sum() < 600
