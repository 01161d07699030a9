"""Devices that are asked for and not there end in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxlm

ROOT = Path(jaxlm.__file__).parent.parent
CODE = """
from jaxlm.device import set_up_jax
from jaxlm.sharding import make_mesh
from lmcore.config import Config, TrainConfig
from lmcore.errors import UserError
config = Config(train=TrainConfig(device={device!r}, batch_size=1))
try:
    set_up_jax(config)
    print(make_mesh(config).devices.flat[0].platform)
except UserError as error:
    print(error)
"""


def told(platforms: str, device: str) -> str:
    """What a fresh process says of its device."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": platforms, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-W", "ignore", "-c", CODE.format(device=device)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize(("platforms", "device"), [("cuda", "auto"), ("nonsense", "auto"), ("cpu", "cuda")])
def test_a_backend_that_is_not_there_is_one_line(platforms: str, device: str):
    line = told(platforms, device)
    assert line.startswith(f"train.device: {device!r} is not available (")
    assert "()" not in line
    assert line.endswith(f"; JAX_PLATFORMS is {platforms!r}: unset it, or set it to what jax has here\n")


@pytest.mark.parametrize(("platforms", "device"), [("cpu", "auto"), ("cuda", "cpu"), ("nonsense", "cpu")])
def test_a_cpu_that_is_asked_for_is_had_whatever_the_environment_says(platforms: str, device: str):
    assert told(platforms, device) == "cpu\n"
