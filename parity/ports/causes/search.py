"""Finds which of many changes makes two runs agree, alone or together.

A change is believed where the evidence is strong: all that is compared agrees to rounding, or what was computed first
of all that differed now does, or the difference falls a thousandfold. Nothing is named where nothing helps.
"""

import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["BESIDE", "Candidate", "Measure", "search"]

MAX_FAULTS = 4
"""Number of causes that are looked for together."""
MAX_ALTERNATIVES = 3
"""Number of changes, any of which makes both agree, that are named."""
STEP = 1.2
"""Factor by which a difference must fall for the search to go on from there."""
MUCH = 3.0
"""Factor by which one must make it fall for those of higher rank to be left out."""
STRONG = 1000.0
"""Factor by which it must fall to be named where something else still differs."""
BESIDE = 100.0
"""Factor to the best within which another change agrees as well as it does; and, if no other is given, to the start."""
PAIRED = 12
"""Number of changes, those that helped most, that are tried in pairs where none helps alone."""
PER_PLACE = 2
"""Number of them that change one place in one way."""
ROUNDING = 1e-16


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A change under which two runs may agree."""

    what: str
    """Its words, such as `eps 1e-05 -> 1e-06 in norm1`."""
    kind: str
    """Of several changes of one kind, one at most is the cause at a place."""
    places: frozenset[object]
    """What it changes: operations, parameters or options."""
    rank: int = 0
    """Of a lower rank are those that change all that is alike; a higher one is tried where none of them helps much."""


C = TypeVar("C", bound=Candidate)
Measure = Callable[[Sequence[C]], float | Sequence[float]]
"""From changes that are made together to the relative differences with JAX, in the order of computation."""


class _Score:
    """Differences of one run, in the order of computation."""

    def __init__(self, values: float | Sequence[float], tolerance: float, evidence: float) -> None:
        self.evidence = evidence
        found = (values,) if isinstance(values, int | float) else tuple(values)
        self.values = tuple(math.inf if math.isnan(value) else float(value) for value in found)
        self.first = next((i for i, value in enumerate(self.values) if value > tolerance), len(self.values))
        """Number of the first value beyond tolerance."""
        self.worst = max(self.values, default=0.0)

    @property
    def agrees(self) -> bool:
        return self.first == len(self.values)

    def solves(self, before: "_Score") -> bool:
        """Return whether this agrees, and much better than before."""
        return self.agrees and self.worst * self.evidence <= before.worst

    def drops(self, before: "_Score", factor: float) -> bool:
        """Return whether this is nearer to agreement by at least a factor, or differs later."""
        if len(self.values) != len(before.values) or self.first < before.first:
            return False
        if self.first > before.first:
            return self.values[before.first] * self.evidence <= before.values[before.first]
        return self.worst * factor <= before.worst and self.worst < before.worst

    def is_strong(self, before: "_Score") -> bool:
        """Return whether that is so beyond doubt: of two values that differ wholly, none tells of the other."""
        return self.drops(before, STRONG) and (self.first > before.first or self.worst * STRONG <= 1.0)


class _Budget:
    def __init__(self, runs: int, seconds: float) -> None:
        self.runs, self.end = runs, time.monotonic() + seconds

    def spend(self) -> bool:
        """Take one run; return False when there is none, or no time, left."""
        self.runs -= 1
        return self.runs >= 0 and time.monotonic() < self.end


def search(
    candidates: Sequence[C],
    measure: Measure[C],
    *,
    tolerance: float,
    evidence: float = BESIDE,
    runs: int,
    seconds: float,
) -> list[str]:
    """Return sentences, each of which names a change, or several, that would make both agree.

    Args:
        candidates: the changes, the usual ones first.
        measure: runs with changes; a number is all differences in one.
        tolerance: largest relative difference that is rounding.
        evidence: factor by which the difference must fall where both then agree.
        runs: largest number of runs.
        seconds: time after which no run begins.

    Returns:
        Alternatives, best first; none where nothing makes both agree, or nearly.
    """
    budget = _Budget(runs, seconds)

    def measured(chosen: Sequence[C]) -> _Score:
        return _Score(measure(chosen), tolerance, evidence)

    start = now = measured(())
    chosen: list[C] = []
    first: list[tuple[list[C], _Score]] = []
    while not now.agrees:
        tried = _tried(candidates, chosen, now, measured, budget)
        if solved := [(found, score) for found, score in tried if score.solves(now)]:
            return _solutions(solved, measured)
        idle = {id(found[-1]) for found, score in tried if score.values == now.values}  # what changes nothing
        tried = [(found, score) for found, score in tried if id(found[-1]) not in idle]
        tried.sort(key=lambda pair: _order(pair[1]))  # stable: the usual ones first among equals
        first = first or tried
        if not tried or not tried[0][1].drops(now, STEP):
            break
        orders = {id(found[-1]): _order(score) for found, score in tried}
        candidates = [c for c in candidates if id(c) not in idle]
        candidates.sort(key=lambda c: (c.rank, orders.get(id(c), (0, math.inf))))
        chosen, now = tried[0]
    for ranking, base in ((tried, chosen), (first, [])) if not now.agrees else ():
        if pair := _pair(ranking, base, measured, budget, start):
            return _solutions([pair], measured)
    if not now.is_strong(start):
        return []
    needed = [c for c in chosen if now.is_strong(measured([d for d in chosen if d is not c]))]
    score = measured(needed)
    return [_sentence(needed, score, start)] if needed and score.is_strong(start) else []


def _tried(
    candidates: Sequence[C],
    chosen: Sequence[C],
    now: _Score,
    measured: Callable[[Sequence[C]], _Score],
    budget: _Budget,
) -> list[tuple[list[C], _Score]]:
    """Return each candidate beside what is chosen, or in place of what it excludes, with the differences."""
    tried: list[tuple[list[C], _Score]] = []
    helps, rank = False, 0
    for candidate in candidates:
        if helps and candidate.rank > rank:
            break
        rank = candidate.rank
        found = [*(other for other in chosen if not _exclude(candidate, other)), candidate]
        if candidate in chosen or len(found) > MAX_FAULTS:
            continue
        if not budget.spend():
            break
        tried.append((found, measured(found)))
        helps = helps or tried[-1][1].drops(now, MUCH)
    return tried


def _exclude(one: Candidate, other: Candidate) -> bool:
    return one.kind == other.kind and bool(one.places & other.places)


def _order(score: _Score) -> tuple[int, float]:
    return -score.first, score.worst


def _pair(
    tried: Sequence[tuple[list[C], _Score]],
    chosen: Sequence[C],
    measured: Callable[[Sequence[C]], _Score],
    budget: _Budget,
    start: _Score,
) -> tuple[list[C], _Score] | None:
    """Return the first two changes that make both agree together, of those that help most, a few for each place."""
    counts: Counter[tuple[str, frozenset[object]]] = Counter()
    best: list[C] = []
    for (*_, candidate), _ in tried:
        counts[candidate.kind, candidate.places] += 1
        best += [candidate] if counts[candidate.kind, candidate.places] <= PER_PLACE else []
    for one, other in itertools.combinations(best[:PAIRED], 2):
        kept = [c for c in chosen if not _exclude(c, one) and not _exclude(c, other)]
        if _exclude(one, other) or len(kept) + 2 > MAX_FAULTS:
            continue
        if not budget.spend():
            return None
        if (score := measured([*kept, one, other])).solves(start):
            return [*kept, one, other], score
    return None


def _solutions(solved: list[tuple[list[C], _Score]], measured: Callable[[Sequence[C]], _Score]) -> list[str]:
    """Return the sentences of changes that make both agree: alternatives, or the best of several together."""
    if all(len(found) == 1 for found, _ in solved):
        singles = [(found[0], score) for found, score in solved]
        return [_sentence([c], score) for c, score in _alternatives(singles)[:MAX_ALTERNATIVES]]
    found, score = min(solved, key=lambda pair: (_decade(pair[1].worst), sum(len(c.places) for c in pair[0])))
    for candidate in list(found):
        rest = [c for c in found if c is not candidate]
        if (without := measured(rest)).agrees:
            found, score = rest, without
    return [_sentence(found, score)]


def _alternatives(solved: list[tuple[C, _Score]]) -> list[tuple[C, _Score]]:
    """Return those that agree as well as the best, without those of one kind that change more than another does."""
    best = max(min(score.worst for _, score in solved), ROUNDING)
    solved = [(c, s) for c, s in solved if s.worst <= BESIDE * best]
    smallest = [(c, s) for c, s in solved if not any(d.kind == c.kind and d.places < c.places for d, _ in solved)]
    found: list[tuple[C, _Score]] = []
    for candidate, score in sorted(smallest, key=lambda pair: _decade(pair[1].worst)):
        if not any(
            (candidate.kind == other.kind and candidate.places == other.places) or candidate.what == other.what
            for other, _ in found
        ):
            found.append((candidate, score))
    return found


def _decade(value: float) -> int:
    return round(math.log10(max(value, ROUNDING)))


def _sentence(changes: Sequence[Candidate], score: _Score, start: _Score | None = None) -> str:
    """Return what is likely, and by how much both differ with the changes; with `start`, they still differ."""
    what = ", and ".join(change.what for change in changes)
    together = "when changed" if len(changes) == 1 else "when all are changed"
    if start is None:
        how = f"agrees to {score.worst:.0e}" if score.worst else "agrees exactly"
        return f"likely: {what} ({how} {together})"
    if score.first > start.first:
        return f"likely: {what} (what differed first agrees {together}; something later still differs)"
    return f"likely: {what} ({score.worst:.0e} instead of {start.worst:.0e} {together}; something else still differs)"
