"""The checks of a process of its own: those of the mesh, whatever devices this one has; for TPUs, of compiled text."""

from typing import Any

import pytest

from lmcore.run.mesh import MeshShape
from parity.audit.programs import audited
from parity.audit.worker import audit_jax
from parity.plan.worker import has_libtpu


def test_a_mesh_of_more_devices_than_are_here_is_audited(changed: Any) -> None:
    mesh = MeshShape(fsdp=4)
    found = audit_jax(audited(changed(), mesh), mesh, "cuda")
    assert {(check.platform, check.step, check.form) for check in found} == {
        ("cuda", "train", "lowered"),
        ("cuda", "decode", "lowered"),
    }
    assert all(check.passed for check in found)


@pytest.mark.slow
@pytest.mark.skipif(not has_libtpu(), reason="libtpu is not installed: pip install 'twinlm[plan]'")
@pytest.mark.parametrize("mesh", [MeshShape(), MeshShape(fsdp=2, tensor=2)])
def test_a_tpu_is_compiled_for_without_one(mesh: MeshShape, changed: Any) -> None:
    found = audit_jax(audited(changed(), mesh), mesh, "tpu", "v5e:2x2")
    compiled = [check for check in found if check.form == "compiled for v5e:2x2"]
    assert len(compiled) == 6
    assert [check for check in found if not check.passed] == []
