"""Names of a package that are imported when they are first used, so that `--help` waits for no framework."""

import importlib
import sys
from collections.abc import Callable
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

__all__ = ["callable_module", "lazy"]


def lazy(package: str, homes: dict[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package (PEP 562).

    Args:
        package: its name.
        homes: public name -> the module that defines it.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return get, lambda: sorted([*homes, "__version__"])


def callable_module(module: str, function: str) -> None:
    """Let a module be called as the function of its name.

    A package that offers the function under the module's name (`from parity import convert`) gives the module once that
    has been imported; calling it must work all the same.

    Args:
        module: its name.
        function: where the function is, as `module:name`.
    """

    class CallableModule(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return resolve_name(function)(*args, **kwargs)

    sys.modules[module].__class__ = CallableModule
