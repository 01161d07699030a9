"""Global-norm clip, then an optimizer with decay on matrices only; the learning rate is an argument of each update."""

import math
from typing import Any, assert_never

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from jaxlm.layers import STACK
from lmcore.config import OptimConfig
from lmcore.optim.epsilon import norm_epsilon
from lmcore.optim.table import takes_muon

__all__ = ["apply_updates", "clip_by_global_norm", "decay_mask", "make_optimizer", "muon_mask", "over_layers"]


def clip_by_global_norm(grads: PyTree[Array], max_norm: float) -> tuple[PyTree[Array], Float[Array, ""]]:
    """Scale gradients by min(1, max_norm / (‖g‖ + 1e-6)), as torch does; 0 does not clip. Also return ‖g‖."""
    norm = optax.tree.norm(grads)
    if max_norm == 0:
        return grads, norm
    scale = jnp.minimum(1.0, max_norm / (norm + 1e-6))
    return jax.tree.map(lambda g: g * scale, grads), norm


def decay_mask(params: PyTree[Array]) -> PyTree[bool]:
    """Return True for each parameter with weight decay: the matrices; norm weights are vectors."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def muon_mask(params: dict[str, Any]) -> dict[str, bool]:
    """Return True for each parameter that Muon trains: the matrices of the blocks."""
    return {name: takes_muon(name, p.ndim) for name, p in params.items()}


def make_optimizer(config: OptimConfig) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer that the config names; its updates include weight decay and leave out the learning rate.

    Its `update` takes the learning rate too, as `lr`, since Adafactor limits it. Sources: AdamW,
    Loshchilov & Hutter 2019, arXiv:1711.05101; Adafactor, Shazeer & Stern 2018, arXiv:1804.04235; Muon, Jordan et al.
    2024, scaled as in Liu et al. 2025, arXiv:2502.16982; Lion, Chen et al. 2023, arXiv:2302.06675.
    """
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps)
    decay = optax.add_decayed_weights(config.weight_decay, decay_mask)
    match config.name:
        case "adamw":
            steps = [adam, decay]
        case "adafactor":
            steps = [
                _factored_rms(),
                optax.clip_by_block_rms(1.0),
                optax.scale_by_param_block_rms(),
                _limit_lr(),
                decay,
            ]
        case "muon":
            parts = {"muon": _muon(config.momentum), "adamw": adam}
            steps = [optax.partition(parts, _labels), decay]
        case "lion":
            steps = [optax.scale_by_lion(config.beta1, config.beta2), decay]
        case "sgd":
            steps = [decay, optax.trace(config.momentum)]
        case _:
            assert_never(config.name)
    return optax.with_extra_args_support(optax.chain(*steps))


def apply_updates(params: PyTree[Array], directions: PyTree[Array], lr: Float[Array, ""]) -> PyTree[Array]:
    """Return params − lr · directions.

    Args:
        params: the parameters.
        directions: what `update` of the optimizer returned, in the parameters' shapes.
        lr: learning rate of this update.
    """
    return jax.tree.map(lambda p, d: p - lr * d, params, directions)


def over_layers(optimizer: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
    """Map an optimizer over the layers that `stack_layers` stacked, so that it sees one layer's parameters at a time.

    An optimizer may use a parameter's shape: Muon orthogonalizes matrices, Adafactor factors them, decay skips vectors.
    A stack of matrices has one axis more, so the optimizer is mapped over the layers by `vmap`, and sees each parameter
    in its own shape. The parameters outside of the layers are updated separately, without the map.
    """

    def update(grads: Any, state: Any, params: Any = None, *, lr: Any) -> tuple[Any, Any]:
        if not any(name.startswith(STACK) for name in params):
            return optimizer.update(grads, state, params, lr=lr)

        # optax keeps values in dicts keyed as the parameters are, beside counts that have no layers.
        def named(node: Any) -> bool:
            return isinstance(node, dict) and not params.keys().isdisjoint(node)

        def only(tree: Any, stacked: bool) -> Any:
            def select(node: Any) -> Any:
                return {n: v for n, v in node.items() if n.startswith(STACK) is stacked} if named(node) else node

            return jax.tree.map(select, tree, is_leaf=named)

        # Counts are the same in both results, so those of the first are taken. Only the layers' is sure to have names.
        def merged(layers: Any, outside: Any) -> Any:
            return outside | layers if named(layers) else outside

        trees = (grads, state, params)
        axes = jax.tree.map(lambda node: 0 if named(node) else None, only(trees, True), is_leaf=named)
        outside = optimizer.update(*only(trees, False), lr=lr)
        layers = jax.vmap(lambda *one: optimizer.update(*one, lr=lr), axes, axes[:2])(*only(trees, True))
        return jax.tree.map(merged, layers, outside, is_leaf=named)

    return optax.GradientTransformationExtraArgs(optimizer.init, update)


def _labels(params: dict[str, Any]) -> dict[str, str]:
    return {name: "muon" if by_muon else "adamw" for name, by_muon in muon_mask(params).items()}


def _muon(momentum: float) -> optax.GradientTransformation:
    """Return Muon with Nesterov momentum as in torch, without optax's bias correction of the first steps.

    The output of optax's Newton–Schulz iteration is scaled to the RMS of an update by AdamW.
    """

    def orthogonalize(updates: Any, params: Any = None) -> Any:
        iteration = optax.contrib.scale_by_muon(
            beta=0.0,  # the momentum is applied by `optax.trace` before
            nesterov=False,
            eps=_norm_epsilon(updates),
            weight_dimension_numbers=lambda tree: jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), tree),
        )
        directions, _ = iteration.update(updates, iteration.init(updates))
        return jax.tree.map(lambda u: u * (0.2 * math.sqrt(max(u.shape))), directions)

    return optax.chain(optax.scale(1 - momentum), optax.trace(momentum, nesterov=True), optax.stateless(orthogonalize))


def _norm_epsilon(tree: Any) -> float:
    """Return `norm_epsilon` for the dtype of a tree, which may be empty where another optimizer has all arrays."""
    leaves = jax.tree.leaves(tree)
    return norm_epsilon(leaves[0].dtype if leaves else np.dtype(np.float32))


def _factored_rms() -> optax.GradientTransformation:
    """Return optax's factored RMS: of every matrix, as in torch, and with 1 − t^−0.8 in JAX's default float type."""

    def scaling(tree: Any) -> optax.GradientTransformation:
        return optax.scale_by_factored_rms(
            min_dim_size_to_factor=1,
            epsilon=_norm_epsilon(tree) ** 2,
            decay_rate_fn=lambda step, rate: 1 - jnp.asarray(step + 1, float) ** -rate,
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return scaling(updates).update(updates, state, params)

    return optax.GradientTransformation(lambda params: scaling(params).init(params), update)


def _limit_lr() -> optax.GradientTransformationExtraArgs:
    """Return a transformation that limits the learning rate of update t to 1/√t, as torch's Adafactor does."""

    def update(updates: Any, state: Any, params: Any = None, *, lr: Any, **_: Any) -> tuple[Any, Any]:
        count = state.count + 1
        fraction = jnp.minimum(1.0, 1 / (lr * jnp.sqrt(jnp.asarray(count, float))))
        return jax.tree.map(lambda u: u * fraction.astype(u.dtype), updates), optax.ScaleByScheduleState(count)

    def init(params: Any) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    return optax.GradientTransformationExtraArgs(init, update)
