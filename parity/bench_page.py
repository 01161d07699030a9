"""A benchmark as a picture, and as one web page that stands alone."""

import html
from pathlib import Path

from lmcore.plots import BLUE, ORANGE, save, style
from parity.bench_report import Measure, Report, cells, number, title
from parity.page import STYLE

__all__ = ["page", "plot"]

COLOURS = {"jaxlm": BLUE, "torchlm": ORANGE, "torchlm-compiled": "#f0a868"}
"""Of the sides; every other is grey."""
GREY = "#9aa5b4"

BARS = """
td.side { white-space: nowrap; } td.bar { width: 34%; padding-top: 11px; }
td.bar i { display: block; height: 11px; border-radius: 4px; background: #9aa5b4; min-width: 2px; }
td.bar .jaxlm { background: var(--jax); } td.bar .torchlm, td.bar .torchlm-compiled { background: var(--torch); }
td.bar .torchlm-compiled { opacity: .6; }
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
        f"<style>{STYLE}{BARS}</style></head><body><main>",
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
    head = '<th>side</th><th aria-label="bar"></th>'
    head += "".join(f'<th class="number">{html.escape(name)}</th>' for name in names[1:])
    longest = max(measure.median for measure in group)
    body = []
    for measure, row in zip(group, rows, strict=True):
        width = f"width:{measure.median / longest:.1%}"
        body.append(f'<tr><td class="side">{html.escape(measure.side)}</td>')
        body.append(f'<td class="bar"><i class="{measure.side}" style="{width}"></i></td>')
        body += [f'<td class="number">{html.escape(row[name])}</td>' for name in names[1:]]
        body.append("</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<h2>{html.escape(title(group))}</h2><section class="card table">{table}</section>'
