"""Facts of a lowered program, read from its StableHLO module: what jax asks of a platform's compiler."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from parity.audit.facts import KERNELS, OPTIMIZER, Array, Facts, Matmul, quadratic

__all__ = ["read_module"]

HOST = ("stablehlo.send", "stablehlo.recv", "stablehlo.infeed", "stablehlo.outfeed")
DONATED = ("tf.aliasing_output", "jax.buffer_donor")


def read_module(module: Any, length: int) -> Facts:
    """Return the facts of a module; a function that is called several times counts as often, a loop's body once.

    Args:
        module: from `lowered.compiler_ir("stablehlo")`.
        length: T.
    """
    functions = {_text(op.attributes["sym_name"]): op for op in map(_operation, module.body.operations) if _is_func(op)}
    matmuls: Counter[Matmul] = Counter()
    kernels: Counter[str] = Counter()
    arrays: set[Array] = set()
    callbacks: list[str] = []

    def visit(function: Any, optimizer: bool = False) -> None:
        for op in _operations(function):
            within = optimizer or OPTIMIZER in str(op.location)
            arrays.update(map(_array, (r.type for r in op.results if _is_ranked(r.type))))
            if op.name == "stablehlo.dot_general" and (found := _matmul(op, within)):
                matmuls[found] += 1
            elif op.name in ("func.call", "call"):
                visit(functions[_text(op.attributes["callee"])], within)
            elif op.name == "stablehlo.custom_call":
                target = _text(op.attributes["call_target_name"])
                kernels.update([KERNELS[target]] if target in KERNELS else [])
                callbacks.extend([target] if "callback" in target else [])
            elif op.name in HOST:
                callbacks.append(op.name)

    main = functions["main"]
    visit(main)
    given = [str(each) for each in main.attributes["arg_attrs"]] if "arg_attrs" in main.attributes else []
    return Facts(
        tuple(Matmul(each.factors, each.result, count, each.optimizer) for each, count in matmuls.items()),
        quadratic(arrays, length),
        sum(any(name in each for name in DONATED) for each in given),
        tuple(callbacks),
        dict(kernels),
    )


def _operation(op: Any) -> Any:
    return op.operation


def _is_func(op: Any) -> bool:
    return op.name == "func.func"


def _operations(op: Any) -> Iterator[Any]:
    """Yield all operations inside of one, those of its regions included."""
    for region in op.regions:
        for block in region.blocks:
            for inner in map(_operation, block.operations):
                yield inner
                yield from _operations(inner)


def _matmul(op: Any, optimizer: bool) -> Matmul | None:
    """Return the matmul that an operation is; None for a dot product of rows, in which a factor has no other axis."""
    from jaxlib.mlir.dialects import stablehlo

    numbers = stablehlo.DotDimensionNumbers(op.attributes["dot_dimension_numbers"])
    left, right = (_array(each.type) for each in op.operands)
    used = (
        (left, {*numbers.lhs_batching_dimensions, *numbers.lhs_contracting_dimensions}),
        (right, {*numbers.rhs_batching_dimensions, *numbers.rhs_contracting_dimensions}),
    )
    if any(all(size == 1 for axis, size in enumerate(array.shape) if axis not in axes) for array, axes in used):
        return None
    return Matmul((left, right), _array(op.results[0].type), 1, optimizer)


def _is_ranked(kind: Any) -> bool:
    from jaxlib.mlir import ir

    return isinstance(kind, ir.RankedTensorType)


def _array(kind: Any) -> Array:
    from jaxlib.mlir import ir

    ranked = ir.RankedTensorType(kind)
    return Array(str(ranked.element_type), tuple(ranked.shape))


def _text(attribute: Any) -> str:
    return str(attribute).strip('"@')
