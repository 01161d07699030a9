"""A benchmark as a picture, and as one web page that stands alone."""

import html
from pathlib import Path

from lmcore.report.html import TABLE_STYLE, table
from lmcore.report.plots import BLUE, ORANGE, save, style
from parity.bench.report import Measure, Report, cells, number, title
from parity.report.page import STYLE

__all__ = ["page", "plot"]

COLOURS = {"jaxlm": BLUE, "torchlm": ORANGE, "torchlm-compiled": "#f0a868"}
"""Of the sides; every other is grey."""
GREY = "#9aa5b4"

BARS = """
main { max-width: 1320px; }
.bars { display: grid; grid-template-columns: max-content minmax(0, 1fr) max-content; gap: 7px 14px;
  align-items: center; padding: 14px 0 10px; font-size: 13px; }
.bars i { display: block; height: 13px; border-radius: 4px; background: #9aa5b4; min-width: 2px; }
.bars b { font-weight: 600; text-align: right; font-variant-numeric: tabular-nums; }
.bars .jaxlm { background: var(--jax); } .bars .torchlm, .bars .torchlm-compiled { background: var(--torch); }
.bars .torchlm-compiled { opacity: .6; }
"""


def plot(report: Report, path: Path) -> None:
    """Draw each group as bars, the middle half of the samples as a line at their ends, and write a PNG."""
    from matplotlib.figure import Figure

    groups = report.groups()
    rows = -(-len(groups) // 2)
    columns = min(2, len(groups))
    height = rows * (0.7 + 0.34 * max(map(len, groups)))
    figure = Figure(figsize=(6.3 * columns, height), dpi=150, facecolor="white", layout="constrained")
    for index, group in enumerate(groups):
        axes = figure.add_subplot(rows, columns, index + 1)
        style(axes, f"{title(group)} ({group[0].unit})", 10)
        base = report.base(group)
        longest = max(measure.quartiles[1] for measure in group)
        for place, measure in enumerate(group):
            low, high = measure.quartiles
            axes.barh(place, measure.median, height=0.68, color=COLOURS.get(measure.side, GREY))
            axes.plot([low, high], [place, place], color="#1f2328", linewidth=1.2, solid_capstyle="butt")
            label = f" {number(measure.median)}" + ("" if measure is base else f"  × {measure.speed(base):.2f}")
            axes.text(max(high, measure.median), place, label, va="center", fontsize=8.5, color="#1f2328")
        axes.set_yticks(range(len(group)), [measure.side for measure in group])
        axes.set(xlim=(0, longest * 1.3), ylim=(len(group) - 0.4, -0.6), xticks=[])
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
    save(figure, path)


def page(report: Report) -> str:
    """The whole page: a table for each group, then what was measured, where and how."""
    facts = "".join(
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in report.facts.items()
    )
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>parity: speed</title>',
        f"<style>{STYLE}{TABLE_STYLE}{BARS}</style></head><body><main>",
        '<p class="kicker">parity · JAX beside PyTorch</p><h1>How fast</h1>',
        '<p class="lead">Medians of turns that the sides take one after the other on the same machine, weights and '
        "batches; half of the samples lie in the middle half. Ratios are medians over the rounds. FLOP/s count 6 for "
        "each weight and token, and causal attention; their share is of the rate of a bare matrix product in the same "
        "round (of product) and of the maker's dense 16-bit peak (MFU).</p>",
        *(_group(report, group) for group in report.groups()),
        f'<h2>What, where and how</h2><section class="card"><dl>{facts}</dl></section>',
        "<footer>Made by python -m parity.bench</footer></main></body></html>\n",
    ]
    return "".join(parts)


def _group(report: Report, group: list[Measure]) -> str:
    rows = cells(report, group)
    names = list(rows[0])
    longest = max(measure.median for measure in group)
    bars = "".join(
        f'<span>{html.escape(measure.side)}</span><i class="{html.escape(measure.side)}" '
        f'style="width:{measure.median / longest:.1%}"></i><b>{number(measure.median)} {html.escape(measure.unit)}</b>'
        for measure in group
    )
    shown = table(names, [[row[name] for name in names] for row in rows])
    heading = f"<h2>{html.escape(title(group))}</h2>"
    return f'{heading}<section class="card table"><div class="bars">{bars}</div>{shown}</section>'
