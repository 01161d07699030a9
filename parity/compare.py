"""The ladder for anyone's port: a JAX model against a torch module, in one process or by recordings from two.

from parity import compare

def test_my_port_is_the_same_model():
    report = compare(jax_model, torch_module, x, params=params, names=names)
    assert report, str(report)

`python -m parity.compare ONE TWO` compares two recordings by `parity.record`, with neither framework installed.
"""

import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmcore.describe import environment
from lmcore.errors import OneLineParser, UserError, command
from lmcore.lazy import callable_module
from parity.arrays import Arrays
from parity.mapping import Names, Row, resolve
from parity.ports.checking import (
    check_batches,
    check_callables,
    check_dtype,
    check_names,
    check_pair,
    check_taps,
    check_torch,
)
from parity.ports.dropout import Masks, drawn
from parity.ports.judging import judged, noted, same_start
from parity.ports.recording import Recording, load, noise, record_port
from parity.ports.side import BITS, DType, Request
from parity.ports.translation import Translation
from parity.ports.trees import arrays_of, matched
from parity.report.report import Report
from parity.settings import jax_settings, torch_settings

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["compare", "compare_recordings"]

LABELS = {"jax": "JAX", "torch": "PyTorch"}
"""Framework -> its name in reports."""


def compare(
    jax_model: Any,
    torch_module: "nn.Module | tuple[Callable[..., Any], Mapping[str, Tensor]]",
    *inputs: Any,
    params: Any = None,
    names: Names,
    taps: Mapping[str, str] | None = None,
    losses: tuple[Callable[[Any], Any], Callable[[Any], Any]] | None = None,
    dtype: DType = "float64",
    only_jax: Sequence[str] = (),
    only_torch: Sequence[str] = (),
    outputs: Sequence[str] | None = None,
    call_jax: Callable[..., Any] | None = None,
    call_module: Callable[..., Any] | None = None,
    train: bool = False,
    masks: Masks = drawn,
    optimizers: tuple[Any, Callable[[list[Any]], Any]] | None = None,
    batches: Sequence[tuple[Any, ...]] = (),
    search_seconds: float = 60.0,
) -> Report:
    """Run both on the same weights and inputs; compare activations, outputs, loss, gradients, updates and training.

    Args:
        jax_model: a function `jax_model(params, *inputs)` that `jax.jit` can trace, a Flax module (linen or NNX), an
            Equinox module, or what `haiku.transform` returns; its outputs are any tree of arrays.
        torch_module: `torch_module(*inputs)` returns the same tree. It is copied. A pair of a function and a dict of
            tensors is called as `function(tensors, *inputs)`.
        inputs: NumPy arrays of any shape, or dicts, tuples and lists of them, or None; floats are converted to `dtype`.
        params: tree of JAX parameters; of linen the variables or the parameters alone, of Haiku with state the pair of
            both; None for NNX and Equinox, whose modules hold theirs. Its paths are dotted, as in `blocks.0.w`. Torch
            receives their values.
        names: path in `params` -> name of the torch parameter or buffer, alone, or with axes where torch stores
            `numpy.transpose(value, axes)`, or with one of `parity.transforms`; `parity.mapping` says more. All of
            `params` and all torch parameters must be named. A torch buffer has no gradient, so none is compared.
        taps: name passed to `parity.tap` in the JAX function -> torch submodule with the same output. Submodules that
            hold the same parameters are compared without being listed here, as are values that both sides tap.
        losses: two functions, from JAX's outputs and from torch's to a scalar. Without them the loss is the output
            itself if that is a scalar, else a sum of all outputs with fixed random weights.
        dtype: of all floats; float64 separates mistakes from rounding. In 16 bits, differences are held against what
            one unit in the last place of the weights changes.
        only_jax: paths in `params`, or patterns with `*`, that have no counterpart in torch.
        only_torch: torch parameters, or patterns with `*`, that have no counterpart in JAX and keep their values.
        outputs: keys of the outputs to compare, such as `logits`; None compares all. A bare output is compared with the
            first of several.
        call_jax: `call_jax(model, *inputs)` runs the JAX model, whose parameters `model` holds; None for
            `model(*inputs)`.
        call_module: `call_module(torch_module, *inputs)` runs the module; None for `torch_module(*inputs)`.
        train: run both in training mode: dropout is on, and the statistics of norms over the batch are compared after
            the call. Of linen and Haiku, `call_jax` passes what the model takes for it.
        masks: `masks(number, shape, keep)` returns the n-th dropout mask of either side; by default drawn at random,
            the same on both. `parity.ports.dropout.kept` drops nothing.
        optimizers: an optax transformation, and a function from torch's parameters to a torch optimizer, alone or with
            its scheduler: the updates of both are compared on the same gradients, parameters and moments.
        batches: inputs of each step of training by these optimizers, whose curves are compared; none trains nothing.
        search_seconds: how long the usual causes are tried where the two differ; `report.likely` names what would make
            them agree. 0 tries none.

    Returns:
        A report: true if all is within the tolerances of `dtype`; else `report.first_failure.where` is the place.

    Raises:
        UserError: the names do not fit the parameters, or the taps the modules; the message names each.
    """
    options: dict[str, Any] = {name: value for name, value in locals().items() if name not in ("inputs", "dtype")}
    check_dtype(dtype)
    check_names(names)
    check_taps(taps)
    check_torch(torch_module)
    check_pair("losses", losses, "functions of JAX's outputs and of torch's")
    check_pair("optimizers", optimizers, "an optax transformation, and a function of torch's parameters", (1,))
    check_batches(batches)
    check_callables(call_jax=call_jax, call_module=call_module, masks=masks)
    try:
        return _compare(*inputs, dtype=dtype, **options)
    except (TypeError, RuntimeError) as error:
        said = str(error).lower()
        if dtype != "float64" or not ("float32" in said or ("float" in said and "double" in said)):
            raise
        report = _compare(*inputs, dtype="float32", **options)
        note = f"compared in float32, since the model does not run in float64: {str(error).strip().splitlines()[0]}"
        first, *others = report.results
        return replace(report, results=(noted(first, note), *others))


