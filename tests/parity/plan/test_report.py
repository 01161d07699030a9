"""A plan says its figures, and whether it fits: by the target's own compiler where that was asked."""

import json
from dataclasses import replace
from typing import Any

import pytest

from lmcore.config import Config
from lmcore.run.mesh import MeshShape
from parity.plan.hardware import Hardware, Target
from parity.plan.hlo import Collective
from parity.plan.meshes import estimate
from parity.plan.report import Plan, sums
from parity.plan.shapes import Shapes
from parity.plan.traffic import Exchange, exchanges
from parity.plan.worker import Compiled

MESH = MeshShape(fsdp=2)
CPU = Compiled("cpu", 3.0, 1000, 2000, 3000, (Collective("all-reduce", 2, 3, 4_000_000),))


@pytest.fixture
def plan(tiny: Config, shapes: Shapes, changed: Any) -> Plan:
    target = Target("cuda:some", 2, Hardware("some", 1e9, 1e9, 1e6, measured=1e12))
    found = estimate(changed(tiny, MESH), shapes, MESH, target)
    return Plan("a title", target, found, exchanges(tiny, shapes, MESH, True), [CPU], [], [found], ["a note"])


def test_the_text_has_every_part(plan: Plan) -> None:
    text = str(plan)
    assert text.startswith("a title\n")
    assert f"  {'parameters, exact':46}{plan.found.memory.parameters / 1e9:10.3f}\n" in text
    assert "of 1.0, 10% to be left free: fits\n" in text
    assert "little about an accelerator's" in text
    counted = next(line for line in text.splitlines() if line.startswith("  all-reduce, reduce-scatter"))
    assert counted.split()[-2] == "0.0040"
    assert f"MFU {plan.found.timing.mfu:.1%}" in text
    assert "the matmul rate measured here" in text
    assert "--parallel.data 1 --parallel.fsdp 2 --parallel.tensor 1 --train.grad_accum 1" in text
    assert text.endswith("\nnote: a note")
    assert "what would make it fit" not in text


def test_what_does_not_fit_has_remedies(plan: Plan) -> None:
    found = replace(plan.found, fits=False)
    large = replace(plan, found=found, remedies=[("--train.remat true", plan.found)])
    assert "does not fit" in str(large)
    assert f"\n  --train.remat true: {plan.found.memory.total / 1e9:.1f} GB, " in str(large)
    assert "a smaller batch" in str(replace(large, remedies=[]))
    assert not large.fits


def test_the_targets_own_compiler_has_the_last_word(plan: Plan) -> None:
    own = Compiled("tpu v5e:1x2", 90.0, 1000, 2000, 3000)
    assert replace(plan, found=replace(plan.found, fits=False), compiled=[CPU, own]).fits
    refused = replace(own, error="RESOURCE_EXHAUSTED: Ran out of memory")
    assert not replace(plan, compiled=[CPU, refused]).fits
    assert "refused: RESOURCE_EXHAUSTED: Ran out of memory" in str(replace(plan, compiled=[refused]))


def test_the_plain_values_are_json(plan: Plan) -> None:
    values = json.loads(json.dumps(plan.to_dict()))
    assert values["fits"] is True
    assert values["mesh"]["memory"]["state"] == plan.found.memory.state
    assert values["compiled"][0]["collectives"][0]["group"] == 2
    assert values["best"][0]["timing"]["step"] == plan.found.timing.step


def test_sums_join_reductions_of_one_group() -> None:
    found = [Exchange("all-reduce", "data", 2, 1, 3), Exchange("reduce-scatter", "fsdp", 2, 1, 4)]
    assert sums([*found, Exchange("all-gather", "fsdp", 2, 1, 5)]) == {
        ("all-reduce, reduce-scatter", 2): 7,
        ("all-gather", 2): 5,
    }
