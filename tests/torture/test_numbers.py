"""A loss or gradient that is not finite costs its update or ends the run, and a twin that trains on is found out."""

from pathlib import Path
from unittest import mock

import pytest

import torchlm.engine
from tests.torture.numbers import STEPS, check, faults, poison_of, poisoned, same_curve, survived


def test_what_becomes_infinite_is_skipped_alike_in_both_twins(tmp_path: Path):
    outcomes = list(faults(2, tmp_path))
    assert [(outcome.fault, outcome.verdict) for outcome in outcomes] == [
        ("jaxlm, loss, skip, seed 0", "survived"),
        ("torchlm, loss, skip, seed 0", "survived"),
    ]


@pytest.mark.parametrize(("kind", "policy"), [("gradient", "skip"), ("gradient", "stop"), ("weights", "skip")])
def test_torchlm_takes_no_update_that_is_not_finite(tmp_path: Path, kind: str, policy: str):
    with poisoned("torchlm", kind, poison_of(1, tmp_path)):
        assert check("torchlm", kind, policy, 1, tmp_path / "runs", tmp_path) == ""


def test_an_update_that_is_taken_for_finite_is_found(tmp_path: Path):
    looks_at_loss = torchlm.engine.update_is_finite
    blind = mock.patch.object(torchlm.engine, "update_is_finite", lambda loss, norm: looks_at_loss(loss, loss))
    with blind, poisoned("torchlm", "gradient", poison_of(1, tmp_path)):
        assert check("torchlm", "gradient", "skip", 1, tmp_path / "runs", tmp_path).startswith("exit code 1")


def test_a_step_that_is_missing_miscounted_or_differs_is_found(tmp_path: Path):
    poison = poison_of(0, tmp_path)
    rows = [{"step": step, "skipped_steps": sum(s <= step for s in poison.steps)} for step in range(1, STEPS + 1)]
    rows[-1]["valid_loss"] = 2.0
    assert survived(0, [], rows, poison) == ""
    assert survived(0, [], rows[1:], poison) == "a step is missing or twice"
    assert survived(0, [], [*rows[:-1], rows[-1] | {"skipped_steps": 1}], poison).startswith("skipped")
    assert survived(1, [], rows, poison).startswith("exit code 1")
    assert same_curve([1.0, float("nan")], [1.0, float("nan")])
    assert not same_curve([1.0, float("nan")], [1.0, 2.0])
    assert not same_curve([1.0, 2.0], [1.0, 2.0 + 1e-11])
