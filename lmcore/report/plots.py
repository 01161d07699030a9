"""Curves as pictures: the loss of one run, drawn in a style that other plots of this project share.

Figures are made through matplotlib's object interface, never pyplot: nothing global is touched, no display is needed.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmcore.errors import note, printable
from lmcore.files import replace_file
from lmcore.run.trackers import Row

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

__all__ = [
    "BLUE",
    "ORANGE",
    "attempt",
    "count",
    "draw_run",
    "frame",
    "new_plot",
    "plot_loss",
    "save",
    "smooth",
    "style",
]

BLUE, ORANGE = "#2a6fbb", "#d95f02"  # distinct to colour-blind readers, and in grey
_INK, _MUTED, _GRID = "#1f2328", "#59636e", "#d8dee4"


def plot_loss(rows: list[Row], path: Path, title: str) -> None:
    """Draw the training and validation loss of a run as a PNG.

    Args:
        rows: what `read_metrics` gives.
        path: the PNG.
        title: plain text above the plot.
    """
    x = "tokens" if all("tokens" in row for row in rows) else "step"
    figure, axes = new_plot(title, {"tokens": "training tokens", "step": "training steps"}[x], "loss (nats per token)")
    draw_run(axes, rows, x)
    frame(axes)
    save(figure, path)


def new_plot(title: str, xlabel: str, ylabel: str) -> tuple["matplotlib.figure.Figure", "matplotlib.axes.Axes"]:
    """Return an empty plot in the project's style: a quiet grid, no box, labelled axes.

    Args:
        title: plain text above it.
        xlabel: quantity and unit to the right.
        ylabel: quantity and unit upwards.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = Figure(figsize=(8, 4.8), dpi=150, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    style(axes, title, 13)
    axes.set_xlabel(xlabel, color=_MUTED)
    axes.set_ylabel(ylabel, color=_MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    return figure, axes


def style(axes: "matplotlib.axes.Axes", title: str, size: float) -> None:
    """Give axes the project's look.

    Args:
        axes: changed in place.
        title: plain text.
        size: of the title, in points.
    """
    axes.set_title(
        printable(title), loc="left", color=_INK, fontsize=size, fontweight="bold", pad=size - 1, parse_math=False
    )
    axes.tick_params(colors=_MUTED, length=0, labelsize=9)
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GRID)


def draw_run(
    axes: "matplotlib.axes.Axes", rows: list[Row], x: str, colours: tuple[str, str] = (BLUE, ORANGE), label: str = ""
) -> None:
    """Draw training loss, thin and smoothed, and validation loss with its best point; losses not finite leave a gap.

    Args:
        axes: where to draw.
        rows: what `read_metrics` gives of one run.
        x: what to draw over, step or tokens.
        colours: of training and validation.
        label: beginning of their names in the legend.
    """
    label = printable(label)  # else matplotlib warns of control characters, and prints them
    steps, losses = _series(rows, x, "loss")
    smoothed = smooth(losses)
    if len(losses) > 1:
        axes.plot(steps, losses, color=colours[0], linewidth=0.8, alpha=0.3)
    alone: dict[str, Any] = {"marker": "o", "markersize": 5} if np.isfinite(losses).sum() == 1 else {}
    if len(losses):
        axes.plot(steps, smoothed, color=colours[0], linewidth=1.8, label=f"{label}training", **alone)
    steps, losses = _series(rows, x, "valid_loss")
    if np.isfinite(losses).any():
        points: dict[str, Any] = {"marker": "o", "markersize": 4, "markeredgecolor": "white", "markeredgewidth": 0.8}
        axes.plot(steps, losses, color=colours[1], linewidth=1.4, label=f"{label}validation", **points)
        best = int(np.nanargmin(losses))
        axes.plot(steps[best], losses[best], "o", color=colours[1], markersize=8, markeredgecolor="white")
        axes.annotate(
            f"best {losses[best]:.3f}",
            (steps[best], losses[best]),
            xytext=(1.01, losses[best]),
            textcoords=axes.get_yaxis_transform(),  # right of the frame, where no curve is
            va="center",
            color=colours[1],
            fontweight="bold",
            fontsize=9,
            arrowprops={"arrowstyle": "-", "linestyle": ":", "linewidth": 0.9, "color": colours[1]},
        )
    if axes.get_legend_handles_labels()[0]:
        axes.legend(framealpha=0.8, edgecolor="none", labelcolor=_INK, loc="upper right")


def frame(axes: "matplotlib.axes.Axes") -> None:
    """Fit the y axis to what follows the first twentieth of the curves, and say from where they fell.

    Else the first steps, which fall from ln(vocabulary size), would press all that is of interest into a flat line.
    """
    points = np.concatenate([np.empty((0, 2)), *(np.asarray(line.get_xydata()) for line in axes.lines)])
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) == 0:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no finite loss", transform=axes.transAxes, ha="center", color=_MUTED)
        return
    (left, bottom), (right, highest) = points.min(axis=0), points.max(axis=0)
    top = points[points[:, 0] >= left + (right - left) / 20, 1].max()
    if highest - bottom > 1.5 * (top - bottom) > 0:
        margin = 0.06 * (top - bottom)
        axes.set_ylim(bottom - margin, top + margin)
        axes.set_title(f"above the frame: up to {highest:.2f}", loc="right", color=_MUTED, fontsize=9)


def save(figure: "matplotlib.figure.Figure", path: Path) -> None:
    """Write a figure as PNG, whole or not at all: a picture that a browser shows may be redrawn at any time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture)
    replace_file(path, picture.getvalue())


def attempt(draw: Callable[[], None], path: Path) -> bool:
    """Draw a picture that a run can do without; one that fails is said in one line.

    Args:
        draw: draws and saves it.
        path: the picture, for the message.

    Returns:
        Whether there is a picture now.
    """
    try:
        draw()
    except Exception as error:  # matplotlib raises whatever its settings, fonts and files make it raise
        note(f"{path} could not be drawn ({type(error).__name__}: {str(error)[:200]}); everything else is in order")
        return False
    return True


def smooth(values: np.ndarray) -> np.ndarray:
    """Mean of the neighbours under a Gaussian, a 50th of the curve wide; unlike a running mean it does not lag.

    At the left end, where losses fall fast, the window is narrower, and always symmetric. Values that are not finite
    count for nothing and stay NaN. Short curves (under 20 values) come back unchanged.
    """
    finite = np.isfinite(values)
    smoothed = np.where(finite, values, np.nan)
    if len(values) < 20:
        return smoothed
    width = max(1.0, len(values) / 50)
    reach = round(3 * width)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    for i in np.flatnonzero(finite).tolist():
        side = min(i // 3, reach)
        near = slice(i - side, i + side + 1)
        counted = finite[near]
        weights = kernel[reach - side :][: len(counted)] * counted
        smoothed[i] = weights @ np.where(counted, values[near], 0.0) / weights.sum()
    return smoothed


def count(value: float) -> str:
    """A number of steps or tokens as an axis shows it: 900, 20,000, 1.5M, 2B."""
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value + 0.0:,.0f}"


def _series(rows: list[Row], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(row[x], row[y]) for row in rows if y in row]
    xs, ys = np.array(pairs, dtype=float).reshape(-1, 2).T
    return xs, np.where(np.isfinite(ys), ys, np.nan)
