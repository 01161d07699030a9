"""A JAX function beside a torch module, and what is suggested where they differ."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from torch import nn

from parity.compare import rows_of
from parity.ports.causes import likely
from parity.ports.jax.models import adapt
from parity.ports.jax.port import JaxPort, jax_set_up
from parity.ports.likely import disagreement
from parity.ports.recording import noise, record_port
from parity.ports.side import Request
from parity.ports.torch.port import TorchPort
from parity.settings import jax_settings

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def suggested(
    jax_fn: Callable[..., Any],
    params: Any,
    module: nn.Module,
    names: dict,
    *inputs: np.ndarray,
    losses: Any = (None, None),
    call_module: Callable[..., Any] | None = None,
    train: bool = False,
    whole: bool = False,
    **options: Any,
) -> list[str]:
    """Return what `likely` says of a pair in float64; with `whole`, from the largest difference alone."""
    requests = [Request(args=inputs, train=train, loss=loss) for loss in losses]
    options = {"seconds": 600.0} | options  # a busy machine is not what is tested
    with jax_settings(), jax.numpy_rank_promotion("allow"), jax_set_up(requests[0]):
        one, other = (
            JaxPort(adapt(jax_fn, params, None, train), requests[0]),
            TorchPort(module, call_module, requests[1]),
        )
        rows = rows_of(names, one.weights, other.weights, other.trained)
        ours = record_port(one, one.weights, subject="", facts={})
        ours = replace(ours, noise=noise(one, one.weights, ours))
        run = disagreement(other, ours, {})
        if max(run(other.module, rows)) <= 1e-11:
            raise AssertionError("they agree: there is nothing to suggest")

        def measured(module: nn.Module, rows: list) -> float | list[float]:
            return max(run(module, rows)) if whole else run(module, rows)

        return likely(other.module, rows, measured, **options)
