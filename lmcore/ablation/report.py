"""The report of an ablation: one table and one plot of all curves, as Markdown, PNG and a web page.

± is the standard deviation over seeds. Against the base, a seed is compared with the same seed, which has the same
batches and, where the shapes are the same, the same initial weights: much of the spread cancels there.
"""

import base64
import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np

from lmcore.ablation.plan import BASE, Outcome, Plan, Trial
from lmcore.report.html import card, facts_list, page, table
from lmcore.report.plots import new_plot, save

__all__ = ["HEADINGS", "Line", "lines", "plot_curves", "write_report"]

HEADINGS = (
    *("entry", "change", "parameters", "final validation loss", "against base", "best validation loss"),
    *("bits per byte", "tokens/s", "diverged"),
)


FEW = 12
"""Points of a curve that are drawn one by one."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One entry of the table, over its seeds."""

    entry: str
    change: str
    outcomes: list[Outcome]
    parameters: list[int]
    final: dict[int, float]
    """Seed -> last validation loss of a finished run, in nats per token."""
    best: list[float]
    """Lowest validation loss of every run that has one, those that diverged later included."""
    bits_per_byte: list[float]
    """Of the finished runs, at their end."""
    rates: list[float]
    """Tokens per second: median of each run's reports."""
    failed: int

    @property
    def diverged(self) -> list[int]:
        """Steps by which runs had diverged."""
        return [int(o.rows[-1]["step"]) for o in self.outcomes if o.state == "diverged"]

    @property
    def order(self) -> tuple[float, float]:
        """Sorts entries: by final loss, then those without one by their best."""
        best = min(self.best, default=math.inf)
        return (mean(self.final.values()) if self.final else math.inf, best)

    def cells(self, base: dict[int, float]) -> list[str]:
        """The line as texts, under `HEADINGS`; `base` is the base's `final`."""
        shift = [loss - base[seed] for seed, loss in self.final.items() if seed in base]
        steps = self.diverged
        ended = f"{len(steps)} of {len(self.outcomes)}, by step {min(steps):,}" if steps else "no"
        missing = sum(o.state == "unfinished" for o in self.outcomes) - self.failed
        notes = [f"{self.failed} failed"] * (self.failed > 0) + [f"{missing} not finished"] * (missing > 0)
        return [
            self.entry,
            self.change,
            " / ".join(f"{n:,}" for n in sorted(set(self.parameters))) or "–",
            _spread(self.final.values(), ".4f"),
            "–" if self.entry == BASE else _spread(shift, "+.4f"),
            _spread(self.best, ".4f"),
            _spread(self.bits_per_byte, ".4f"),
            _spread(self.rates, ",.0f"),
            "; ".join([ended, *notes]),
        ]


def _spread(values: Iterable[float], style: str) -> str:
    """Mean and standard deviation, as far as there are any."""
    values = list(values)
    if not values:
        return "–"
    middle = format(mean(values), style).replace("-", "−")
    return f"{middle} ± {format(stdev(values), style).lstrip('+')}" if len(values) > 1 else middle


def lines(plan: Plan, outcomes: Sequence[Outcome], failed: Iterable[Trial] = ()) -> list[Line]:
    """Return one line for each entry, the best first, those that never finished last.

    Args:
        plan: the ablation's file.
        outcomes: what became of each run that was started or is still missing.
        failed: runs that ended in an error.
    """
    failures = [trial.entry for trial in failed]
    entries = []
    for entry, change in {BASE: {}, **plan.changes}.items():
        own = [o for o in outcomes if o.trial.entry == entry]
        last = {o.trial.seed: _last(o.rows) for o in own if o.state == "finished"}
        evaluated = [_points(o)[:, 1].tolist() for o in own]
        rates = [[row["tokens_per_second"] for row in o.rows if "tokens_per_second" in row] for o in own]
        entries.append(
            Line(
                entry=entry,
                change=_describe(change),
                outcomes=own,
                parameters=[o.facts["parameters"] for o in own if o.facts],
                final={seed: row["valid_loss"] for seed, row in last.items()},
                best=[min(losses) for losses in evaluated if losses],
                bits_per_byte=[row["valid_bits_per_byte"] for row in last.values()],
                rates=[median(reports) for reports in rates if reports],
                failed=failures.count(entry),
            )
        )
    return sorted(entries, key=lambda line: line.order)


