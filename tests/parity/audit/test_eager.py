"""What torchlm's step would be on CUDA, from fake tensors: as it is, and with each fault."""

import subprocess
import sys
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import torchlm.attention
from parity.audit.eager import audit_torch, sdpa_kernel, train_facts


def failed(config: Any) -> dict[str, str]:
    """Check that failed -> what it found."""
    return {check.name: check.found for check in audit_torch(config, compiled=False) if not check.passed}


def test_the_loss_is_one_graph(changed: Any) -> None:
    found = audit_torch(changed())[-1]
    assert (found.name, found.passed, found.found) == ("graph breaks", True, "0")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": {"dropout": 0.1}},
        {"train": {"remat": True, "grad_accum": 2}},
        {"optim": {"name": "muon"}},
        {"train": {"precision": "float32"}},
    ],
)
def test_the_train_step_passes(changes: dict[str, Any], changed: Any) -> None:
    assert failed(changed(**changes)) == {}


def test_a_mask_is_the_only_square(changed: Any) -> None:
    """Documents and windows go by the memory-efficient kernel, with a mask of booleans for all heads."""
    facts, _ = train_facts(changed(data={"document_mask": True}))
    assert facts.kernels == {"memory-efficient attention": 2}
    assert {array.dtype for array in facts.quadratic} == {"i1"}


def test_what_no_kernel_takes_is_said(changed: Any) -> None:
    assert failed(changed(model={"attention_softcap": 20.0})).keys() == {
        "matmul factors",
        "T × T tensors",
        "attention kernel",
    }


def test_a_wait_of_the_host_is_found(changed: Any) -> None:
    assert "waits of the host" in failed(changed(optim={"nonfinite": "skip"}))


def test_a_planted_float32_matmul_is_found(changed: Any) -> None:
    def widened(x: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return torch.nn.functional.linear(x.float(), weight.float()).to(x.dtype)

    with mock.patch("torchlm.linear.linear", widened):
        assert "matmul factors" in failed(changed())


def test_an_update_that_is_not_fused_is_found(changed: Any) -> None:
    adamw = torch.optim.AdamW
    with mock.patch("torch.optim.AdamW", lambda *given, fused, **rest: adamw(*given, **rest)):
        assert "fused optimizer" in failed(changed())


def test_heads_that_are_not_repeated_are_found(changed: Any) -> None:
    """With a mask and fewer key/value heads, torch would compute step by step."""

    def grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *rest: Any) -> Tensor:
        return attention(q, k[:, ::2], v[:, ::2], mask, *rest)

    attention = torchlm.attention.attention
    with mock.patch("torchlm.attention.attention", grouped):
        facts, _ = train_facts(changed(data={"document_mask": True}))
    assert facts.kernels == {"math": 2}
    assert "f32" in {array.dtype for array in facts.quadratic}


BREAKING = """
import sys, torch, torchlm.model
from lmcore.config import Config
from parity.audit.eager import graph_breaks
from parity.check.rungs.execution import small_config

def breaking(*given):
    torch._dynamo.graph_break()
    return forward(*given)

forward = torchlm.model.RMSNorm.forward
torchlm.model.RMSNorm.forward = breaking
print(graph_breaks(small_config(Config())))
"""


def test_a_graph_break_is_counted() -> None:
    """In a process of its own: checked types would break the graph too."""
    ended = subprocess.run([sys.executable, "-c", BREAKING], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 0


@pytest.mark.parametrize(
    ("dtype", "head_dim", "masked", "grouped", "expected"),
    [
        (torch.bfloat16, 64, False, True, "flash attention"),
        (torch.bfloat16, 512, False, False, "memory-efficient attention"),
        (torch.float32, 64, False, False, "memory-efficient attention"),
        (torch.float32, 64, False, True, "math"),
        (torch.bfloat16, 64, True, False, "memory-efficient attention"),
        (torch.bfloat16, 64, True, True, "math"),
        (torch.float64, 64, False, False, "math"),
    ],
)
def test_kernels_are_those_of_the_documentation(
    dtype: torch.dtype, head_dim: int, masked: bool, grouped: bool, expected: str
) -> None:
    assert sdpa_kernel(dtype, head_dim, masked, grouped) == expected
