"""Import a package's public names lazily, on first use, so that `--help` does not load a framework."""

import importlib
import sys
from collections.abc import Callable
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

__all__ = ["callable_module", "lazy"]


def lazy(package: str, homes: dict[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` for a package with lazily imported names (PEP 562).

    Args:
        package: name of the package.
        homes: public name -> the module that defines it.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(homes[name]), name)

    return get, lambda: sorted([*homes, "__version__"])


def callable_module(module: str, function: str) -> None:
    """Make a module callable as the function of the same name.

    Once the module `parity.convert` has been imported, `from parity import convert` returns the module instead of the
    function that the package offers by that name; calling it must work in both cases.

    Args:
        module: name of the module.
        function: path of the function, as `module:name`.
    """

    class CallableModule(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return resolve_name(function)(*args, **kwargs)

    sys.modules[module].__class__ = CallableModule
