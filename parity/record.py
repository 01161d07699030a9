"""Record what one side computes, in an environment that has only its framework; `parity.compare` reads it.

from parity import record

record("jax.safetensors", jax_model, x, params=params)                     # where JAX is
record("torch.safetensors", module, like="jax.safetensors", names=names)   # where torch is

Then `python -m parity.compare jax.safetensors torch.safetensors`, where neither needs to be. This module imports NumPy,
safetensors and the framework at hand, and nothing else.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from lmcore.describe import environment
from lmcore.errors import UserError
from lmcore.lazy import callable_module
from parity.compare import checked_taps, rows_of, subject_of
from parity.mapping import Names, Row
from parity.ports.checking import check_batches, check_callables, check_dtype, check_names, check_taps
from parity.ports.dropout import Masks, drawn
from parity.ports.judging import judged
from parity.ports.recording import Recording, load, noise, record_port, save
from parity.ports.side import DType, Request
from parity.ports.translation import Translation
from parity.ports.trees import arrays_of, matched
from parity.settings import jax_settings, torch_settings

if TYPE_CHECKING:
    from parity.ports.jax.port import JaxPort
    from parity.ports.torch.port import TorchPort

__all__ = ["record"]

PathLike = str | os.PathLike[str]


def record(
    path: PathLike,
    model: Any,
    *inputs: Any,
    params: Any = None,
    like: PathLike | Recording | None = None,
    names: Names | None = None,
    taps: Mapping[str, str] | None = None,
    loss: Callable[[Any], Any] | None = None,
    dtype: DType | None = None,
    device: str = "cpu",
    only_jax: Sequence[str] = (),
    only_torch: Sequence[str] = (),
    outputs: Sequence[str] | None = None,
    call: Callable[..., Any] | None = None,
    train: bool | None = None,
    masks: Masks = drawn,
    optimizer: Any = None,
    batches: Sequence[tuple[Any, ...]] = (),
    search_seconds: float = 60.0,
) -> Recording:
    """Run one side, and write what it computed to a file.

    Args:
        path: of the file, which is replaced.
        model: as `jax_model` or `torch_module` of `parity.compare`.
        inputs: as there; none takes those of `like`.
        params: as there, of a JAX model.
        like: a recording of the other side, or of the same model elsewhere: its inputs, weights, dtype, mode, batches
            and outputs are taken, and what is written has its names and layouts.
        names: as in `compare`, where `like` is of the other framework.
        taps: as in `compare`, where `model` is a torch module.
        loss: from this side's outputs to a scalar; None for a sum of all with fixed random weights.
        dtype: of all floats; None takes that of `like`, else float64.
        device: such as "cpu", "cuda" or "gpu", as the framework names it.
        only_jax: as in `compare`.
        only_torch: as in `compare`.
        outputs: keys of the outputs to record, such as `logits`; None records those of `like`, else all.
        call: `call(model, *inputs)` runs the model; None for `model(*inputs)`.
        train: as in `compare`; None takes that of `like`, else False.
        masks: as in `compare`.
        optimizer: an optax transformation, or a function from torch's parameters to an optimizer, alone or with its
            scheduler.
        batches: inputs of each step of training; none takes those of `like`.
        search_seconds: as in `compare`, where a torch module is recorded `like` a JAX model: the likely causes are
            written to the file.

    Returns:
        The recording, as it was written.

    Raises:
        UserError: the model is of neither framework, `names` is missing or does not fit, or the file cannot be read.
    """
    if dtype is not None:
        check_dtype(dtype)
    if names is not None:
        check_names(names)
    check_taps(taps)
    check_batches(batches)
    check_callables(loss=loss, call=call, masks=masks)
    if Path(path).is_dir() or not Path(path).absolute().parent.is_dir():
        raise UserError(f"path: found {str(path)!r}, expected the name of a file in a folder that exists")
    other = like if isinstance(like, Recording) or like is None else load(Path(like))
    framework: Literal["jax", "torch"] = "torch" if _is_torch(model) else "jax"
    request = Request(
        args=arrays_of(inputs) if inputs or other is None else other.args,
        dtype=dtype or (cast(DType, other.dtype) if other else "float64"),
        device=device,
        train=(other.train if other else False) if train is None else train,
        masks=masks,
        loss=loss,
        optimizer=optimizer,
        batches=[arrays_of(batch) for batch in batches] or (list(other.batches) if other else []),
    )
    with ExitStack() as stack:
        port = stack.enter_context(_port(framework, model, params, call, request))
        port.request = replace(port.request, outputs=_outputs(port.output_names(), other, outputs))
        translation: Translation | None = None
        weights, grads = (other.weights, other.grads) if other else ({}, None)
        if other is not None and other.framework != framework:
            if names is None:
                raise UserError(f"names: found none, expected the mapping of parameters to those of {other.subject}")
            in_jax, in_torch = (port, other) if framework == "jax" else (other, port)
            rows = rows_of(names, in_jax.weights, in_torch.weights, in_torch.trained, only_jax, only_torch)
            here, translation = Translation(rows, framework), Translation(rows, other.framework)
            weights, grads = here.weights(other.weights), here.values(other.grads)
        weights = port.weights | {name: value for name, value in weights.items() if name in port.weights}
        recording = record_port(port, weights, subject=subject_of(model), facts=environment(), grads=grads)
        recording = replace(recording, noise=noise(port, weights, recording, grads))
        if other is not None and translation is not None:
            known = checked_taps(taps or {}, getattr(port, "parts", {}))
            recording = translation.recording(recording, other, known)
            if framework == "torch" and search_seconds > 0:
                causes = _causes(cast("TorchPort", port), rows, other, recording, known, search_seconds)
                recording = replace(recording, likely=causes, like=other.digest())
    save(Path(path), recording)
    return recording


@contextmanager
def _port(
    framework: str, model: Any, params: Any, call: Callable[..., Any] | None, request: Request
) -> Iterator["JaxPort | TorchPort"]:
    """Yield the model as a side of a comparison, with its framework set up for as long."""
    if framework == "torch":
        from parity.ports.torch.port import TorchPort, as_module, torch_set_up

        with torch_settings():
            torch_set_up()
            yield TorchPort(as_module(*model) if isinstance(model, tuple) else model, call, request)
    else:
        from parity.ports.jax.models import adapt
        from parity.ports.jax.port import JaxPort, jax_set_up

        with jax_settings(), jax_set_up(request):
            yield JaxPort(adapt(model, params, call, request.train), request)


def _causes(
    port: "TorchPort", rows: list[Row], one: Recording, other: Recording, taps: Mapping[str, str], seconds: float
) -> tuple[str, ...]:
    """Return sentences that name the likely causes of what differs first.

    Args:
        port: torch's side.
        rows: the mapping of names.
        one: recording of JAX's side.
        other: recording of torch's side, by JAX's names.
        taps: name of a tap -> submodule.
        seconds: time after which nothing more is tried.
    """
    failure = next((result for result in judged(one, other) if not result.ok), None)
    if failure is None:
        return ()
    from parity.ports.likely import likely_causes

    return likely_causes(port, rows, one, other, taps, failure, seconds)


def _outputs(own: Sequence[str], other: Recording | None, chosen: Sequence[str] | None) -> dict[str, str] | None:
    """Return the outputs to record: name -> the model's own name.

    Args:
        own: names of the model's outputs.
        other: the recording that this one is made like.
        chosen: keys of outputs; None for those of `other`, else all.
    """
    if other is None:
        return None if chosen is None else {name: mine for name, (mine, _) in matched(own, own, chosen).items()}
    pairs = matched(list(other.outputs), own, chosen)
    return {theirs: mine for theirs, mine in pairs.values() if theirs in other.outputs}


def _is_torch(model: Any) -> bool:
    """Return whether a model is a torch module, or a function with a dict of tensors, without importing torch."""
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    return isinstance(model, torch.nn.Module) or (
        isinstance(model, tuple) and len(model) == 2 and all(map(torch.is_tensor, dict(model[1]).values()))
    )


callable_module(__name__, "parity.record:record")
