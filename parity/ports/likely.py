"""Try the usual causes of a difference in torch's run of a comparison, and name the one that makes both agree."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from parity.arrays import Arrays
from parity.check.result import Result
from parity.difference import Difference, difference, tolerance
from parity.mapping import Row
from parity.ports.causes import likely, likely_optimizer
from parity.ports.judging import RESPONSES, ROUNDING_32, gradient_differences, loss_difference, rounding
from parity.ports.recording import FACTORS, Recording, narrowest, record_port
from parity.ports.torch.port import TorchPort
from parity.ports.translation import Translation

__all__ = ["disagreement", "likely_causes"]

UPDATE = 6
"""Rung of the first line of updates."""
EVIDENCE_32 = 10.0
"""Factor by which a cause must make a difference smaller where it can be no smaller than rounding in float32."""
ROUNDINGS = 10.0
"""How many times more two curves may differ than one does when its weights move by one unit in the last place."""


def likely_causes(
    port: TorchPort,
    rows: list[Row],
    one: Recording,
    other: Recording,
    taps: Mapping[str, str],
    failure: Result,
    seconds: float,
) -> tuple[str, ...]:
    """Return sentences that name the likely cause of a failure; none where nothing that is usual explains it.

    Args:
        port: torch's side.
        rows: the mapping of names.
        one: recording of JAX's side, with the noise of its gradients.
        other: recording of torch's side.
        taps: name of a tap -> submodule.
        failure: the first line that failed.
        seconds: time after which nothing more is tried.
    """
    kind = narrowest(one.narrow | other.narrow, failure.dtype)
    limit = tolerance("gradients", kind)
    port = port.eager()
    if limit is None or port.is_compiled:
        return ()
    if failure.rung >= UPDATE:
        of_rung = _of_updates if failure.rung == UPDATE else _of_curves
        return tuple(of_rung(port, rows, one, tolerance("update", kind) or limit, seconds))
    if kind == failure.dtype:
        run = disagreement(port, one, taps)
        return tuple(likely(port.module, rows, run, tolerance=limit, seconds=seconds))
    run = disagreement(port, one, taps, rounding(one, other))
    return tuple(likely(port.module, rows, run, tolerance=ROUNDING_32, evidence=EVIDENCE_32, seconds=seconds))


def disagreement(
    port: TorchPort, one: Recording, taps: Mapping[str, str], noise: Mapping[str, float] | None = None
) -> Callable[[torch.nn.Module, list[Row]], list[float]]:
    """Return a function from a module and a mapping of names to the relative differences with JAX, in order.

    Args:
        port: torch's side.
        one: recording of JAX's side.
        taps: name of a tap -> submodule.
        noise: rounding of each value, as `Recording.noise`, where it is more than the type says: a difference no larger
            than is usual then counts as `ROUNDING_32`.
    """
    plain = copy.copy(port)
    plain.request = replace(port.request, optimizer=None)
    names: list[str] = []

    def run(module: torch.nn.Module, rows: list[Row]) -> list[float]:
        raw = record_port(plain.on(module), Translation(rows, "torch").weights(one.weights), subject="", facts={})
        found = _sizes(one, Translation(rows, "jax").recording(raw, one, taps), noise or {})
        if not names:
            names.extend(found)
        return [found.get(name, float("inf")) for name in names]

    return run


def _sizes(one: Recording, other: Recording, noise: Mapping[str, float]) -> dict[str, float]:
    """Return the relative differences of all real values by kind and name, in the order of computation."""
    differences: dict[str, list[Difference]] = {}
    for kind in ("activations", "outputs", "state", "input_grads"):
        ours, theirs = getattr(one, kind), getattr(other, kind)
        common = [name for name in ours if name in theirs and ours[name].dtype.kind in "fc"]
        differences[kind] = [difference(name, ours[name], theirs[name]) for name in common]
    last = differences.pop("input_grads")
    differences |= {"": [loss_difference(one, other)]}
    differences |= {"grads": gradient_differences(one, other), "input_grads": last}
    found = {}
    for kind, each in differences.items():
        for d in each:
            key = f"{kind}/{d.name}" if kind else d.name
            usual = RESPONSES * noise.get(key, 0.0)
            found[key] = (
                d.max_rel * min(1.0, ROUNDING_32 * d.max_abs / d.max_rel / usual) if d.max_rel and usual else d.max_rel
            )
    return found


def _of_updates(port: TorchPort, rows: list[Row], one: Recording, limit: float, seconds: float) -> list[str]:
    to_torch, to_jax = Translation(rows, "torch"), Translation(rows, "jax")
    weights, grads = to_torch.weights(one.weights), to_torch.values(one.grads)

    def run(make: Any) -> list[float]:
        tried = copy.copy(port)
        tried.request = replace(port.request, optimizer=make)
        found = []
        for ours, theirs in zip(one.updates, tried.updates(weights, grads, FACTORS), strict=True):
            pairs: list[tuple[Arrays, Arrays]] = [(ours.params, theirs.params)]
            pairs += [(ours.moments[kind], theirs.moments.get(kind, {})) for kind in ours.moments]
            for left, right in pairs:
                right = to_jax.values(right)
                found += [difference(name, left[name], right[name]).max_rel for name in left if name in right]
        return found

    return likely_optimizer(port.request.optimizer, run, tolerance=limit, seconds=seconds)


def _of_curves(port: TorchPort, rows: list[Row], one: Recording, limit: float, seconds: float) -> list[str]:
    weights, curve = Translation(rows, "torch").weights(one.weights), np.array(one.curve)

    def differs(other: Sequence[float] | np.ndarray) -> float:
        return difference("loss", curve, np.array(other)).max_rel

    def run(make: Any) -> float:
        tried = copy.copy(port)
        tried.request = replace(port.request, optimizer=make)
        return differs(tried.curve(weights))

    usual = ROUNDINGS * max(map(differs, one.moved_curves), default=0.0)
    return likely_optimizer(port.request.optimizer, run, tolerance=max(limit, usual), seconds=seconds)
