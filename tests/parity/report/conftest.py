"""Lines as a check makes them, and a report of them."""

from collections.abc import Callable

import pytest

from lmcore.describe import environment
from parity.check.result import Result, judge
from parity.difference import compare_all
from parity.report.report import Report
from parity.taps import OPERATIONS


@pytest.fixture
def made() -> Callable[..., list[Result]]:
    """Makes lines; a fault shows in one operation of layer 1."""
    return lines


@pytest.fixture
def report() -> Callable[..., Report]:
    """Makes a report of two precisions, with a fault in the first."""

    def one(fault: float = 0.0) -> Report:
        results = (*lines(fault), *lines(dtype="float32"))
        return Report(subject="runs/a & b (<jax>)", results=results, facts={"model": "2 layers"} | environment())

    return one


def lines(fault: float = 0.0, dtype: str = "float64") -> list[Result]:
    names = ["embedding", *(f"layers.{i} {operation}" for i in range(2) for operation in OPERATIONS), "final norm"]
    right = {name: 1 + (fault if name == "layers.1 gate" else 1e-16 * n) for n, name in enumerate(names)}
    losses = [5 - 0.01 * step for step in range(30)]
    noise = [1e-12 * 1.2**step for step in range(30)]
    curves = {"jax": losses, "torch": [x + 1e-12 for x in losses], "floor": noise, "highest": noise}
    trajectory = Result(
        rung=7,
        what="losses",
        dtype=dtype,
        verdict="pass",
        max_abs=1e-12,
        max_rel=2e-13,
        limit="1.0e-09 abs",
        curves=curves,
    )
    return [
        judge(3, "activations", dtype, compare_all(dict.fromkeys(names, 1.0), right), "logits"),
        judge(5, "gradients", dtype, compare_all({"w<0>": 1.0, "b": 2.0}, {"w<0>": 1.0, "b": 2.0}), "gradients"),
        trajectory,
        Result(rung=9, what="transformers", dtype=dtype, verdict="skipped", note="not installed"),
    ]
