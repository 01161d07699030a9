"""Draw the pictures of README: the losses of two runs over each other, and the ratios of docs/benchmarks.md as bars.

python benchmarks/pictures.py JAX_RUN TORCH_RUN [FOLDER]

The runs are those of `python -m jaxlm.train` and `python -m torchlm.train` with the same options.
"""

import re
import sys
from pathlib import Path

import numpy as np

from lmcore.report.plots import BLUE, ORANGE, new_plot, save
from lmcore.run.trackers import read_metrics

DOCS = Path(__file__).parents[1] / "docs"
GREY = "#59636e"


def draw_losses(runs: list[Path], path: Path) -> None:
    """Draw the loss of both twins: jaxlm's line wide and pale, torchlm's thin on top of it."""
    figure, axes = new_plot("Loss of the twins, from one config and seed", "training tokens", "loss (nats per token)")
    losses = []
    styles = ((BLUE, 6.0, 0.4, 9.0), (ORANGE, 1.5, 1.0, 4.0))
    for run, name, (colour, width, alpha, size) in zip(runs, ("jaxlm", "torchlm"), styles, strict=True):
        rows = read_metrics(run / "metrics.jsonl")
        tokens, loss = np.array([(row["tokens"], row["loss"]) for row in rows if "loss" in row]).T
        losses.append(dict(zip(tokens.tolist(), loss.tolist(), strict=True)))
        axes.plot(tokens, loss, color=colour, linewidth=width, alpha=alpha, label=f"{name}, training")
        tokens, loss = np.array([(row["tokens"], row["valid_loss"]) for row in rows if "valid_loss" in row]).T
        axes.plot(tokens, loss, "o", color=colour, alpha=max(alpha, 0.5), markersize=size, label=f"{name}, validation")
    both = losses[0].keys() & losses[1].keys()
    difference = max(abs(losses[0][tokens] - losses[1][tokens]) for tokens in both)
    axes.text(
        *(0.99, 0.62, f"largest difference in training loss: {difference:.1e}"),
        transform=axes.transAxes,
        ha="right",
        color=GREY,
    )
    axes.legend(frameon=False, loc="upper right")
    save(figure, path)


def read_ratios(page: str) -> dict[str, dict[str, float]]:
    """Row -> implementation -> ratio, from the first table whose first line names transformers."""
    lines = page.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|") and line.rstrip(" |").endswith("compiled"))
    names = [cell.strip() for cell in lines[start].strip("|").split("|")]
    ratios = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        first, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        found = {name: re.search(r"\(([\d.]+)\)", cell) for name, cell in zip(names[1:], cells, strict=True)}
        ratios[first] = {name: float(match[1]) for name, match in found.items() if match}
    return ratios


def draw_ratios(ratios: dict[str, dict[str, float]], path: Path) -> None:
    """Draw a group of bars for each row, with the rate of eager transformers as a line at 1."""
    title = "Tokens per second, relative to transformers' eager Llama"
    figure, axes = new_plot(title, "", "ratio")
    colours = {"jaxlm": BLUE, "torchlm": ORANGE, "torchlm, compiled": "#f2b27f"}
    for column, (name, colour) in enumerate(colours.items()):
        places = [(row, found[name]) for row, found in enumerate(ratios.values()) if name in found]
        x = [row + 0.27 * (column - (1 if row < 2 else 0.5)) for row, _ in places]
        axes.bar(x, [ratio for _, ratio in places], width=0.25, color=colour, label=name)
        for place, (_, ratio) in zip(x, places, strict=True):
            axes.text(place, ratio + 0.05, f"{ratio:.2f}", ha="center", color=GREY, fontsize=8)
    axes.axhline(1, color=GREY, linewidth=1, linestyle="--")
    axes.set_xticks(range(len(ratios)), [row.replace(", ", "\n").replace(" ", "\n", 1) for row in ratios], fontsize=8)
    axes.legend(frameon=False)
    save(figure, path)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    folder = Path(sys.argv[3]) if len(sys.argv) == 4 else DOCS
    draw_losses([Path(word) for word in sys.argv[1:3]], folder / "loss.png")
    draw_ratios(read_ratios((DOCS / "benchmarks.md").read_text(encoding="utf-8")), folder / "bench.png")
