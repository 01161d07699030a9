"""Whole conversations in rows: all are there once in an epoch, none is split, and the rest is padding."""

import numpy as np
import pytest

from lmcore.data.batches import Tokens
from lmcore.data.marks import BEGINS, UNCOUNTED, target_ids, token_ids
from lmcore.data.packing import PADDING, PackedBatches, pack, packed_windows

LENGTHS = [3, 4, 2, 9, 1, 1, 7, 12, 5]


def conversations(lengths: list[int] = LENGTHS) -> Tokens:
    """Conversations whose ids count up from 1; every second token counts."""
    ids = np.arange(1, sum(lengths) + 1, dtype=np.uint32)
    begins = np.cumsum([0, *lengths[:-1]])
    ids[::2] |= UNCOUNTED
    ids[begins] |= BEGINS
    return Tokens(ids=ids, documents=len(lengths), bytes=1, unknown=0, targets=sum(lengths) // 2)


def test_as_many_as_fit_share_a_row_and_a_longer_one_is_cut():
    rows = pack(conversations(), 8)
    assert rows.starts.tolist() == [0, 7, 9, 18, 20, 27, 39]
    assert rows.ends.tolist() == [7, 9, 17, 20, 27, 35, 44]
    assert rows.describe(8) == "9 conversations in 7 rows of 7 tokens, 70% filled; 2 longer ones are cut there"
    assert "cut" not in pack(conversations([3, 4]), 8).describe(8)
    assert len(pack(conversations([8, 8]), 8)) == 2, "one that fits exactly is whole"
    assert pack(conversations([8, 8]), 8).truncated == 0


def test_padding_is_a_document_by_itself_that_does_not_count():
    tokens = conversations()
    [row] = pack(tokens, 8).read(tokens, np.array([1]), 8)
    assert token_ids(row).tolist() == [8, 9, 0, 0, 0, 0, 0, 0]
    assert (row[2:] == PADDING).all()
    assert target_ids(row).tolist() == [8, -1, -1, -1, -1, -1, -1, -1]
    assert (row >= BEGINS).tolist() == [True, False] + [True] * 6


def test_an_epoch_has_every_row_once_in_a_new_order():
    tokens = conversations()
    batches = PackedBatches(tokens, seq_len=7, batch_size=7, seed=0)
    assert batches.windows == 7
    epochs = [batches.batch(step) for step in range(3)]
    expected = pack(tokens, 8).read(tokens, np.arange(7), 8)
    for rows in epochs:
        assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, expected.tolist()))
    assert not np.array_equal(epochs[0], epochs[1])
    np.testing.assert_array_equal(PackedBatches(tokens, seq_len=7, batch_size=7, seed=0).batch(2), epochs[2])
    assert not np.array_equal(PackedBatches(tokens, seq_len=7, batch_size=7, seed=1).batch(0), epochs[0])
    parts = [PackedBatches(tokens, seq_len=7, batch_size=4, seed=0, shard=(i, 2)).batch(1) for i in range(2)]
    whole = PackedBatches(tokens, seq_len=7, batch_size=4, seed=0).batch(1)
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_less_text_than_a_row_is_enough():
    assert PackedBatches(conversations([3, 4]), seq_len=63, batch_size=1, seed=0).batch(5).shape == (1, 64)


@pytest.mark.parametrize("windows", [0, 3, 100])
def test_evaluation_has_evenly_spaced_rows_and_padding(windows: int):
    tokens = conversations()
    count = 3 if windows == 3 else 7
    found = list(packed_windows(tokens, seq_len=7, batch_size=4, windows=windows))
    assert len(found) == -(-count // 4)
    inputs, targets = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    expected = pack(tokens, 8).read(tokens, np.arange(count) * 7 // count, 8)
    np.testing.assert_array_equal(inputs[:count], expected[:, :-1])
    np.testing.assert_array_equal(targets[:count], target_ids(expected[:, 1:]))
    assert (targets[count:] == -1).all()
    assert (inputs[count:] == PADDING).all()
