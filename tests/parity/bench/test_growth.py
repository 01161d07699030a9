"""How time and memory grow: the sizes of each point, the slope of the logarithms, the table and the plot."""

from dataclasses import replace
from pathlib import Path

import pytest

from lmcore.config import differences
from parity.bench import growth


def test_an_exponent_is_the_slope_of_the_logarithms():
    assert growth.exponent([1, 2, 4, 8], [3, 6, 12, 24]) == pytest.approx(1)
    assert growth.exponent([256, 512, 1024], [5e6, 20e6, 80e6]) == pytest.approx(2)


@pytest.mark.parametrize("axis", growth.AXES)
def test_one_size_grows_and_the_others_stay(axis: str):
    first, last = growth.AXES[axis][0], growth.AXES[axis][-1]
    changed = set(differences(growth.config_at(axis, first), growth.config_at(axis, last)))
    expected = {
        **{key: {"model.max_seq_len", "train.seq_len"} for key in ("sequence", "context", "window")},
        "width": {"model.dim", "model.n_heads", "model.n_kv_heads", "model.ffn_dim"},
        "depth": {"model.n_layers"},
        "scanned": {"model.n_layers"},
        "batch": {"train.batch_size", "eval.batch_size"},
        "accumulation": {"train.grad_accum"},
    }
    assert changed - {"eval.batch_size"} == expected[axis] - {"eval.batch_size"}


def test_long_contexts_are_measured_where_they_are_named():
    assert set(growth.AXES) - set(growth._parser().get_defaults().axes) == {"context", "window"}


def test_only_the_window_axis_has_windows():
    assert growth.config_at("window", 4096).model.window(1) == growth.WINDOW
    assert growth.config_at("context", 4096).model.window(1) == 0


@pytest.mark.slow
def test_growth_is_measured_and_drawn(tmp_path: Path):
    point = growth.measure("batch", 2, "torchlm", updates=1)
    assert (point.value, point.implementation) == (2, "torchlm")
    assert 1e5 < point.bytes < 1e9
    growth.plot([point, replace(point, value=4, seconds=2 * point.seconds)], tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("words", [["--axes", "time"], ["--only", "hf"], ["--most", "1"]])
def test_a_mistake_of_growth_gets_one_line(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert growth.main(words) == 2
    assert capsys.readouterr().err.startswith(f"error: {words[0]}: found ")
