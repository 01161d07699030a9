"""The faults that the self-test plants, by subject: each takes a function, and returns it as ports get it wrong."""

import pkgutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest import mock

__all__ = ["patch"]


def patch(target: str, fault: Callable[[Any], Any]) -> Callable[[], AbstractContextManager[Any]]:
    """Return a function that plants a fault: the dotted name `target` is `fault` of its value in the open context."""

    def plant() -> AbstractContextManager[Any]:
        return mock.patch(target, fault(pkgutil.resolve_name(target)))

    return plant
