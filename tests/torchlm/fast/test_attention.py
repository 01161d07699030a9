"""Attention in blocks of queries against its plain form, which is torch's own kernel or, with a mask of ours, steps."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from torchlm import attention as plain
from torchlm.dropout import Key, MaskKey, seed_key
from torchlm.fast import attention as fast
from torchlm.fast.attention import causal_attention

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
CPU = torch.device("cpu")


def drawn_heads(dtype: torch.dtype, length: int = 11) -> list[torch.Tensor]:
    rng = np.random.default_rng(0)
    heads = (torch.from_numpy(rng.normal(size=(2, length, n, 4))) for n in (6, 2, 2))
    return [x.to(dtype).requires_grad_() for x in heads]


def values_and_gradients(attend, given: list[torch.Tensor], rate: float, key: Key, **masks: Any) -> list[torch.Tensor]:
    mixed = attend(*given, rate, key, **masks)
    direction = torch.from_numpy(np.random.default_rng(1).normal(size=mixed.shape)).to(mixed.dtype)
    return [mixed.detach(), *torch.autograd.grad(mixed, given, direction)]


@pytest.mark.parametrize("block", [1, 4, 11, 128])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("key", [None, MaskKey(seed_key(4, CPU))], ids=["whole", "threefry"])
def test_blocks_are_the_plain_form_with_its_gradients(
    block: int, dtype: torch.dtype, key: Key, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fast, "QUERY_BLOCK", block)
    given = drawn_heads(dtype)
    expected = values_and_gradients(plain.causal_attention, drawn_heads(torch.float64), 0.3, key)
    found = values_and_gradients(causal_attention, given, 0.3, key)
    wrong = values_and_gradients(causal_attention, [given[0], given[1].flip(1), given[2]], 0.3, key)
    for one, other, control in zip(found, expected, wrong, strict=True):
        assert one.dtype == dtype
        allowed = TOLERANCE[dtype] * other.abs().max()
        assert (one.double() - other).abs().max() <= allowed
        assert (control.double() - other).abs().max() > allowed


@pytest.mark.parametrize("attend", [causal_attention, plain.causal_attention])
def test_torchs_own_generator_drops_the_same_fraction(attend):
    torch.manual_seed(0)
    q, k, v = torch.zeros(4, 200, 2, 1), torch.zeros(4, 200, 2, 1), torch.ones(4, 200, 2, 1)
    mixed = attend(q, k, v, 0.25, "native")
    assert abs(float(mixed.mean()) - 1) < 0.02
    first = mixed[:, 0].flatten()  # of a single key: dropped, or scaled up
    assert {round(float(value), 5) for value in first} <= {0.0, round(1 / 0.75, 5)}
    torch.testing.assert_close(attend(q, k, v, 0.25, None), torch.ones_like(mixed))
    assert not torch.allclose(mixed, torch.ones_like(mixed), atol=0.05)


def test_a_long_sequence_goes_to_torchs_kernel(monkeypatch: pytest.MonkeyPatch):
    def never(*_: object) -> None:
        raise AssertionError("in blocks")

    monkeypatch.setattr(fast, "block_attention", never)
    monkeypatch.setattr(fast, "LONGEST_IN_BLOCKS", 10)
    assert causal_attention(*drawn_heads(torch.float32)).shape == (2, 11, 6, 4)
    with pytest.raises(AssertionError, match="in blocks"):
        causal_attention(*drawn_heads(torch.float32, length=10))


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def close(found: torch.Tensor, expected: torch.Tensor | np.ndarray, tolerance: float = 1e-12) -> bool:
    expected = torch.as_tensor(expected)
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.mark.parametrize("length", [1, 7, 150, 1025])
def test_attention_is_its_formula_and_query_head_n_uses_key_head_n_over_g(length: int):
    q, k, v = draws(2, length, 6, 4), draws(2, length, 2, 4, seed=1), draws(2, length, 2, 4, seed=2)

    def expected(heads: np.ndarray) -> np.ndarray:
        scores = np.einsum("btnh,bsnh->bnts", q.numpy(), k.numpy()[:, :, heads]) / 2
        scores = np.where(np.tril(np.ones((length, length), bool)), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v.numpy()[:, :, heads])

    assert close(causal_attention(q, k, v), expected(np.array([0, 0, 0, 1, 1, 1])))
    assert not close(causal_attention(q, k, v), expected(np.array([0, 1, 0, 1, 0, 1])), 1e-3)


@pytest.mark.parametrize("window", [0, 2, 4, 20])
@pytest.mark.parametrize("block", [3, 128])
def test_windows_and_soft_caps_are_those_of_the_definition(block: int, window: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fast, "QUERY_BLOCK", block)
    q, k, v = (x.detach() for x in drawn_heads(torch.float64))
    scores = torch.einsum("btkgh,bskh->bkgts", q.view(2, 11, 2, 3, 4), k) / 2.0
    ones = torch.ones(11, 11, dtype=torch.bool)
    hidden = ~ones.tril() | ones.tril(-(window or 11))
    for softcap, bent in ((0.7, 0.7 * torch.tanh(scores / 0.7)), (0.0, scores)):
        weights = torch.softmax(bent.masked_fill(hidden, -torch.inf), dim=-1)
        expected = torch.einsum("bkgts,bskh->btkgh", weights, v).reshape(q.shape)
        for form in (causal_attention, plain.causal_attention):
            torch.testing.assert_close(form(q, k, v, window=window, softcap=softcap), expected, rtol=1e-12, atol=1e-13)
            assert (form(q, k, v, window=window, softcap=0.3) - expected).abs().max() > 1e-3


LENGTH = 1100
"""Longer than LONGEST_IN_BLOCKS, and no multiple of QUERY_BLOCK."""
BEGINNINGS = torch.tensor([[0, 300, 301, 900], [0, 120, 640, 1099]])
DOCUMENTS = torch.zeros(2, LENGTH, dtype=torch.int64).scatter(1, BEGINNINGS, BEGINNINGS).cummax(dim=1).values
MASKS: list[dict[str, Any]] = [
    {"documents": DOCUMENTS},
    {"window": 200},
    {"softcap": 0.7},
    {"documents": DOCUMENTS, "window": 200, "softcap": 0.7},
]
NAMES = ["documents", "window", "softcap", "all"]


@pytest.mark.parametrize("masks", MASKS, ids=NAMES)
def test_a_long_sequence_is_the_plain_form_with_its_gradients(masks: dict[str, Any]):
    given = drawn_heads(torch.float64, LENGTH)
    found = values_and_gradients(causal_attention, given, 0.0, None, **masks)
    expected = values_and_gradients(plain.causal_attention, given, 0.0, None, **masks)
    wrong = values_and_gradients(plain.causal_attention, given, 0.0, None)
    for one, other, control in zip(found, expected, wrong, strict=True):
        assert close(one, other)
        assert not close(control, other, 1e-3)


@pytest.mark.parametrize("masks", [{}, *MASKS], ids=["causal", *NAMES])
def test_a_long_sequence_is_recomputed_with_the_same_dropout(masks: dict[str, Any]):
    """The result is linear in the values, so its derivative along them is itself: with one mask of dropout alone."""
    torch.manual_seed(0)
    q, k, v = drawn_heads(torch.float64, LENGTH)
    mixed = causal_attention(q, k, v, 0.3, "native", **masks)
    direction = torch.randn_like(mixed)
    (gradient,) = torch.autograd.grad(mixed, v, direction)
    torch.testing.assert_close((gradient * v).sum(), (direction * mixed).sum(), rtol=1e-10, atol=0)
    assert not close(causal_attention(q, k, v, 0.3, "native", **masks), mixed, 1e-3)


class Squares(TorchDispatchMode):
    """Counts results with at least as many elements for each sequence as a square of positions."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        tensors = [x for x in torch.utils._pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.count += any(x.numel() >= LENGTH * LENGTH for x in tensors)
        return result


