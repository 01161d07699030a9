"""One suspected cause of a difference: its words, and what changes in torch's run."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from parity.mapping import Row
from parity.ports.causes.operations import OUTSIDE, Key, Operation, Replace, changed
from parity.ports.causes.search import Candidate

__all__ = ["Relayout", "Trial", "change", "groups", "over", "ranked"]

Relayout = Callable[[list[Row]], list[Row]]
"""From the mapping of names to one with other layouts."""
SHOWN = 3
"""Number of places that are named one by one."""


@dataclass(frozen=True, kw_only=True)
class Trial(Candidate):
    """A change of torch's run under which it would agree with JAX if this were the cause."""

    calls: Sequence[Key] = ()
    """Operations that are replaced."""
    replace: Replace | None = None
    relayout: Relayout | None = None
    """Changes the layout of torch's parameters."""

    def change(self, module: torch.nn.Module, rows: list[Row]) -> tuple[AbstractContextManager[None], list[Row]]:
        """Return a context in which the module computes with the change, and the mapping of names with it."""
        return change([self], module, rows)


def change(
    trials: Sequence[Trial], module: torch.nn.Module, rows: list[Row]
) -> tuple[AbstractContextManager[None], list[Row]]:
    """Return a context and a mapping of names with several changes at once."""
    for trial in trials:
        rows = trial.relayout(rows) if trial.relayout else rows
    return changed(module, [(trial.calls, trial.replace) for trial in trials if trial.replace]), rows


def over(kind: str, operations: Iterable[Operation], what: str, replace: Replace) -> list[Trial]:
    """Return the trials of one replacement: at all operations, at those of each pattern of places, and at each.

    Args:
        kind: of the trials.
        operations: which may be replaced.
        what: words, without the place.
        replace: computes in place of each.
    """
    keys = list(dict.fromkeys(op.key for op in operations))
    return [
        Trial(what=f"{what} in {label}", kind=kind, places=frozenset(keys), calls=keys, replace=replace, rank=rank)
        for label, keys, rank in groups(keys)
    ]


def groups(keys: Sequence[Key]) -> list[tuple[str, list[Key], int]]:
    """Return which operations are changed together: words, operations, and rank."""
    patterns: dict[str, list[Key]] = {}
    for key in keys:
        patterns.setdefault(_pattern(key[0]), []).append(key)
    found = [(label(keys), list(keys), 0)] if len(keys) > 1 else []
    if len(patterns) > 1:
        found += [(label(members), members, 1) for members in patterns.values() if len(members) > 1]
    rank = 2 if found else 0  # a single one is all that is alike
    return found + [(label([key], alone=_is_alone(key, keys)), [key], rank) for key in keys]


def label(keys: Sequence[Key], alone: bool = True) -> str:
    """Return words for the places of operations.

    Args:
        keys: of the operations.
        alone: whether a single operation is the only one of its name in its place.
    """
    places = list(dict.fromkeys(key[0] for key in keys))
    if not alone:
        return f"{_place(places[0])} ({keys[0][1]}, call {keys[0][2] + 1})"
    patterns = {_pattern(place) for place in places}
    if len(places) > 1 and len(patterns) == 1:
        return patterns.pop()
    if len(places) <= SHOWN:
        return " and ".join(filter(None, [", ".join(map(_place, places[:-1])), _place(places[-1])]))
    return f"all {len(places)} places, from {_place(places[0])} to {_place(places[-1])}"


def _is_alone(key: Key, keys: Sequence[Key]) -> bool:
    return sum(other[:2] == key[:2] for other in keys) == 1


def _place(place: str) -> str:
    return {"": "the module itself", OUTSIDE: "the loss"}.get(place, place)


def _pattern(place: str) -> str:
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", place)


def ranked(trials: Iterable[Trial]) -> list[Trial]:
    """Return trials in the order in which they are made: what changes much at once first, and each kind in its turn."""
    numbers: Counter[tuple[int, str]] = Counter()
    keyed = []
    for trial in trials:
        keyed.append(((trial.rank, numbers[trial.rank, trial.kind]), trial))
        numbers[trial.rank, trial.kind] += 1
    return [trial for _, trial in sorted(keyed, key=lambda pair: pair[0])]
