"""A handful of the planted faults, and of equal pairs; `make proof` has all."""

from pathlib import Path

import pytest

from tests.proof.__main__ import compared, main, wrong
from tests.proof.mutants import MUTANTS
from tests.proof.pairs import PAIRS

QUICK = (
    "JAX: mask off by one",
    "torch: momentum of BatchNorm",
    "torch: corners aligned",
)
SLOW = (
    "torch: learning rate halved after 20 steps",
    "torch: gate order",
    "torch: eps of one norm",
    "JAX: rotary embedding of pairs",
    "torch: mean of means",
)
CHOSEN = (*QUICK, *(pytest.param(fault, marks=pytest.mark.slow) for fault in SLOW))
EQUAL = [name if name in ("resnet", "decoder") else pytest.param(name, marks=pytest.mark.slow) for name in PAIRS]


def test_there_are_enough():
    assert len(MUTANTS) >= 30
    assert len({(mutant.fault, mutant.pair) for mutant in MUTANTS}) == len(MUTANTS)
    assert {mutant.pair for mutant in MUTANTS} == set(PAIRS)
    named = {mutant.fault.partition(":")[0] for mutant in MUTANTS}
    assert named == {"JAX", "torch"}, "in either framework"


@pytest.mark.parametrize("fault", CHOSEN)
def test_a_planted_fault_is_caught_and_named(fault: str):
    mutant = next(mutant for mutant in MUTANTS if mutant.fault == fault)
    assert wrong(mutant) == ""


@pytest.mark.parametrize("name", EQUAL)
def test_equal_models_agree(name: str):
    report = compared(PAIRS[name](0, 1))
    assert report, str(report)
    assert not report.likely


def test_a_wrong_verdict_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    mutant = next(mutant for mutant in MUTANTS if mutant.pair == "attention")
    assert wrong(type(mutant)("none", "attention", {}, "output", "")) == "not caught"
    assert "expected nowhere" in wrong(type(mutant)("place", "attention", mutant.options, "nowhere", mutant.cause))
    assert "expected 'eps'" in wrong(type(mutant)("cause", "attention", mutant.options, mutant.place, "eps"))
    monkeypatch.setattr("tests.proof.__main__.MUTANTS", [mutant])
    monkeypatch.setattr("tests.proof.__main__.DTYPES", ("float64",))
    assert main(["attention"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "| all | 1 | 1 | 2 | 0 | |"


def test_the_table_in_the_docs_has_the_faults_that_there_are():
    text = (Path(__file__).parents[2] / "docs" / "porting.md").read_text()
    unusual = sum(not mutant.cause for mutant in MUTANTS)
    assert f"`make proof` plants {len(MUTANTS)} faults" in text
    assert unusual == 7
    assert "seven of the faults\nare not usual" in text
    assert f"| all | {3 * len(MUTANTS)} | {3 * len(MUTANTS)} | {3 * 2 * 3 * len(PAIRS)} | 0 | |" in text
