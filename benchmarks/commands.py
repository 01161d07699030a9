"""Times the commands as a user runs them: `python benchmarks/commands.py [--package torchlm] [--repeats 3]`.

Start: seconds to `--help` and to the quickstart's first step, with nothing cached and with everything cached. Speed:
the rates that `train` and `generate` print for the reference model (width 288, 6 layers, 6 heads, feed-forward 768;
batch 16 × 256 with vocabulary 4096 to train, vocabulary 32000 to generate 250 tokens). Medians over the repeats.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SHAPE = ["--model.dim=288", "--model.n_layers=6", "--model.n_heads=6", "--model.ffn_dim=768"]
QUIET = ["--eval.every=0", "--eval.windows=1", "--checkpoint.every=0", "--sample.every=0", "--sample.max_tokens=1"]


def command(package: str, name: str, *options: str) -> list[str]:
    return [sys.executable, "-u", "-m", f"{package}.{name}", *options]


def seconds_to(line: str, argv: list[str], environment: dict[str, str]) -> float:
    """Seconds from starting a program to its first line of output that begins with `line`."""
    begin = time.monotonic()
    with subprocess.Popen(argv, env=environment, text=True, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        found = next((time.monotonic() - begin for text in process.stdout if text.startswith(line)), None)
        process.kill()
    if found is None:
        raise SystemExit(f"{' '.join(argv)} ended without a line {line!r}")
    return found


def printed(pattern: str, argv: list[str]) -> float:
    """The number that a program's output holds where `pattern` says."""
    done = subprocess.run(argv, text=True, capture_output=True, check=True)
    match = re.search(pattern, done.stdout + done.stderr)
    assert match, done.stdout + done.stderr
    return float(match.group(1).replace(",", ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", default="jaxlm", choices=["jaxlm", "torchlm"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--train", nargs="*", default=[], help="further options of train, such as train.precision=bfloat16"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        fresh = iter(root / str(number) for number in range(10_000))

        def train(data: Path, *options: str) -> list[str]:
            return command(args.package, "train", f"--run_dir={next(fresh)}", f"--data.dir={data}", *QUIET, *options)

        def first_step(place: Path) -> float:
            return seconds_to("step", train(place), {**os.environ, "XDG_CACHE_HOME": str(place)})

        def rate() -> float:
            size = ("--tokenizer.vocab_size=4096", "--model.vocab_size=4096", "--train.batch_size=16")
            more = [f"--{option}" for option in args.train]
            argv = train(root, *SHAPE, *size, "--train.steps=41", "--log.every=5", *more)
            return printed(r"tokens per second +([\d,]+)", argv)

        writer = next(fresh)
        large = ("--model.vocab_size=32000", "--model.max_seq_len=512")
        model = [*SHAPE, *large, "--train.steps=1", "--train.batch_size=2", f"--data.dir={root}", *QUIET]
        subprocess.run(command(args.package, "train", f"--run_dir={writer}", *model), check=True, capture_output=True)
        generate = command(args.package, "generate", str(writer), "--max_tokens=250", "--temperature=1")
        first_step(root / "warm")
        measures: dict[str, Callable[[], float]] = {
            "--help, s": lambda: seconds_to("usage", command(args.package, "train", "--help"), dict(os.environ)),
            "first step of the quickstart, nothing cached, s": lambda: first_step(next(fresh)),
            "first step of the quickstart, all cached, s": lambda: first_step(root / "warm"),
            "training, tokens/s": rate,
            "generation, batch 1, tokens/s": lambda: printed(r"then ([\d,]+) tokens/s", generate),
        }
        for name, measure in measures.items():
            found = sorted(measure() for _ in range(args.repeats))
            spread = f"{found[0]:,.2f} to {found[-1]:,.2f}"
            print(f"{name:50}  {statistics.median(found):>10,.2f}  ({spread})", flush=True)


if __name__ == "__main__":
    main()
