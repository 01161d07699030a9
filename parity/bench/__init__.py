"""How fast the implementations are: rounds of each in turn (`rounds`), in processes of their own (`worker`)."""

from typing import TYPE_CHECKING

from lmcore.lazy import lazy

if TYPE_CHECKING:
    from parity.bench.command import main

__all__ = ["main"]

__getattr__, __dir__ = lazy(__name__, {"main": "parity.bench.command"})
