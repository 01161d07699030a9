"""Suspected causes in activations: GELU exact or by tanh, SiLU, ReLU, quick GELU, and the slope of a leaky ReLU."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F

from parity.ports.causes.operations import Operation, Recording, Replace, setting
from parity.ports.causes.trial import Trial, over

__all__ = ["activation_trials"]

Function = Callable[[torch.Tensor], torch.Tensor]

C = math.sqrt(2 / math.pi)
CUBIC = 0.044715
"""Of the tanh approximation of GELU, C (x + CUBIC x³)."""
QUICK = 1.702
"""Factor in the sigmoid of quick GELU."""
SLOPES = (0.01, 0.2, 0.1, 0.3)

GATES: dict[str, Function] = {
    "GELU": lambda x: 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "tanh GELU": lambda x: 0.5 * (1 + torch.tanh(C * (x + CUBIC * x**3))),
    "SiLU": torch.sigmoid,
    "quick GELU": lambda x: torch.sigmoid(QUICK * x),
    "ReLU": lambda x: (x > 0).to(x.dtype),
}
"""Activation -> what it multiplies its input by."""
PLAIN = {"gelu": "GELU", "silu": "SiLU", "relu": "ReLU"}


def activation_trials(recording: Recording) -> Iterator[Trial]:
    """Yield the trials of all activations in a recording, by name and written out."""
    families: dict[str, list[Operation]] = {}
    for op in recording.named("gelu", "silu", "relu"):
        tanh = op.given.get("approximate", "none") == "tanh"
        families.setdefault("tanh GELU" if tanh else PLAIN[op.name], []).append(op)
    for old, operations in families.items():
        for new in (name for name in GATES if name != old):
            yield from over("activation", operations, f"{old} -> {new}", _instead(GATES[new]))
    yield from _slopes(recording, families.get("ReLU", []))
    yield from _written_out(recording)


def _instead(gate: Function) -> Replace:
    return lambda call, x, *args, **kwargs: x * gate(x)


def _slopes(recording: Recording, plain: list[Operation]) -> Iterator[Trial]:
    for new in SLOPES:
        replace = _leaky(new)
        yield from over("activation", plain, f"ReLU -> leaky ReLU of slope {new:g}", replace)
    families: dict[float, list[Operation]] = {}
    for op in recording.named("leaky_relu"):
        families.setdefault(float(op.given.get("negative_slope", 0.01)), []).append(op)
    for old, operations in families.items():
        for new in (*SLOPES, 0.0):
            if new != old:
                changed = setting("leaky_relu", negative_slope=new)
                yield from over("activation", operations, f"slope {old:g} -> {new:g}", changed)


def _leaky(slope: float) -> Replace:
    return lambda call, x, *args, **kwargs: F.leaky_relu(x, slope)


def _written_out(recording: Recording) -> Iterator[Trial]:
    """Yield the trials of activations that are written as x times a gate, or half of x times one plus it."""
    families: dict[str, list[Operation]] = {}
    for op in recording.named("erf", "tanh", "sigmoid"):
        if (old := _written(op, recording)) is not None:
            families.setdefault(old, []).append(op)
    for old, operations in families.items():
        for new in (name for name in GATES if name != old):
            yield from over("activation", operations, f"{old} -> {new}", _gate(old, GATES[new]))


def _written(op: Operation, recording: Recording) -> str | None:
    """Return the activation whose gate an operation computes; None where it is another's."""
    if op.name == "erf":
        return "GELU"
    if op.name == "tanh":
        beside = [o for o in recording.named("mul") if o.place == op.place]
        return "tanh GELU" if any(_has_number(o, CUBIC, 1e-5) for o in beside) else None
    source = recording.source(op.args[0])
    if source is not None and source.name == "mul" and _has_number(source, QUICK, 1e-2):
        return "quick GELU"
    products = [o for o in recording.named("mul") if any(value is op.result for value in o.args)]
    return "SiLU" if any(value is op.args[0] for o in products for value in o.args) else None


def _has_number(op: Operation, number: float, within: float) -> bool:
    return any(isinstance(value, float) and abs(value - number) < within for value in op.args)


def _gate(old: str, new: Function) -> Replace:
    """Return a replacement of one activation's gate by another's: its input is computed from the gate's argument."""
    inputs: dict[str, Function] = {
        "GELU": lambda u: math.sqrt(2) * u,
        "tanh GELU": lambda u: _cubic_root(u / C),
        "quick GELU": lambda u: u / QUICK,
        "SiLU": lambda u: u,
    }

    def replace(call: Callable[..., Any], u: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        value = new(inputs[old](u))
        return 2 * value - 1 if old in ("GELU", "tanh GELU") else value

    return replace


def _cubic_root(v: torch.Tensor) -> torch.Tensor:
    """Return the x with x + CUBIC x³ = v, by the hyperbolic form of Cardano's formula."""
    width = 2 * math.sqrt(1 / (3 * CUBIC))
    return width * torch.sinh(torch.asinh(3 * v / width) / 3)
