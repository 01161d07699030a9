"""Suspected causes in attention: scale, masks, axes of softmax; and beside it the scale of embeddings, and dropout."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from parity.ports.causes.operations import Operation, Recording, Replace, bound, setting
from parity.ports.causes.trial import Trial, over

__all__ = ["attention_trials", "head_dims"]

SDPA = "scaled_dot_product_attention"
MATMULS = ("matmul", "bmm", "baddbmm", "einsum")
BETWEEN = ("add", "sub", "mul", "div", "masked_fill", "where", "to", "float", "double", "view", "reshape", "tanh")
"""Operations that may stand between the scores and their softmax."""
MASKED = {"masked_fill": "mask", "where": "condition", "add": "other", "baddbmm": "input", SDPA: "attn_mask"}
"""Operation -> the argument that is its mask."""
LOW = -1e3
"""A score below is masked."""
SHIFTS = (1, -1)


def attention_trials(recording: Recording) -> Iterator[Trial]:
    """Yield the trials of the attention in a recording, by torch's function and written out."""
    scores = _scores(recording)
    yield from _scales(recording, scores)
    yield from _masks(recording, scores)
    for name in ("softmax", "log_softmax"):
        yield from _softmax_axes(recording.named(name))
    yield from _embedding_scale(recording)
    dropped = [op for op in recording.named("dropout") if op.given.get("training", True) and op.given.get("p", 0.5) > 0]
    yield from over("dropout", dropped, "dropout -> none", setting("dropout", training=False))
    dropped = [op for op in recording.named(SDPA) if op.given.get("dropout_p", 0.0) > 0]
    yield from over("dropout", dropped, "dropout -> none", setting(SDPA, dropout_p=0.0))


def head_dims(recording: Recording) -> list[int]:
    """Return the widths of the heads of attention in a recording."""
    found = [op.args[0].shape[-1] for op in recording.named(SDPA) if op.args]
    return list(dict.fromkeys(found + [width for _, _, width in _scores(recording)]))


def _scores(recording: Recording) -> list[tuple[Operation, Operation, int]]:
    """Return of attention that is written out the matmul of queries and keys, the softmax, and the head's width."""
    found = []
    for softmax in recording.named("softmax"):
        matmul = _matmul_before(softmax, recording)
        if matmul is not None and (width := _contracted(matmul)):
            found.append((matmul, softmax, width))
    return found


def _matmul_before(softmax: Operation, recording: Recording) -> Operation | None:
    values: list[Any] = [softmax.args[0] if softmax.args else softmax.given.get("input")]
    while values:
        op = recording.source(values.pop())
        if op is not None and op.name in MATMULS:
            return op
        if op is not None and op.name in BETWEEN:
            values += reversed([value for value in op.args if isinstance(value, torch.Tensor)])
    return None


def _contracted(matmul: Operation) -> int:
    """Return the number of values that each score is a sum of; 0 where it isn't known."""
    if matmul.name != "einsum":
        return matmul.args[1 if matmul.name == "baddbmm" else 0].shape[-1]
    equation, *operands = matmul.args
    operands = list(operands[0]) if len(operands) == 1 else operands
    if not isinstance(equation, str) or len(operands) != 2 or "->" not in equation:
        return 0
    letters, result = equation.replace(" ", "").split("->")
    one, other = letters.split(",")
    sizes = dict(zip(reversed(one.replace("...", "")), reversed(operands[0].shape)))
    return math.prod(size for letter, size in sizes.items() if letter in other and letter not in result)


