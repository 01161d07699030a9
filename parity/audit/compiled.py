"""Facts of a compiled program, read from the text of its optimized HLO: what a platform's compiler made of it."""

import re
from collections import Counter

from parity.audit.facts import KERNELS, OPTIMIZER, Array, Facts, Matmul, quadratic
from parity.plan.hlo import collectives

__all__ = ["read_text"]

INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(?P<name>[\w.\-]+) = (?P<shape>.+?) (?P<kind>[\w\-]+)\((?P<rest>.*)")
COMPUTATION = re.compile(r"^(?:ENTRY )?%?(?P<name>[\w.\-]+) .*\{$")
ARRAY = re.compile(r"\b(pred|[a-z]+\d+)[a-z0-9]*\[([\d,]*)\]")
TARGET = re.compile(r'custom_call_target="([^"]*)"')
HOST = ("infeed", "outfeed")


def read_text(text: str, length: int, devices: int) -> Facts:
    """Return the facts of a program; what is in a loop counts once, but for collectives.

    Tensors that exist within a fusion alone are never in memory, and are left out.

    Args:
        text: of the compiled program.
        length: T.
        devices: number of all.
    """
    fused = set(re.findall(r" fusion\(.*calls=%([\w.\-]+)", text))
    matmuls: Counter[Matmul] = Counter()
    kernels: Counter[str] = Counter()
    arrays: set[Array] = set()
    shapes: dict[str, list[Array]] = {}
    callbacks, computation = [], ""
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            computation, shapes = head["name"], {}
        if not (each := INSTRUCTION.match(line)):
            continue
        results, kind = [_array(*found) for found in ARRAY.findall(each["shape"])], each["kind"]
        shapes[each["name"]] = results
        arrays.update(results if computation not in fused else [])
        if kind in ("dot", "convolution"):
            left, right = (shapes[name][0] for name in re.findall(r"%([\w.\-]+)", each["rest"])[:2])
            matmuls[Matmul((left, right), results[0], 1, OPTIMIZER in line)] += 1
        target = TARGET.search(line)
        if target and target[1] in KERNELS:
            kernels[KERNELS[target[1]]] += 1
        if target and "callback" in target[1]:
            callbacks.append(target[1])
        elif kind in HOST or "is_host_transfer=true" in line:
            callbacks.append(kind)
    return Facts(
        tuple(Matmul(each.factors, each.result, count, each.optimizer) for each, count in matmuls.items()),
        quadratic(arrays, length),
        len(re.findall(r"(?:may|must)-alias", text.partition("\n")[0])),
        tuple(callbacks),
        dict(kernels),
        tuple(collectives(text, devices)),
    )


def _array(dtype: str, dims: str) -> Array:
    return Array(dtype, tuple(map(int, dims.split(","))) if dims else ())
