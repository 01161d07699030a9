"""The formula of what devices exchange is what XLA's programs for the CPU contain, to within scalars and vectors."""

from typing import Any

import pytest

from lmcore.config import Config
from lmcore.run.mesh import MeshShape
from parity.plan.report import sums
from parity.plan.shapes import Shapes
from parity.plan.traffic import exchanges
from parity.plan.worker import compile_step

SLOW = pytest.mark.slow
CASES = [
    (MeshShape(2, 2, 2), {"remat": True, "grad_accum": 2}),
    pytest.param(MeshShape(8, 1, 1), {}, marks=SLOW),
    pytest.param(MeshShape(1, 8, 1), {}, marks=SLOW),
    pytest.param(MeshShape(2, 4, 1), {"remat": True, "grad_accum": 2}, marks=SLOW),
    pytest.param(MeshShape(1, 2, 4), {"remat": True}, marks=SLOW),
    pytest.param(MeshShape(1, 1, 4), {"sequence": True}, marks=SLOW),
    pytest.param(MeshShape(2, 1, 2), {"sequence": True, "remat": True}, marks=SLOW),
]


@pytest.mark.parametrize(("mesh", "train"), CASES)
def test_the_formula_is_what_the_program_exchanges(
    mesh: MeshShape, train: dict[str, Any], tiny: Config, shapes: Shapes, changed: Any
) -> None:
    config = changed(tiny, mesh, **train)
    counted = sums(compile_step(config, mesh).collectives)
    formula = sums(exchanges(config, shapes, mesh, compiled_for_cpu=True))
    assert formula
    for key, size in formula.items():
        assert counted[key] == pytest.approx(size, rel=0.02, abs=3000), key
    other_config = changed(tiny, mesh, **train | {"grad_accum": 4, "remat": "remat" not in train})
    other = sums(exchanges(other_config, shapes, mesh, compiled_for_cpu=True))
    assert any(counted[key] != pytest.approx(size, rel=0.02, abs=3000) for key, size in other.items())


def test_one_device_exchanges_nothing(tiny: Config, shapes: Shapes) -> None:
    assert exchanges(tiny, shapes, MeshShape()) == []


def test_matmuls_in_16_bits_gather_half(tiny: Config, changed: Any) -> None:
    from parity.plan.shapes import shapes_of

    mesh = MeshShape(fsdp=8)
    full, half = (
        {each.kind: each.bytes for each in exchanges(config, shapes_of(config), mesh)}
        for config in (changed(tiny, mesh), changed(tiny, mesh, precision="bfloat16"))
    )
    assert half["reduce-scatter"] == pytest.approx(full["reduce-scatter"] / 2, rel=0.05)
    assert half["all-gather"] < 0.8 * full["all-gather"]
