"""Timings of whole commands: how soon they begin, and how fast text becomes tokens."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from lmcore.config import Config, TokenizerConfig
from lmcore.data.prepare import prepare
from lmcore.data.sources import open_corpora
from lmcore.data.tokenizer import train
from lmcore.errors import UserError
from parity.bench.report import Measure
from parity.bench.rounds import Options

__all__ = ["preparation", "startup"]

QUIET = ("--eval.every=0", "--eval.windows=1", "--checkpoint.every=0", "--sample.every=0", "--sample.max_tokens=1")
"""What keeps `train` to its steps."""


def startup(implementations: Sequence[str], options: Options) -> list[Measure]:
    """Seconds to `--help` and to the quickstart's first step, with nothing cached and with all cached.

    Raises:
        RuntimeError: a command ended before it had begun.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        fresh = (root / str(number) for number in range(10_000))

        def first_step(implementation: str, place: Path) -> float:
            argv = [f"{implementation}.train", f"--run_dir={next(fresh)}", f"--data.dir={place}", *QUIET]
            caches = {"XDG_CACHE_HOME": str(place), "TORCHINDUCTOR_CACHE_DIR": str(place / "torch")}
            return _seconds_to("step", argv, caches)

        for implementation in implementations:
            options.say(f"filling the caches of {implementation}")
            first_step(implementation, root / f"{implementation}-warm")
        timings: dict[str, Callable[[str], float]] = {
            "--help": lambda implementation: _seconds_to("usage", [f"{implementation}.train", "--help"], {}),
            "first step, nothing cached": lambda implementation: first_step(implementation, next(fresh)),
            "first step, all cached": lambda implementation: first_step(
                implementation, root / f"{implementation}-warm"
            ),
        }
        taken: dict[tuple[str, str], list[float]] = {}
        for number in range(options.rounds):
            for what, timing in timings.items():
                for implementation in implementations:
                    options.say(f"round {number + 1} of {options.rounds}: {implementation}, {what}")
                    taken.setdefault((what, implementation), []).append(timing(implementation))
    return [
        Measure(mode="startup", dtype="", implementation=implementation, what=what, unit="s", amount=1, seconds=seconds)
        for (what, implementation), seconds in taken.items()
    ]


def _seconds_to(line: str, argv: Sequence[str], environment: dict[str, str]) -> float:
    """Seconds from starting a module to its first line of output that begins with `line`."""
    begin = time.perf_counter()
    command = [sys.executable, "-u", "-m", *argv]
    with subprocess.Popen(command, env=os.environ | environment, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        found = next((time.perf_counter() - begin for text in process.stdout if text.startswith(line)), None)
        process.kill()
    if found is None:
        raise RuntimeError(f"{' '.join(argv)} ended without a line {line!r}")
    return found


def preparation(config: Config, options: Options) -> list[Measure]:
    """Megabytes of text a second through `prepare` (hash, read, encode, write, flush) and through `tokenizers` alone.

    The library gets the same documents, already in memory, by its `encode_batch`, and by the faster
    `encode_batch_fast`; the tokenizer is trained on the text first. Without `data.files`, the embedded stories.

    Raises:
        UserError: the text cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "tokenizer.json"
        options.say("training a tokenizer")
        pieces = [piece.text for corpus in open_corpora(config.data) for piece in corpus]
        if not pieces:
            raise UserError(f"data.files: found no text in {config.data.files}, expected some to prepare")
        size = config.model.vocab_size
        tokenizer = train(replace(config.tokenizer, vocab_size=size), pieces)
        tokenizer.save(made)

        def ours() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as fresh:
                data = replace(config.data, dir=fresh)
                file = TokenizerConfig(kind="file", file=str(made), eot_token=config.tokenizer.eot_token)
                prepare(Config(data=data, tokenizer=file), lambda line: None)

        implementations: dict[str, Callable[[], object]] = {
            "prepare": ours,
            "encode_batch": lambda: tokenizer.inner.encode_batch(pieces, add_special_tokens=False),
            "encode_batch_fast": lambda: tokenizer.inner.encode_batch_fast(pieces, add_special_tokens=False),
        }
        taken: dict[str, list[tuple[float, float]]] = {implementation: [] for implementation in implementations}
        for number in range(-1, options.rounds):
            for implementation, function in implementations.items():
                options.say(f"round {number + 1} of {options.rounds}: {implementation}")
                begin, busy = time.perf_counter(), time.process_time()
                function()
                if number >= 0:  # the first warms up
                    taken[implementation].append((time.perf_counter() - begin, time.process_time() - busy))
    megabytes = sum(len(text.encode()) for text in pieces) / 1e6
    return [
        Measure(
            mode="prepare",
            dtype="",
            implementation=implementation,
            what=f"text to tokens, {megabytes:.1f} MB in {len(pieces):,} pieces",
            unit="MB/s",
            amount=megabytes,
            seconds=[wall for wall, _ in both],
            cpu_seconds=[cpu for _, cpu in both],
        )
        for implementation, both in taken.items()
    ]
