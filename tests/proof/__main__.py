"""`python -m tests.proof`: plant faults in pairs of models, compare them, and the same pairs without a fault.

Prints a table in Markdown. Exit code 0: all faults were caught and named at the right place, and no equal pair
differed.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence

from parity import compare
from parity.ports.side import DType
from parity.report.report import Report
from tests.proof.mutants import MUTANTS, Mutant
from tests.proof.pairs import PAIRS, Pair

__all__ = ["compared", "main", "wrong"]

DTYPES: tuple[DType, ...] = ("float64", "float32", "bfloat16")


def compared(pair: Pair, **options: object) -> Report:
    """Compare a pair."""
    return compare(pair.jax, pair.torch, *pair.inputs, **pair.options, **options)


def wrong(mutant: Mutant, seed: int = 0) -> str:
    """Compare a pair with a fault; return what is wrong with the verdict, empty where it is right."""
    report = compared(PAIRS[mutant.pair](seed, 1, **mutant.options))
    failure = report.first_failure
    if failure is None:
        return "not caught"
    if mutant.place not in failure.first:
        return f"found first in {failure.first}, expected {mutant.place}"
    said = report.likely[0] if report.likely else ""
    if (mutant.cause not in said) if mutant.cause else bool(said):
        return f"named {said or 'nothing'!r}, expected {mutant.cause or 'nothing'!r}"
    return ""


def planted(pairs: Sequence[str], seeds: int) -> Iterator[tuple[str, str]]:
    """Yield the pair and the verdict of each fault."""
    for mutant in MUTANTS:
        for seed in range(seeds) if mutant.pair in pairs else ():
            if found := wrong(mutant, seed):
                print(f"wrong: {mutant.pair}, seed {seed}: {mutant.fault}: {found}", file=sys.stderr, flush=True)
            yield mutant.pair, found


def equal(pairs: Sequence[str], seeds: int) -> Iterator[tuple[str, str]]:
    """Yield the pair and the verdict of each comparison of equal models."""
    for name in pairs:
        for seed in range(2 * seeds):
            for dtype in DTYPES:
                report = compared(PAIRS[name](seed, 1 + seed % 2), dtype=dtype)
                if not report:
                    print(f"false alarm: {name}, seed {seed}, {dtype}:\n{report}", file=sys.stderr, flush=True)
                yield name, "" if report else "false alarm"


def main(argv: Sequence[str] | None = None) -> int:
    """Compare all pairs, and print the table."""
    parser = argparse.ArgumentParser("python -m tests.proof", description=__doc__)
    parser.add_argument("pairs", nargs="*", metavar="PAIR", help=f"Any of {', '.join(PAIRS)}; all without.")
    parser.add_argument("--seeds", type=int, default=1, help="Multiplies the number of comparisons.")
    args = parser.parse_args(argv)
    if unknown := set(args.pairs) - set(PAIRS):
        parser.error(f"found {', '.join(sorted(unknown))}, expected any of {', '.join(PAIRS)}")
    print("| pair | faults | caught and named | equal models | false alarms | seconds |\n|---|---|---|---|---|---|")
    totals = [0, 0, 0, 0]
    for name in args.pairs or PAIRS:
        begin = time.monotonic()
        faults, same = list(planted([name], args.seeds)), list(equal([name], args.seeds))
        counts = [len(faults), sum(not w for _, w in faults), len(same), sum(bool(w) for _, w in same)]
        totals = [total + count for total, count in zip(totals, counts, strict=True)]
        print(f"| {name} | {' | '.join(map(str, counts))} | {time.monotonic() - begin:.0f} |", flush=True)
    print(f"| all | {' | '.join(map(str, totals))} | |")
    return int(totals[0] != totals[1] or totals[3] > 0)


if __name__ == "__main__":
    sys.exit(main())
