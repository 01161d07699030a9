"""Read token files, and draw training and evaluation batches from them.

A prepared folder holds `train.bin` and `valid.bin` (raw little-endian token ids, each document followed by
end-of-text) and `meta.json`, a header with the checksums of all files, which is written last. A batch is a pure
function of (seed, step), so a run resumes from one integer and both twins see the same tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, Integer

from lmcore.data.marks import BEGINS, document_begins, target_ids, token_ids
from lmcore.errors import UserError, shown
from lmcore.files import Damaged, check_seal
from lmcore.parsing import MAX_JSON_BYTES, parse_json, read_text

__all__ = ["FORMAT", "HEADER", "SPLITS", "Batches", "Tokens", "eval_windows", "read_header", "token_dtype"]

FORMAT = 1
"""Version of the folder's layout and of how text is split and encoded; a folder of another version is not reused."""
HEADER = "meta.json"
SPLITS = ("train", "valid")


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the smallest dtype that holds every token id: little-endian uint16, or uint32 above 65,536 ids."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def read_header(folder: Path) -> dict[str, Any]:
    """Read the `meta.json` of a prepared folder or of a run.

    Raises:
        UserError: the header is missing, damaged, or of another format.
    """
    path = folder / HEADER
    is_run = (folder / "config.yaml").exists()
    hint = "restore it from the prepared text in data.dir" if is_run else f"delete {folder} to prepare it again"
    try:
        header = parse_json(read_text(path, MAX_JSON_BYTES))
        check_seal(path, header, mark="files")
        version = header["format"]
    except Damaged as error:
        raise Damaged(f"{error}; {hint}") from error
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise Damaged(f"{path}: cannot be read as a header of token files ({error}); {hint}") from error
    if version != FORMAT:
        raise UserError(f"{path}: found format {version!r}, expected {FORMAT}; {hint}")
    return header


@dataclass(frozen=True, kw_only=True, eq=False)
class Tokens:
    """One split of a prepared folder, memory-mapped, so that only what is read takes memory."""

    ids: Integer[np.ndarray, " tokens"]
    """Token ids, uint16 or uint32."""
    documents: int
    """Number of documents, each ended by end-of-text; a single document split in two counts in both splits."""
    bytes: int
    """Number of UTF-8 bytes of the text."""
    unknown: int
    """Number of unknown tokens, which stand for text that the vocabulary lacks."""
    prefix: tuple[int, ...] = ()
    """Ids that begin each document: the model reads them as input, but evaluation leaves them out of the targets."""
    vocab_size: int = 2**32
    """Upper bound of the ids; `read` raises for an id that is not less than this."""
    eot_id: int | None = None
    """Id of end-of-text, where `read` is to mark the beginnings of documents by it."""
    targets: int | None = None
    """Number of tokens that count in the loss, where the ids have marks already, as those of conversations do."""
    path: Path = Path()
    """The file, for error messages."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text for each token to predict; end-of-text counts as a token of no bytes."""
        return self.bytes / (self.targets or len(self.ids) - len(self.prefix) * self.documents)

    def read(self, where: slice | np.ndarray) -> Int32[np.ndarray, "..."]:
        """Return the token ids at the given positions as int32, with their marks where the documents are masked.

        Raises:
            UserError: an id is not in the vocabulary.
        """
        ids = self.ids[where]
        largest = int((ids if self.targets is None else token_ids(ids)).max()) if ids.size else 0
        if largest >= self.vocab_size:
            raise UserError(
                f"{self.path}: found token id {largest}, expected less than the vocabulary's {self.vocab_size}; "
                f"the file is damaged: delete {self.path.parent}"
            )
        ids = ids.astype(np.int32)
        if self.eot_id is not None:
            ids[document_begins(ids, self.eot_id, bool(self.prefix))] |= BEGINS
        return ids

    @classmethod
    def open(cls, folder: Path, split: str, vocab_size: int = 2**32) -> "Tokens":
        """Memory-map one split of a prepared folder.

        Args:
            folder: prepared folder.
            split: "train" or "valid".
            vocab_size: upper bound of the ids.

        Raises:
            UserError: the file is missing, or its size differs from what the header says.
        """
        header = read_header(folder)
        path = folder / f"{split}.bin"
        try:
            counts = header["splits"][split]
            name, tokens = header["dtype"], counts["tokens"]
            fields = {name: counts[name] for name in ("documents", "bytes", "unknown")}
            fields |= {name: counts[name] for name in ("targets",) if name in counts}  # of conversations
        except (KeyError, TypeError) as error:
            raise UserError(f"{folder / HEADER}: found no {error}; delete {folder}") from error
        if name not in ("<u2", "<u4") or not all(type(n) is int and n >= 0 for n in (tokens, *fields.values())):
            found = f"found {shown(name)} and {shown(counts)}, expected <u2 or <u4 and counts"
            raise UserError(f"{folder / HEADER}: {found}; delete {folder}")
        dtype = np.dtype(name)
        size = path.stat().st_size if path.exists() else 0
        expected = tokens * dtype.itemsize
        if size != expected or expected == 0:
            raise UserError(f"{path}: found {size} bytes, expected {expected}; delete {folder}")
        return cls(ids=np.memmap(path, dtype, mode="r"), vocab_size=vocab_size, path=path, **fields)


