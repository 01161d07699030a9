"""`python -m parity.growth`: how time and memory of an update grow with sequence, width, depth, batch and accumulation.

Each point is a fresh process of `parity.bench.worker`: time is the median of a few updates after two that warm up,
memory the peak that these hold above what was resident before the first (on CUDA, the most that tensors hold). An
exponent is the slope of a straight line through the logarithms: 1 is linear growth.
"""

import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.config import Config, ModelConfig, TrainConfig, cli
from lmcore.errors import UserError, command
from lmcore.files import check_folder

__all__ = ["AXES", "Point", "exponent", "main", "plot"]

BASE = Config(
    model=ModelConfig(vocab_size=512, dim=128, n_layers=2, n_heads=2, max_seq_len=256),
    train=TrainConfig(batch_size=4),
)
"""Small enough that the longest sequence takes seconds on two cores."""

AXES: dict[str, tuple[int, ...]] = {
    "sequence": (256, 512, 1024, 2048, 4096, 8192),
    "context": (2048, 4096, 8192, 16384, 32768),
    "window": (2048, 4096, 8192, 16384, 32768),
    "width": (64, 128, 256, 512, 1024),
    "depth": (1, 2, 4, 8, 16),
    "scanned": (1, 2, 4, 8, 16),
    "batch": (2, 4, 8, 16, 32),
    "accumulation": (1, 2, 4, 8, 16),
}
"""What is varied -> its values; `scanned` is depth with model.scan_layers, `window` a context with sliding windows."""
LONG = ("context", "window")
"""Axes that are measured only where they are named: an update of 32,768 tokens takes long."""
WINDOW = 256
"""Positions that each attends to on the axis `window`."""

IMPLEMENTATIONS = ("jaxlm", "torchlm", "torchlm-compiled")
UPDATES = 5


@dataclass(frozen=True, kw_only=True)
class Point:
    """One implementation at one size: a point of the curves."""

    axis: str
    value: int
    implementation: str
    seconds: float
    """Median of an update."""
    compile_seconds: float
    """First update less a later one."""
    bytes: int
    """Peak memory above what was resident before."""


