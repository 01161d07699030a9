"""Say what fits on which devices, and how fast it would train, without the devices: `python -m parity.plan`."""

from typing import TYPE_CHECKING

from lmcore.lazy import lazy

if TYPE_CHECKING:
    from parity.plan.command import main

__all__ = ["main"]

__getattr__, __dir__ = lazy(__name__, {"main": "parity.plan.command"})
