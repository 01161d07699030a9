"""Try the usual causes of a difference in torch's run of a comparison, and name the one that makes both agree."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from parity.arrays import Arrays
from parity.check.result import Result
from parity.difference import difference, tolerance
from parity.mapping import Row
from parity.ports.causes import likely, likely_optimizer
from parity.ports.judging import ZERO, gradient_differences
from parity.ports.recording import FACTORS, Recording, record_port
from parity.ports.torch.port import TorchPort
from parity.ports.translation import Translation

__all__ = ["disagreement", "likely_causes"]

UPDATE = 6
"""Rung of the first line of updates."""


def likely_causes(
    port: TorchPort, rows: list[Row], one: Recording, taps: Mapping[str, str], failure: Result, seconds: float
) -> tuple[str, ...]:
    """Return sentences that name the likely cause of a failure; none where nothing that is usual explains it.

    Args:
        port: torch's side.
        rows: the mapping of names.
        one: recording of JAX's side, with the noise of its gradients.
        taps: name of a tap -> submodule.
        failure: the first line that failed.
        seconds: time after which nothing more is tried.
    """
    limit = tolerance("gradients", failure.dtype)
    port = port.eager()
    if limit is None or failure.rung > UPDATE or port.is_compiled:
        return ()
    if failure.rung == UPDATE:
        return tuple(_of_updates(port, rows, one, limit, seconds))
    run = disagreement(port, one, taps)
    return tuple(likely(port.module, rows, run, tolerance=limit, seconds=seconds))


def disagreement(
    port: TorchPort, one: Recording, taps: Mapping[str, str]
) -> Callable[[torch.nn.Module, list[Row]], list[float]]:
    """Return a function from a module and a mapping of names to the relative differences with JAX, in order.

    Args:
        port: torch's side.
        one: recording of JAX's side.
        taps: name of a tap -> submodule.
    """
    plain = copy.copy(port)
    plain.request = replace(port.request, optimizer=None)
    names: list[str] = []

    def run(module: torch.nn.Module, rows: list[Row]) -> list[float]:
        raw = record_port(plain.on(module), Translation(rows, "torch").weights(one.weights), subject="", facts={})
        found = _sizes(one, Translation(rows, "jax").recording(raw, one, taps))
        if not names:
            names.extend(found)
        return [found.get(name, float("inf")) for name in names]

    return run


def _sizes(one: Recording, other: Recording) -> dict[str, float]:
    """Return the relative differences of all real values by kind and name, in the order of computation."""
    found = {}
    for kind in ("activations", "outputs", "state"):
        ours, theirs = getattr(one, kind), getattr(other, kind)
        for name in ours:
            if name in theirs and ours[name].dtype.kind in "fc":
                found[f"{kind}/{name}"] = difference(name, ours[name], theirs[name]).max_rel
    found["loss"] = difference("loss", one.loss, other.loss).max_rel
    found |= {f"grads/{d.name}": d.max_rel for d in gradient_differences(one, other) if d.note != ZERO}
    common = [name for name in one.input_grads if name in other.input_grads]
    return found | {n: difference(n, one.input_grads[n], other.input_grads[n]).max_rel for n in common}


def _of_updates(port: TorchPort, rows: list[Row], one: Recording, limit: float, seconds: float) -> list[str]:
    to_torch, to_jax = Translation(rows, "torch"), Translation(rows, "jax")
    weights, grads = to_torch.weights(one.weights), to_torch.values(one.grads)
    if isinstance(port.request.optimizer(list(port.parameters().values())), tuple):  # a scheduler holds its optimizer
        return []

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
