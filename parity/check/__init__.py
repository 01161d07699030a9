"""The check: whether jaxlm and torchlm are the same model, and where they first differ."""

from typing import TYPE_CHECKING

from lmcore.lazy import lazy

if TYPE_CHECKING:
    from parity.check.command import check, main

__all__ = ["check", "main"]

__getattr__, __dir__ = lazy(__name__, {"check": "parity.check.command", "main": "parity.check.command"})
