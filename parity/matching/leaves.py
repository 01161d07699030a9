"""Parameters as leaves that correspond one to one: stacked layers and fused matrices are cut into their parts.

Layers that JAX stacks for `scan` become one leaf for each; a matrix of queries, keys and values in one, or of an LSTM's
gates, becomes its parts where the other side keeps them apart.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from parity.matching.layouts import usual_layouts
from parity.matching.words import GROUPS, Words, components, numbers, read

__all__ = ["Cut", "Leaf", "cut_parts", "cut_stacks", "leaves_of"]

Shape = tuple[int, ...]
FUSED = (("q", "k", "v"), ("k", "v"), ("gate", "up"))
"""Roles of the parts that libraries join, in the usual order."""
FUSED_WORDS = {
    ("q", "k", "v"): {"qkv"},
    ("k", "v"): {"kv", "kvproj", "tokv", "wkv", "kveinsum", "keyvalue"},
    ("gate", "up"): {"gateup", "gateupproj", "w12", "gatingeinsum", "wi", "w13"},
}
GATES = {"i": (("ii", "if", "ig", "io"), ("ir", "iz", "in")), "h": (("hi", "hf", "hg", "ho"), ("hr", "hz", "hn"))}
"""Flax's names of the parts of torch's `weight_ih_l0` and `weight_hh_l0`, of an LSTM and a GRU."""
MIN_STACKED = 2
MANY = 1.5
"""How many times as many leaves the other side has at least, where shapes fit with layers stacked and apart."""
NOT_FINAL = frozenset(("embed", "patch", "shortcut", "pos", "type"))
"""Roles of norms that are in no block, and not the last."""
BRANCHES = {"self": "n1", "cross": "nx", "mlp": "n2"}
"""Branch of a block -> role of its norm."""


@dataclass(frozen=True)
class Cut:
    """A part of an array along one axis."""

    kind: str
    """`layer` for one index of a stack, whose axis it loses; `part` for a range of indices."""
    axis: int
    start: int
    stop: int
    number: int
    """Among the parts, in order."""
    count: int


@dataclass(frozen=True)
class Leaf:
    """A parameter, or a part of one."""

    source: str
    """Name of the parameter."""
    parts: tuple[str, ...]
    """Parts of its name; those of a part of an array have its role."""
    shape: Shape
    cuts: tuple[Cut, ...] = ()
    extra: frozenset[str] = frozenset()
    """Roles that it has besides those of its name."""
    buffer: bool = False
    label: str = ""
    """Name among several that a tied parameter has."""
    whole: bool = False
    """Whether its values are integers or truth values."""

    def of(self, array: np.ndarray) -> np.ndarray:
        """Return its part of the array, as a view."""
        for cut in self.cuts:
            where = cut.start if cut.kind == "layer" else slice(cut.start, cut.stop)
            array = array[(*(slice(None),) * cut.axis, where)]
        return array


def leaves_of(
    shapes: Mapping[str, Shape], buffers: Mapping[str, Shape], tied: Mapping[str, Sequence[str]]
) -> list[Leaf]:
    """Return a leaf for each parameter, and for each further name of a tied one.

    Args:
        shapes: name of each parameter -> its shape.
        buffers: the same of buffers.
        tied: name of a parameter -> its other names.
    """
    leaves = [Leaf(name, components(name), shape) for name, shape in shapes.items()]
    leaves += [Leaf(name, components(name), shape, buffer=True) for name, shape in buffers.items()]
    leaves += [
        Leaf(name, components(label), shapes[name], label=label) for name, labels in tied.items() for label in labels
    ]
    return leaves


def words_of(leaves: Sequence[Leaf]) -> list[Words]:
    """Return what the names say, and what the other parameters of a module say of it."""
    modules = {leaf.parts[:-2] for leaf in leaves}
    inside = [any(not number.inner for number in mine) for mine in numbers([leaf.parts for leaf in leaves])]
    read_all = [read(leaf.parts, in_block) for leaf, in_block in zip(leaves, inside)]
    ranks: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for leaf, words in zip(leaves, read_all):
        if words.roles & {"weight", "mean", "var"}:
            ranks[leaf.parts[:-1]].add(sum(size > 1 for size in leaf.shape))
    found = []
    for leaf, words, in_block in zip(leaves, read_all, inside):
        roles = words.roles | leaf.extra
        roles = roles - {"qkv"} if leaf.extra else roles
        if leaf.parts[:-1] in modules:  # a parameter beside modules
            if leaf.parts[-1] == "gamma":
                roles = roles - {"weight"} | {"layerscale"}
        elif rank := ranks.get(leaf.parts[:-1]):
            roles = roles - {"norm"} | ({"norm"} if max(rank) < 2 else {"affine"})
        if "norm" in roles and not in_block and not roles & (GROUPS[2] | NOT_FINAL):
            roles |= {"nf"}
        found.append(replace(words, roles=roles))
    return _of_blocks(leaves, found)


def _of_blocks(leaves: Sequence[Leaf], words: list[Words]) -> list[Words]:
    """Return the words, with the role of a norm in a block that has attention alone, or a feed-forward layer alone."""
    branches: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for leaf, each in zip(leaves, words):
        for depth in range(1, len(leaf.parts) - 1):
            branches[leaf.parts[:depth]] |= {branch for branch in BRANCHES if branch in each.roles}
    found = []
    for leaf, each in zip(leaves, words):
        roles, around = each.roles, branches.get(leaf.parts[:-2], set())
        if "norm" in roles and not roles & GROUPS[2] and len(around) == 1:
            roles |= {BRANCHES[next(iter(around))]}
        found.append(replace(each, roles=roles))
    return found


def cut_stacks(leaves: list[Leaf], others: list[Leaf], reverse: bool = False) -> list[Leaf]:
    """Return the leaves, with stacked layers cut where the other side has as many blocks apart.

    Args:
        leaves: of the side that may stack.
        others: of the other.
        reverse: whether `leaves` are torch's, so that layouts lead from the others to them.
    """
    counts = {number.count for mine in numbers([o.parts for o in others]) for number in mine}
    shapes = {other.shape for other in others}
    below: dict[tuple[str, ...], list[Leaf]] = defaultdict(list)
    for leaf in leaves:
        for depth in range(len(leaf.parts)):
            below[leaf.parts[:depth]].append(leaf)
    for prefix, inside in sorted(below.items(), key=lambda item: len(item[0])):
        for axis in (0, 1):
            sizes = {leaf.shape[axis] if len(leaf.shape) > axis else 0 for leaf in inside}
            if len(sizes) != 1 or (count := sizes.pop()) < MIN_STACKED or count not in counts:
                continue
            apart = [_layers(leaf, prefix, axis, count) for leaf in inside]
            fit = sum(_fits(leaf.shape, shapes, reverse) for leaf in inside)
            apart_fit = sum(_fits(layers[0].shape, shapes, reverse) for layers in apart)
            if apart_fit > fit or (apart_fit == fit > 0 and len(others) >= MANY * len(leaves)):
                rest = [leaf for leaf in leaves if leaf not in inside]
                return cut_stacks(rest, others, reverse) + [layer for layers in apart for layer in layers]
    return leaves


def _layers(leaf: Leaf, prefix: tuple[str, ...], axis: int, count: int) -> list[Leaf]:
    shape = leaf.shape[:axis] + leaf.shape[axis + 1 :]
    return [
        replace(
            leaf,
            parts=(*prefix, str(i), *leaf.parts[len(prefix) :]),
            shape=shape,
            cuts=(Cut("layer", axis, i, i + 1, i, count),),
        )
        for i in range(count)
    ]


def _fits(shape: Shape, shapes: set[Shape], reverse: bool) -> bool:
    return any(usual_layouts(*((other, shape) if reverse else (shape, other))) for other in shapes)


def cut_parts(leaves: list[Leaf], others: list[Leaf], reverse: bool = False) -> list[Leaf]:
    """Return the leaves, with fused ones cut where the other side has their parts apart.

    Args:
        leaves: of the side that may fuse.
        others: of the other.
        reverse: whether `leaves` are torch's, so that layouts lead from the others to them.
    """
    groups: dict[tuple[tuple[str, ...], str], dict[str, Leaf]] = defaultdict(dict)
    for other, words in zip(others, words_of(others)):
        for role in words.roles & ALL_PARTS:
            kind = "bias" if "bias" in words.roles else "weight"
            groups[_without(other, role), kind].setdefault(role, other)
    fused = {prod(o.shape) for o, words in zip(others, words_of(others)) if _fused_roles(o, words)}
    found: list[Leaf] = []
    for leaf, words in zip(leaves, words_of(leaves)):
        if prod(leaf.shape) in fused:  # the other side has it fused too
            found.append(leaf)
            continue
        kind = "bias" if "bias" in words.roles else "weight"
        options = (
            (roles, [group[role] for role in roles])
            for roles in _fused_roles(leaf, words)
            for (_, of), group in groups.items()
            if of == kind and set(roles) <= group.keys()
        )
        parts = next((cut for option in options if (cut := _cut(leaf, *option, reverse))), None)
        found += parts or [leaf]
    return found


ALL_PARTS = frozenset(role for roles in (*FUSED, *GATES["i"], *GATES["h"]) for role in roles)


def _without(leaf: Leaf, role: str) -> tuple[str, ...]:
    """Return the parts of a name around the one that has a role; of a numbered block, without its number."""
    words = [read((part, "x"), False).roles for part in leaf.parts]
    return tuple(part for part, found in zip(leaf.parts[:-1], words) if role not in found)


def _fused_roles(leaf: Leaf, words: Words) -> list[tuple[str, ...]]:
    """Return which parts a leaf may have by its name."""
    parts = [part.replace("_", "").lower() for part in leaf.parts]
    if parts and (gates := [key for key in GATES if parts[-1].startswith((f"weight{key}h", f"bias{key}h"))]):
        return list(GATES[gates[0]])
    return [
        roles for roles in FUSED if FUSED_WORDS[roles] & {*parts} or (roles == ("q", "k", "v") and "qkv" in words.roles)
    ]


def _cut(leaf: Leaf, roles: tuple[str, ...], group: list[Leaf], reverse: bool) -> list[Leaf]:
    """Return the parts of a leaf in the proportions of a group of leaves; none where they do not fit."""
    sizes = [prod(other.shape) for other in group]
    if sum(sizes) != prod(leaf.shape):
        return []
    axes = range(len(leaf.shape)) if reverse else reversed(range(len(leaf.shape)))
    for axis in sorted(axes, key=lambda axis: leaf.shape[axis] != len(roles)):
        ends = np.cumsum([0, *sizes]) * leaf.shape[axis]
        if (ends % sum(sizes)).any():
            continue
        ends //= sum(sizes)
        parts = []
        for number, (role, start, stop) in enumerate(zip(roles, ends, ends[1:])):
            shape = (*leaf.shape[:axis], int(stop - start), *leaf.shape[axis + 1 :])
            cut = Cut("part", axis, int(start), int(stop), number, len(roles))
            parts.append(replace(leaf, shape=shape, cuts=(*leaf.cuts, cut), extra=frozenset({role})))
        pairs = [(o.shape, p.shape) if reverse else (p.shape, o.shape) for o, p in zip(group, parts)]
        if all(usual_layouts(*pair) for pair in pairs):
            return parts
    return []
