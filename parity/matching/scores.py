"""Which leaf of one side is which of the other: words, numbers, order and modules, in one optimal assignment.

What is known of a pair, equal values or equal gradients, comes in as `known` and outweighs every word.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from parity.matching.assign import assign
from parity.matching.layouts import usual_layouts
from parity.matching.leaves import Leaf, words_of
from parity.matching.words import GROUPS, Number, Words, numbers

__all__ = ["KNOWN", "Pairing", "pair"]

KNOWN = 100.0
"""Score of a pair that values or gradients have decided."""
MINIMUM = -0.6
"""Score under which leaves are no pair: roles that exclude each other, and nothing in common."""
ROLE, RAW = 1.5, 1.0
"""Weight of a common role and of a common word."""
CONFLICT = 0.5
"""Cost of roles that exclude each other."""
KIND = 2.0
"""Cost of a weight paired with a bias, or a mean with a variance."""
RANK = 0.05
"""Score of the same place among leaves of the same shape."""
BLOCK, INNER = 0.6, 0.15
"""Score of the same number of a block, and of a single layer; the cost of another one is the same."""
MODULE = 0.8
"""Score of leaves whose modules, or modules around those, correspond."""
LAYOUT = 0.2
"""Score of the usual layout of a matrix: JAX keeps input × output as `kernel` or `w`, torch output × input."""
LEVELS = 3
"""Number of modules around a leaf that count."""
ROUNDS = 4
"""Number of assignments, each with the modules that the one before it pairs."""


@dataclass(frozen=True)
class Pairing:
    """An assignment of leaves, with the scores that led to it."""

    pairs: dict[int, int]
    """Number of a JAX leaf -> number of torch's."""
    scores: np.ndarray
    """JAX leaves × torch leaves."""
    possible: np.ndarray
    """Whether the shapes fit."""
    alike: np.ndarray
    """Cosine of the words and roles."""
    conflicts: np.ndarray
    """Number of groups in which the roles exclude each other."""
    telling: np.ndarray
    """Scores of words, roles and numbers alone, without order and modules."""
    vague: np.ndarray
    """Whether one name alone says which of several matrices it is, such as the query or the gate."""


def pair(jax: Sequence[Leaf], torch: Sequence[Leaf], known: np.ndarray | None = None) -> Pairing:
    """Return the best assignment.

    Args:
        jax: leaves of JAX.
        torch: leaves of torch.
        known: JAX leaves × torch leaves: 1 where a pair is known, −1 where it is excluded, else 0.
    """
    ours, theirs = words_of(jax), words_of(torch)
    possible = _table([leaf.shape for leaf in jax], [leaf.shape for leaf in torch], _have_layout)
    whole = [np.array([leaf.whole for leaf in side]) for side in (jax, torch)]
    possible = possible.astype(bool) & (whole[0][:, None] == whole[1])
    alike = _cosine(ours, theirs)
    conflicts = _conflicts(ours, theirs)
    kind = _conflicts(ours, theirs, GROUPS[1:2])
    counted = _numbers_agree(numbers([leaf.parts for leaf in jax]), numbers([leaf.parts for leaf in torch]))
    telling = alike - CONFLICT * (conflicts - kind) - KIND * kind + counted
    telling = telling - 0.05 * np.array([leaf.buffer for leaf in torch])
    kinds = _kinds(ours), _kinds(theirs)
    places = (_places(side, kind) for side, kind in zip((jax, torch), kinds))
    same_place = 1 - np.abs(np.subtract.outer(*places))
    base = telling + RANK * (_same_rank(jax, torch, possible, *kinds) + same_place)
    base = base + LAYOUT * _usual_layout(jax, torch, ours)
    if known is not None:
        base = base + KNOWN * known
        possible = possible & (known >= 0) | (known > 0)
    scores, pairs = base, assign(base, possible, MINIMUM)
    above = _modules(jax), _modules(torch)
    weights = 1 / np.maximum(possible.sum(1), 1), 1 / np.maximum(possible.sum(0), 1)
    for _ in range(ROUNDS):
        scores = base + MODULE * _same_module(*above, pairs, weights)
        before, pairs = pairs, assign(scores, possible, MINIMUM)
        if pairs == before:
            break
    vague = _table([w.roles & GROUPS[0] for w in ours], [w.roles & GROUPS[0] for w in theirs], _one_alone)
    return Pairing(pairs, scores, possible, alike, conflicts, telling, vague)