def _compare(
    *inputs: Any,
    jax_model: Any,
    torch_module: Any,
    params: Any,
    names: Names,
    taps: Mapping[str, str] | None,
    losses: tuple[Callable[[Any], Any], Callable[[Any], Any]] | None,
    dtype: DType,
    only_jax: Sequence[str],
    only_torch: Sequence[str],
    outputs: Sequence[str] | None,
    call_jax: Callable[..., Any] | None,
    call_module: Callable[..., Any] | None,
    train: bool,
    masks: Masks,
    optimizers: tuple[Any, Callable[[list[Any]], Any]] | None,
    batches: Sequence[tuple[Any, ...]],
    search_seconds: float,
) -> Report:
    """Compare as `compare` does, in exactly the type asked for."""
    with ExitStack() as stack:
        from parity.ports.jax.models import adapt
        from parity.ports.jax.port import JaxPort, jax_set_up
        from parity.ports.torch.port import TorchPort, as_module, torch_set_up

        stack.enter_context(jax_settings())
        stack.enter_context(torch_settings())
        torch_set_up()
        module = torch_module if not isinstance(torch_module, tuple) else as_module(*torch_module)
        requests = [
            Request(
                args=arrays_of(inputs),
                dtype=dtype,
                train=train,
                masks=masks,
                loss=losses[side] if losses else None,
                optimizer=optimizers[side] if optimizers else None,
                batches=[arrays_of(batch) for batch in batches],
            )
            for side in (0, 1)
        ]
        stack.enter_context(jax_set_up(requests[0]))
        jax_port = JaxPort(adapt(jax_model, params, call_jax, train), requests[0])
        torch_port = TorchPort(module, call_module, requests[1])
        rows = rows_of(names, jax_port.weights, torch_port.weights, torch_port.trained, only_jax, only_torch)
        buffers = {name for row in rows if not set(row.torch) <= set(torch_port.trained) for name in row.jax}
        jax_port.trained = tuple(name for name in jax_port.trained if name not in buffers)
        chosen = matched(jax_port.output_names(), torch_port.output_names(), outputs)
        jax_port.request = replace(jax_port.request, outputs={name: own for name, (own, _) in chosen.items()})
        torch_port.request = replace(torch_port.request, outputs={name: own for name, (_, own) in chosen.items()})
        one = record_port(jax_port, jax_port.weights, subject=subject_of(jax_model), facts=environment())
        to_torch, to_jax = Translation(rows, "torch"), Translation(rows, "jax")
        weights, grads = to_torch.weights(one.weights), to_torch.values(one.grads)
        raw = record_port(torch_port, weights, subject=type(module).__name__, facts={}, grads=grads)
        checked = checked_taps(taps or {}, torch_port.parts)
        other = to_jax.recording(raw, one, checked)
        results = judged(one, other)
        rounded = BITS[dtype] == 16 or bool(one.narrow or raw.narrow)
        if rounded or not all(result.ok for result in results):
            one = replace(one, noise=noise(jax_port, one.weights, one))
            if rounded:
                raw = replace(raw, noise=noise(torch_port, weights, raw, grads))
                other = to_jax.recording(raw, one, checked)
            results = judged(one, other)
        causes: tuple[str, ...] = ()
        if search_seconds > 0 and (failure := next((result for result in results if not result.ok), None)):
            from parity.ports.likely import likely_causes

            causes = likely_causes(torch_port, rows, one, other, checked, failure, search_seconds)
    subject = f"{one.subject} in JAX against {other.subject} in torch"
    return Report(subject=subject, results=tuple(results), facts=one.facts, likely=causes)