def _scales(recording: Recording, scores: list[tuple[Operation, Operation, int]]) -> Iterator[Trial]:
    known: dict[tuple[int, float], list[Operation]] = {}
    for op in recording.named(SDPA):
        width = op.given["query"].shape[-1]
        scale = op.given.get("scale")
        known.setdefault((width, width**-0.5 if scale is None else float(scale)), []).append(op)
    for (width, old), operations in known.items():
        heads = operations[0].given["query"].shape[1] if operations[0].given["query"].ndim == 4 else 1
        scales = {"1": 1.0, f"1/{width}": 1 / width, f"1/sqrt({width})": width**-0.5}
        scales[f"1/sqrt({width * heads})"] = (width * heads) ** -0.5
        words = next((word for word, value in scales.items() if math.isclose(value, old)), f"{old:g}")
        for word, new in scales.items():
            if not math.isclose(old, new):
                yield from over("scale", operations, f"attention scale {words} -> {word}", setting(SDPA, scale=new))
    for name, width in dict.fromkeys((matmul.name, width) for matmul, _, width in scores):
        operations = [matmul for matmul, _, found in scores if (matmul.name, found) == (name, width)]
        for word, factor in ((f"sqrt({width})", width**0.5), (f"1/sqrt({width})", width**-0.5)):
            yield from over("scale", operations, f"attention scores times {word}", _times(name, factor))


