"""Names the likely cause of a difference between a torch module and its JAX model: tries the usual ones in torch."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from parity.mapping import Row
from parity.ports.causes.activations import activation_trials
from parity.ports.causes.attention import attention_trials, head_dims
from parity.ports.causes.convolutions import convolution_trials
from parity.ports.causes.layouts import layout_trials
from parity.ports.causes.norms import norm_trials
from parity.ports.causes.operations import recorded
from parity.ports.causes.reductions import order_trials, reduction_trials
from parity.ports.causes.search import BESIDE, search
from parity.ports.causes.trial import Trial, change, ranked

__all__ = ["likely", "trials"]

Run = Callable[[torch.nn.Module, list[Row]], float | Sequence[float]]

FAILURES = (
    *(RuntimeError, ValueError, IndexError, TypeError, KeyError, AttributeError, AssertionError),
    *(NotImplementedError, ZeroDivisionError),
)
"""What a module may raise when a change doesn't fit it; the change is then no cause."""


def trials(module: torch.nn.Module, rows: list[Row], watch: Callable[[torch.nn.Module], Any]) -> list[Trial]:
    """Return the usual causes that apply to a module, those that change much at once first.

    Args:
        module: with its weights.
        rows: the mapping of names.
        watch: runs the module once, with the loss where losses are compared.
    """
    recording = recorded(module, lambda: watch(module))
    found = [
        *norm_trials(recording),
        *activation_trials(recording),
        *attention_trials(recording),
        *layout_trials(module, rows, head_dims(recording)),
        *order_trials(recording),
        *convolution_trials(recording),
        *reduction_trials(recording),
    ]
    return ranked(found)


def likely(
    module: torch.nn.Module,
    rows: list[Row],
    run: Run,
    watch: Callable[[torch.nn.Module], Any] | None = None,
    *,
    tolerance: float = 1e-11,
    evidence: float = BESIDE,
    runs: int = 200,
    seconds: float = 60.0,
) -> list[str]:
    """Return the likely causes of a difference, such as `likely: eps 1e-05 -> 1e-06 in norm1 (agrees to 2e-16 …)`.

    Every usual cause that applies is tried by itself. Where none makes both agree, the one that helps most stays, and
    the search goes on from there, up to four faults. A sentence that names several means all of them together; several
    sentences are alternatives.

    Args:
        module: the torch module in the type that is compared; it is copied for each run.
        rows: the mapping of names.
        run: `run(module, rows)` loads JAX's weights by the rows, runs the module, and returns the relative differences
            with JAX of all that is compared in the order of computation (activations, outputs, loss, gradients), or
            the largest. Gradients that are zero in exact arithmetic must not be among them, nor integers.
        watch: runs the module once without weights from JAX; None for `run`.
        tolerance: largest difference that is rounding.
        evidence: factor by which a cause must make the difference smaller.
        runs: largest number of runs.
        seconds: time after which no run begins.

    Returns:
        The sentences; none where nothing is likely.
    """
    module = copy.deepcopy(module)
    module.zero_grad(set_to_none=True)

    def measure(chosen: Sequence[Trial]) -> float | Sequence[float]:
        ours = copy.deepcopy(module)
        context, mapping = change(chosen, ours, rows)
        try:
            with context:
                return run(ours, mapping)
        except FAILURES:
            if not chosen:
                raise
            return float("inf")

    found = trials(copy.deepcopy(module), rows, watch or (lambda watched: run(watched, rows)))
    return search(found, measure, tolerance=tolerance, evidence=evidence, runs=runs, seconds=seconds)
