"""Names the likely cause of a difference between a torch optimizer and an optax transformation."""

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from parity.ports.causes.models import FAILURES
from parity.ports.causes.search import Candidate, search
from parity.ports.causes.written import WRITTEN, Written

__all__ = ["likely_optimizer"]

Made = torch.optim.Optimizer | tuple[torch.optim.Optimizer, Any]
"""An optimizer, alone or with its scheduler."""
Make = Callable[[list[torch.nn.Parameter]], Made]
Group = dict[str, Any]
"""Options of some parameters of an optimizer."""

EPS = (1e-8, 1e-6, 1e-7, 1e-10, 1e-5, 1e-3, 1e-12, 1e-4, 1e-16, 0.0)
FIRST_BETAS = (0.9, 0.95, 0.8, 0.0)
SECOND_BETAS = (0.999, 0.95, 0.98, 0.99, 0.9)
DECAYS = (0.0, 1e-4, 1e-2, 0.1, 1e-3, 0.05)
ALPHAS = (0.9, 0.99, 0.95, 0.999)
MOMENTA = (0.0, 0.9, 0.99)
ACCUMULATORS = (0.1, 0.0, 1.0)
NORMS = (1.0, 0.5, 0.1, 5.0, 10.0)
FACTORS = (10.0, 0.1, 2.0, 0.5, 100.0, 0.01)


@dataclass(frozen=True, kw_only=True)
class _Trial(Candidate):
    """A change of an optimizer that has been made."""

    edit: Callable[[Group], None] | None = None
    """Changes the options of each group."""
    split: bool = False
    """Whether vectors get a group without decay."""
    wrap: Callable[[torch.optim.Optimizer], None] | None = None
    """Adds a hook."""
    schedule: Callable[[torch.optim.Optimizer, Any], Any] | None = None
    """Returns another scheduler in place of the optimizer's."""


def likely_optimizer(
    make: Make,
    run: Callable[[Make], float | Sequence[float]],
    *,
    tolerance: float = 1e-11,
    runs: int = 200,
    seconds: float = 60.0,
) -> list[str]:
    """Return the likely causes of a difference of updates, such as `likely: weight_decay 0.01 -> 0.0001 (agrees …)`.

    Args:
        make: from parameters to a torch optimizer, alone or with its scheduler.
        run: from such a function to the relative differences with optax's parameters and moments, in their order, or
            the largest.
        tolerance: largest difference that is rounding.
        runs: largest number of runs.
        seconds: time after which no run begins.

    Returns:
        The sentences, as of `likely`; none where nothing is likely.
    """
    probe, scheduler = _parts(make([torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))]))

    def measure(chosen: Sequence[_Trial]) -> float | Sequence[float]:
        try:
            with warnings.catch_warnings():  # of schedulers: none knows a step in advance, or a `Written` optimizer
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step|To get the last learning rate")
                return run(lambda parameters: _changed(make(parameters), chosen) if chosen else make(parameters))
        except FAILURES:
            if not chosen:
                raise
            return float("inf")

    trials = [*_trials(probe), *(_schedules() if scheduler is not None else ())]
    return search(trials, measure, tolerance=tolerance, runs=runs, seconds=seconds)


def _parts(made: Made) -> tuple[torch.optim.Optimizer, Any]:
    """Return the optimizer, and its scheduler, or None."""
    return made if isinstance(made, tuple) else (made, None)


def _changed(made: Made, chosen: Sequence[_Trial]) -> Made:
    optimizer, scheduler = _parts(made)
    if any(trial.split for trial in chosen):
        _without_decay_of_vectors(optimizer)
    for trial, group in itertools.product(chosen, optimizer.param_groups):
        if trial.edit:
            trial.edit(group)
    for trial in chosen:
        if trial.schedule:
            scheduler = trial.schedule(optimizer, scheduler)
    if any(key in group for group in optimizer.param_groups for key in WRITTEN):
        optimizer = Written(optimizer)  # it has the groups that the scheduler writes to
    for trial in chosen:
        if trial.wrap:
            trial.wrap(optimizer)
    return optimizer if scheduler is None else (optimizer, scheduler)


def _trials(probe: torch.optim.Optimizer) -> Iterator[_Trial]:
    """Yield the trials of an optimizer with the options of the probe."""
    options = probe.param_groups[0]
    yield from _numbers(options)
    yield from _flags(options)
    yield from _decay(probe, options)
    yield from _rewritten(probe, options)
    for factor in FACTORS:
        yield _trial(f"learning rate times {factor:g}", "lr", wrap=_faster(factor))
    for norm in NORMS:
        wrap = _hook(_clipped(norm))
        yield _trial(f"gradients -> clipped to a global norm of {norm:g}", "clip", wrap=wrap)
    for limit in NORMS[:2]:
        wrap = _hook(_limited(limit))
        yield _trial(f"gradients -> each value clipped to {limit:g}", "clip", wrap=wrap)