def _one_alone(one: frozenset[str], other: frozenset[str]) -> bool:
    return bool(one) != bool(other)


def _have_layout(jax: tuple[int, ...], torch: tuple[int, ...]) -> bool:
    return bool(usual_layouts(jax, torch))


def _table(ours: Sequence, theirs: Sequence, of: Callable[..., float]) -> np.ndarray:
    """Return a value for every pair, computed once for equal ones."""
    rows, columns = list(dict.fromkeys(ours)), list(dict.fromkeys(theirs))
    small = np.array([[of(a, b) for b in columns] for a in rows]).reshape(len(rows), len(columns))
    row, column = ({each: i for i, each in enumerate(side)} for side in (rows, columns))
    return small[np.ix_(np.array([row[a] for a in ours], int), np.array([column[b] for b in theirs], int))]


def _cosine(ours: Sequence[Words], theirs: Sequence[Words]) -> np.ndarray:
    """Return how alike names are by their words and roles; rare ones count more."""
    sides = []
    for words in (ours, theirs):
        found = ({f"role {r}" for r in w.roles} | {f"word {r}" for r in w.raw if not r.isdigit()} for w in words)
        sides.append(list(found))
    vocabulary = {feature: i for i, feature in enumerate(sorted(set().union(*sides[0], *sides[1])))}
    rows = [np.zeros((len(side), len(vocabulary))) for side in sides]
    for table, side in zip(rows, sides):
        counts = Counter(feature for features in side for feature in features)
        for i, features in enumerate(side):
            for feature in features:
                weight = ROLE if feature.startswith("role") else RAW
                table[i, vocabulary[feature]] = weight * np.log(1.2 + len(side) / counts[feature])
    one, two = rows
    only = (one.any(0) & two.any(0)) * 1.0  # a word of one side alone says little
    one, two = (table * (0.3 + 0.7 * only) for table in (one, two))
    norms = np.linalg.norm(one, axis=1)[:, None] * np.linalg.norm(two, axis=1)
    return one @ two.T / np.maximum(norms, 1e-9)


def _conflicts(ours: Sequence[Words], theirs: Sequence[Words], groups: Sequence[frozenset[str]] = GROUPS) -> np.ndarray:
    """Return the number of groups in which both have roles, and none in common."""

    def count(one: frozenset[str], other: frozenset[str]) -> int:
        return sum(bool(one & g) and bool(other & g) and not one & other & g for g in groups)

    return _table([w.roles for w in ours], [w.roles for w in theirs], count)


def _numbers_agree(ours: list[list[Number]], theirs: list[list[Number]]) -> np.ndarray:
    """Return whether numbers of blocks, of which both sides have as many, are the same."""

    def score(one: tuple[Number, ...], other: tuple[Number, ...]) -> float:
        total, at = 0.0, 0
        for number in one:
            places = [i for i in range(at, len(other)) if other[i].count == number.count]
            places = [i for i in places if other[i].inner == number.inner]
            if places:
                at = places[0] + 1
                worth = INNER if number.inner else BLOCK
                total += worth if other[places[0]].rank == number.rank else -worth
        return total

    return _table([tuple(each) for each in ours], [tuple(each) for each in theirs], score)


def _kinds(words: Sequence[Words]) -> list[frozenset[str]]:
    return [each.roles & GROUPS[1] for each in words]


