"""Suspected causes in convolutions, pooling and resizing: padding, flipped kernels, corners, order when flattened."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from parity.ports.causes.operations import Operation, Recording, Replace, bound, setting
from parity.ports.causes.trial import Trial, over

__all__ = ["convolution_trials"]

Pads = list[tuple[int, int]]
"""Padding before and after, for each spatial axis."""
NUMBERED = ("1d", "2d", "3d")
CONVS = tuple(f"conv{n}" for n in NUMBERED)
TRANSPOSED = tuple(f"conv_transpose{n}" for n in NUMBERED)
MAX_POOLS = tuple(f"max_pool{n}" for n in NUMBERED)
AVG_POOLS = tuple(f"avg_pool{n}" for n in NUMBERED)
LINEAR_MODES = ("linear", "bilinear", "bicubic", "trilinear")


def convolution_trials(recording: Recording) -> Iterator[Trial]:
    """Yield the trials of all convolutions, pools, resizings and flattenings in a recording."""
    for name in (*CONVS, *MAX_POOLS, *AVG_POOLS):
        for way in ("SAME", "SAME_LOWER", "VALID", "CAUSAL"):
            other = [op for op in recording.named(name) if _differs(op, way)]
            yield from over("padding", other, f"padding -> {way}", _padded(name, way))
    for name in TRANSPOSED:
        plain = [op for op in recording.named(name) if set(_each(op.given.get("dilation", 1), 1)) == {1}]
        yield from over("padding", plain, "padding -> SAME as of jax.lax.conv_transpose", _transposed_same(name))
    for name in (*CONVS, *TRANSPOSED):
        wide = [op for op in recording.named(name) if max(op.given["weight"].shape[2:]) > 1]
        yield from over("flip", wide, "kernel -> flipped in space", _flipped(name))
    yield from _pools(recording)
    yield from _resizing(recording)
    yield from _flattening(recording)


def _each(value: Any, count: int) -> list[int]:
    """Return an argument that may be one number for all axes, as one for each."""
    values = list(value) if isinstance(value, tuple | list) else [value]
    return [int(v) for v in (values * count if len(values) == 1 else values)]


def _geometry(name: str, given: dict[str, Any]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return sizes, widths of the kernel as it is dilated, and strides of each axis, and the dilations."""
    axes = NUMBERED.index(name[-2:]) + 1
    sizes = list(given["input"].shape[-axes:])
    kernel = list(given["weight"].shape[2:]) if "weight" in given else _each(given["kernel_size"], axes)
    stride = given.get("stride", 1 if "weight" in given else None)
    strides = _each(kernel if stride is None or stride == [] else stride, axes)
    dilations = _each(given.get("dilation", 1), axes)
    return sizes, [d * (k - 1) + 1 for k, d in zip(kernel, dilations)], strides, dilations


def _own_pads(name: str, given: dict[str, Any]) -> Pads:
    padding = given.get("padding", 0)
    if isinstance(padding, str):
        return _pads(name, given, padding.upper())
    return [(p, p) for p in _each(padding, NUMBERED.index(name[-2:]) + 1)]


def _pads(name: str, given: dict[str, Any], way: str) -> Pads:
    """Return the padding that JAX means by a word."""
    sizes, widths, strides, _ = _geometry(name, given)
    pads = []
    for size, width, stride in zip(sizes, widths, strides):
        total = max((math.ceil(size / stride) - 1) * stride + width - size, 0)
        half = total // 2
        ways = {"VALID": (0, 0), "CAUSAL": (width - 1, 0), "SAME_LOWER": (total - half, half)}
        pads.append(ways.get(way, (half, total - half)))
    return pads


def _differs(op: Operation, way: str) -> bool:
    if way == "CAUSAL" and op.name != "conv1d":
        return False
    pads = _pads(op.name, op.given, way)
    return pads != _own_pads(op.name, op.given) and (way != "SAME_LOWER" or pads != _pads(op.name, op.given, "SAME"))


def _flat(pads: Pads) -> list[int]:
    """Return padding as `torch.nn.functional.pad` takes it, the last axis first."""
    return [size for pair in reversed(pads) for size in pair]


