"""Batches are a pure function of (seed, step) that shows every token once an epoch; evaluation shows each once."""

import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.data.batches import FORMAT, HEADER, Batches, Tokens, eval_windows, token_dtype
from lmcore.errors import UserError


def counting(length: int) -> Tokens:
    """Tokens 0, 1, 2, …: a window's place can be read from its content."""
    return Tokens(ids=np.arange(length, dtype=np.uint32), documents=1, bytes=length, unknown=0)


def epoch(batches: Batches, number: int, rows: int) -> np.ndarray:
    """The windows of one epoch, for a batch size that divides their number."""
    steps = batches.windows // rows
    return np.concatenate([batches.batch(number * steps + i) for i in range(steps)])


@given(length=st.integers(6, 200), seq_len=st.integers(1, 5), number=st.integers(0, 10**9), seed=st.integers(0, 2**64))
def test_an_epoch_has_every_token_as_a_target_at_most_once_and_misses_less_than_a_window(length, seq_len, number, seed):
    batches = Batches(counting(length), seq_len=seq_len, batch_size=1, seed=seed)
    rows = epoch(batches, number, 1)
    assert rows.dtype == np.int32
    assert rows.shape == (length // seq_len, seq_len + 1)
    assert np.array_equal((rows[:, :-1] + 1) % length, rows[:, 1:]), "windows are stretches of the text, read as a ring"
    targets = rows[:, 1:].ravel()
    assert len(set(targets)) == len(targets) > length - seq_len


def test_epochs_and_seeds_differ_in_order_and_in_cuts():
    def one(number, seed=0) -> np.ndarray:
        return epoch(Batches(counting(1001), seq_len=10, batch_size=4, seed=seed), number, 4)

    assert np.array_equal(one(3), one(3))
    for other in (one(4), one(3, seed=1)):
        assert not np.array_equal(one(3), other)
        assert set(one(3)[:, 0] % 10) != set(other[:, 0] % 10), "the cuts differ, not only their order"
    order = one(3)[:, 0]
    assert np.corrcoef(order[:-1], order[1:])[0, 1] < 0.5, "windows are shuffled"


GOLDEN = {0: [48, 38, 13, 33], 10**6: [64, 34, 89, 1]}
"""First tokens of the windows in two batches, as NumPy 2.4 gave them."""


def test_the_order_is_the_same_in_every_version():
    batches = Batches(counting(103), seq_len=5, batch_size=4, seed=7)
    assert batches.batch(0)[:, 0].tolist() == GOLDEN[0]
    assert batches.batch(10**6)[:, 0].tolist() == GOLDEN[10**6]


def test_a_batch_holds_the_end_of_one_epoch_and_the_start_of_the_next():
    single = Batches(counting(23), seq_len=3, batch_size=1, seed=0)
    assert single.windows == 7
    for size in (5, 16):
        batches = Batches(counting(23), seq_len=3, batch_size=size, seed=0)
        for step in (0, 1, 2, 1000):
            rows = np.concatenate([single.batch(step * size + i) for i in range(size)])
            assert np.array_equal(batches.batch(step), rows)


def test_shards_together_are_the_batch():
    tokens = counting(500)
    whole = Batches(tokens, seq_len=7, batch_size=12, seed=3)
    for count in (1, 3, 4):
        parts = [Batches(tokens, seq_len=7, batch_size=12, seed=3, shard=(i, count)) for i in range(count)]
        for step in (0, 5, 99):
            assert np.array_equal(np.concatenate([part.batch(step) for part in parts]), whole.batch(step))
    with pytest.raises(UserError, match=r"train.batch_size: found 12, expected a multiple of the 5 processes"):
        Batches(tokens, seq_len=7, batch_size=12, seed=3, shard=(0, 5))


@pytest.mark.parametrize(("count", "micro_batches"), [(1, 1), (1, 6), (2, 3), (3, 2), (4, 3), (6, 2)])
def test_micro_batch_m_of_all_shards_is_micro_batch_m_of_one_process(count: int, micro_batches: int):
    tokens, shared = counting(500), {"seq_len": 7, "batch_size": 12, "seed": 3}
    whole = Batches(tokens, **shared)
    parts = [Batches(tokens, **shared, shard=(i, count), micro_batches=micro_batches) for i in range(count)]
    for step in (0, 5, 99):
        expected = whole.batch(step).reshape(micro_batches, -1, 8)
        found = [part.batch(step).reshape(micro_batches, -1, 8) for part in parts]
        assert np.array_equal(np.concatenate(found, axis=1), expected)
        rows = [tuple(row) for part in found for row in part.reshape(-1, 8).tolist()]
        assert sorted(rows) == sorted(map(tuple, expected.reshape(-1, 8).tolist())), "each row once"


def test_a_micro_batch_that_cannot_be_split_evenly_is_refused():
    with pytest.raises(UserError, match=r"batch_size: found 12, .* the 4 processes times train.grad_accum = 2$"):
        Batches(counting(500), seq_len=7, batch_size=12, seed=3, shard=(1, 4), micro_batches=2)


def test_too_little_text_gives_the_numbers():
    assert Batches(counting(9), seq_len=8, batch_size=2, seed=0).batch(0).shape == (2, 9)
    with pytest.raises(UserError, match=r"train.seq_len: found 9, expected less than the 9 tokens"):
        Batches(counting(9), seq_len=9, batch_size=2, seed=0)


@given(length=st.integers(2, 60), seq_len=st.integers(1, 9), batch_size=st.integers(1, 5))
def test_evaluation_of_all_windows_has_each_token_once(length, seq_len, batch_size):
    batches = list(eval_windows(counting(length), seq_len=seq_len, batch_size=batch_size, windows=0))
    inputs, targets = (np.concatenate(part) for part in zip(*batches))
    assert inputs.shape == targets.shape == (len(batches) * batch_size, seq_len)
    assert inputs.dtype == targets.dtype == np.int32
    counted = targets >= 0
    assert np.array_equal(targets[counted], np.arange(1, length))
    assert np.array_equal(inputs[counted], np.arange(length - 1))
    assert set(targets[~counted]) <= {-1}
    assert not inputs[~counted].any()


def test_a_few_evaluation_windows_are_evenly_spread_and_stay_the_same():
    def starts(windows: int) -> list[int]:
        batches = eval_windows(counting(1001), seq_len=10, batch_size=4, windows=windows)
        return [row[0] for inputs, targets in batches for row, target in zip(inputs, targets) if target[0] >= 0]

    assert starts(5) == starts(5) == [0, 200, 400, 600, 800]
    assert starts(100) == starts(0) == starts(1000) == list(range(0, 1000, 10))
    with pytest.raises(UserError, match=r"found 1 tokens, expected at least 2"):
        list(eval_windows(counting(1), seq_len=4, batch_size=1, windows=0))


@pytest.fixture
def folder(tmp_path):
    """A prepared folder of 5 and 3 tokens."""
    splits = {}
    for split, ids in (("train", [5, 6, 70000, 8, 0]), ("valid", [1, 2, 0])):
        np.array(ids, "<u4").tofile(tmp_path / f"{split}.bin")
        splits[split] = {"documents": 1, "tokens": len(ids), "bytes": 12, "unknown": 2}
    header = {"format": FORMAT, "dtype": "<u4", "tokenizer": "", "splits": splits}
    (tmp_path / HEADER).write_text(json.dumps(header))
    return tmp_path


def test_token_files_are_mapped(folder):
    tokens = Tokens.open(folder, "train")
    assert isinstance(tokens.ids, np.memmap)
    assert tokens.ids.tolist() == [5, 6, 70000, 8, 0]
    assert (len(tokens), tokens.documents, tokens.unknown, tokens.bytes_per_token) == (5, 1, 2, 2.4)
    assert Batches(tokens, seq_len=4, batch_size=2, seed=0).batch(0).max() == 70000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.bin", b"12345678", r"train.bin: found 8 bytes, expected 20; delete .*"),
        ("train.bin", None, r"train.bin: found 0 bytes, expected 20; delete"),
        (HEADER, b"{", r"meta.json: cannot be read as a header.*; delete"),
        (HEADER, None, r"meta.json: cannot be read as a header.*; delete"),
        (HEADER, b"[]", r"meta.json: is damaged .found list, expected fields.; delete"),
        (HEADER, b'{"format": 0}', r"meta.json: found format 0, expected 1; delete"),
        (HEADER, b'{"format": 1, "splits": {}}', r"meta.json: found no 'train'; delete"),
    ],
)
def test_a_damaged_folder_is_not_believed(folder, name, content, message):
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        Tokens.open(folder, "train")


