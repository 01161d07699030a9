"""The mapping of parameters between a JAX model and a torch module, with patterns; all its problems are said at once.

A row of `names` maps one path in JAX's parameters, or a tuple of them, to one name in the torch module, or a tuple:

    "norm.scale": "norm.weight",                                            # the same layout
    "up.kernel": ("up.weight", (1, 0)),                                     # axes, as of numpy.transpose
    "query.kernel": ("query.weight", chain(reshape(-1, 64), transpose())),  # any of parity.transforms
    ("q.kernel", "k.kernel"): ("qk.weight", chain(transpose(), concat())),  # many to one
    "layers.kernel": (("0.weight", "1.weight"), unstack()),                 # one to many
    "blocks.{i}.scale": "layers.{i}.norm.weight",                           # for every i
    "stacked.scale": ("layers.{i}.norm.weight", unstack()),                 # one to all i, in order
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

import numpy as np

from lmcore.errors import UserError
from parity.transforms import Bound, Transform, identity, transpose

__all__ = ["Names", "Row", "resolve"]

Axes = tuple[int, ...]
Side = str | tuple[str, ...]
Names = Mapping[Side, Side | tuple[Side, Axes] | tuple[Side, Transform]]
"""Path or paths in the JAX parameters -> name or names in the torch module, alone or with axes or a transform."""
Shapes = Mapping[str, tuple[int, ...]]

MANY = 12
"""Number of names that are all listed in a message."""
PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Row:
    """Parameters that correspond: names on both sides, and the change of layout."""

    jax: tuple[str, ...]
    torch: tuple[str, ...]
    bound: Bound
    shares: bool
    """Whether the JAX arrays are one in torch, so that only the sum of their gradients can be compared."""
    copies: bool = False
    """Whether the JAX array is several in torch, so that the same holds for those."""

    def to_torch(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return JAX's arrays by torch's names, in torch's layout."""
        return dict(zip(self.torch, self.bound.forward([arrays[name] for name in self.jax]), strict=True))

    def to_jax(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return torch's arrays by JAX's names, in JAX's layout."""
        return dict(zip(self.jax, self.bound.inverse([arrays[name] for name in self.torch]), strict=True))


def resolve(
    names: Names,
    jax: Shapes,
    torch: Shapes,
    buffers: Shapes | None = None,
    *,
    only_jax: Iterable[str] = (),
    only_torch: Iterable[str] = (),
) -> list[Row]:
    """Return the rows of a mapping, with patterns expanded.

    Args:
        names: the mapping.
        jax: path of each JAX parameter -> its shape.
        torch: name of each torch parameter -> its shape.
        buffers: name of each torch buffer -> its shape; they may be in a row, and need not.
        only_jax: paths, or patterns with `*`, of JAX parameters without a counterpart.
        only_torch: names, or patterns with `*`, of torch parameters without a counterpart.

    Raises:
        UserError: rows do not fit the parameters; the message says of each why.
    """
    rows: list[Row] = []
    problems: list[str] = []
    known = {**torch, **(buffers or {})}
    mentioned: set[str] = set()
    """Names in rows that do not fit: they are not missing as well."""
    for key, value in names.items():
        try:
            left, right, transform = _parts(key, value)
            for one, other in _expanded(left, right, jax, known):
                rows.append(_bound(one, other, transform, jax, known))
        except ValueError as error:
            problems.append(f"{_shown(key)}: {error}")
            mentioned |= _words(key) | _words(value)
    sides = (("JAX", "jax", jax, only_jax), ("torch", "torch", torch, only_torch))
    for label, side, shapes, only in sides:
        counts = Counter(name for row in rows for name in getattr(row, side))
        left_out = {name for name in shapes if any(fnmatchcase(name, pattern) for pattern in only)}
        problems += [f"{name} of {label} is in several rows" for name, count in counts.items() if count > 1]
        problems += [
            f"{name} of {label} is in a row, and listed as {label}'s only" for name in left_out & counts.keys()
        ]
        missing = [name for name in shapes if name not in counts.keys() | left_out | mentioned]
        problems += [f"{name} of {label}, {list(shapes[name])}, is in no row" for name in missing]
    if problems:
        raise UserError(f"names: {'; '.join(problems)}")
    return rows


def _parts(key: Side, value: Side | tuple[Side, Axes] | tuple[Side, Transform]) -> tuple[Side, Side, Transform]:
    """Return both sides of a row, and its transform."""
    side, transform = value, identity()
    if isinstance(value, tuple) and len(value) == 2 and not isinstance(value[1], str):
        side = value[0]
        if isinstance(value[1], Transform):
            transform = value[1]
        elif isinstance(value[1], tuple) and all(isinstance(axis, int) for axis in value[1]):
            transform = transpose(*value[1])
        else:
            raise ValueError(f"found {value[1]!r}, expected axes such as (1, 0), or a transform of parity.transforms")
    for names in (key, side):
        if not isinstance(names, str) and not (isinstance(names, tuple) and all(isinstance(n, str) for n in names)):
            raise ValueError(f"found {names!r}, expected a name or a tuple of names")
    return key, side, transform  # type: ignore[return-value]


def _expanded(left: Side, right: Side, jax: Shapes, torch: Shapes) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Yield the names on both sides for every value of the placeholders.

    A placeholder that both sides have gives a row for each of its values; one that a single side has gives all of its
    names, in order, to the same row.
    """
    one, other = _tuple(left), _tuple(right)
    common = _placeholders(one) & _placeholders(other)
    if not common:
        yield _all_matches(one, jax), _all_matches(other, torch)
        return
    bindings = sorted({tuple(sorted(b.items())) for b in _bindings(one, jax, common)}, key=_natural)
    if not bindings:
        raise ValueError("no such parameters in JAX")
    for binding in bindings:
        values = dict(binding)
        yield tuple(
            _all_matches(tuple(_filled(name, values) for name in names), shapes)
            for names, shapes in ((one, jax), (other, torch))
        )  # type: ignore[misc]


def _tuple(side: Side) -> tuple[str, ...]:
    return (side,) if isinstance(side, str) else side


def _placeholders(names: tuple[str, ...]) -> set[str]:
    return {found for name in names for found in PLACEHOLDER.findall(name)}


def _filled(name: str, values: Mapping[str, str]) -> str:
    return PLACEHOLDER.sub(lambda match: values.get(match.group(1), match.group(0)), name)


def _pattern(name: str) -> re.Pattern[str]:
    """Return a pattern of the names that a template stands for; a placeholder is one part between dots."""
    seen: set[str] = set()

    def group(match: re.Match[str]) -> str:
        placeholder = match.group(1)
        if placeholder in seen:
            return f"(?P={placeholder})"
        seen.add(placeholder)
        return f"(?P<{placeholder}>[^.]+?)"

    pieces, end = [], 0
    for match in PLACEHOLDER.finditer(name):
        pieces += [re.escape(name[end : match.start()]), group(match)]
        end = match.end()
    return re.compile("".join([*pieces, re.escape(name[end:])]))


def _bindings(names: tuple[str, ...], shapes: Shapes, wanted: set[str]) -> Iterator[dict[str, str]]:
    """Yield the values of the wanted placeholders in the first name that has them all."""
    template = next((name for name in names if wanted <= _placeholders((name,))), None)
    if template is None:
        raise ValueError(f"found placeholders {', '.join(sorted(wanted))} in different names, expected all in one")
    pattern = _pattern(template)
    for name in shapes:
        if match := pattern.fullmatch(name):
            yield {placeholder: match.group(placeholder) for placeholder in wanted}


def _all_matches(names: tuple[str, ...], shapes: Shapes) -> tuple[str, ...]:
    """Return the names, with each template replaced by all that match it, in order of their numbers."""
    found: list[str] = []
    for name in names:
        if not _placeholders((name,)):
            found.append(name)
            continue
        pattern = _pattern(name)
        matches = [(match.groups(), other) for other in shapes if (match := pattern.fullmatch(other))]
        if not matches:
            raise ValueError(f"no such parameters: {name}")
        found += [other for _, other in sorted(matches, key=lambda pair: _natural(pair[0]))]
    return tuple(found)


def _natural(key: Iterable[object]) -> list[tuple[int, str]]:
    """Return a key by which numbers are sorted as numbers."""
    words = [word for part in key for word in (part if isinstance(part, tuple) else (part,))]
    return [(int(str(word)), "") if str(word).isdecimal() else (-1, str(word)) for word in words]


def _bound(left: tuple[str, ...], right: tuple[str, ...], transform: Transform, jax: Shapes, torch: Shapes) -> Row:
    """Return the row of these names, its transform fitted to their shapes."""
    for label, names, shapes in (("JAX", left, jax), ("torch", right, torch)):
        if absent := [name for name in names if name not in shapes]:
            raise ValueError(f"no such {label} parameter: {', '.join(absent)}; {_offered(absent[0], shapes)}")
    given = tuple(jax[name] for name in left)
    try:
        bound = transform.bind(given)
    except (ValueError, IndexError) as error:
        raise ValueError(str(error)) from error
    if len(bound.shapes) != len(right):
        raise ValueError(f"{transform} makes {len(bound.shapes)} arrays of {len(left)}, expected {len(right)}")
    for name, shape in zip(right, bound.shapes, strict=True):
        if shape != torch[name]:
            hint = ": transpose() its axes?" if sorted(shape) == sorted(torch[name]) else ""
            raise ValueError(f"{name} is {list(torch[name])} in torch, {list(shape)} from JAX{hint}")
    return Row(left, right, bound, transform.shares, transform.copies)


def _offered(name: str, shapes: Shapes) -> str:
    """Return which names there are: all of a few, else the nearest."""
    if len(shapes) <= MANY:
        return f"there are {', '.join(shapes)}"
    near = get_close_matches(name, shapes, n=3, cutoff=0.3)
    return f"there are {len(shapes)}" + (f", such as {', '.join(near)}" if near else "")


def _words(row: object) -> set[str]:
    """Return all names in a part of a row."""
    return {row} if isinstance(row, str) else set().union(*map(_words, row)) if isinstance(row, tuple) else set()


def _shown(key: object) -> str:
    return f"({', '.join(map(str, key))})" if isinstance(key, tuple) else str(key)