def _padded(name: str, way: str) -> Replace:
    """Return a replacement that pads as JAX does: with values that never are the maximum, and count in a mean."""
    value = -math.inf if name in MAX_POOLS else 0.0

    def replace(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = bound(name, args, kwargs)
        x = F.pad(given.pop("input"), _flat(_pads(name, {"input": args[0], **given}, way)), value=value)
        return call(x, **given | {"padding": 0})

    return replace


def _transposed_same(name: str) -> Replace:
    def replace(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = bound(name, args, kwargs)
        _, widths, strides, _ = _geometry(name, given)
        pads = []
        for width, stride in zip(widths, strides):
            total = width + stride - 2
            before = width - 1 if stride > width - 1 else math.ceil(total / 2)
            pads.append((before - width + 1, total - before - width + 1))
        bias = given.pop("bias", None)
        whole = call(given.pop("input"), **given | {"padding": 0, "output_padding": 0})
        result = F.pad(whole, _flat(pads))
        return result if bias is None else result + bias.reshape(-1, *[1] * len(pads))

    return replace


def _flipped(name: str) -> Replace:
    return setting(name, weight=lambda given: given["weight"].flip(list(range(2, given["weight"].ndim))))


def _pools(recording: Recording) -> Iterator[Trial]:
    for name in AVG_POOLS:
        for old in (True, False):
            pools = [op for op in recording.named(name) if op.given.get("count_include_pad", True) is old]
            pools = [op for op in pools if any(map(any, _own_pads(name, op.given)))]
            changed = setting(name, count_include_pad=not old)
            yield from over("count_include_pad", pools, f"count_include_pad {old} -> {not old}", changed)
        uncounted = [op for op in recording.named(name) if any(map(any, _pads(name, op.given, "SAME")))]
        yield from over("padding", uncounted, "padding -> SAME, not counted", _uncounted(name))
    for name in (*AVG_POOLS, *MAX_POOLS):
        for old in (True, False):
            pools = [op for op in recording.named(name) if op.given.get("ceil_mode", False) is old]
            yield from over("ceil_mode", pools, f"ceil_mode {old} -> {not old}", setting(name, ceil_mode=not old))


def _uncounted(name: str) -> Replace:
    padded = _padded(name, "SAME")

    def replace(call: Callable[..., Any], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return padded(call, x, *args, **kwargs) / padded(call, torch.ones_like(x), *args, **kwargs)

    return replace


def _resizing(recording: Recording) -> Iterator[Trial]:
    resized = recording.named("interpolate")
    smooth = [op for op in resized if op.given.get("mode") in LINEAR_MODES]
    for name, operations in (("interpolate", smooth), ("grid_sample", recording.named("grid_sample"))):
        for old in (True, False):
            known = [op for op in operations if bool(op.given.get("align_corners")) is old]
            changed = setting(name, align_corners=not old)
            yield from over("align_corners", known, f"align_corners {old} -> {not old}", changed)
    for old in (True, False):
        known = [op for op in smooth if op.given["mode"][:2] == "bi" and bool(op.given.get("antialias")) is old]
        changed = setting("interpolate", antialias=not old)
        yield from over("antialias", known, f"antialias {old} -> {not old}", changed)
    nearest = [op for op in resized if op.given.get("mode", "nearest") == "nearest"]
    yield from over("mode", nearest, "nearest -> nearest-exact", setting("interpolate", mode="nearest-exact"))


def _flattening(recording: Recording) -> Iterator[Trial]:
    flat = [op for op in recording.named("flatten", "view", "reshape") if _flattens(op)]
    yield from over("flatten", flat, "flattened with channels first -> last", _permuted(1, -1))
    yield from over("flatten", flat, "flattened with channels last -> first", _permuted(-1, 1))


def _flattens(op: Operation) -> bool:
    """Return whether an operation makes one axis of all but the first."""
    before: tuple[int, ...] = tuple(op.args[0].shape) if op.args else ()
    after: tuple[int, ...] = tuple(getattr(op.result, "shape", ()))
    return len(before) > 2 and len(after) == 2 and after[0] == before[0] and sum(size > 1 for size in before[1:]) > 1


def _permuted(source: int, to: int) -> Replace:
    def replace(call: Callable[..., Any], x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return torch.movedim(x, source, to).reshape(len(x), -1)

    return replace
