"""Suspected causes in normalization: eps, where it is added, unbiased variance, axes, and BatchNorm's statistics."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from parity.ports.causes.operations import Operation, Recording, Replace, bound, setting
from parity.ports.causes.trial import Trial, over

__all__ = ["norm_trials"]

EPS = (1e-6, 1e-5, 1e-3, 1e-8, 1e-12, 0.0, 1e-7, 1e-4)
"""Usual values, the most usual first."""
MAX_EPS = 1e-2
"""Largest constant beside a variance that is taken for an eps."""
DEFAULT_EPS = 1e-5
NORMS = ("layer_norm", "group_norm", "batch_norm", "instance_norm", "rms_norm")
MOMENTS = ("mean", "var", "std", "var_mean", "std_mean")
SPREADS = MOMENTS[1:]


def norm_trials(recording: Recording) -> Iterator[Trial]:
    """Yield the trials of all norms in a recording, those of `torch.nn` and those written by hand."""
    yield from _eps(recording)
    yield from _unbiased(recording)
    yield from _batch_statistics(recording)
    yield from _axes(recording)


def _eps(recording: Recording) -> Iterator[Trial]:
    families: dict[tuple[str, float], list[Operation]] = {}
    for op in recording.named(*NORMS):
        families.setdefault((op.name, _own_eps(op)), []).append(op)
    for (name, old), operations in families.items():
        for new in _others(old):
            yield from over("eps", operations, f"eps {old:g} -> {new:g}", setting(name, eps=new))
    added: dict[float, list[Operation]] = {}
    outside: list[Operation] = []
    for op in recording.named("add"):
        if (eps := _added_eps(op, recording)) is not None:
            added.setdefault(eps, []).append(op)
            outside += [op] if _of(recording, op.args, "sqrt", "std", "norm", "linalg_vector_norm") else []
    for old, operations in added.items():
        for new in _others(old):
            yield from over("eps", operations, f"eps {old:g} -> {new:g}", _adding(new))
    yield from over("eps", outside, "eps beside the root -> inside", _inside)
    under = [op for ops in added.values() for op in ops if op not in outside]
    roots = [op for op in recording.named("sqrt") if recording.sources.get(id(op.args[0])) in under]
    yield from over("eps", [op for op in under if _feeds(op, roots)], "eps inside the root -> beside", _beside)
    bare = [op for op in recording.named("rsqrt", "sqrt") if _of(recording, op.args, "mean", "var")]
    for new in EPS[:-3]:
        yield from over("eps", bare, f"eps none -> {new:g}", _shifted(new))


def _own_eps(op: Operation) -> float:
    eps = op.given.get("eps", DEFAULT_EPS)
    return float(torch.finfo(op.args[0].dtype).eps if eps is None else eps)  # rms_norm's default


def _others(old: float) -> list[float]:
    return [new for new in EPS if new != old]


def _of(recording: Recording, args: tuple[Any, ...], *names: str) -> bool:
    """Return whether a value among the arguments comes from operations of these names."""
    return any(source.name in names for value in args if (source := recording.source(value)) is not None)


def _added_eps(op: Operation, recording: Recording) -> float | None:
    """Return the constant that an addition adds to a variance, a mean of squares or its root; None for others."""
    numbers = [value for value in op.args if isinstance(value, int | float)]
    if len(numbers) != 1 or not 0 < numbers[0] <= MAX_EPS:
        return None
    statistics = ("mean", "var", "std", "sqrt", "norm", "linalg_vector_norm", "sum", "div", "mul")
    return float(numbers[0]) if _of(recording, op.args, *statistics) else None


def _feeds(op: Operation, roots: list[Operation]) -> bool:
    return any(root.args[0] is op.result for root in roots)


def _adding(new: float) -> Replace:
    def replace(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return call(*(new if isinstance(value, int | float) else value for value in args), **kwargs)

    return replace


def _inside(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    root, eps = args if isinstance(args[0], torch.Tensor) else args[::-1]
    return torch.sqrt(root.square() + eps)


def _beside(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    variance, eps = args if isinstance(args[0], torch.Tensor) else args[::-1]
    return (variance.sqrt() + eps).square()


def _shifted(eps: float) -> Replace:
    return lambda call, value, *args, **kwargs: call(value + eps, *args, **kwargs)


def _unbiased(recording: Recording) -> Iterator[Trial]:
    by_correction: dict[tuple[str, int], list[Operation]] = {}
    for op in recording.named(*SPREADS):
        given = op.given
        correction = given.get("correction", int(given.get("unbiased", True)))
        by_correction.setdefault((op.name, int(1 if correction is None else correction)), []).append(op)
    for (name, old), operations in by_correction.items():
        for new in {0, 1} - {old}:
            yield from over("correction", operations, f"correction {old} -> {new} of {name}", _corrected(name, new))


def _corrected(name: str, correction: int) -> Replace:
    def replace(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = bound(name, args, kwargs)
        given.pop("unbiased", None)
        return call(given.pop("input"), **{"dim": None} | given | {"correction": correction})

    return replace


def _batch_statistics(recording: Recording) -> Iterator[Trial]:
    norms = [op for op in recording.named("batch_norm") if op.given.get("running_mean") is not None]
    training = [op for op in norms if op.given.get("training")]
    by_momentum: dict[float, list[Operation]] = {}
    for op in training:
        by_momentum.setdefault(float(op.given.get("momentum", 0.1)), []).append(op)
    for old, operations in by_momentum.items():
        new = round(1 - old, 12)
        changed = setting("batch_norm", momentum=new)
        yield from over("momentum", operations, f"BatchNorm momentum {old:g} -> {new:g}", changed)
    yield from over("running variance", training, "running variance unbiased -> biased", _biased_running)
    for known, words in (
        (training, "batch -> running"),
        ([op for op in norms if op not in training], "running -> batch"),
    ):
        replace = setting("batch_norm", training=known is not training)
        yield from over("statistics", known, f"BatchNorm statistics {words}", replace)


def _biased_running(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Update the running variance by the biased variance of the batch, as Flax does."""
    given = bound("batch_norm", args, kwargs)
    old = given["running_var"].clone()
    result = call(*args, **kwargs)
    x = given["input"].detach()
    dims = [0, *range(2, x.ndim)]
    biased, unbiased = x.var(dims, correction=0), x.var(dims, correction=1)
    new = given["running_var"]
    step = torch.where(unbiased == old, torch.zeros_like(old), (new - old) / (unbiased - old))
    new.data.copy_(old + step * (biased - old))  # data, since the backward pass holds the buffer
    return result


