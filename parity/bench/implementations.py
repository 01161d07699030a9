"""The implementations of a benchmark: each twin, the peers, and a bare matmul, all driven the same way.

An implementation trains by `step`, generates by `generate`, and `wait` returns when the device has nothing left to do.
`-int8` after a twin's name decodes with int8 weights.
A framework is loaded only when one of its implementations is made, in the process of `parity.bench.worker`.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from pkgutil import resolve_name
from typing import Any

import numpy as np

from lmcore.config import Config
from lmcore.generate.prompting import Generator, write_tokens
from lmcore.model.flops import peak_flops
from lmcore.model.quantize import WeightFormat
from parity.bench.base import SHOWN, Implementation, step_flops, torch_device_bytes, wait_for_torch
from parity.bench.peers import peer_of

__all__ = ["make_implementation"]


def make_implementation(name: str, config: Config, mode: str) -> Implementation:
    """Return an implementation, its weights from the shared NumPy initialization.

    Args:
        name: one of `parity.bench.modes.IMPLEMENTATIONS`.
        config: shape of the model and batch.
        mode: train or generate; the optimizer is there for train only.
    """
    kind, _, variant = name.partition("-")
    config = replace(config, train=replace(config.train, compile=variant == "compiled"))
    weights: WeightFormat = "int8" if variant == "int8" else "full"
    if kind == "jaxlm":
        return JaxImplementation(config, mode, weights)
    if kind == "torchlm":
        return TorchImplementation(config, mode, weights)
    if kind == "matmul":
        return Matmul(config)
    peer = peer_of(name)
    assert peer is not None, name
    return resolve_name(peer.make)(name, config, mode)


class Timed:
    """A generator of a twin, with a clock for each of its two calls."""

    def __init__(self, inner: Generator, wait: Callable[[Any], None]):
        self.inner, self.wait = inner, wait
        self.prefill_seconds = self.decode_seconds = 0.0

    def start(self, tokens: np.ndarray, pads: np.ndarray, size: int) -> Any:
        begin = time.perf_counter()
        state = self.inner.start(tokens, pads, size)
        self.wait(state)
        self.prefill_seconds += time.perf_counter() - begin
        return state

    def extend(self, state: Any, uniforms: np.ndarray) -> tuple[np.ndarray, Any]:
        begin = time.perf_counter()
        tokens, state = self.inner.extend(state, uniforms)
        self.wait(state)
        self.decode_seconds += time.perf_counter() - begin
        return tokens, state

    def has_nan(self, state: Any) -> bool:
        return self.inner.has_nan(state)


class TwinImplementation(ABC):
    """What both twins share, with the engine that `train` and `generate` use."""

    def __init__(self, engine: Any, weights: WeightFormat):
        self.engine, self.weights = engine, weights
        self.device: str = engine.device_name
        self.parameters: int = engine.parameter_count
        self.peak: float | None = engine.peak_flops
        self.step_flops = step_flops(engine.config)

    @abstractmethod
    def wait(self, value: Any = None) -> None:
        """As `Implementation.wait`."""

    def step(self, batch: np.ndarray, lr: float) -> Any:
        return self.engine.train_step(batch, lr)["loss"]

    def generate(self, prompts: np.ndarray) -> tuple[float, float]:
        config = self.engine.config
        timed = Timed(self.engine.generator(config.sample, self.weights), self.wait)

        def tokens_of(generator: Generator) -> Iterator[np.ndarray]:
            context = config.model.max_seq_len
            return write_tokens(generator, prompts.tolist(), config.sample, context=context, pad=0)

        next(tokens_of(timed.inner))
        for _ in tokens_of(timed):
            pass
        return timed.prefill_seconds, timed.decode_seconds

    def _start(self, prompts: np.ndarray) -> Any:
        generator = self.engine.generator(self.engine.config.sample, self.weights)
        return generator.start(prompts, np.zeros(len(prompts), np.int32), prompts.shape[1] + 1)


class JaxImplementation(TwinImplementation):
    """jaxlm, always compiled; on a CPU on one XLA device per core, as its commands run."""

    def __init__(self, config: Config, mode: str, weights: WeightFormat):
        from jaxlm.engine import Engine

        super().__init__(Engine(config), weights)
        self.engine.init()
        if mode != "train":
            self.engine.state = replace(self.engine.state, opt_state=None)

    def wait(self, value: Any = None) -> None:
        import jax

        jax.block_until_ready((self.engine.held, value))

    def logits(self, prompts: np.ndarray) -> np.ndarray:
        return np.asarray(self._start(prompts).logits, np.float32)[:, :SHOWN]

    def device_bytes(self) -> int | None:
        stats = [device.memory_stats() for device in self.engine.mesh.devices.flat]
        return sum(found["peak_bytes_in_use"] for found in stats) if all(stats) else None


class TorchImplementation(TwinImplementation):
    """torchlm, eager or with `train.compile`."""

    def __init__(self, config: Config, mode: str, weights: WeightFormat):
        from torchlm.engine import Engine

        super().__init__(Engine(config), weights)
        self.engine.init()
        if mode != "train":
            self.engine.state.optimizer = None

    def wait(self, value: Any = None) -> None:
        wait_for_torch(self.engine.device)

    def logits(self, prompts: np.ndarray) -> np.ndarray:
        return self._start(prompts).logits[:, :SHOWN].float().cpu().numpy()

    def device_bytes(self) -> int | None:
        return torch_device_bytes(self.engine.device)


class Matmul:
    """A square matmul in the type of the run: the rate that this machine reaches at best."""

    parameters = 0

    def __init__(self, config: Config):
        import torch

        from torchlm.device import device_name, set_up_torch

        self.torch_device = set_up_torch(config.train)
        self.device = device_name(self.torch_device)
        self.peak = peak_flops(self.device)
        self.size = 2048 if self.torch_device.type == "cpu" else 8192
        self.step_flops = 2.0 * self.size**3
        dtype = getattr(torch, config.train.precision)
        self.factor = torch.randn(self.size, self.size, device=self.torch_device).to(dtype)
        self.out = torch.empty_like(self.factor)

    def step(self, batch: np.ndarray, lr: float) -> float:
        import torch

        torch.matmul(self.factor, self.factor, out=self.out)
        return 0.0

    def wait(self, value: Any = None) -> None:
        wait_for_torch(self.torch_device)

    def device_bytes(self) -> int | None:
        return torch_device_bytes(self.torch_device)
