"""Every planted fault is caught on its rung; what is no fault is not."""

import contextlib
from dataclasses import replace

import pytest

from parity.check.selftest.mutants import MUTANTS, Mutant, self_test

FAST = ("residual init unscaled", "RoPE interleaved", "clip per tensor")
QUICK = (2, 3, 5, 6)
"""Rungs on which they are caught."""
HARMLESS = Mutant("nothing", "torch", 3, contextlib.nullcontext)
KINDS = {
    "RoPE interleaved",
    "RoPE theta",
    "norm eps × 10",
    "norm after weight",
    "missing transpose",
    "gate and up swapped",
    "KV heads tiled",
    "decay on norms",
    "no bias correction",
    "clip per tensor",
    "warmup off by one",
    "mean of means",
    "tied head untied",
}
"""Faults that the contract lists."""


def test_there_are_faults_of_every_kind_for_every_rung_and_both_twins():
    names = [mutant.name for mutant in MUTANTS]
    assert len(names) == len(set(names)) >= 14
    assert set(names) >= KINDS
    assert {mutant.rung for mutant in MUTANTS} == {*range(9), 10, 11}, "all but the third implementation"
    assert {mutant.twin for mutant in MUTANTS} == {"jax", "torch", "both"}


def test_faults_are_caught_on_their_rungs_and_nothing_is_no_fault():
    chosen = [replace(mutant, rungs=QUICK) for mutant in MUTANTS if mutant.name in FAST]
    early = replace(next(m for m in chosen if m.rung == 6), rung=5)
    *caught, late, nothing = self_test([*chosen, early, replace(HARMLESS, rungs=QUICK)])
    assert [(c.mutant.name, c.rung) for c in caught] == [(m.name, m.rung) for m in chosen]
    assert all(c.ok for c in caught)
    assert (late.rung, late.ok) == (6, False), "caught later than declared"
    assert (nothing.rung, nothing.ok) == (None, False), "not caught"


@pytest.mark.slow
def test_every_fault_is_caught_on_its_rung():
    assert {c.mutant.name: c.rung for c in self_test(MUTANTS)} == {m.name: m.rung for m in MUTANTS}
