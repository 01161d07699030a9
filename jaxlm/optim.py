"""Global-norm clip, then AdamW with decay on matrices only; the learning rate is given at each update."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from lmcore.config import OptimConfig

__all__ = ["apply_updates", "clip_by_global_norm", "decay_mask", "make_optimizer"]


def clip_by_global_norm(grads: PyTree[Array], max_norm: float) -> tuple[PyTree[Array], Float[Array, ""]]:
    """Scale by min(1, max_norm / (‖g‖ + 1e-6)), as torch does; 0 does not clip. Also returns ‖g‖ before the clip."""
    norm = optax.tree.norm(grads)
    if max_norm == 0:
        return grads, norm
    scale = jnp.minimum(1.0, max_norm / (norm + 1e-6))
    return jax.tree.map(lambda g: g * scale, grads), norm


def decay_mask(params: PyTree[Array]) -> PyTree[bool]:
    """True for what weight decay acts on: matrices; norm weights are vectors."""
    return jax.tree.map(lambda p: p.ndim > 1, params)


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """AdamW's direction, decay included and learning rate left out (Loshchilov & Hutter 2019, arXiv:1711.05101)."""
    return optax.chain(
        optax.scale_by_adam(config.beta1, config.beta2, config.eps),
        optax.add_decayed_weights(config.weight_decay, decay_mask),
    )


def apply_updates(params: PyTree[Array], directions: PyTree[Array], lr: Float[Array, ""]) -> PyTree[Array]:
    """params − lr · directions."""
    return jax.tree.map(lambda p, d: p - lr * d, params, directions)
