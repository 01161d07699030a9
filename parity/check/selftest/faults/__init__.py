"""The faults that the self-test plants, by subject: each takes a function, and returns it with a mistake."""

import pkgutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

__all__ = ["patch"]


def patch(target: str, fault: Callable[[Any], Any]) -> Callable[[], AbstractContextManager[Any]]:
    """Return a function that plants a fault: in its context, `fault(value)` replaces the value of the name `target`."""

    def plant() -> AbstractContextManager[Any]:
        return mock.patch(target, fault(pkgutil.resolve_name(target)))

    return plant
