"""The report's charts as SVG, written by hand so that the page needs nothing else; the page gives the colours."""

import html
import math
from collections.abc import Sequence

from parity.check.result import Result
from parity.difference import Difference
from parity.settings import LABELS
from parity.taps import OPERATIONS

__all__ = ["gradient_bars", "heat_map", "loss_curves"]

SMALLEST = 1e-17
"""Where a logarithmic scale begins: below any rounding error."""


def heat_map(result: Result, tolerance: float | None) -> str:
    """Relative difference of every activation: a row for each layer, a column for each operation."""
    by_name = {d.name: d for d in result.differences}
    layers = sorted({int(name[7 : name.index(" ")]) for name in by_name if name.startswith("layers.")})
    left, top, width, height = 74, 92, 50, 26
    parts = []
    inside = [name.partition(" ")[2] for name in by_name if name.startswith("layers.")]
    operations = list(dict.fromkeys(inside)) or list(OPERATIONS)
    for column, operation in enumerate(operations):
        x = left + column * width + width / 2
        place = f'transform="translate({x + 4},{top - 8}) rotate(-40)"'
        parts.append(f'<text class="label" {place}>{html.escape(operation)}</text>')
    rows = [("embedding", ["embedding", "previous tokens added", "positions added"])]
    rows += [(f"layer {layer}", [f"layers.{layer} {operation}" for operation in operations]) for layer in layers]
    rows += [("final norm", ["final norm"])]
    for row, (label, names) in enumerate(rows):
        y = top + row * height
        place = f'x="{left - 8}" y="{y + height / 2 + 4}" text-anchor="end"'
        parts.append(f'<text class="label" {place}>{html.escape(label)}</text>')
        for column, name in enumerate(names):
            if name in by_name:
                parts.append(_cell(by_name[name], left + column * width, y, width, height, tolerance))
    size = left + len(operations) * width + 20, top + len(rows) * height + 8
    label = f"Largest relative difference of each activation, {result.dtype}"
    return _svg(*size, label, "".join(parts), small=True)


def _cell(d: Difference, x: float, y: float, width: float, height: float, tolerance: float | None) -> str:
    beyond = tolerance is not None and not d.within(tolerance)
    top = math.log10(tolerance or 1.0)
    fraction = 0.0 if d.max_rel == 0 else (_log(d.max_rel) - math.log10(SMALLEST)) / (top - math.log10(SMALLEST))
    opacity = 1.0 if beyond else 0.06 + 0.6 * max(0.0, min(1.0, fraction))
    shown = "0" if d.max_rel == 0 else "∞" if not math.isfinite(d.max_rel) else f"{d.max_rel:.0e}".replace("e-0", "e-")
    title = html.escape(f"{d.name}: {d.max_rel:.2e} relative, {d.max_abs:.2e} absolute, at {d.where}")
    box = f'x="{x + 1}" y="{y + 1}" width="{width - 2}" height="{height - 2}" rx="4"'
    kind = "beyond" if beyond else "within"
    return (
        f"<g><title>{title}</title>"
        f'<rect class="cell {kind}" {box} fill-opacity="{opacity:.2f}"/>'
        f'<text class="value {kind}" x="{x + width / 2}" y="{y + height / 2 + 4}" text-anchor="middle">{shown}</text>'
        "</g>"
    )


