"""The expected step is its formula."""

from typing import Any

import pytest

from lmcore.config import Config
from lmcore.model.flops import flops_per_token
from lmcore.run.mesh import MeshShape
from parity.plan.hardware import Hardware
from parity.plan.memory import Memory
from parity.plan.timing import EFFICIENCY, step_time
from parity.plan.traffic import Exchange

MEMORY = Memory(parameters=10, optimizer=20, gradients=5, activations=0, working=0)
DEVICE = Hardware("some", memory=1.0, memory_bandwidth=13.0, link=10.0, measured=1e9)


def test_sharding_hides_behind_matmuls_and_tensor_does_not(tiny: Config, changed: Any) -> None:
    mesh = MeshShape(fsdp=2, tensor=2)
    flops = flops_per_token(tiny.model, 16) * 16 * 16 / 4
    exchanged = [Exchange("all-gather", "fsdp", 2, 2, 40.0), Exchange("all-reduce", "tensor", 2, 1, 30.0)]
    timing = step_time(tiny, mesh, MEMORY, exchanged, DEVICE)
    assert timing.matmuls == pytest.approx(flops / 1e9 / EFFICIENCY)
    assert (timing.sharding, timing.tensor, timing.update) == (2.0, 3.0, 5.0)
    assert timing.step == pytest.approx(timing.matmuls + 3 + 5)
    assert timing.mfu == pytest.approx(flops / 1e9 / timing.step)
    longer = [Exchange("all-gather", "fsdp", 2, 2, 4000.0), exchanged[1]]
    assert step_time(tiny, mesh, MEMORY, longer, DEVICE).step == pytest.approx(200 + 5)
    again = step_time(changed(tiny, remat=True), mesh, MEMORY, exchanged, DEVICE)
    assert again.matmuls == pytest.approx(4 / 3 * timing.matmuls)
