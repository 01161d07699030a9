"""Facts of torchlm's train step and prefill on CUDA, as far as a build of torch without CUDA can show them.

They run on fake tensors, which have shapes and no values. They are the CPU's, since a build without CUDA has no
device guard for others, but torchlm's modules are told that they are on CUDA, and so take the ways that they take
there. Which kernel `scaled_dot_product_attention` would choose is judged by its documented conditions.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lmcore.config import Config, from_dict, to_dict
from parity.audit.checks import Check, factors, listed
from parity.audit.facts import Array, Facts, Matmul, quadratic
from parity.check.rungs.execution import small_config
from parity.plan.worker import ask_worker
from torchlm.engine import TrainState, train_step, trained_parameters
from torchlm.lora import add_adapters
from torchlm.loss import loss_sum
from torchlm.model import Decoder
from torchlm.optim import make_optimizer

__all__ = ["Kernels", "Recorder", "audit_torch", "graph_breaks", "prefill_facts", "sdpa_kernel", "train_facts"]

CUDA = torch.device("cuda")
DTYPES = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float32: "f32", torch.float64: "f64", torch.bool: "i1"}
MATMULS = ("mm", "bmm", "addmm", "baddbmm", "addmm_", "baddbmm_", "addbmm", "linear")
FLASH, EFFICIENT, STEPWISE = "flash attention", "memory-efficient attention", "math"
"""torch's kernels on CUDA, of which the last keeps all weights."""
FUSED = ("adamw", "sgd")
"""Optimizers of which torch has a fused form."""


def sdpa_kernel(dtype: torch.dtype, head_dim: int, masked: bool, grouped: bool) -> str:
    """Return which kernel torch's attention has on CUDA, by the conditions of its documentation (compute capability 8).

    Args:
        dtype: of queries, keys and values.
        head_dim: of each.
        masked: whether a mask is given; causal attention alone needs none.
        grouped: whether keys and values have fewer heads, `enable_gqa`.
    """
    if dtype in (torch.bfloat16, torch.float16) and head_dim <= 256 and not masked:
        return FLASH
    if dtype != torch.float64 and not grouped:
        return EFFICIENT
    return STEPWISE


class Kernels:
    """Stands for torch's attention, and counts which kernel of CUDA's it would be."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, rate: float = 0.0, **rest: Any
    ) -> Tensor:
        """Note which kernel it is, and compute the same shapes: step by step where that is what CUDA would do.

        Args:
            q: queries, B × N × T × H.
            k: keys.
            v: values.
            mask: to add, or of what is seen.
            rate: of dropout.
            rest: other arguments, by name.
        """
        kernel = sdpa_kernel(q.dtype, q.shape[-1], mask is not None, bool(rest.get("enable_gqa")))
        self.counts[kernel] += 1
        if kernel == STEPWISE:
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                return torch._C._nn.scaled_dot_product_attention(q, k, v, mask, rate, **rest)
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))  # a CPU's flash attention
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, mask is None)[0]


class Recorder(TorchDispatchMode):
    """Notes the matmuls, and the shapes of all results, of what runs under it; makes on the CPU what CUDA should."""

    def __init__(self) -> None:
        super().__init__()
        self.matmuls: Counter[Matmul] = Counter()
        self.arrays: set[Array] = set()
        self.operators: Counter[str] = Counter()
        self.optimizer = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == CUDA:
            kwargs["device"] = torch.device("cpu")
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        self.operators[name] += 1
        tensors = [x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, Tensor)]
        self.arrays |= {_array(x) for x in tensors}
        if name in MATMULS:
            left, right = [_array(x) for x in args if isinstance(x, Tensor)][-2:]
            self.matmuls[Matmul((left, right), _array(tensors[0]), 1, self.optimizer)] += 1
        return result


def audit_torch(config: Config, compiled: bool = True) -> list[Check]:
    """Return the checks of torchlm's train step and prefill on CUDA, and, with `compiled`, of its compiled loss."""

    def check(name: str, passed: bool, found: str, form: str = "fake tensors", step: str = "train") -> Check:
        return Check("torch", step, form, name, passed, found)

    facts, operators = train_facts(config)
    squares = prefill_facts(config).quadratic
    fused = {name: count for name, count in operators.items() if name.startswith("_fused_")}
    named = ", ".join(f"{count} × {name.strip('_')}" for name, count in fused.items())
    kernels = ", ".join(f"{count} × {kernel}" for kernel, count in facts.kernels.items()) or "step by step"
    name = config.optim.name
    checks = [
        check("matmul factors", *factors(config, facts)),
        check("T × T tensors", not facts.quadratic, listed([*map(str, facts.quadratic)])),
        check("waits of the host", not facts.callbacks, listed(list(facts.callbacks))),
        check("attention kernel", bool(facts.kernels) and STEPWISE not in facts.kernels, kernels),
        check("fused optimizer", bool(fused) or name not in FUSED, named or f"none for {name}"),
        check("T × T tensors", not squares, listed([*map(str, squares)]), step="prefill"),
    ]
    if compiled:
        small = small_config(config)
        longer = replace(small.train, seq_len=min(small.model.max_seq_len, config.train.seq_len))
        breaks = ask_worker("parity.audit.eager", to_dict(replace(small, train=longer)), None)
        checks.append(check("graph breaks", not breaks, str(breaks), "compiled on a CPU"))
    return checks


