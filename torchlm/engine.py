"""The train step, and the `Engine` through which the one training loop in `lmcore.run.trainer` drives it.

Shape letters as in `torchlm.model`; A accumulation steps, T1 = T + 1 tokens for T targets.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lmcore.config import Config, SampleConfig
from lmcore.model.flops import peak_flops
from lmcore.model.init import Weights, initial_weight
from lmcore.model.lora import is_adapter
from lmcore.model.memory import check_memory
from lmcore.model.quantize import WeightFormat, check_format
from lmcore.run.mesh import check_mesh, mesh_shape
from lmcore.run.processes import ALONE, Processes
from torchlm.checkpoint import restore_state, save_parts, save_state
from torchlm.decoding import Generator
from torchlm.device import device_name, make_scaler, set_up_torch, to_device
from torchlm.documents import read_batch, read_tokens, target_count
from torchlm.dropout import Key, MaskKey, fold_in, seed_key
from torchlm.fast.parallel import LossSum, SplitLoss
from torchlm.lora import add_adapters
from torchlm.loss import IGNORED, cross_entropy, loss_sum
from torchlm.model import Decoder
from torchlm.optim import apply_updates, clip_by_global_norm, make_optimizer
from torchlm.processes import Group, joined
from torchlm.sharding import Sharding, check_sharding, own

__all__ = ["Engine", "TrainState", "eval_step", "initial_params", "score", "train_step"]


@dataclass
class TrainState:
    """Everything that a train step changes, most of it in place."""

    step: int
    model: Decoder
    optimizer: torch.optim.Optimizer | None
    scaler: torch.amp.GradScaler | None
    parameters: dict[str, nn.Parameter]
    """Dotted name, such as `layers.0.mlp.up_proj.weight`, -> trained parameter, or this process's part of it."""
    sharding: Sharding | None = None

    @property
    def params(self) -> dict[str, Tensor]:
        """Dotted name -> tensor, or this process's part of it."""
        return {name: p.detach() for name, p in self.parameters.items()}


def train_step(
    config: Config,
    state: TrainState,
    batch: Int[Tensor, "A B T1"],
    lr: float,
    loss_sum: LossSum = loss_sum,
) -> dict[str, Float[Tensor, ""] | Bool[Tensor, ""]]:
    """Update the parameters once from A accumulated micro-batches.

    Losses and gradients are summed over the micro-batches, and divided once by the number of all targets that count.
    Dropout masks depend on `train.seed`, step and micro-batch: a resumed run draws the same, and with threefry so does
    jax.

    Args:
        config: of the run.
        state: parameters and optimizer state, updated in place.
        batch: token ids, with marks where the data has them; the targets are the same ids, one position later.
        lr: learning rate of this update.
        loss_sum: `torchlm.loss.loss_sum`, or the same compiled or split.
    """
    assert state.optimizer is not None
    state.model.train()
    state.model.zero_grad(set_to_none=True)
    sharding = state.sharding
    count = target_count(config.data, batch, sharding)
    total = torch.zeros((), dtype=state.model.embed_tokens.weight.dtype, device=batch.device)
    for index, tokens in enumerate(batch):
        key = dropout_key(config, state.step, index, batch.device, sharding)
        inputs, targets, documents = read_batch(config.data, tokens)
        loss = loss_sum(state.model, inputs, targets, key, documents)
        total += loss.detach()
        mean_loss = loss / count  # one number divided here, instead of every gradient later
        (mean_loss if state.scaler is None else state.scaler.scale(mean_loss)).backward()
    if sharding:
        sharding.sum_over_batch([total, *sharding.collect_gradients(state.model, state.parameters)])
    if state.scaler is not None:
        state.scaler.unscale_(state.optimizer)
    parts = (sharding,) if sharding and sharding.shape.sharded else ()
    grad_norm = clip_by_global_norm(state.parameters.values(), config.optim.clip, *parts)
    metrics = {"loss": total / count, "grad_norm": grad_norm}
    if config.optim.nonfinite == "skip" or state.scaler is not None:
        metrics["skipped"] = ~update_is_finite(total, grad_norm)
    if state.scaler is not None or not metrics.get("skipped", False):  # a scaler skips by itself, and then adapts
        apply_updates(state.optimizer, lr, state.scaler)
    state.step += 1
    return metrics


