"""Names for what flows between the modules of the decoder, the same for both twins: where the ladder listens.

`tap` is for models other than this project's: it names a value on its way through any function, in either framework.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["OPERATIONS", "Taps", "collecting", "tap"]

BEFORE = {
    "self_attn.o_proj": "mixed values",
    "post_attention_layernorm": "after attention",
    "attention_output_layernorm": "into attention's norm",
    "mlp_output_layernorm": "into MLP's norm",
    "mlp.down_proj": "gated",
}
"""Module of a block -> what goes into it."""
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
"""Module of a block, or the block itself -> what comes out of it."""
OPERATIONS = (
    *("norm 1", "q", "k", "v", "q rotated", "k rotated", "mixed values", "attention", "after attention"),
    *("norm 2", "gate", "up", "gated", "MLP", "after MLP"),
)
"""All that is seen in one block of the default kind, in order; `after …` is the residual stream."""
WHOLE = {"embed_tokens": "embedding", "embed_positions": "positions added", "norm": "final norm"}


class Taps:
    """Collects values under names such as `layers.1 q rotated`, in the order of computation."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}
        self._layer = 0

    def before(self, module: str, value: Any) -> None:
        """`value` goes into the module of that dotted name."""
        layer, inner = _split(module)
        if layer is not None:
            self._layer = layer
            self._keep(layer, BEFORE.get(inner), value)

    def after(self, module: str, value: Any) -> None:
        """`value` comes out of it."""
        layer, inner = _split(module)
        if layer is not None:
            self._keep(layer, AFTER.get(inner), value)
        elif module in WHOLE:
            self.seen.setdefault(WHOLE[module], value)

    def attention(self, attend: Callable[..., Any]) -> Callable[..., Any]:
        """The function that mixes values, listened to: its queries and keys are turned already."""

        def listener(q: Any, k: Any, v: Any, **rest: Any) -> Any:
            self._keep(self._layer, "q rotated", q)
            self._keep(self._layer, "k rotated", k)
            return attend(q, k, v, **rest)

        return listener

    def _keep(self, layer: int, operation: str | None, value: Any) -> None:
        if operation is not None:
            self.seen[f"layers.{layer} {operation}"] = value


def _split(module: str) -> tuple[int | None, str]:
    """Layer and the name within it; None outside of the layers."""
    first, _, rest = module.partition(".")
    number, _, inner = rest.partition(".")
    return (int(number), inner) if first == "layers" and number else (None, module)


_collected: ContextVar[dict[str, Any] | None] = ContextVar("collected", default=None)


@contextmanager
def collecting() -> Iterator[dict[str, Any]]:
    """Collect what passes through `tap`, by name; under `jax.jit`, return it from the traced function."""
    found: dict[str, Any] = {}
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def tap(name: str, value: Any) -> Any:
    """Return `value`; while `parity.compare` listens, it is kept under `name` and compared.

    Not within `jax.lax.scan`, `jax.checkpoint` or `jax.vmap`, whose inner values cannot leave them.
    """
    found = _collected.get()
    if found is not None:
        found[name] = value
    return value
