"""`parity.record` in two environments, and the comparison of their files where neither framework is installed."""

import ast
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import nn

from lmcore.errors import UserError
from parity import record
from parity.compare import compare_recordings
from parity.ports.recording import load

ROOT = Path(__file__).parents[2]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((6, 5))
PARAMS = {"w": RNG.standard_normal((5, 7)), "b": RNG.standard_normal(7), "out": RNG.standard_normal((7, 3))}
NAMES: dict = {"w": ("0.weight", (1, 0)), "b": "0.bias", "out": ("2.weight", (1, 0))}
BATCHES = [(RNG.standard_normal((6, 5)),) for _ in range(6)]

ONLY = """
import sys

class Only:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Only())
"""
HEAVY = {"jsonargparse", "datasets", "matplotlib", "tokenizers", "rich", "jaxtyping", "yaml", "jaxlm"}
JAX = {"jax", "jaxlib", "flax", "optax", "ml_dtypes"}
TORCH = {"torch"}


def network(params: dict, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["w"] + params["b"][None]) @ params["out"]


def module() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3, bias=False))


def adam(parameters: list) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-2)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    record(tmp_path / "jax", network, X, params=PARAMS, optimizer=optax.adam(1e-2), batches=BATCHES)
    return tmp_path


def test_two_recordings_are_compared_from_inputs_to_the_training_curve(recorded: Path):
    record(recorded / "torch", module(), like=recorded / "jax", names=NAMES, optimizer=adam)
    one, two = load(recorded / "jax"), load(recorded / "torch")
    report = compare_recordings(one, two)
    assert report, str(report)
    assert [r.rung for r in report.results] == [1, 2, 4, 5, 5, 5, 6, 6, 7]
    assert two.weights.keys() == one.weights.keys()
    (recorded / "plain").touch()
    assert (recorded / "jax").stat().st_mode == (recorded / "plain").stat().st_mode

    class Off(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 1.001 * super().forward(x)

    record(recorded / "off", Off(*module()), like=recorded / "jax", names=NAMES)
    assert compare_recordings(one, load(recorded / "off")).first_failure.what == "outputs"


def test_likely_causes_are_recorded_and_shown_for_the_recording_they_were_found_with(recorded: Path):
    wrong = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3, bias=False))
    cast = record(recorded / "relu", wrong, like=recorded / "jax", names=NAMES, optimizer=adam)
    assert cast.likely == (), "tanh in place of ReLU is not usual"
    decayed = partial(torch.optim.Adam, lr=1e-2, weight_decay=1e-2)
    record(recorded / "decayed", module(), like=recorded / "jax", names=NAMES, optimizer=decayed)
    one, two = load(recorded / "jax"), load(recorded / "decayed")
    report = compare_recordings(one, two)
    assert report.first_failure.rung == 6
    assert report.likely[0].startswith("likely: weight_decay 0.01 -> 0 (agrees "), report.likely
    assert "Likely: weight_decay 0.01 -> 0" in str(report)
    other = record(recorded / "other", network, X + 1, params=PARAMS, optimizer=optax.adam(1e-2), batches=BATCHES)
    assert compare_recordings(other, two).likely == (), "found with another recording"
    none = record(recorded / "none", module(), like=recorded / "jax", names=NAMES, optimizer=decayed, search_seconds=0)
    assert none.likely == ()


def test_a_field_of_a_later_version_is_no_obstacle(recorded: Path):
    with safe_open(recorded / "jax", "numpy") as file:
        about, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    facts = json.loads(about["recording"])
    facts["later"] = 1
    del facts["likely"], facts["like"]
    save_file(arrays, recorded / "later", about | {"recording": json.dumps(facts)})
    assert load(recorded / "later").digest() == load(recorded / "jax").digest()