def update_is_finite(loss: Float[Tensor, ""], grad_norm: Float[Tensor, ""]) -> Bool[Tensor, ""]:
    """Return whether neither is infinite or NaN; the gradient norm stands for all gradients."""
    return torch.isfinite(loss) & torch.isfinite(grad_norm)


def dropout_key(config: Config, step: int, index: int, device: torch.device, sharding: Sharding | None = None) -> Key:
    """Return the random key of one micro-batch's dropout masks.

    Args:
        config: of the run; `train.dropout_masks` chooses the generator.
        step: of the update, from 0.
        index: of the micro-batch in the step, from 0.
        device: of the key.
        sharding: of the masks, where each process computes a part.
    """
    if not config.model.has_dropout:
        return None
    if config.train.dropout_masks == "threefry":
        words = fold_in(fold_in(seed_key(config.train.seed, device), step), index)
        return sharding.mask_key(words, config.parallel.sequence) if sharding else MaskKey(words)
    process = sharding.mask_seed(config.parallel.sequence) if sharding else 0
    draws = np.random.SeedSequence([config.train.seed, step, index, *([process] if process else [])])
    torch.manual_seed(int(draws.generate_state(1, np.uint64)[0]))
    return "native"


@torch.no_grad()  # not in inference mode, whose tensors FSDP could not use again in training
def eval_step(
    model: Decoder, tokens: Int[Tensor, "B T"], targets: Int[Tensor, "B T"], documents: Int[Tensor, "B T"] | None = None
) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
    """Return the summed token loss, and the number of targets that count.

    Args:
        model: the decoder; it is left in evaluation mode.
        tokens: token ids.
        targets: the id that follows each token, or IGNORED.
        documents: position at which each token's document begins; None where a sequence is one document.
    """
    return loss_sum(model.eval(), tokens, targets, None, documents), torch.sum(targets != IGNORED)


