"""Targets and their errors, and the bandwidth of groups inside and beyond a host."""

import math

import pytest

from lmcore.errors import UserError
from parity.plan.hardware import HARDWARE, matmul_rate, read_target


def test_every_device_has_a_peak_and_all_figures() -> None:
    for hardware in HARDWARE.values():
        assert hardware.peak > 1e14
        assert hardware.memory > 1e10
        assert hardware.memory_bandwidth > hardware.link > hardware.network


def test_a_target_is_read() -> None:
    target = read_target("tpu:v5e:16x16", 256)
    assert (target.platform, target.topology, target.hardware.name) == ("tpu", "16x16", "TPU v5 lite")
    assert read_target("tpu:v5e", 7).topology is None
    assert read_target("cuda:h100", 12).hardware.peak == 989e12
    own = read_target("cpu", 2)
    assert 2 * own.hardware.peak == pytest.approx(matmul_rate(), rel=0.9)
    assert own.hardware.bandwidth(2, 1) == math.inf


@pytest.mark.parametrize(
    ("text", "devices", "message"),
    [
        ("tpu:v9", 8, "--target: found 'tpu:v9', expected one of cpu, tpu:v4, "),
        ("cuda:h100:2x4", 8, "--target: found 'cuda:h100:2x4', expected one of cpu, "),
        ("", 8, "--target: found '', expected one of cpu, "),
        ("tpu:v5e:4x4", 8, "--target: found 'tpu:v5e:4x4', which is 16 devices, expected the 8 of --devices"),
        ("cpu", 0, "--devices: found 0, expected at least 1"),
    ],
)
def test_a_wrong_target_is_one_line(text: str, devices: int, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_target(text, devices)
    assert str(error.value).startswith(message)


def test_beyond_a_host_its_devices_share_the_network() -> None:
    h100 = HARDWARE["cuda:h100"]
    assert h100.bandwidth(8, 1) == 450e9
    assert h100.bandwidth(16, 1) == 400e9  # all eight of each host take part
    assert h100.bandwidth(8, 4) == 100e9  # two of each host do
    assert h100.bandwidth(2, 64) == 50e9
    assert HARDWARE["tpu:v4"].bandwidth(4096, 1) == 100e9