def _usual_layout(jax: Sequence[Leaf], torch: Sequence[Leaf], words: Sequence[Words]) -> np.ndarray:
    """Return whether the first layout of a pair of matrices is the one that the JAX leaf's name asks for."""

    def of(one: tuple[tuple[int, ...], str], other: tuple[int, ...]) -> bool:
        layouts = usual_layouts(one[0], other)
        if not layouts or len(other) != 2 or not one[1]:
            return False
        return any(kind == "transpose" for kind, _ in layouts[0]) == (one[1] in ("kernel", "w"))

    tables = [
        bool(each.roles & {"embed", "pos", "type"}) or leaf.parts[-1] == "embedding" for leaf, each in zip(jax, words)
    ]
    ours = [
        (leaf.shape, "table" if table else leaf.parts[-1] if leaf.parts[-1] in ("kernel", "w", "weight") else "")
        for leaf, table in zip(jax, tables)
    ]
    return _table(ours, [leaf.shape for leaf in torch], of)


def _places(leaves: Sequence[Leaf], kinds: Sequence[frozenset[str]]) -> np.ndarray:
    """Return the place of each leaf, from 0 to 1, among those of its kind and shape in the block around its module."""
    blocks: dict[tuple, list[int]] = defaultdict(list)
    for i, leaf in enumerate(leaves):
        blocks[leaf.parts[:-2], kinds[i], tuple(sorted(size for size in leaf.shape if size > 1))].append(i)
    places = np.zeros(len(leaves))
    for members in blocks.values():
        for place, i in enumerate(members):
            places[i] = (place + 0.5) / len(members)
    return places


def _same_rank(
    jax: Sequence[Leaf],
    torch: Sequence[Leaf],
    possible: np.ndarray,
    ours: Sequence[frozenset[str]],
    theirs: Sequence[frozenset[str]],
) -> np.ndarray:
    """Return how close the places of two leaves are among all of the kind that fit the same shapes, in order."""
    classes: dict[tuple, list[int]] = defaultdict(list)
    for i in range(len(jax)):
        classes[possible[i].tobytes(), ours[i]].append(i)
    same = np.zeros(possible.shape)
    for members in classes.values():
        fits, kind = possible[members[0]], ours[members[0]]
        columns = np.array([k for k in range(len(theirs)) if fits[k] and theirs[k] == kind], dtype=np.intp)
        if len(columns):
            place = (np.arange(len(members)) + 0.5) / len(members)
            others = (np.arange(len(columns)) + 0.5) / len(columns)
            same[np.ix_(np.array(members), columns)] = 1 - np.abs(place[:, None] - others)
    return same


def _modules(leaves: Sequence[Leaf]) -> tuple[np.ndarray, np.ndarray]:
    """Return leaves × modules, whether one is in the other, and leaves × LEVELS, the modules around each."""
    names = {leaf.parts[:depth] for leaf in leaves for depth in range(len(leaf.parts))}
    index = {name: i for i, name in enumerate(sorted(names))}
    inside = np.zeros((len(leaves), len(index)))
    around = np.zeros((len(leaves), LEVELS), int)
    for i, leaf in enumerate(leaves):
        for depth in range(len(leaf.parts)):
            inside[i, index[leaf.parts[:depth]]] = 1
        for level in range(LEVELS):
            around[i, level] = index[leaf.parts[: max(0, len(leaf.parts) - 1 - level)]]
    return inside, around


def _same_module(
    ours: tuple[np.ndarray, np.ndarray],
    theirs: tuple[np.ndarray, np.ndarray],
    pairs: dict[int, int],
    weights: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Return how much the modules around two leaves correspond, by how many of their leaves are paired.

    Args:
        ours: JAX leaves × modules, and the modules around each.
        theirs: the same of torch.
        pairs: numbers of the leaves that are paired.
        weights: of the leaves of each side; one that fits few others says more.
    """
    rows, columns = list(pairs), list(pairs.values())
    assigned = np.zeros((len(weights[0]), len(weights[1])))
    assigned[rows, columns] = weights[0][rows] + weights[1][columns]
    common = ours[0].T @ assigned @ theirs[0]
    share = common / np.add.outer(weights[0] @ ours[0], weights[1] @ theirs[0])
    share[0, 1:] = share[1:, 0] = 0  # the roots correspond to each other alone
    total = np.zeros(assigned.shape)
    for level in range(LEVELS):
        best = [share[np.ix_(ours[1][:, level], theirs[1][:, other])] for other in range(LEVELS)]
        total += np.max(best, 0)
    return total / LEVELS
