"""The checks of a process of its own: those of the mesh, whatever devices this one has; for TPUs, of compiled text."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from lmcore.config import to_dict
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


PLAIN = """
import jax, json, sys
import jax.numpy as jnp
import jaxlm.attention, jaxlm.model
from lmcore.config import Config, from_dict
from lmcore.run.mesh import MeshShape
from parity.audit.compiled import read_text
from parity.audit.programs import compile_for

jaxlm.model.causal_attention = jaxlm.attention.causal_attention
jaxlm.attention.accumulated = lambda a, b: jnp.matmul(a, b, preferred_element_type=jnp.float32)
config = from_dict(Config, json.loads(sys.argv[1]))
facts = read_text(compile_for("v5e:2x2", config, MeshShape()), config.train.seq_len, 1)
print(sum(not each.narrow for each in facts.large), len(facts.quadratic), len(facts.kernels))
"""


@pytest.mark.slow
@pytest.mark.skipif(not has_libtpu(), reason="libtpu is not installed: pip install 'twinlm[plan]'")
def test_attention_without_its_kernel_and_rule_is_found_in_a_tpu_program(changed: Any) -> None:
    config = to_dict(audited(changed(model={"n_layers": 1}), MeshShape()))
    environment = os.environ | {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
    environment.pop("XLA_FLAGS", None)
    command = [sys.executable, "-c", PLAIN, json.dumps(config)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    wide, squares, kernels = map(int, ended.stdout.split())
    assert wide == 2  # the scores' gradient
    assert squares > 0
    assert kernels == 0