def _trial(what: str, kind: str, **how: Any) -> _Trial:
    return _Trial(what=what, kind=kind, places=frozenset({kind}), **how)


def _numbers(options: Group) -> Iterator[_Trial]:
    """Yield the trials of options that are numbers."""
    usual = {"eps": EPS, "weight_decay": DECAYS, "alpha": ALPHAS, "momentum": MOMENTA, "rho": ALPHAS}
    for key, values in usual.items():
        old = options.get(key)
        if isinstance(old, int | float):
            for new in (value for value in values if value != old):
                yield _trial(f"{key} {old:g} -> {new:g}", key, edit=_put(key, new))
    for place, values in enumerate((FIRST_BETAS, SECOND_BETAS) if "betas" in options else ()):
        old = options["betas"][place]
        for new in (value for value in values if value != old):
            yield _trial(f"beta{place + 1} {old:g} -> {new:g}", f"beta{place + 1}", edit=_beta(place, new))
    momentum = options.get("momentum", 0.0)
    if "dampening" in options and momentum:
        for new in (value for value in (0.0, momentum) if value != options["dampening"]):
            yield _trial(f"dampening {options['dampening']:g} -> {new:g}", "dampening", edit=_put("dampening", new))


def _flags(options: Group) -> Iterator[_Trial]:
    for key in ("nesterov", "amsgrad", "centered"):
        if key in options:
            yield _trial(f"{key} {options[key]} -> {not options[key]}", key, edit=_put(key, not options[key]))
    yield _trial("sign of the gradients -> the other", "sign", wrap=_hook(_negated))


def _decay(probe: torch.optim.Optimizer, options: Group) -> Iterator[_Trial]:
    """Yield the trials of how weights decay, and which."""
    decay, rate = options.get("weight_decay", 0.0), options.get("initial_lr", options["lr"])
    if any(group.get("weight_decay") for group in probe.param_groups):
        whole = max(group["weight_decay"] for group in probe.param_groups)
        coupled = not options.get("decoupled_weight_decay", False)
        what = "weight decay coupled -> decoupled" if coupled else "weight decay decoupled -> coupled"
        yield _trial(what, "weight_decay form", wrap=_decoupled if coupled else _coupled)
        scaled = (("divided by the learning rate", 1 / rate), ("times the learning rate", rate)) if rate else ()
        for word, factor in scaled:
            yield _trial(f"weight_decay {whole:g} -> {word}", "weight_decay", edit=_times("weight_decay", factor))
        if decay:
            yield _trial("weight decay of all -> of matrices only", "decayed", split=True)
        if len({group["weight_decay"] for group in probe.param_groups}) > 1:
            yield _trial(f"weight_decay -> {whole:g} for all", "decayed", edit=_put("weight_decay", whole))
    elif "weight_decay" in options and not options.get("decoupled_weight_decay"):
        for new in (1e-4, 1e-2, 0.1):
            what = f"no weight decay -> decoupled {new:g}"
            yield _trial(what, "weight_decay", wrap=_decaying(new))


def _rewritten(probe: torch.optim.Optimizer, options: Group) -> Iterator[_Trial]:
    """Yield the trials for which the update is computed by `Written`."""
    if isinstance(probe, torch.optim.Adam):
        yield _trial("bias correction -> none", "correction", edit=_put("bias_correction", False))
        whole = _put_all({"amsgrad": True, "corrected_max": True})
        yield _trial("amsgrad -> the maximum of corrected moments", "amsgrad", edit=whole)
    if isinstance(probe, torch.optim.RMSprop):
        yield _trial("no bias correction -> bias correction", "correction", edit=_put("bias_correction", True))
    if isinstance(probe, torch.optim.Adam | torch.optim.RMSprop | torch.optim.Adagrad):
        old = options["eps"]
        for new in dict.fromkeys((old, *EPS)):
            what = "eps beside the root -> inside" if new == old else f"eps {old:g} beside the root -> {new:g} inside"
            yield _trial(what, "eps", edit=_put_all({"eps": new, "eps_inside": True}))
    if isinstance(probe, torch.optim.Adagrad):
        old = options["initial_accumulator_value"]
        for new in (value for value in ACCUMULATORS if value != old):
            edit = _put("initial", new)
            yield _trial(f"initial_accumulator_value {old:g} -> {new:g}", "initial", edit=edit)


def _put(key: str, value: Any) -> Callable[[Group], None]:
    return _put_all({key: value})


def _put_all(values: Group) -> Callable[[Group], None]:
    return lambda group: group.update(values)


def _beta(place: int, value: float) -> Callable[[Group], None]:
    def edit(group: Group) -> None:
        group["betas"] = tuple(value if i == place else beta for i, beta in enumerate(group["betas"]))

    return edit


