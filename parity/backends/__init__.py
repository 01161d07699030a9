"""What the check asks of a framework (`base`), answered by each: `jax`, `torch`. A third framework is one more file."""

from dataclasses import replace
from pkgutil import resolve_name

import numpy as np

from lmcore.config import Config
from parity.backends.base import Arrays, Device, Pair, Twin

__all__ = ["BACKENDS", "make_pair", "make_twin"]

BACKENDS = {"jax": "parity.backends.jax:JaxTwin", "torch": "parity.backends.torch:TorchTwin"}
"""Framework -> the class that drives it, imported when it is first asked for."""


def make_twin(framework: str, config: Config) -> Twin:
    """Make the twin of a framework, by its name in `BACKENDS`."""
    return resolve_name(BACKENDS[framework])(config)


def make_pair(
    config: Config,
    tokens: np.ndarray,
    params: Arrays | None = None,
    devices: tuple[Device, Device] = ("cpu", "cpu"),
) -> Pair:
    """Both twins of a config from `check_config`, with the same weights: those given, or the initial ones.

    Args:
        config: whose `train.device` is replaced by `devices`.
        tokens: ids of the text.
        params: weights in JAX's names.
        devices: of JAX and of torch, as in `train.device`.
    """
    on = [replace(config, train=replace(config.train, device=device)) for device in devices]
    jax, torch = make_twin("jax", on[0]), make_twin("torch", on[1])
    fresh = params is None
    start = jax.initial() if params is None else params
    wide = np.float64 if config.train.precision == "float64" else np.float32
    start = {name: np.asarray(value).astype(wide) for name, value in start.items()}
    return Pair(jax, torch, config, start, tokens, fresh)
