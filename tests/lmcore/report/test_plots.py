"""Proves that a loss curve shows what was logged, for whole, short and broken runs."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.text import Text

from lmcore.report.plots import BLUE, ORANGE, count, draw_run, frame, new_plot, plot_loss, smooth
from lmcore.run.trackers import Row


def rows(n: int, **replaced: float) -> list[Row]:
    """A falling loss, with a validation loss at every fourth row that is best at step 80."""
    made: list[Row] = [{"step": 10 * i, "tokens": 1000 * i, "loss": 2 + 5 / i} for i in range(1, n + 1)]
    for row in made[3::4]:
        row["valid_loss"] = 2.5 + abs(row["step"] - 80) / 100
    return [row | replaced for row in made]


def drawn(given: list[Row], x: str = "step") -> dict[str, np.ndarray]:
    """Legend name -> the points drawn for it."""
    _, axes = new_plot("title", "x", "y")
    draw_run(axes, given, x)
    return {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.lines}


def test_curves_show_what_was_logged():
    given = rows(12)
    curves = drawn(given)
    np.testing.assert_array_equal(curves["training"], [(row["step"], row["loss"]) for row in given])
    np.testing.assert_array_equal(curves["validation"], [(40, 2.9), (80, 2.5), (120, 2.9)])
    assert drawn(given, "tokens")["validation"][:, 0].tolist() == [4000, 8000, 12000]


def test_the_best_validation_point_is_marked_with_its_value():
    figure, axes = new_plot("title", "x", "y")
    draw_run(axes, rows(12), "step")
    (best,) = axes.texts
    assert (best.get_text(), tuple(best.xy)) == ("best 2.500", (80, 2.5))
    assert {line.get_color() for line in axes.lines} == {BLUE, ORANGE}
    assert figure.axes == [axes]
    frame(axes)
    figure.draw_without_rendering()
    label = Text.get_window_extent(best)  # an annotation's own extent has the line to its point, too
    assert label.x0 > axes.get_window_extent().x1, "where no curve can be"
    assert label.x1 <= figure.bbox.x1


def test_losses_that_are_not_finite_leave_a_gap():
    given = rows(30)
    given[4]["loss"], given[5]["loss"], given[7]["valid_loss"] = math.nan, math.inf, math.nan
    curves = drawn(given)
    assert np.flatnonzero(np.isnan(curves["training"][:, 1])).tolist() == [4, 5]
    assert np.isnan(curves["validation"][:, 1]).tolist() == [False, True, *[False] * 5]


@pytest.mark.parametrize(
    "given",
    [rows(1), rows(3), rows(12), rows(200), rows(12, loss=math.nan, valid_loss=math.nan), rows(5, loss=0.0), []],
    ids=["one", "no validation", "short", "long", "NaN", "constant", "empty"],
)
def test_any_run_gives_a_picture(tmp_path: Path, given: list[Row]):
    plot_loss(given, tmp_path / "loss.png", "a run of $1_2$ [x]")
    picture = imread(tmp_path / "loss.png")
    assert picture.shape[:2] == (720, 1200)
    assert picture[..., :3].std() > 0.01  # not a blank sheet
    assert [entry.name for entry in tmp_path.iterdir()] == ["loss.png"]


def test_rows_without_tokens_are_drawn_over_steps(tmp_path: Path):
    plot_loss([{"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.5}], tmp_path / "loss.png", "run")
    assert (tmp_path / "loss.png").exists()


def test_the_first_steep_steps_do_not_flatten_the_rest():
    _, axes = new_plot("title", "x", "y")
    draw_run(axes, [{"step": i, "loss": 9.0 if i < 4 else 2 + i / 100} for i in range(101)], "step")
    frame(axes)
    bottom, top = axes.get_ylim()
    assert bottom < 2.04
    assert 3.0 < top < 3.2
    assert axes.get_title("right") == "above the frame: up to 9.00"


def test_a_curve_that_is_not_steep_is_shown_whole():
    _, axes = new_plot("title", "x", "y")
    draw_run(axes, [{"step": i, "loss": 3 - i / 100} for i in range(101)], "step")
    frame(axes)
    assert axes.get_ylim()[1] > 3.0
    assert axes.get_title("right") == ""


def test_smoothing_takes_away_noise_and_adds_no_lag():
    line = np.linspace(4.0, 2.0, 400)
    np.testing.assert_allclose(smooth(line)[:370], line[:370], rtol=0, atol=1e-12)  # a lag would shift it
    noise = np.random.default_rng(0).normal(size=400)
    assert smooth(noise)[100:300].std() < 0.35 * noise[100:300].std()
    noise[200] = math.nan
    assert np.flatnonzero(np.isnan(smooth(noise))).tolist() == [200]
    short = np.array([3.0, math.inf, 1.0])
    np.testing.assert_array_equal(smooth(short), [3.0, math.nan, 1.0])


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (900, "900"), (20000, "20,000"), (1.5e6, "1.5M"), (2e9, "2B"), (-0.0, "0")]
)
def test_axes_count_readably(value: float, text: str):
    assert count(value) == text


def test_pyplot_is_never_loaded_and_matplotlib_only_to_draw(tmp_path: Path):
    program = f"""
import sys
from pathlib import Path
from lmcore.report.plots import plot_loss
assert "matplotlib" not in sys.modules
plot_loss([{{"step": 1, "loss": 2.0}}], Path({str(tmp_path / "loss.png")!r}), "run")
assert "matplotlib.figure" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