def squares_and_saved(dtype: torch.dtype, masks: dict[str, Any], rate: float = 0.0, key: Key = None) -> tuple[int, int]:
    """Return how many results have T × T elements, and the number of elements saved for the backward pass."""
    saved: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        saved[x.untyped_storage().data_ptr()] = x.numel()
        return x

    given = [x[:1] for x in drawn_heads(dtype, LENGTH)]
    masks = masks | ({"documents": masks["documents"][:1]} if "documents" in masks else {})
    with Squares() as squares:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            mixed = causal_attention(*given, rate, key, **masks)
        mixed.sum().backward()
    return squares.count, sum(saved.values())


@pytest.mark.parametrize(
    ("masks", "key"),
    [({}, None), *((masks, None) for masks in MASKS), ({}, "native")],
    ids=["causal", *NAMES, "dropout"],
)
def test_a_long_sequence_has_no_square(masks: dict[str, Any], key: Key, monkeypatch: pytest.MonkeyPatch):
    squares, saved = squares_and_saved(torch.float32, masks, 0.3, key)
    assert squares == 0
    assert saved < LENGTH * LENGTH / 10
    monkeypatch.setattr(fast, "LONGEST_IN_BLOCKS", LENGTH)
    assert squares_and_saved(torch.float32, masks, 0.3, key)[1] > LENGTH * LENGTH / 2
    monkeypatch.setattr(fast, "block_attention", plain.causal_attention)
    assert squares_and_saved(torch.float32, masks, 0.3, key)[0] > 0 or (not masks and key is None)
