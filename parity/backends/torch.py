"""The torch backend of the ladder: the real engine and modules, with hooks."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn

import torchlm.decoding
import torchlm.documents
import torchlm.engine
import torchlm.loss
import torchlm.model
import torchlm.slots
from lmcore.config import Config, SampleConfig
from lmcore.model.quantize import Quantized, WeightFormat
from lmcore.serve.slots import Sampling
from parity.arrays import Arrays
from parity.backends import BACKENDS
from parity.backends.base import CANONICAL, Step
from parity.convert import names as mapping
from parity.convert.moments import TORCH, Moments, torch_key
from parity.convert.names import numpy_to_torch, torch_to_numpy
from parity.taps import Taps
from torchlm.device import to_device
from torchlm.fast.decoding import Merged
from torchlm.model import Decoder
from torchlm.positions import NoPositions
from torchlm.previous import NoPreviousTokens
from torchlm.quantized import Int8Linear

__all__ = ["TorchTwin"]


class TorchTwin:
    """A torchlm engine behind the interface of the ladder, `parity.backends.base.Twin`."""

    backend = BACKENDS["torch"]
    rounded_correction = ""

    def __init__(self, config: Config):
        self.config = config
        self.engine = torchlm.engine.Engine(config)

    def initial(self) -> Arrays:
        self.engine.init()
        return self.params()

    def load(self, params: Arrays, moments: Moments | None = None, step: int = 0) -> None:
        converted = self._from_canonical(params)
        state = self.engine._state({name: numpy_to_torch(value).clone() for name, value in converted.items()})
        self.engine.state = state
        if moments is None:
            return
        assert state.optimizer is not None
        state.step, parameters = step, dict(state.model.named_parameters())
        for kind, arrays in moments.to(self.config, CANONICAL, self.backend.side).arrays.items():
            for name, value in arrays.items():
                state.optimizer.state[parameters[name]][torch_key(self.config.optim, kind)].copy_(numpy_to_torch(value))
        for tensors in state.optimizer.state.values():
            if "step" in tensors:
                tensors["step"].fill_(moments.count)

    def params(self) -> Arrays:
        return self._to_canonical(dict(self.engine.state.model.named_parameters()))

    def received(self, batch: np.ndarray) -> np.ndarray:
        batches = []

        def spy(config: Config, state: Any, batch: Tensor, *rest: Any) -> dict[str, Any]:
            batches.append(batch.cpu().numpy())
            return {}

        with mock.patch.object(torchlm.engine, "train_step", spy):
            self.engine.train_step(batch, 0.0)
        return batches[0]

    @torch.inference_mode()
    def activations(self, tokens: np.ndarray) -> Arrays:
        model = self.engine.state.model.eval()
        with torch.compiler.set_stance("force_eager"), listening(model) as taps:
            ids, documents = self._read(tokens)
            model.hidden(ids, documents=documents)
        return {name: torch_to_numpy(value) for name, value in taps.recorded.items()}

    @torch.inference_mode()
    def logits(self, tokens: np.ndarray) -> np.ndarray:
        return torch_to_numpy(self.engine.state.model.eval()(*self._read(tokens)))

    def token_losses(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return torch_to_numpy(torchlm.loss.cross_entropy(numpy_to_torch(logits), numpy_to_torch(targets)))

    def evaluate(self, tokens: np.ndarray, targets: np.ndarray) -> tuple[float, int]:
        total, count = self.engine.eval_step(tokens, targets)
        return float(total), int(count)

    def step(self, batch: np.ndarray, lr: float, grads: Arrays | None = None) -> Step:
        replacement = None if grads is None else self._from_canonical(grads, trained=True)
        clip, own = torchlm.engine.clip_by_global_norm, {}

        def spy(parameters: Any, max_norm: float) -> Any:
            for name, p in self._trained():
                assert p.grad is not None
                own[name] = p.grad.clone()
                if replacement is not None:
                    p.grad.copy_(numpy_to_torch(replacement[name]))
            return clip(parameters, max_norm)

        with mock.patch.object(torchlm.engine, "clip_by_global_norm", spy):
            metrics = self.engine.train_step(batch, lr)
        state = self.engine.state
        assert state.optimizer is not None
        arrays: dict[str, Arrays] = {}
        for name, p in self._trained():
            for key, tensor in state.optimizer.state[p].items():
                if key != "step":
                    arrays.setdefault(TORCH[key], {})[name] = torch_to_numpy(tensor)
        moments = Moments(state.step, arrays).to(self.config, self.backend.side, CANONICAL).in_memory()
        loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
        return Step(loss, norm, self._to_canonical(own, trained=True), self.params(), moments)

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters that are to be trained, with their names."""
        model = self.engine.state.model
        return [(row.torch, model.get_parameter(row.torch)) for row in mapping.table(self.config.model, trained=True)]

    def bias_correction(self, beta: float, count: int, dtype: np.dtype) -> float:
        return 1 - beta**count

    @torch.inference_mode()
    def choose(self, logits: np.ndarray, uniforms: np.ndarray, options: SampleConfig | Sampling) -> np.ndarray:
        device, draws = self.engine.device, torch.from_numpy(uniforms)
        chosen = torchlm.decoding.choose_tokens(torch.from_numpy(logits).to(device), draws.to(device), options)
        return torch_to_numpy(chosen)

    def slots(self, count: int, size: int) -> torchlm.slots.Slots:
        return torchlm.slots.Slots(self.engine, count, size)

    def int8_layers(self) -> dict[str, Quantized]:
        model, layers = self.engine.generator(SampleConfig(), "int8").model, {}
        for name, layer in model.named_modules():
            if not isinstance(layer, Int8Linear):
                continue
            values = layer.values.to_dense() if layer.values.is_mkldnn else layer.values
            values, scales = values.to("cpu", torch.int8), layer.scales.cpu()
            owner, _, leaf = name.rpartition(".")
            names, widths = [name], [len(scales)]
            if leaf == "merged":
                parts = model.get_submodule(owner)
                assert isinstance(parts, Merged)
                names, widths = [f"{owner}.{part}" for part in parts.names], parts.widths
            for part, *arrays in zip(names, values.split(widths), scales.split(widths), strict=True):
                layers[part] = Quantized(*(array.contiguous().numpy() for array in arrays))
        return layers

    @torch.inference_mode()
    def decode(
        self, tokens: np.ndarray, pads: np.ndarray, prompt: int, size: int, weights: WeightFormat = "full"
    ) -> np.ndarray:
        model = self.engine.generator(SampleConfig(), weights).model
        cache = model.empty_cache(torch.from_numpy(pads).to(self.engine.device), size)
        logits, cache = model.prefill(self._place(tokens[:, :prompt]), cache)
        decoded = [logits]
        for position in range(prompt, tokens.shape[1]):
            logits, cache = model.decode(self._place(tokens[:, position : position + 1]), cache)
            decoded.append(logits)
        return torch_to_numpy(torch.stack(decoded, dim=1))

    def _read(self, tokens: np.ndarray) -> tuple[Tensor, Tensor | None]:
        return torchlm.documents.read_tokens(self.config.data, self._place(tokens))

    def _place(self, tokens: np.ndarray) -> Tensor:
        return to_device(np.ascontiguousarray(tokens), self.engine.device)

    def _from_canonical(self, arrays: Arrays, trained: bool = False) -> Arrays:
        return mapping.convert_names(arrays, self.config.model, CANONICAL, self.backend.side, trained=trained)

    def _to_canonical(self, tensors: dict[str, Tensor], trained: bool = False) -> Arrays:
        arrays = {name: torch_to_numpy(value) for name, value in tensors.items()}
        return mapping.convert_names(arrays, self.config.model, self.backend.side, CANONICAL, trained=trained)


@contextmanager
def listening(model: Decoder) -> Iterator[Taps]:
    """Record the inputs and outputs of the decoder's modules."""
    taps = Taps()
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, NoPositions | NoPreviousTokens):
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