def train_facts(config: Config) -> tuple[Facts, Counter[str]]:
    """Return the facts of one train step on CUDA, and how often it calls each of torch's operators."""

    def step(model: Decoder) -> None:
        micro = config.train.batch_size // config.train.grad_accum
        batch = torch.zeros(config.train.grad_accum, micro, config.train.seq_len + 1, dtype=torch.int64)
        train_step(config, _state(config, model), batch, 1e-3, loss_sum)

    return _facts(config, step)


def prefill_facts(config: Config) -> Facts:
    """Return the facts of the prefill of a prompt of T tokens on CUDA; the first of them is padding."""

    @torch.inference_mode()
    def prefill(model: Decoder) -> None:
        length, pads = config.train.seq_len, torch.tensor([1])
        _materialize(model).prefill(torch.zeros(1, length, dtype=torch.int64), model.empty_cache(pads, length))

    return _facts(config, prefill)[0]


def _facts(config: Config, run: Callable[[Decoder], None]) -> tuple[Facts, Counter[str]]:
    """Return the facts of what `run` does with the model, and how often it calls each of torch's operators."""
    recorder, kernels = Recorder(), Kernels()
    waits: tuple[str, ...] = ()
    with ExitStack() as stack:
        model = _model(config)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(mock.patch.object(F, "scaled_dot_product_attention", kernels))
        for context in (_devices_are_cuda(), _cuda_autocast(), _noted_update(recorder), recorder):
            stack.enter_context(context)
        try:
            run(model)
        except DataDependentOutputException as error:  # a value that the host would wait for
            waits = (str(error),)
    matmuls = tuple(Matmul(each.factors, each.result, n, each.optimizer) for each, n in recorder.matmuls.items())
    return (
        Facts(matmuls, quadratic(recorder.arrays, config.train.seq_len), 0, waits, dict(kernels.counts)),
        recorder.operators,
    )


def graph_breaks(config: Config) -> int:
    """Return where torch.compile would leave the graph of the loss, tried on a CPU's tensors."""
    state = _state(config, _model(config))
    tokens = torch.zeros(1, config.train.seq_len, dtype=torch.int64)
    documents = torch.zeros_like(tokens) if config.data.is_marked else None
    explained = torch._dynamo.explain(loss_sum)(state.model, tokens, tokens, None, documents)
    return explained.graph_break_count


def _model(config: Config) -> Decoder:
    with torch.device("meta"):
        return add_adapters(Decoder(config.model, getattr(torch, config.train.precision), config.train.remat))


def _materialize(model: Decoder) -> Decoder:
    """Give the parameters values, which mean nothing."""
    model.load_state_dict({name: torch.zeros(p.shape) for name, p in model.named_parameters()}, assign=True)
    return model


def _state(config: Config, model: Decoder) -> TrainState:
    """Return a train state whose values mean nothing."""
    parameters = trained_parameters(_materialize(model))
    return TrainState(0, model, make_optimizer(config.optim, parameters), None, parameters)


@contextmanager
def _devices_are_cuda() -> Iterator[None]:
    """Let fake tensors tell torchlm, but not torch, that they are on CUDA."""
    own: Any = FakeTensor.__dict__["device"].fget

    def told(asking: str, tensor: FakeTensor) -> torch.device:
        return CUDA if asking.startswith("torchlm.") else own(tensor)

    caller = property(lambda tensor: told(sys._getframe(1).f_globals["__name__"], tensor))
    with mock.patch.object(FakeTensor, "device", caller):
        yield


@contextmanager
def _cuda_autocast() -> Iterator[None]:
    """Let autocast for CUDA be the CPU's, which has the same dtype for matmuls and attention."""
    autocast = torch.autocast
    with mock.patch.object(torch, "autocast", lambda kind, *rest, **named: autocast("cpu", *rest, **named)):
        yield


@contextmanager
def _noted_update(recorder: Recorder) -> Iterator[None]:
    """Mark the matmuls of the optimizer."""
    import torchlm.engine

    update = torchlm.engine.apply_updates

    def noted(*args: Any) -> None:
        recorder.optimizer = True
        update(*args)

    with mock.patch.object(torchlm.engine, "apply_updates", noted):
        yield


def _array(x: Tensor) -> Array:
    return Array(DTYPES.get(x.dtype, str(x.dtype).removeprefix("torch.")), tuple(x.shape))


def main() -> None:
    """Read a config, as JSON, from standard input, and print its graph breaks: tracing them leaves torch changed."""
    print(graph_breaks(from_dict(Config, json.load(sys.stdin))))


if __name__ == "__main__":
    main()
