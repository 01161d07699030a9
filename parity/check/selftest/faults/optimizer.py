"""Faults of the optimizer: clip, update, learning rate."""

from collections.abc import Callable
from typing import Any


def per_tensor(clip: Any) -> Any:
    """Each gradient is clipped by its own norm."""

    def faulty(parameters: Any, max_norm: float) -> Any:
        return sum(clip([p], max_norm) ** 2 for p in parameters) ** 0.5

    return faulty


def no_clip_eps(clip: Any) -> Any:
    """The clip divides by the norm alone."""

    def faulty(grads: Any, max_norm: float) -> Any:
        import jax
        import jax.numpy as jnp

        norm = clip(grads, 0.0)[1]
        return jax.tree.map(lambda g: g * jnp.minimum(1.0, max_norm / norm), grads), norm

    return faulty


def decays_all(mask: Any) -> Any:
    """Weight decay acts on norm weights and biases too."""
    return lambda params: dict.fromkeys(params, True)


def coupled(adamw: Any) -> Any:
    """Weight decay is added to the gradient, as in Adam with L2 regularization."""

    def faulty(*args: Any, **kwargs: Any) -> Any:
        optimizer = adamw(*args, **kwargs)
        for group in optimizer.param_groups:
            group["decoupled_weight_decay"] = False
        return optimizer

    return faulty


def betas_swapped(scale_by_adam: Any) -> Any:
    """β1 and β2 are swapped."""
    return lambda b1, b2, eps: scale_by_adam(b2, b1, eps)


def eps_inside(scale_by_adam: Any) -> Any:
    """eps is added under the square root."""
    return lambda b1, b2, eps: scale_by_adam(b1, b2, 0.0, eps)


def uncorrected(correction: Any) -> Any:
    """No bias correction."""
    return lambda moment, decay, count: moment


def without_nesterov(muon: Any) -> Any:
    """Muon with plain momentum."""
    return lambda *args, **kwargs: muon(*args, **kwargs, nesterov=False)


def late_warmup(apply_updates: Any) -> Any:
    """Each update takes the learning rate of the one before it, and the first takes zero."""
    rates: dict[int, float] = {}

    def faulty(optimizer: Any, lr: float, scaler: Any = None) -> None:
        done = int(max(float(tensors["step"]) for tensors in optimizer.state.values()))
        rates[done] = lr
        apply_updates(optimizer, rates.get(done - 1, 0.0), scaler)

    return faulty


def piles_up(zero_grad: Any) -> Any:
    """Gradients are never zeroed: those of all steps add up."""
    return lambda self, set_to_none=True: None


def faster_later(scale: float) -> Callable[[Any], Any]:
    """The learning rate is off from the sixth update on."""

    def make(apply_updates: Any) -> Any:
        def faulty(optimizer: Any, lr: float, scaler: Any = None) -> None:
            updates = max(float(tensors["step"]) for tensors in optimizer.state.values())
            apply_updates(optimizer, lr * (scale if updates >= 5 else 1), scaler)

        return faulty

    return make


def colder_later(scale: float) -> Callable[[Any], Any]:
    """Every update from the sixth on is off, in JAX."""

    def make(train_step: Any) -> Any:
        def faulty(model: Any, state: Any, batch: Any, lr: Any) -> Any:
            import jax.numpy as jnp

            return train_step(model, state, batch, jnp.where(state.step >= 5, scale, 1.0) * lr)

        return faulty

    return make
