"""Optimizer steps written out, with the options that torch's own classes do not have and optax's do."""

from typing import Any

import torch

__all__ = ["WRITTEN", "Written"]

WRITTEN = ("bias_correction", "eps_inside", "corrected_max", "initial")
"""Options beyond those of torch's own classes."""


class Written(torch.optim.Optimizer):
    """Adam, RMSprop or Adagrad with the parameters and options of an optimizer that has made no step yet.

    Its state has torch's names. Options of each group are those of torch's class, and

    * `bias_correction`: whether moments are divided by one minus the power of their factor;
    * `eps_inside`: whether eps is added inside the root;
    * `corrected_max`: whether the maximum of amsgrad is taken after the correction of the bias, as optax does;
    * `initial`: first value of Adagrad's sums.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(optimizer.param_groups, {})  # the same dicts: a scheduler of the optimizer is this one's too
        kinds = (torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad)
        self.kind = next(kind for kind in kinds if isinstance(optimizer, kind))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make one step from the gradients that the parameters have."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(group, parameter, parameter.grad, self.state[parameter])

    def _update(self, group: Any, parameter: torch.Tensor, gradient: torch.Tensor, state: dict[str, Any]) -> None:
        gradient = -gradient if group.get("maximize") else gradient
        decay = group["weight_decay"]
        if group.get("decoupled_weight_decay"):
            parameter.mul_(1 - group["lr"] * decay)
        else:
            gradient = gradient + decay * parameter
        state["step"] = state.get("step", 0) + 1
        steps = {torch.optim.Adam: self._adam, torch.optim.RMSprop: self._rmsprop, torch.optim.Adagrad: self._adagrad}
        parameter.sub_(steps[self.kind](group, gradient, state))

    @staticmethod
    def _adam(group: dict[str, Any], gradient: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        first, second = group["betas"]
        mean = _averaged(state, "exp_avg", gradient, first)
        square = _averaged(state, "exp_avg_sq", gradient.square(), second)
        corrections = (1.0, 1.0)
        if group.get("bias_correction", True):
            corrections = (1 - first ** state["step"], 1 - second ** state["step"])
        if group["amsgrad"] and group.get("corrected_max"):
            square = _maximum(state, square / corrections[1])
        elif group["amsgrad"]:
            square = _maximum(state, square) / corrections[1]
        else:
            square = square / corrections[1]
        return group["lr"] * (mean / corrections[0]) / _root(square, group)

    @staticmethod
    def _rmsprop(group: dict[str, Any], gradient: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        square = _averaged(state, "square_avg", gradient.square(), group["alpha"])
        mean = _averaged(state, "grad_avg", gradient, group["alpha"]) if group["centered"] else None
        if group.get("bias_correction"):
            square = square / (1 - group["alpha"] ** state["step"])
            mean = None if mean is None else mean / (1 - group["alpha"] ** state["step"])
        update = gradient / _root(square if mean is None else square - mean.square(), group)
        if group["momentum"] > 0:
            old = state.get("momentum_buffer", torch.zeros_like(update))
            update = state["momentum_buffer"] = group["momentum"] * old + update
        return group["lr"] * update

    @staticmethod
    def _adagrad(group: dict[str, Any], gradient: torch.Tensor, state: dict[str, Any]) -> torch.Tensor:
        start = group.get("initial", group["initial_accumulator_value"])
        old = state.get("sum", torch.full_like(gradient, start))
        state["sum"] = old + gradient.square()
        return group["lr"] / (1 + (state["step"] - 1) * group["lr_decay"]) * gradient / _root(state["sum"], group)


def _averaged(state: dict[str, Any], key: str, value: torch.Tensor, factor: float) -> torch.Tensor:
    state[key] = factor * state.get(key, torch.zeros_like(value)) + (1 - factor) * value
    return state[key]


def _maximum(state: dict[str, Any], square: torch.Tensor) -> torch.Tensor:
    state["max_exp_avg_sq"] = torch.maximum(square, state.get("max_exp_avg_sq", torch.zeros_like(square)))
    return state["max_exp_avg_sq"]


def _root(square: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
    eps = group["eps"]
    return torch.sqrt(square + eps) if group.get("eps_inside") else square.sqrt() + eps