def _times(key: str, factor: float) -> Callable[[Group], None]:
    return lambda group: group.update({key: group[key] * factor})


def _faster(factor: float) -> Callable[[torch.optim.Optimizer], None]:
    """Return what multiplies the learning rate of each step; a scheduler sees nothing of it."""

    def wrap(optimizer: torch.optim.Optimizer) -> None:
        rates: list[float] = []

        def before(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            rates[:] = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] = group["lr"] * factor

        def after(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)

    return wrap


def _schedules() -> Iterator[_Trial]:
    """Yield the trials of a scheduler. One that is a step ahead does not say what the first rate should have been."""
    yield _trial("schedule -> one step earlier", "schedule", schedule=_advanced)
    for words, first in (("", _extrapolated), (" from 0", lambda *_: 0.0), (" from its base", _base)):
        yield _trial(f"schedule -> one step later{words}", "schedule", schedule=partial(_Delayed, first))
    yield _trial("schedule -> constant learning rate", "schedule", schedule=_constant)


def _advanced(optimizer: torch.optim.Optimizer, scheduler: Any) -> Any:
    scheduler.step()
    return scheduler


class _Delayed:
    """A scheduler one step behind another, with another rate for its first step."""

    def __init__(self, first: Callable[[Group, Any, int], Any], optimizer: torch.optim.Optimizer, scheduler: Any):
        self.scheduler, self.optimizer = scheduler, optimizer
        self.held: list[float] | None = [group["lr"] for group in optimizer.param_groups]
        for number, group in enumerate(optimizer.param_groups):
            group["lr"] = first(group, scheduler, number)

    def step(self) -> None:
        if self.held is None:
            self.scheduler.step()
            return
        for group, rate in zip(self.optimizer.param_groups, self.held, strict=True):
            group["lr"] = rate
        self.held = None


def _extrapolated(group: Group, scheduler: Any, number: int) -> Any:
    """Return the rate one step before the scheduler's first, by its own formula."""
    now = scheduler.last_epoch
    scheduler.last_epoch = now - 1
    try:
        rates = getattr(scheduler, "_get_closed_form_lr", scheduler.get_lr)()
        return rates[number]
    finally:
        scheduler.last_epoch = now


def _base(group: Group, scheduler: Any, number: int) -> Any:
    return group.get("initial_lr", group["lr"])


def _constant(optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group.get("initial_lr", group["lr"])


def _without_decay_of_vectors(optimizer: torch.optim.Optimizer) -> None:
    for group in list(optimizer.param_groups):
        vectors = [p for p in group["params"] if p.ndim < 2]
        group["params"] = [p for p in group["params"] if p.ndim >= 2]
        optimizer.param_groups.append({**group, "params": vectors, "weight_decay": 0.0})


Change = Callable[[torch.optim.Optimizer], None]


def _hook(change: Change) -> Change:
    """Return what makes an optimizer change its gradients, or its parameters, before each step."""

    def before(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            change(optimizer)

    def wrap(optimizer: torch.optim.Optimizer) -> None:
        optimizer.register_step_pre_hook(before)

    return wrap


def _trained(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Group, torch.Tensor, torch.Tensor]]:
    """Yield each parameter that has a gradient, with its options and the gradient."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                yield group, parameter, parameter.grad


def _negated(optimizer: torch.optim.Optimizer) -> None:
    for _, parameter, gradient in _trained(optimizer):
        parameter.grad = -gradient


def _clipped(norm: float) -> Change:
    def change(optimizer: torch.optim.Optimizer) -> None:
        found = list(_trained(optimizer))
        whole = torch.stack([gradient.square().sum() for *_, gradient in found]).sum().sqrt()
        for _, parameter, gradient in found if whole > norm else []:
            parameter.grad = gradient / whole * norm

    return change


def _limited(limit: float) -> Change:
    def change(optimizer: torch.optim.Optimizer) -> None:
        for _, parameter, gradient in _trained(optimizer):
            parameter.grad = gradient.clamp(-limit, limit)

    return change


def _decoupled(optimizer: torch.optim.Optimizer) -> None:
    """Let weights decay by themselves; the step then has no decay."""
    for group in optimizer.param_groups:
        group["decay"], group["weight_decay"] = group["weight_decay"], 0.0
    _hook(_decayed)(optimizer)


def _decaying(decay: float) -> Change:
    def wrap(optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["decay"] = decay
        _hook(_decayed)(optimizer)

    return wrap


def _decayed(optimizer: torch.optim.Optimizer) -> None:
    for group, parameter, _ in _trained(optimizer):
        parameter.mul_(1 - group["lr"] * group["decay"])


def _coupled(optimizer: torch.optim.Optimizer) -> None:
    """Let the decay be a part of the gradient."""
    for group in optimizer.param_groups:
        group["decoupled_weight_decay"] = False
