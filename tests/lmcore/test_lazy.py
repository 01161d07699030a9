"""A name is imported when it is first asked for, and a module can be called as its function."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from lmcore.lazy import callable_module, lazy


def test_a_name_is_imported_on_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "lazy_home.py").write_text("answer = 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    get, names = lazy("package", {"answer": "lazy_home", "absent": "lazy_home"})
    assert names() == ["__version__", "absent", "answer"]
    assert "lazy_home" not in sys.modules
    assert get("answer") == 42
    assert sys.modules.pop("lazy_home").answer == 42
    with pytest.raises(AttributeError, match="module 'package' has no attribute 'other'"):
        get("other")
    with pytest.raises(AttributeError, match="'lazy_home' has no attribute 'absent'"):
        get("absent")
    del sys.modules["lazy_home"]


def test_a_module_is_called_as_the_function_that_it_is_named_after(monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("stem")
    module.kept = 3
    monkeypatch.setitem(sys.modules, "stem", module)
    with pytest.raises(TypeError, match="not callable"):
        module()
    callable_module("stem", "pathlib:PurePosixPath")
    assert module("a", "b").name == "b"
    assert module.kept == 3