def test_a_jax_model_is_recorded_like_a_torch_module_too(tmp_path: Path):
    first = record(tmp_path / "torch", module(), X)
    second = record(tmp_path / "jax", network, params=jax.tree.map(np.zeros_like, PARAMS), like=first, names=NAMES)
    report = compare_recordings(first, second)
    assert report, str(report)
    assert second.weights.keys() == first.weights.keys()


def test_the_same_model_is_compared_with_itself_in_another_type(tmp_path: Path):
    first = record(tmp_path / "float32", module(), X, dtype="float32")
    second = record(tmp_path / "bfloat16", module(), like=first, dtype="bfloat16")
    report = compare_recordings(first, second)
    assert report, str(report)
    assert {r.dtype for r in report.results if r.rung > 2} == {"bfloat16"}
    broken = module()
    broken[1] = nn.Hardtanh()
    assert not compare_recordings(first, record(tmp_path / "b", broken, like=first, dtype="bfloat16"))


def python(program: str, blocked: set[str], *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", ONLY.format(blocked=blocked) + program, *arguments]
    env = os.environ | {"JAX_NUMPY_RANK_PROMOTION": "allow"}  # as users have it
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def test_each_environment_has_its_own_framework_alone_and_the_last_has_none(tmp_path: Path):
    path, other, page = (str(tmp_path / name) for name in ("jax", "torch", "page.html"))
    jax_side = """
import sys
import jax.numpy as jnp, numpy as np
from parity import record
rng = np.random.default_rng(0)
params = {"w": rng.standard_normal((5, 3)), "b": rng.standard_normal(3)}
record(sys.argv[1], lambda p, x: jnp.tanh(x @ p["w"] + p["b"]), rng.standard_normal((4, 5)), params=params)
"""
    torch_side = """
import sys
from torch import nn
from parity import record
names = {"w": ("0.weight", (1, 0)), "b": "0.bias"}
record(sys.argv[1], nn.Sequential(nn.Linear(5, 3), nn.Tanh()), like=sys.argv[2], names=names)
"""
    compared = """
import runpy, sys
sys.argv[0] = "parity.compare"
runpy.run_module("parity.compare", run_name="__main__")
"""
    done = python(jax_side, TORCH | HEAVY, path)
    assert done.returncode == 0, done.stderr
    done = python(torch_side, JAX | HEAVY, other, path)
    assert done.returncode == 0, done.stderr
    done = python(compared, JAX | TORCH | HEAVY, path, other, "--report", page, "--json", str(tmp_path / "json"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "The two are the same model" in done.stdout
    assert "against Sequential in PyTorch" in Path(page).read_text(encoding="utf-8")
    assert json.loads((tmp_path / "json").read_text())["ok"] is True


def test_what_records_is_written_in_python_3_10():
    """Python 3.11 and later are what the tests run on, so syntax and names are read instead."""
    ask = """
import sys
import parity.record, parity.ports.jax.port, parity.ports.jax.narrow
import parity.ports.torch.port, parity.ports.torch.narrow
ours = [m for n, m in sys.modules.items() if n.partition(".")[0] in ("parity", "lmcore", "torchlm")]
print(*(m.__file__ for m in ours), sep="\\n")
"""
    done = python(ask, HEAVY)
    assert done.returncode == 0, done.stderr
    files = [Path(line) for line in done.stdout.split()]
    assert len(files) > 15
    newer = {"tomllib", "StrEnum", "ExceptionGroup", "Self", "assert_never", "Never", "LiteralString", "UTC", "chdir"}
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 10))
        imported = {
            alias.name for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom) for alias in n.names
        }
        assert not imported & newer, file


def test_mistakes_are_one_line(recorded: Path):
    with pytest.raises(UserError, match="names: found none, expected the mapping of parameters to those of network"):
        record(recorded / "torch", module(), like=recorded / "jax")
    with pytest.raises(UserError, match="the recordings have no parameter in common, such as b and 0"):
        compare_recordings(load(recorded / "jax"), record(recorded / "torch", module(), X))
    assert not (recorded / "jax.partial").exists()
