"""The rows of `names` that pairs of leaves make, patterns for rows of all layers, and both as Python code."""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from parity.matching.layouts import Layout, lifted, to_transform
from parity.matching.leaves import Leaf
from parity.transforms import Transform, concat, copies, reshape, shared, split, stack, transpose, unstack

__all__ = ["Proposal", "code", "folded", "rows_of"]

NAMED = re.compile(r"\b(chain|concat|copies|reshape|shared|split|stack|transpose|unstack)\(")


@dataclass(frozen=True)
class Proposal:
    """A row of `names`, and why it may be wrong."""

    jax: tuple[str, ...]
    torch: tuple[str, ...]
    change: tuple[int, ...] | Transform | None
    """Axes, a transform, or None for the same layout."""
    reason: str = ""
    """Why it is uncertain; empty if it is certain."""
    covers: int = 1
    """Number of rows that a pattern stands for."""

    @property
    def key(self) -> str | tuple[str, ...]:
        return self.jax[0] if len(self.jax) == 1 else self.jax

    @property
    def value(self) -> object:
        side = self.torch[0] if len(self.torch) == 1 else self.torch
        return side if self.change is None else (side, self.change)


class Pair(NamedTuple):
    """Leaves of JAX and torch, the layout, and why it is uncertain."""

    jax: Leaf
    torch: Leaf
    layout: Layout
    reason: str

    def leaf(self, side: int) -> Leaf:
        return self.torch if side else self.jax


def rows_of(pairs: Sequence[Pair], complete: dict[str, int]) -> tuple[list[Proposal], list[tuple[list[str], str]]]:
    """Return the rows, and of parameters whose parts make none the JAX paths and why.

    Args:
        pairs: of leaves, in order.
        complete: `jax NAME` or `torch NAME` of a parameter that was cut -> number of its parts.
    """
    rows: list[Proposal] = []
    problems: list[tuple[list[str], str]] = []
    for group in _groups(pairs):
        jax, torch = (list(dict.fromkeys(pair.leaf(side).source for pair in group)) for side in (0, 1))
        counts = [
            sum(1 for p in group if f"{label} {p.leaf(side).source}" == name) for side, label, name in _cut(group)
        ]
        whole = all(count == complete[name] for count, (_, _, name) in zip(counts, _cut(group)))
        if not whole:
            problems.append((jax, f"fits {', '.join(torch)} in part only"))
            continue
        reason = next((pair.reason for pair in group if pair.reason), "")
        layouts = {pair.layout for pair in group}
        change = _change(group, jax, torch, layouts)
        if change is False:
            problems.append((jax, f"no transform of parity.transforms makes {', '.join(torch)} of it"))
        else:
            order = _ordered(group)
            rows.append(Proposal(*order, change, reason))
    return rows, problems


def _cut(group: Sequence[Pair]) -> list[tuple[int, str, str]]:
    return list(
        dict.fromkeys(
            (side, label, f"{label} {pair.leaf(side).source}")
            for pair in group
            for side, label in ((0, "jax"), (1, "torch"))
            if pair.leaf(side).cuts
        )
    )


def _groups(pairs: Sequence[Pair]) -> list[list[Pair]]:
    """Return the pairs whose parameters hang together, through cuts or ties."""
    group_of: dict[str, list[Pair]] = {}
    for pair in pairs:
        names = (f"jax {pair.jax.source}", f"torch {pair.torch.source}")
        merged = [pair]
        for old in {id(g): g for name in names if (g := group_of.get(name))}.values():
            merged = old + merged
        for each in merged:
            group_of[f"jax {each.jax.source}"] = group_of[f"torch {each.torch.source}"] = merged
    return list({id(group): group for group in group_of.values()}.values())


def _place(leaf: Leaf) -> tuple[int, int]:
    """Return the layer and the part of a leaf in its parameter."""
    numbers = {cut.kind: cut.number for cut in leaf.cuts}
    return numbers.get("part", 0), numbers.get("layer", 0)


