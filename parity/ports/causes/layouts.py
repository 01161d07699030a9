"""Suspected causes in the mapping of parameters: transposed squares, order of fused parts, layouts, swapped names."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from parity.mapping import Row
from parity.ports.causes.trial import Relayout, Trial
from parity.transforms import Bound

__all__ = ["layout_trials"]

Change = Callable[[np.ndarray], np.ndarray]

FUSED = re.compile(r"qkv|in_proj|c_attn|query_key_value|Wqkv", re.IGNORECASE)
"""Names of parameters that hold queries, keys and values along their first axis."""
QUERY_OR_KEY = re.compile(r"(?:^|[._])(?:q|k|query|key|wq|wk|q_lin|k_lin)(?:_?proj)?[._](?:weight|bias)$")
GATED = re.compile(r"(?P<stem>.*?)(?:weight|bias)_[ih]h(?:_l\d+(?:_reverse)?)?$")
"""Names of the parameters of torch's recurrent modules."""
GATES = {torch.nn.LSTM: "ifgo", torch.nn.LSTMCell: "ifgo", torch.nn.GRU: "rzn", torch.nn.GRUCell: "rzn"}
"""Module -> its gates, in torch's order."""
TWINS = (
    ("gate", "up"),
    ("w1", "w3"),
    ("q", "k"),
    ("q", "v"),
    ("k", "v"),
    ("query", "key"),
    ("query", "value"),
    ("key", "value"),
)
"""Words of parameters that are taken for each other."""


@dataclass(frozen=True)
class _Tensor:
    """A torch parameter that is in a row."""

    name: str
    shape: tuple[int, ...]


def layout_trials(module: torch.nn.Module, rows: Sequence[Row], widths: Iterable[int]) -> Iterator[Trial]:
    """Yield the trials of all rows.

    Args:
        module: the torch module.
        rows: the mapping of names.
        widths: of the heads of attention.
    """
    tensors = [_Tensor(name, shape) for row in rows for name, shape in zip(row.torch, row.bound.shapes, strict=True)]
    yield from _transposed(tensors)
    yield from _recurrent(module, tensors)
    widths = list(widths)
    yield from _fused(tensors, widths)
    yield from _rotary(tensors, widths)
    yield from _swapped(tensors)


def _over(
    kind: str, tensors: Sequence[_Tensor], what: str, forward: Change, inverse: Change | None = None
) -> list[Trial]:
    """Return the trials of one change: of all tensors, of those of each pattern of names, and of each.

    Args:
        kind: of the trials.
        tensors: whose layout may be another.
        what: words, without the names.
        forward: from torch's layout as it is mapped to the other.
        inverse: its inverse; None where it is its own.
    """
    patterns: dict[str, list[_Tensor]] = {}
    for tensor in tensors:
        patterns.setdefault(_pattern(tensor.name), []).append(tensor)
    sets = [(list(tensors), 0)] if len(tensors) > 1 else []
    if len(patterns) > 1:
        sets += [(members, 1) for members in patterns.values() if len(members) > 1]
    sets += [([tensor], 2 if sets else 0) for tensor in tensors]
    return [_trial(kind, members, what, forward, inverse or forward, rank) for members, rank in sets]


def _trial(kind: str, members: Sequence[_Tensor], what: str, forward: Change, inverse: Change, rank: int) -> Trial:
    names = [tensor.name for tensor in members]
    return Trial(
        what=f"{what} of {_listed(names)}",
        kind=kind,
        places=frozenset(names),
        relayout=_relaid(frozenset(names), forward, inverse),
        rank=rank,
    )