def rows_of(
    names: Names,
    jax: Arrays,
    torch: Arrays,
    parameters: Sequence[str],
    only_jax: Sequence[str] = (),
    only_torch: Sequence[str] = (),
) -> list[Row]:
    """Return the mapping, fitted to both sides.

    Args:
        names: as in `compare`.
        jax: parameters and statistics of the JAX model.
        torch: parameters and buffers of the torch module.
        parameters: names of torch's parameters; a buffer need not be in a row.
        only_jax: as in `compare`.
        only_torch: as in `compare`.
    """
    shapes = {name: array.shape for name, array in torch.items()}
    trained = {name: shape for name, shape in shapes.items() if name in parameters}
    buffers = {name: shape for name, shape in shapes.items() if name not in parameters}
    in_jax = {name: array.shape for name, array in jax.items()}
    return resolve(names, in_jax, trained, buffers, only_jax=only_jax, only_torch=only_torch)


def subject_of(model: Any) -> str:
    """Return a model's name, for people."""
    return getattr(model, "__name__", type(model).__name__)


def checked_taps(taps: Mapping[str, str], submodules: Collection[str]) -> Mapping[str, str]:
    """Return the taps.

    Raises:
        UserError: a submodule does not exist.
    """
    if missing := [name for name in taps.values() if name not in submodules]:
        raise UserError(f"taps: {', '.join(missing)}: no such submodule in torch; there are {', '.join(submodules)}")
    return taps


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Compare the recordings that the command line names; exit code 1 where they differ."""
    parser = OneLineParser(
        "python -m parity.compare", description="Compare two recordings by parity.record; neither framework is needed."
    )
    parser.add_argument("one", metavar="ONE", type=Path, help="Recording of the reference.")
    parser.add_argument("two", metavar="TWO", type=Path, help="Recording of the port, by the same names.")
    parser.add_argument("--report", metavar="PAGE.html", type=Path, help="Write the report as a web page.")
    parser.add_argument("--json", metavar="FILE", type=Path, help="Write the report as JSON.")
    args = parser.parse_args(argv)
    report = compare_recordings(load(args.one), load(args.two))
    print(report)
    if args.report:
        report.save_page(args.report)
    if args.json:
        report.save_json(args.json)
    return 0 if report else 1


def compare_recordings(one: Recording, two: Recording) -> Report:
    """Compare two recordings.

    Args:
        one: of the reference.
        two: of the port, by the same names: recorded `like` the first, or of the same model.

    Raises:
        UserError: they have no names in common.
    """
    if (one.weights or two.weights) and not one.weights.keys() & two.weights.keys():
        ours, theirs = (next(iter(each.weights), "none") for each in (one, two))
        raise UserError(
            f"the recordings have no parameter in common, such as {ours} and {theirs}; record one of them with "
            "like= the other, and names="
        )
    others = {name: value for name, value in two.facts.items() if one.facts.get(name) != value}
    results = (*same_start(one, two), *judged(one, two))
    searched = two.likely if two.like == one.digest() else ()
    return Report(
        subject=f"{one.subject} in {LABELS[one.framework]} against {two.subject} in {LABELS[two.framework]}",
        results=results,
        likely=() if all(result.ok for result in results) else searched,
        facts=one.facts | {f"{name} of the second": value for name, value in others.items()},
        compared=f"{LABELS[one.framework]} against {LABELS[two.framework]}",
    )


callable_module(__name__, "parity.compare:compare")

if __name__ == "__main__":
    sys.exit(main())