@torch.inference_mode()
def score(
    model: Decoder, tokens: Int[Tensor, "B T"], targets: Int[Tensor, "B T"]
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Return the log-probability of each target, and whether it is the most likely token.

    Args:
        model: the decoder; it is left in evaluation mode.
        tokens: token ids.
        targets: the id that follows each token, or IGNORED, which gives 0.
    """
    logits = model.eval().logits(model.hidden(tokens))
    return -cross_entropy(logits, targets), torch.argmax(logits, dim=-1) == targets


class Engine:
    """A torchlm model in training: parameters, optimizer state, compiled steps. See `lmcore.run.engine.Engine`."""

    framework = "torch"
    package = "torchlm"

    def __init__(self, config: Config, processes: Processes = ALONE):
        self.config, self.processes = config, processes
        self.device = set_up_torch(config.train)
        self.mesh = mesh_shape(config.parallel, processes.count, "processes")
        check_mesh(config, self.mesh)
        check_sharding(config, self.mesh)
        self._check_memory(training=False)
        with torch.device("meta"):  # allocates nothing, and skips torch's own initialization
            dtype = getattr(torch, config.train.precision)
            self.model = add_adapters(Decoder(config.model, dtype, config.train.remat))
        self._base: dict[str, Tensor] = {}
        """Weights from `load_base` that no state has taken yet."""
        self.sharding: Sharding | None = None
        self._loss_sum: LossSum = loss_sum
        if config.train.compile and config.model.scan_layers:
            for block in self.model.layers:
                block.compile(dynamic=False)  # the same code with other weights, so it compiles once
        elif config.train.compile:
            self._loss_sum = torch.compile(loss_sum, dynamic=False)
        if self.device.type == "cpu" and not self.mesh.sharded:  # what is sharded is sent by one thread
            self._loss_sum = SplitLoss(self._loss_sum, config.train, processes.count)
        self.state: TrainState

    joined = staticmethod(joined)

    @staticmethod
    def check_machine(config: Config, processes: Processes = ALONE) -> None:
        """Raise UserError unless this machine has the device and precision that the config asks for."""
        set_up_torch(config.train)

    @property
    def parameter_count(self) -> int:
        """Number of trained parameters, each scalar counted."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def device_name(self) -> str:
        """Number and name of the devices in use, for people to read."""
        name = device_name(self.device)
        return name if self.processes.count == 1 else f"{self.processes.count} processes, each {name}"

    @property
    def peak_flops(self) -> float | None:
        """Dense 16-bit peak of all devices in use, in FLOP/s; None where it is unknown."""
        peak = peak_flops(self.device_name)
        return peak and peak * self.processes.count

    @property
    def shard(self) -> tuple[int, int]:
        """(index, count): this process computes the index-th of `count` equal, contiguous parts of each micro-batch."""
        return self.processes.rank // self.mesh.tensor, self.mesh.batch

    def init(self, weights: Weights | None = None) -> None:
        """Start from these weights, or from the shared NumPy initialization; those of `load_base` stay."""
        self._check_memory(training=True)
        self._shard()
        base, self._base = self._base, {}
        params = initial_params(self.model, self.config.train.seed, self.sharding, weights, base)
        self.state = self._state(params)

    def load_base(self, folder: Path) -> None:
        """Load all weights but the adapters' from a saved state that has no adapters, before `init` or `restore`."""
        named = self.model.named_parameters()
        self._base = {name: torch.empty_like(p, device=self.device) for name, p in named if not is_adapter(name)}
        restore_state(folder, params=self._base)

    def _shard(self) -> None:
        """Split the model over the mesh, once; not in `__init__`, since all processes must do so at the same time."""
        if self.processes.count > 1 and self.sharding is None:
            self.sharding = Sharding(self.mesh, self.device)
            self.sharding.apply(self.model, self.config)

    def _check_memory(self, *, training: bool) -> None:
        if self.device.type == "cpu":
            check_memory(self.config, training=training)

    def train_step(
        self, batch: Int32[np.ndarray, "B T1"], lr: float
    ) -> dict[str, Float[Tensor, ""] | Bool[Tensor, ""]]:
        """Update the parameters once; return `loss` and `grad_norm`, and `skipped` where updates may be skipped."""
        micro = batch.reshape(self.config.train.grad_accum, -1, batch.shape[1])
        return train_step(self.config, self.state, to_device(micro, self.device), lr, self._loss_sum)

    def eval_step(
        self, tokens: Int32[np.ndarray, "B T"], targets: Int32[np.ndarray, "B T"]
    ) -> tuple[Float[Tensor, ""], Int[Tensor, ""]]:
        """Return the summed token loss and the number of targets that count, without waiting for the device."""
        inputs, documents = read_tokens(self.config.data, to_device(tokens, self.device))
        loss, count = eval_step(self.state.model, inputs, to_device(targets, self.device), documents)
        if self.sharding:
            sums = torch.stack([loss.double(), count.double()])
            self.sharding.reshard(self.state.model)
            self.sharding.sum_over_batch([sums])
            loss, count = sums[0], sums[1].long()
        return loss, count

    def score(
        self, tokens: Int32[np.ndarray, "B T"], targets: Int32[np.ndarray, "B T"]
    ) -> tuple[Float[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
        """Return the log-probability of each target, 0 for −1, and whether it is the most likely token; one process."""
        scores = score(self.state.model, to_device(tokens, self.device), to_device(targets, self.device))
        logprobs, likeliest = (values.cpu().numpy() for values in scores)
        return logprobs, likeliest

    def is_finite(self) -> bool:
        """Return whether all parameters and optimizer values are finite; waits for the device."""
        state = self.state
        assert state.optimizer is not None
        values = [t for moments in state.optimizer.state.values() for t in moments.values()]
        finite = [torch.isfinite(t).all() for t in [*state.params.values(), *values]]
        return not self.processes.largest(not torch.stack([f.to(self.device) for f in finite]).all())

    def save(self, folder: Path) -> Callable[[], None]:
        """Copy the state and write it in the background; the returned function waits for that, then reads it back."""
        if self.mesh.sharded:
            assert isinstance(self.processes, Group)
            params, optimizer = self._wholes(self.state.params), self._wholes(self._optimizer_tensors())
            return save_parts(folder, params, optimizer, self.processes)
        if self.processes.rank > 0:
            return lambda: None
        return save_state(folder, self.state.params, self._optimizer_tensors())

    def restore(self, folder: Path, optimizer: bool = True) -> None:
        """Load the state that `save` wrote; without `optimizer`, the parameters alone, to evaluate or generate."""
        self._shard()
        params = {name: torch.empty_like(own(p), device=self.device) for name, p in self.model.named_parameters()}
        frozen = {name: own(p) for name, p in self.model.named_parameters() if not p.requires_grad}
        params |= {name: self._base.get(name, p) for name, p in frozen.items()}
        self._base = {}
        self.state = self._state(params, optimizer)
        if not optimizer:
            restore_state(folder, params=self._wholes(self.state.params))
            return
        assert self.state.optimizer is not None
        read = self._optimizer_tensors()
        restore_state(folder, params=self._wholes(self.state.params), optimizer=self._wholes(read))
        self.state.step = int(read["step"])
        for moments in self.state.optimizer.state.values():
            if "step" in moments:
                moments["step"].copy_(read["count"])
        if self.state.scaler is not None:
            saved = {"scale": float(read["scaler.scale"]), "_growth_tracker": int(read["scaler.growth_tracker"])}
            self.state.scaler.load_state_dict(self.state.scaler.state_dict() | saved)

    def generator(self, options: SampleConfig, weights: WeightFormat = "full") -> Generator:
        """Return a generator with the current parameters."""
        check_format(weights, self.config.train.precision, self.mesh.sharded)
        if not self.sharding or not self.mesh.sharded:
            return Generator(self.state.model.eval(), options, weights)
        with torch.device("meta"):
            model = Decoder(self.config.model, self.model.dtype)
        params = {}
        for name, part in self._wholes(self.state.params).items():
            assert isinstance(part, DTensor)
            whole = part.full_tensor()
            if self.processes.rank == 0:
                params[name] = whole
        if self.processes.rank == 0:  # the others have nothing to generate with
            model.load_state_dict(params, assign=True)
            model.to(self.device)
        return Generator(model.eval(), options)

    def _wholes(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the whole tensors of which this process has parts, as DTensors where they are split."""
        return self.sharding.wholes(tensors) if self.sharding and self.mesh.sharded else tensors

    def _state(self, params: dict[str, Tensor], optimizer: bool = True) -> TrainState:
        """Return the state of a run that starts from these parameters."""
        if self.sharding:
            params = self.sharding.held(self.model, params)
        self.model.load_state_dict(params, assign=True)
        self.model.to(self.device)
        parameters = self.sharding.own_parts(self.model) if self.sharding else trained_parameters(self.model)
        sharding = (self.sharding,) if self.mesh.sharded else ()
        new_optimizer = make_optimizer(self.config.optim, parameters, *sharding) if optimizer else None
        scaler = make_scaler(self.device, self.config.train.precision)
        return TrainState(0, self.model, new_optimizer, scaler, parameters, self.sharding)

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        """Return what a resumed run needs beside the parameters: the optimizer's tensors, and copies of its numbers."""
        state = self.state
        assert state.optimizer is not None
        moments = {name: state.optimizer.state[p] for name, p in state.parameters.items()}
        tensors = {"step": torch.tensor(state.step)}
        for name, values in moments.items():  # all parameters share one count
            tensors |= {"count" if key == "step" else f"{key}.{name}": t for key, t in values.items()}
        if state.scaler is not None:
            saved = state.scaler.state_dict()
            tensors["scaler.scale"] = torch.tensor(saved["scale"])
            tensors["scaler.growth_tracker"] = torch.tensor(saved["_growth_tracker"])
        return tensors


def trained_parameters(model: Decoder) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by dotted name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def initial_params(
    model: Decoder,
    seed: int,
    sharding: Sharding | None = None,
    weights: Weights | None = None,
    base: Mapping[str, Tensor] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """Return the shared NumPy initialization, by name; torch stores kernels output × input, `lmcore` input × output.

    Args:
        model: the decoder.
        seed: `train.seed`.
        sharding: where each process has a part of the parameters, it keeps that alone of each.
        weights: to return instead of that initialization.
        base: tensors that are returned as they are.
    """
    weights = weights or partial(initial_weight, seed, model=model.config)
    params = {}
    for name, p in model.named_parameters():
        transposed = isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Linear)
        shape = tuple(reversed(p.shape)) if transposed else tuple(p.shape)
        if name in base:
            whole = base[name]
        else:
            weight = weights(name.replace(".weight", ".kernel") if transposed else name, shape)
            whole = torch.tensor(np.ascontiguousarray(weight.T if transposed else weight), dtype=p.dtype)
        params[name] = sharding.own(whole, sharding.layouts[name]) if sharding else whole
    return params