def loss_curves(result: Result) -> str:
    """Both losses in the band of the noise, and below them their difference, against the noise floor."""
    curves = result.curves
    names = [name for name in curves if name not in ("floor", "highest")]
    reference, port = (curves[name] for name in names)
    labels = [LABELS.get(name, name) for name in names]
    steps = len(reference)
    left, right, width = 66, 16, 860
    high = [loss + noise for loss, noise in zip(port, curves["highest"], strict=True)]
    low = [loss - noise for loss, noise in zip(port, curves["highest"], strict=True)]
    finite = [y for y in [*reference, *port] if math.isfinite(y)]
    bottom, top = min(finite, default=0.0), max(finite, default=1.0)
    margin = 0.06 * (top - bottom) or 1.0
    upper = _Frame(left, 14, width - left - right, 210, steps, bottom - margin, top + margin)
    parts = [upper.grid([_nice(bottom + fraction * (top - bottom)) for fraction in (0, 0.25, 0.5, 0.75, 1)], "{:.2f}")]
    parts.append(upper.band(low, high))
    parts.append(upper.line(reference, "reference") + upper.line(port, "port"))
    legend = [("reference", labels[0]), ("port", labels[1]), ("noise", "noise of one ulp")]
    parts.append(_legend(width - right, 26, legend))
    deviation = [abs(a - b) for a, b in zip(reference, port, strict=True)]
    allowed = float(result.limit.split()[0])
    logs = [_log(y) for y in [*deviation, *curves["floor"], allowed] if y > 0]
    bottom, top = math.floor(min(logs)), math.ceil(max(logs))
    lower = _Frame(left, 262, width - left - right, 150, steps, bottom, max(top, bottom + 1))
    marks = list(range(int(bottom), int(top) + 1, max(1, (int(top) - int(bottom)) // 4)))
    parts.append(lower.grid(marks, "1e{:.0f}") + lower.steps())
    parts.append(lower.line([max(_log(y), bottom) for y in curves["floor"]], "noise"))
    parts.append(lower.line([max(_log(y), bottom) for y in deviation], "deviation"))
    y = lower.y(_log(allowed))
    parts.append(f'<line class="limit" x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts.append(f'<text class="limit-label" x="{left + 6}" y="{y + 14:.1f}">allowed {allowed:.1e}</text>')
    legend = [("deviation", f"|{' − '.join(labels)}|"), ("noise", "noise floor")]
    parts.append(_legend(width - right, 248, legend))
    parts.append(f'<text class="label" x="{left}" y="252">absolute difference of the losses</text>')
    return _svg(width, 450, f"Losses of {steps} steps and their difference, {result.dtype}", "".join(parts))


class _Frame:
    """A plot's axes: steps to the right, values up."""

    def __init__(self, x: float, y: float, width: float, height: float, steps: int, bottom: float, top: float):
        self.left, self.upper, self.width, self.height = x, y, width, height
        self.count, self.bottom, self.top = steps, bottom, top

    def x(self, step: int) -> float:
        return self.left + self.width * step / max(1, self.count - 1)

    def y(self, value: float) -> float:
        value = min(max(value, self.bottom), self.top) if math.isfinite(value) else self.top
        return self.upper + self.height * (1 - (value - self.bottom) / (self.top - self.bottom))

    def line(self, values: Sequence[float], kind: str) -> str:
        points = " ".join(f"{self.x(i):.1f},{self.y(v):.1f}" for i, v in enumerate(values))
        return f'<polyline class="line {kind}" points="{points}"/>'

    def band(self, low: Sequence[float], high: Sequence[float]) -> str:
        there = [f"{self.x(i):.1f},{self.y(v):.1f}" for i, v in enumerate(high)]
        back = [f"{self.x(i):.1f},{self.y(v):.1f}" for i, v in reversed(list(enumerate(low)))]
        return f'<polygon class="band" points="{" ".join(there + back)}"/>'

    def grid(self, values: Sequence[float], shown: str) -> str:
        right, parts = self.left + self.width, []
        for value in dict.fromkeys(values):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{self.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            label = shown.format(value)
            parts.append(f'<text class="label" x="{self.left - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        return "".join(parts)

    def steps(self) -> str:
        marks = sorted({round(fraction * (self.count - 1)) for fraction in (0, 0.25, 0.5, 0.75, 1)})
        y = self.upper + self.height + 20
        return "".join(
            f'<text class="label" x="{self.x(step):.1f}" y="{y}" text-anchor="middle">'
            f"{'step ' if step == 0 else ''}{step + 1}</text>"
            for step in marks
        )


def gradient_bars(result: Result, tolerance: float | None, max_bars: int = 60) -> str:
    """Return the relative difference of every parameter's gradient on a logarithmic scale.

    Args:
        result: a line of rung 5.
        tolerance: largest relative difference that is allowed; None where the line only reports.
        max_bars: number of parameters; of more, those that differ most are drawn.
    """
    shown = result.differences
    if len(shown) > max_bars:
        worst = sorted(shown, key=lambda d: d.max_rel)[-max_bars:]
        shown = tuple(d for d in shown if d in worst)
    left, width, height, top = 330, 500, 17, 30
    ends = [_log(d.max_rel) for d in shown if 0 < d.max_rel < math.inf]
    ends += [] if tolerance is None else [_log(tolerance)]
    bottom, highest = math.floor(min(ends, default=-17)) - 1, math.ceil(max(ends, default=0)) + 0.2
    scale = width / (highest - bottom)
    lower = top + len(shown) * height
    parts = []
    for mark in range(int(bottom) + 1, math.floor(highest) + 1, max(1, int(highest - bottom) // 6)):
        x = left + (mark - bottom) * scale
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{lower}"/>')
        parts.append(f'<text class="label" x="{x:.1f}" y="{top - 12}" text-anchor="middle">1e{mark}</text>')
    for row, d in enumerate(shown):
        y, beyond = top + row * height, tolerance is not None and not d.within(tolerance)
        end = 0.0 if d.max_rel == 0 else (min(_log(d.max_rel), highest) - bottom) * scale
        title = html.escape(f"{d.name}: {d.max_rel:.2e} relative, {d.max_abs:.2e} absolute, at {d.where}")
        label = f'<text class="name" x="{left - 10}" y="{y + 12}" text-anchor="end">{html.escape(d.name)}</text>'
        box = f'x="{left}" y="{y + 3}" width="{max(end, 1.5):.1f}" height="{height - 6}" rx="3"'
        bar = f'<rect class="bar {"beyond" if beyond else "within"}" {box}/>'
        value = f'<text class="value" x="{left + end + 6:.1f}" y="{y + 12}">{d.max_rel:.1e}</text>'
        parts.append(f"<g><title>{title}</title>{label}{bar}{value}</g>")
    if tolerance is not None:
        x = left + (_log(tolerance) - bottom) * scale
        parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{lower}"/>')
        parts.append(f'<text class="limit-label" x="{x - 5:.1f}" y="{lower + 15}" text-anchor="end">allowed</text>')
    return _svg(left + width + 70, lower + 24, f"Difference of gradients by parameter, {result.dtype}", "".join(parts))


def _legend(right: float, y: float, names: Sequence[tuple[str, str]]) -> str:
    parts = []
    x = right - sum(40 + 7 * len(label) for _, label in names)
    for kind, label in names:
        parts.append(f'<line class="line {kind}" x1="{x}" x2="{x + 20}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="label" x="{x + 26}" y="{y + 4}">{html.escape(label)}</text>')
        x += 40 + 7 * len(label)
    return "".join(parts)


def _svg(width: float, height: float, label: str, inner: str, small: bool = False) -> str:
    size = f'viewBox="0 0 {width:g} {height:g}" style="max-width:{width:g}px"'
    return f'<svg {size} role="img" aria-label="{html.escape(label)}"{" class=small" * small}>{inner}</svg>'


def _log(value: float) -> float:
    return math.log10(min(max(value, SMALLEST), 1e3)) if not math.isnan(value) else 3.0


def _nice(value: float) -> float:
    return round(value, 2)
