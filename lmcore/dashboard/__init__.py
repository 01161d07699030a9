"""A page that shows the runs of a folder while they train: `python -m lmcore.dashboard runs/`."""

from typing import TYPE_CHECKING

from lmcore.lazy import lazy

if TYPE_CHECKING:
    from lmcore.dashboard.app import make_app

__all__ = ["make_app"]

__getattr__, __dir__ = lazy(__name__, {"make_app": "lmcore.dashboard.app"})
