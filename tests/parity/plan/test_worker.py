"""Compiling for devices that are not here: the state is the one that was computed; without libtpu no TPU is asked."""

from typing import Any

import pytest

from lmcore.config import Config
from lmcore.run.mesh import MeshShape
from parity.plan.memory import device_memory
from parity.plan.shapes import Shapes
from parity.plan.worker import compile_step, has_libtpu


def test_the_compiled_state_is_the_one_computed(tiny: Config, shapes: Shapes, changed: Any) -> None:
    mesh = MeshShape(fsdp=4)
    found = compile_step(changed(tiny, mesh, remat=True), mesh)
    assert (found.compiler, found.error) == ("cpu", "")
    assert found.state == device_memory(tiny, shapes, mesh).state
    assert found.temporaries > 0
    assert {each.group for each in found.collectives} == {4}


@pytest.mark.slow
@pytest.mark.skipif(not has_libtpu(), reason="libtpu is not installed: pip install 'twinlm[plan]'")
def test_a_tpu_is_compiled_for_without_one(tiny: Config, shapes: Shapes, changed: Any) -> None:
    mesh = MeshShape(fsdp=8)
    found = compile_step(changed(tiny, mesh, precision="bfloat16"), mesh, "v5e:2x4")
    assert (found.compiler, found.error) == ("tpu v5e:2x4", "")
    assert found.state >= device_memory(tiny, shapes, mesh).state  # in tiles
    assert found.peak > found.state
    assert found.collectives
