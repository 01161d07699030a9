"""Classes that transformers wrote in Flax and in torch, compared to the curve, in an environment of their own."""

import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parity.compare import compare_recordings
from parity.ports.recording import load
from tests.parity.ports.flax_models import PAIRS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
OTHERS = ("transformers", "tokenizers", "datasets", "orbax-checkpoint")
"""Packages whose constraint is for this environment alone."""
UNREACHABLE = re.compile("NewConnectionError|ConnectTimeout|ConnectionError|ProxyError|Max retries|name resolution")


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with transformers 4.56.2; TWINLM_FLAX_PYTHON names one that is there."""
    if ready := os.environ.get("TWINLM_FLAX_PYTHON"):
        return Path(ready)
    folder = tmp_path_factory.mktemp("flax")
    venv.create(folder / "env", with_pip=True)
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if "==" in line and line.partition("==")[0] not in OTHERS]
    (folder / "constraints.txt").write_text("\n".join(kept), encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["parity"]]
    program = folder / "env" / "bin" / "python"
    pip = [str(program), "-m", "pip", "install", "--quiet", "--constraint", str(folder / "constraints.txt")]
    packages = ["torch", "jax", "flax", "optax", "transformers==4.56.2"]
    done = subprocess.run([*pip, *packages, *needed], capture_output=True, text=True)
    if done.returncode and UNREACHABLE.search(done.stderr):
        pytest.skip("pip reaches no package registry, from which it would install transformers 4.56.2")
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="session")
def run(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[dict[str, Any]]]:
    """Runs pairs in that environment, in one process; gives the lines of results."""

    def start(*words: str) -> list[dict[str, Any]]:
        out = tmp_path_factory.mktemp("reports") / "reports.jsonl"
        out.touch()
        command = [str(python), "-m", "tests.parity.ports.run_flax_models", *words, "--out", str(out)]
        settings = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUMPY_RANK_PROMOTION": "allow"}
        done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]

    return start


def is_narrow(line: dict[str, Any]) -> bool:
    """Return whether a report in float64 says that it compared in float32, and why."""
    return any("compared as float32, since " in result["note"] for result in line["results"])


def test_every_parameter_has_the_value_that_transformers_own_conversion_gives_it(run: Callable):
    lines = run("--names")
    assert [line["pair"] for line in lines if not line["differing"]] == [*PAIRS]
    left = {line["pair"]: line["left"] for line in lines if line["left"]}
    assert left.keys() == {"resnet"}, (
        "layers of the basic kind are `layer_0` in Flax, which transformers does not convert"
    )
    assert all(".layer." in name for name in left["resnet"])


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_is_the_same_model_but_for_what_is_known_and_a_fault_is_found(name: str, run: Callable):
    *same, fault = run(name, "--how", "same", "--dtype", "float64", "float32") + run(
        name, "--how", "fault", "--dtype", "float64"
    )
    # A module with float32 inside has a curve in float64 that is held against moves of one float64 ulp: see float32's.
    failed = [
        (line["dtype"], result["what"], result["where"])
        for line in same
        for result in line["results"]
        if result["verdict"] == "FAIL" and not (result["rung"] == 7 and line["dtype"] == "float64" and is_narrow(line))
    ]
    assert failed == []
    rungs = [{result["rung"] for result in line["results"]} for line in same]
    assert rungs == [{3, 4, 5, 6, 7}] * 2
    assert not fault["ok"], fault["verdict"]


DEVIANT = {name: pair.deviation for name, pair in PAIRS.items() if pair.deviation is not None}


@pytest.mark.parametrize("name", DEVIANT)
def test_a_deviation_is_named_at_its_place(name: str, run: Callable):
    [line] = run(name, "--how", "is", "--dtype", "float64")
    failed = next(result for result in line["results"] if result["verdict"] == "FAIL")
    assert (failed["rung"], failed["first"]) == (DEVIANT[name].rung, DEVIANT[name].first)


@pytest.mark.parametrize("name", ["gpt2", "bert", "vit"])
def test_a_module_that_computes_in_float32_is_named_as_such(name: str, run: Callable):
    [line] = run(name, "--how", "same", "--dtype", "float64", "--flax-dtype", "float32")
    assert is_narrow(line)
    assert all(result["verdict"] == "pass" for result in line["results"] if result["rung"] < 7)


@pytest.mark.parametrize("name", ["gpt2", "bert", "llama", "t5"])
def test_recordings_from_two_environments_agree(name: str, run: Callable, tmp_path: Path):
    flax, own = tmp_path / "flax.safetensors", tmp_path / "torch.safetensors"
    run(name, "--dtype", "float64", "--record", str(flax))
    module = [sys.executable, "-m", "tests.parity.ports.run_flax_models"]
    settings = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [*module, name, "--record", str(own), "--like", str(flax)]
    done = subprocess.run(words, cwd=ROOT, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    report = compare_recordings(load(flax), load(own))
    assert [(r.what, r.where) for r in report.results if not r.ok and r.rung < 7] == []
