"""How fast tokens become batches: the shuffle of `lmcore.data.batches` beside others, `python benchmarks/shuffle.py`.

By the time to order an epoch, to draw a batch at a random step, and by memory. Medians of repeats that take turns.
"""

import argparse
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from lmcore.data.batches import Batches, Tokens


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


def permutation(seed: int, epoch: int, windows: int) -> np.ndarray:
    """NumPy's own shuffle: faster, but its order may change with NumPy's version."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch]))).permutation(windows)


def sorted_draws(seed: int, epoch: int, windows: int) -> np.ndarray:
    """The shuffle of `lmcore.data.batches`."""
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
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--windows", type=int, default=4_000_000, help="4 million: a billion tokens")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    batches(arguments.windows, arguments.repeats)


if __name__ == "__main__":
    main()
