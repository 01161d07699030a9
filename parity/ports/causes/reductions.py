"""Suspected causes in losses: sum or mean, a mean of means, a factor of a half; and in the order of equal parts."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from parity.ports.causes.operations import Operation, Recording, Replace, bound, setting
from parity.ports.causes.trial import Trial, over

__all__ = ["order_trials", "reduction_trials"]

SQUARED = ("mse_loss", "huber_loss", "smooth_l1_loss")
ENTROPIES = ("cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div")
LOSSES = (*SQUARED, "l1_loss", *ENTROPIES)
PARTED = ("chunk", "split", "tensor_split", "unbind")
MAX_PARTS = 4


def reduction_trials(recording: Recording) -> Iterator[Trial]:
    """Yield the trials of how losses are summed up, by torch's functions and written out."""
    for name in LOSSES:
        for old, new in (("mean", "sum"), ("sum", "mean")):
            operations = [op for op in recording.named(name) if op.given.get("reduction", "mean") == old]
            yield from over("reduction", operations, f"reduction {old} -> {new}", setting(name, reduction=new))
    scalars = [op for op in recording.named("mean", "sum") if len(op.args) == 1 and not op.kwargs]
    for factor in (0.5, 2.0):
        for operations in (recording.named(*SQUARED), scalars):
            yield from over("factor", operations, f"loss times {factor:g}", _times(factor))
    averaged = [op for op in recording.named("cross_entropy") if op.given.get("reduction", "mean") == "mean"]
    ignoring = [op for op in averaged if bool((op.given["target"] == _ignored(op.given)).any())]
    words = "mean over the targets that count -> over all"
    yield from over("reduction", ignoring, words, _over_all_targets)
    by_sequence = [op for op in averaged if op.given["target"].ndim == 2 and op.given["input"].ndim == 3]
    yield from over("reduction", by_sequence, "mean over all targets -> mean of means", _mean_of_sequences)
    yield from _ratios(recording)
    for name, other in (("mean", "sum"), ("sum", "mean")):
        whole = [op for op in recording.named(name) if len(op.args) == 1 and not op.kwargs]
        yield from over("reduction", whole, f"{name} -> {other}", _whole(other))


def _ignored(given: dict[str, Any]) -> int:
    return given.get("ignore_index", -100)


def _times(factor: float) -> Replace:
    return lambda call, *args, **kwargs: factor * call(*args, **kwargs)


def _over_all_targets(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    given = bound("cross_entropy", args, kwargs)
    return call(given.pop("input"), **given | {"reduction": "sum"}) / given["target"].numel()


def _mean_of_sequences(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    given = bound("cross_entropy", args, kwargs)
    losses = call(given.pop("input"), **given | {"reduction": "none"})
    return (losses.sum(-1) / (given["target"] != _ignored(given)).sum(-1)).mean()


def _whole(name: str) -> Replace:
    return lambda call, x, *args, **kwargs: getattr(x, name)()


def _ratios(recording: Recording) -> Iterator[Trial]:
    """Yield the trials of ratios of two sums: by row and then averaged, or over all."""
    averaged = [source for op in recording.named("mean") if (source := _ratio(op, recording)) is not None]
    yield from over("reduction", averaged, "mean of means -> mean over all", _ratio_over_all)
    for op in recording.named("div"):
        sums = [recording.source(value) for value in op.args]
        if len(sums) == 2 and all(s is not None and s.name == "sum" and len(s.args) == 1 for s in sums):
            rows = [s for s in sums if s is not None and not s.kwargs and s.args[0].ndim > 1]
            found = over("reduction", [*rows, op], "mean over all -> mean of means", _mean_of_ratios())
            yield from (trial for trial in found if len(rows) == 2 and trial.rank == 0)


def _ratio(mean: Operation, recording: Recording) -> Operation | None:
    """Return the division of two sums that a mean over all averages."""
    source = recording.source(mean.args[0]) if len(mean.args) == 1 else None
    if source is None or source.name != "div" or source.result.ndim == 0:
        return None
    parts = [recording.source(value) for value in source.args]
    return source if all(part is not None and part.name in ("sum", "clamp", "clamp_min") for part in parts) else None


def _ratio_over_all(call: Callable[..., Any], top: torch.Tensor, bottom: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return call(top.sum(), bottom.sum()).expand_as(top)


def _mean_of_ratios() -> Replace:
    """Return a replacement of two sums and their ratio: the sums remember what they add."""
    added: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def replace(call: Callable[..., Any], x: torch.Tensor, *others: Any) -> Any:
        if others and id(x) in added and id(others[0]) in added:
            top, bottom = added[id(x)][1], added[id(others[0])][1]
            added.clear()
            return (top.sum(-1) / bottom.sum(-1)).mean()
        result = call(x, *others)
        added[id(result)] = (result, x)
        return result

    return replace


def order_trials(recording: Recording) -> Iterator[Trial]:
    """Yield the trials of the order of equal parts: queries, keys and values, gates, and the halves of a GLU."""
    by_count: dict[tuple[str, int], list[Operation]] = {}
    for op in recording.named(*PARTED):
        if 2 <= len(op.result) <= MAX_PARTS and len({part.shape for part in op.result}) == 1:
            by_count.setdefault((op.name, len(op.result)), []).append(op)
    for (name, count), operations in by_count.items():
        for order in list(itertools.permutations(range(count)))[1:]:
            what = f"parts {tuple(range(count))} -> {order} of {name}"
            found = over("order", operations, what, _reordered(order))
            yield from (trial for trial in found if trial.rank < 2 or len(operations) <= MAX_PARTS)
    yield from over("order", recording.named("glu"), "halves of glu -> swapped", _swapped)


def _reordered(order: tuple[int, ...]) -> Replace:
    def replace(call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        parts = call(*args, **kwargs)
        return tuple(parts[i] for i in order)

    return replace


def _swapped(call: Callable[..., Any], x: torch.Tensor, dim: int = -1) -> Any:
    return call(torch.cat(x.chunk(2, dim)[::-1], dim), dim)
