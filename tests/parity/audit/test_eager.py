"""What torchlm's step would be on CUDA, from fake tensors: as it is, and with each fault."""

import subprocess
import sys
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import torchlm.attention
from parity.audit.eager import audit_torch, prefill_facts, sdpa_kernel, train_facts
from torchlm.fast.attention import LONGEST_IN_BLOCKS, QUERY_BLOCK


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


MASKS: dict[str, dict[str, Any]] = {
    "documents": {"data": {"document_mask": True}},
    "window": {"model": {"layer_types": ["sliding"], "sliding_window": 100}},
    "softcap": {"model": {"attention_softcap": 20.0}},
}
LONG = 1152
"""Beyond LONGEST_IN_BLOCKS."""


@pytest.mark.parametrize("length", [384, LONG])
@pytest.mark.parametrize("mask", MASKS)
def test_a_masked_step_has_no_square(mask: str, length: int, changed: Any) -> None:
    sizes = {"max_seq_len": length} | MASKS[mask].get("model", {})
    config = changed(**MASKS[mask] | {"model": sizes, "train": {"seq_len": length}})
    facts, _ = train_facts(config)
    blocks = length // QUERY_BLOCK
    times = 2 if length > LONGEST_IN_BLOCKS else 1  # recomputed in the backward pass
    expected = {} if mask == "softcap" else {"memory-efficient attention": 2 * times * blocks}
    assert (facts.quadratic, facts.kernels, facts.callbacks) == ((), expected, ())
    assert prefill_facts(config).quadratic == ()


@pytest.mark.parametrize("mask", MASKS)
def test_what_is_saved_for_the_backward_pass_grows_with_the_length_alone(mask: str, changed: Any) -> None:
    def saved(length: int) -> int:
        sizes = {"max_seq_len": length} | MASKS[mask].get("model", {})
        config, elements = changed(**MASKS[mask] | {"model": sizes, "train": {"seq_len": length}}), [0]

        def pack(x: Tensor) -> Tensor:
            elements[0] += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            train_facts(config)
        return elements[0]

    once = saved(LONG)
    assert saved(2 * LONG) < 2 * once
    with mock.patch("torchlm.fast.attention.LONGEST_IN_BLOCKS", LONG):
        assert saved(LONG) > 1.1 * once


@pytest.mark.parametrize("mask", MASKS)
def test_the_square_of_the_plain_form_is_found(mask: str, changed: Any) -> None:
    with mock.patch("torchlm.model.causal_attention", torchlm.attention.causal_attention):
        found = failed(changed(**MASKS[mask]))
        assert "T × T tensors" in found
        assert prefill_facts(changed(**MASKS[mask])).quadratic


@pytest.mark.slow
def test_recomputed_blocks_are_one_graph(changed: Any) -> None:
    sizes = {"max_seq_len": LONG} | MASKS["window"]["model"] | MASKS["softcap"]["model"]
    found = audit_torch(changed(**MASKS["documents"], model=sizes, train={"seq_len": LONG}))[-1]
    assert (found.name, found.passed, found.found) == ("graph breaks", True, "0")


def test_what_no_kernel_takes_is_said(changed: Any) -> None:
    assert failed(changed(**MASKS["softcap"])).keys() == {"matmul factors", "attention kernel"}


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
    with mock.patch("torchlm.fast.attention.attention", grouped):
        assert failed(changed(**MASKS["documents"])).keys() >= {"attention kernel"}


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