def config_at(axis: str, value: int) -> Config:
    """The base config with one size changed."""
    model, train = BASE.model, BASE.train
    if axis == "window":
        model = replace(model, layer_types=["sliding"], sliding_window=WINDOW)
    if axis in ("sequence", "context", "window"):
        return Config(model=replace(model, max_seq_len=value), train=replace(train, batch_size=1, seq_len=value))
    if axis == "width":
        return replace(BASE, model=replace(model, dim=value, n_heads=value // 32, n_kv_heads=0, head_dim=0, ffn_dim=0))
    if axis in ("depth", "scanned"):
        return replace(BASE, model=replace(model, n_layers=value, scan_layers=axis == "scanned"))
    if axis == "batch":
        return replace(BASE, train=replace(train, batch_size=value))
    return replace(BASE, train=replace(train, batch_size=16, grad_accum=value))


def measure(axis: str, value: int, implementation: str, updates: int = UPDATES) -> Point:
    """Measure the time and memory of one point.

    Args:
        axis: one of `AXES`.
        value: size along it.
        implementation: one of `IMPLEMENTATIONS`.
        updates: timed after two that warm up.
    """
    from parity.bench.rounds import Options, started

    options = Options(rounds=1, turn_steps=1, batches=(), prompt_tokens=1, alone=True)
    with started([implementation], "train", config_at(axis, value), options) as (process,):
        first, _ = (process.ask("train", step=step, count=1)["seconds"] for step in (0, 1))
        process.ask("settle")
        seconds = [process.ask("train", step=2 + number, count=1)["seconds"] for number in range(updates)]
        peak = process.ask("memory")
        start = process.facts["start_bytes"]
    later = statistics.median(seconds)
    peak_bytes = peak["rss_bytes"] - start if peak["device_bytes"] is None else peak["device_bytes"]
    return Point(
        axis=axis,
        value=value,
        implementation=implementation,
        seconds=later,
        compile_seconds=max(0.0, first - later),
        bytes=max(peak_bytes, 1),
    )


def exponent(values: Sequence[float], measured: Sequence[float]) -> float:
    """Slope of the least-squares line through log(measured) over log(values)."""
    return float(np.polyfit(np.log(values), np.log(measured), 1)[0])


def plot(points: Sequence[Point], path: Path) -> None:
    """Draw time and memory over every axis, and compile time over depth, as a PNG."""
    from matplotlib.figure import Figure

    from lmcore.report.plots import save, style
    from parity.bench.page import COLOURS

    axes_of = list(dict.fromkeys(point.axis for point in points))
    rows = {"seconds": ("time of an update, s", 1.0), "bytes": ("memory, MB", 1e-6)}
    rows |= {"compile_seconds": ("compile time, s", 1.0)}
    figure = Figure(figsize=(3.4 * len(axes_of), 8), dpi=130, facecolor="white", layout="constrained")
    for row, (name, (label, scale)) in enumerate(rows.items()):
        for column, axis in enumerate(axes_of):
            axes = figure.add_subplot(len(rows), len(axes_of), row * len(axes_of) + column + 1)
            style(axes, f"{axis}: {label}", 9)
            for implementation, line in _lines(points, axis):
                x, y = [p.value for p in line], [max(getattr(p, name) * scale, 1e-3) for p in line]
                slope = "" if name == "compile_seconds" else f"  ^{exponent(x, y):.2f}"
                axes.loglog(
                    x, y, marker="o", markersize=3.5, color=COLOURS[implementation], label=implementation + slope
                )
            ticks = sorted({point.value for point in points if point.axis == axis})
            axes.set_xticks(ticks, [str(tick) for tick in ticks])
            axes.minorticks_off()
            axes.legend(fontsize=7, frameon=False)
    save(figure, path)


def _lines(points: Sequence[Point], axis: str) -> Iterator[tuple[str, list[Point]]]:
    for implementation in IMPLEMENTATIONS:
        line = [point for point in points if (point.axis, point.implementation) == (axis, implementation)]
        if line:
            yield implementation, line


def _print(points: Sequence[Point]) -> None:
    """Print a Markdown table, as in docs/benchmarks.md."""
    print("| over | implementation | time, s | exponent | memory, MB | exponent | compile, s |")
    print("|---|---|---|---|---|---|---|")
    for axis in dict.fromkeys(point.axis for point in points):
        for implementation, line in _lines(points, axis):
            x, first, last = [p.value for p in line], line[0], line[-1]
            time = f"{first.seconds:.3g} – {last.seconds:.3g} | {exponent(x, [p.seconds for p in line]):.2f}"
            memory = f"{first.bytes / 1e6:,.0f} – {last.bytes / 1e6:,.0f} | {exponent(x, [p.bytes for p in line]):.2f}"
            compiling = f"{first.compile_seconds:.1f} – {last.compile_seconds:.1f}"
            print(f"| {axis}, {x[0]} – {x[-1]} | {implementation} | {time} | {memory} | {compiling} |")


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure as the command line says."""
    args = cli.parse_arguments(_parser(), argv)
    for option, words, known in (("--axes", args.axes, AXES), ("--only", args.only, IMPLEMENTATIONS)):
        for word in words:
            if word not in known:
                raise UserError(f"{option}: found {word!r}, expected {', '.join(known)}")
    if args.most < 2:
        raise UserError(f"--most: found {args.most}, expected at least 2: a slope needs two points")
    out = Path(args.out)
    check_folder("--out", out)
    out.mkdir(parents=True, exist_ok=True)  # now, not after minutes
    points = []
    for axis in args.axes:
        for value in AXES[axis][: args.most]:
            for implementation in args.only:
                points.append(measure(axis, value, implementation))
                print(f"{axis} {value}, {implementation}: {points[-1].seconds:.3g} s", file=sys.stderr)
    _print(points)
    (out / "growth.json").write_text(json.dumps([asdict(point) for point in points], indent=1) + "\n")
    plot(points, out / "growth.png")
    print(f"written: {out / 'growth.json'} and .png")
    return 0


def _parser() -> Any:
    parser = cli.command_parser(
        "python -m parity.growth",
        "How time and memory of an update grow with the sizes of model and batch.",
        "[--axes AXIS ...] [--only IMPLEMENTATION ...] [--out FOLDER]",
    )
    short = [axis for axis in AXES if axis not in LONG]
    parser.add_argument("--axes", type=list[str], default=short, help=f"Any of {', '.join(AXES)}.")
    parser.add_argument(
        "--only", type=list[str], default=["jaxlm", "torchlm"], help=f"Any of {', '.join(IMPLEMENTATIONS)}."
    )
    parser.add_argument("--most", type=int, default=9, help="Only so many values of each, the smallest.")
    parser.add_argument("--out", type=str, default="runs/growth", help="Folder for growth.json and growth.png.")
    return parser
