"""The torch side of the ladder: the real engine and modules, listened to through hooks."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

import torchlm.decoding
import torchlm.engine
import torchlm.loss
import torchlm.model
from lmcore.config import Config, SampleConfig
from parity.backends.base import Arrays, Step
from parity.convert import names as mapping
from parity.convert.moments import TORCH, Moments, torch_key
from parity.convert.names import numpy_to_torch, torch_to_numpy
from parity.taps import Taps
from torchlm.device import to_device
from torchlm.model import Decoder
from torchlm.positions import NoPositions

__all__ = ["TorchTwin"]


class TorchTwin:
    """A torchlm engine with the ladder's questions; see `parity.backends.base.Twin`."""

    framework = "torch"

    def __init__(self, config: Config):
        self.config = config
        self.engine = torchlm.engine.Engine(config)

    def initial(self) -> Arrays:
        self.engine.init()
        return self.params()

    def load(self, params: Arrays, moments: Moments | None = None, step: int = 0) -> None:
        converted = mapping.convert_names(params, self.config.model, "jax", "torch")
        state = self.engine._state({name: numpy_to_torch(value).clone() for name, value in converted.items()})
        self.engine.state = state
        if moments is None:
            return
        assert state.optimizer is not None
        state.step, parameters = step, dict(state.model.named_parameters())
        for kind, arrays in moments.to(self.config, "jax", "torch").kept.items():
            for name, value in arrays.items():
                state.optimizer.state[parameters[name]][torch_key(self.config.optim, kind)].copy_(numpy_to_torch(value))
        for kept in state.optimizer.state.values():
            if "step" in kept:
                kept["step"].fill_(moments.count)

    def params(self) -> Arrays:
        return self._in_jax_names(self.engine.state.params)

    def received(self, batch: np.ndarray) -> np.ndarray:
        seen = []

        def spy(config: Config, state: Any, batch: Tensor, *rest: Any) -> dict[str, Any]:
            seen.append(batch.cpu().numpy())
            return {}

        with mock.patch.object(torchlm.engine, "train_step", spy):
            self.engine.train_step(batch, 0.0)
        return seen[0]

    @torch.inference_mode()
    def activations(self, tokens: np.ndarray) -> Arrays:
        model = self.engine.state.model.eval()
        with torch.compiler.set_stance("force_eager"), listening(model) as taps:
            model.hidden(self._place(tokens))
        return {name: torch_to_numpy(value) for name, value in taps.seen.items()}

    @torch.inference_mode()
    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return torch_to_numpy(self.engine.state.model.eval()(self._place(tokens)))

    def token_losses(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return torch_to_numpy(torchlm.loss.cross_entropy(numpy_to_torch(logits), numpy_to_torch(targets)))

    def evaluate(self, tokens: np.ndarray, targets: np.ndarray) -> tuple[float, int]:
        total, count = self.engine.eval_step(tokens, targets)
        return float(total), int(count)

    def step(self, batch: np.ndarray, lr: float, given: Arrays | None = None) -> Step:
        offered = None if given is None else mapping.convert_names(given, self.config.model, "jax", "torch")
        clip, seen = torchlm.engine.clip_by_global_norm, {}

        def spy(parameters: Any, max_norm: float) -> Any:
            for name, p in self.engine.state.model.named_parameters():
                assert p.grad is not None
                seen[name] = p.grad.clone()
                if offered is not None:
                    p.grad.copy_(numpy_to_torch(offered[name]))
            return clip(parameters, max_norm)

        with mock.patch.object(torchlm.engine, "clip_by_global_norm", spy):
            metrics = self.engine.train_step(batch, lr)
        state = self.engine.state
        assert state.optimizer is not None
        kept: dict[str, Arrays] = {}
        for name, p in state.model.named_parameters():
            for key, tensor in state.optimizer.state[p].items():
                if key != "step":
                    kept.setdefault(TORCH[key], {})[name] = torch_to_numpy(tensor)
        grads, params = map(self._in_jax_names, (seen, state.params))
        moments = Moments(state.step, kept).to(self.config, "torch", "jax")
        return Step(float(metrics["loss"]), float(metrics["grad_norm"]), grads, params, moments.kept)

    @torch.inference_mode()
    def choose(self, logits: np.ndarray, uniforms: np.ndarray, options: SampleConfig) -> np.ndarray:
        given, draws = (torch.from_numpy(array).to(self.engine.device) for array in (logits, uniforms))
        return torch_to_numpy(torchlm.decoding.choose_tokens(given, draws, options))

    @torch.inference_mode()
    def decode(self, tokens: np.ndarray, pads: np.ndarray, prompt: int, size: int) -> np.ndarray:
        model = self.engine.generator(SampleConfig()).model
        cache = model.empty_cache(torch.from_numpy(pads).to(self.engine.device), size)
        logits, cache = model.decode(self._place(tokens[:, :prompt]), cache)
        columns = [logits]
        for column in range(prompt, tokens.shape[1]):
            logits, cache = model.decode(self._place(tokens[:, column : column + 1]), cache)
            columns.append(logits)
        return torch_to_numpy(torch.stack(columns, dim=1))

    def _place(self, tokens: np.ndarray) -> Tensor:
        return to_device(np.ascontiguousarray(tokens), self.engine.device)

    def _in_jax_names(self, tensors: dict[str, Tensor]) -> Arrays:
        arrays = {name: torch_to_numpy(value) for name, value in tensors.items()}
        return mapping.convert_names(arrays, self.config.model, "torch", "jax")


@contextmanager
def listening(model: Decoder) -> Iterator[Taps]:
    """Keep what goes in and out of the decoder's modules."""
    taps = Taps()
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, NoPositions):
                continue
            stack.callback(module.register_forward_pre_hook(_before(taps, name)).remove)
            stack.callback(module.register_forward_hook(_after(taps, name)).remove)
        attend = torchlm.model.causal_attention
        stack.enter_context(mock.patch.object(torchlm.model, "causal_attention", taps.attention(attend)))
        yield taps


def _before(taps: Taps, name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args:
            taps.before(name, args[0])

    return hook


def _after(taps: Taps, name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        taps.after(name, output)

    return hook
