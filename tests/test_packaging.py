"""The wheel works where the repository is not, and its packages load what they offer only when asked."""

import ast
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

import jaxlm
import lmcore
import parity
import torchlm

ROOT = Path(__file__).parent.parent
LAZY = """
import sys
import jaxlm, lmcore, parity, torchlm
assert not {"jax", "torch", "yaml", "numpy"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that holds the wheel; the libraries that it needs are this environment's."""
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    venv.create(folder / "env", with_pip=False)
    python = folder / "env" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    own = subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    (Path(own) / "libraries.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    return python


def run(python: Path, folder: Path, *words: str) -> str:
    """What a module prints, run in an empty folder."""
    settings = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "LM_DATA")}
    done = subprocess.run([str(python), *words], cwd=folder, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_works_in_an_empty_folder(installed: Path, tmp_path: Path):
    where = run(installed, tmp_path, "-c", "import lmcore; print(lmcore.__file__, lmcore.__version__)")
    assert str(installed.parent.parent) in where
    assert lmcore.__version__ in where
    for package in ("lmcore", "jaxlm", "torchlm", "parity"):
        assert run(installed, tmp_path, "-c", f"import {package}, os; print(os.listdir({package}.__path__[0]))").count(
            "py.typed"
        )
    for module in ("jaxlm.train", "torchlm.generate", "torchlm.serve", "lmcore.prepare", "parity.check"):
        assert "usage" in run(installed, tmp_path, "-m", module, "--help").lower()
    find = "from lmcore.serve.pages import page_routes; print([r.path for r in page_routes(['lmcore.serve'])])"
    assert {"/", "/app.js", "/style.css"} <= set(ast.literal_eval(run(installed, tmp_path, "-c", find)))
    small = ["--data.stories", "200", "--model.dim", "32", "--model.n_layers", "1", "--tokenizer.vocab_size", "300"]
    run(installed, tmp_path, "-m", "lmcore.prepare", "--config", "quickstart", *small)
    steps = ["--train.steps", "10", "--optim.warmup_steps", "2", "--run_dir", "run"]
    run(installed, tmp_path, "-m", "jaxlm.train", "--config", "quickstart", *small, *steps)
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) > 0


def test_packages_import_nothing_before_it_is_asked_for():
    subprocess.run([sys.executable, "-c", LAZY], cwd=ROOT, check=True)


@pytest.mark.parametrize("package", [lmcore, jaxlm, torchlm, parity])
def test_every_public_name_is_there(package):
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'absent'"):
        package.absent  # noqa: B018


def test_the_extra_for_ports_drags_in_neither_framework_nor_what_the_language_models_need():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["parity"]]
    assert {line.partition(">=")[0] for line in needed} == {"numpy", "safetensors", "scipy"}
    assert project["entry-points"]["pytest11"] == {"parity": "parity.pytest_plugin"}
