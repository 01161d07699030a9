"""A benchmark as a plot, and as one web page that stands alone."""

import html
from pathlib import Path

from lmcore.report.html import card, facts_list, table
from lmcore.report.html import page as html_page
from lmcore.report.plots import BLUE, ORANGE, save, style
from parity.bench.report import Measure, Report, cells, number, title

__all__ = ["page", "plot"]

COLOURS = {"jaxlm": BLUE, "torchlm": ORANGE, "torchlm-compiled": "#f0a868"}
"""Of the implementations; every other is grey."""
GREY = "#9aa5b4"
_INK = "#1f2328"

STYLE = """
.bars { display: grid; grid-template-columns: max-content minmax(0, 1fr) max-content; gap: 7px 14px;
  align-items: center; margin-bottom: 10px; font-size: 13px; }
.bars i { display: block; height: 13px; border-radius: 4px; background: var(--grey); min-width: 3px; }
.bars b { font-weight: 600; text-align: right; font-variant-numeric: tabular-nums; }
.bars .jaxlm { background: var(--blue); } .bars .torchlm, .bars .torchlm-compiled { background: var(--orange); }
.bars .torchlm-compiled { opacity: .6; }
@media (max-width: 640px) { .bars { grid-template-columns: minmax(0, 1fr) max-content; grid-auto-flow: dense;
  gap: 3px 14px; } .bars i { grid-column: 1 / -1; margin-bottom: 9px; } }
"""

LEAD = (
    "Medians over rounds in which the implementations take turns on the same machine, with the same weights and "
    "batches, and the interquartile range of the samples. Ratios are medians of each round's ratio. FLOP/s count 6 per "
    "weight and token, and causal attention. Share of matmul peak is that over the rate of a bare matmul in the same "
    "round; MFU is that over the vendor's dense 16-bit peak."
)


def plot(report: Report, path: Path) -> None:
    """Draw the medians of each group as bars, a line at their ends for the interquartile range, and write a PNG."""
    from matplotlib.figure import Figure

    groups = report.groups()
    columns = min(2, len(groups))
    lengths = [max(map(len, groups[at : at + columns])) for at in range(0, len(groups), columns)]
    heights = [0.7 + 0.34 * length for length in lengths]
    figure = Figure(figsize=(6.3 * columns, sum(heights)), dpi=150, facecolor="white", layout="constrained")
    grid = figure.add_gridspec(len(lengths), columns, height_ratios=heights)
    for index, group in enumerate(groups):
        row, column = divmod(index, columns)
        axes = figure.add_subplot(grid[row, column])
        style(axes, f"{title(group)} ({group[0].unit})", 10)
        base = report.base(group)
        longest = max(measure.quartiles[1] for measure in group)
        for place, measure in enumerate(group):
            low, high = measure.quartiles
            axes.barh(place, measure.median, height=0.68, color=COLOURS.get(measure.implementation, GREY))
            axes.plot([low, high], [place, place], color=_INK, linewidth=1.2, solid_capstyle="butt")
            label = f" {number(measure.median)}" + ("" if measure is base else f"  × {measure.speed(base):.2f}")
            axes.text(max(high, measure.median), place, label, va="center", fontsize=8.5, color=_INK)
        axes.set_yticks(range(len(group)), [measure.implementation for measure in group])
        axes.set(xlim=(0, longest * 1.3), ylim=(lengths[row] - 0.4, -0.6), xticks=[])
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
    save(figure, path)


def page(report: Report) -> str:
    """Return the whole page: bars and a table for each group, then the command, the machine and the versions."""
    parts = [
        '<p class="kicker">parity · JAX beside PyTorch</p><h1>Benchmark</h1>',
        f'<p class="lead">{html.escape(LEAD)}</p>',
        *(_group(report, group) for group in report.groups()),
        f"<h2>Setup</h2>{facts_list(report.facts)}",
        "<footer>Written by python -m parity.bench</footer>",
    ]
    return html_page("parity: benchmark", parts, style=STYLE)


def _group(report: Report, group: list[Measure]) -> str:
    rows = cells(report, group)
    headings = list(rows[0])
    longest = max(measure.median for measure in group)
    bars = "".join(_bar(measure, longest) for measure in group)
    measures = table(headings, [[row[name] for name in headings] for row in rows])
    return f"<h2>{html.escape(title(group))}</h2>{card(f'<div class=bars>{bars}</div>{measures}')}"


def _bar(measure: Measure, longest: float) -> str:
    name, value = html.escape(measure.implementation), f"{number(measure.median)} {html.escape(measure.unit)}"
    width = f"{measure.median / longest:.1%}"
    return f'<span>{name}</span><i class="{name}" style="width:{width}"></i><b>{value}</b>'
