"""Holds the walls: lmcore knows neither framework, and each twin works where the other framework isn't installed."""

import ast
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
TORCH = {"torch", "torchvision", "torchaudio"}
FORBIDDEN = {
    "lmcore": JAX | TORCH | {"jaxlm", "torchlm", "parity"},
    "jaxlm": TORCH | {"torchlm", "parity"},
    "torchlm": JAX | {"jaxlm", "parity"},
}

BLOCKER = """
import importlib, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

blocked, modules = (set(argument.split(",")) for argument in sys.argv[1:])
sys.meta_path.insert(0, Blocker())
for module in sorted(modules):
    importlib.import_module(module)
assert not blocked & set(sys.modules)
"""


def imports(source: str) -> Iterator[str]:
    """Yield the top-level package of every import in `source`, wherever it stands, lazy and by name included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__"):
                yield str(node.args[0].value).partition(".")[0]


def modules(package: str) -> list[str]:
    """Names of all modules of `package` that are there."""
    return [module.name for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}.")]


def import_without(blocked: set[str], names: list[str]) -> subprocess.CompletedProcess:
    """Import modules in a fresh Python for which `blocked` packages aren't installed."""
    arguments = [",".join(sorted(blocked)), ",".join(names)]
    return subprocess.run([sys.executable, "-c", BLOCKER, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("line", "package"),
    [
        ("import torch.nn as nn", "torch"),
        ("from torch import Tensor", "torch"),
        ("def f():\n    import numpy, torch", "torch"),
        ("if TYPE_CHECKING:\n    from jax.numpy import array", "jax"),
        ("importlib.import_module('torch.cuda')", "torch"),
        ("__import__('jax')", "jax"),
    ],
)
def test_every_way_to_import_is_seen(line: str, package: str):
    assert package in set(imports(line))


def test_relative_imports_and_plain_text_are_no_imports():
    assert set(imports("from .torch import f\nx = 'import torch'\nprint('torch')")) == set()


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_source_imports_across_a_wall(package: str):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files, f"{package} has no files"
    across = {
        str(path.relative_to(ROOT)): found
        for path in files
        if (found := FORBIDDEN[package] & set(imports(path.read_text(encoding="utf-8"))))
    }
    assert across == {}


def test_the_shared_core_names_neither_twin():
    named = {}
    for path in sorted((ROOT / "lmcore").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}  # docstrings
        texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in alone]
        if found := [text for text in texts if isinstance(text, str) and ("jaxlm" in text or "torchlm" in text)]:
            named[path.name] = found
    assert named == {}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_every_module_works_where_the_other_framework_is_not_installed(package: str):
    names = modules(package)
    assert names, f"{package} has no modules"
    result = import_without(FORBIDDEN[package], names)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("package", "module"), [("numpy", "lmcore.report.plots"), ("jax", "jaxlm.model")])
def test_the_blocker_blocks(package: str, module: str):
    result = import_without({package}, [module])
    assert result.returncode == 1
    assert f"blocked: {package}" in result.stderr


def graph(package: str) -> dict[str, set[str]]:
    """Module -> the modules of its package that it imports, lazily or not."""
    names = {package, *modules(package)}
    found: dict[str, set[str]] = {}
    for name in names:
        path = ROOT.joinpath(*name.split("."))
        source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text(encoding="utf-8")
        asked = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                asked |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                asked |= whole & names or {node.module}
        found[name] = (asked & names) - {name}
    return found


def circles(imported: dict[str, set[str]]) -> set[str]:
    """Modules that are in an import circle: what is left when all that import nothing further are taken away."""
    left = {name: set(others) for name, others in imported.items()}
    while ends := {name for name, others in left.items() if not others & left.keys()}:
        for name in ends:
            del left[name]
    used = set().union(*left.values())
    while loose := left.keys() - used:
        left = {name: others for name, others in left.items() if name not in loose}
        used = set().union(*left.values())
    return set(left)


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set(), "f": {"e"}}) == {"a", "b", "c"}


@pytest.mark.parametrize("package", [*FORBIDDEN, "parity"])
def test_no_package_has_an_import_circle(package: str):
    imported = graph(package)
    assert sum(map(len, imported.values())) > len(imported) / 2, "the imports were not read"
    assert circles(imported) == set()


def test_every_module_has_its_test_file_by_name():
    modules = [
        path.relative_to(ROOT) for package in (*FORBIDDEN, "parity") for path in sorted((ROOT / package).rglob("*.py"))
    ]
    modules = [path for path in modules if path.name not in ("__init__.py", "__main__.py")]
    assert len(modules) > 100
    assert [m for m in modules if not (ROOT / "tests" / m.parent / f"test_{m.name}").exists()] == []
