"""The programs of both accelerators, lowered on a CPU, hold what an audit asks; changed, they don't."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

import jaxlm.model
from jaxlm import attention as plain
from lmcore.config import Config
from lmcore.run.mesh import MeshShape
from parity.audit.checks import no_kernel_reason
from parity.audit.programs import audited, lower_decode_step, lower_train_step
from parity.audit.worker import check_lowered

pytestmark = pytest.mark.usefixtures("bfloat16")
ALONE = MeshShape()


def failed(config: Config, platform: str, mesh: MeshShape = ALONE, step: str = "train") -> dict[str, str]:
    """Check that failed -> what it found."""
    lowered = lower_train_step(config, mesh, platform) if step == "train" else lower_decode_step(config, platform)
    checks = check_lowered(lowered, config, mesh)
    assert {(check.platform, check.step) for check in checks} == {(platform, step)}
    return {check.name: check.found for check in checks if not check.passed}


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "documents": {"data": {"document_mask": True}},
    "window and soft cap": {
        "model": {"layer_types": ["sliding", "full"], "sliding_window": 100, "attention_softcap": 20.0}
    },
    "scanned": {"model": {"scan_layers": True}, "train": {"remat": True, "grad_accum": 2}},
    "muon": {"optim": {"name": "muon"}},
    "length without a kernel on TPUs": {"model": {"max_seq_len": 400}},
    "head width without a kernel": {"model": {"head_dim": 12}},
    "float32": {"train": {"precision": "float32"}},
}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_train_step_passes(variant: str, platform: str, changed: Any) -> None:
    assert failed(audited(changed(**VARIANTS[variant]), ALONE), platform) == {}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("mesh", [MeshShape(fsdp=2), MeshShape(tensor=2), MeshShape(data=2)])
def test_the_train_step_passes_on_a_mesh(mesh: MeshShape, platform: str, changed: Any) -> None:
    assert failed(audited(changed(), mesh), platform, mesh) == {}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_decode_step_passes(platform: str, changed: Any) -> None:
    sample = {"top_p": 0.9, "top_k": 20}
    assert failed(audited(changed(sample=sample), ALONE), platform, step="decode") == {}


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_dropout_of_attention_weights_keeps_a_square(platform: str, changed: Any) -> None:
    found = failed(audited(changed(model={"dropout": 0.1}), ALONE), platform)
    assert found.keys() == {"T × T tensors"}
    assert "f32[4,4,384,384]" in found["T × T tensors"]


def widened(multiply: Callable) -> Callable:
    return lambda x, kernel: multiply(x.astype(jnp.float32), kernel.astype(jnp.float32)).astype(x.dtype)


def printing(multiply: Callable) -> Callable:
    def called(x: Any, kernel: Any) -> Any:
        jax.debug.print("{}", x[0, 0])
        return multiply(x, kernel)

    return called


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(
    ("name", "fault", "caught"),
    [
        ("jaxlm.linear.linear", widened, {"matmul factors"}),
        ("jaxlm.linear.linear", printing, {"host callbacks"}),
        ("jaxlm.model.causal_attention", lambda _: plain.causal_attention, {"T × T tensors", "attention kernel"}),
        ("jaxlm.fast.attention.kernel_attention", lambda _: lambda *_: None, {"attention kernel"}),
        ("jax.jit", lambda jit: lambda f, donate_argnums=None, **rest: jit(f, **rest), {"donated buffers"}),
    ],
)
def test_a_planted_fault_is_caught(name: str, fault: Callable, caught: set[str], platform: str, changed: Any) -> None:
    config = audited(changed(), ALONE)
    owner, _, attribute = name.rpartition(".")
    module = {"jaxlm.model": jaxlm.model}.get(owner) or __import__(owner, fromlist=[""])
    with mock.patch.object(module, attribute, fault(getattr(module, attribute))):
        assert failed(config, platform).keys() == caught


def test_a_planted_fault_in_decoding_is_caught(changed: Any) -> None:
    config = audited(changed(), ALONE)
    with mock.patch("jaxlm.linear.linear", widened(jaxlm.model.linear)):
        assert failed(config, "tpu", step="decode").keys() == {"matmul factors"}


@pytest.mark.parametrize(
    ("mesh", "model", "expected"),
    [
        (ALONE, {}, 384),
        (ALONE, {"vocab_size": 768}, 512),
        (MeshShape(fsdp=2), {"ffn_dim": 1536}, 640),
        (ALONE, {"max_seq_len": 100}, 228),
        (ALONE, {"max_seq_len": 4096, "dim": 4096}, 3968),
    ],
)
def test_the_length_divides_no_other_size(mesh: MeshShape, model: dict[str, Any], expected: int, changed: Any) -> None:
    assert audited(changed(model=model), mesh).train.seq_len == expected


def test_a_reason_is_given_where_there_is_no_kernel(changed: Any) -> None:
    assert no_kernel_reason(changed(), "cuda") == no_kernel_reason(changed(), "tpu") == ""
    masked = changed(data={"document_mask": True})
    assert (no_kernel_reason(masked, "cuda"), no_kernel_reason(masked, "tpu")) == ("masked documents", "")
    assert no_kernel_reason(changed(model={"max_seq_len": 400}), "tpu") == "train.seq_len 400"
    assert no_kernel_reason(changed(train={"precision": "float32"}), "tpu") == "train.precision float32"
    assert no_kernel_reason(changed(model={"dropout": 0.1}), "cuda") == "dropout of attention weights"
