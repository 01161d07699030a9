"""An ablation's table, plot and page say what came of every run, with spreads and differences over the seeds."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from lmcore.ablation import report as ablation_report
from lmcore.ablation.plan import BASE, Outcome, outcome, read_plan, trials
from lmcore.ablation.report import HEADINGS, lines, write_report
from tests.lmcore.ablation.studies import FILE, a_run, rows, written


def test_the_table_has_means_spreads_and_differences_by_seed(study: tuple[Path, list[Outcome]]):
    path, outcomes = study
    table = lines(read_plan(path), outcomes)
    base = next(line for line in table if line.entry == BASE)
    found = {line.entry: dict(zip(HEADINGS, line.cells(base.final), strict=True)) for line in table}
    assert list(found) == ["untied head", "base", "Wider & deeper"]  # by final loss: 2.0, 2.3 and 2.3
    spread = 0.2 / math.sqrt(2)  # the standard deviation of two values 0.2 apart
    assert found["base"] == {
        "entry": "base",
        "change": "",
        "parameters": "1,000",
        "final validation loss": f"2.3000 ± {spread:.4f}",
        "against base": "–",
        "best validation loss": f"2.2000 ± {2 * spread:.4f}",
        "bits per byte": f"4.6000 ± {2 * spread:.4f}",
        "tokens/s": "200 ± 141",
        "diverged": "no",
    }
    untied = found["untied head"]
    assert (untied["change"], untied["final validation loss"]) == ("model.tie_embeddings: false", "2.0000")
    assert untied["against base"] == "−0.2000"  # against the same seed, 2.2, and not against the mean
    assert untied["best validation loss"].startswith("1.7000")
    assert untied["diverged"] == "1 of 2, by step 25"
    assert found["Wider & deeper"]["change"] == "model.dim: 48, model.n_layers: 5"
    assert found["Wider & deeper"]["diverged"] == "no; 1 not finished"


def test_the_report_is_a_table_a_page_and_a_picture(study: tuple[Path, list[Outcome]], tmp_path: Path):
    path, outcomes = study
    shown = write_report(tmp_path, read_plan(path), outcomes, [outcomes[-1].trial], "python -m jaxlm.ablate study.yaml")
    text, page = ((tmp_path / name).read_text() for name in ("report.md", "report.html"))
    assert "| untied head | `model.tie_embeddings: false` | 1,500 | 2.0000 | −0.2000 |" in text
    assert "`python -m jaxlm.ablate study.yaml`" in text
    assert "no; 1 failed" in text
    assert "Wider &amp; deeper" in page
    assert "Wider & deeper" not in page
    assert "1 of 2, by step 25" in shown
    picture = imread(tmp_path / "curves.png")
    blue = np.isclose(picture[..., :3], (0.121, 0.466, 0.705), atol=0.02).all(axis=2)
    assert blue.sum() > 200  # the first change's curves
    assert ((picture[..., :3] < 0.02).all(axis=2)).sum() > 500  # the base's


@pytest.mark.parametrize("width", [1200, 400])
def test_the_page_fits_its_window(
    study: tuple[Path, list[Outcome]], tmp_path: Path, width: int, in_browser: Callable[[str, int, str], Any]
):
    write_report(tmp_path, read_plan(study[0]), study[1], [], "python -m jaxlm.ablate study.yaml")
    wide = "[...document.querySelectorAll('.card')].map(card => card.scrollWidth > card.clientWidth)"
    probed = in_browser(
        (tmp_path / "report.html").read_text(), width, f"[document.documentElement.scrollWidth, ...{wide}]"
    )
    assert probed[0] <= width
    assert probed[1:] == [False, False, width == 400]  # facts, table, and the curves, which scroll in their card


def coloured(path: Path) -> int:
    """Pixels in the colour of the first change, within the frame or at its edge: the legend lies right of it."""
    picture = imread(path)[:, :900, :3]
    return int(np.isclose(picture, (0.121, 0.466, 0.705), atol=0.02).all(axis=2).sum())


@pytest.mark.parametrize(("losses", "drawn"), [((2.0,), True), ((math.nan,), False)])
def test_a_single_evaluation_is_a_point(losses: tuple[float, ...], drawn: bool, tmp_path: Path):
    plan = read_plan(written(tmp_path, FILE.replace("[0, 5]", "[0]")))
    base, untied, _ = found = trials(plan, tmp_path / "out")
    a_run(base, rows(3.0), 1000, 700)
    a_run(untied, rows(*losses), 1000, 700)
    write_report(tmp_path, plan, [outcome(t) for t in found], [], "command")
    assert (coloured(tmp_path / "curves.png") > 30) is drawn


@pytest.mark.parametrize(("worst", "marked"), [(9.0, True), (2.9, False)])
def test_a_curve_above_the_frame_is_marked_at_its_edge_and_in_the_legend(
    worst: float, marked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plan = read_plan(written(tmp_path, FILE.replace("[0, 5]", "[0]")))
    base, untied, _ = found = trials(plan, tmp_path / "out")
    a_run(base, rows(3.0, 2.5, 2.0), 1000, 700)
    a_run(untied, rows(worst + 1, worst), 1000, 700)
    figures: list[Any] = []
    monkeypatch.setattr(ablation_report, "save", lambda figure, path: figures.append(figure))
    ablation_report.plot_curves(lines(plan, [outcome(t) for t in found]), tmp_path / "c.png", "title")
    [legend] = figures[0].legends
    said = [text.get_text() for text in legend.get_texts() if text.get_text().startswith("untied head")]
    assert said[0].endswith(f"above the frame, from {worst:.2f}") is marked
    triangles = [line for line in figures[0].axes[0].lines if line.get_marker() == "^"]
    assert len(triangles) == marked


@pytest.mark.parametrize(
    ("losses", "ending", "said"),
    [
        ((), {}, "not evaluated yet"),
        ((3.0,), {}, "3.000 so far"),
        ((), {"loss": math.nan}, "diverged before its first evaluation"),
        ((3.0,), {"loss": math.nan}, "3.000, then diverged"),
    ],
)
def test_the_legend_says_what_came_of_a_run_that_did_not_finish(
    losses: tuple[float, ...], ending: dict[str, float], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    plan = read_plan(written(tmp_path, FILE.replace("[0, 5]", "[0]")))
    base, untied, _ = found = trials(plan, tmp_path / "out")
    a_run(base, rows(3.0, 2.5), 1000, 700)
    a_run(untied, rows(*losses) + [{"step": 25, "tokens": 1600, **ending}] * bool(ending), 1000, None)
    figures: list[Any] = []
    monkeypatch.setattr(ablation_report, "save", lambda figure, path: figures.append(figure))
    ablation_report.plot_curves(lines(plan, [outcome(t) for t in found]), tmp_path / "c.png", "title")
    assert f"untied head  {said}" in [text.get_text() for text in figures[0].legends[0].get_texts()]


@pytest.mark.parametrize(
    ("name", "title"), [("study", "Ablation study"), ("ablations", "Ablations"), ("ablation_2", "Ablation_2")]
)
def test_the_title_says_ablation_once(name: str, title: str, tmp_path: Path):
    plan = read_plan(written(tmp_path).rename(tmp_path / f"{name}.yaml"))
    write_report(tmp_path, plan, [outcome(trial) for trial in trials(plan, tmp_path / "out")], [], "command")
    assert (tmp_path / "report.md").read_text().startswith(f"# {title}\n")
    assert f"<title>{title}</title>" in (tmp_path / "report.html").read_text()


def test_a_report_of_nothing_is_still_a_report(tmp_path: Path):
    plan = read_plan(written(tmp_path))
    found = [outcome(trial) for trial in trials(plan, tmp_path / "out")]
    assert "no; 2 not finished" in write_report(tmp_path, plan, found, [], "command")
