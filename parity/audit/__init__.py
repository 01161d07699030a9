"""Audit the programs for CUDA and TPUs without one: `python -m parity.audit`."""

from typing import TYPE_CHECKING

from lmcore.lazy import lazy

if TYPE_CHECKING:
    from parity.audit.command import main

__all__ = ["main"]

__getattr__, __dir__ = lazy(__name__, {"main": "parity.audit.command"})
