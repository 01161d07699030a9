"""The backends of the check: one per framework, in one dictionary. A third framework adds a row here, and its file.

`base` defines their interface; `jax` and `torch` implement it. CONTRIBUTING.md lists what a new one touches.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pkgutil import resolve_name

import numpy as np

from lmcore.config import Config
from parity.arrays import Arrays
from parity.backends.base import Backend, Device, Pair, Twin
from parity.settings import jax_settings, torch_settings

__all__ = ["BACKENDS", "PAIR", "framework_settings", "make_pair", "make_twin"]


BACKENDS = {
    backend.framework: backend
    for backend in (
        Backend(
            framework="jax",
            label="JAX",
            title="JAX",
            package="jaxlm",
            side="jax",
            twin="parity.backends.jax:JaxTwin",
            devices=("auto", "cpu", "cuda"),
            distributions=("jax", "jaxlib", "flax", "optax"),
            settings=jax_settings,
        ),
        Backend(
            framework="torch",
            label="torch",
            title="PyTorch",
            package="torchlm",
            side="torch",
            twin="parity.backends.torch:TorchTwin",
            devices=("auto", "cpu", "cuda", "mps"),
            distributions=("torch",),
            settings=torch_settings,
        ),
    )
}
"""Framework -> its backend."""

PAIR: dict[str, Device] = {"jax": "cpu", "torch": "cpu"}
"""What a check compares by default: the reference, then the port, and the device of each."""


def make_twin(framework: str, config: Config) -> Twin:
    """Return a new twin of a framework, by its name in `BACKENDS`."""
    return resolve_name(BACKENDS[framework].twin)(config)


def make_pair(
    config: Config, tokens: np.ndarray, params: Arrays | None = None, devices: Mapping[str, Device] = PAIR
) -> Pair:
    """Return a new twin of each of two frameworks, with the same weights.

    Args:
        config: from `check_config`; its `train.device` is replaced by `devices`.
        tokens: ids of the text, a vector.
        params: weights in canonical names; None for the initial weights of `config`.
        devices: framework -> device, as in `train.device`; two of them, the reference first.
    """
    reference, port = (
        make_twin(framework, replace(config, train=replace(config.train, device=device)))
        for framework, device in devices.items()
    )
    fresh = params is None
    start = reference.initial() if params is None else params
    dtype = np.float64 if config.train.precision == "float64" else np.float32
    start = {name: np.asarray(value).astype(dtype) for name, value in start.items()}
    return Pair(reference, port, config, start, tokens, fresh)


@contextmanager
def framework_settings() -> Iterator[None]:
    """Restore every framework's process-wide settings afterwards: engines change number types and precision."""
    with ExitStack() as stack:
        for backend in BACKENDS.values():
            stack.enter_context(backend.settings())
        yield
