"""The verdict on differences: within the tolerance, identical to the bit, or the same next-token distribution."""

import math

import numpy as np

from parity.check.result import distributions, identical, judge
from parity.difference import compare_all, difference


def test_the_first_divergent_value_is_named_not_the_worst():
    left, right = {"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "b": 1.0 + 1e-6, "c": 2.0}
    line = judge(3, "x", "float64", compare_all(left, right), "logits")
    assert (line.verdict, line.first, line.where, line.max_abs) == ("FAIL", "b", "b[]", 1.0)
    assert judge(3, "x", "float64", compare_all(left, left), "logits").verdict == "pass"
    assert judge(3, "x", "bfloat16", compare_all(left, right), "logits").verdict == "reported"


def test_identical_means_every_bit():
    zero = np.zeros(2)
    assert identical("x", zero, zero.copy()).max_abs == 0
    assert identical("x", zero, -zero).max_abs == math.inf
    assert identical("x", zero, zero.astype(np.float32)).max_abs == math.inf
    assert identical("x", np.zeros(2, np.int32), np.zeros(2, np.float32)).max_abs == math.inf
    assert identical("x", np.full(2, math.nan), np.full(2, math.nan)).max_abs == 0


def test_distributions_pass_within_the_divergence_and_fail_beyond_it():
    logits = np.random.default_rng(0).standard_normal((50, 30)) * 4
    for noise, verdict in ((0.01, "pass"), (0.3, "FAIL")):
        moved = logits + noise * np.random.default_rng(1).standard_normal(logits.shape)
        line = distributions(4, "x", "bfloat16", logits, moved, [difference("logits", logits, moved)])
        assert line.verdict == verdict, line.note
    shifted = logits + 100  # the same distribution
    assert distributions(4, "x", "bfloat16", logits, shifted, [difference("x", logits, shifted)]).verdict == "pass"
