"""How fast text becomes tokens, and tokens become batches: `python benchmarks/prepare.py --data.files FILE`.

Tokens: one `prepare` (hash, read, encode, convert, write, flush to disk) against the `tokenizers` library's own
`encode_batch` on the same documents, already in memory, on the same cores; also against `encode_batch_fast` of all, and
of 1000 at a time with the ids taken out, which is the best that can be had of it. Batches: the shuffle of
`lmcore.tokens` against others, by the time to order an epoch, to draw a batch at a random step, and by memory. Medians
of repeats that take turns, so that a busy moment hits all alike; processor seconds too, which neighbours disturb less.
"""

import argparse
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lmcore.config import Config, DataConfig, TokenizerConfig
from lmcore.corpus import open_corpora
from lmcore.prepare import prepare
from lmcore.tokenizer import train
from lmcore.tokens import Batches, Tokens


def medians(repeats: int, **functions: Callable[[], object]) -> dict[str, tuple[float, float]]:
    """Median (seconds, processor seconds over all cores) of each function; they take turns."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start, busy = time.perf_counter(), time.process_time()
            function()
            measured[name].append((time.perf_counter() - start, time.process_time() - busy))
    return {
        name: (statistics.median(wall for wall, _ in values), statistics.median(cpu for _, cpu in values))
        for name, values in measured.items()
    }


def tokens(files: list[str], vocab_size: int, repeats: int) -> None:
    """Compare `prepare` with the library."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "tokenizer.json"
        pieces = [piece.text for corpus in open_corpora(DataConfig(files=files)) for piece in corpus]
        tokenizer = train(TokenizerConfig(vocab_size=vocab_size), pieces)
        tokenizer.save(made)
        megabytes = sum(len(text.encode()) for text in pieces) / 1e6

        def ours() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as fresh:
                data = DataConfig(files=files, dir=fresh)
                prepare(Config(data=data, tokenizer=TokenizerConfig(kind="file", file=str(made))), lambda line: None)

        seconds = medians(
            repeats,
            encode_batch=lambda: tokenizer.inner.encode_batch(pieces, add_special_tokens=False),
            encode_batch_fast=lambda: tokenizer.inner.encode_batch_fast(pieces, add_special_tokens=False),
            in_batches=lambda: [tokenizer.encode_batch(pieces[i : i + 1000]) for i in range(0, len(pieces), 1000)],
            prepare=ours,
        )
    print(f"{megabytes:.1f} MB, {len(pieces)} pieces, {tokenizer.vocab_size} ids, {os.cpu_count()} cores")
    for name, (wall, cpu) in seconds.items():
        share = seconds["encode_batch"][0] / wall
        print(f"  {name:18} {megabytes / wall:6.2f} MB/s  {share:5.2f} of encode_batch  {cpu:6.2f} processor seconds")


def permutation(seed: int, epoch: int, windows: int) -> np.ndarray:
    """NumPy's own shuffle: faster, but its order may change with NumPy's version."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch]))).permutation(windows)


def sorted_draws(seed: int, epoch: int, windows: int) -> np.ndarray:
    """The shuffle of `lmcore.tokens`."""
    return np.argsort(np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(windows), kind="stable")


def feistel(places: np.ndarray, seed: int, epoch: int, windows: int) -> np.ndarray:
    """A keyed bijection of [0, windows) that needs no memory: four Feistel rounds, walked until inside the range."""
    half = max((windows - 1).bit_length() + 1, 2) // 2
    mask = np.uint64((1 << half) - 1)
    keys = np.random.SeedSequence([seed, epoch]).generate_state(4, np.uint64)

    def rounds(x: np.ndarray) -> np.ndarray:
        left, right = x >> np.uint64(half), x & mask
        for key in keys:
            mixed = (right + key) * np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(32))) & mask)
        return (left << np.uint64(half)) | right

    out = rounds(places.astype(np.uint64))
    while (outside := out >= windows).any():
        out[outside] = rounds(out[outside])
    return out.astype(np.int64)


def batches(windows: int, repeats: int, seq_len: int = 256, batch_size: int = 16) -> None:
    """Compare shuffles on `windows` windows."""
    some = np.arange(batch_size)
    assert len(set(feistel(np.arange(1000), 0, 0, 1000).tolist())) == 1000
    shuffles: dict[str, Callable[[], object]] = {
        "lmcore (sorted draws)": lambda: sorted_draws(0, 1, windows),
        "Generator.permutation": lambda: permutation(0, 1, windows),
        "Feistel, one batch": lambda: feistel(some, 0, 1, windows),
    }
    print(f"{windows:,} windows of {seq_len} tokens")
    for name, (value, _) in medians(repeats, **shuffles).items():
        tracemalloc.start()
        kept = shuffles[name]()
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        del kept
        print(f"  {name:22} {value * 1e3:9.3f} ms  {peak:8.1f} MB at most")
    with tempfile.TemporaryFile() as file:
        file.truncate(windows * seq_len * 2)
        ids = np.memmap(file, np.uint16, mode="r")
        drawn = Batches(
            Tokens(ids=ids, documents=1, bytes=1, unknown=0), seq_len=seq_len, batch_size=batch_size, seed=0
        )
        steps = iter(np.random.default_rng(0).integers(windows // batch_size, size=1000 * repeats).tolist())
        first = medians(1, first=lambda: drawn.batch(10**6))["first"][0]
        drawn.batch(0)
        later = medians(100 * repeats, later=lambda: drawn.batch(next(steps)))["later"][0]
    print(f"  batch(1000000) at once {first * 1e3:9.3f} ms")
    print(f"  batch(random step)     {later * 1e3:9.3f} ms, {batch_size} x {seq_len}, order known")


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data.files", dest="files", nargs="+", help="text to encode")
    parser.add_argument("--vocab_size", type=int, default=4096)
    parser.add_argument("--windows", type=int, default=4_000_000, help="4 million: a billion tokens")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.files:
        tokens(arguments.files, arguments.vocab_size, arguments.repeats)
    batches(arguments.windows, arguments.repeats)


if __name__ == "__main__":
    main()
