"""Each check passes on what it asks for, and fails on its opposite; what it found is said."""

from dataclasses import replace
from typing import Any

import pytest

from lmcore.run.mesh import MeshShape
from parity.audit.checks import Check, Program, judge, listed
from parity.audit.facts import Array, Facts, Matmul
from parity.plan.hlo import Collective
from parity.plan.report import sums
from parity.plan.shapes import shapes_of
from parity.plan.traffic import exchanges

MESH = MeshShape(fsdp=2)
NARROW = Matmul((Array("bf16", (4, 8)), Array("bf16", (8, 4))), Array("bf16", (4, 4)), 5)
WIDE = Matmul((Array("f32", (4, 8)), Array("bf16", (8, 4))), Array("f32", (4, 4)), 2)
GOOD = Facts((NARROW, replace(WIDE, optimizer=True)), (), 7, (), {"Pallas for TPU": 3}, ())


def checks(config: Any, facts: Facts, mesh: MeshShape = MeshShape()) -> dict[str, Check]:  # noqa: B008
    return {check.name: check for check in judge(Program("tpu", "train", "lowered", config, mesh, 7), facts)}


def test_all_pass_on_a_good_program(changed: Any) -> None:
    found = checks(changed(), GOOD)
    assert all(check.passed for check in found.values())
    assert found["matmul factors"].found == "5 of 5 large matmuls have 16-bit factors; the optimizer's 2 are float32"
    assert found["donated buffers"].found == "7 of 7"
    assert found["attention kernel"].found == "3 × Pallas for TPU"


@pytest.mark.parametrize(
    ("name", "changes", "found"),
    [
        ("matmul factors", {"matmuls": (NARROW, WIDE)}, "5 of 7 large matmuls have 16-bit factors: 2 × (f32[4,8] × "),
        ("matmul factors", {"matmuls": ()}, "0 of 0"),
        ("T × T tensors", {"quadratic": (Array("f32", (8, 8)),)}, "f32[8,8]"),
        ("donated buffers", {"donated": 6}, "6 of 7"),
        ("host callbacks", {"callbacks": ("infeed",)}, "infeed"),
        ("attention kernel", {"kernels": {}}, "none"),
        ("collectives", {"collectives": (Collective("all-gather", 2, 1, 10**9),)}, "all-gather of 2: 1000.000 MB, 0.0"),
    ],
)
def test_each_fails_on_its_fault_alone(name: str, changes: dict[str, Any], found: str, changed: Any) -> None:
    all_of_them = checks(changed(), replace(GOOD, **changes))
    failed = {check.name: check.found for check in all_of_them.values() if not check.passed}
    assert failed.keys() == {name}
    assert failed[name].startswith(found)


def test_float32_is_no_fault_where_it_is_asked_for(changed: Any) -> None:
    found = checks(changed(train={"precision": "float32"}), replace(GOOD, matmuls=(WIDE,), kernels={}))
    assert found["matmul factors"].passed
    assert found["attention kernel"].passed
    assert found["attention kernel"].found == "none, because of train.precision float32"


def test_collectives_are_those_of_the_plan(changed: Any) -> None:
    config = changed()
    planned = sums(exchanges(config, shapes_of(config), MESH))

    def passed(factor: float) -> bool:
        moved = tuple(
            Collective("all-reduce" if "reduce" in kind else kind, group, 1, int(factor * size))
            for (kind, group), size in planned.items()
        )
        return checks(config, replace(GOOD, collectives=moved), MESH)["collectives"].passed

    assert planned
    assert passed(0.5)
    assert passed(1.0)
    assert not passed(1.3)


def test_without_a_compiler_there_are_no_collectives_to_check(changed: Any) -> None:
    assert "collectives" not in checks(changed(), replace(GOOD, collectives=None))


def test_many_findings_are_counted() -> None:
    assert listed([]) == "none"
    assert listed(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
