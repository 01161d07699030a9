"""`python -m tests.torture [PART ...] [--scale S]`: inject faults into real runs, and tabulate what became of them.

Exit code 0: nothing was lost. 1: something was, and is listed.
"""

import argparse
import importlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.torture.outcome import Outcome

__all__ = ["PARTS", "main"]

PARTS = {
    "kills": 100,
    "disk": 24,
    "damage": 500,
    "numbers": 24,
    "locks": 20,
    "inputs": 300,
    "hostile": 120,
    "soak": 2,
    "signals": 49,
}
"""Module -> number of faults; each has `faults(count, folder)`, which yields an `Outcome` for each."""


def inject(part: str, count: int) -> list[Outcome]:
    """Inject the faults of one part, in a folder of its own; say on stderr what was lost."""
    faults = importlib.import_module(f"tests.torture.{part}").faults
    outcomes = []
    with tempfile.TemporaryDirectory(prefix=f"torture-{part}-") as folder:
        for outcome in faults(count, Path(folder)):
            outcomes.append(outcome)
            if outcome.verdict == "lost":
                print(f"lost: {part}: {outcome.fault}: {outcome.detail}", file=sys.stderr, flush=True)
    return outcomes


def main(argv: Sequence[str] | None = None) -> int:
    """Inject all faults, and print the table in Markdown."""
    parser = argparse.ArgumentParser("python -m tests.torture", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"Any of {', '.join(PARTS)}; all without.")
    parser.add_argument("--scale", type=float, default=1.0, help="Multiplies the number of faults.")
    args = parser.parse_args(argv)
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"found {', '.join(sorted(unknown))}, expected any of {', '.join(PARTS)}")
    lost = 0
    print(
        "| faults | injected | survived | refused in one line | lost | minutes |\n|---|---|---|---|---|---|", flush=True
    )
    for part in args.parts or PARTS:
        begin = time.monotonic()
        counts = Counter(outcome.verdict for outcome in inject(part, max(1, round(args.scale * PARTS[part]))))
        lost += counts["lost"]
        minutes = (time.monotonic() - begin) / 60
        cells = counts.total(), counts["survived"], counts["refused"], counts["lost"], f"{minutes:.1f}"
        print(f"| {part} | {' | '.join(map(str, cells))} |", flush=True)
    print(f"\nlost: {lost}")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