def _axes(recording: Recording) -> Iterator[Trial]:
    for name in ("layer_norm", "rms_norm"):
        norms = [op for op in recording.named(name) if len(op.given["normalized_shape"]) == 1 and op.args[0].ndim > 2]
        for other in range(-max((op.args[0].ndim for op in norms), default=1), -1):
            kept = [op for op in norms if op.args[0].ndim >= -other]
            yield from over("norm axis", kept, f"normalized over axis -1 -> {other}", _over_axis(name, other))
    by_axis: dict[int, list[Operation]] = {}
    for op in recording.named(*MOMENTS):
        dim = op.given.get("dim")
        axis = dim[0] if isinstance(dim, tuple | list) and len(dim) == 1 else dim
        if isinstance(axis, int) and op.given.get("keepdim") and op.args[0].ndim > 1:
            by_axis.setdefault(axis - op.args[0].ndim if axis >= 0 else axis, []).append(op)
    for old, operations in by_axis.items():
        for new in range(-min(op.args[0].ndim for op in operations), 0):
            if new != old:
                yield from _moved(operations, old, new)


def _moved(operations: list[Operation], old: int, new: int) -> Iterator[Trial]:
    """Yield the trials of statistics over another axis: a norm's mean and variance together."""

    def replace(call: Callable[..., Any], value: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        given = {key: v for key, v in bound("mean", (value, *args), kwargs).items() if key not in ("input", "dim")}
        return call(value, dim=new, **given)

    found = over("norm axis", operations, f"normalized over axis {old} -> {new}", replace)
    yield from (trial for trial in found if trial.rank < 2 or len(operations) == 1)


def _over_axis(name: str, axis: int) -> Replace:
    def replace(call: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        given = bound(name, args, kwargs)
        x = given["input"]
        eps = given.get("eps", DEFAULT_EPS)
        if name == "layer_norm":
            x = x - x.mean(axis, keepdim=True)
        scale = torch.rsqrt(x.square().mean(axis, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps))
        weight, bias = given.get("weight"), given.get("bias")
        x = x * scale if weight is None else x * scale * weight
        return x if bias is None else x + bias

    return replace