def _last(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next(row for row in reversed(rows) if "valid_loss" in row)


def _describe(change: dict[str, Any], prefix: str = "") -> str:
    """A change as the fields it sets: `optim.clip: 0, model.norm: none`."""
    words = []
    for name, value in change.items():
        nested = isinstance(value, dict)
        shown = value if isinstance(value, str) else json.dumps(value)
        words.append(_describe(value, f"{prefix}{name}.") if nested else f"{prefix}{name}: {shown}")
    return ", ".join(words)


def plot_curves(entries: Sequence[Line], path: Path, title: str) -> None:
    """Draw the validation loss of every run over its training tokens: a colour for each entry, a line for each seed.

    The base is black. A cross is where a run diverged. The frame ends where the base stands after a twentieth of its
    training; a triangle at its upper edge, and the legend, say which curve lies above it as a whole.

    Args:
        entries: what `lines` gives.
        path: the PNG.
        title: plain text above the plot.
    """
    from matplotlib import colormaps

    figure, axes = new_plot(title, "training tokens", "validation loss (nats per token)")
    figure.set_size_inches(10, 5.6)
    handles, colours = [], colormaps["tab10"].resampled(10)(range(10))
    others = [line.entry for line in entries if line.entry != BASE]
    for line in entries:
        i = others.index(line.entry) if line.entry in others else 0
        looks: dict[str, Any] = {"color": colours[i % 10], "linestyle": ("-", "--", ":")[i // 10 % 3], "linewidth": 1.2}
        if line.entry == BASE:
            looks = {"color": "black", "linewidth": 2.0, "zorder": 3}
        for o in line.outcomes:
            points = _points(o)
            few: dict[str, Any] = {"marker": "o", "markersize": 5} if len(points) <= FEW else {}
            [curve] = axes.plot(*points.T, **looks, **few)
            if o.state == "diverged" and len(points):
                axes.plot(*points[-1], "x", color=looks["color"], markersize=8, markeredgewidth=2)
        handles.append((curve, line, f"{line.entry}  {_state(line)}"))
    top = _frame(axes, entries)
    named = [(curve, text + _above(axes, curve, line, top)) for curve, line, text in handles]
    legend = figure.legend(*zip(*named), loc="outside right upper", frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a name may hold dollar signs
    save(figure, path)


def _state(line: Line) -> str:
    """What the legend says of an entry: its final loss, or what came of it instead."""
    if line.final:
        return f"{mean(line.final.values()):.3f}"
    if not line.best:
        return "diverged before its first evaluation" if line.diverged else "not evaluated yet"
    return f"{min(line.best):.3f}" + (", then diverged" if line.diverged else " so far")


def _points(o: Outcome) -> np.ndarray:
    pairs = [(row["tokens"], row["valid_loss"]) for row in o.rows if math.isfinite(row.get("valid_loss", math.nan))]
    return np.array(pairs, dtype=float).reshape(-1, 2)


def _above(axes: Any, curve: Any, line: Line, top: float) -> str:
    """Mark an entry of which the frame shows nothing; return what the legend says of it."""
    points = np.concatenate([_points(o) for o in line.outcomes])
    if not len(points) or points[:, 1].min() <= top:
        return ""
    edge = axes.get_xaxis_transform()  # the height as a fraction of the frame's
    axes.plot(points[-1, 0], 1.0, "^", color=curve.get_color(), markersize=8, clip_on=False, transform=edge, zorder=4)
    return f"  ▲ above the frame, from {points[:, 1].min():.2f}"


def _frame(axes: Any, entries: Sequence[Line]) -> float:
    """Set the limits of the losses, where there is a base to set them by; return the upper one."""
    base = np.concatenate([_points(o) for line in entries for o in line.outcomes if line.entry == BASE])
    lowest = min((min(line.best) for line in entries if line.best), default=None)
    if lowest is None or len(base) < 2:
        return math.inf
    early = base[base[:, 0] >= base[:, 0].max() / 20]
    top = early[np.argmin(early[:, 0]), 1]
    margin = 0.04 * (top - lowest)
    if margin <= 0:
        return math.inf
    axes.set_ylim(lowest - margin, top + margin)
    return top + margin


def write_report(out: Path, plan: Plan, outcomes: Sequence[Outcome], failed: Iterable[Trial], command: str) -> str:
    """Write `report.md`, `report.html` and `curves.png`; return the table as a terminal shows it.

    Args:
        out: folder of the ablation.
        plan: the ablation's file.
        outcomes: as for `lines`.
        failed: as for `lines`.
        command: the command line that made it, for the report.
    """
    entries = lines(plan, outcomes, failed)
    base = next(line for line in entries if line.entry == BASE)
    rows = [line.cells(base.final) for line in entries]
    name = plan.path.stem
    title = f"{name[0].upper()}{name[1:]}" if name.lower().startswith("ablation") else f"Ablation {name}"
    plot_curves(entries, out / "curves.png", title)
    facts = _facts(plan, base, command)
    (out / "report.md").write_text(_markdown(title, facts, rows), encoding="utf-8")
    (out / "report.html").write_text(_page(title, facts, rows, out / "curves.png"), encoding="utf-8")
    columns = [[HEADINGS[c], *(row[c] for row in rows)] for c in range(len(HEADINGS)) if HEADINGS[c] != "change"]
    widths = [max(map(len, column)) for column in columns]
    shown = ["  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip() for row in zip(*columns)]
    return "\n".join(["", *shown, "", f"report: {out / 'report.md'}, {out / 'report.html'}, {out / 'curves.png'}"])


def _facts(plan: Plan, base: Line, command: str) -> dict[str, str]:
    config = base.outcomes[0].trial.config
    ran = next((o.facts for o in base.outcomes if o.facts), None)
    size = f"{config.train.steps:,} steps of {config.train.batch_size} × {config.train.seq_len} tokens"
    facts = {"command": command, "training": f"{size}, {config.train.precision}"}
    facts["text"] = ", ".join(config.data.files) or config.data.dataset or f"{config.data.stories:,} embedded stories"
    if ran:
        facts["on"] = f"{ran['framework']}, {ran['device']}"
    facts["seeds"] = f"{', '.join(map(str, plan.seeds))}; ± is the standard deviation over them"
    facts["against base"] = "difference of the final validation losses, seed by seed; less is better"
    facts["tokens/s"] = "median of each run's reports; runs at the same time share the machine"
    return facts


def _markdown(title: str, facts: dict[str, str], rows: list[list[str]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    head = [line(HEADINGS), line("---" if c < 2 else "---:" for c in range(len(HEADINGS)))]
    shown = [line([row[0], f"`{row[1]}`" if row[1] else "", *row[2:]]) for row in rows]
    listed = [f"- {name}: `{value}`" if name == "command" else f"- {name}: {value}" for name, value in facts.items()]
    return "\n".join([f"# {title}", "", *listed, "", *head, *shown, "", "![All curves](curves.png)", ""])


STYLE = """
td.change { font: 12px ui-monospace, monospace; color: var(--muted); overflow-wrap: anywhere; }
tr.base td { background: var(--mark); font-weight: 600; }
tr.bad td.ended { color: var(--bad); font-weight: 600; white-space: normal; }
"""


def _page(title: str, facts: dict[str, str], rows: list[list[str]], picture: Path) -> str:
    """Return the report as a page that stands alone, the picture within it."""
    columns = ["", "text change", *[""] * (len(HEADINGS) - 3), "ended"]
    kinds = [" ".join(["base"] * (row[0] == BASE) + ["bad"] * (row[-1] != "no")) for row in rows]
    entries = table(HEADINGS, rows, row_classes=kinds, column_classes=columns)
    data = base64.b64encode(picture.read_bytes()).decode()
    curves = f'<img alt="Validation loss of every run" src="data:image/png;base64,{data}">'
    parts = [f"<h1>{html.escape(title)}</h1>", facts_list(facts), card(entries), card(curves)]
    return page(title, parts, style=STYLE)