class Batches:
    """Training batches; `batch(step)` is a pure function of the constructor's arguments and of `step`.

    In each epoch the text is treated as a ring, which is split from a random offset on into windows of `seq_len` + 1
    tokens that overlap by one. Every token is thus a target once, except for fewer than `seq_len` tokens before the
    offset. The windows are then shuffled. Epochs follow without a gap: one batch may hold the end of one epoch and the
    start of the next.

    The shuffle sorts the raw output of a counter-based generator, which is the same in every NumPy version
    (`Generator.permutation` makes no such promise). The orders of the current and of the adjacent epoch are cached:
    16 bytes per window, 32 MB for a billion tokens at `seq_len` 512. `benchmarks/shuffle.py` compares alternatives.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        seq_len: int,
        batch_size: int,
        seed: int,
        shard: tuple[int, int] = (0, 1),
        micro_batches: int = 1,
    ):
        """Set up batches of `tokens`.

        Args:
            tokens: training text.
            seq_len: targets per sequence, T.
            batch_size: sequences of the whole batch, B, over all shards.
            seed: seed of the epochs' offsets and shuffles.
            shard: (index, count): this process takes the index-th of `count` equal, contiguous parts of each
                micro-batch.
            micro_batches: equal, contiguous parts of the batch that are computed one after the other.

        Raises:
            UserError: the text is shorter than one window, or a micro-batch cannot be split evenly.
        """
        self._tokens, self._seq_len = tokens, seq_len
        self.windows = self._count()
        """Number of windows in one epoch."""
        index, count = shard
        if batch_size % (count * micro_batches):
            times = f" times train.grad_accum = {micro_batches}" if micro_batches > 1 else ""
            raise UserError(
                f"train.batch_size: found {batch_size}, expected a multiple of the {count} processes{times}"
            )
        rows = batch_size // count // micro_batches
        self._rows = ((np.arange(micro_batches)[:, None] * count + index) * rows + np.arange(rows)).ravel()
        self._batch_size = batch_size
        self._seed = seed
        self._orders: dict[int, np.ndarray] = {}

    def batch(self, step: int) -> Int32[np.ndarray, "rows T1"]:
        """Return the sequences of batch `step` (the first is 0): [:, :-1] are the inputs, [:, 1:] the targets."""
        epochs, positions = np.divmod(step * self._batch_size + self._rows, self.windows)
        starts = np.empty_like(positions)
        for epoch in np.unique(epochs).tolist():
            in_epoch = epochs == epoch
            starts[in_epoch] = self._starts(epoch)[positions[in_epoch]]
        return self._read(starts)

    def _count(self) -> int:
        """Return the number of windows in one epoch."""
        if len(self._tokens) <= self._seq_len:
            raise UserError(
                f"train.seq_len: found {self._seq_len}, expected less than the {len(self._tokens)} tokens of the "
                "training text; set a smaller train.seq_len or provide more text"
            )
        return len(self._tokens) // self._seq_len

    def _read(self, starts: np.ndarray) -> Int32[np.ndarray, "rows T1"]:
        """Return the windows that begin at these positions."""
        return self._tokens.read((starts[:, None] + np.arange(self._seq_len + 1)) % len(self._tokens))

    def _starts(self, epoch: int) -> np.ndarray:
        """Return the index of each window's first token, in the shuffled order of an epoch."""
        order = self._orders.get(epoch)
        if order is None:
            # The first draw gives the offset; the order of the others is the shuffle.
            draws = np.random.Philox(np.random.SeedSequence([self._seed, epoch])).random_raw(1 + self.windows)
            order = self._place(np.argsort(draws[1:], kind="stable"), int(draws[0] % len(self._tokens)))
            self._orders = {e: o for e, o in self._orders.items() if abs(e - epoch) == 1} | {epoch: order}
        return order

    def _place(self, order: np.ndarray, offset: int) -> np.ndarray:
        """Return the index of the first token of windows, given their numbers, which may be changed."""
        order *= self._seq_len  # in place: for a billion tokens every copy is 16 MB
        order += offset
        return order


def eval_windows(
    tokens: Tokens, *, seq_len: int, batch_size: int, windows: int
) -> Iterator[tuple[Int32[np.ndarray, "B T"], Int32[np.ndarray, "B T"]]]:
    """Yield (inputs, targets) of a fixed set of windows, evenly spaced over the text.

    The last window and the last batch are padded with input 0 and target -1, which the loss ignores. Targets that
    belong to the prefix of a document are -1 too.

    Args:
        tokens: validation text.
        seq_len: targets per sequence, T.
        batch_size: sequences per batch, B; the last batch is padded with empty sequences.
        windows: number of windows; 0, or more than there are, takes all, and then every token but the first is a
            target exactly once.

    Raises:
        UserError: the text has fewer than two tokens.
    """
    total = -(-(len(tokens) - 1) // seq_len)
    if total < 1:
        raise UserError(f"validation text: found {len(tokens)} tokens, expected at least 2; provide more text")
    count = min(windows or total, total)
    for begin in range(0, count, batch_size):
        inputs = np.zeros((batch_size, seq_len), np.int32)
        targets = np.full((batch_size, seq_len), -1, np.int32)
        for row, window in enumerate(range(begin, min(begin + batch_size, count))):
            start = window * total // count * seq_len
            ids = tokens.read(slice(start, start + seq_len + 1))
            inputs[row, : len(ids) - 1] = ids[:-1]
            targets[row, : len(ids) - 1] = target_ids(ids[1:])
        targets[np.isin(targets, tokens.prefix)] = -1
        yield inputs, targets