def _times(name: str, factor: float) -> Replace:
    """Return a replacement of a matmul by one of its first operand times a factor."""

    def replace(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        place = 1 if name in ("einsum", "baddbmm") else 0
        value = args[place]
        value = [factor * value[0], *value[1:]] if isinstance(value, tuple | list) else factor * value
        return call(*args[:place], value, *args[place + 1 :], **kwargs)

    return replace


def _masks(recording: Recording, scores: list[tuple[Operation, Operation, int]]) -> Iterator[Trial]:
    own: dict[tuple[str, str], list[Operation]] = {}
    for op in recording.named(*MASKED):
        mask = op.given.get(MASKED[op.name])
        other = op.given.get("input")
        if op.name == "add" and not _is_mask(mask) and _is_mask(other):
            own.setdefault((op.name, "input"), []).append(op)
        elif _is_mask(mask):
            own.setdefault((op.name, MASKED[op.name]), []).append(op)
    for (name, argument), operations in own.items():
        causal = [op for op in operations if _diagonal(op.given[argument]) is not None]
        for by in SHIFTS:
            replace = _masking(name, argument, partial(_moved, by=by))
            yield from over("mask", causal, f"diagonal of the mask moved by {by:+d}", replace)
        yield from over("mask", operations, "mask -> none", _masking(name, argument, _open(operations[0])))
        inverted = [op for op in operations if op.given[argument].dtype == torch.bool]
        yield from over("mask", inverted, "mask inverted", _masking(name, argument, torch.logical_not))
    yield from _causal_flags(recording)
    if not own:
        yield from _made_masks(recording)
    masked = {op.place for operations in own.values() for op in operations}
    free = [softmax for _, softmax, _ in scores if softmax.place not in masked and softmax.args[0].shape[-2] > 1]
    yield from over("mask", free, "no mask -> causal", _masked_softmax)


def _is_mask(value: Any) -> bool:
    """Return whether a value is an array of truth values, or of 0 and values that mask."""
    if not isinstance(value, torch.Tensor) or value.ndim < 2 or value.requires_grad:
        return False
    if value.dtype == torch.bool:
        return True
    return value.is_floating_point() and bool(((value == 0) | (value < LOW)).all()) and bool((value < LOW).any())


def _diagonal(mask: torch.Tensor) -> tuple[bool, int] | None:
    """Return of a triangular mask whether it is true below a diagonal, and which; None for others."""
    chosen = mask if mask.dtype == torch.bool else mask < LOW
    rows, columns = chosen.shape[-2:]
    if rows < 2 or chosen.all() or not chosen.any():
        return None
    ones, one = torch.ones(rows, columns, dtype=torch.bool), chosen.reshape(-1, rows, columns)[0]
    first, last = int(one[0].sum()), int(one[-1].sum())
    below = first - 1 if first else last - rows
    above = columns - first if first < columns else columns - rows + 1 - last
    if (chosen == ones.tril(below)).all():
        return True, below
    return (False, above) if (chosen == ones.triu(above)).all() else None


def _moved(mask: torch.Tensor, by: int) -> torch.Tensor:
    found = _diagonal(mask)
    if found is None:
        return mask
    below, diagonal = found
    ones = torch.ones_like(mask, dtype=torch.bool)
    moved = ones.tril(diagonal + by) if below else ones.triu(diagonal + by)
    return moved if mask.dtype == torch.bool else torch.zeros_like(mask).masked_fill(moved, mask.min())


def _open(op: Operation) -> Callable[[torch.Tensor], torch.Tensor | None]:
    """Return a function from the mask of an operation to one that masks nothing."""
    if op.name == SDPA:
        return lambda mask: None
    masks = op.given.get("input")  # of where: what is taken where the condition is true
    low = not isinstance(masks, torch.Tensor) or bool((masks < LOW).all())
    if op.name == "where" and not low:
        return torch.ones_like
    return torch.zeros_like


def _masking(name: str, argument: str, new: Callable[[torch.Tensor], Any]) -> Replace:
    return setting(name, **{argument: lambda given: new(given[argument])})


def _causal_flags(recording: Recording) -> Iterator[Trial]:
    calls = recording.named(SDPA)
    causal = [op for op in calls if op.given.get("is_causal")]
    open_ = [op for op in calls if not op.given.get("is_causal") and op.given.get("attn_mask") is None]
    yield from over("mask", causal, "causal mask -> none", setting(SDPA, is_causal=False))
    yield from over("mask", open_, "no mask -> causal", setting(SDPA, is_causal=True))
    for by in SHIFTS:
        yield from over("mask", causal, f"diagonal of the causal mask moved by {by:+d}", _causal(by))
    uneven = [op for op in causal if op.given["query"].shape[-2] != op.given["key"].shape[-2]]
    yield from over("mask", uneven, "causal mask aligned at the last position", _causal(None))


def _causal(by: int | None) -> Replace:
    """Return a replacement of causal attention by one with another diagonal; None aligns the last positions."""

    def replace(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = bound(SDPA, args, kwargs)
        query, key = given.pop("query"), given.pop("key")
        rows, columns = query.shape[-2], key.shape[-2]
        above = torch.ones(rows, columns, dtype=torch.bool).triu(1 + (columns - rows if by is None else by))
        # The lowest number, where a row without an open position gives equal weights, as most JAX code has it
        mask = torch.zeros(rows, columns, dtype=query.dtype).masked_fill(above, torch.finfo(query.dtype).min)
        return call(query, key, **given | {"attn_mask": mask, "is_causal": False})

    return replace


def _made_masks(recording: Recording) -> Iterator[Trial]:
    """Yield the trials of triangles that are made in the run, for masks that are applied in another way."""
    for name in ("tril", "triu"):
        for by in SHIFTS:
            replace = setting(name, diagonal=lambda given, by=by: given.get("diagonal", 0) + by)
            yield from over("mask", recording.named(name), f"diagonal of {name} moved by {by:+d}", replace)


def _masked_softmax(call: Callable[..., Any], scores: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    rows, columns = scores.shape[-2:]
    above = torch.ones(rows, columns, dtype=torch.bool).triu(1 + columns - rows)
    return call(scores.masked_fill(above, torch.finfo(scores.dtype).min), *args, **kwargs)


def _softmax_axes(operations: list[Operation]) -> Iterator[Trial]:
    by_axis: dict[tuple[int, int], list[Operation]] = {}
    for op in operations:
        axis, ndim = op.given.get("dim"), op.args[0].ndim
        if isinstance(axis, int):
            by_axis.setdefault((ndim, axis - ndim if axis >= 0 else axis), []).append(op)
    for (ndim, old), known in by_axis.items():
        for new in range(-1, -ndim - 1, -1):
            if new != old:
                name = known[0].name
                yield from over("softmax", known, f"axis {old} -> {new} of {name}", setting(name, dim=new))


def _embedding_scale(recording: Recording) -> Iterator[Trial]:
    by_width: dict[int, list[Operation]] = {}
    for op in recording.named("embedding"):
        by_width.setdefault(op.result.shape[-1], []).append(op)
    for width, operations in by_width.items():
        root = width**0.5
        for word, factor in ((f"sqrt({width})", root), (f"1/sqrt({width})", 1 / root)):
            yield from over("embedding", operations, f"embedding times {word}", _result_times(factor))


def _result_times(factor: float) -> Replace:
    return lambda call, *args, **kwargs: factor * call(*args, **kwargs)