def test_ids_take_as_few_bytes_as_they_need():
    assert (token_dtype(2**16).str, token_dtype(2**16 + 1).str) == ("<u2", "<u4")


def test_the_import_is_cheap():
    code = (
        "import sys, lmcore.data.batches; print({'tokenizers', 'rich', 'jax', 'torch', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_an_id_beyond_the_vocabulary_is_one_line_where_it_is_read(folder):
    tokens = Tokens.open(folder, "train", vocab_size=70001)
    assert tokens.read(slice(0, 5)).max() == 70000
    wrong = Tokens.open(folder, "train", vocab_size=70000)
    message = r"train.bin: found token id 70000, expected less than the vocabulary's 70000; the file is damaged"
    with pytest.raises(UserError, match=message):
        Batches(wrong, seq_len=4, batch_size=2, seed=0).batch(0)
    with pytest.raises(UserError, match=message):
        list(eval_windows(wrong, seq_len=4, batch_size=1, windows=0))


@pytest.mark.parametrize(
    "fields", [{"dtype": "O"}, {"dtype": "<f8"}, {"dtype": ["<u2"]}, {"tokens": -1}, {"tokens": 1e9}, {"bytes": None}]
)
def test_a_header_that_lies_is_refused(tmp_path, fields):
    counts = {"documents": 1, "tokens": 2, "bytes": 2, "unknown": 0}
    header = {"format": FORMAT, "dtype": "<u2", "tokenizer": "", "splits": {"train": counts}}
    (tmp_path / "train.bin").write_bytes(bytes(4))
    (tmp_path / HEADER).write_text(json.dumps(header))
    assert len(Tokens.open(tmp_path, "train")) == 2
    counts |= {name: value for name, value in fields.items() if name in counts}
    header |= {name: value for name, value in fields.items() if name in header}
    (tmp_path / HEADER).write_text(json.dumps(header))
    with pytest.raises(UserError, match=r"found .*, expected <u2 or <u4 and counts; delete "):
        Tokens.open(tmp_path, "train")
