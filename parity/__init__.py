"""Converts between the twins and Hugging Face, compares them, and times them.

In a test suite of your own: `from parity import compare, convert, tap`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parity.convert import convert
    from parity.ports import compare
    from parity.taps import tap

__all__ = ["compare", "convert", "tap"]

HOMES = {"compare": "parity.ports", "convert": "parity.convert", "tap": "parity.taps"}
"""Public name -> the module that defines it, loaded only when the name is asked for."""


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)
