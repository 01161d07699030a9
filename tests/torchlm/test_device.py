"""Which device is taken, and what is refused on it, with the machine's devices made up."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import parity
from lmcore.config import TrainConfig
from lmcore.errors import UserError
from lmcore.run.baseline import Request
from parity.ports.torch import port
from torchlm import baseline, device
from torchlm.device import check_precision, choose_device, make_scaler, set_up_torch


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    def make(*kinds: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in kinds)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in kinds)

    return make


@pytest.mark.parametrize(("kinds", "taken"), [(("cuda",), "cuda"), (("mps",), "mps"), ((), "cpu")])
def test_auto_takes_cuda_then_mps_then_cpu(machine, kinds: tuple[str, ...], taken: str):
    machine(*kinds)
    assert choose_device().type == taken
    assert choose_device("cpu").type == "cpu"


@pytest.mark.parametrize("wanted", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_named(machine, wanted: str):
    machine()
    with pytest.raises(UserError, match=f"train.device: found '{wanted}', .* cpu, or auto"):
        choose_device(wanted)
    machine(wanted)
    assert choose_device(wanted).type == wanted


@pytest.mark.parametrize(
    ("kind", "refused"),
    [("cuda", set()), ("mps", {"float16", "float64"}), ("cpu", {"float16"})],
)
def test_a_precision_that_a_device_lacks_is_refused_in_one_line(kind: str, refused: set[str]):
    for precision in ("float32", "bfloat16", "float16", "float64"):
        if precision in refused:
            with pytest.raises(UserError, match=f"found '{precision}', expected one of .* on {kind}"):
                check_precision(kind, precision)
        else:
            check_precision(kind, precision)


def test_only_float16_has_a_scaler():
    assert make_scaler(torch.device("cpu"), "bfloat16") is None
    assert make_scaler(torch.device("cpu"), "float16").get_scale() == 2.0**16


def test_every_set_up_lets_mkl_choose_its_kernels_first(monkeypatch: pytest.MonkeyPatch):
    def chosen() -> None:
        raise RuntimeError("chosen")

    monkeypatch.setattr(device, "choose_math_kernels", chosen)
    monkeypatch.setattr(baseline, "choose_math_kernels", chosen)
    monkeypatch.setattr(port, "choose_math_kernels", chosen)
    with pytest.raises(RuntimeError, match="chosen"):
        set_up_torch(TrainConfig(device="cpu"))
    with pytest.raises(RuntimeError, match="chosen"):
        baseline.measure(Request(model="none", documents=[], context=1, batch_size=1, device="cpu"))
    with pytest.raises(RuntimeError, match="chosen"):
        parity.compare(lambda _, x: x, torch.nn.Identity(), np.ones((2, 3)), params={}, names={})


def test_deterministic_mode_goes_on_and_off():
    try:
        assert set_up_torch(TrainConfig(device="cpu", deterministic=True)).type == "cpu"
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        set_up_torch(TrainConfig(device="cpu"))
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(("platform", "expected"), [("darwin", "1"), ("linux", None)])
def test_the_package_lets_mps_fall_back_on_a_mac_only(platform: str, expected: str | None):
    program = f"import sys; sys.platform = {platform!r}\nimport os, torchlm\n"
    program += "assert 'torch' not in sys.modules\nprint(os.environ.get('PYTORCH_ENABLE_MPS_FALLBACK'))"
    clean = {name: value for name, value in os.environ.items() if name != "PYTORCH_ENABLE_MPS_FALLBACK"}
    out = subprocess.run([sys.executable, "-c", program], env=clean, capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(expected)
