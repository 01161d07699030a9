"""Conversion between jaxlm, torchlm and Hugging Face: the table of names, optimizer state, and whole runs."""

from typing import TYPE_CHECKING

from lmcore.lazy import callable_module, lazy

if TYPE_CHECKING:
    from parity.convert.conversion import convert, main

__all__ = ["convert", "main"]

__getattr__, __dir__ = lazy(__name__, {"convert": "parity.convert.conversion", "main": "parity.convert.conversion"})
callable_module(__name__, "parity.convert.conversion:convert")
