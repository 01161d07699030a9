"""The best meshes fit and are sorted; what would make a run fit does."""

from dataclasses import replace
from typing import Any

from lmcore.config import Config
from lmcore.run.mesh import MeshShape, check_mesh
from parity.plan.hardware import Hardware, Target
from parity.plan.meshes import HEADROOM, all_meshes, best, estimate, remedies
from parity.plan.shapes import Shapes


def target(memory: float, devices: int = 8) -> Target:
    """Devices whose estimates may have so many bytes."""
    hardware = Hardware("some", memory / (1 - HEADROOM), memory_bandwidth=1e9, link=1e6, measured=1e9)
    return Target("cuda:some", devices, hardware)


def test_every_mesh_is_tried_once() -> None:
    meshes = list(all_meshes(12))
    assert len(set(meshes)) == len(meshes) == 18
    assert all(mesh.size == 12 for mesh in meshes)


def test_the_best_meshes_fit_and_come_in_order(tiny: Config, shapes: Shapes) -> None:
    plenty = best(tiny, shapes, target(1e12), 20)
    steps = [found.timing.step for found in plenty]
    assert steps == sorted(steps)
    assert {found.config.train.grad_accum for found in plenty} == {1}
    assert not any(found.mesh.tensor == 8 for found in plenty)  # of four heads
    limit = 1.001 * sorted(found.memory.total for found in plenty)[2]
    fewer = best(tiny, shapes, target(limit), 20)
    assert len(fewer) > 0
    assert all(found.memory.total <= limit for found in fewer)
    assert any(found.config.train.grad_accum > 1 for found in fewer)
    for found in fewer:
        check_mesh(found.config, found.mesh)
    assert best(tiny, shapes, target(1.0)) == []


def test_what_would_make_it_fit_does(tiny: Config, shapes: Shapes, changed: Any) -> None:
    mesh = MeshShape(data=4, tensor=2)
    config = changed(tiny, mesh)
    needed = estimate(config, shapes, mesh, target(1.0))
    close = target(0.999 * needed.memory.total)
    found = estimate(config, shapes, mesh, close)
    assert not found.fits
    changes = dict(remedies(found, shapes, close))
    assert {"--train.remat true", "--train.grad_accum 2", "--parallel.sequence true"} <= changes.keys()
    assert all(each.memory.total < needed.memory.total for each in changes.values())


def test_where_nothing_else_does_more_devices_do(tiny: Config, shapes: Shapes, changed: Any) -> None:
    mesh = MeshShape(tensor=2)
    smallest = best(changed(tiny, remat=True), shapes, target(1e12, 8), 99)
    small = target(1.001 * min(found.memory.total for found in smallest), 2)
    found = estimate(changed(tiny, mesh, remat=True), shapes, mesh, small)
    assert best(found.config, shapes, small) == []
    (change, more), *others = remedies(found, shapes, small)
    assert change.startswith("--devices ")
    assert more.mesh.size > 2
    assert not others
    nothing = replace(small, hardware=replace(small.hardware, memory=1.0))
    assert list(remedies(found, shapes, nothing)) == []
