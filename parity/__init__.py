"""Converts between the twins and Hugging Face, compares them, and times them.

In a test suite of your own: `from parity import compare, convert`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.convert import convert

__all__ = ["convert"]


def __getattr__(name: str) -> Any:
    """Load a framework only when something of it is asked for."""
    import importlib

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"parity.{name}")
