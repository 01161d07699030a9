"""A recording by the other side's names and in its layouts, so that the two can be compared name by name."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np

from lmcore.errors import UserError
from parity.arrays import Arrays
from parity.mapping import Row
from parity.ports.recording import Recording
from parity.ports.side import Framework, Updated

__all__ = ["Translation"]

SUM = " + "
"""Between the names of arrays whose gradients are one on the other side, as of tied weights."""
ALIKE = 1e-2
"""Largest relative difference of a tapped value from the submodule's output that it is taken for."""
NEARER = 3.0
"""Factor by which axes in another order must be nearer than as they are, where both have the shape."""
TRANSLATED = re.compile(r"(grads|state|updates/\d+/[^/]+)/")
"""Sections of `Recording.noise` whose names are those of parameters; Haiku's have slashes of their own."""
MAX_AXES = 5
"""Number of axes whose orders are all tried."""


class Translation:
    """Moves arrays from one side's names and layouts to the other's.

    Args:
        rows: the mapping of names.
        to: whose names the results have.
    """

    def __init__(self, rows: Sequence[Row], to: Framework):
        self.rows, self.to = rows, to

    def weights(self, arrays: Arrays) -> Arrays:
        """Return parameters and statistics; what no row names is left out."""
        found: Arrays = {}
        for row in self._present(arrays):
            try:
                if row.copies and self.to == "jax":
                    found |= row.to_jax(arrays | {name: np.zeros_like(arrays[name]) for name in row.torch[1:]})
                else:
                    found |= self._moved(row, arrays)
            except ValueError as error:
                raise UserError(f"names: {' and '.join(self._source(row))}: {error}") from error
        return found

    def values(self, arrays: Arrays) -> Arrays:
        """Return what has a counterpart of its own: not what one side shares."""
        rows = [row for row in self._present(arrays) if not (row.shares or row.copies)]
        return {name: value for row in rows for name, value in self._moved(row, arrays).items()}

    def gradients(self, arrays: Arrays) -> Arrays:
        """Return gradients; of what the other side has more than once, the sum, under all of its names."""
        found: Arrays = {}
        for row in self._present(arrays):
            if row.shares and self.to == "torch":
                total = sum((arrays[name] for name in row.jax[1:]), arrays[row.jax[0]])
                found |= row.to_torch(dict.fromkeys(row.jax, total))
            elif row.shares or (row.copies and self.to == "torch"):
                found[SUM.join(self._target(row))] = next(iter(self._moved(row, arrays).values()))
            else:
                found |= self._moved(row, arrays)
        return found

    def recording(self, recording: Recording, like: Recording, taps: Mapping[str, str]) -> Recording:
        """Return a whole recording.

        Args:
            recording: of one side.
            like: of the other, whose names the result has.
            taps: name of a tap -> submodule, of a torch module.
        """
        activations, by_themselves, lost = self._activations(recording, like, taps)
        notes = [*recording.notes]
        if lost:
            notes.append(f"taps without a counterpart: {', '.join(lost)}")
        named = {name for row in self.rows for name in self._source(row)}
        if kept := [name for name in recording.state if name not in named and self.to == "jax"]:
            notes.append(f"torch buffers that no row names keep their values: {', '.join(kept)}")
        return replace(
            recording,
            activations=activations,
            modules=by_themselves,
            grads=self.gradients(recording.grads),
            state=self.values(recording.state),
            weights=self.weights(recording.weights),
            trained=like.trained,
            frozen=tuple(
                name
                for row in self.rows
                if set(self._source(row)) & set(recording.frozen)
                for name in self._target(row)
            ),
            noise=self._noise(recording.noise),
            updates=tuple(
                Updated(self.values(each.params), {kind: self.values(m) for kind, m in each.moments.items()})
                for each in recording.updates
            ),
            notes=tuple(notes),
        )

    def _source(self, row: Row) -> tuple[str, ...]:
        return row.torch if self.to == "jax" else row.jax

    def _target(self, row: Row) -> tuple[str, ...]:
        return row.jax if self.to == "jax" else row.torch

    def _present(self, arrays: Arrays) -> list[Row]:
        return [row for row in self.rows if set(self._source(row)) <= arrays.keys()]

    def _moved(self, row: Row, arrays: Arrays) -> Arrays:
        return row.to_jax(arrays) if self.to == "jax" else row.to_torch(arrays)

    def _noise(self, noise: Mapping[str, float]) -> dict[str, float]:
        sections = {key: match[1] for key in noise if (match := TRANSLATED.match(key))}
        found = {key: value for key, value in noise.items() if key not in sections}
        for row in self.rows:
            for section in dict.fromkeys(sections.values()):
                sizes = [noise[key] for name in self._source(row) if (key := f"{section}/{name}") in noise]
                if sizes:
                    names = [SUM.join(self._target(row))] if row.shares or row.copies else self._target(row)
                    found |= {f"{section}/{name}": max(sizes) for name in names}
        return found

    def _activations(
        self, recording: Recording, like: Recording, taps: Mapping[str, str]
    ) -> tuple[Arrays, dict[str, tuple[str, ...]], list[str]]:
        """Return the activations by the names of `like`, in its order; those found by themselves; taps left over."""
        found: Arrays = {}
        by_themselves: dict[str, tuple[str, ...]] = {}
        lost: list[str] = []
        for name, value in like.activations.items():
            base, number = _call(name)
            if base in taps:
                candidates = [_calls(recording, taps[base])[number : number + 1]]
            elif name in recording.activations and name not in recording.modules:
                candidates = [[recording.activations[name]]]
            elif name in like.modules:
                candidates = [calls[number : number + 1] for calls in self._counterparts(recording, like, base)]
                by_themselves[name] = ()
            else:
                candidates = [[other] for other in recording.activations.values() if _apart(value, other) < ALIKE]
                by_themselves[name] = ()
            fitting = [fit for calls in candidates for x in calls if (fit := _fit(value, x)) is not None]
            if fitting:
                found[name] = min(fitting, key=lambda other: _apart(value, other))
            elif base in taps and any(candidates):
                found[name] = candidates[0][0]  # of another shape, which is a difference
            elif name not in like.modules:
                lost.append(name)
        for tap, submodule in taps.items():
            calls = [name for name in like.activations if _call(name)[0] == tap]
            lost += [f"{tap} ({n + 1})" for n in range(len(calls), len(_calls(recording, submodule)))]
        lost += [n for n in recording.activations if n not in recording.modules and n not in like.activations]
        return found, {name: () for name in by_themselves if name in found}, lost

    def _counterparts(self, recording: Recording, like: Recording, base: str) -> list[list[np.ndarray]]:
        """Return the calls of each submodule, or row of submodules, with the parameters of a submodule of `like`."""
        under = set(like.modules[base])
        wanted = {name for row in self.rows if under & set(self._target(row)) for name in self._source(row)}
        if not wanted:
            return []
        named = {name for row in self.rows for name in self._source(row)}
        bases = {_call(name)[0]: named & set(names) for name, names in recording.modules.items()}
        exact = [_calls(recording, name) for name, names in bases.items() if names == wanted]
        families: dict[str, list[str]] = {}
        for name in bases:
            families.setdefault(re.sub(r"\d+", "{}", name), []).append(name)
        for names in families.values():  # one submodule that runs for each layer, and a list of them
            disjoint = sum(len(bases[n]) for n in names) == len(wanted)
            if len(names) > 1 and disjoint and set[str]().union(*(bases[n] for n in names)) == wanted:
                ordered = sorted(names, key=lambda n: [int(digits) for digits in re.findall(r"\d+", n)])
                exact.append([_calls(recording, n)[0] for n in ordered])
        return exact


