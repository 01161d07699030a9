import math
from pathlib import Path

import numpy as np
import pytest

from lmcore.dashboard.curves import POINTS, Curve, curve, selected, smoothed, training_time
from lmcore.dashboard.metrics import MetricsReader
from tests.lmcore.dashboard.run_folders import rows


def reader_of(tmp_path: Path, text: str) -> MetricsReader:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    reader = MetricsReader(lambda: path.open("rb"))
    reader.refresh()
    return reader


def test_a_short_curve_has_every_row(tmp_path: Path):
    reader = reader_of(tmp_path, rows(3) + '{"step": 40, "loss": null}\n')
    assert curve(reader, Curve("loss")) == {
        "rows": 4,
        "values": 4,
        "without_axis": 0,
        "raw": {"step": [10, 20, 30, 40], "x": [10, 20, 30, 40], "y": [4.9, 4.8, 4.7, None]},
    }


def test_the_axis_is_steps_tokens_or_seconds(tmp_path: Path):
    reader = reader_of(tmp_path, rows(3))
    assert curve(reader, Curve("loss", "tokens"))["raw"]["x"] == [1000, 2000, 3000]
    assert curve(reader, Curve("loss", "time"))["raw"] == {"step": [10, 20, 30], "x": [2, 4, 6], "y": [4.9, 4.8, 4.7]}


def test_rows_without_a_place_on_the_axis_are_counted(tmp_path: Path):
    reader = reader_of(tmp_path, '{"step": 1, "loss": 2}\n{"step": 2, "loss": 1, "tokens": 5}\n')
    found = curve(reader, Curve("loss", "tokens"))
    assert (found["values"], found["without_axis"], found["raw"]["x"]) == (1, 1, [5])
    found = curve(reader, Curve("loss", "time"))
    assert (found["values"], found["without_axis"], found["raw"]["x"]) == (0, 2, [])


def test_a_metric_that_a_run_lacks_has_no_points(tmp_path: Path):
    found = curve(reader_of(tmp_path, rows(3)), Curve("valid_loss", smoothing=0.5))
    assert found["raw"] == found["smooth"] == {"step": [], "x": [], "y": []}
    assert (found["rows"], found["values"]) == (3, 0)


def test_smoothing_is_that_of_all_rows_whatever_is_drawn(tmp_path: Path):
    text = "".join(f'{{"step": {n}, "loss": {math.sin(n)}}}\n' for n in range(1, 5001))
    found = curve(reader_of(tmp_path, text), Curve("loss", smoothing=0.9))
    whole = smoothed(np.sin(np.arange(1, 5001)), 0.9)
    drawn = found["smooth"]
    assert len(drawn["step"]) <= POINTS + 2
    np.testing.assert_allclose(drawn["y"], whole[np.array(drawn["step"]) - 1], rtol=1e-6)


def test_tokens_that_fall_are_put_in_order(tmp_path: Path):
    lines = [
        f'{{"step": {step}, "tokens": {tokens}, "loss": {step}}}\n' for step, tokens in ((1, 30), (2, 10), (3, 20))
    ]
    assert curve(reader_of(tmp_path, "".join(lines)), Curve("loss", "tokens"))["raw"] == {
        "step": [2, 3, 1],
        "x": [10, 20, 30],
        "y": [2, 3, 1],
    }


def test_training_time_is_the_sum_of_tokens_by_their_rate():
    nan = math.nan
    tokens = np.array([100.0, 300.0, nan, 500.0, 600.0])
    rate = np.array([nan, 50.0, 1.0, 0.0, 20.0])
    # The first row takes the rate after it; a rate of 0 is none, so that of the row before, 1, holds.
    np.testing.assert_equal(training_time(tokens, rate), [2.0, 6.0, nan, 206.0, 211.0])
    assert np.all(np.isnan(training_time(tokens, np.full(5, nan))))


def test_smoothing_has_no_bias_to_its_start_and_leaves_gaps():
    np.testing.assert_allclose(smoothed(np.full(5, 3.0), 0.99), 3.0)
    found = smoothed(np.array([1.0, math.nan, 2.0]), 0.5)
    np.testing.assert_allclose(found, [1.0, math.nan, (0.25 * 1 + 0.5 * 2) / 0.75])


@pytest.mark.parametrize("log_x", [False, True])
def test_few_points_keep_every_extreme(log_x: bool):
    generator = np.random.default_rng(0)
    x, y = np.arange(1.0, 50_001.0), generator.normal(size=50_000)
    y[31_234], y[44_321] = 50.0, -50.0
    chosen = selected(x, y, 1000, log_x)
    assert len(chosen) <= 1002
    assert {0, 31_234, 44_321, 49_999} <= set(chosen.tolist())
    assert np.all(np.diff(chosen) > 0)
    place = np.log(x) if log_x else x
    edges = np.linspace(place[0], place[-1], 501)
    part = np.clip(np.searchsorted(edges, place, side="right") - 1, 0, 499)
    for number in np.unique(part)[[0, 1, 100, -1]]:
        inside, kept = y[part == number], y[chosen][part[chosen] == number]
        assert (kept.min(), kept.max()) == (inside.min(), inside.max())


def test_a_logarithmic_axis_keeps_the_first_points_and_none_at_zero():
    x = np.arange(0.0, 50_000.0)
    chosen = selected(x, x, 1000, log_x=True)
    assert chosen[:20].tolist() == list(range(1, 21))
    assert selected(x[:3], x[:3], 1000, log_x=True).tolist() == [1, 2]


def test_gaps_are_kept():
    y = np.sin(np.arange(50_000.0))
    y[20_000] = math.nan
    y[30_000:30_500] = math.nan
    chosen = selected(np.arange(50_000.0), y, 1000)
    assert 20_000 in chosen
    assert np.count_nonzero(np.isnan(y[chosen])) < 10


def test_curves_without_extent_are_no_division_by_zero():
    assert len(selected(np.full(5000, 7.0), np.arange(5000.0), 1000)) == 2
    assert len(selected(np.arange(5000.0), np.full(5000, math.nan), 1000)) <= 502
    assert selected(np.array([]), np.array([]), 1000).tolist() == []
