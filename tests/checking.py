"""Checks the shapes and types that the packages' functions are annotated with, at every call.

jaxtyping's own import hook also wraps functions within functions, each time that they are defined, and checks arguments
twice: that took a third of the suite's time. Here functions of modules and methods of classes are wrapped, once.
"""

import ast
import inspect
import sys
import typing
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType
from typing import Any

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, jaxtyped

__all__ = ["check_packages", "checked"]

# An int is a float where a float is asked for, as mypy has it (PEP 484).
_beartype = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check_packages(*names: str) -> None:
    """Check every function and method of these packages; before they are imported."""
    sys.meta_path.insert(0, _Finder(names))


def checked(made: Any) -> Any:
    """Return a function that checks its arguments and what it returns, or a dataclass that checks its fields."""
    if inspect.isclass(made):
        if "__dataclass_fields__" in vars(made):  # its own, not inherited
            made.__init__ = checked(made.__init__)  # type: ignore[misc]
        return made
    hints = made.__annotations__
    hints |= {name: Any for name, hint in hints.items() if isinstance(hint, str)}  # imported later, or for mypy alone
    function: Callable = _beartype(made)
    return jaxtyped(function, typechecker=None) if any(map(_has_axes, hints.values())) else function


def _has_axes(hint: Any) -> bool:
    """Whether a type names axes, which are then the same in all arguments and in what is returned."""
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(map(_has_axes, typing.get_args(hint)))


class _Decorating(ast.NodeTransformer):
    """Decorates what a module defines, innermost on functions and outermost on classes; no function is entered."""

    def visit_Module(self, node: ast.Module) -> ast.Module:
        self.generic_visit(node)
        node.body.insert(ast.get_docstring(node) is not None, ast.parse(f"from {__name__} import checked").body[0])
        return ast.fix_missing_locations(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.decorator_list.append(ast.copy_location(ast.Name("checked", ast.Load()), node))
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        self.generic_visit(node)
        node.decorator_list.insert(0, ast.copy_location(ast.Name("checked", ast.Load()), node))
        return node


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        """Compile a module, past the cache of what is not decorated."""
        path = self.get_filename(fullname)
        tree = _Decorating().visit(ast.parse(self.get_data(path), path))
        return compile(tree, path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def __init__(self, packages: Sequence[str]):
        self.packages = packages

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in self.packages:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec
