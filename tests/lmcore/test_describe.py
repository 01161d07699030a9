"""The description holds what a bug report needs, without a framework being imported, and on any machine."""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lmcore
from lmcore import describe, hardware
from lmcore.config import Config, OptimConfig
from lmcore.run.provenance import record

ALONE = """
import sys
from lmcore import describe
describe.main(sys.argv[1:])
assert not {"jax", "torch", "flax", "transformers", "numpy", "jsonargparse", "yaml"} & set(sys.modules)
"""
XEON = "model name\t: A Xeon\nflags\t\t: fpu avx2 avx512f avx512_bf16\n"
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd sve bf16\n"
APPLE = "machdep.cpu.brand_string: Apple M2\nhw.optional.AdvSIMD: 1\nhw.optional.arm.FEAT_BF16: 1\n"
OLD_MAC = "machdep.cpu.brand_string: An Intel\nhw.optional.avx2_0: 1\nhw.optional.avx512f: 0\n"


def described(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, str]:
    assert describe.main(list(words)) == 0
    return dict(re.split(r"  +", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a shell script on the path under a name of choice."""

    def put(name: str, script: str) -> None:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}{os.pathsep}{os.environ['PATH']}")

    return put


def test_no_framework_is_imported():
    subprocess.run([sys.executable, "-c", ALONE], check=True, cwd=Path(lmcore.__file__).parents[1], capture_output=True)


def test_versions_machine_and_settings_are_there(capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    facts = described(capsys)
    assert facts["twinlm"].split(",")[0] == lmcore.__version__
    assert facts["Python"] == platform.python_version()
    assert facts["numpy"] == importlib.metadata.version("numpy")
    assert set(describe.PACKAGES) <= set(facts)
    assert facts["processor"].endswith(f", {hardware.usable_cores()} cores")
    assert re.fullmatch(r"\d+ GiB", facts["memory"])
    assert facts["system"] == platform.platform()
    assert facts["JAX_PLATFORMS"] == "cpu"
    assert "XLA_FLAGS" not in facts


def test_a_package_that_is_missing_is_named(capsys, monkeypatch):
    monkeypatch.setattr(describe, "PACKAGES", ("numpy", "no-such-package"))
    facts = described(capsys)
    assert facts["no-such-package"] == "not installed"
    assert facts["numpy"] != "not installed"


@pytest.mark.parametrize(
    ("system", "processor", "info", "name", "features"),
    [
        ("linux", "x86_64", XEON, "A Xeon", {"AVX2": True, "AVX-512": True, "AVX-512 BF16": True, "AMX BF16": False}),
        ("linux", "aarch64", GRAVITON, None, {"NEON": True, "BF16": True, "SVE": True}),
        ("darwin", "arm64", APPLE, "Apple M2", {"NEON": True, "BF16": True, "SVE": False}),
        ("darwin", "x86_64", OLD_MAC, "An Intel", dict.fromkeys(["AVX-512", "AVX-512 BF16", "AMX BF16"], False)),
        ("linux", "x86_64", "", None, {}),
    ],
)
def test_instructions_are_read_as_each_system_names_them(system, processor, info, name, features, monkeypatch):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: processor)
    monkeypatch.setattr(hardware, "_cpu_info", lambda: info)
    expected = features | ({"AVX2": True} if info == OLD_MAC else {})
    assert hardware.cpu_features() == expected
    assert hardware.bfloat16_products() == (info == XEON)
    assert hardware.cpu_name() == (name or platform.processor() or processor)


@pytest.mark.parametrize(
    ("info", "processor", "expected"),
    [
        ("vendor_id : GenuineIntel", "", True),
        ("vendor_id : AuthenticAMD", "x86_64", False),
        ("", "Intel64 Family 6 Model 106 Stepping 6, GenuineIntel", True),  # on Windows
        ("", "AMD64 Family 25 Model 33 Stepping 0, AuthenticAMD", False),
    ],
)
def test_intels_processors_are_known(info: str, processor: str, expected: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hardware, "_cpu_info", lambda: info)
    monkeypatch.setattr(platform, "processor", lambda: processor)
    assert hardware.intel_cpu() == expected


def test_a_gpu_is_named_as_its_driver_names_it(capsys, program):
    program("nvidia-smi", "echo 'NVIDIA H100, 81559 MiB, 550.54'")
    assert described(capsys)["GPU"] == "NVIDIA H100, 81559 MiB, 550.54"


@pytest.mark.parametrize("script", ["echo 'no devices were found'; exit 6", "exec sleep 5"])
def test_a_driver_that_fails_or_hangs_stops_nothing(script: str, capsys, program, monkeypatch):
    monkeypatch.setattr(describe, "SECONDS", 0.5)
    program("nvidia-smi", script)
    assert described(capsys)["GPU"] == "none that nvidia-smi knows"


def test_a_run_says_what_it_is(tmp_path: Path, capsys):
    (tmp_path / "config.yaml").write_text("{}\n")
    facts = described(capsys, str(tmp_path))
    assert facts["run.json"].startswith("cannot be read")
    assert facts["checkpoint"] == "none"
    (tmp_path / "run.json").write_text(json.dumps({"framework": "jax", "device": "cpu", "parameters": 42}))
    for step in (50, 100):
        (tmp_path / "checkpoints" / f"step_{step:08}").mkdir(parents=True)
    facts = described(capsys, str(tmp_path))
    assert facts["run"] == str(tmp_path)
    assert {name: facts[name] for name in ("framework", "device", "parameters")} == {
        "framework": "jax",
        "device": "cpu",
        "parameters": "42",
    }
    assert facts["checkpoint"] == "step_00000100"
    record(tmp_path, 0, {"framework": "torch"}, Config(run_dir="r", optim=OptimConfig(lr=1.0)), {"train.bin": "ab12"})
    record(tmp_path, 50, {"framework": "torch"}, Config(run_dir="r", optim=OptimConfig(lr=1.0)), {"train.bin": "ab12"})
    facts = described(capsys, str(tmp_path))
    assert facts["not the default"] == "run_dir r, optim.lr 1.0"
    assert facts["SHA-256 of train.bin"] == "ab12"
    assert ", step 0, " in facts["start 1"]
    assert ", step 50, " in facts["start 2"]
    assert facts["other than now"] == "nothing"
    later = json.loads((tmp_path / "run.json").read_text())
    later["starts"][-1]["jax"] = "0.4.1"
    (tmp_path / "run.json").write_text(json.dumps(later))
    assert described(capsys, str(tmp_path))["other than now"] == "jax 0.4.1"
    (tmp_path / "run.json").write_text("[]")
    assert described(capsys, str(tmp_path))["run.json"].startswith("cannot be read")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent"], "absent: no such folder, expected a run"),
        (["."], ".: found no config.yaml, expected a run"),
        (["--steps"], "unrecognized arguments: --steps"),
    ],
)
def test_a_mistake_gets_one_line(words: list[str], message: str, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert describe.main(words) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {message}\n")