def _relaid(names: frozenset[str], forward: Change, inverse: Change) -> Relayout:
    """Return the change of a mapping in which torch's arrays of these names have another layout."""

    def on(change: Change, row: Row, arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [change(array) if name in names else array for name, array in zip(row.torch, arrays, strict=True)]

    def relaid(row: Row) -> Row:
        if not names & set(row.torch):
            return row
        old = row.bound
        return replace(
            row,
            bound=Bound(
                old.shapes,
                lambda arrays: on(forward, row, old.forward(arrays)),
                lambda arrays: old.inverse(on(inverse, row, arrays)),
            ),
        )

    return lambda rows: [relaid(row) for row in rows]


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def _listed(names: Sequence[str]) -> str:
    patterns = list(dict.fromkeys(map(_pattern, names)))
    if len(names) > 1 and len(patterns) == 1:
        return patterns[0]
    return ", ".join(names) if len(names) <= 4 else f"{len(names)} parameters, {names[0]} to {names[-1]}"


def _transposed(tensors: Sequence[_Tensor]) -> Iterator[Trial]:
    squares = [t for t in tensors if len(t.shape) == 2 and t.shape[0] == t.shape[1] > 1]
    yield from _over("transposed", squares, "transpose", np.transpose)
    kernels = [t for t in tensors if len(t.shape) > 2]
    even = [t for t in kernels if t.shape[-1] == t.shape[-2] > 1]
    yield from _over("transposed", even, "last two axes swapped", lambda a: np.swapaxes(a, -1, -2))
    channels = [t for t in kernels if t.shape[0] == t.shape[1] > 1]
    yield from _over("channels", channels, "first two axes swapped", lambda a: np.swapaxes(a, 0, 1))


def _recurrent(module: torch.nn.Module, tensors: Sequence[_Tensor]) -> Iterator[Trial]:
    by_gates: dict[str, dict[str, list[_Tensor]]] = {}
    for tensor in tensors:
        if match := GATED.fullmatch(tensor.name):
            stem = match["stem"].removesuffix(".")
            if gates := GATES.get(type(module.get_submodule(stem))):
                by_gates.setdefault(gates, {}).setdefault(stem, []).append(tensor)
    for gates, stems in by_gates.items():
        sets = [[t for members in stems.values() for t in members]] if len(stems) > 1 else []
        for members in [*sets, *stems.values()]:
            for order in list(itertools.permutations(range(len(gates))))[1:]:
                new = ", ".join(gates[i] for i in order)
                what = f"gate order ({', '.join(gates)}) -> ({new})"
                yield _trial("gates", members, what, _parts(order), _parts(np.argsort(order)), 0)


def _parts(order: Sequence[int] | np.ndarray) -> Change:
    """Return the change of the order of equal parts along the first axis."""

    def change(array: np.ndarray) -> np.ndarray:
        parts = np.split(array, len(order))
        return np.concatenate([parts[i] for i in order])

    return change


def _fused(tensors: Sequence[_Tensor], widths: Sequence[int]) -> Iterator[Trial]:
    fused = [t for t in tensors if FUSED.search(t.name) and t.shape[0] % 3 == 0]
    if not fused:
        return
    for order in list(itertools.permutations(range(3)))[1:]:
        new = ", ".join("qkv"[i] for i in order)
        for members, rank in _stems(fused):
            yield _trial("order", members, f"order q, k, v -> {new}", _parts(order), _parts(np.argsort(order)), rank)
    for width in widths:
        whole = [t for t in fused if t.shape[0] % (3 * width) == 0]
        for members, rank in _stems(whole):
            by_head = _regrouped((3, -1, width)), _regrouped((-1, 3, width))
            yield _trial("order", members, "q, k, v one after the other -> head by head", *by_head, rank)
            yield _trial("order", members, "q, k, v head by head -> one after the other", *by_head[::-1], rank)


def _stems(tensors: Sequence[_Tensor]) -> list[tuple[list[_Tensor], int]]:
    """Return which tensors are changed together: all, and the weight and bias of each module."""
    stems: dict[str, list[_Tensor]] = {}
    for tensor in tensors:
        stems.setdefault(re.sub(r"[._](weight|bias)$", "", tensor.name), []).append(tensor)
    whole = [(list(tensors), 0)] if len(stems) > 1 else []
    return whole + [(members, 2 if whole else 0) for members in stems.values()]


def _regrouped(shape: tuple[int, int, int]) -> Change:
    """Return the change that swaps the first two of three axes, which are one in the array."""

    def change(array: np.ndarray) -> np.ndarray:
        return array.reshape(*shape, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape)

    return change


def _rotary(tensors: Sequence[_Tensor], widths: Sequence[int]) -> Iterator[Trial]:
    """Yield the trials of rotary pairs: either half of a head, or neighbours; a permutation of what makes q and k."""
    for width in (width for width in widths if width % 2 == 0):
        both = [t for t in tensors if QUERY_OR_KEY.search(t.name) and t.shape[0] % width == 0]
        fused = [t for t in tensors if FUSED.search(t.name) and t.shape[0] % (3 * width) == 0]
        for members, part in ((both, 1.0), (fused, 2 / 3)):
            if members:
                ways = _paired((2, width // 2), part), _paired((width // 2, 2), part)
                for way in (ways, ways[::-1]):
                    yield _trial("rotary", members, "rotary halves <-> interleaved pairs", *way, 0)


def _paired(shape: tuple[int, int], part: float) -> Change:
    """Return the change that swaps two axes of each head in the first part of the rows."""

    def change(array: np.ndarray) -> np.ndarray:
        end = round(len(array) * part)
        heads = array[:end].reshape(-1, *shape, *array.shape[1:]).swapaxes(1, 2)
        return np.concatenate([heads.reshape(end, *array.shape[1:]), array[end:]])

    return change


def _swapped(tensors: Sequence[_Tensor]) -> Iterator[Trial]:
    """Yield the trials of parameters of one shape whose names are taken for each other."""
    known = {t.name: t for t in tensors}
    for one, other in TWINS:
        pairs = []
        for name, tensor in known.items():
            partner = known.get(re.sub(rf"(?<![^._]){one}(?![^._])", other, name))
            if partner is not None and partner is not tensor and partner.shape == tensor.shape:
                pairs.append((name, partner.name))
        stems: dict[str, list[tuple[str, str]]] = {}
        for pair in pairs:
            stems.setdefault(pair[0].rpartition(".")[0], []).append(pair)
        sets = [(pairs, 0)] if len(stems) > 1 else []
        for members, rank in [*sets, *((m, 2 if sets else 0) for m in stems.values())]:
            places = frozenset(name for pair in members for name in pair)
            what = f"swap of {_listed([a for a, _ in members])} and {_listed([b for _, b in members])}"
            yield Trial(what=what, kind="swap", places=places, relayout=_exchanged(members), rank=rank)


def _exchanged(pairs: Sequence[tuple[str, str]]) -> Relayout:
    new = dict(pairs) | {b: a for a, b in pairs}
    return lambda rows: [
        replace(row, torch=tuple(new.get(name, name) for name in row.torch)) if set(row.torch) & new.keys() else row
        for row in rows
    ]
