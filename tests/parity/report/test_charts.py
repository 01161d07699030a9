"""The report's charts: every value where it belongs, red where it is beyond the tolerance."""

import math
import re
from collections.abc import Callable
from dataclasses import replace

from parity.check.result import Result, judge
from parity.difference import Difference, compare_all
from parity.report.charts import gradient_bars, heat_map, loss_curves
from parity.report.report import Report


def test_differences_that_are_not_finite_can_be_drawn():
    nowhere = Difference(
        name="a", max_abs=math.inf, max_rel=math.inf, where=None, left=0.0, right=0.0, note="has shape [1] against [2]"
    )
    lines = (judge(5, "gradients", "float64", [nowhere, nowhere], "gradients"),)
    assert "has shape [1] against [2]" in Report(subject="x", results=lines).page()


def test_a_heat_map_has_a_cell_for_each_activation_and_marks_what_is_beyond(made: Callable[..., list[Result]]):
    activations = made(1e-6)[0]
    chart = heat_map(activations, 1e-12)
    assert chart.count("<rect") == len(activations.differences) == 2 + 2 * 15
    assert chart.count('"cell beyond"') == 1
    assert ">1e-6</text>" in chart
    assert re.findall(r">((?:layer \d|embedding|final norm))</text>", chart) == [
        *("embedding", "layer 0", "layer 1", "final norm")
    ]
    assert heat_map(activations, None).count('"cell beyond"') == 0, "without a tolerance nothing is beyond it"


def test_bars_are_as_long_as_the_logarithms():
    right = {"a": 1.0 + 1e-6, "b": 1.0 + 1e-4, "c": 1.0}
    line = judge(5, "gradients", "float64", compare_all(dict.fromkeys(right, 1.0), right), "gradients")
    chart = gradient_bars(line, 1e-5)
    a, b, c = (float(width) for width in re.findall(r'class="bar \w+" x="\d+" y="\d+" width="([\d.]+)"', chart))
    decades = {int(mark): float(x) for x, mark in re.findall(r'x="([\d.]+)" y="18"[^>]*>1e(-?\d+)<', chart)}
    left = 330
    assert left + a == decades[-6]
    assert left + b == decades[-4]
    assert c == 1.5, "zero has no logarithm"
    assert re.findall(r'class="bar (\w+)"', chart) == ["within", "beyond", "within"]
    shortened = gradient_bars(line, 1e-5, max_bars=2)
    assert re.findall(r'class="name"[^>]*>(\w)<', shortened) == ["a", "b"], "those that differ most"


def test_loss_curves_are_drawn_to_their_last_step_and_the_limit_among_them(made: Callable[..., list[Result]]):
    trajectory = made()[2]
    chart = loss_curves(trajectory)
    lines = dict(re.findall(r'class="line (\w+)" points="([^"]*)"', chart))
    assert set(lines) == {"reference", "port", "noise", "deviation"}
    assert {len(points.split()) for points in lines.values()} == {30}
    first, last = lines["reference"].split()[0], lines["reference"].split()[-1]
    assert float(first.split(",")[1]) < float(last.split(",")[1]), "a lower loss is lower on the page"
    assert "allowed 1.0e-09" in chart
    assert "|JAX − torch|" in chart
    diverged = replace(trajectory, curves=trajectory.curves | {"torch": [math.nan] * 30})
    assert "nan" not in loss_curves(diverged)


def test_names_are_text_in_a_picture():
    same = dict.fromkeys(("embedding", "layers.0 <b>", "final norm"), 1.0)
    assert "&lt;b&gt;" in (picture := heat_map(judge(3, "a", "float64", compare_all(same, dict(same)), "logits"), None))
    assert "<b>" not in picture
    curves = {"x<b>": [2.0, 1.0], "y<b>": [2.0, 1.0], "floor": [1e-9, 1e-9], "highest": [1e-9, 1e-9]}
    line = Result(rung=7, what="a", dtype="float64", verdict="pass", max_abs=0.0, max_rel=0.0, limit="1", curves=curves)
    assert "<b>" not in loss_curves(line)
