"""Marks beside token ids: they come back as what they mean, from the arrays of any framework."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from lmcore.data.marks import BEGINS, UNCOUNTED, counts, document_begins, target_ids, token_ids

IDS = [7, 0, UNCOUNTED - 1, 9]
MARKED = [7 | BEGINS, 0 | UNCOUNTED, (UNCOUNTED - 1) | UNCOUNTED | BEGINS, 9]


@pytest.mark.parametrize("array", [lambda x: np.array(x, np.int32), lambda x: jnp.array(x, "int32"), torch.tensor])
def test_ids_targets_and_counts_are_read_from_every_frameworks_arrays(array):
    marked = array(MARKED)
    assert token_ids(marked).tolist() == IDS
    assert target_ids(marked).tolist() == [7, -1, -1, 9]
    assert counts(marked).tolist() == [1, 0, 0, 1]
    assert token_ids(array(IDS)).tolist() == target_ids(array(IDS)).tolist() == IDS, "ids without marks are themselves"


def test_a_document_is_read_from_the_end_of_text_before_it_or_from_its_prefix():
    ids = np.array([[5, 1, 5, 5, 1, 1, 5]], np.int32)
    assert document_begins(ids, 1, prefixed=False).tolist() == [[False, True, False, False, True, True, False]]
    assert document_begins(ids, 1, prefixed=True).tolist() == [[False, False, True, False, False, True, True]]