def _ordered(group: Sequence[Pair]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of both sides, in the order of the parts that the other side has in one."""
    by_torch = sorted(group, key=lambda pair: _place(pair.torch))
    by_jax = sorted(group, key=lambda pair: _place(pair.jax))
    return tuple(dict.fromkeys(p.jax.source for p in by_torch)), tuple(dict.fromkeys(p.torch.source for p in by_jax))


def _change(
    group: Sequence[Pair], jax: list[str], torch: list[str], layouts: set[Layout]
) -> tuple[int, ...] | Transform | Literal[False] | None:
    """Return the change of layout of a row; False where no transform expresses it."""
    if len(layouts) != 1:
        return False
    [layout] = layouts
    kinds = [{cut.kind: cut for cut in group[0].leaf(side).cuts} for side in (0, 1)]
    ours, theirs = kinds
    if len(jax) == len(torch) == 1 and not ours and not theirs:
        return _short(layout)
    if not ours and not theirs:  # tied on one side
        return _tied(layout, len(jax), len(torch))
    one, many = len(jax) == 1, len(jax) > 1
    if set(ours) == {"layer"} and not theirs and one:
        return to_transform(layout, before=(unstack(ours["layer"].axis),))
    if set(ours) == {"part"} and not theirs and one:
        return to_transform(layout, before=(split(_sizes(group, 0), ours["part"].axis),))
    if not ours and set(theirs) == {"part"} and len(torch) == 1:
        return to_transform(layout, after=(concat(theirs["part"].axis),))
    if not ours and set(theirs) == {"layer"} and len(torch) == 1:
        return to_transform(layout, after=(stack(theirs["layer"].axis),))
    if set(ours) == {"layer"} and set(theirs) == {"part"} and many and ours["layer"].axis == 0:
        count = ours["layer"].count
        return to_transform(lifted(layout, count), after=(concat(theirs["part"].axis + 1), unstack()))
    if set(ours) == {"layer", "part"} and not theirs and one and ours["layer"].axis == 0:
        return _stacked_and_fused(layout, group, ours["layer"].count, ours["part"].axis + 1)
    return False


def _stacked_and_fused(layout: Layout, group: Sequence[Pair], count: int, axis: int) -> Transform | Literal[False]:
    """Return the transform of one array of layers and equal parts into all, those of the first part first."""
    sizes, shape = _sizes(group, 0), group[0].jax.shape
    if not isinstance(sizes, int):
        return False
    apart = (count, *shape[: axis - 1], sizes, shape[axis - 1], *shape[axis:])
    order = (axis, *(i for i in range(len(apart)) if i != axis))
    return to_transform(layout, before=(reshape(*apart), transpose(*order), reshape(sizes * count, *shape), unstack()))


def _tied(layout: Layout, ours: int, theirs: int) -> Transform | Literal[False]:
    if theirs == 1:
        return to_transform(layout, after=(shared(),))
    return to_transform(layout, after=(copies(theirs),)) if ours == 1 else False


def _sizes(group: Sequence[Pair], side: int) -> int | tuple[int, ...]:
    """Return the sizes of the parts of an array, or their number where they are equal."""
    cuts = {cut.number: cut for pair in group for cut in pair.leaf(side).cuts if cut.kind == "part"}
    sizes = tuple(cuts[number].stop - cuts[number].start for number in sorted(cuts))
    return len(sizes) if len(set(sizes)) == 1 else sizes


def _short(layout: Layout) -> tuple[int, ...] | Transform | None:
    if not layout:
        return None
    return layout[0][1] if len(layout) == 1 and layout[0][0] == "transpose" else to_transform(layout)


NUMBER = re.compile(r"(?<![A-Za-z0-9])\d+(?![A-Za-z0-9])|(?<=_)\d+(?=\.|$)|(?<=[a-z])\d+(?=\.)")


def folded(rows: Iterable[Proposal], jax: Sequence[str], torch: Sequence[str]) -> list[Proposal]:
    """Return the rows with patterns `{i}`, `{j}` in place of those that differ in a number alone.

    Args:
        rows: of names.
        jax: all paths of JAX, by which a pattern is checked to stand for its rows alone.
        torch: all names of torch.
    """
    found = [_with_all(row, jax, torch) for row in rows]
    for letter in "ij":
        found = _folded_once(found, letter, jax, torch)
    return found


def _with_all(row: Proposal, jax: Sequence[str], torch: Sequence[str]) -> Proposal:
    """Return a row with a pattern in place of all names that it matches, as of the layers that are unstacked."""
    if len(row.jax) > 1 and len(row.torch) == 1 and (pattern := _of_all(row.jax, jax)):
        return replace(row, jax=(pattern,))
    if len(row.torch) > 1 and (pattern := _of_all(row.torch, torch)):
        return replace(row, torch=(pattern,))
    return row


def _of_all(names: tuple[str, ...], known: Sequence[str]) -> str:
    for match in NUMBER.finditer(names[0]):
        pattern = f"{names[0][: match.start()]}{{n}}{names[0][match.end() :]}"
        matching = sorted(
            (int(m[1]), name) for name in known if (m := _regex(pattern).fullmatch(name)) and m[1].isdigit()
        )
        if tuple(name for _, name in matching) == names:
            return pattern
    return ""


def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{\w\\\}", "([^.]+?)", re.escape(pattern)))


def _folded_once(rows: list[Proposal], letter: str, jax: Sequence[str], torch: Sequence[str]) -> list[Proposal]:
    families: dict[tuple, dict[str, Proposal]] = defaultdict(dict)
    for row in rows:
        for key in _families(row, letter):
            families[key[0]][key[1]] = row
    left = {id(row): row for row in rows}
    placed: dict[int, Proposal] = {}
    for (ours, theirs, _), members in sorted(families.items(), key=lambda item: -len(item[1])):
        if len(members) < 2 or any(id(row) not in left for row in members.values()):
            continue
        count = sum(row.covers for row in members.values())
        if not all(_covers(p, names, count) for side, names in ((ours, jax), (theirs, torch)) for p in side):
            continue
        first = next(iter(members.values()))
        reasons = [row.reason for row in members.values() if row.reason]
        placed[id(first)] = replace(first, jax=ours, torch=theirs, reason=reasons[0] if reasons else "", covers=count)
        for row in members.values():
            del left[id(row)]
    return [new for row in rows if (new := placed.get(id(row)) or left.get(id(row)))]


def _covers(pattern: str, names: Sequence[str], count: int) -> bool:
    """Return whether a pattern stands for the names of so many rows, and no others."""
    return "{n}" in pattern or sum(bool(_regex(pattern).fullmatch(name)) for name in names) == count


def _families(row: Proposal, letter: str) -> list[tuple[tuple, str]]:
    """Return the patterns that a row may be one of, each with its number."""
    numbers = list(dict.fromkeys(m.group() for name in (*row.jax, *row.torch) for m in NUMBER.finditer(name)))
    found = []
    for number in numbers:
        sides = [[_replaced(name, number, letter) for name in side] for side in (row.jax, row.torch)]
        if all(options for side in sides for options in side):
            for ours in range(max(len(options) for options in sides[0])):
                for theirs in range(max(len(options) for options in sides[1])):
                    chosen = [
                        tuple(options[min(at, len(options) - 1)] for options in side)
                        for side, at in zip(sides, (ours, theirs))
                    ]
                    found.append(((*chosen, repr(row.change)), number))
    return found


def _replaced(name: str, number: str, letter: str) -> list[str]:
    """Return the name with one number, at each of its places, in braces."""
    spots = [m for m in NUMBER.finditer(name) if m.group() == number]
    return [f"{name[: m.start()]}{{{letter}}}{name[m.end() :]}" for m in spots]


def code(rows: Iterable[Proposal]) -> str:
    """Return the rows as Python code, each uncertain one with a comment."""
    rows = [_with_i(row) for row in rows]
    lines = [
        f"    {_quoted(row.jax)}: {_value(row)},{'  # uncertain: ' + row.reason if row.reason else ''}" for row in rows
    ]
    body = "\n".join(lines)
    used = sorted(set(NAMED.findall("\n".join(repr(row.change) for row in rows if isinstance(row.change, Transform)))))
    imports = f"from parity.transforms import {', '.join(used)}\n\n" if used else ""
    return f"{imports}names = {{\n{body}\n}}"


def _with_i(row: Proposal) -> Proposal:
    """Return a row whose only placeholder is `{i}`."""
    if any("{i}" in name for name in (*row.jax, *row.torch)):
        return row
    jax, torch = (tuple(name.replace("{n}", "{i}") for name in side) for side in (row.jax, row.torch))
    return replace(row, jax=jax, torch=torch)


def _quoted(names: tuple[str, ...]) -> str:
    quoted = [f'"{name}"' for name in names]
    return quoted[0] if len(quoted) == 1 else f"({', '.join(quoted)})"


def _value(row: Proposal) -> str:
    return _quoted(row.torch) if row.change is None else f"({_quoted(row.torch)}, {row.change!r})"
