"""Names of the activations between the decoder's modules, the same for both twins: the ladder compares them.

`tap` is for models other than this project's: it names an intermediate value of any function, in either framework.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from parity.ports.trees import named_leaves

__all__ = ["OPERATIONS", "Collected", "Taps", "collecting", "numbered", "tap", "tap_module"]

BEFORE = {
    "self_attn.o_proj": "mixed values",
    "post_attention_layernorm": "after attention",
    "attention_output_layernorm": "into attention's norm",
    "mlp_output_layernorm": "into MLP's norm",
    "mlp.down_proj": "gated",
}
"""Module of a block -> name of its input."""
AFTER = {
    "input_layernorm": "norm 1",
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "attention",
    "attention_output_layernorm": "attention normed",
    "post_attention_layernorm": "norm 2",
    "mlp_output_layernorm": "MLP normed",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "MLP",
    "": "after MLP",
}
"""Module of a block, or "" for the block itself -> name of its output."""
OPERATIONS = (
    *("norm 1", "q", "k", "v", "q rotated", "k rotated", "mixed values", "attention", "after attention"),
    *("norm 2", "gate", "up", "gated", "MLP", "after MLP"),
)
"""Names of all activations of one block of the default kind, in order; `after …` is the residual stream."""
WHOLE = {
    "embed_tokens": "embedding",
    "embed_previous": "previous tokens added",
    "embed_positions": "positions added",
    "norm": "final norm",
}


class Taps:
    """Collects values under names such as `layers.1 q rotated`, in the order of computation."""

    def __init__(self) -> None:
        self.recorded: dict[str, Any] = {}
        self._layer = 0

    def before(self, module: str, value: Any) -> None:
        """Record `value` as the input of a module, by its dotted name."""
        layer, inner = _split(module)
        if layer is not None:
            self._layer = layer
            self._record(layer, BEFORE.get(inner), value)

    def after(self, module: str, value: Any) -> None:
        """Record `value` as the output of a module, by its dotted name."""
        layer, inner = _split(module)
        if layer is not None:
            self._record(layer, AFTER.get(inner), value)
        elif module in WHOLE:
            self.recorded.setdefault(WHOLE[module], value)

    def attention(self, attend: Callable[..., Any]) -> Callable[..., Any]:
        """Return `attend` with a hook that records its queries and keys, which are rotated already."""

        def hook(q: Any, k: Any, v: Any, **rest: Any) -> Any:
            self._record(self._layer, "q rotated", q)
            self._record(self._layer, "k rotated", k)
            return attend(q, k, v, **rest)

        return hook

    def _record(self, layer: int, operation: str | None, value: Any) -> None:
        if operation is not None:
            self.recorded[f"layers.{layer} {operation}"] = value


def _split(module: str) -> tuple[int | None, str]:
    """Return the layer's number, None outside of the layers, and the module's name within it."""
    first, _, rest = module.partition(".")
    number, _, inner = rest.partition(".")
    return (int(number), inner) if first == "layers" and number else (None, module)


@dataclass
class Collected:
    """Values of one run, in the order of computation."""

    values: dict[str, Any] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)
    """Names of the values that are outputs of submodules."""

    def add(self, name: str, value: Any, *, module: bool = False) -> None:
        """Record a value; a name that comes again is numbered."""
        name = numbered(name, self.values)
        self.values[name] = value
        if module:
            self.modules.add(name)


_collected: ContextVar[Collected | None] = ContextVar("collected", default=None)


@contextmanager
def collecting(into: Collected | None = None) -> Iterator[Collected]:
    """Collect the values passed to `tap`, by name; under `jax.jit`, return them from the traced function.

    Args:
        into: what collects them; None for a new collection.
    """
    collected = into or Collected()
    token = _collected.set(collected)
    try:
        yield collected
    finally:
        _collected.reset(token)


def tap(name: str, value: Any) -> Any:
    """Return `value`; while `parity.compare` runs, it is recorded under `name` and compared.

    A name that comes again is numbered: `name`, `name (2)`, …
    """
    if (collected := _collected.get()) is not None:
        collected.add(name, value)
    return value


def tap_module(name: str, output: Any) -> None:
    """Record the first array of a submodule's output, while `parity.compare` runs."""
    if (collected := _collected.get()) is not None and (leaves := named_leaves(output)):
        collected.add(name, next(iter(leaves.values())), module=True)


def numbered(name: str, taken: Collection[str]) -> str:
    """Return the name, with a number where it is taken."""
    if name not in taken:
        return name
    return next(f"{name} ({n})" for n in count(2) if f"{name} ({n})" not in taken)