def _call(name: str) -> tuple[str, int]:
    """Return a name without its number, and the number of the call, from 0."""
    match = re.fullmatch(r"(.*) \((\d+)\)", name)
    return (match.group(1), int(match.group(2)) - 1) if match else (name, 0)


def _calls(recording: Recording, base: str) -> list[np.ndarray]:
    """Return the activations of every call of a submodule, in order."""
    return [value for name, value in recording.activations.items() if _call(name)[0] == base]


def _fit(wanted: np.ndarray, found: np.ndarray) -> np.ndarray | None:
    """Return an array in the shape of another: as it is, its axes in another order, or the last ones joined or split.

    Of several orders of axes, the one whose values are nearest, but as it is unless another is much nearer; None where
    none fits.
    """
    if sorted(wanted.shape) == sorted(found.shape) and found.ndim <= MAX_AXES:
        orders = [found.transpose(order) for order in permutations(range(found.ndim))]
        nearest = min((t for t in orders if t.shape == wanted.shape), key=lambda other: _distance(wanted, other))
        as_it_is = wanted.shape == found.shape and _distance(wanted, found) <= NEARER * _distance(wanted, nearest)
        return found if as_it_is else nearest
    if wanted.shape == found.shape:
        return found
    first = next((i for i, pair in enumerate(zip(wanted.shape, found.shape, strict=False)) if pair[0] != pair[1]), 0)
    return found.reshape(wanted.shape) if first > 0 and wanted.size == found.size else None


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    """Return the distance of two arrays, the second in the shape of the first; infinite where it does not fit."""
    fitted = _fit(one, other)
    return np.inf if fitted is None else _distance(one, fitted)


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference relative to the largest value; infinite where it is not finite."""
    scale = max(float(np.abs(each).max(initial=0.0)) for each in (one, other)) or 1.0
    size = float(np.abs(one - other).max(initial=0.0)) / scale if one.dtype != bool else float((one != other).any())
    return size if np.isfinite(size) else np.inf
