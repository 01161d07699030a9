"""The search names what makes both agree, alone or together, and nothing else."""

import time

import pytest

from parity.ports.causes.search import Candidate, search


def change(what, kind, places):
    return Candidate(what=what, kind=kind, places=places)


def changes(*names: str) -> list[Candidate]:
    return [change(name, name, frozenset({name})) for name in names]


def found(candidates, measure, runs=1000, seconds=60.0):
    return search(
        candidates, lambda chosen: measure({c.what for c in chosen}), tolerance=1e-11, runs=runs, seconds=seconds
    )


def test_one_cause_is_named():
    assert found(changes("a", "b"), lambda c: 2e-16 if "b" in c else 0.1) == [
        "likely: b (agrees to 2e-16 when changed)"
    ]
    assert found(changes("a", "b"), lambda c: 0.0 if "b" in c else 0.1) == ["likely: b (agrees exactly when changed)"]


@pytest.mark.parametrize("value", [0.1, [0.0, 0.1], float("inf"), float("nan"), [1e-15, float("nan")]])
def test_where_nothing_helps_nothing_is_named(value):
    assert found(changes("a", "b"), lambda c: value) == []
    worse = [1.0] if isinstance(value, float) else [1.0, 1.0]
    assert found(changes("a", "b"), lambda c: worse if "a" in c else value) == []


def test_a_little_help_is_no_cause():
    assert found(changes("a", "b"), lambda c: 0.1 / 50 ** len(c & {"a"})) == []
    assert found(changes("a"), lambda c: 5e-12 if c else 5e-11) == []


def test_much_help_is_named_with_what_is_left():
    [said] = found(changes("a", "b"), lambda c: 1e-6 if "a" in c else 0.1)
    assert said == "likely: a (1e-06 instead of 1e-01 when changed; something else still differs)"
    [said] = found(changes("a", "b"), lambda c: [1e-16, 0.3] if "b" in c else [0.1, 0.3])
    assert said == "likely: b (what differed first agrees when changed; something later still differs)"


def test_several_causes_are_named_together():
    def measure(chosen):
        return [0.0 if name in chosen else 0.1 for name in "abcd"]

    [said] = found(changes("d", "x", "b", "a", "c"), measure)
    assert said == "likely: a, and b, and c, and d (agrees exactly when all are changed)"
    assert found(changes(*"abcde"), lambda c: [0.0 if name in c else 0.1 for name in "abcde"])[0].startswith(
        "likely: a, and b, and c, and d (what differed first agrees when all are changed"
    )


def test_two_causes_that_help_only_together_are_named():
    [said] = found(changes("x", "a", "y", "b"), lambda c: 1e-16 if {"a", "b"} <= c else 0.1 - 0.01 * len(c))
    assert said == "likely: a, and b (agrees to 1e-16 when all are changed)"


def test_of_one_kind_the_smallest_change_is_named_and_the_best_value():
    whole = change("eps of all", "eps", frozenset({1, 2}))
    exact = change("eps 0 of one", "eps", frozenset({1}))
    near = change("eps 1e-12 of one", "eps", frozenset({1}))
    values = {"eps of all": 1e-16, "eps 0 of one": 1e-15, "eps 1e-12 of one": 1e-16}
    assert found([whole, exact, near], lambda c: min((values[name] for name in c), default=0.1)) == [
        "likely: eps 1e-12 of one (agrees to 1e-16 when changed)"
    ]


def test_changes_that_agree_as_well_are_alternatives_and_those_that_agree_less_are_not():
    values = {"a": 1e-16, "b": 3e-16, "c": 1e-12}
    said = found(changes("a", "b", "c"), lambda c: min((values[name] for name in c), default=0.1))
    assert [words.split(" (")[0] for words in said] == ["likely: a", "likely: b"]


def test_runs_and_time_are_bounded():
    count = 0

    def measure(chosen):
        nonlocal count
        count += 1
        return 0.1 - 1e-3 * len(chosen)

    assert found(changes(*map(str, range(50))), measure, runs=20) == []
    assert count == 21
    begin = time.monotonic()
    assert found(changes(*map(str, range(50))), lambda c: time.sleep(0.05) or 0.1, seconds=0.2) == []
    assert time.monotonic() - begin < 1
